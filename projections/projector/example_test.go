package projector_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/projections/projector"
)

// names is a whole projection: what models are called.
type names struct{}

func (names) Name() string    { return "names" }
func (names) Version() int    { return 1 }
func (names) Views() []string { return []string{"model_names"} }
func (names) Setup() string {
	return `create table model_names (stream text primary key, name text not null)`
}

func (names) Apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, data event.Data) error {
	if e, ok := data.(model.Registered); ok {
		_, err := tx.Exec(ctx, `insert into model_names values ($1, $2)`, rec.Stream, e.Name)
		return err
	}
	return nil
}

func ExampleProjection() {
	var p projector.Projection = names{}
	fmt.Println(projector.Schema(p), projector.ConsumerGroup(p))
	// Output: names_v1 names-v1
}

package relay

import (
	"context"
	"fmt"
)

// CheckpointMovedError says that somebody else has published: this relay no longer leads.
type CheckpointMovedError struct {
	Topic string
	From  int64 // where this relay thought the checkpoint was
}

func (e *CheckpointMovedError) Error() string {
	return fmt.Sprintf("the checkpoint of %s is no longer at %d: another relay has moved it", e.Topic, e.From)
}

// AheadError says that the checkpoint lies behind the end of the log: the log was restored from an
// older backup, or is another one, while the checkpoint was kept.
type AheadError struct {
	Topic            string
	Checkpoint, Head int64
}

func (e *AheadError) Error() string {
	return fmt.Sprintf("the checkpoint of %s is at %d but the log ends at %d: the log was restored from an older backup; its readers know events that it lost. Publish to a new topic, or delete the row of relay_checkpoint and the topic", e.Topic, e.Checkpoint, e.Head)
}

// checkpoint returns the position up to which everything was published.
//
// There is none at first, or after somebody deleted the row: then everything is published, and
// readers drop what they have. If the topic is lost but the row is kept, the topic goes on from the
// row's position: projections fill the hole from PostgreSQL by themselves, other readers see it in
// ce_logposition; deleting the row, with the relays stopped, writes the whole log again.
func (r *Relay) checkpoint(ctx context.Context) (int64, error) {
	const insert = "INSERT INTO relay_checkpoint (name, position) VALUES ($1, 0) ON CONFLICT (name) DO NOTHING"
	if _, err := r.cfg.Pool.Exec(ctx, insert, r.cfg.Topic); err != nil {
		return 0, fmt.Errorf("relay checkpoint: %w", err)
	}
	var position int64
	if err := r.cfg.Pool.QueryRow(ctx, "SELECT position FROM relay_checkpoint WHERE name = $1", r.cfg.Topic).Scan(&position); err != nil {
		return 0, fmt.Errorf("relay checkpoint: %w", err)
	}
	return position, nil
}

func (r *Relay) checkHead(ctx context.Context, position int64) error {
	head, _, err := r.cfg.Log.Head(ctx)
	if err != nil {
		return err
	}
	if position > head {
		return &AheadError{Topic: r.cfg.Topic, Checkpoint: position, Head: head}
	}
	return nil
}

func (r *Relay) moveCheckpoint(ctx context.Context, from, to int64) error {
	tag, err := r.cfg.Pool.Exec(ctx, "UPDATE relay_checkpoint SET position = $3 WHERE name = $1 AND position = $2", r.cfg.Topic, from, to)
	if err != nil {
		return fmt.Errorf("relay checkpoint: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return &CheckpointMovedError{Topic: r.cfg.Topic, From: from}
	}
	r.count(func(s *Stats) { s.Position = to })
	return nil
}

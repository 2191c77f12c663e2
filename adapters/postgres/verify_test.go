package postgres_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/eventlog/eventlogtest"
)

// filled opens a log with six events of two streams, a reservation and some work.
func filled(t *testing.T) *postgres.Log {
	t.Helper()
	log := open(t)
	for _, r := range []eventlog.Request{
		to("a", 0, note("requested", eventlog.Reserve{Key: "source", Holder: "a"}, eventlog.OpenWork{Work: eventlog.Work{Kind: "plan", Subject: "a"}})),
		to("b", 0, note("b1")),
		to("a", 1, note("planned", eventlog.CloseWork{Work: eventlog.Work{Kind: "plan", Subject: "a"}},
			eventlog.OpenWork{Work: eventlog.Work{Kind: "segment", Subject: "a"}, Requirement: "cpu"}), note("a3")),
		to("b", 1, note("b2"), note("b3")),
	} {
		_, err := log.Append(t.Context(), r)
		require.NoError(t, err)
	}
	return log
}

func TestARecordedFactIsNeverChanged(t *testing.T) {
	t.Parallel()
	log := filled(t)
	for _, sql := range []string{
		`update events set type = 'Other' where position = 1`,
		`update events set data = null where position = 1`,
		`update events set data = '{}', hash = hash`,
		`delete from events where position = 6`,
		`truncate events`,
		`insert into events select * from events on conflict (position) do update set type = 'Other'`,
	} {
		_, err := log.Pool().Exec(t.Context(), sql)
		require.ErrorContains(t, err, "a recorded fact is never changed", sql)
	}
	report, err := log.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.True(t, report.OK())
	require.True(t, report.SideTablesCompared)
	require.Equal(t, []int{6, 2, 1, 1}, []int{report.Events, report.Streams, report.Reservations, report.Work})
	require.EqualValues(t, 6, report.Head)
}

func TestVerifyNamesWhatWasTamperedWith(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, sql string
		want      []string // check of each fault, with the position
	}{
		{"changed data", `update events set data = '{"text":"forged"}' where position = 2`, []string{"digest: event 2 of b"}},
		{"changed data with its digest", `update events set data = '{"text":"forged"}', data_sha256 = sha256('{"text":"forged"}') where position = 2`, []string{"chain: event 2 of b"}},
		{"changed metadata", `update events set metadata = '{"actor":"nobody"}' where position = 2`, []string{"chain: event 2 of b"}},
		{"changed bytes that mean the same", `update events set data = (data::text || ' ')::json where position = 2`, []string{"digest: event 2 of b"}},
		{"changed time", `update events set recorded_at = recorded_at - interval '1 hour' where position = 2`, []string{"chain: event 2 of b", "time: event 2 of b"}},
		{"a cut hash", `update events set hash = substr(hash, 1, 3) where position = 2`, []string{"chain: event 2 of b", "chain: event 3 of a"}},
		{"a missing event in the middle", `delete from events where position = 2`, []string{"position: event 3 of a", "chain: event 3 of a", "stream version: event 5 of b"}},
		{"a lost end", `delete from events where position > 4; insert into relay_checkpoint values ('kafka', 6)`, []string{"checkpoint: kafka has read up to position 6"}},
		{"data that is gone", `update events set data = null where position = 2`, []string{"archive: event 2 of b"}},
		{"a type that nobody knows", `update events set type = 'Other' where position = 2`, []string{"chain: event 2 of b", "type: event 2 of b"}},
		{"a reservation that nobody asked for", `insert into reservations values ('model', 'x', true)`, []string{"reservation: model is reserved for x, but no event says so"}},
		{"a reservation that is gone", `delete from reservations`, []string{"reservation: source should be reserved for a, and is not"}},
		{"a reservation of another sort", `update reservations set shared = true`, []string{"reservation: source is reserved for a, but shared is true instead of false"}},
		{"work that nobody asked for", `insert into work (kind, subject, index) values ('plan', 'a', 0)`, []string{"work: plan a/0 is open, but no event says so"}},
		{"work that is gone", `delete from work`, []string{"work: segment a/0 should be open, and is not"}},
		{"work for another worker", `update work set requirement = ''`, []string{`work: segment a/0 requires "" instead of "cpu"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			log := filled(t)
			err := pgx.BeginFunc(t.Context(), log.Pool(), func(tx pgx.Tx) error {
				// Who owns the database can switch the triggers off; that is what the chain is for.
				_, err := tx.Exec(t.Context(), `alter table events disable trigger all;`+test.sql+`; alter table events enable trigger all`, pgx.QueryExecModeSimpleProtocol)
				return err
			})
			require.NoError(t, err)
			report, err := log.Verify(t.Context(), nil)
			require.NoError(t, err)
			require.Len(t, report.Faults, len(test.want), "%v", report.Faults)
			for i, want := range test.want {
				require.Contains(t, report.Faults[i].String(), want)
			}
		})
	}
}

func TestAnArchivedEventLosesItsDataAndNothingElse(t *testing.T) {
	t.Parallel()
	log := filled(t)
	before, err := log.ReadStream(t.Context(), "b", 0)
	require.NoError(t, err)
	done, err := log.Archive(t.Context(), []event.ID{before[0].ID, before[2].ID}, "asked for by its author", event.Metadata{Actor: "admin"})
	require.NoError(t, err)
	require.EqualValues(t, 7, done.Position)
	require.Equal(t, "EventsArchived", done.Events[0].Type)

	after, err := log.ReadStream(t.Context(), "b", 0)
	require.NoError(t, err)
	for i, want := range before {
		if i != 1 {
			want.Data = nil
		}
		require.Equal(t, want, after[i])
	}
	registry, err := eventlogtest.Registry()
	require.NoError(t, err)
	_, err = registry.Decode(after[0])
	require.ErrorIs(t, err, event.ErrArchived)

	report, err := log.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.Equal(t, 2, report.Archived)
	require.False(t, report.SideTablesCompared)

	_, err = log.Archive(t.Context(), []event.ID{event.NewID(before[0].RecordedAt)}, "", event.Metadata{})
	require.ErrorContains(t, err, "there is no event")
	_, err = log.Archive(t.Context(), []event.ID{done.Events[0].ID}, "", event.Metadata{})
	require.ErrorContains(t, err, "has to stay")
	head, _, err := log.Head(context.WithoutCancel(t.Context()))
	require.NoError(t, err)
	require.EqualValues(t, 7, head)
}

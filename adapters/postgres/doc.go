// Package postgres is the event log on PostgreSQL: the authority on what happened.
//
// An append is one call of one PL/pgSQL function, so nothing is awaited from a client while a lock is
// held. The last lock it takes, on the tail of the log, is held until the commit: positions have no
// gaps, and whoever has read position n has seen everything up to n. Side tables (reservations, work,
// idempotency keys) change in the same transaction. Leases hand out the open work.
//
// Errors are those of the port domain/eventlog. Verify proves chain, positions and side tables.
// Only cmd/* and tests import it.
package postgres

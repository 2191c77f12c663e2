// Package pgtest gives every test a PostgreSQL database of its own, with the schema in it.
//
// One real server runs in a test binary, started by the first New. It is a copy of a cluster in the
// user's cache that has the migrated schema as a template database, so it is up in a fraction of a
// second and a database takes some tens of milliseconds. It syncs nothing to the disk.
//
// The server ends with the process, whatever ends it. A package that checks for leaked goroutines
// writes goleak.VerifyTestMain(pgtest.Main(m)). Only tests import this package.
package pgtest

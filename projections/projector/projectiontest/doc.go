// Package projectiontest proves the law of projections: the tables that a runner keeps live, the
// tables that are built anew from the log, and a plain fold of the events in memory are the same.
//
// They are compared by a canonical dump: one line a row, in order, with the columns that a caller
// calls volatile left out. Only tests import this package.
package projectiontest

// Package extractions is the read model of extractions: jobs, their segments and their alarms.
//
// It owns the tables extraction_jobs, extraction_segments and extraction_alarms, and the stable views
// of the same names. Names of SAEs, models and datasets come from the library's views, folds from the
// view feature_folds, live progress from the log's table work, all joined when somebody asks:
// "finalizing" is a completed extraction whose features are not folded as far. Queries refuse with a
// *problem.Error.
//
// cmd/* and adapters/httpapi import it; it imports domain/* and pgx.
package extractions

// Package library is the read model of what extractions are made from: models, SAEs, datasets,
// corpora and trainings, with every fact that their events hold.
//
// It owns the tables models, external_saes, datasets, corpora, corpus_chunks, trainings and
// training_saes, and the stable views of the same names. What was deleted keeps its row, with status
// deleted: lists leave it out, look-ups by id find it. Queries refuse with a *problem.Error.
//
// cmd/* and adapters/httpapi import it; it imports domain/* and pgx.
package library

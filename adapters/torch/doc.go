// Package torch runs language models and sparse autoencoders on libtorch (through gotch).
//
// It owns the words runtime (the one OS thread that talks to libtorch, and the compute profile it
// computes under), decoder, hook, encoder and engine (forward to a hook, encode, sparse result).
// It promises: one profile and one batch give the same bits, run after run; memory is model + SAE +
// one batch, whatever the number of batches; a bad shape, token or device is an error that says so,
// never an abort. Families of decoders are rows of a table (checkpoint's family.go): here is one
// decoder that computes them all. A thin tensor layer (scope.go, ops.go) over gotch's libtch stands
// between: gotch's own methods leak and call log.Fatal.
// Commands and workers may import it; it needs cgo, and libtorch.sh says how to build it.
package torch

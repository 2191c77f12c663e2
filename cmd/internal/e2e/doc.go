// Package e2e runs the whole chain as users do, and breaks it: real PostgreSQL, a real broker, the
// processes of both binaries, and files on disk. Every test ends with the canonical dump of an
// extraction's tables, which must be the one of an undisturbed run, byte by byte, and with events verify.
//
// It has tests only. testdata/inputs.py made the model, the SAE and the texts that they extract from.
// FEATUREMILL_TEST_KAFKA=apache runs it on Apache Kafka. FEATUREMILL_TEST_BINARIES names a folder with
// both programs; without it they are built from the working tree, once in a run. FEATUREMILL_TEST_SOAK=n
// kills parts at random in n runs instead of one.
package e2e

// Package eventlogtest is the suite that every event log must pass, and the facts that tests of one
// append. Run takes a function that opens an empty log.
//
// Only tests import it.
package eventlogtest

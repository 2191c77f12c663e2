// Package command holds what people and workers can ask for, one use case a file: load the aggregates
// from the log, let them decide, append what they decided, and try again when somebody was faster.
//
// A use case returns a *problem.Error for what is refused, or an error that wraps
// eventlog.ErrUnavailable when the log does not answer. It answers with the position that the read
// models must reach to show it. Adapters and cmd import it; it imports domain packages only.
package command

// Package worker does leased work: plans, corpus chunks and segments, and self-tests of SAEs where there is nothing else to do;
// its Loop also does folds and downloads for others.
//
// A Loop claims one piece of work at a time, keeps its lease alive while a Job does it, and gives it back when the process
// is asked to stop. An event only wakes the loop; leases are the truth, so any number of workers can run and any of them may
// die. A job ends as done, to go on later, failed, given back, or put off with its cause: an outage of log, store, hub
// or disk for as long as it lasts, all else three times. Only a process that does not come back uses an attempt up; the third
// ends the work. A job reports every batch; a job that reports none for too long ends the process, because a hung libtorch
// call cannot be called off. A lost lease ends the job at the next batch, and what it would record is refused by its fence.
//
// It is pure Go: libtorch and the tokenizer come in as interfaces. cmd imports it.
package worker

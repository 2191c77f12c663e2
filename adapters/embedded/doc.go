// Package embedded starts the servers that Featuremill needs when there are none: PostgreSQL as a
// child process, and a broker that speaks Kafka's protocol inside this process.
//
// A state folder belongs to one process at a time, by a file lock. Whatever ends this process, the
// child ends with it, and what had been committed is there at the next start. Failures to start come
// back as errors that carry the server's own last lines, or say which folder its user cannot reach.
//
// Only cmd and tests import this package. It imports no other package of Featuremill.
package embedded

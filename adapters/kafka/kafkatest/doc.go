// Package kafkatest gives tests a broker: the embedded one inside the test or as a process of its
// own, or Apache Kafka as a child process. All can be killed and started again on the same data and
// the same address.
//
// FEATUREMILL_TEST_KAFKA=apache makes Start choose Apache Kafka, of the version that
// FEATUREMILL_TEST_KAFKA_VERSION names; Maven fetches it once into the user's cache. Java and mvn
// missing is the one reason to skip, and it is printed.
//
// Only tests import this package.
package kafkatest

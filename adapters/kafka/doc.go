// Package kafka carries recorded events over Kafka: the CloudEvents form of an event, the topic, a
// publisher and a subscriber. Outside this package there are only watermill's message.Publisher and
// message.Subscriber; that watermill-kafka v2 reads and franz-go writes is known here alone.
//
// It promises at least once and in the log's order: a crash may repeat a run of events, and never
// swaps two. Unmarshal proves that what arrived is what was recorded, by digests and chain hash, and
// fails with a *MalformedError, never with a panic, whatever the bytes are.
//
// The relay, the projections' wiring and cmd import this package; it imports domain/event only.
package kafka

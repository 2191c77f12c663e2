package embedded

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const brokerTopic = "facts"

func client(t *testing.T, addrs []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addrs...), kgo.DefaultProduceTopic(brokerTopic)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func createTopic(ctx context.Context, c *kgo.Client) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = brokerTopic, 1, 1
	req.Topics = append(req.Topics, topic)
	_, err := req.RequestWith(ctx, c)
	return err
}

func produce(ctx context.Context, c *kgo.Client, value string) error {
	return c.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr()
}

// values reads until it has n records.
func values(t *testing.T, addrs []string, n int) []string {
	t.Helper()
	c := client(t, addrs, kgo.ConsumeTopics(brokerTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	var got []string
	for len(got) < n {
		fetches := c.PollFetches(t.Context())
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
	}
	return got
}

func TestBrokerKeepsItsTopicsAcrossStop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, err := StartBroker(t.Context(), BrokerConfig{Dir: dir})
	require.NoError(t, err)
	c := client(t, b.Addrs())
	require.NoError(t, createTopic(t.Context(), c))
	require.NoError(t, produce(t.Context(), c, "one"))

	_, err = StartBroker(t.Context(), BrokerConfig{Dir: dir})
	var locked *LockedError
	require.ErrorAs(t, err, &locked, "a folder has one broker")
	c.Close()
	b.Stop()
	b.Stop()

	b, err = StartBroker(t.Context(), BrokerConfig{Dir: dir})
	require.NoError(t, err)
	defer b.Stop()
	require.Equal(t, []string{"one"}, values(t, b.Addrs(), 1))
}

func TestBrokerListensWhereItIsTold(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = busy.Close() }()
	dir := t.TempDir()
	_, err = StartBroker(t.Context(), BrokerConfig{Dir: dir, Addr: busy.Addr().String()})
	require.ErrorContains(t, err, "address already in use")
	b, err := StartBroker(t.Context(), BrokerConfig{Dir: dir})
	require.NoError(t, err, "the failed start gave the folder back")
	b.Stop()
}

// runBrokerChild plays the program that is killed: it runs a broker until then.
func runBrokerChild(dir string) {
	ctx := context.Background()
	fail := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	b, err := StartBroker(ctx, BrokerConfig{Dir: dir})
	fail(err)
	c, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.DefaultProduceTopic(brokerTopic))
	fail(err)
	fail(createTopic(ctx, c))
	for n := 1; ; n++ {
		fail(produce(ctx, c, fmt.Sprint(n)))
		fmt.Println(n)
	}
}

func TestBrokerLosesNothingWhenItsProcessIsKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=broker", childEnv+"_DIR="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	var acknowledged []string
	for lines.Scan() {
		require.False(t, strings.HasPrefix(lines.Text(), "error"), lines.Text())
		if acknowledged = append(acknowledged, lines.Text()); len(acknowledged) == 50 {
			require.NoError(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait()
	b, err := StartBroker(t.Context(), BrokerConfig{Dir: dir})
	require.NoError(t, err)
	defer b.Stop()
	require.Equal(t, acknowledged, values(t, b.Addrs(), len(acknowledged))[:len(acknowledged)])
}

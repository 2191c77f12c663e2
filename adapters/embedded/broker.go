package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// retentionEvery is how often old records are dropped; the broker does not do so by itself.
const retentionEvery = 5 * time.Minute

// BrokerConfig says how to run a broker. Only Dir is needed.
type BrokerConfig struct {
	Dir    string       // state folder; made if it is not there
	Addr   string       // host:port to listen on and to tell clients; empty: a free port of 127.0.0.1
	Logger *slog.Logger // gets the broker's warnings; nil: nowhere
}

// Broker speaks Kafka's protocol inside this process: one node, topics and consumer groups on disk.
// It is for one machine: what it acknowledged survives the end of the process, but its last writes
// may be lost with the machine's power. The event log in PostgreSQL does not depend on it.
type Broker struct {
	cluster *kfake.Cluster
	addrs   []string
	lock    *os.File

	stop    sync.Once
	closing chan struct{}
	swept   chan struct{} // closed when the retention loop has ended
}

// StartBroker starts a broker on cfg.Dir. Errors: *LockedError, or what the listener or the files say.
func StartBroker(ctx context.Context, cfg BrokerConfig) (*Broker, error) {
	b, err := startBroker(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded broker in %s: %w", cfg.Dir, err)
	}
	return b, nil
}

func startBroker(ctx context.Context, cfg BrokerConfig) (*Broker, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	// Two brokers on one folder would corrupt it, and this one takes no lock itself.
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	addr := cfg.Addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	var listen net.ListenConfig
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ClusterID("featuremill"),
		kfake.DataDir(filepath.Join(cfg.Dir, "data")),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) { return listen.Listen(ctx, network, addr) }),
		kfake.WithLogger(brokerLog{logger: newServerLog(cfg.Logger).logger}),
	)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	b := &Broker{cluster: cluster, addrs: cluster.ListenAddrs(), lock: lock, closing: make(chan struct{}), swept: make(chan struct{})}
	go b.sweep()
	return b, nil
}

// Addrs returns the host:port pairs for clients.
func (b *Broker) Addrs() []string { return b.addrs }

// Stop writes everything and gives the folder back. A second time is fine.
func (b *Broker) Stop() {
	b.stop.Do(func() {
		close(b.closing)
		<-b.swept
		b.cluster.Close()
		_ = b.lock.Close()
	})
}

func (b *Broker) sweep() {
	defer close(b.swept)
	tick := time.NewTicker(retentionEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.cluster.ApplyRetention()
		case <-b.closing:
			return
		}
	}
}

type brokerLog struct{ logger *slog.Logger }

// Logf keeps warnings and errors; below that the broker logs every request.
func (l brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.logger.Error("broker: " + fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.logger.Warn("broker: " + fmt.Sprintf(format, args...))
	}
}

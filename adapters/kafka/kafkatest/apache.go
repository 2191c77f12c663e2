package kafkatest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	defaultApacheVersion = "3.9.1"
	apacheStartTimeout   = 3 * time.Minute // a JVM on a loaded machine
	apachePoll           = 100 * time.Millisecond
)

const apachePOM = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>featuremill</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>%s</version></dependency>
  </dependencies>
</project>
`

// One node that is broker and controller. The short session lets a broker that was killed come back
// at once; the single partition of the offsets topic makes a start quick.
const apacheProperties = `process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:%[2]d
listeners=PLAINTEXT://127.0.0.1:%[1]d,CONTROLLER://127.0.0.1:%[2]d
advertised.listeners=PLAINTEXT://127.0.0.1:%[1]d
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=%[3]s
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
`

// StartApache starts Apache Kafka as a child process on a folder of its own. It skips the test only if
// Java or mvn is missing.
func StartApache(t testing.TB) *Broker {
	t.Helper()
	for _, tool := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintf(os.Stderr, "SKIPPED: no test with Apache Kafka: %s is missing (Debian, Ubuntu: apt-get install default-jre-headless maven)\n", tool)
			t.Skipf("%s is missing", tool)
		}
	}
	version := os.Getenv(EnvVersion)
	if version == "" {
		version = defaultApacheVersion
	}
	jars, err := fetchApache(version)
	require.NoError(t, err)

	dir := t.TempDir()
	port := freePorts(t)
	properties := filepath.Join(dir, "server.properties")
	require.NoError(t, os.WriteFile(properties, fmt.Appendf(nil, apacheProperties, port, port+1, filepath.Join(dir, "logs")), 0o600))
	out, err := java(jars, "kafka.tools.StorageTool", "format", "--cluster-id", "ZmVhdHVyZW1pbGwtdGVzdA", "--config", properties).CombinedOutput()
	require.NoErrorf(t, err, "format: %s", out)

	var child *process
	b := &Broker{Name: "apache " + version, t: t, addrs: []string{fmt.Sprintf("127.0.0.1:%d", port)}}
	logPath := filepath.Join(dir, "kafka.log")
	b.begin = func(t testing.TB) {
		t.Helper()
		log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		require.NoError(t, err)
		defer func() { _ = log.Close() }() // the child has its own
		cmd := java(jars, "kafka.Kafka", properties)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
		child, err = startProcess(cmd)
		require.NoError(t, err)
		if err := waitForApache(b.addrs, child); err != nil {
			text, _ := os.ReadFile(logPath)
			require.FailNowf(t, "Apache Kafka did not come up", "%v\n%s", err, text[max(0, len(text)-4000):])
		}
	}
	b.end = func() { child.kill() }
	b.begin(t)
	t.Cleanup(b.end)
	return b
}

func java(jars string, args ...string) *exec.Cmd {
	return exec.Command("java", append([]string{
		"-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dkafka.logs.dir=.",
		"-cp", jars + ":" + filepath.Join(jars, "*"),
	}, args...)...)
}

// fetchApache returns the folder with the jars of a version; Maven fills it once.
func fetchApache(version string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	target := filepath.Join(cache, "featuremill", "kafka", version)
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(filepath.Dir(target), ".fetch-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := os.WriteFile(filepath.Join(work, "pom.xml"), fmt.Appendf(nil, apachePOM, version), 0o600); err != nil {
		return "", err
	}
	jars := filepath.Join(work, "jars")
	cmd := exec.Command("mvn", "-q", "-B", "-ntp", "dependency:copy-dependencies", "-DoutputDirectory="+jars, "-DincludeScope=runtime")
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mvn: %w: %s", err, strings.TrimSpace(string(out)))
	}
	// Without a binding that writes, a failed start would leave no trace; 4.x brings Log4j 2, which
	// prints errors by default, 3.x reload4j, which needs to be told.
	properties := "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\nlog4j.appender.out.layout=org.apache.log4j.PatternLayout\nlog4j.appender.out.layout.ConversionPattern=%d %p %c: %m%n\n"
	if err := os.WriteFile(filepath.Join(jars, "log4j.properties"), []byte(properties), 0o600); err != nil {
		return "", err
	}
	if err := os.Rename(jars, target); err != nil {
		if _, there := os.Stat(target); there == nil {
			return target, nil // another test was faster
		}
		return "", err
	}
	return target, nil
}

// freePorts returns a port that is free together with the next one.
func freePorts(t testing.TB) int {
	t.Helper()
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port := first.Addr().(*net.TCPAddr).Port
		second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		_ = first.Close()
		if err == nil {
			_ = second.Close()
			return port
		}
	}
	require.FailNow(t, "no two free ports in a row")
	return 0
}

func waitForApache(addrs []string, child *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), apacheStartTimeout)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.DisableClientMetrics(), kgo.AlwaysRetryEOF())
	if err != nil {
		return err
	}
	defer client.Close()
	tick := time.NewTicker(apachePoll)
	defer tick.Stop()
	for {
		if err = client.Ping(ctx); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-child.done:
			return fmt.Errorf("its process ended: %w", err)
		case <-ctx.Done():
			return err
		}
	}
}

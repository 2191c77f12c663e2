package embedded

import (
	"bytes"
	"context"
	"log/slog"
	"regexp"
	"strings"
	"sync"
)

const tailLines = 20

// serverLog takes a server's standard error: each line goes to the logger, the last ones stay for an error.
type serverLog struct {
	logger *slog.Logger

	mu   sync.Mutex
	part []byte
	last []string
}

func newServerLog(logger *slog.Logger) *serverLog {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &serverLog{logger: logger}
}

// Write never fails: a full log must not stop a server.
func (l *serverLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, b...)
	for {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.line(string(line))
		l.part = rest
	}
}

func (l *serverLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.part) > 0 {
		l.line(string(l.part))
		l.part = nil
	}
}

// severity is the word that PostgreSQL puts behind time and pid.
var severity = regexp.MustCompile(`\] (DEBUG\d|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC|DETAIL|HINT|STATEMENT|CONTEXT): +`)

func (l *serverLog) line(s string) {
	level, text := slog.LevelDebug, s
	if m := severity.FindStringSubmatchIndex(s); m != nil {
		text = s[m[1]:]
		switch s[m[2]:m[3]] {
		case "WARNING":
			level = slog.LevelWarn
		case "FATAL", "PANIC":
			level = slog.LevelWarn // of one session, mostly; the end of the server is reported by Wait
		}
	}
	l.logger.Log(context.Background(), level, "postgres: "+text)
	if l.last = append(l.last, s); len(l.last) > tailLines {
		l.last = l.last[1:]
	}
}

func (l *serverLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "\n")
}

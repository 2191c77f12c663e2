package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
)

type workCmd struct {
	List  workListCmd  `cmd:"" default:"withargs" help:"What is being done, and what did not come through and why."`
	Retry workRetryCmd `cmd:"" help:"Give a piece of work out at once, whatever became of it before. A fold that has failed is asked for again."`
}

type workListCmd struct {
	wiring.Config
	Subject string `arg:"" optional:"" help:"An extraction or a corpus, or the stream of a download or a self-test: all its open work. Without one: what is held or was tried before, of all."`
}

func (c *workListCmd) Run(ctx context.Context) error {
	return offline(ctx, c.Config, func(ctx context.Context, log *postgres.Log, _ *event.Registry) error {
		list, err := log.ListWork(ctx, c.Subject)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			fmt.Println("nothing is being done, and nothing waits for another attempt")
			return nil
		}
		t := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "WORK\tHELD BY\tATTEMPTS\tNEXT\tLATEST CAUSE")
		for _, w := range list {
			_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", w.Work, w.Owner, w.Attempts, next(w, time.Now()), latest(w.Causes))
		}
		return t.Flush()
	})
}

// next says when a piece of work is given out.
func next(w eventlog.WorkStatus, now time.Time) string {
	switch {
	case w.Owner != "":
		return "now"
	case w.NotBefore.After(now):
		return "in " + w.NotBefore.Sub(now).Round(time.Second).String()
	}
	return "to the next worker that fits"
}

func latest(causes []eventlog.Cause) string {
	if len(causes) == 0 {
		return ""
	}
	c := causes[len(causes)-1]
	return fmt.Sprintf("%s, %s: %s", c.At.Format(time.RFC3339), c.Outcome, strings.ReplaceAll(c.Detail, "\n", " "))
}

type workRetryCmd struct {
	wiring.Config
	Kind    string `arg:"" help:"${enum}, as list shows it." enum:"plan,corpus,segment,download,selftest,fold"`
	Subject string `arg:"" help:"As list shows it; a fold's is the extraction."`
	Index   string `arg:"" optional:"" default:"0" help:"The segment or chunk."`
}

func (c *workRetryCmd) Run(ctx context.Context) error {
	index, err := strconv.Atoi(c.Index)
	if err != nil || index < 0 {
		return fmt.Errorf("index %q: want a whole number, 0 or more", c.Index)
	}
	work := eventlog.Work{Kind: c.Kind, Subject: c.Subject, Index: index}
	return offline(ctx, c.Config, func(ctx context.Context, log *postgres.Log, registry *event.Registry) error {
		done, err := log.RetryWork(ctx, work)
		if err != nil {
			return err
		}
		if done {
			fmt.Printf("%s is given out at once\n", work)
			return nil
		}
		open, err := log.ListWork(ctx, c.Subject)
		if err != nil {
			return err
		}
		for _, w := range open {
			if w.Work == work {
				return fmt.Errorf("%s is held by %s: it is being done", work, w.Owner)
			}
		}
		if c.Kind != facts.FoldWork {
			return fmt.Errorf("%s is not open: it is done, or what it belongs to has ended (featuremill work list %s shows what is open; a failed extraction is resumed)", work, c.Subject)
		}
		call := command.Call{Metadata: event.Metadata{Actor: "operator", CorrelationID: c.Subject}}
		if _, err := command.NewHandler(log, registry, time.Now).RequestFold(ctx, call, c.Subject, "asked for"); err != nil {
			return err
		}
		fmt.Printf("the tables of %s are folded again\n", c.Subject)
		return nil
	})
}

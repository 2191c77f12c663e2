package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/cmd/internal/wiring"
)

type serveCmd struct {
	wiring.Config
	wiring.APIConfig
	Roles     []string `help:"What to run: ${enum}." enum:"api,relay,projector,extractor" default:"api,relay,projector,extractor" env:"FEATUREMILL_ROLES"`
	Extractor string   `help:"The worker's program, for the role extractor. Empty: the one beside this program." type:"path" env:"FEATUREMILL_EXTRACTOR"`
	Device    string   `help:"Where the worker computes: cpu or cuda:N." default:"cpu"`
	Threads   int      `help:"CPU threads of the worker; 0 is one a core." default:"0"`
}

func (c *serveCmd) Run(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	c.Wait = time.Minute
	options := []fx.Option{wiring.Core(c.Config)}
	has := func(role string) bool { return slices.Contains(c.Roles, role) }
	if has("relay") {
		options = append(options, wiring.Relay())
	}
	if has("projector") {
		options = append(options, wiring.Projector())
	}
	if has("api") {
		options = append(options, wiring.Queries(), wiring.API(c.APIConfig))
	}
	if has("extractor") {
		options = append(options, wiring.ChildExtractor(wiring.Extractor{Path: c.Extractor, Device: c.Device, Threads: c.Threads}))
	}
	return wiring.RunUntil(ctx, fx.New(options...))
}

// check refuses roles that could not find each other.
func (c *serveCmd) check() error {
	all := []string{"api", "relay", "projector"}
	for _, role := range all {
		if slices.Contains(c.Roles, role) {
			continue
		}
		if c.Database == "" || len(c.Kafka) == 0 {
			return fmt.Errorf("roles that run in several processes need the same --database and --kafka: the embedded ones belong to one process (roles here: %v)", c.Roles)
		}
	}
	return nil
}

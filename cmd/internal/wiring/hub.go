package wiring

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/adapters/hub"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/projections/generations"
	librarian "github.com/featuremill/featuremill/projections/library"
)

// HubConfig says where models, SAEs and datasets are downloaded from. What is left out is as the hub's own tools have it.
type HubConfig struct {
	Endpoint string `help:"A hub that speaks HuggingFace's protocol. Empty: the public one." env:"FEATUREMILL_HUB_ENDPOINT,HF_ENDPOINT"`
	Token    string `help:"Token for the hub. Empty: the one of the hub's own tools, if they have one. A request may bring another." env:"FEATUREMILL_HUB_TOKEN"`
	Cache    string `help:"Folder for what is downloaded, in the hub's own layout. Empty: that of the hub's own tools (HF_HUB_CACHE, HF_HOME), else in the state folder." env:"FEATUREMILL_HUB_CACHE" type:"path"`
	Offline  bool   `help:"Use what is cached; ask nobody." env:"FEATUREMILL_HUB_OFFLINE,HF_HUB_OFFLINE"`
	Files    int    `help:"Files that are fetched at the same time." default:"4"`
}

// Client returns a client of the configured hub. state is where its cache lies if the hub's tools have none.
func (c HubConfig) Client(state string, log *slog.Logger) (*hub.Client, error) {
	if c.Token == "" {
		c.Token = hub.DefaultToken(os.Getenv)
	}
	if c.Cache == "" {
		c.Cache = hub.DefaultCache(os.Getenv)
	}
	if c.Cache == "" {
		c.Cache = filepath.Join(state, "cache", "hub")
	}
	return hub.New(hub.Config{Endpoint: c.Endpoint, Token: c.Token, Cache: c.Cache, Offline: c.Offline, Concurrency: c.Files, Logger: log})
}

// importers is how many downloads one process does at the same time.
const importers = 2

// downloads fetches what is asked for. It runs where the API does: the tokens that requests bring are known there only.
func downloads(cfg HubConfig) fx.Option {
	return fx.Options(
		fx.Provide(
			func() *library.Tokens { return &library.Tokens{} },
			func(lc fx.Lifecycle, main Config, lib *library.Library, log *slog.Logger) (*library.Hub, error) {
				client, err := cfg.Client(main.State, log.With("part", "hub"))
				if err != nil {
					return nil, err
				}
				lc.Append(fx.StopHook(client.Close))
				return library.NewHub(lib, client), nil
			}),
		fx.Invoke(func(lc fx.Lifecycle, shut fx.Shutdowner, main Config, commands *command.Handler, leases eventlog.Leases, h *library.Hub, tokens *library.Tokens, models *librarian.Queries, log *slog.Logger) {
			log = log.With("part", "importer")
			modelOf := func(ctx context.Context, f sae.Facts) (string, error) {
				found, err := models.ModelsOf(ctx, f, library.HubModelName(f.ModelName))
				if err != nil || len(found) != 1 {
					return "", generations.Away(err) // an extraction will ask for it, with the candidates
				}
				return found[0].ID, nil
			}
			for i := range importers {
				name := process() + "-importer-" + strconv.Itoa(i+1)
				importer := worker.NewImporter(commands, h, tokens, modelOf, name)
				var reap time.Duration // the default
				if i > 0 {
					reap = -1
				}
				loop := worker.NewLoop(leases, worker.Config{
					ReapEvery: reap,
					Owner:     name, Jobs: importer.Jobs(), Heartbeat: min(time.Second, main.LeaseTime/3), Logger: log,
					OnFailure: importer.Fail, OnLost: importer.Lost,
				})
				background(lc, shut, log, name, loop.Run)
			}
		}),
	)
}

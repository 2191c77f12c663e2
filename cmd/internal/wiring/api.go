package wiring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/adapters/httpapi"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/projections/extractions"
	"github.com/featuremill/featuremill/projections/features"
	librarian "github.com/featuremill/featuremill/projections/library"
	"github.com/featuremill/featuremill/projections/projector"
)

// APIConfig says where the API listens and who may use it.
type APIConfig struct {
	Listen  string    `help:"Address that the API listens on. Anything but this machine needs a token." default:"127.0.0.1:8000" env:"FEATUREMILL_LISTEN"`
	Token   string    `help:"Bearer token that the API asks for. Empty: none." env:"FEATUREMILL_TOKEN"`
	Hosts   []string  `name:"host" help:"Names, beside localhost, under which the API may be called without a token." env:"FEATUREMILL_HOSTS"`
	Hub     HubConfig `embed:"" prefix:"hub-"`
	Origins []string  `name:"origin" help:"Origins of web pages that may send commands, such as http://localhost:5173." env:"FEATUREMILL_ORIGINS"`
}

// Address is where the API listens, host:port.
type Address string

// API serves HTTP.
func API(cfg APIConfig) fx.Option {
	return fx.Options(
		fx.Provide(func(lc fx.Lifecycle, main Config) (net.Listener, Address, error) { return listen(lc, cfg, main) }),
		downloads(cfg.Hub),
		fx.Invoke(func(lc fx.Lifecycle, shut fx.Shutdowner, listener net.Listener, commands *command.Handler, imports *library.Library, hub *library.Hub, tokens *library.Tokens, l *postgres.Log, registry *event.Registry,
			lib *librarian.Queries, runs *extractions.Queries, feats *features.Queries, positions *projector.Positions, log *slog.Logger) error {
			log = log.With("part", "api")
			setUp, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if _, err := Runners(setUp, l, registry, log); err != nil { // queries need the tables, whoever fills them
				return err
			}
			handler, err := httpapi.New(httpapi.Config{
				Commands: commands, Imports: imports, Log: l, Library: lib, Extractions: runs, Features: feats, Positions: positions,
				Hub: hub, Tokens: tokens, Token: cfg.Token, Hosts: cfg.Hosts, Origins: cfg.Origins, Logger: log,
			})
			if err != nil {
				return err
			}
			background(lc, shut, log, "positions", positions.Run)
			server := handler.Server("")
			background(lc, shut, log, "http server", func(ctx context.Context) error {
				ended := make(chan error, 1)
				go func() { ended <- server.Serve(listener) }()
				log.Info("listening", "address", listener.Addr().String())
				select {
				case err := <-ended:
					return err
				case <-ctx.Done():
				}
				stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
				defer cancel()
				return errors.Join(server.Shutdown(stop), ignoreClosed(<-ended))
			})
			return nil
		}),
	)
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// listen binds the address. What another machine can reach needs a token and import roots.
func listen(lc fx.Lifecycle, cfg APIConfig, main Config) (net.Listener, Address, error) {
	host, _, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, "", fmt.Errorf("--listen %q: want host:port: %w", cfg.Listen, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		if cfg.Token == "" {
			return nil, "", fmt.Errorf("--listen %s can be reached from other machines: give a --token, or listen on 127.0.0.1", cfg.Listen)
		}
		if len(main.ImportRoots) == 0 {
			return nil, "", fmt.Errorf("--listen %s can be reached from other machines: name the folders that may be imported from with --import-root", cfg.Listen)
		}
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, "", fmt.Errorf("--listen %s: %w (another address: --listen 127.0.0.1:0)", cfg.Listen, err)
	}
	lc.Append(fx.StopHook(func() error {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}))
	return l, Address(l.Addr().String()), nil
}

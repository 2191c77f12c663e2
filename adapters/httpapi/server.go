package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	imports "github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/extractions"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/library"
	"github.com/featuremill/featuremill/projections/projector"
)

// Imports reads, checks and stores what lies on this machine. It returns a *problem.Error for what is
// wrong with a file, and leaves nothing registered.
type Imports interface {
	Model(ctx context.Context, path string) (facts model.Facts, name string, err error)
	SAE(ctx context.Context, path string, o imports.SAEOptions) (sae.Facts, error)
	Training(ctx context.Context, path string) ([]training.SAE, error)
	Dataset(ctx context.Context, path string, o imports.DatasetOptions) (dataset.Facts, error)
}

// Hub says what lies on a hub, and pins it. It returns a *problem.Error for what the hub refuses.
type Hub interface {
	PinModel(ctx context.Context, token string, r model.DownloadRequested) (model.DownloadRequested, error)
	PinSAE(ctx context.Context, token string, r sae.DownloadRequested) (sae.DownloadRequested, error)
	PinDataset(ctx context.Context, token string, r dataset.DownloadRequested) (dataset.DownloadRequested, error)
	PreviewSAEs(ctx context.Context, token, repo, revision string) (imports.Preview, error)
}

// Config says what the interface stands on. Everything down to Positions is required.
type Config struct {
	Commands    *command.Handler
	Imports     Imports
	Log         eventlog.Log
	Library     *library.Queries
	Extractions *extractions.Queries
	Features    *features.Queries
	Positions   *projector.Positions // event streams are prompt where its Run is running, else they poll

	Hub    Hub             // nil = nothing can be downloaded
	Tokens *imports.Tokens // of requests for downloads, for whoever fetches them; nil = the configured token is always used

	Token   string   // bearer token of every request but /healthz and /readyz; "" = none, and only names of this machine are served
	Hosts   []string // names, beside localhost, under which this server may be called without a token
	Origins []string // origins of pages that may send commands, beside this server's own; such as http://localhost:5173

	Logger *slog.Logger     // nil = slog.Default()
	Now    func() time.Time // nil = time.Now

	Wait time.Duration // how long a command's answer waits for the read models; 2 s
	Tick time.Duration // how often event streams look at the live progress; 1 s
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Tokens == nil {
		c.Tokens = &imports.Tokens{}
	}
	if c.Wait == 0 {
		c.Wait = 2 * time.Second
	}
	if c.Tick == 0 {
		c.Tick = time.Second
	}
	return c
}

// Handler is the whole interface as an http.Handler.
type Handler struct {
	server *server
	engine *gin.Engine
	close  sync.Once
}

// server implements the operations of the specification.
type server struct {
	Config
	registry *event.Registry
	metrics  *metrics
	shown    shownCache
	live     *live // extractions
	fetching *live // downloads
	closing  chan struct{}
}

var _ api.StrictServerInterface = (*server)(nil)

// New returns the interface. It fails when something required is missing, or when the specification is broken.
func New(cfg Config) (*Handler, error) {
	if cfg.Commands == nil || cfg.Imports == nil || cfg.Log == nil || cfg.Library == nil || cfg.Extractions == nil || cfg.Features == nil || cfg.Positions == nil {
		return nil, errors.New("http interface: commands, imports, log, library, extractions, features and positions are required")
	}
	registry, err := facts.Registry()
	if err != nil {
		return nil, err
	}
	s := &server{Config: cfg.withDefaults(), registry: registry, closing: make(chan struct{})}
	s.live, s.fetching = newLive(s.running), newLive(s.fetched)
	s.metrics = newMetrics(s)
	spec, err := loadSpecification(s.fail)
	if err != nil {
		return nil, err
	}
	guard, err := newGuard(s.Config, s.fail)
	if err != nil {
		return nil, err
	}
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.ContextWithFallback = true // handlers' contexts end with the request
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash, e.UseRawPath, e.UnescapePathValues = false, true, true
	if err := e.SetTrustedProxies(nil); err != nil {
		return nil, err
	}
	e.Use(s.identify, s.observe, s.survive, guard.check, s.readBody, spec.check)
	e.NoRoute(func(c *gin.Context) { s.fail(c, errNoRoute(c)) })
	e.NoMethod(func(c *gin.Context) { s.fail(c, errNoMethod(c)) })
	failed := func(c *gin.Context, err error) { s.fail(c, err) }
	strict := api.NewStrictHandlerWithOptions(s, nil, api.StrictGinServerOptions{
		RequestErrorHandlerFunc: func(c *gin.Context, err error) { s.fail(c, errUnreadable(err)) },
		HandlerErrorFunc:        failed, ResponseErrorHandlerFunc: failed,
	})
	api.RegisterHandlersWithOptions(e, strict, api.GinServerOptions{
		ErrorHandler: func(c *gin.Context, err error, _ int) { s.fail(c, errUnreadable(err)) },
	})
	return &Handler{server: s, engine: e}, nil
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.engine.ServeHTTP(w, r) }

// Close ends the event streams, which would hold up a shutdown for ever.
func (h *Handler) Close() { h.close.Do(func() { close(h.server.closing) }) }

// Server returns a server with limits that suit this interface: headers and bodies have to come soon,
// while answers may take long, because imports and event streams do. Shutdown ends the event streams.
func (h *Handler) Server(addr string) *http.Server {
	s := &http.Server{
		Addr: addr, Handler: h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(h.server.Logger.Handler(), slog.LevelWarn),
	}
	s.RegisterOnShutdown(h.Close)
	return s
}

package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/projections/extractions"
	"github.com/featuremill/featuremill/projections/library"
)

// metrics are what /metrics shows.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	panics   prometheus.Counter
	streams  prometheus.Gauge
}

func newMetrics(s *server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "featuremill_http_requests_total", Help: "Requests by method, route and status."}, []string{"method", "route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "featuremill_http_request_seconds", Help: "How long answers took; event streams last as long as they are read.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600}}, []string{"method", "route"}),
		panics:  prometheus.NewCounter(prometheus.CounterOpts{Name: "featuremill_http_panics_total", Help: "Handlers that panicked."}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "featuremill_http_event_streams", Help: "Event streams that are being read."}),
	}
	m.registry.MustRegister(m.requests, m.seconds, m.panics, m.streams, positions{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// positions asks, when somebody looks, how far the log and its read models are.
type positions struct{ s *server }

var (
	logPosition        = prometheus.NewDesc("featuremill_log_position", "Position of the last event.", nil, nil)
	projectionPosition = prometheus.NewDesc("featuremill_projection_position", "Position that a read model reflects.", []string{"projection"}, nil)
)

// Describe names the metrics.
func (p positions) Describe(out chan<- *prometheus.Desc) {
	out <- logPosition
	out <- projectionPosition
}

// Collect leaves out what does not answer.
func (p positions) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if head, _, err := p.s.Log.Head(ctx); err == nil {
		out <- prometheus.MustNewConstMetric(logPosition, prometheus.GaugeValue, float64(head))
	}
	for _, name := range projections() {
		if at, err := p.s.Positions.Position(ctx, name); err == nil {
			out <- prometheus.MustNewConstMetric(projectionPosition, prometheus.GaugeValue, float64(at), name)
		}
	}
}

func projections() []string { return []string{library.Name, extractions.Name, featuresName()} }

// GetHealth says that the process answers.
func (s *server) GetHealth(context.Context, api.GetHealthRequestObject) (api.GetHealthResponseObject, error) {
	return api.GetHealth200JSONResponse{Status: "ok"}, nil
}

// GetReadiness says whether PostgreSQL answers and the read models are there.
func (s *server) GetReadiness(ctx context.Context, _ api.GetReadinessRequestObject) (api.GetReadinessResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	head, _, err := s.Log.Head(ctx)
	if err != nil {
		return nil, err
	}
	out := api.GetReadiness200JSONResponse{Status: "ready", Position: head, Projections: map[string]int64{}}
	for _, name := range projections() {
		at, err := s.Positions.Position(ctx, name)
		if err != nil {
			return nil, err
		}
		if at == 0 && head > 0 {
			return nil, problem.New(problem.Unavailable, "not_ready", "the read model %s has not been built yet", name)
		}
		out.Projections[name] = at
	}
	return out, nil
}

// scrape is the answer to Prometheus.
type scrape struct {
	m *metrics
	r *http.Request
}

// VisitGetMetricsResponse writes it.
func (s scrape) VisitGetMetricsResponse(w http.ResponseWriter) error {
	promhttp.HandlerFor(s.m.registry, promhttp.HandlerOpts{}).ServeHTTP(w, s.r)
	return nil
}

// GetMetrics answers Prometheus.
func (s *server) GetMetrics(ctx context.Context, _ api.GetMetricsRequestObject) (api.GetMetricsResponseObject, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/metrics", http.NoBody)
	if c, ok := ctx.(*gin.Context); ok {
		r = c.Request
	}
	return scrape{s.metrics, r}, err
}

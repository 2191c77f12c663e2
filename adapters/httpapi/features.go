package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/feature"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/projections/features"
)

// featuresName is the projection that shows labels.
func featuresName() string { return features.Projection{}.Name() }

// list returns a page of a generation.
func (s *server) list(ctx context.Context, g features.Generation, o features.ListOptions) (api.FeatureList, error) {
	page, err := s.Features.List(ctx, g, o)
	if err != nil {
		return api.FeatureList{}, err
	}
	out := api.FeatureList{Features: make([]api.Feature, len(page.Features)), Total: page.Total, Limit: o.Limit, Offset: o.Offset, ExtractionJobID: &g.Extraction}
	for i, f := range page.Features {
		out.Features[i] = encodeFeature(g, f)
	}
	out.Statistics.TotalFeatures, out.Statistics.TotalNeurons = page.Total, page.Neurons
	out.Statistics.AvgActivationFrequency, out.Statistics.InterpretablePercentage = page.MeanFrequency, page.InterpretablePercent
	return out, nil
}

// ListExtractionFeatures lists the features of an extraction.
func (s *server) ListExtractionFeatures(ctx context.Context, r api.ListExtractionFeaturesRequestObject) (api.ListExtractionFeaturesResponseObject, error) {
	if err := s.reflects(ctx, featuresName()); err != nil {
		return nil, err
	}
	e, err := s.Extractions.Get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	c, err := e.ReadConfig()
	if err != nil {
		return nil, err
	}
	p := r.Params
	o := features.ListOptions{
		Search: or(p.Search, ""), Sort: string(or(p.SortBy, "")), Ascending: or(p.SortOrder, "desc") == "asc", Starred: p.IsFavorite,
		MinFrequency: fraction(p.MinActivationFreq), MaxFrequency: fraction(p.MaxActivationFreq), MinMaxActivation: p.MinMaxActivation, MaxMaxActivation: p.MaxMaxActivation,
		MinDensity: p.MinDensity, MaxDensity: p.MaxDensity, MinTopTokenShare: p.MinTopTokenShare, MaxTopTokenShare: p.MaxTopTokenShare, MinFiringDocuments: p.MinFiringDocuments,
		IncludeDead: or(p.IncludeDead, false), Limit: or(p.Limit, 50), Offset: or(p.Offset, 0), Examples: true,
	}
	// Whoever names bounds, or asks for one latent, sees what lies inside them, however rare it is.
	if bounds := o.MinFrequency != nil || o.MaxFrequency != nil || o.MinDensity != nil || o.MaxDensity != nil || o.Search != ""; !bounds && !o.IncludeDead {
		o.MinFrequency = threshold(c)
	}
	g, err := s.Features.Of(ctx, r.ID)
	if errors.Is(err, features.ErrNotFolded) {
		out := api.ListExtractionFeatures200JSONResponse{Features: []api.Feature{}, Limit: o.Limit, Offset: o.Offset, ExtractionJobID: &e.ID}
		out.Statistics.TotalNeurons = e.Latents
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out, err := s.list(ctx, g, o)
	return api.ListExtractionFeatures200JSONResponse(out), err
}

func fraction(percent *float64) *float64 {
	if percent == nil {
		return nil
	}
	f := *percent / 100
	return &f
}

// ListTrainingFeatures lists the features of the training's newest extraction.
func (s *server) ListTrainingFeatures(ctx context.Context, r api.ListTrainingFeaturesRequestObject) (api.ListTrainingFeaturesResponseObject, error) {
	if err := s.reflects(ctx, featuresName()); err != nil {
		return nil, err
	}
	src, err := s.trainingSource(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	p := r.Params
	o := features.ListOptions{
		Search: or(p.Search, ""), Sort: string(or(p.SortBy, "")), Ascending: or(p.SortOrder, "desc") == "asc", Starred: p.IsFavorite,
		IncludeDead: or(p.IncludeDead, false), Limit: or(p.Limit, 50), Offset: or(p.Offset, 0), Examples: true,
	}
	g, err := s.Features.Newest(ctx, src)
	if errors.Is(err, features.ErrNotFolded) {
		return api.ListTrainingFeatures200JSONResponse{Features: []api.Feature{}, Limit: o.Limit, Offset: o.Offset}, nil
	}
	if err != nil {
		return nil, err
	}
	out, err := s.list(ctx, g, o)
	return api.ListTrainingFeatures200JSONResponse(out), err
}

// ListSAEFeatures lists the features of the SAE's newest extraction by latent.
func (s *server) ListSAEFeatures(ctx context.Context, r api.ListSAEFeaturesRequestObject) (api.ListSAEFeaturesResponseObject, error) {
	if err := s.reflects(ctx, featuresName()); err != nil {
		return nil, err
	}
	src, err := s.saeSource(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	one, err := s.Library.SAE(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	p := r.Params
	o := features.ListOptions{Search: or(p.Search, ""), Sort: "feature_id", Ascending: true, IncludeDead: or(p.IncludeDead, false), Limit: or(p.Limit, 20), Offset: or(p.Skip, 0)}
	out := api.ListSAEFeatures200JSONResponse{SaeID: r.ID, NFeatures: or(one.NFeatures, 0), Features: []api.SAEFeature{}, Pagination: skipped(o.Offset, o.Limit, 0, 0)}
	g, err := s.Features.Newest(ctx, src)
	if errors.Is(err, features.ErrNotFolded) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	page, err := s.Features.List(ctx, g, o)
	if err != nil {
		return nil, err
	}
	out.ExtractionJobID = &g.Extraction
	out.Pagination = skipped(o.Offset, o.Limit, len(page.Features), page.Total)
	for _, f := range page.Features {
		encoded := api.SAEFeature{
			FeatureIdx: f.Latent, FeatureID: g.ID(f.Latent), Layer: one.Layer, Label: known(f.Name), ActivationCount: f.Firings, ActivationFrequency: &f.ActivationFrequency,
			Density: &f.Density, MeanActivation: &f.MeanActivation, MaxActivation: f.MaxActivation, TopTokens: []string{},
		}
		if f.Firings > 0 {
			encoded.TopTokens = []string{f.TopToken}
		}
		out.Features = append(out.Features, encoded)
	}
	return out, nil
}

// latent is a latent that was asked for, and the fold that its numbers come from.
type latent struct {
	source.Latent
	generation features.Generation
	feature    features.Feature
}

// find reads a feature's id, and the extraction that may stand in the query instead.
func (s *server) find(ctx context.Context, id string, extractionID *string) (latent, error) {
	notFound := problem.New(problem.NotFound, "feature_not_found", "there is no feature %s", id)
	l, err := source.ParseFeatureID(id)
	if err != nil {
		notFound.Err = err
		return latent{}, notFound
	}
	if q := unset(extractionID); q != "" {
		if l.Extraction != "" && l.Extraction != q {
			return latent{}, problem.InvalidFields("invalid_request", problem.Field{Name: "extraction_id", Detail: "the id names extraction " + l.Extraction + ", and the query another one"})
		}
		l.Extraction = q
	}
	if err := s.reflects(ctx, featuresName()); err != nil {
		return latent{}, err
	}
	g, err := s.Features.Resolve(ctx, l)
	if errors.Is(err, features.ErrNotFolded) {
		return latent{}, problem.New(problem.NotFound, "feature_not_found", "there is no feature %s: %s has no features, or not yet", id, of(l))
	}
	if err != nil {
		return latent{}, err
	}
	f, err := s.Features.Feature(ctx, g, l.Index)
	if errors.Is(err, features.ErrNoLatent) {
		return latent{}, problem.New(problem.NotFound, "feature_not_found", "there is no feature %s: the SAE has latents 0 to %d", id, g.Latents-1)
	}
	return latent{Latent: l, generation: g, feature: f}, err
}

func of(l source.Latent) string {
	if l.Extraction != "" {
		return "extraction " + l.Extraction
	}
	return l.Source.String()
}

// detail shows a latent with its label as the log has it, so that the ETag is the version of what is shown.
func (s *server) detail(ctx context.Context, l latent) (api.FeatureDetail, error) {
	label, version, err := command.Load[feature.State](ctx, s.Commands, feature.Stream(l.Source, l.Index))
	if err != nil {
		return api.FeatureDetail{}, err
	}
	f := l.feature
	f.Name, f.Category, f.Description, f.Notes, f.NameSource, f.Starred = label.Name, label.Category, label.Description, label.Notes, string(label.NameBy), label.Starred
	distribution, err := s.Features.Distribution(ctx, l.generation, l.Index)
	if err != nil {
		return api.FeatureDetail{}, err
	}
	tokens, err := s.Features.Tokens(ctx, l.generation, l.Index, 20)
	if err != nil {
		return api.FeatureDetail{}, err
	}
	etag(ctx, version)
	return encodeDetail(l.generation, f, distribution, tokens), nil
}

// GetFeature returns a latent.
func (s *server) GetFeature(ctx context.Context, r api.GetFeatureRequestObject) (api.GetFeatureResponseObject, error) {
	l, err := s.find(ctx, r.ID, r.Params.ExtractionID)
	if err != nil {
		return nil, err
	}
	out, err := s.detail(ctx, l)
	return api.GetFeature200JSONResponse(out), err
}

// UpdateFeature labels a latent.
func (s *server) UpdateFeature(ctx context.Context, r api.UpdateFeatureRequestObject) (api.UpdateFeatureResponseObject, error) {
	version, err := expected(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	l, err := s.find(ctx, r.ID, r.Params.ExtractionID)
	if err != nil {
		return nil, err
	}
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusOK)
	call.IfVersion = version
	b := r.Body
	_, err = s.did(ctx, featuresName())(s.Commands.LabelFeature(ctx, call, feature.Label{
		Latent: feature.Latent{Source: l.Source, Index: l.Index}, Name: b.Name, Category: b.Category, Description: b.Description, Notes: b.Notes, Starred: b.IsFavorite, By: feature.User,
	}))
	if err != nil {
		return nil, err
	}
	if l.feature, err = s.Features.Feature(ctx, l.generation, l.Index); err != nil {
		return nil, err
	}
	out, err := s.detail(ctx, l)
	out.Warnings = warnings(ctx)
	return api.UpdateFeature200JSONResponse(out), err
}

// SetFavorite stars a latent.
func (s *server) SetFavorite(ctx context.Context, r api.SetFavoriteRequestObject) (api.SetFavoriteResponseObject, error) {
	l, err := s.find(ctx, r.ID, nil)
	if err != nil {
		return nil, err
	}
	starred := r.Params.IsFavorite
	_, err = s.did(ctx, featuresName())(s.Commands.LabelFeature(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusOK),
		feature.Label{Latent: feature.Latent{Source: l.Source, Index: l.Index}, Starred: &starred, By: feature.User}))
	return api.SetFavorite200JSONResponse{IsFavorite: starred}, err
}

// ListExamples returns texts on which a latent fires.
func (s *server) ListExamples(ctx context.Context, r api.ListExamplesRequestObject) (api.ListExamplesResponseObject, error) {
	l, err := s.find(ctx, r.ID, r.Params.ExtractionID)
	if err != nil {
		return nil, err
	}
	kinds := []string{string(or(r.Params.Kind, "top"))}
	if kinds[0] == "all" {
		kinds = nil
	}
	examples, err := s.Features.Examples(ctx, l.generation, l.Index, or(r.Params.Limit, 100), kinds...)
	if err != nil {
		return nil, err
	}
	return api.ListExamples200JSONResponse(each(examples, encodeExample)), nil
}

// most is how many tokens of a latent the fold keeps.
const most = 1000

// AnalyseTokens returns the tokens that a latent fires on.
func (s *server) AnalyseTokens(ctx context.Context, r api.AnalyseTokensRequestObject) (api.AnalyseTokensResponseObject, error) {
	l, err := s.find(ctx, r.ID, r.Params.ExtractionID)
	if err != nil {
		return nil, err
	}
	tokens, err := s.Features.Tokens(ctx, l.generation, l.Index, most)
	if err != nil {
		return nil, err
	}
	return api.AnalyseTokens200JSONResponse(analyse(l.feature, tokens, filters(r.Params))), nil
}

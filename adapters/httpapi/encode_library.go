package httpapi

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/projections/library"
)

// progress is 100 once the files are there, as existing clients expect, and on the way there the share of the bytes.
func progress(ready bool, running json.RawMessage) (float64, *api.Download) {
	if ready {
		return 100, nil
	}
	var d api.Download
	if len(running) == 0 || json.Unmarshal(running, &d) != nil || d.Stage == "" {
		return 0, nil
	}
	if d.BytesTotal <= 0 {
		return 0, &d
	}
	return math.Floor(1000*float64(d.BytesDone)/float64(d.BytesTotal)) / 10, &d
}

func encodeModel(m library.Model) api.Model {
	share, running := progress(m.ReadyAt != nil, m.Download)
	return api.Model{
		ID: m.ID, Name: m.Name, Status: api.ModelStatus(m.Status), Source: m.Source, Progress: share, Download: running, ParamsCount: or(m.ParamsCount, 0),
		Architecture: m.Family, Family: m.Family, Format: m.Format, Dtype: m.DType, Layers: m.Layers, DModel: m.DModel, Vocab: m.Vocab, ContextLength: m.ContextLength,
		HfRepoID: m.HFRepoID, HfRevision: m.HFRevision, LocalPath: m.LocalPath, FileSizeBytes: m.FileSizeBytes, FilesSha256: m.FilesSHA256, TokenizerSha256: m.TokenizerSHA256,
		ErrorCode: m.ErrorCode, ErrorMessage: m.ErrorMessage, CreatedAt: m.CreatedAt.UTC(), UpdatedAt: m.UpdatedAt.UTC(), ReadyAt: m.ReadyAt, DeletedAt: m.DeletedAt,
	}
}

func encodeDataset(d library.Dataset) api.Dataset {
	share, running := progress(d.ReadyAt != nil, d.Download)
	out := api.Dataset{
		ID: d.ID, Name: d.Name, Status: api.DatasetStatus(d.Status), Source: d.Source, Progress: share, Download: running, Format: d.Format, TextColumn: d.TextColumn,
		Tokenised: d.Tokenised, NumSamples: d.NumRows, SizeBytes: d.FileSizeBytes, FilesSha256: d.FilesSHA256, HfRepoID: d.HFRepoID, HfRevision: d.HFRevision, RawPath: d.LocalPath,
		ErrorCode: d.ErrorCode, ErrorMessage: d.ErrorMessage, CreatedAt: d.CreatedAt.UTC(), UpdatedAt: d.UpdatedAt.UTC(), ReadyAt: d.ReadyAt, DeletedAt: d.DeletedAt,
	}
	if d.Columns != nil {
		out.Columns = &d.Columns
	}
	return out
}

func encodeCorpus(c library.Corpus) (api.Corpus, error) {
	var options corpus.Options
	if err := json.Unmarshal(c.Options, &options); err != nil {
		return api.Corpus{}, fmt.Errorf("corpus %s: options: %w", c.ID, err)
	}
	return api.Corpus{
		ID: c.ID, DatasetID: c.DatasetID, DatasetSha256: known(c.DatasetSHA256), TokenizerSha256: known(c.TokenizerSHA256), ModelID: c.ModelID, Options: options,
		Status: api.CorpusStatus(c.Status), Wanted: c.Wanted, Sequences: c.Sequences, Tokens: c.Tokens, Rows: c.NumRows, SizeBytes: c.Bytes, Exhausted: c.Exhausted,
		VocabularySha256: c.VocabularySHA256, ErrorCode: c.ErrorCode, ErrorMessage: c.ErrorMessage, CreatedAt: c.CreatedAt.UTC(), UpdatedAt: c.UpdatedAt.UTC(),
	}, nil
}

func encodeChunk(c library.Chunk) api.CorpusChunk {
	return api.CorpusChunk{Chunk: c.Chunk, FirstSequence: c.FirstSequence, Sequences: c.Sequences, Tokens: c.Tokens, Rows: c.NumRows, Sha256: c.SHA256, SizeBytes: c.Bytes}
}

func encodeTraining(t library.Training) api.Training {
	out := api.Training{
		ID: t.ID, Name: t.Name, Status: api.TrainingStatus(t.Status), ModelID: t.ModelID, ModelName: t.ModelName, Progress: 100, Source: known(t.Source),
		CheckpointDir: t.CheckpointDir, HfRepoID: t.HFRepoID, FileSizeBytes: known(t.FileSizeBytes), Saes: each(t.SAEs, encodeTrainingSAE),
		Hyperparameters: api.Hyperparameters{TrainingLayers: []int{}, HookTypes: []string{}},
		CreatedAt:       t.CreatedAt.UTC(), UpdatedAt: t.UpdatedAt.UTC(), CompletedAt: &t.CompletedAt, DeletedAt: t.DeletedAt,
	}
	h := &out.Hyperparameters
	for i, one := range t.SAEs {
		if i == 0 {
			h.HiddenDim, h.LatentDim, h.ArchitectureType = &t.SAEs[0].DModel, &t.SAEs[0].NFeatures, &t.SAEs[0].Architecture
		}
		if !slices.Contains(h.TrainingLayers, one.Layer) {
			h.TrainingLayers = append(h.TrainingLayers, one.Layer)
		}
		if !slices.Contains(h.HookTypes, one.HookType) {
			h.HookTypes = append(h.HookTypes, one.HookType)
		}
	}
	return out
}

func encodeTrainingSAE(s library.TrainingSAE) api.TrainingSAE {
	return api.TrainingSAE{Path: s.Path, Layer: s.Layer, Hook: s.Hook, HookType: s.HookType, NFeatures: s.NFeatures, DModel: s.DModel, Architecture: s.Architecture, SizeBytes: s.FileSizeBytes}
}

func encodeSAE(s library.SAE) api.SAE {
	share, running := progress(s.DownloadedAt != nil, s.Download)
	out := api.SAE{
		ID: s.ID, Name: s.Name, Description: s.Description, Source: api.SAESource(s.Source), Status: api.SAEStatus(s.Status), Progress: share, Download: running,
		HfRepoID: s.HFRepoID, HfFilepath: s.HFFilepath, HfRevision: s.HFRevision, TrainingID: s.TrainingID, TrainingPath: s.TrainingPath, ModelName: s.ModelName, ModelID: s.ModelID,
		Layer: s.Layer, Hook: s.Hook, HookOut: s.HookOut, HookType: s.HookType, NFeatures: s.NFeatures, DModel: s.DModel, DOut: s.DOut, K: s.K, Architecture: s.Architecture,
		Format: s.Format, FormatVersion: s.FormatVersion, Normalization: s.Normalization, Dtype: s.DType, ContextLength: s.ContextLength, PrependBos: s.PrependBOS, Signed: s.Signed,
		PublishedL0: s.PublishedL0, LocalPath: s.LocalPath, FileSizeBytes: s.FileSizeBytes, FilesSha256: s.FilesSHA256, ErrorCode: s.ErrorCode, ErrorMessage: s.ErrorMessage,
		CreatedAt: s.CreatedAt.UTC(), UpdatedAt: s.UpdatedAt.UTC(), DownloadedAt: s.DownloadedAt, DeletedAt: s.DeletedAt,
	}
	if len(s.Metadata) > 0 {
		out.SaeMetadata = &s.Metadata
	}
	if s.TestStatus != nil {
		test := api.SAESelfTest{}
		if len(s.SelfTest) > 0 && json.Unmarshal(s.SelfTest, &test) != nil {
			test = api.SAESelfTest{}
		}
		test.Status = api.SAESelfTestStatus(*s.TestStatus)
		out.SelfTest = &test
	}
	return out
}

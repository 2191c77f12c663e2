package schema_test

import (
	"strings"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/feature"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/generation"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/domain/training"
)

func ptr[T any](v T) *T { return &v }

func digest(b string) string { return strings.Repeat(b, 32) }

// samples has one fact of each type in its current version, with every field set.
func samples() ([]event.Data, error) {
	src, err := source.FromSAE("sae_5f0c2c0e-8a54-4a5e-9d5b-0c3e7f6a1b2d")
	if err != nil {
		return nil, err
	}
	id := event.ID{0x01, 0x97, 0x5a, 0x3c, 0x11, 0x22, 0x73, 0x44, 0x85, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc}
	extractionID := "ext_sae_sae_5f0c2c0e-8a54-4a5e-9d5b-0c3e7f6a1b2d_20260102T030405000006"
	files := fileset.Set{{Name: "cfg.json", Bytes: 512, SHA256: digest("1a")}, {Name: "sae_weights.safetensors", Bytes: 14_217_728, SHA256: digest("2b")}}
	profile := extraction.ComputeProfile{Device: "cpu", DType: "float32", Threads: 2, ISA: "avx512", Libtorch: "2.1.1", MKL: "AVX512"}
	stated := sae.Stated{ScalingFactor: ptr(0.25), Normalization: "expected_average_only_in", Architecture: "topk", K: 48, ApplyBDecToInput: ptr(true), ModelName: "HuggingFaceTB/SmolLM2-135M-Instruct",
		Hook: "blocks.8.hook_resid_post", HookOut: "blocks.8.hook_mlp_out", Layer: ptr(8), SkipTransposed: ptr(true), Repo: "someone/saes"}
	saeFacts := sae.Facts{
		Format: "saelens", FormatVersion: "6.54.0", Architecture: "topk", DIn: 576, DSAE: 3072, DOut: 576, K: 48, Hook: "blocks.8.hook_resid_post", HookOut: "blocks.8.hook_resid_post",
		Layer: 8, ModelName: "HuggingFaceTB/SmolLM2-135M-Instruct", Normalization: "expected_average_only_in", ScalingFactor: 0.25, ApplyBDecToInput: true, RescaleActsByDecoderNorm: true,
		PrependBOS: ptr(true), ContextLength: 128, SeqposSlice: &sae.Slice{Start: ptr(1), Stop: nil, Step: ptr(1)}, ExcludeTokenIDs: []int{0, 1}, ExcludeSpecialTokens: true, Signed: true,
		DType: "float32", PublishedL0: ptr(48.5), HasSparsity: true, Files: files,
		FileArchitecture: "topk", Transcoder: true, CenterWritingWeights: true, ActivationsOnly: true, Reshape: "hook_z", Folds: []string{"activation-scale"},
		Origins: map[string]string{"hook": "cfg.json", "k": "option"}, Notes: []string{"row 7 of W_dec is zero"}, Open: "sae_weights.safetensors", Stated: stated,
	}
	latent := feature.Latent{Source: src, Index: 1234}
	return []event.Data{
		model.Registered{ID: "m_1", Name: "HuggingFaceTB/SmolLM2-135M-Instruct", Origin: model.Origin{Kind: "huggingface", Path: "/models/smollm2", Repo: "HuggingFaceTB/SmolLM2-135M-Instruct", Revision: "main"}},
		model.DownloadRequested{Repo: "HuggingFaceTB/SmolLM2-135M-Instruct", Revision: "main", Commit: "12fd25f77366fa6b3b4b768ec3050bf629380bac", File: "smollm2-135m-instruct-q8_0.gguf", Quantization: "Q8", Bytes: 144_811_360},
		model.Ready{Facts: model.Facts{Family: "llama", Format: "gguf", Layers: 30, DModel: 576, Heads: 576, MLP: 1536, Vocab: 49152, Context: 8192, Params: 134_515_008, DType: "Q4_1", BOS: ptr(1), EOS: ptr(2), Files: files, Tokenizer: digest("3c")}},
		model.Failed{Code: "unreadable_model", Detail: "model.safetensors ends after 17 bytes"},
		model.Deleted{},
		sae.Registered{ID: "sae_1", Name: "layer 8", Description: "trained on speeches", Origin: sae.Origin{Kind: "trained", Path: "/runs/1", Repo: "someone/saes", Revision: "main", File: "layer_8", TrainingID: "t_1"}},
		sae.DownloadRequested{Repo: "someone/saes", Revision: "main", Commit: "0b2e1d9a5c6f7e8d9c0b1a2f3e4d5c6b7a8f9e0d", File: "layer_8", ModelID: "m_1", Stated: stated, Bytes: 14_218_240},
		sae.Ready{Facts: saeFacts},
		sae.LinkedToModel{ModelID: "m_1"},
		sae.Renamed{Name: "layer 8, wide", Description: "trained on speeches"},
		sae.Failed{Code: "unreadable_sae", Detail: "W_enc holds NaN"},
		sae.Deleted{},
		dataset.Registered{ID: "ds_1", Name: "speeches", Origin: model.Origin{Kind: "local", Path: "/data/speeches.jsonl"}},
		dataset.DownloadRequested{Repo: "someone/speeches", Revision: "main", Commit: "7f3c1b2a4d5e6f708192a3b4c5d6e7f8091a2b3c", Config: "en", Split: "train", TextColumn: "text", MaxRows: 232, Bytes: 9_000_000},
		dataset.Ready{Facts: dataset.Facts{Format: "jsonl", TextColumn: "text", Tokenised: false, Columns: []string{"text", "year"}, Rows: 232, MaxRows: 232, Folder: false, Files: fileset.Set{{Name: "speeches.jsonl", Bytes: 9_000_000, SHA256: digest("4d")}}}},
		dataset.Failed{Code: "unreadable_dataset", Detail: "line 7 is not JSON"},
		dataset.Deleted{},
		corpus.Requested{ID: digest("5e"), DatasetID: "ds_1", DatasetDigest: digest("6f"), TokenizerSHA256: digest("3c"), ModelID: "m_1",
			Options: corpus.Options{Mode: corpus.Documents, ContextLength: 128, PrependBOS: true, BOS: 1, Seed: 7}, Sequences: 2048, FirstChunk: 1},
		corpus.ChunkBuilt{Chunk: 0, FirstSequence: 0, Sequences: 1024, Tokens: 131_072, Rows: 64, SHA256: digest("70"), Bytes: 300_000, More: true},
		corpus.Ready{Sequences: 2048, Tokens: 262_144, Chunks: 2, VocabularySHA256: digest("81"), Exhausted: true},
		corpus.Failed{Chunk: 1, Code: "tokenizer", Detail: "the tokenizer has no token for the separator"},
		training.Imported{ID: "t_1", Name: "speeches, layer 8", Checkpoint: model.Origin{Kind: "local", Path: "/runs/1"}, ModelID: "m_1", SAEs: []training.SAE{{Path: "layer_8_residual", Facts: saeFacts}}},
		training.Deleted{},
		extraction.Requested{ID: extractionID, Source: src, SAEPath: "layer_8_residual", ModelID: "m_1", DatasetID: "ds_1", Hook: "blocks.8.hook_resid_post", Layer: 8, Latents: 3072,
			Mask: extraction.Mask{Seqpos: &extraction.Slice{Start: ptr(1), Stop: ptr(-1), Step: ptr(1)}, TokenIDs: []int32{0, 1}, SpecialTokens: true}, Config: extraction.DefaultConfig()},
		extraction.SelfTested{Forced: true, SelfTest: extraction.SelfTest{Hook: "blocks.8.hook_resid_post", Tokens: 4096, FVU: ptr(0.09), L0: ptr(48.0), L0All: 48.2, DeadShare: 0.01, MedianNorm: 42.5, SinkShare: 0.0165,
			PrependBOS: true, BOS: 1, BOSTried: true, Rho: ptr(0.97), Taps: []extraction.Tap{{Hook: "blocks.8.hook_resid_post", FVU: ptr(0.09), L0: ptr(48.0)}, {Hook: "blocks.9.hook_resid_post", FVU: nil, L0: nil}},
			Warnings: []string{"L0 is 2.3 times the published one"}, Mismatch: "blocks.7.hook_resid_post has a lower FVU"}},
		sae.SelfTestRequested{ModelID: "m_1"},
		sae.SelfTested{ModelID: "m_1", Text: "built-in sample", Code: "worker_lost", Detail: "it was given to 3 workers and none came back", Report: &extraction.SelfTest{Hook: "blocks.8.hook_resid_post", HookOut: "blocks.8.hook_mlp_out",
			Tokens: 4096, FVU: ptr(0.09), L0: ptr(48.0), L0All: 48.2, PublishedL0: ptr(48.5), DeadShare: 0.01, MedianNorm: 42.5, SinkShare: 0.0165, PrependBOS: true, BOS: 1, BOSTried: true, Rho: ptr(0.97),
			Taps:   []extraction.Tap{{Hook: "blocks.8.hook_resid_post", HookOut: "blocks.8.hook_mlp_out", FVU: ptr(0.09), L0: ptr(48.0), DeadShare: ptr(0.01), SinkShare: ptr(0.0165), Rho: ptr(0.97)}},
			WhatIf: []extraction.Alternative{{If: "no BOS token were prepended", FVU: ptr(0.2), L0: ptr(50.0)}}, Warnings: []string{"L0 is 2.3 times the published one"}, Mismatch: "blocks.7.hook_resid_post fits better"}},
		extraction.Planned{CorpusID: digest("5e"), BatchSize: 16, Profile: profile, Part: extraction.Part{FirstSegment: 0, FirstSequence: 0, Sequences: 2048, SequencesPerSegment: 256, Tokens: 262_144}},
		extraction.SegmentRecorded{Index: 3, FirstSequence: 768, Sequences: 256, Tokens: 32_768, Artifact: extraction.Artifact{ContentSHA256: digest("92"), FileSHA256: digest("a3"), Bytes: 9_900_000, Postings: 1_572_864},
			Seconds: 12.5, Device: "cpu", Worker: "host-1-4711", Attempt: 1},
		extraction.SegmentMismatched{Index: 3, Recorded: digest("92"), Offered: digest("b4"), Worker: "host-2-4712"},
		extraction.Completed{Segments: 8, Tokens: 262_144, Postings: 12_582_912},
		extraction.Failed{Code: "worker_lost", Detail: "segment 5 was given to three workers and none came back", Segment: ptr(5), Resumable: true},
		extraction.Cancelled{Segments: 4, Reason: "wrong dataset"},
		extraction.Resumed{SourceKey: src.Key(), SAEID: src.ID(), ModelID: "m_1", DatasetID: "ds_1", Plan: true, Missing: extraction.Runs{{From: 4, To: 8}, {From: 9, To: 10}}, Profile: profile},
		extraction.Extended{SourceKey: src.Key(), SAEID: src.ID(), ModelID: "m_1", DatasetID: "ds_1", EvaluationSamples: 20_000},
		extraction.Deleted{},
		generation.FoldRequested{Reason: "asked for"},
		generation.Folded{Through: 14, Key: digest("c5"), FoldVersion: 1, Segments: 8, Latents: 3072, Seconds: 5.25},
		generation.FoldFailed{Through: 14, Code: "artifact_missing", Detail: "the artifact of segment 3 is not in the store"},
		feature.Named{Latent: latent, Name: "river banks", Category: "geography", By: feature.User},
		feature.Described{Latent: latent, Description: "banks of rivers, not of money", By: feature.LLM},
		feature.Noted{Latent: latent, Notes: "compare 87"},
		feature.Starred{Latent: latent, Starred: true},
		facts.EventSkipped{Projection: "features", EventID: id, Reason: "a name that the table cannot hold", Actor: "operator"},
		eventlog.EventsArchived{Events: []event.ID{id}, Reason: "a note with a name in it"},
	}, nil
}

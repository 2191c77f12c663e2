package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/sae"
)

// fingerprint is all that a self-test's verdict depends on. Equal ones have equal verdicts.
type fingerprint struct {
	Rule       int       `json:"rule"` // extraction.SelfTestRule
	Model      string    `json:"model"`
	SAE        sae.Facts `json:"sae"` // its files, what they say, and what was stated
	Fold       string    `json:"fold"`
	Profile    string    `json:"profile"`
	Sequences  string    `json:"sequences_sha256"`
	Context    int       `json:"context"`
	BOS        int32     `json:"bos"`
	PrependBOS *bool     `json:"prepend_bos"`
	SkipFirst  int       `json:"skip_first"`
	Exclude    []int32   `json:"exclude"`
	Tokens     int       `json:"tokens"`
}

// verdict is a self-test in the store.
type verdict struct {
	Of         fingerprint         `json:"fingerprint"`
	Extraction string              `json:"extraction"` // that measured it
	At         time.Time           `json:"at"`
	SelfTest   extraction.SelfTest `json:"self_test"`
}

const (
	verdictBytes = 1 << 20
	verdictWait  = 2 * time.Second // for a store that does not answer: measuring anew takes no longer
)

func fingerprintOf(in inputs, profile extraction.ComputeProfile, test SelfTestInput) fingerprint {
	exclude := slices.Clone(test.Exclude)
	slices.Sort(exclude)
	return fingerprint{
		Rule: extraction.SelfTestRule, Model: in.model.Files.Digest(), SAE: in.sae, Fold: in.extraction.Request.Config.Fold, Profile: profile.Requirement(),
		Sequences: digestOf(test.Sequences), Context: test.Context, BOS: test.BOS, PrependBOS: test.PrependBOS, SkipFirst: test.SkipFirst,
		Exclude: slices.Compact(exclude), Tokens: test.Tokens,
	}
}

func digestOf(sequences [][]int32) string {
	h := sha256.New()
	for _, ids := range sequences {
		b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+4*len(ids)), uint32(len(ids)))
		for _, id := range ids {
			b = binary.LittleEndian.AppendUint32(b, uint32(id))
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// tested is the verdict on an extraction: that of an earlier one with an equal fingerprint, or measured now and kept for later
// ones. A verdict that cannot be read is measured anew, and a store that is away costs the saving alone.
func (w *Worker) tested(ctx context.Context, id string, in inputs, encoder Encoder, test SelfTestInput) (extraction.SelfTest, error) {
	of := fingerprintOf(in, w.engine.Profile(), test)
	canonical, err := json.Marshal(of)
	if err != nil {
		return extraction.SelfTest{}, fmt.Errorf("describe the self-test: %w", err)
	}
	sum := sha256.Sum256(canonical)
	key := "selftests/" + hex.EncodeToString(sum[:]) + ".json"
	if kept, ok := w.kept(ctx, key, canonical); ok {
		if kept.Extraction != id {
			kept.SelfTest.ReusedFrom = kept.Extraction
		}
		return kept.SelfTest, nil
	}
	t, err := encoder.SelfTest(ctx, test)
	if err != nil {
		return t, err
	}
	if file, err := json.Marshal(verdict{Of: of, Extraction: id, At: time.Now().UTC(), SelfTest: t}); err == nil {
		ctx, cancel := context.WithTimeout(ctx, verdictWait)
		defer cancel()
		_ = w.store.Put(ctx, key, bytes.NewReader(file)) // the next one measures, too
	}
	return t, nil
}

// kept reads the verdict under a key, if it is there and of this fingerprint.
func (w *Worker) kept(ctx context.Context, key string, canonical []byte) (v verdict, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, verdictWait)
	defer cancel()
	file, err := w.store.Open(ctx, key)
	if err != nil {
		return v, false
	}
	defer func() { _ = file.Close() }()
	if file.Size() > verdictBytes {
		return v, false
	}
	content, err := io.ReadAll(io.NewSectionReader(file, 0, file.Size()))
	if err != nil || json.Unmarshal(content, &v) != nil {
		return v, false
	}
	of, err := json.Marshal(v.Of)
	return v, err == nil && bytes.Equal(of, canonical) && v.Extraction != "" && v.SelfTest.Tokens > 0
}

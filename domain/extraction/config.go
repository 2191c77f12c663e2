package extraction

import (
	"fmt"
	"math"

	"github.com/featuremill/featuremill/domain/problem"
)

// Config is what a person chooses. The JSON names are those of existing clients; fields of ours follow.
type Config struct {
	EvaluationSamples      int     `json:"evaluation_samples"` // sequences; fewer in the corpus is no error
	TopKExamples           int     `json:"top_k_examples"`
	BatchSize              int     `json:"batch_size"` // sequences in one forward; 0 = auto, resolved by the plan
	FilterSpecial          bool    `json:"filter_special"`
	FilterSingleChar       bool    `json:"filter_single_char"`
	FilterPunctuation      bool    `json:"filter_punctuation"`
	FilterNumbers          bool    `json:"filter_numbers"`
	FilterFragments        bool    `json:"filter_fragments"`
	FilterStopWords        bool    `json:"filter_stop_words"`
	ContextPrefixTokens    int     `json:"context_prefix_tokens"`
	ContextSuffixTokens    int     `json:"context_suffix_tokens"`
	MinActivationFrequency float64 `json:"min_activation_frequency"` // fraction; lists hide what is below it, if a client asked for that: rare is not dead
	AutoNLP                bool    `json:"auto_nlp"`

	Mode                string  `json:"mode"`           // documents | packed
	ContextLength       int     `json:"context_length"` // 0 = the SAE's, else 128
	PrependBOS          string  `json:"prepend_bos"`    // auto | true | false
	SkipFirst           int     `json:"skip_first"`     // offsets below it are not counted
	ExcludeTokenIDs     []int32 `json:"exclude_token_ids"`
	ExamplesPerInterval int     `json:"examples_per_interval"`
	NonFiring           int     `json:"non_firing"`
	Fold                string  `json:"fold"`  // none | decoder-norm
	DType               string  `json:"dtype"` // float32
	Seed                int64   `json:"seed"`
	Force               bool    `json:"force"` // go on when the self-test says that the SAE does not fit
}

// DefaultConfig is what a request that says nothing gets.
func DefaultConfig() Config {
	return Config{
		EvaluationSamples: 10_000, TopKExamples: 100,
		FilterSpecial: true, FilterSingleChar: true, FilterPunctuation: true, FilterNumbers: true, FilterFragments: true,
		ContextPrefixTokens: 25, ContextSuffixTokens: 25, AutoNLP: true,
		Mode: "documents", PrependBOS: "auto", SkipFirst: 1, ExcludeTokenIDs: []int32{},
		ExamplesPerInterval: 5, NonFiring: 5, Fold: "none", DType: "float32",
	}
}

// Validate names every field that is out of bounds.
func (c Config) Validate() error {
	var wrong []problem.Field
	between := func(name string, v, lo, hi int) {
		if v < lo || v > hi {
			wrong = append(wrong, problem.Field{Name: name, Detail: fmt.Sprintf("%d is not between %d and %d", v, lo, hi)})
		}
	}
	oneOf := func(name, v string, choices ...string) {
		for _, c := range choices {
			if v == c {
				return
			}
		}
		wrong = append(wrong, problem.Field{Name: name, Detail: fmt.Sprintf("%q is not one of %v", v, choices)})
	}
	between("evaluation_samples", c.EvaluationSamples, 1, MaxSequences)
	between("top_k_examples", c.TopKExamples, 10, 1_000)
	if c.BatchSize != 0 {
		between("batch_size", c.BatchSize, 1, 256)
	}
	between("context_prefix_tokens", c.ContextPrefixTokens, 0, 50)
	between("context_suffix_tokens", c.ContextSuffixTokens, 0, 50)
	if math.IsNaN(c.MinActivationFrequency) || c.MinActivationFrequency < 0 || c.MinActivationFrequency > 0.1 {
		wrong = append(wrong, problem.Field{Name: "min_activation_frequency", Detail: fmt.Sprintf("%v is not between 0 and 0.1", c.MinActivationFrequency)})
	}
	oneOf("mode", c.Mode, "documents", "packed")
	if c.ContextLength != 0 {
		between("context_length", c.ContextLength, minContext, maxContext)
	}
	oneOf("prepend_bos", c.PrependBOS, "auto", "true", "false")
	between("skip_first", c.SkipFirst, 0, 8192)
	between("examples_per_interval", c.ExamplesPerInterval, 0, 100)
	between("non_firing", c.NonFiring, 0, 100)
	oneOf("fold", c.Fold, "none", "decoder-norm")
	oneOf("dtype", c.DType, "float32")
	if len(c.ExcludeTokenIDs) > 1_000 {
		wrong = append(wrong, problem.Field{Name: "exclude_token_ids", Detail: "at most 1000 ids"})
	}
	for _, id := range c.ExcludeTokenIDs {
		if id < 0 {
			wrong = append(wrong, problem.Field{Name: "exclude_token_ids", Detail: fmt.Sprintf("%d is not a token id", id)})
			break
		}
	}
	if len(wrong) > 0 {
		return problem.InvalidFields("invalid_request", wrong...)
	}
	return nil
}

package features

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/projections/features/fold"
)

// vocabulary is a tokenizer's tokens, as queries show and search them. It never changes.
type vocabulary struct {
	tokens   []token
	texts    []string // in lower case
	shortest []int32  // ids, by the length of their texts
}

type token struct {
	ID      int32
	Piece   string
	Special bool
}

// Len implements fold.Vocabulary.
func (v *vocabulary) Len() int { return len(v.tokens) }

// Piece implements fold.Vocabulary; an id that the vocabulary does not have is "".
func (v *vocabulary) Piece(id int32) string {
	if id < 0 || int(id) >= len(v.tokens) {
		return ""
	}
	return v.tokens[id].Piece
}

// Special implements fold.Vocabulary.
func (v *vocabulary) Special(id int32) bool {
	return id >= 0 && int(id) < len(v.tokens) && v.tokens[id].Special
}

func (v *vocabulary) pieces(ids []int32) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = v.Piece(id)
	}
	return out
}

// mostTokens bounds what a search for a letter or two looks at: the tokens that are nearest to it.
const mostTokens = 1000

// containing returns the tokens whose text contains what is searched, the shortest first.
func (v *vocabulary) containing(search string) (ids []int32) {
	search = strings.ToLower(search)
	for _, id := range v.shortest {
		if strings.Contains(v.texts[id], search) {
			if ids = append(ids, id); len(ids) == mostTokens {
				break
			}
		}
	}
	return ids
}

// spelt returns the tokens with one of these pieces.
func (v *vocabulary) spelt(pieces ...string) (ids []int32) {
	for _, t := range v.tokens {
		if slices.Contains(pieces, t.Piece) {
			ids = append(ids, t.ID)
		}
	}
	return ids
}

// keptVocabularies is how many stay in memory: some ten megabytes each at most.
const keptVocabularies = 4

// vocabularies keeps those that were asked for last. A look-up in memory is what makes pages quick: one of
// 500 features shows 25,000 tokens, and a search looks at every token there is.
type vocabularies struct {
	mu   sync.Mutex
	kept []kept
}

type kept struct {
	sha256     string
	vocabulary *vocabulary
}

func (k *vocabularies) get(ctx context.Context, q *Queries, sha256 string) (*vocabulary, error) {
	k.mu.Lock()
	if i := slices.IndexFunc(k.kept, func(e kept) bool { return e.sha256 == sha256 }); i >= 0 {
		e := k.kept[i]
		k.kept = append(slices.Delete(k.kept, i, i+1), e)
		k.mu.Unlock()
		return e.vocabulary, nil
	}
	k.mu.Unlock()
	rows, err := q.pool.Query(ctx, `select id, piece, special from vocabulary where vocabulary_sha256 = $1 order by id`, sha256)
	if err != nil {
		return nil, err
	}
	v := &vocabulary{}
	if v.tokens, err = pgx.CollectRows(rows, pgx.RowToStructByPos[token]); err != nil {
		return nil, fmt.Errorf("read the vocabulary %s: %w", sha256, err)
	}
	v.texts = fold.Texts(v)
	v.shortest = make([]int32, len(v.texts))
	for id, text := range v.texts {
		v.texts[id], v.shortest[id] = strings.ToLower(text), int32(id)
	}
	slices.SortStableFunc(v.shortest, func(a, b int32) int { return cmp.Compare(len(v.texts[a]), len(v.texts[b])) })
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(v.tokens) > 0 { // else it is not there yet
		k.kept = append(k.kept, kept{sha256, v})
		k.kept = k.kept[max(0, len(k.kept)-keptVocabularies):]
	}
	return v, nil
}

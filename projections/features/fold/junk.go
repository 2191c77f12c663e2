package fold

// Junk says of each token which filters would leave it out as a prime token, as far as the token alone
// tells: whether a token that continues a word is a fragment depends on the one before it, here it is one.
func Junk(v Vocabulary) []Filters {
	out := make([]Filters, v.Len())
	for id, t := range vocabularyTraits(v) {
		out[id] = Filters{
			Special: t&isSpecial != 0, SingleChar: t&isSingleChar != 0, Punctuation: t&isPunctuation != 0,
			Numbers: t&isNumber != 0, Fragments: t&(isPartial|continuesWord) != 0, StopWords: t&isStopWord != 0,
		}
	}
	return out
}

package corpus

// Piece is a run of tokens of one sequence that came from one row of the dataset.
type Piece struct {
	Token     int   // offset of the piece's first token in the sequence
	Row       int64 // row of the dataset
	CharStart int64 // where the piece starts in the row's text, in code points
	CharEnd   int64 // where it ends
}

// Sequence is what is fed to the model at once: token ids, and where they came from.
// Inserted marks tokens that the corpus builder put there (a BOS, a separator): they are fed to the
// model and never counted. Special tokens that come from the text are not inserted.
type Sequence struct {
	Tokens   []int32
	Pieces   []Piece
	Inserted []int // offsets of inserted tokens, ascending
}

// Document returns the index of the piece that holds the token at an offset. A sequence has at least one piece.
func (s Sequence) Document(offset int) int {
	i := len(s.Pieces) - 1
	for i > 0 && s.Pieces[i].Token > offset {
		i--
	}
	return i
}

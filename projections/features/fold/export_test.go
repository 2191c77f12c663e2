package fold

// WithResidentTokens makes a corpus larger than n tokens be read again for every range of latents.
func (o Options) WithResidentTokens(n int64) Options {
	o.residentTokens = n
	return o
}

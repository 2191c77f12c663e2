package corpus

import (
	"strings"
	"unicode/utf8"
)

// validText reads bytes as UTF-8. Each maximal part that begins like a character and is broken becomes one
// U+FFFD, as in Python's errors="replace" and in the tokenizer; Go's own conversion gives one for each byte.
func validText(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var text strings.Builder
	text.Grow(len(b) + 16)
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size <= 1 {
			size = brokenPart(b)
		}
		text.WriteRune(r)
		b = b[size:]
	}
	return text.String()
}

// brokenPart is the length of the prefix of b that could have begun a character, at least 1 (Unicode, table 3-7).
func brokenPart(b []byte) int {
	low, high, more := byte(0x80), byte(0xbf), 0
	switch c := b[0]; {
	case c >= 0xc2 && c <= 0xdf:
		more = 1
	case c >= 0xe0 && c <= 0xef:
		more = 2
		if c == 0xe0 {
			low = 0xa0
		}
		if c == 0xed {
			high = 0x9f
		}
	case c >= 0xf0 && c <= 0xf4:
		more = 3
		if c == 0xf0 {
			low = 0x90
		}
		if c == 0xf4 {
			high = 0x8f
		}
	}
	n := 1
	for ; n <= more && n < len(b) && b[n] >= low && b[n] <= high; n++ {
		low, high = 0x80, 0xbf
	}
	return n
}

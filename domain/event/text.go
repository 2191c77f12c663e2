package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// mostText bounds a text that tells what went wrong: it may quote a stranger's file.
const mostText = 4000

// CleanText is a text for people as every table can hold it: U+0000 is shown as ␀, bytes that are no UTF-8 as U+FFFD,
// and what is very long is cut.
func CleanText(text string) string {
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", "␀"), "\uFFFD")
	if len(text) <= mostText {
		return text
	}
	cut := mostText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + " …"
}

// Cleaner is a fact with texts for people that may quote a stranger's file. They are cleaned before it is appended.
type Cleaner interface{ Clean() Data }

// nul is how JSON writes U+0000.
var nul = []byte(`\u0000`)

// NulField returns where a fact's JSON holds U+0000, such as "facts.files[2].name"; "" = nowhere. PostgreSQL keeps such a
// JSON text, and fails when it is read into a column: no such fact is appended.
func NulField(data []byte) string {
	if !bytes.Contains(data, nul) {
		return ""
	}
	return FindField(data, func(_ string, v any) bool {
		text, ok := v.(string)
		return ok && strings.ContainsRune(text, 0)
	})
}

// FindField returns where a fact's JSON has the first value that is looked for; "" = nowhere. Numbers come as json.Number;
// the names of fields are looked at like values, without a key.
func FindField(data []byte, looked func(key string, v any) bool) string {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var path []*level
	for {
		t, err := d.Token()
		switch {
		case errors.Is(err, io.EOF):
			return ""
		case err != nil:
			return "its JSON"
		}
		var top *level
		if len(path) > 0 {
			top = path[len(path)-1]
		}
		delim, isDelim := t.(json.Delim)
		switch {
		case isDelim && (delim == '}' || delim == ']'):
			if path = path[:len(path)-1]; len(path) > 0 {
				path[len(path)-1].done()
			}
		case top != nil && !top.array && !top.value:
			top.key, _ = t.(string)
			if top.value = true; looked("", top.key) {
				return where(path)
			}
		case isDelim:
			path = append(path, &level{array: delim == '['})
		default:
			if top == nil {
				return ""
			}
			if looked(top.key, t) {
				return where(path)
			}
			top.done()
		}
	}
}

// level is an object or an array that a decoder is in.
type level struct {
	array bool
	key   string
	value bool // the next token is the value of key
	n     int  // elements before
}

func (l *level) done() {
	l.value = false
	l.n++
}

func where(path []*level) string {
	var b strings.Builder
	for _, l := range path {
		if l.array {
			b.WriteString("[" + strconv.Itoa(l.n) + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(CleanText(l.key))
	}
	return b.String()
}

// WithoutNul is a fact's JSON with ␀ for U+0000: for those who keep texts of facts that were appended before such were refused.
func WithoutNul(data json.RawMessage) json.RawMessage {
	if !bytes.Contains(data, nul) {
		return data
	}
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i++ {
		switch {
		case data[i] != '\\' || i+1 == len(data):
			out = append(out, data[i])
		case bytes.HasPrefix(data[i:], nul):
			out = append(out, "␀"...)
			i += len(nul) - 1
		default: // another escape, \\ among them
			out = append(out, data[i], data[i+1])
			i++
		}
	}
	return out
}

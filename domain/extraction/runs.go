package extraction

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// everPlanned is more than the segments of any plan that was ever recorded: those of the first versions had up to a million.
const everPlanned = 1 << 20

// Run is the segments From … To − 1.
type Run struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// Runs are runs in order, with a segment or more between two of them. As text they are 0-4095,4100,4102-4200, with the last
// segment of each: whatever is missing of MaxSegments segments, that is less than an event may have, which a list of
// objects would not be.
type Runs []Run

// MarshalText writes 0-4095,4100,4102-4200; nothing for none.
func (r Runs) MarshalText() ([]byte, error) {
	var out []byte
	next := 0
	for i, run := range r {
		if err := run.check(i > 0, next); err != nil {
			return nil, err
		}
		next = run.To
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendInt(out, int64(run.From), 10)
		if run.To-run.From > 1 {
			out = strconv.AppendInt(append(out, '-'), int64(run.To-1), 10)
		}
	}
	return out, nil
}

// check refuses what does not follow a run that ended before next.
func (r Run) check(follows bool, next int) error {
	switch {
	case r.From < 0 || r.To > everPlanned:
		return fmt.Errorf("segments %d to %d: no plan has any outside 0 to %d", r.From, r.To-1, everPlanned-1)
	case r.To <= r.From:
		return fmt.Errorf("segments %d to %d: a run has one segment or more", r.From, r.To-1)
	case follows && r.From <= next:
		return fmt.Errorf("segments %d to %d follow %d: runs are in order, with a segment or more between two of them", r.From, r.To-1, next-1)
	}
	return nil
}

// UnmarshalText reads what MarshalText writes, and nothing else.
func (r *Runs) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*r = nil
		return nil
	}
	out := make(Runs, 0, 1+strings.Count(string(text), ","))
	next := 0
	for part := range strings.SplitSeq(string(text), ",") {
		first, last, several := strings.Cut(part, "-")
		from, err := index(first)
		if err != nil {
			return err
		}
		run := Run{From: from, To: from + 1}
		if several {
			if run.To, err = index(last); err != nil {
				return err
			}
			if run.To <= run.From {
				return fmt.Errorf("segments %q: a run of several ends after its first one", part)
			}
			run.To++
		}
		if err := run.check(len(out) > 0, next); err != nil {
			return err
		}
		next = run.To
		out = append(out, run)
	}
	*r = out
	return nil
}

func index(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || strconv.Itoa(n) != text || n < 0 {
		return 0, fmt.Errorf("%q is not the number of a segment", text)
	}
	return n, nil
}

// ResumedFrom1 turns version 1 of Resumed, whose missing segments were a list of {from, to}, into version 2.
func ResumedFrom1(data json.RawMessage) (json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	var missing []Run
	if list := fields["missing"]; len(list) > 0 {
		if err := json.Unmarshal(list, &missing); err != nil {
			return nil, fmt.Errorf("missing: %w", err)
		}
	}
	text, err := json.Marshal(Runs(missing))
	if err != nil {
		return nil, fmt.Errorf("missing: %w", err)
	}
	fields["missing"] = text
	return json.Marshal(fields)
}

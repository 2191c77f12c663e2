package checkpoint

import "strings"

// QuestionError asks for a fact that neither the files nor known.yaml hold and that changes the numbers.
type QuestionError struct {
	Path    string
	Fact    string   // what is missing: "k, the number of latents that it keeps"
	Why     string   // why it is not known
	Choices []string // what it may be; nil where any value may
	Option  string   // the option that gives it: "--k"
}

func (e *QuestionError) Error() string {
	choices := ""
	if len(e.Choices) > 0 {
		choices = " (" + strings.Join(e.Choices, ", ") + ")"
	}
	return place(e.Path) + e.Fact + " is not known: " + e.Why + "; give it with " + e.Option + choices
}

// AmbiguousError says that the path may mean several things, and which.
type AmbiguousError struct {
	Path    string
	Fact    string
	Choices []string
	How     string // how to choose
}

func (e *AmbiguousError) Error() string {
	return place(e.Path) + e.Fact + ": " + abridged(e.Choices) + "; " + e.How
}

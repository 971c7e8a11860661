package core

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Mistake is something in a policy's file that is not as it should be.
type Mistake struct {
	Line   int      `json:"line"`   // from 1; 0: of the file as a whole
	Column int      `json:"column"` // from 1, in characters
	What   string   `json:"what"`
	Hints  []string `json:"hints"`            // what was expected, a line each
	Source string   `json:"source,omitempty"` // the line, as it is in the file
}

// maxSnippet bounds the part of a line that is shown, in characters.
const maxSnippet = 100

// Snippet is the line with a caret below the place, "" when it is of no line.
func (m *Mistake) Snippet() []string {
	if m.Line == 0 {
		return nil
	}
	line, at := []rune(strings.ToValidUTF8(m.Source, "\uFFFD")), max(m.Column-1, 0)
	at = min(at, len(line))
	if cut := at - maxSnippet/2; cut > 0 && len(line) > maxSnippet { // the place is what matters
		line, at = append([]rune("..."), line[cut:]...), at-cut+3
	}
	line = line[:min(len(line), maxSnippet)]
	for i, r := range line {
		if r == '\t' {
			line[i] = ' ' // the caret would not stand below it
		}
	}
	return []string{fmt.Sprintf("%4d | %s", m.Line, string(line)), "     | " + strings.Repeat(" ", at) + "^"}
}

// PolicyError is what is wrong with a policy's file: at least one mistake, in the order
// of their places.
type PolicyError struct {
	File     string
	Mistakes []Mistake
}

// Where says where a mistake is: FILE:LINE:COLUMN.
func (e *PolicyError) Where(m *Mistake) string {
	file := Shorten(e.File, 200)
	if m.Line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d:%d", file, m.Line, m.Column)
}

// Error says the first mistake and how many more there are.
func (e *PolicyError) Error() string {
	s := fmt.Sprintf("policy %s: %s", e.Where(&e.Mistakes[0]), e.Mistakes[0].What)
	switch n := len(e.Mistakes) - 1; {
	case n == 1:
		s += " (and 1 more mistake)"
	case n > 1:
		s += fmt.Sprintf(" (and %d more mistakes)", n)
	}
	return s
}

// lineOf returns a line of text without its end, cut where it is absurdly long.
func lineOf(text string, n int) string {
	const most = 4096
	for ; n > 1; n-- {
		_, rest, ok := strings.Cut(text, "\n")
		if !ok {
			return ""
		}
		text = rest
	}
	line, _, _ := strings.Cut(text, "\n")
	line = strings.TrimSuffix(line, "\r")
	if len(line) > most {
		line = line[:most]
		for len(line) > 0 && !utf8.ValidString(line[len(line)-1:]) && !utf8.RuneStart(line[len(line)-1]) {
			line = line[:len(line)-1]
		}
	}
	return line
}

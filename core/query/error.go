package query

import (
	"errors"
	"fmt"

	"github.com/sandglass/sandglass/core"
)

// Error says what is wrong with the text of a query, and where.
type Error struct {
	Col  int    // the character at which it is wrong, from 1; one past the end when something is missing there
	Msg  string // what is wrong, without the place
	Hint string // what to write instead; "" when Msg says it
}

func (e *Error) Error() string { return fmt.Sprintf("query, column %d: %s", e.Col, e.Msg) }

// As lets [core.Hints] find the advice.
func (e *Error) As(target any) bool {
	h, ok := target.(**core.HintError)
	if !ok || e.Hint == "" {
		return false
	}
	*h = &core.HintError{Err: errors.New(e.Error()), Hints: []string{e.Hint}}
	return true
}

package query

import (
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
)

// What a query may be at most. The bounds hold for its canonical text too, so that
// what was read once can always be read again.
const (
	MaxLength = 8 << 10 // bytes
	MaxDepth  = 64      // parentheses and nots within one another
	MaxTerms  = 256     // values of terms, all together
)

// Query is what was asked for. A nil *Query and one made of "" match every
// operation. It is read-only: any number of goroutines may use one.
type Query struct{ root Node }

// Options is what the text of a query may refer to.
type Options struct {
	Home string    // what ~ stands for: an absolute path; "" makes ~ an error
	Now  time.Time // what 1h is before; its location is that of times without a zone
}

// Root returns the syntax tree; nil when every operation matches.
func (q *Query) Root() Node {
	if q == nil {
		return nil
	}
	return q.root
}

// Match says whether op matches. It allocates nothing.
func (q *Query) Match(op *core.Operation) bool {
	return q == nil || q.root == nil || q.root.match(op)
}

// String returns the canonical text: [Parse] makes an equal query of it, whatever the
// options. It is printable, whatever bytes the query has.
func (q *Query) String() string {
	if q == nil || q.root == nil {
		return ""
	}
	var b strings.Builder
	q.root.write(&b, false)
	return b.String()
}

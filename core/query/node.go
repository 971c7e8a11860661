package query

import (
	"strings"

	"github.com/sandglass/sandglass/core"
)

// Node is a part of a query's syntax tree: [And], [Or], [Not] or *[Term]. A tree that
// [Parse] made is never changed.
type Node interface {
	match(op *core.Operation) bool
	// write adds the text; tight says that it stands where an And or an Or needs
	// parentheses.
	write(b *strings.Builder, tight bool)
	// depth is how deep its text nests: what the parser would count.
	depth(tight bool) int
}

// And holds when all of its nodes do. It has two or more; none is an And.
type And []Node

// Or holds when one of its nodes does. It has two or more; none is an Or.
type Or []Node

// Not holds when its node does not.
type Not struct{ Node Node }

// Op is what a term does with its values.
type Op uint8

// The operators.
const (
	Is        Op = iota // one of the values
	IsNot               // none of the values: exactly when Is does not hold
	Contains            // a word without a field: the target contains the value
	Less                // <, one value, as in the following
	LessEq              // <=
	Greater             // >
	GreaterEq           // >=
)

var opText = [...]string{Is: ":", IsNot: "!=", Contains: "", Less: "<", LessEq: "<=", Greater: ">", GreaterEq: ">="}

// Term compares a field of the operation with values.
type Term struct {
	Field  Field   // never since or until: they are comparisons of Time
	Key    string  // of the detail; else ""
	Op     Op      // Time is only ever compared by Less and GreaterEq
	Values []Value // one or more; exactly one but for Is and IsNot
}

// Value is what a field is compared with.
type Value struct {
	Int     int64    // of every kind but Text, and of details that are compared as numbers
	Pattern *Pattern // of Text; nil otherwise
}

func (n And) match(op *core.Operation) bool {
	for _, k := range n {
		if !k.match(op) {
			return false
		}
	}
	return true
}

func (n Or) match(op *core.Operation) bool {
	for _, k := range n {
		if k.match(op) {
			return true
		}
	}
	return false
}

func (n Not) match(op *core.Operation) bool { return !n.Node.match(op) }

func (t *Term) match(op *core.Operation) bool {
	switch t.Field {
	case Verdict:
		return t.compare(int64(op.Verdict))
	case Outcome:
		return t.compare(int64(op.Outcome))
	case PID:
		return t.compare(int64(op.PID))
	case Seq:
		return t.compare(int64(op.Seq))
	case Time:
		return t.compare(op.Time.UnixNano())
	case Leak:
		if op.Leak {
			return t.compare(1)
		}
		return t.compare(0)
	case Surface:
		return t.matchText(string(op.Surface))
	case Action:
		return t.matchText(string(op.Action))
	case Target:
		return t.matchText(op.Target)
	case Exe:
		return t.matchText(op.Exe)
	case Proc:
		return t.matchText(string(op.Proc))
	case Box:
		return t.matchText(op.Box)
	case Session:
		return t.matchText(string(op.Session))
	case Rule:
		return t.matchText(op.Rule)
	case Errno:
		return t.matchText(op.Errno)
	case Detail:
		s, ok := op.Detail[t.Key]
		switch {
		case !ok:
			return t.Op == IsNot
		case t.Op == Is || t.Op == IsNot:
			return t.matchText(s)
		}
		n, ok := Decimal(s)
		return ok && t.compare(n)
	}
	return false
}

func (t *Term) matchText(s string) bool {
	for _, v := range t.Values {
		if v.Pattern.Match(s) {
			return t.Op != IsNot
		}
	}
	return t.Op == IsNot
}

func (t *Term) compare(n int64) bool {
	switch v := t.Values[0].Int; t.Op {
	case Less:
		return n < v
	case LessEq:
		return n <= v
	case Greater:
		return n > v
	case GreaterEq:
		return n >= v
	}
	for _, v := range t.Values {
		if v.Int == n {
			return t.Op != IsNot
		}
	}
	return t.Op == IsNot
}

// Decimal reads a detail that is a number: digits, with or without a '-' before them,
// within 64 bits. It is the same for [Query.Match] and for the database.
func Decimal(s string) (n int64, ok bool) {
	d := strings.TrimPrefix(s, "-")
	if d == "" || len(d) > 19 {
		return 0, false
	}
	var u uint64 // 19 digits fit
	for i := range len(d) {
		if d[i] < '0' || d[i] > '9' {
			return 0, false
		}
		u = u*10 + uint64(d[i]-'0')
	}
	if u > 1<<63-1 {
		return 0, false
	}
	if len(d) < len(s) {
		return -int64(u), true
	}
	return int64(u), true
}

package store

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"modernc.org/sqlite"

	"github.com/sandglass/sandglass/core/query"
)

// Columns says where a condition finds the fields of an operation.
type Columns struct {
	Of     map[query.Field]Column
	Detail func(key string) Column // nil: there are no details to ask about
}

// Column is a field in SQL. The condition on a row is Before, a condition on Expr,
// After: a field whose strings are in a dictionary says
//
//	Column{Before: "o.exe_id IN (SELECT id FROM strings WHERE ", Expr: "text", After: ")"}
//
// The types of Expr are those of the kinds of field (see [query.Kind]): INTEGER for
// all but text, with [core.Seq] as it is and time in nanoseconds since 1970. Text has
// the BINARY collation and no numeric affinity.
type Column struct {
	Before     string
	BeforeArgs []any
	Expr       string
	ExprArgs   []any // one for each ? in Expr
	After      string
	Null       bool    // Expr is NULL where the operation lacks the field; else it never is
	Storage    Storage // of a text field

	// Prefilter, if there is one, makes a condition that is true of every row whose
	// text contains the literal in any case of its ASCII letters, and of few others:
	// where an index of trigrams is used. The literal is UTF-8 of three characters or
	// more, without NUL. A row whose text is not UTF-8 must pass unless the index is
	// known to be right about it; let a partial index find those, for a scan of them
	// all costs more than the trigrams save. The condition stands beside that on Expr,
	// between Before and After.
	Prefilter func(literal string) (cond string, args []any)
}

// Storage says how a column holds strings, which are arbitrary bytes.
type Storage uint8

// The ways to hold a string. SQLite compares TEXT with TEXT and BLOB with BLOB byte
// by byte, and never finds a TEXT equal to a BLOB.
const (
	TextOrBlob Storage = iota // TEXT when it is UTF-8 without NUL, BLOB otherwise
	TextOnly
	BlobOnly
)

// Value returns s as it is written to a column.
func (st Storage) Value(s string) any {
	if st == TextOnly || st == TextOrBlob && textual(s) {
		return s
	}
	return []byte(s)
}

func textual(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// Compile writes q as a condition in SQL, with its arguments in the order of their ?s.
// It holds for the same operations that [query.Query.Match] does. The condition is "1"
// when q matches everything; it never needs parentheses beside an AND.
//
// Connections that run it must have been opened after [RegisterFunctions]. What is
// asked by equality, prefix or order is plain SQL that an index serves; other patterns
// are matched by a function, behind the column's prefilter where there is one.
func Compile(q *query.Query, c Columns) (where string, args []any, err error) {
	if q.Root() == nil {
		return "1", nil, nil
	}
	p := compiler{columns: c}
	if err := p.node(q.Root()); err != nil {
		return "", nil, fmt.Errorf("compile query %q: %w", q, err)
	}
	return p.sql.String(), p.args, nil
}

type compiler struct {
	columns Columns
	sql     strings.Builder
	args    []any
}

func (p *compiler) add(sql string, args ...any) {
	p.sql.WriteString(sql)
	p.args = append(p.args, args...)
}

func (p *compiler) node(n query.Node) error {
	switch n := n.(type) {
	case query.And:
		return p.list(n, " AND ")
	case query.Or:
		return p.list(n, " OR ")
	case query.Not:
		p.add("NOT (")
		if err := p.node(n.Node); err != nil {
			return err
		}
		p.add(")")
		return nil
	case *query.Term:
		return p.term(n)
	}
	return fmt.Errorf("a %T is new to SQL", n)
}

func (p *compiler) list(nodes []query.Node, between string) error {
	p.add("(")
	for i, n := range nodes {
		if i > 0 {
			p.add(between)
		}
		if err := p.node(n); err != nil {
			return err
		}
	}
	p.add(")")
	return nil
}

func (p *compiler) term(t *query.Term) error {
	col, ok := p.columns.Of[t.Field]
	if t.Field == query.Detail && p.columns.Detail != nil {
		col, ok = p.columns.Detail(t.Key), true
	}
	if !ok {
		return fmt.Errorf("no column holds %s", t.Field)
	}
	if t.Op == query.IsNot {
		p.add("NOT (")
		defer p.add(")")
	}
	p.add(col.Before, col.BeforeArgs...)
	defer p.add(col.After)
	decimal := t.Field == query.Detail && t.Op >= query.Less
	if col.Null || decimal {
		// An unknown condition is not a false one to the NOT around it.
		p.add("ifnull(")
		defer p.add(", 0)")
	}
	switch {
	case decimal:
		p.add("sandglass_decimal(")
		p.add(col.Expr, col.ExprArgs...)
		p.add(")")
		return p.order(t)
	case t.Field.Kind() == query.Text:
		return p.text(col, t.Values)
	case t.Op >= query.Less:
		p.add(col.Expr, col.ExprArgs...)
		return p.order(t)
	}
	var is []any
	for _, v := range t.Values {
		is = append(is, v.Int)
	}
	p.in(col, is)
	return nil
}

func (p *compiler) order(t *query.Term) error {
	switch t.Op {
	case query.Less:
		p.add(" < ?", t.Values[0].Int)
	case query.LessEq:
		p.add(" <= ?", t.Values[0].Int)
	case query.Greater:
		p.add(" > ?", t.Values[0].Int)
	case query.GreaterEq:
		p.add(" >= ?", t.Values[0].Int)
	default:
		return fmt.Errorf("operator %d of %s is new to SQL", t.Op, t.Field)
	}
	return nil
}

// in adds that the column is one of the values.
func (p *compiler) in(col Column, values []any) {
	p.add(col.Expr, col.ExprArgs...)
	if len(values) == 1 {
		p.add(" = ?", values[0])
		return
	}
	p.add(" IN (?"+strings.Repeat(", ?", len(values)-1)+")", values...)
}

// text adds that the column matches one of the patterns.
func (p *compiler) text(col Column, values []query.Value) error {
	var equal []any
	var conds []func()
	for _, v := range values {
		if v.Pattern == nil {
			return errors.New("a text is compared with no pattern")
		}
		if s, ok := v.Pattern.Literal(); ok {
			equal = append(equal, col.Storage.Value(s))
		} else if s, ok := v.Pattern.Prefix(); ok {
			conds = append(conds, func() { p.prefix(col, s) })
		} else {
			conds = append(conds, func() { p.match(col, v.Pattern) })
		}
	}
	if len(equal) > 0 {
		conds = append(conds, func() { p.in(col, equal) })
	}
	if len(conds) > 1 {
		p.add("(")
		defer p.add(")")
	}
	for i, cond := range conds {
		if i > 0 {
			p.add(" OR ")
		}
		cond()
	}
	return nil
}

// prefix adds that the column begins with s: a range for each type that it may have.
func (p *compiler) prefix(col Column, s string) {
	if s == "" {
		if !col.Null {
			p.add("1")
			return
		}
		p.add(col.Expr, col.ExprArgs...)
		p.add(" IS NOT NULL")
		return
	}
	after := successor(s)
	// All BLOBs are greater than all TEXTs: only the last range may be open, and a TEXT
	// range without an end ends where the BLOBs begin.
	var ranges [][2]any
	if col.Storage != BlobOnly {
		r := [2]any{s, []byte{}}
		if after != "" {
			r[1] = after
		}
		ranges = append(ranges, r)
	}
	if col.Storage != TextOnly {
		r := [2]any{[]byte(s), nil}
		if after != "" {
			r[1] = []byte(after)
		}
		ranges = append(ranges, r)
	}
	p.add("(")
	for i, r := range ranges {
		if i > 0 {
			p.add(" OR ")
		}
		p.add(col.Expr, col.ExprArgs...)
		p.add(" >= ?", r[0])
		if r[1] != nil {
			p.add(" AND ")
			p.add(col.Expr, col.ExprArgs...)
			p.add(" < ?", r[1])
		}
	}
	p.add(")")
}

// successor returns the least string that is greater than all that begin with s; ""
// when there is none.
func successor(s string) string {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] < 0xff {
			return s[:i] + string([]byte{s[i] + 1})
		}
	}
	return ""
}

// match adds that a function finds the column to match.
func (p *compiler) match(col Column, pattern *query.Pattern) {
	if lit := searchable(pattern.Longest()); col.Prefilter != nil && lit != "" {
		if cond, args := col.Prefilter(lit); cond != "" {
			p.add("("+cond, args...)
			p.add(" AND ")
			defer p.add(")")
		}
	}
	p.add("sandglass_match(?, ", pattern.Encode())
	p.add(col.Expr, col.ExprArgs...)
	p.add(")")
}

// searchable returns the longest part of s that an index of trigrams can find; "" when
// there is none.
func searchable(s string) (best string) {
	start := 0
	end := func(i int) {
		if part := s[start:i]; len(part) > len(best) && utf8.RuneCountInString(part) >= 3 {
			best = part
		}
	}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r == 0 {
			end(i)
			start = i + n
		}
		i += n
	}
	end(len(s))
	return best
}

// phrase writes a literal as a string of FTS5's query language.
func phrase(literal string) string { return `"` + strings.ReplaceAll(literal, `"`, `""`) + `"` }

// RegisterFunctions gives the connections that are opened from now on the functions
// that conditions call. It may be called any number of times.
func RegisterFunctions() error { return registerFunctions() }

var registerFunctions = sync.OnceValue(func() error {
	// Volatile: the arguments are views of SQLite's own memory, which is faster and, unlike
	// the driver's copies, does not end a TEXT at a NUL. Nothing below keeps them.
	for name, f := range map[string]*sqlite.FunctionImpl{
		"sandglass_match":   {NArgs: 2, Scalar: new(patterns).match},
		"sandglass_decimal": {NArgs: 1, Scalar: decimalFunction},
	} {
		f.Deterministic, f.VolatileArgs = true, true
		if err := sqlite.RegisterFunction(name, f); err != nil {
			return fmt.Errorf("register function %s: %w", name, err)
		}
	}
	return nil
})

// patterns remembers the patterns of the queries that run, so that each is decoded once
// and not for each row.
type patterns struct {
	mu  sync.RWMutex
	all map[string]*query.Pattern
}

const maxPatterns = 1024 // then all are forgotten: a query has at most query.MaxTerms

// match is sandglass_match(pattern, text): 1 when the text matches, 0 when not or NULL.
func (ps *patterns) match(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
	encoded, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("sandglass_match: the pattern is a %T", args[0])
	}
	p, err := ps.get(encoded)
	if err != nil {
		return nil, fmt.Errorf("sandglass_match: %w", err)
	}
	var is bool
	switch text := args[1].(type) {
	case string:
		is = p.Match(text)
	case []byte:
		is = p.Match(string(text))
	case nil:
	default:
		return nil, fmt.Errorf("sandglass_match: the text is a %T", text)
	}
	if is {
		return int64(1), nil
	}
	return int64(0), nil
}

func (ps *patterns) get(encoded string) (*query.Pattern, error) {
	ps.mu.RLock()
	p := ps.all[encoded]
	ps.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	encoded = strings.Clone(encoded)
	p, err := query.DecodePattern(encoded)
	if err != nil {
		return nil, err
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.all == nil || len(ps.all) >= maxPatterns {
		ps.all = make(map[string]*query.Pattern)
	}
	ps.all[encoded] = p
	return p, nil
}

// decimalFunction is sandglass_decimal(text): the number that the text is, or NULL.
func decimalFunction(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
	var s string
	switch text := args[0].(type) {
	case string:
		s = text
	case []byte:
		s = string(text)
	case nil:
		return nil, nil
	default:
		return nil, fmt.Errorf("sandglass_decimal: the text is a %T", text)
	}
	if n, ok := query.Decimal(s); ok {
		return n, nil
	}
	return nil, nil
}

package query

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sandglass/sandglass/core"
)

// Parse reads the text of a query. "" matches every operation. The error, if any, is
// an *[Error].
func Parse(text string, o Options) (*Query, error) {
	if len(text) > MaxLength {
		return nil, &Error{1, fmt.Sprintf("too long: %d bytes, at most %d", len(text), MaxLength), "ask for less, or use globs in the place of lists"}
	}
	p := parser{text: text, options: o}
	p.space()
	if p.end() {
		return &Query{}, nil
	}
	n, err := p.or()
	if err == nil && !p.end() { // only a ')' ends an or early
		err = p.fail(p.at, "no parenthesis is open here", `a ")" that is searched for is quoted: ")"`)
	}
	if err != nil {
		return nil, err
	}
	q := &Query{root: n}
	// What is written out grows: an hour becomes an absolute time, a byte becomes \xNN.
	if l := len(q.String()); l > MaxLength {
		return nil, &Error{1, fmt.Sprintf("too long: %d bytes once written out in full, at most %d", l, MaxLength), "ask for less, or use globs in the place of lists"}
	}
	if n.depth(false) > MaxDepth {
		return nil, p.tooDeep(0)
	}
	return q, nil
}

type parser struct {
	text    string
	at      int // the byte that is read next
	depth   int // parentheses and nots around it
	terms   int // values so far
	options Options
}

// fail makes the error for the byte at i.
func (p *parser) fail(i int, msg, hint string) *Error {
	return &Error{utf8.RuneCountInString(p.text[:i]) + 1, msg, hint}
}

func (p *parser) tooDeep(i int) *Error {
	return p.fail(i, fmt.Sprintf("more than %d parentheses and nots within one another", MaxDepth), "a list does without: pid:1,2,3")
}

func (p *parser) end() bool { return p.at >= len(p.text) }

// next returns the next byte; 0 at the end.
func (p *parser) next() byte {
	if p.end() {
		return 0
	}
	return p.text[p.at]
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func (p *parser) space() {
	for !p.end() && isSpace(p.text[p.at]) {
		p.at++
	}
}

// keyword returns "and", "or" or "not" when s is one, in lower or upper case.
func keyword(s string) string {
	switch s {
	case "and", "AND":
		return "and"
	case "or", "OR":
		return "or"
	case "not", "NOT":
		return "not"
	}
	return ""
}

// peekKeyword returns the keyword that is next, and where it ends.
func (p *parser) peekKeyword() (kw string, end int) {
	end = p.at
	for end < len(p.text) && !isSpace(p.text[end]) && p.text[end] != '(' && p.text[end] != ')' {
		end++
	}
	return keyword(p.text[p.at:end]), end
}

// or reads: and { "or" and }. Spaces before it are read, and so are those after it.
func (p *parser) or() (Node, error) {
	var nodes Or
	for {
		n, err := p.and()
		if err != nil {
			return nil, err
		}
		if o, ok := n.(Or); ok {
			nodes = append(nodes, o...)
		} else {
			nodes = append(nodes, n)
		}
		kw, end := p.peekKeyword()
		if kw != "or" {
			break
		}
		at := p.at
		p.at = end
		if p.space(); p.end() || p.next() == ')' {
			return nil, p.fail(at, `nothing follows this "or"`, `to search for the word, quote it: "or"`)
		}
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return nodes, nil
}

// and reads: not { ["and"] not }.
func (p *parser) and() (Node, error) {
	var nodes And
	for {
		n, err := p.not()
		if err != nil {
			return nil, err
		}
		if a, ok := n.(And); ok {
			nodes = append(nodes, a...)
		} else {
			nodes = append(nodes, n)
		}
		p.space()
		kw, end := p.peekKeyword()
		if kw == "and" {
			at := p.at
			p.at = end
			if p.space(); p.end() || p.next() == ')' {
				return nil, p.fail(at, `nothing follows this "and"`, `to search for the word, quote it: "and"`)
			}
			continue
		}
		if p.end() || p.next() == ')' || kw == "or" {
			break
		}
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return nodes, nil
}

// not reads: ("not" | "-") not | "(" or ")" | term.
func (p *parser) not() (Node, error) {
	at := p.at
	kw, end := p.peekKeyword()
	minus := p.next() == '-'
	if kw == "" && !minus && p.next() != '(' {
		if p.next() == ')' {
			return nil, p.fail(at, "a term is missing here", `a ")" that is searched for is quoted: ")"`)
		}
		return p.term()
	}
	if kw == "and" || kw == "or" {
		return nil, p.fail(at, fmt.Sprintf("nothing stands before this %q", kw), fmt.Sprintf("to search for the word, quote it: \"%s\"", kw))
	}
	if p.depth++; p.depth > MaxDepth {
		return nil, p.tooDeep(at)
	}
	defer func() { p.depth-- }()
	if p.next() == '(' {
		p.at++
		p.space()
		if p.next() == ')' {
			return nil, p.fail(at, "nothing is in these parentheses", "")
		}
		if p.end() {
			return nil, p.fail(at, "this parenthesis is never closed", "")
		}
		n, err := p.or()
		if err != nil {
			return nil, err
		}
		if p.next() != ')' {
			return nil, p.fail(at, "this parenthesis is never closed", "")
		}
		p.at++
		return n, nil
	}
	if minus {
		kw = "-"
		p.at++
	} else {
		p.at = end
		p.space()
	}
	if minus && p.next() == '-' {
		return nil, p.fail(at, `"--" is no operator`, `to search for text that begins with it, quote it: "--"`)
	}
	if p.end() || isSpace(p.next()) || p.next() == ')' {
		return nil, p.fail(at, fmt.Sprintf("nothing follows this %q", kw), fmt.Sprintf("to search for it, quote it: \"%s\"", kw))
	}
	n, err := p.not()
	if err != nil {
		return nil, err
	}
	return Not{n}, nil
}

// term reads: [field operator] values.
func (p *parser) term() (Node, error) {
	at := p.at
	name, op := p.fieldAndOperator()
	if op == "" {
		return p.word()
	}
	f, key, ok := fieldNamed(name)
	if !ok {
		return nil, p.unknownField(at, name)
	}
	if len(key) > 64 {
		return nil, p.fail(at, "a detail's key has at most 64 characters", "")
	}
	t := &Term{Field: f, Key: key}
	switch op {
	case ":", "=":
		// What others write: pid:>100.
		if k := f.Kind(); k == Number || k == Moment && f == Time || f == Detail {
			if o := p.operator("<"); o != "" {
				op = o
			}
		}
	}
	for i, o := range opText {
		if o == op {
			t.Op = Op(i)
		}
	}
	if err := p.checkOp(at, f, t.Op, op); err != nil {
		return nil, err
	}
	ordered := t.Op >= Less
	var spans []Node
	for {
		v, err := p.value(f, true)
		if err != nil {
			return nil, err
		}
		if p.terms++; p.terms > MaxTerms {
			return nil, p.fail(v.at, fmt.Sprintf("more than %d terms", MaxTerms), "ask for less, or use globs in the place of lists")
		}
		if f.Kind() == Moment {
			n, err := p.moment(f, t.Op, v)
			if err != nil {
				return nil, err
			}
			spans = append(spans, n)
		} else {
			x, err := p.typed(f, ordered, v)
			if err != nil {
				return nil, err
			}
			t.Values = append(t.Values, x)
		}
		if p.next() != ',' {
			break
		}
		if ordered || f == since || f == until {
			return nil, p.fail(p.at, fmt.Sprintf("a list cannot follow %s", name+op), "")
		}
		p.at++
	}
	if f.Kind() != Moment {
		return t, nil
	}
	var n Node = Or(spans)
	if len(spans) == 1 {
		n = spans[0]
	}
	if t.Op == IsNot {
		return Not{n}, nil
	}
	return n, nil
}

// fieldAndOperator reads a name and the operator after it; when they are not what
// comes next it reads nothing and returns "".
func (p *parser) fieldAndOperator() (name, op string) {
	start := p.at
	for !p.end() && nameByte(p.next()) {
		p.at++
	}
	name = p.text[start:p.at]
	if name == "" || name[0] == '.' || name[0] >= '0' && name[0] <= '9' {
		p.at = start
		return "", ""
	}
	if op = p.operator(":"); op == "" {
		p.at = start
		return "", ""
	}
	return name, op
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '.'
}

// operator reads an operator: from "<", a comparison only.
func (p *parser) operator(from string) string {
	ops := []string{"<=", ">=", "<", ">"}
	if from == ":" {
		ops = append(ops, "!=", ":", "=")
	}
	for _, o := range ops {
		if strings.HasPrefix(p.text[p.at:], o) {
			p.at += len(o)
			return o
		}
	}
	return ""
}

func (p *parser) checkOp(at int, f Field, op Op, text string) error {
	k := f.Kind()
	switch {
	case (f == since || f == until) && op != Is:
		return p.fail(at, fmt.Sprintf("%s is written with a ':'", f), fmt.Sprintf("%s:1h, or a comparison: time>=1h", f))
	case op >= Less && k != Number && k != Moment && f != Detail:
		return p.fail(at, fmt.Sprintf("%s is not ordered, %s cannot compare it", f, text), "pid, seq, time and details that are numbers can be compared; to search for the text, quote it")
	}
	return nil
}

func (p *parser) unknownField(at int, name string) error {
	hint := "fields: " + fieldNames() + "; to search for the text, quote it"
	if name == "detail" || name == "detail." {
		return p.fail(at, "detail needs a key", "such as detail.argv")
	}
	if f := nearest(name); f != "" {
		hint = fmt.Sprintf("did you mean %s? %s", f, hint)
	}
	return p.fail(at, fmt.Sprintf("there is no field %q", core.Shorten(name, 40)), hint)
}

// nearest returns the field that name is a slip of, "" when there is none.
func nearest(name string) string {
	for _, d := range fields {
		if f := strings.TrimSuffix(d.Name, "."); slip(f, strings.ToLower(name)) {
			return f
		}
	}
	return ""
}

// slip says that a and b are equal, or one letter was added, lost, changed or swapped
// with the next.
func slip(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) < len(b) {
		return len(b)-len(a) == 1 && a[i:] == b[i+1:]
	}
	if i == len(a) || a[i+1:] == b[i+1:] {
		return true
	}
	return i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
}

// word reads a term without a field.
func (p *parser) word() (Node, error) {
	at := p.at
	if op := p.operator(":"); op != "" {
		return nil, p.fail(at, fmt.Sprintf("no field stands before this %q", op), "a term has no spaces: pid>100; to search for the text, quote it")
	}
	v, err := p.value(Target, false)
	if err != nil {
		return nil, err
	}
	if p.terms++; p.terms > MaxTerms {
		return nil, p.fail(at, fmt.Sprintf("more than %d terms", MaxTerms), "ask for less, or use globs in the place of lists")
	}
	return &Term{Field: Target, Op: Contains, Values: []Value{{Pattern: newPattern(v.glob, anywhere)}}}, nil
}

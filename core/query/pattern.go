package query

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// Pattern is a value of a text field, made for matching. The zero value matches the
// empty string. It is read-only: any number of goroutines may use one.
type Pattern struct {
	glob   string  // * and ? stand for something; \ before a byte makes it that byte
	scope  scope   //
	chunks []chunk // what stands between the stars: n stars make n+1 chunks
}

// scope says what a pattern is held against.
type scope byte

const (
	whole    scope = 'w' // the string
	base     scope = 'b' // what follows its last '/'
	anywhere scope = 'a' // any part of it, A-Z equal to a-z
)

// chunk is a run of pieces without a star.
type chunk []piece

// piece is literal bytes, or, when they are "", any one character.
type piece string

// newPattern makes the pattern of glob, in which \ only stands before \, * and ?.
func newPattern(glob string, sc scope) *Pattern {
	p := &Pattern{glob: glob, scope: sc}
	var c chunk
	var lit []byte
	end := func() {
		if len(lit) > 0 {
			c = append(c, piece(lit))
			lit = lit[:0]
		}
	}
	star := func() {
		end()
		// Several stars in a row mean what one means.
		if n := len(p.chunks); n == 0 || len(c) > 0 {
			p.chunks = append(p.chunks, c)
		}
		c = nil
	}
	if sc == anywhere {
		star()
	}
	for i := 0; i < len(glob); i++ {
		switch b := glob[i]; {
		case b == '*':
			star()
			continue
		case b == '?':
			end()
			c = append(c, "")
			continue
		case b == '\\' && i+1 < len(glob):
			i++
		}
		b := glob[i]
		if sc == anywhere {
			b = lower(b)
		}
		lit = append(lit, b)
	}
	if sc == anywhere {
		star()
	}
	end()
	p.chunks = append(p.chunks, c)
	return p
}

// Match says whether s matches. It allocates nothing; at worst it costs the product
// of both lengths.
func (p *Pattern) Match(s string) bool {
	if p.scope == base {
		s = s[strings.LastIndexByte(s, '/')+1:]
	}
	fold := p.scope == anywhere
	if len(p.chunks) == 0 {
		return s == ""
	}
	last := len(p.chunks) - 1
	i, ok := p.chunks[0].matchAt(s, 0, fold)
	if !ok || last == 0 {
		return ok && i == len(s)
	}
	// Taking each chunk as early as it fits is enough: a chunk that begins later never
	// ends earlier, so whatever follows has the most room.
	for _, c := range p.chunks[1:last] {
		if i, ok = c.find(s, i, fold); !ok {
			return false
		}
	}
	c := p.chunks[last]
	if len(c) == 0 {
		return true
	}
	if len(c) == 1 && c[0] != "" {
		n := len(s) - len(c[0])
		return n >= i && equal(s[n:], string(c[0]), fold)
	}
	for ; i < len(s); i++ {
		if end, ok := c.matchAt(s, i, fold); ok && end == len(s) {
			return true
		}
	}
	return false
}

// find returns where c ends at the first place from i on where it matches.
func (c chunk) find(s string, i int, fold bool) (end int, ok bool) {
	for ; i <= len(s); i++ {
		if c[0] != "" {
			n := index(s[i:], string(c[0]), fold)
			if n < 0 {
				return 0, false
			}
			i += n
		}
		if end, ok := c.matchAt(s, i, fold); ok {
			return end, true
		}
	}
	return 0, false
}

func (c chunk) matchAt(s string, i int, fold bool) (end int, ok bool) {
	for _, p := range c {
		if p != "" {
			if len(s)-i < len(p) || !equal(s[i:i+len(p)], string(p), fold) {
				return 0, false
			}
			i += len(p)
			continue
		}
		if i >= len(s) || !boundary(s, i) {
			return 0, false
		}
		_, n := utf8.DecodeRuneInString(s[i:])
		i += n
	}
	return i, true
}

// boundary says that a character begins at s[i], which is every byte but those after
// the first of a valid sequence: so ? never takes a character apart.
func boundary(s string, i int) bool {
	if utf8.RuneStart(s[i]) {
		return true
	}
	for n := 1; n < utf8.UTFMax && n <= i; n++ {
		if utf8.RuneStart(s[i-n]) {
			_, size := utf8.DecodeRuneInString(s[i-n:])
			return size <= n
		}
	}
	return true
}

// index is strings.Index, where fold means that sub is in lower case and s in any.
func index(s, sub string, fold bool) int {
	if !fold {
		return strings.Index(s, sub)
	}
	for i, first := 0, sub[0]; i+len(sub) <= len(s); i++ {
		if lower(s[i]) == first && equal(s[i:i+len(sub)], sub, true) {
			return i
		}
	}
	return -1
}

// equal compares strings of the same length; fold as in index.
func equal(s, t string, fold bool) bool {
	if !fold {
		return s == t
	}
	for i := range len(s) {
		if lower(s[i]) != t[i] {
			return false
		}
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

// Literal returns the one string that matches, when there is only one.
func (p *Pattern) Literal() (s string, ok bool) {
	if p.scope != whole || len(p.chunks) > 1 {
		return "", false
	}
	if len(p.chunks) == 0 || len(p.chunks[0]) == 0 {
		return "", true
	}
	c := p.chunks[0]
	return string(c[0]), len(c) == 1 && c[0] != ""
}

// Prefix returns the prefix that all matching strings have, when nothing else is
// asked of them; "" when all strings match.
func (p *Pattern) Prefix() (s string, ok bool) {
	if len(p.chunks) != 2 || len(p.chunks[1]) > 0 {
		return "", false
	}
	c := p.chunks[0]
	switch {
	case len(c) == 0:
		return "", true
	case p.scope == whole && len(c) == 1 && c[0] != "":
		return string(c[0]), true
	}
	return "", false
}

// Longest returns the longest literal that every matching string contains, in some
// case of its ASCII letters; "" when there is none.
func (p *Pattern) Longest() string {
	var l piece
	for _, c := range p.chunks {
		for _, p := range c {
			if len(p) > len(l) {
				l = p
			}
		}
	}
	return string(l)
}

// Encode writes the pattern for [DecodePattern]: the way into a function of a
// database. It is not the text of a query.
func (p *Pattern) Encode() string { return string([]byte{byte(p.scope)}) + p.glob }

// DecodePattern is the inverse of [Pattern.Encode].
func DecodePattern(s string) (*Pattern, error) {
	if s == "" {
		return nil, errors.New("decode pattern: empty")
	}
	switch sc := scope(s[0]); sc {
	case whole, base, anywhere:
		return newPattern(s[1:], sc), nil
	}
	return nil, errors.New("decode pattern: unknown scope")
}

// writeGlob adds literal bytes to a glob.
func writeGlob(b *strings.Builder, literal string) {
	for i := range len(literal) {
		if c := literal[i]; c == '*' || c == '?' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(literal[i])
	}
}

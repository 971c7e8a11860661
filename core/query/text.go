package query

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sandglass/sandglass/core"
)

func (n And) write(b *strings.Builder, tight bool) { writeList(b, n, " ", tight) }
func (n Or) write(b *strings.Builder, tight bool)  { writeList(b, n, " or ", tight) }

func writeList(b *strings.Builder, nodes []Node, between string, tight bool) {
	if tight {
		b.WriteByte('(')
	}
	for i, k := range nodes {
		if i > 0 {
			b.WriteString(between)
		}
		// "or" binds less: an And within an Or needs no parentheses.
		k.write(b, between == " ")
	}
	if tight {
		b.WriteByte(')')
	}
}

func (n Not) write(b *strings.Builder, _ bool) {
	b.WriteString("not ")
	n.Node.write(b, true)
}

func (n And) depth(tight bool) int { return listDepth(n, true, tight) }
func (n Or) depth(tight bool) int  { return listDepth(n, false, tight) }
func (n Not) depth(bool) int       { return 1 + n.Node.depth(true) }
func (t *Term) depth(bool) int     { return 0 }

func listDepth(nodes []Node, and, tight bool) (d int) {
	for _, k := range nodes {
		d = max(d, k.depth(and))
	}
	if tight {
		d++
	}
	return d
}

func (t *Term) write(b *strings.Builder, _ bool) {
	if t.Op == Contains {
		t.Values[0].Pattern.write(b, true)
		return
	}
	b.WriteString(string(t.Field))
	if t.Field == Detail {
		b.WriteByte('.')
		b.WriteString(t.Key)
	}
	b.WriteString(opText[t.Op])
	for i, v := range t.Values {
		if i > 0 {
			b.WriteByte(',')
		}
		switch {
		case v.Pattern != nil:
			v.Pattern.write(b, false)
		case t.Field == Verdict:
			b.WriteString(core.Verdict(v.Int).String())
		case t.Field == Outcome:
			b.WriteString(core.Outcome(v.Int).String())
		case t.Field == Leak:
			b.WriteString(strconv.FormatBool(v.Int == 1))
		case t.Field == Time:
			b.WriteString(time.Unix(0, v.Int).UTC().Format(time.RFC3339Nano))
		default:
			b.WriteString(strconv.FormatInt(v.Int, 10))
		}
	}
}

// Quote returns s as a value that matches s and nothing else: "target:" + Quote(path)
// is a term for any path.
func Quote(s string) string {
	var g, b strings.Builder
	writeGlob(&g, s)
	newPattern(g.String(), whole).write(&b, false)
	return b.String()
}

// write adds the pattern as the text of a value; word says that it stands alone, with
// no field before it.
func (p *Pattern) write(b *strings.Builder, word bool) {
	if p.glob == "" {
		b.WriteString(`""`)
		return
	}
	start := b.Len()
	for g := p.glob; g != ""; {
		if g[0] == '*' || g[0] == '?' {
			b.WriteByte(g[0])
			g = g[1:]
			continue
		}
		var lit []byte
		for g != "" && g[0] != '*' && g[0] != '?' {
			if g[0] == '\\' && len(g) > 1 {
				g = g[1:]
			}
			lit = append(lit, g[0])
			g = g[1:]
		}
		if plain(string(lit), word, b.Len() == start) && !(word && b.Len() == start && g == "" && keyword(string(lit)) != "") {
			b.Write(lit)
		} else {
			writeQuoted(b, string(lit))
		}
	}
}

// plain says that s means itself without quotes.
func plain(s string, word, first bool) bool {
	if first && (s[0] == '~' || s[0] == '-' && word || strings.IndexByte("<>=", s[0]) >= 0) {
		return false
	}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1, !unicode.IsPrint(r):
			return false
		case strings.ContainsRune(` "\(),*?`, r), word && strings.ContainsRune(":=<>!", r):
			return false
		}
		i += n
	}
	return true
}

func writeQuoted(b *strings.Builder, s string) {
	b.WriteByte('"')
	for s != "" {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == utf8.RuneError && n == 1, !unicode.IsPrint(r):
			for i := range n {
				fmt.Fprintf(b, `\x%02x`, s[i])
			}
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	b.WriteByte('"')
}

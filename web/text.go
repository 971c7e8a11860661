package web

import (
	"context"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/a-h/templ"
)

// run is a piece of text: either what it says, or the escape of something that could
// not be shown as it is.
type run struct {
	text    string
	escaped bool
}

// maxMarks is how many combining marks may follow one another: the languages that use
// the most have three; hundreds would paint over the lines around them.
const maxMarks = 4

// visible splits s, arbitrary bytes, into what can be shown as it is and the escapes of
// the rest: bytes that are not UTF-8 and control bytes (\n, \x1b), and characters
// without a shape of their own, such as those that turn the direction of text
// (\u{202e}). A run of plain spaces longer than one, or at either end, is shown as
// \x20 so that no two different strings look alike.
//
// It takes time in proportion to s: a box chooses s, and every line of every window goes
// through here.
func visible(s string) []run {
	var runs []run
	plain, marks := 0, 0
	var escapes []byte // of the run that is being written; they follow one another
	flush := func() {
		if len(escapes) > 0 {
			runs = append(runs, run{string(escapes), true})
			escapes = escapes[:0]
		}
	}
	escape := func(from, to int, as string) {
		if plain < from {
			flush()
			runs = append(runs, run{text: s[plain:from]})
		}
		escapes = append(escapes, as...)
		plain = to
	}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			escape(i, i+1, byteEscape(s[i]))
		case r == '\n':
			escape(i, i+1, `\n`)
		case r == '\r':
			escape(i, i+1, `\r`)
		case r == '\t':
			escape(i, i+1, `\t`)
		case r < ' ' || r == 0x7f:
			escape(i, i+1, byteEscape(s[i]))
		case r == ' ' && (i == 0 || i == len(s)-1 || s[i-1] == ' '):
			escape(i, i+1, `\x20`)
		case unicode.Is(unicode.Mn, r) || unicode.Is(unicode.Me, r) || unicode.Is(unicode.Mc, r):
			marks++
			if marks > maxMarks || i == 0 || s[i-1] == '/' || plain == i {
				escape(i, i+n, fmt.Sprintf(`\u{%x}`, r))
			}
			i += n
			continue
		case !unicode.IsGraphic(r) || r != ' ' && unicode.IsSpace(r) || blank(r):
			escape(i, i+n, fmt.Sprintf(`\u{%x}`, r))
		}
		marks = 0
		i += n
	}
	flush()
	if plain < len(s) {
		runs = append(runs, run{text: s[plain:]})
	}
	return runs
}

// byteEscape is \xNN.
func byteEscape(c byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{'\\', 'x', digits[c>>4], digits[c&15]})
}

// blank says that r is a letter or symbol by its category and nothing on the screen.
func blank(r rune) bool {
	switch r {
	case 0x115f, 0x1160, 0x3164, 0xffa0, 0x2800, 0xfffc:
		return true
	}
	return false
}

// htmlWriter writes HTML and remembers the first error.
type htmlWriter struct {
	w   io.Writer
	err error
}

func (h *htmlWriter) raw(s string) {
	if h.err == nil {
		_, h.err = io.WriteString(h.w, s)
	}
}

func (h *htmlWriter) visible(s string) {
	for _, r := range visible(s) {
		if r.escaped {
			h.raw(`<span class="esc">` + templ.EscapeString(r.text) + `</span>`)
		} else {
			h.raw(templ.EscapeString(r.text))
		}
	}
}

// middle is s, made visible, with its middle cut out where it is longer than n characters
// on the page, or about that.
func (h *htmlWriter) middle(s string, n int) {
	head, tail, left := middle(s, fit(s, n))
	h.visible(head)
	if left > 0 {
		h.raw(`<span class="cut">…` + number(uint64(left)) + ` bytes…</span>`)
		h.visible(tail)
	}
}

// The components of hostile text are written by hand and not by templ, which adds white
// space between elements: here not even a space may be shown that is not in the text.

// shown is hostile text, made visible.
func shown(s string) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		h := htmlWriter{w: w}
		h.visible(s)
		return h.err
	})
}

// shownLine is a line of a file, with the spaces and tabs within it as they are: those at
// its end are shown, for a diff is often about them.
func shownLine(s string) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		h := htmlWriter{w: w}
		body := strings.TrimRight(s, " \t")
		for rest := body; rest != ""; {
			n := len(rest) - len(strings.TrimLeft(rest, " \t"))
			h.raw(rest[:n])
			rest = rest[n:]
			word := rest
			if i := strings.IndexAny(rest, " \t"); i >= 0 {
				word = rest[:i]
			}
			h.visible(word)
			rest = rest[len(word):]
		}
		h.visible(s[len(body):])
		return h.err
	})
}

// shownMiddle is hostile text of about n characters at most.
func shownMiddle(s string, n int) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		h := htmlWriter{w: w}
		h.middle(s, n)
		return h.err
	})
}

// pathShort is a path on one line: where there is no room, its folder gives way first.
func pathShort(s string) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		h := htmlWriter{w: w}
		dir, base := splitPath(s)
		h.raw(`<bdi class="path">`)
		if dir != "" {
			h.raw(`<span class="dir">`)
			h.middle(dir, 160)
			h.raw(`</span>`)
		}
		h.raw(`<span class="base">`)
		h.middle(base, 120)
		h.raw(`</span></bdi>`)
		return h.err
	})
}

// visibleText is visible in one string, for places that hold no elements: titles,
// labels.
func visibleText(s string) string {
	var b strings.Builder
	for _, r := range visible(s) {
		b.WriteString(r.text)
	}
	return b.String()
}

// cut keeps at most n bytes of s, whole characters, and says how many it left out.
func cut(s string, n int) (kept string, left int) {
	if len(s) <= n {
		return s, 0
	}
	k := n
	for k > n-utf8.UTFMax && k > 0 && !utf8.RuneStart(s[k]) {
		k--
	}
	return s[:k], len(s) - k
}

// width is how many bytes s takes when it is made visible.
func width(s string) (n int) {
	if printable(s) {
		return len(s)
	}
	for _, r := range visible(s) {
		n += len(r.text)
	}
	return n
}

// printable says whether s is printed ASCII alone.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// fit returns how many bytes of s take about n when they are made visible; n where all
// of them do not take more.
func fit(s string, n int) int {
	head, _ := cut(s, n)
	if w := width(head); w > n {
		return max(1, n*len(head)/w)
	}
	return n
}

// middle cuts s in its middle to about n bytes, so that both ends of a path are seen.
func middle(s string, n int) (head, tail string, left int) {
	if len(s) <= n {
		return s, "", 0
	}
	head, _ = cut(s, n/3)
	from := len(s) - (n - len(head))
	for from < len(s) && from > len(head) && !utf8.RuneStart(s[from]) && len(s)-from > n-len(head)-utf8.UTFMax {
		from++
	}
	return head, s[from:], from - len(head)
}

// splitPath cuts a path before its last part, which is what people look for.
func splitPath(s string) (dir, base string) {
	i := strings.LastIndexByte(strings.TrimRight(s, "/"), '/')
	return s[:i+1], s[i+1:]
}

// shellQuote returns s as one word of a POSIX shell, or of bash where it has bytes that
// cannot be seen: what a copy button gives is pasted into terminals.
func shellQuote(s string) string {
	safe := s != ""
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("/._-+:,@%=", c) >= 0) {
			safe = false
		}
	}
	switch {
	case safe:
		return s
	case !hidden(s):
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\'' || r == '\\':
			b.WriteByte('\\')
			b.WriteByte(s[i])
		case r >= ' ' && r < 0x7f || n > 1 && unicode.IsLetter(r) && !blank(r):
			b.WriteString(s[i : i+n])
		default:
			for _, c := range []byte(s[i : i+n]) {
				b.WriteString(byteEscape(c)) // two digits: bash reads no more
			}
		}
		i += n
	}
	b.WriteByte('\'')
	return b.String()
}

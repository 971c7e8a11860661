package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/sandglass/sandglass/core"
)

// printer is the one door through which sandglass writes to a terminal, a pipe or a file.
//
// Paths, arguments and names come from programs that may be hostile, and a terminal obeys
// what it is sent. So no string reaches the output but through clean or escape: no control
// character, no invalid UTF-8, nothing that reorders text. Layout (columns, colours,
// newlines) is the printer's own.
type printer struct {
	out    *bufio.Writer
	err    io.Writer
	tty    bool // standard output is a terminal
	errTTY bool // standard error is a terminal
	colour bool
	failed error // the first write that failed
}

func newPrinter(out, err *os.File) *printer {
	p := &printer{out: bufio.NewWriterSize(out, 64<<10), err: err, tty: term.IsTerminal(int(out.Fd())), errTTY: term.IsTerminal(int(err.Fd()))}
	p.colour = p.tty && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return p
}

// Line writes one line to standard output. Every string, error or Stringer among the
// arguments is cleaned; the format is ours.
func (p *printer) Line(format string, args ...any) {
	p.keep(fmt.Fprintf(p.out, format+"\n", cleaned(args)...))
}

// Note writes one line to standard error: progress, advice, what happened beside the result.
func (p *printer) Note(format string, args ...any) {
	p.out.Flush()
	fmt.Fprintf(p.err, "sandglass: "+format+"\n", cleaned(args)...)
}

// Alert is Note while the terminal is in the hands of a boxed program: it may be in raw
// mode, where a line ends with both characters.
func (p *printer) Alert(format string, args ...any) {
	end := "\n"
	if p.errTTY {
		end = "\r\n"
	}
	fmt.Fprintf(p.err, "sandglass: "+format+end, cleaned(args)...)
}

// Error writes what failed, and a line for each hint; of a policy's file each mistake, with
// the line it is in.
func (p *printer) Error(err error) {
	p.out.Flush()
	var pe *core.PolicyError
	if errors.As(err, &pe) {
		for i := range pe.Mistakes {
			p.mistake(pe, &pe.Mistakes[i])
		}
		return
	}
	fmt.Fprintf(p.err, "sandglass: %s\n", clean(oneLine(err.Error())))
	seen := map[string]bool{}
	for _, h := range core.Hints(err) {
		for h := range strings.Lines(h) {
			if h = strings.TrimSpace(h); h != "" && !seen[h] {
				seen[h] = true
				fmt.Fprintf(p.err, "hint: %s\n", clean(h))
			}
		}
	}
}

func (p *printer) mistake(e *core.PolicyError, m *core.Mistake) {
	fmt.Fprintf(p.err, "sandglass: policy %s: %s\n", clean(e.Where(m)), clean(oneLine(m.What)))
	for _, l := range m.Snippet() {
		fmt.Fprintf(p.err, "%s\n", clean(l))
	}
	for _, h := range m.Hints {
		fmt.Fprintf(p.err, "hint: %s\n", clean(oneLine(h)))
	}
}

// Progress shows how far something is, on one line of standard error that is written over;
// nothing when standard error is not a terminal. Done removes it.
func (p *printer) Progress(format string, args ...any) {
	if p.errTTY {
		fmt.Fprintf(p.err, "\r\x1b[K"+format, cleaned(args)...)
	}
}

func (p *printer) Done() {
	if p.errTTY {
		io.WriteString(p.err, "\r\x1b[K")
	}
}

// JSON writes v as one line of JSON.
func (p *printer) JSON(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	p.keep(p.out.Write(harmlessJSON(b.Bytes())))
	return nil
}

// rawJSON writes JSON that was encoded already as one line.
func (p *printer) rawJSON(b []byte) {
	p.keep(p.out.Write(harmlessJSON(b)))
	p.keep(0, p.out.WriteByte('\n'))
}

// patch writes a patch: to a terminal with every line cleaned and in its colour, else byte
// for byte, since patch(1) is to read it.
func (p *printer) patch(text []byte) {
	if !p.tty {
		p.keep(p.out.Write(text))
		return
	}
	for l := range bytes.Lines(text) {
		line, colour := clean(strings.ReplaceAll(strings.TrimSuffix(string(l), "\n"), "\t", "    ")), map[byte]string{'+': "32", '-': "31", '@': "36"}[l[0]]
		if p.colour && colour != "" {
			line = "\x1b[" + colour + "m" + line + "\x1b[0m"
		}
		p.keep(p.out.WriteString(line + "\n"))
	}
}

// Flush writes out what is buffered and returns the first error of any write.
func (p *printer) Flush() error {
	if err := p.out.Flush(); err != nil && p.failed == nil {
		p.failed = err
	}
	return p.failed
}

func (p *printer) keep(_ int, err error) {
	if err != nil && p.failed == nil {
		p.failed = err
	}
}

// Table writes rows below their headings, columns aligned. Cells are cleaned; a heading
// that begins with '>' aligns its column to the right.
func (p *printer) Table(head []string, rows [][]string) {
	right := make([]bool, len(head))
	width := make([]int, len(head))
	names := make([]string, len(head))
	for i, h := range head {
		names[i], right[i] = strings.CutPrefix(h, ">")
		width[i] = len(names[i])
	}
	for _, r := range rows {
		for i := range r {
			r[i] = clean(r[i])
			width[i] = max(width[i], utf8.RuneCountInString(r[i]))
		}
	}
	for _, r := range append([][]string{names}, rows...) {
		var b strings.Builder
		for i, c := range r {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			switch {
			case right[i]:
				b.WriteString(pad + c)
			case i == len(r)-1:
				b.WriteString(c)
			default:
				b.WriteString(c + pad)
			}
			if i < len(r)-1 {
				b.WriteString("  ")
			}
		}
		p.keep(p.out.WriteString(strings.TrimRight(b.String(), " ") + "\n"))
	}
}

// paint colours a verdict's word on a terminal. The word is there in any case.
func (p *printer) paint(v core.Verdict, leak bool, s string) string {
	if !p.colour {
		return s
	}
	switch {
	case leak:
		return "\x1b[33;1m" + s + "\x1b[0m"
	case v == core.Blocked:
		return "\x1b[31m" + s + "\x1b[0m"
	case v == core.Redirected:
		return "\x1b[34m" + s + "\x1b[0m"
	}
	return s
}

func cleaned(args []any) []any {
	for i, a := range args {
		switch a := a.(type) {
		case string:
			args[i] = clean(a)
		case painted:
			args[i] = string(a)
		case error:
			args[i] = clean(oneLine(a.Error()))
		case fmt.Stringer:
			args[i] = clean(a.String())
		}
	}
	return args
}

// painted is text that was cleaned already and carries colours of ours.
type painted string

// oneLine joins the lines of an error that a library wrote in several.
func oneLine(s string) string {
	if !strings.Contains(s, "\n") {
		return s
	}
	var parts []string
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" {
			parts = append(parts, l)
		}
	}
	return strings.Join(parts, "; ")
}

// clean makes s safe to print: whatever is not a printable character is written as Go
// would write it in a string (\n, \x1b, \u202e). It leaves backslashes alone, so that
// text that was quoted already is not quoted twice; see escape for what must stay exact.
func clean(s string) string { return makeSafe(s, false) }

// escape is clean for a string that must be readable exactly, such as a path: a backslash
// is doubled, so that two different strings never look the same.
func escape(s string) string { return makeSafe(s, true) }

func makeSafe(s string, backslash bool) string {
	i := 0
	for i < len(s) && s[i] >= ' ' && s[i] < 0x7f && !(backslash && s[i] == '\\') {
		i++
	}
	if i == len(s) {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:i])
	for i < len(s) {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\\' && backslash:
			b.WriteString(`\\`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !unicode.IsPrint(r) && r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// harmlessJSON writes the characters that encoding/json lets through and a terminal may
// obey (DEL, C1 controls, what reorders text) as \u escapes: the same JSON, of plain sight.
func harmlessJSON(b []byte) []byte {
	i := 0
	for i < len(b) && b[i] < 0x7f {
		i++
	}
	if i == len(b) {
		return b
	}
	out := append(make([]byte, 0, len(b)+64), b[:i]...)
	for i < len(b) {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out = append(out, b[i:i+n]...)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += n
	}
	return out
}

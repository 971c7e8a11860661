package layers

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/aymanbagabas/go-udiff"
)

// PatchOptions says how much a patch may cost and show. The zero value is the default.
type PatchOptions struct {
	MaxBytes int64 // of each version to be compared; 1 MiB when 0
	MaxLines int   // of the patch; 10000 when 0
	OldSize  int64 // of the whole versions, for the words of those that are larger
	NewSize  int64
}

func (o PatchOptions) limits() PatchOptions {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 1 << 20
	}
	if o.MaxLines <= 0 {
		o.MaxLines = 10000
	}
	return o
}

// Patch writes how two versions of a file differ: as a unified diff of text, which patch(1)
// takes; of other files the sizes and, in hexadecimal, where the first difference is. A nil
// version is that of a file that is not there. The names in it are quoted where they must be.
//
// What it reads and keeps is bounded by MaxBytes of each version, what it writes by MaxLines,
// and its time by both: of very different texts the comparison is not the shortest one, since
// it gives up after some differences (go-udiff's lcs). Versions that are larger differ from
// the first difference on, and that is all it says.
func Patch(w io.Writer, path string, before, after io.Reader, o PatchOptions) error {
	o = o.limits()
	was, wasMore, err := head(before, o.MaxBytes)
	if err != nil {
		return fmt.Errorf("read the real %s: %w", path, err)
	}
	is, isMore, err := head(after, o.MaxBytes)
	if err != nil {
		return fmt.Errorf("read the box's %s: %w", path, err)
	}
	out := bufio.NewWriter(w)
	from, to := label(path, before != nil), label(path, after != nil)
	switch {
	case wasMore || isMore || isBinary(was) || isBinary(is):
		fmt.Fprintf(out, "Binary or large files %s and %s differ", from, to)
		fmt.Fprintf(out, ": %d and %d bytes\n", size(was, wasMore, o.OldSize), size(is, isMore, o.NewSize))
		dumpDifference(out, was, is)
	default:
		edits := udiff.Lines(string(was), string(is))
		text, err := udiff.ToUnified(from, to, string(was), edits, udiff.DefaultContextLines)
		if err != nil {
			return fmt.Errorf("compare %s: %w", path, err)
		}
		writeLines(out, text, o.MaxLines)
	}
	return out.Flush()
}

// head reads at most limit bytes, and says whether there are more.
func head(r io.Reader, limit int64) (data []byte, more bool, err error) {
	if r == nil {
		return nil, false, nil
	}
	data, err = io.ReadAll(io.LimitReader(r, limit+1))
	if int64(len(data)) > limit {
		return data[:limit], true, err
	}
	return data, false, err
}

func size(data []byte, more bool, whole int64) int64 {
	if more && whole > int64(len(data)) {
		return whole
	}
	return int64(len(data))
}

// isBinary is git's rule for all that was read: a NUL makes a file no text.
func isBinary(data []byte) bool { return bytes.IndexByte(data, 0) >= 0 }

// label is a file's name in the head of a patch, as git quotes it.
func label(path string, there bool) string {
	if !there {
		return "/dev/null"
	}
	if strings.ContainsAny(path, "\"\\ \t") || strconv.Quote(path) != `"`+path+`"` {
		return quoteC(path)
	}
	return path
}

// quoteC quotes as git does: C's escapes, and other bytes in octal.
func quoteC(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func writeLines(w *bufio.Writer, text string, most int) {
	n := 0
	for l := range strings.Lines(text) {
		if n++; n > most {
			fmt.Fprintf(w, "... and %d more lines\n", strings.Count(text, "\n")-most)
			return
		}
		w.WriteString(l)
	}
}

// dumpLines is how many lines of 16 bytes are shown of each version.
const dumpLines = 8

// dumpDifference shows both versions from the line of the first difference on.
func dumpDifference(w *bufio.Writer, was, is []byte) {
	at := 0
	for at < len(was) && at < len(is) && was[at] == is[at] {
		at++
	}
	if at == len(was) && at == len(is) {
		fmt.Fprintf(w, "the first %d bytes are the same\n", at)
		return
	}
	at -= at % 16
	for _, v := range []struct {
		sign string
		data []byte
	}{{"-", was}, {"+", is}} {
		for i := at; i < min(len(v.data), at+16*dumpLines); i += 16 {
			row := v.data[i:min(i+16, len(v.data))]
			fmt.Fprintf(w, "%s%08x  %-47s  |%s|\n", v.sign, i, spaced(row), printable(row))
		}
	}
}

func spaced(row []byte) string {
	var b strings.Builder
	for i, c := range row {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(hex.EncodeToString([]byte{c}))
	}
	return b.String()
}

func printable(row []byte) string {
	out := bytes.Clone(row)
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = '.'
		}
	}
	return string(out)
}

package web

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	_ "image/gif" // the sizes of images are looked at before a browser gets them
	_ "image/jpeg"
	_ "image/png"
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/a-h/templ"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
	"github.com/sandglass/sandglass/core/settings"
)

const (
	sniffed    = 8 << 10  // of a file, to know what it is
	diffBytes  = 1 << 20  // of a diff
	diffLines  = 2000     // that a page shows
	lineBytes  = 2000     // of a line
	hexScan    = 32 << 20 // how far two binaries are compared
	hexRows    = 16
	hexWidth   = 16
	imageBytes = 16 << 20
	imagePixel = 40 << 20 // an image can be small and yet be more than a browser can hold
	versions   = 25
	maxXattrs  = 32

	settingRows = 500
)

// fileView is one path of a box, compared with the real system.
type fileView struct {
	path     string
	change   *core.Change // nil: the box's is the real one
	meta     []metaRow
	content  string // what there is to show: "text", "binary", "image", "settings", "same" or "" for none
	trouble  string // why the content cannot be shown
	lines    []diffLine
	cut      bool // the diff goes on
	hex      []hexRow
	hexNote  string
	settings []settings.Change
	was, is  string // addresses of images; "" where there is none
	versions []core.Operation
	more     bool // there are more versions, or may be
}

// metaRow is what lstat(2) says of both versions.
type metaRow struct {
	name, was, is string
}

func (m metaRow) differs() bool { return m.was != m.is }

// diffLine is a line of a unified diff: a context, an added, a removed one, or a heading.
type diffLine struct {
	kind     byte // ' ', '+', '-', '@' or '\\'
	old, new int  // numbers; 0 for none
	text     string
	left     int // bytes that are not shown
}

// hexRow is sixteen bytes of both versions.
type hexRow struct {
	at      int64
	was, is []byte
}

// onePath is the page of one path.
func (s *site) onePath(w http.ResponseWriter, r *http.Request, v filesView, f Files, p string) {
	if !cleanPath(p) || p == "/" || len(p) > 4096 {
		s.fail(w, r, http.StatusBadRequest, "This is no absolute path.", "")
		return
	}
	if f == nil {
		s.fail(w, r, http.StatusNotFound, "This box holds no files.", "")
		return
	}
	one := &fileView{path: p}
	v.file, v.dir = one, path.Dir(p)
	var err error
	if one.change, err = f.Change(r.Context(), p, v.at); err != nil {
		s.failFiles(w, r, err)
		return
	}
	if c := one.change; c != nil {
		one.meta = metaOf(r.Context(), f, c)
		if err := one.compare(r.Context(), f, &v); err != nil {
			one.content, one.trouble = "", errWords(err)
		}
	}
	if err := s.readVersions(r.Context(), &v); err != nil {
		s.failErr(w, r, err, "There is no box of that name.")
		return
	}
	s.render(w, r, http.StatusOK, filePage(s.member(r, path.Base(p)+" · "+v.box, ""), &v))
}

// readVersions lists when the box changed the path and what was there before was kept.
func (s *site) readVersions(ctx context.Context, v *filesView) error {
	q := ofPath(v.file.path)
	if q == "" {
		return nil
	}
	parsed, qerr := s.parseQuery("(" + q + " or " + string(query.Detail) + ".to:" + query.Quote(v.file.path) + ") detail.kept:* -detail.kept:no")
	if qerr != nil {
		return nil // twice the path is too long for a query
	}
	p, err := s.Source.Ops(ctx, parsed, v.box, "", 0, 0, versions)
	if err != nil {
		return fmt.Errorf("read versions: %w", err)
	}
	v.file.versions, v.file.more = p.Ops, p.More
	return nil
}

// before is the address of the path as it was before an operation.
func (v *filesView) before(op *core.Operation) string {
	w := *v
	w.at = op.Time.Add(-1)
	return w.fileURL(v.file.path)
}

func metaOf(ctx context.Context, f Files, c *core.Change) []metaRow {
	var rows []metaRow
	add := func(name string, of func(*core.FileState) string) {
		m := metaRow{name: name}
		if c.Was != nil {
			m.was = of(c.Was)
		}
		if c.Is != nil {
			m.is = of(c.Is)
		}
		if m.was != "" || m.is != "" {
			rows = append(rows, m)
		}
	}
	add("type", func(s *core.FileState) string { return string(s.Type) })
	add("size", func(s *core.FileState) string {
		if s.Type != core.TypeFile {
			return ""
		}
		return strconv.FormatInt(s.Size, 10) + plural(int(min(s.Size, 2)), " byte", " bytes")
	})
	add("mode", func(s *core.FileState) string {
		if s.Type == core.TypeSymlink {
			return ""
		}
		return modeText(s.Mode)
	})
	add("owner", func(s *core.FileState) string { return strconv.Itoa(s.UID) + ":" + strconv.Itoa(s.GID) })
	add("modified", func(s *core.FileState) string { return s.MTime.Local().Format("2006-01-02 15:04:05.000000000 -07:00") })
	add("names", func(s *core.FileState) string {
		if s.Links < 2 || s.Type == core.TypeDir {
			return ""
		}
		return strconv.FormatUint(s.Links, 10) + " (hard links)"
	})
	add("leads to", func(s *core.FileState) string { return s.Link })
	return append(rows, xattrRows(ctx, f, c)...)
}

func xattrRows(ctx context.Context, f Files, c *core.Change) (rows []metaRow) {
	var was, is map[string][]byte
	if c.Was != nil {
		was = f.Xattrs(ctx, c.Path, false)
	}
	if c.Is != nil {
		is = f.Xattrs(ctx, c.Path, true)
	}
	names := maps.Clone(was)
	if names == nil {
		names = map[string][]byte{}
	}
	maps.Copy(names, is)
	value := func(m map[string][]byte, n string) string {
		v, there := m[n]
		if !there {
			return ""
		}
		return strconv.Quote(core.Shorten(string(v), 200))
	}
	for i, n := range slices.Sorted(maps.Keys(names)) {
		if i == maxXattrs {
			break
		}
		rows = append(rows, metaRow{n, value(was, n), value(is, n)})
	}
	return rows
}

// modeText is a mode as ls and chmod write it.
func modeText(m uint32) string {
	const bits = "rwxrwxrwx"
	s := []byte(bits)
	for i := range s {
		if m&(1<<(8-i)) == 0 {
			s[i] = '-'
		}
	}
	for _, x := range []struct {
		bit uint32
		at  int
		ch  byte
	}{{0o4000, 2, 's'}, {0o2000, 5, 's'}, {0o1000, 8, 't'}} {
		if m&x.bit != 0 {
			if s[x.at] == '-' {
				x.ch -= 'a' - 'A'
			}
			s[x.at] = x.ch
		}
	}
	return fmt.Sprintf("%04o %s", m, s)
}

// compare reads what there is to show of both versions.
func (one *fileView) compare(ctx context.Context, f Files, v *filesView) error {
	c := one.change
	file := func(s *core.FileState) bool { return s != nil && s.Type == core.TypeFile }
	if !file(c.Was) && !file(c.Is) {
		return nil
	}
	if file(c.Was) && file(c.Is) && !slices.Contains(c.Parts, "content") && c.Unread == "" {
		one.content = "same"
		return nil
	}
	open := func(own bool, s *core.FileState) (io.ReadCloser, []byte, error) {
		if !file(s) {
			return io.NopCloser(strings.NewReader("")), nil, nil
		}
		r, err := f.Open(ctx, one.path, own, v.at)
		if err != nil {
			return nil, nil, err
		}
		head, err := io.ReadAll(io.LimitReader(r, sniffed))
		if err != nil {
			r.Close()
			return nil, nil, err
		}
		return reread{io.MultiReader(bytes.NewReader(head), r), r}, head, nil
	}
	if settings.Named(one.path) {
		if ok, err := one.compareSettings(open, file(c.Was), file(c.Is)); ok || err != nil {
			return err
		}
	}
	was, wasHead, err := open(false, c.Was)
	if err != nil {
		return err
	}
	defer func() { was.Close() }()
	is, isHead, err := open(true, c.Is)
	if err != nil {
		return err
	}
	defer func() { is.Close() }()

	picture := func(s *core.FileState, head []byte) bool { return !file(s) || imageType(head) != "" }
	switch {
	case picture(c.Was, wasHead) && picture(c.Is, isHead):
		one.content = "image"
		if file(c.Was) {
			one.was = v.imageURL(one.path, false)
		}
		if file(c.Is) {
			one.is = v.imageURL(one.path, true)
		}
		return nil
	case isText(wasHead) && isText(isHead):
		one.content = "text"
		out := limited{left: diffBytes}
		if err := f.Patch(&out, one.path, was, is); err != nil && !errors.Is(err, errEnough) {
			return err
		}
		one.lines, one.cut = parseDiff(out.Bytes())
		one.cut = one.cut || out.left == 0
		if len(one.lines) > 0 || out.Len() == 0 {
			return nil
		}
		// Text at its beginning, and binary or too large for a diff further on: from the start.
		for _, again := range []struct {
			own bool
			s   *core.FileState
			r   *io.ReadCloser
		}{{false, c.Was, &was}, {true, c.Is, &is}} {
			(*again.r).Close()
			if *again.r, _, err = open(again.own, again.s); err != nil {
				*again.r = io.NopCloser(strings.NewReader("")) // to be closed
				return err
			}
		}
	}
	one.content = "binary"
	one.hex, one.hexNote, err = firstDifference(was, is, file(c.Was) && file(c.Is))
	return err
}

// compareSettings reads both versions as databases of settings; ok is false when they are
// none that can be read.
func (one *fileView) compareSettings(open func(bool, *core.FileState) (io.ReadCloser, []byte, error), hasWas, hasIs bool) (ok bool, err error) {
	read := func(own bool, s *core.FileState, there bool) (settings.Database, bool, error) {
		if !there {
			return nil, true, nil
		}
		r, _, err := open(own, s)
		if err != nil {
			return nil, false, err
		}
		defer r.Close()
		data, err := io.ReadAll(io.LimitReader(r, settings.MaxFile+1))
		if err != nil {
			return nil, false, err
		}
		db, _, ok := settings.Decode(one.path, data)
		return db, ok, nil
	}
	was, ok, err := read(false, one.change.Was, hasWas)
	if !ok || err != nil {
		return false, err
	}
	is, ok, err := read(true, one.change.Is, hasIs)
	if !ok || err != nil {
		return false, err
	}
	one.content, one.settings = "settings", settings.Compare(was, is)
	if one.cut = len(one.settings) > settingRows; one.cut {
		one.settings = one.settings[:settingRows]
	}
	return true, nil
}

// reread reads what was read of a file already, then the rest.
type reread struct {
	io.Reader
	io.Closer
}

// isText says whether a file that begins with head is shown by lines, as git decides it.
func isText(head []byte) bool { return bytes.IndexByte(head, 0) < 0 }

// errEnough ends the writing of a diff that is longer than a page.
var errEnough = errors.New("enough")

// limited keeps the beginning of what is written to it.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.Buffer.Write(p[:n])
	if l.left -= n; n < len(p) {
		return n, errEnough
	}
	return n, nil
}

// parseDiff reads a unified diff of one file; cut says that there is more than a page
// shows.
func parseDiff(text []byte) (lines []diffLine, cutOff bool) {
	old, new, inside := 0, 0, false
	for len(text) > 0 {
		if len(lines) == diffLines {
			return lines, true
		}
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
		if h, ok := bytes.CutPrefix(line, []byte("@@ ")); ok {
			inside = true
			if _, err := fmt.Sscanf(string(h), "-%d", &old); err != nil {
				old = 1
			}
			if _, after, ok := bytes.Cut(h, []byte(" +")); !ok {
				new = 1
			} else if _, err := fmt.Sscanf(string(after), "%d", &new); err != nil {
				new = 1
			}
			lines = append(lines, diffLine{kind: '@', text: string(line)})
			continue
		}
		if !inside { // the names of the files
			continue
		}
		l := diffLine{kind: ' '}
		if len(line) > 0 {
			l.kind, line = line[0], line[1:]
		}
		switch l.kind {
		case '+':
			l.new, new = new, new+1
		case '-':
			l.old, old = old, old+1
		case '\\':
		default:
			l.kind = ' '
			l.old, l.new, old, new = old, new, old+1, new+1
		}
		l.text, l.left = cut(string(line), lineBytes)
		lines = append(lines, l)
	}
	return lines, false
}

// firstDifference returns the rows around the first byte in which two files differ; of one
// file alone, its first.
func firstDifference(was, is io.Reader, both bool) (rows []hexRow, note string, err error) {
	if !both {
		a, err := io.ReadAll(io.LimitReader(was, hexRows*hexWidth))
		if err != nil {
			return nil, "", err
		}
		b, err := io.ReadAll(io.LimitReader(is, hexRows*hexWidth))
		return hexTable(0, a, b), "The first bytes:", err
	}
	const chunk = 64 << 10
	a, b := make([]byte, chunk), make([]byte, chunk)
	for at := int64(0); at < hexScan; at += chunk {
		na, errA := readFull(was, a)
		nb, errB := readFull(is, b)
		if err := errors.Join(errA, errB); err != nil {
			return nil, "", err
		}
		if n := min(na, nb); na != nb || !bytes.Equal(a[:n], b[:n]) {
			i := 0
			for i < n && a[i] == b[i] {
				i++
			}
			from := max(0, i&^(hexWidth-1)-2*hexWidth)
			to := from + hexRows*hexWidth
			return hexTable(at+int64(from), a[min(from, na):min(to, na)], b[min(from, nb):min(to, nb)]),
				"The first difference is at byte " + number(uint64(at)+uint64(i)) + ":", nil
		}
		if na < chunk {
			return nil, "The same bytes.", nil
		}
	}
	return nil, "The first " + sizeText(hexScan) + " are the same; no more is compared here.", nil
}

// readFull reads until b is full or the file ends.
func readFull(r io.Reader, b []byte) (int, error) {
	n, err := io.ReadFull(r, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}

func hexTable(at int64, was, is []byte) (rows []hexRow) {
	for i := 0; i < max(len(was), len(is)); i += hexWidth {
		row := func(b []byte) []byte { return b[min(i, len(b)):min(i+hexWidth, len(b))] }
		rows = append(rows, hexRow{at + int64(i), row(was), row(is)})
	}
	return rows
}

// hexCell is a byte of a row, "" where the file has ended, and whether it differs.
func (h *hexRow) cell(own bool, i int) (text, char string, differs bool) {
	mine, other := h.was, h.is
	if own {
		mine, other = h.is, h.was
	}
	if i >= len(mine) {
		return "", "", false
	}
	char = "."
	if c := mine[i]; c > ' ' && c <= '~' {
		char = string(rune(c))
	}
	return hex.EncodeToString(mine[i : i+1]), char, len(h.was)+len(h.is) > len(mine) && (i >= len(other) || other[i] != mine[i])
}

// --- images ---

// imageTypes are those that browsers show as pictures and as nothing else: no SVG, which
// holds scripts.
var imageTypes = map[string]bool{"image/png": true, "image/jpeg": true, "image/gif": true, "image/webp": true}

// imageType returns the type of an image by its content; "" for what is none.
func imageType(head []byte) string {
	if t := http.DetectContentType(head); imageTypes[t] {
		return t
	}
	return ""
}

// imageURL is the address of the bytes of an image.
func (v *filesView) imageURL(p string, own bool) string {
	q := v.atValues()
	q.Set("path", p)
	if own {
		q.Set("own", "1")
	}
	return withValues(v.post("files/image"), q)
}

// fileImage answers with the bytes of an image that a box holds, or that is on the real
// system. What it sends is a picture for the browser and nothing else, whatever is in it:
// the type is by content and final, and as a page of its own it can do nothing.
func (s *site) fileImage(w http.ResponseWriter, r *http.Request) {
	v, f, err := s.readFiles(r)
	q := r.URL.Query()
	if err == nil {
		err = s.readAt(r.Context(), &v, q)
	}
	p, own := q.Get("path"), q.Get("own") == "1"
	if err != nil || f == nil || !cleanPath(p) {
		http.Error(w, "no such image", http.StatusNotFound)
		return
	}
	// Only what differs: this is no way to read any file of the system.
	if c, err := f.Change(r.Context(), p, v.at); err != nil || c == nil {
		http.Error(w, "no such image", http.StatusNotFound)
		return
	}
	file, err := f.Open(r.Context(), p, own, v.at)
	if err != nil {
		http.Error(w, "no such image", http.StatusNotFound)
		return
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, imageBytes+1))
	kind := imageType(data)
	switch {
	case err != nil || kind == "":
		http.Error(w, "not an image", http.StatusUnsupportedMediaType)
		return
	case len(data) > imageBytes || pixels(data, kind) > imagePixel:
		http.Error(w, "too large to be shown", http.StatusRequestEntityTooLarge)
		return
	}
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("Content-Disposition", "inline")
	h.Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data) // a browser that went away
}

// pixels returns how many pixels an image has by its own account; more than any browser
// shows where it has none.
func pixels(data []byte, kind string) int64 {
	if kind == "image/webp" {
		return webpPixels(data)
	}
	c, _, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return 1 << 62
	}
	return int64(c.Width) * int64(c.Height)
}

// webpPixels reads the size of a WebP image
// (https://developers.google.com/speed/webp/docs/riff_container).
func webpPixels(b []byte) int64 {
	if len(b) < 30 {
		return 1 << 62
	}
	u := func(at, n int) (v int64) {
		for i := range n {
			v |= int64(b[at+i]) << (8 * i)
		}
		return v
	}
	switch string(b[12:16]) {
	case "VP8X":
		return (u(24, 3) + 1) * (u(27, 3) + 1)
	case "VP8L":
		return (u(21, 4)&0x3fff + 1) * (u(21, 4)>>14&0x3fff + 1)
	case "VP8 ":
		return (u(26, 2) & 0x3fff) * (u(28, 2) & 0x3fff)
	}
	return 1 << 62
}

// atField is the value of the field for a time.
func (v *filesView) atField() string {
	if v.at.IsZero() {
		return ""
	}
	return v.at.Local().Format("2006-01-02T15:04:05")
}

// endOfLine says what is hidden at the end of a line that was cut.
func endOfLine(left int) string { return "…" + number(uint64(left)) + " bytes more" }

// hexCells writes the bytes of one side of a row, and the characters that they stand for.
func hexCells(h *hexRow, own bool) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		out := htmlWriter{w: w}
		var chars strings.Builder
		for i := range hexWidth {
			text, char, differs := h.cell(own, i)
			open, end := "", ""
			if differs {
				open, end = "<mark>", "</mark>"
			}
			if text == "" {
				text, char, open, end = "  ", " ", "", ""
			}
			out.raw(open + text + end)
			if i < hexWidth-1 {
				out.raw(" ")
			}
			chars.WriteString(open + templ.EscapeString(char) + end)
		}
		out.raw(`<span class="chars" aria-hidden="true">` + chars.String() + `</span>`)
		return out.err
	})
}

// baseName is the last part of a path.
func baseName(p string) string { return path.Base(p) }

// typeWord names what a path is where that is no file.
func typeWord(c *core.Change) string {
	if s := stateOf(c); s.Type != core.TypeFile {
		return string(s.Type)
	}
	return ""
}

func diffClass(kind byte) string {
	switch kind {
	case '+':
		return "plus"
	case '-':
		return "minus"
	case '\\':
		return "aside"
	}
	return "same"
}

func signText(kind byte) string {
	switch kind {
	case '+':
		return "+"
	case '-':
		return "−"
	}
	return ""
}

func lineNumber(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// current is the aria-current of a link.
func current(here bool) string {
	if here {
		return "page"
	}
	return "false"
}

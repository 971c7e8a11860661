package web

import (
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"github.com/sandglass/sandglass/core"
)

const (
	maxDetails  = 24 // of one operation that a page shows
	maxSurfaces = 80 // rows of the counters
)

// further is where a search goes on that stopped.
func (v boxView) further() string {
	if v.after != 0 {
		return v.newer
	}
	return v.older
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func pressed(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

// liveState is what the sign of life says before the event stream is connected.
func liveState(c chrome) string {
	if c.stale != "" {
		return "stale"
	}
	return "off"
}

// domID makes an element's id of any text.
func domID(s string) string { return hex.EncodeToString([]byte(s)) }

// visibleQuery is the query for the field in which it is typed: bytes that the field
// could not hold are shown as escapes.
func (v boxView) visibleQuery() string {
	s := v.text
	if v.err == nil && hidden(s) {
		return v.query.String() // the language's own escapes
	}
	var b strings.Builder
	for _, r := range visible(s) {
		b.WriteString(strings.ReplaceAll(r.text, `\x20`, " "))
	}
	return b.String()
}

// hidden says whether s has anything that is not shown as it is, but for spaces.
func hidden(s string) bool {
	for _, r := range visible(s) {
		if r.escaped && strings.ReplaceAll(r.text, `\x20`, "") != "" {
			return true
		}
	}
	return false
}

// around splits text at a column, which counts characters from 1.
func around(text string, col int) (before, at, after string) {
	i := 0
	for n := 1; n < col && i < len(text); n++ {
		_, size := utf8.DecodeRuneInString(text[i:])
		i += size
	}
	if i >= len(text) {
		return text, "", ""
	}
	_, size := utf8.DecodeRuneInString(text[i:])
	before, at, after = text[:i], text[i:i+size], text[i+size:]
	if len(before) > 200 {
		before = before[len(before)-200:]
	}
	after, _ = cut(after, 200)
	return before, at, after
}

// colonFor ends a field's name in the list of fields.
func colonFor(field string) string {
	if strings.HasSuffix(field, ".") {
		return "KEY:"
	}
	return ":"
}

func firstKeys(d core.Detail) []string {
	ks := d.Keys()
	return ks[:min(len(ks), maxDetails)]
}

func firstCounts(c []core.SurfaceCount) []core.SurfaceCount { return c[:min(len(c), maxSurfaces)] }

func shownProcs(rows []procRow) (n int) {
	for _, r := range rows {
		n += r.times
	}
	return n
}

func procTitle(p procRow) string {
	s, _ := cut(p.Exe, 300)
	return visibleText(s)
}

// saidRole has a failure interrupt who listens to the page.
func saidRole(c chrome) string {
	if c.saidBad {
		return "alert"
	}
	return "status"
}

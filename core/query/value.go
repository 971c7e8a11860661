package query

import (
	"fmt"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
)

// rawValue is a value as it was read, before its field gives it a meaning.
type rawValue struct {
	at   int    // where it begins
	glob string // with \ before each *, ? and \ that means itself
	wild bool   // there is a * or ? that does not
}

// text is the value of a field that takes no wildcards.
func (v rawValue) text() string { s, _ := newPattern(v.glob, whole).Literal(); return s }

// value reads a value: quoted and unquoted parts without a space between them.
func (p *parser) value(f Field, list bool) (v rawValue, err error) {
	v.at = p.at
	var b strings.Builder
	if f.path() && p.next() == '~' && (p.at+1 == len(p.text) || strings.IndexByte("/) \t\r\n", p.text[p.at+1]) >= 0 || list && p.text[p.at+1] == ',') {
		if !strings.HasPrefix(p.options.Home, "/") {
			return v, p.fail(p.at, "no home folder is known here that ~ could stand for", `write the path in full; a "~" itself is quoted`)
		}
		p.at++
		home := strings.TrimRight(p.options.Home, "/")
		if home == "" && p.next() != '/' {
			home = "/"
		}
		writeGlob(&b, home)
	}
	quoted, starred := false, -1 // starred: how long the glob was just after a star
	for !p.end() {
		switch c := p.next(); {
		case isSpace(c), c == ')', c == ',' && list:
			goto done
		case c == '(':
			return v, p.fail(p.at, `a "(" stands inside a value`, `quote it, or put a space before it`)
		case c == '"':
			quoted = true
			if err := p.quoted(&b); err != nil {
				return v, err
			}
			continue
		case c == '\\':
			if err := p.escape(&b); err != nil {
				return v, err
			}
			continue
		default:
			v.wild = v.wild || c == '*' || c == '?'
			if c != '*' || starred != b.Len() { // several in a row mean what one means
				b.WriteByte(c)
			}
			if c == '*' {
				starred = b.Len()
			}
			p.at++
		}
	}
done:
	if b.Len() == 0 && !quoted {
		return v, p.fail(v.at, "a value is missing here", `an empty one is written ""`)
	}
	v.glob = b.String()
	return v, nil
}

// quoted reads "..." and adds it to a glob.
func (p *parser) quoted(b *strings.Builder) error {
	at := p.at
	p.at++
	for !p.end() {
		switch p.next() {
		case '"':
			p.at++
			return nil
		case '\\':
			if err := p.escape(b); err != nil {
				return err
			}
		default:
			writeGlob(b, p.text[p.at:p.at+1])
			p.at++
		}
	}
	return p.fail(at, "this quote is never closed", `a quote that is searched for is written \"`)
}

// escape reads \ and what it stands before, and adds it to a glob.
func (p *parser) escape(b *strings.Builder) error {
	const hint = `\n, \r, \t, \xNN for a byte, or \ before what is neither letter nor digit`
	at := p.at
	p.at++
	if p.end() {
		return p.fail(at, `nothing follows this \`, `a \ itself is written \\`)
	}
	c := p.next()
	p.at++
	switch {
	case c == 'n':
		c = '\n'
	case c == 'r':
		c = '\r'
	case c == 't':
		c = '\t'
	case c == 'x':
		var hi, lo byte
		ok := p.at+2 <= len(p.text)
		if ok {
			hi, ok = hex(p.text[p.at])
		}
		if ok {
			lo, ok = hex(p.text[p.at+1])
		}
		if !ok {
			return p.fail(at, `two hexadecimal digits must follow \x`, hint)
		}
		c = hi<<4 | lo
		p.at += 2
	case nameByte(c) && c != '.' && c != '-' && c != '_':
		return p.fail(at, fmt.Sprintf(`\%c has no meaning`, c), hint)
	}
	writeGlob(b, string([]byte{c}))
	return nil
}

func hex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// typed gives a value the meaning that its field does; ordered says that it is
// compared as a number.
func (p *parser) typed(f Field, ordered bool, v rawValue) (Value, error) {
	k := f.Kind()
	if k == Text && !ordered {
		sc := whole
		if f == Exe && v.glob != "" && strings.IndexByte(v.glob, '/') < 0 {
			sc = base
		}
		return Value{Pattern: newPattern(v.glob, sc)}, nil
	}
	if v.wild {
		return Value{}, p.fail(v.at, fmt.Sprintf("%s takes no * or ?", f), "")
	}
	s := v.text()
	switch k {
	case Name:
		if f == Outcome {
			if o, err := core.ParseOutcome(s); err == nil {
				return Value{Int: int64(o)}, nil
			}
		} else if v, err := core.ParseVerdict(s); err == nil {
			return Value{Int: int64(v)}, nil
		}
		return Value{}, p.fail(v.at, fmt.Sprintf("there is no %s %q", f, core.Shorten(s, 40)), "one of "+strings.Join(valuesOf(f), ", "))
	case Flag:
		switch s {
		case "true", "yes", "1":
			return Value{Int: 1}, nil
		case "false", "no", "0":
			return Value{Int: 0}, nil
		}
		return Value{}, p.fail(v.at, fmt.Sprintf("%s is true or false, not %q", f, core.Shorten(s, 40)), "")
	}
	n, ok := Decimal(s)
	if !ok || n < 0 && f != Detail {
		return Value{}, p.fail(v.at, fmt.Sprintf("%s is compared with a whole number, not %q", f, core.Shorten(s, 40)), "")
	}
	return Value{Int: n}, nil
}

func valuesOf(f Field) []string {
	for _, d := range fields {
		if d.Name == string(f) {
			return d.Values
		}
	}
	return nil
}

// moment makes the comparison of the time that f, op and v ask for.
func (p *parser) moment(f Field, op Op, v rawValue) (Node, error) {
	const hint = "such as 90s, 1h30m, 2d, 10:15, 2026-11-23, 2026-11-23T10:15:30Z, today"
	if v.wild {
		return nil, p.fail(v.at, "a time takes no * or ?", hint)
	}
	s := v.text()
	sp, ok := readSpan(s, p.options.Now)
	if !ok {
		return nil, p.fail(v.at, fmt.Sprintf("%q is not a time", core.Shorten(s, 40)), hint)
	}
	// Beyond these years the nanoseconds since 1970 do not fit 64 bits.
	if y := sp.start.UTC().Year(); y < 1678 || y > 2261 || sp.end.UTC().Year() > 2261 {
		return nil, p.fail(v.at, fmt.Sprintf("%q is not between the years 1678 and 2261", core.Shorten(s, 40)), "")
	}
	from := &Term{Field: Time, Op: GreaterEq, Values: []Value{{Int: sp.start.UnixNano()}}}
	to := &Term{Field: Time, Op: Less, Values: []Value{{Int: sp.end.UnixNano()}}}
	switch {
	case f == since, op == GreaterEq:
		return from, nil
	case op == Less, f == until && sp.instant:
		from.Op = Less
		return from, nil
	case f == until, op == LessEq:
		return to, nil
	case op == Greater:
		to.Op = GreaterEq
		return to, nil
	}
	if p.terms++; p.terms > MaxTerms { // it becomes two
		return nil, p.fail(v.at, fmt.Sprintf("more than %d terms", MaxTerms), "ask for less, or use globs in the place of lists")
	}
	return And{from, to}, nil
}

// span is all that a time stands for: from start to before end.
type span struct {
	start, end time.Time
	instant    bool // it was said as one point in time, not as what contains it
}

func readSpan(s string, now time.Time) (span, bool) {
	day := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	switch s {
	case "now":
		return instant(now), true
	case "today":
		return span{start: day, end: day.AddDate(0, 0, 1)}, true
	case "yesterday":
		return span{start: day.AddDate(0, 0, -1), end: day}, true
	}
	if d, ok := readDuration(s); ok {
		return instant(now.Add(-d)), true
	}
	if t, err := time.ParseInLocation(time.DateOnly, s, now.Location()); err == nil {
		return span{start: t, end: t.AddDate(0, 0, 1)}, true
	}
	// The parser of times takes a fraction after seconds though no layout has one.
	for _, zone := range []string{"", "Z07:00"} {
		for _, clock := range []string{"15:04", "15:04:05"} {
			for _, date := range []string{"", "2006-01-02T", "2006-01-02 "} {
				if date == "" && zone != "" {
					continue
				}
				t, err := time.ParseInLocation(date+clock+zone, s, now.Location())
				if err != nil {
					continue
				}
				if date == "" {
					t = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), now.Location())
				}
				length := time.Minute
				if clock == "15:04:05" {
					length = time.Second
				}
				if _, fraction, ok := strings.Cut(strings.Replace(s, ",", ".", 1), "."); ok {
					digits := 0
					for digits < len(fraction) && '0' <= fraction[digits] && fraction[digits] <= '9' {
						digits++
					}
					for range min(digits, 9) {
						length /= 10
					}
				}
				return span{start: t, end: t.Add(length), instant: length == time.Nanosecond}, true
			}
		}
	}
	return span{}, false
}

func instant(t time.Time) span { return span{start: t, end: t.Add(1), instant: true} }

// readDuration reads spans of time such as 1h30m and 2d, up to 100 years.
func readDuration(s string) (d time.Duration, ok bool) {
	const most = 100 * 366 * 24 * time.Hour
	for s != "" {
		var n time.Duration
		i := 0
		for ; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
			if n = n*10 + time.Duration(s[i]-'0'); n > most {
				return 0, false
			}
		}
		j := i
		for j < len(s) && 'a' <= s[j] && s[j] <= 'z' {
			j++
		}
		var unit time.Duration
		switch s[i:j] {
		case "ms":
			unit = time.Millisecond
		case "s":
			unit = time.Second
		case "m":
			unit = time.Minute
		case "h":
			unit = time.Hour
		case "d":
			unit = 24 * time.Hour
		case "w":
			unit = 7 * 24 * time.Hour
		}
		if i == 0 || unit == 0 || n > most/unit {
			return 0, false
		}
		if d += n * unit; d > most {
			return 0, false
		}
		s, ok = s[j:], true
	}
	return d, ok
}

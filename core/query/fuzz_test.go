package query_test

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

// FuzzParse holds for any text: it is read or refused with a place in it, what was read
// survives being written, both mean the same, and nothing panics.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "verdict:blocked surface:net.* exe:curl since:1h", `target:~/.ssh/* or target:"/my files"/*.kdbx`,
		"(pid>100 or seq<=20) not errno:ENOENT -leak:true detail.argv:*--force*", `target:"\xff\x00"?*`, "a,b !x ~ ~/",
		"time:2026-11-23,10:15 until:today time!=2026-11-23T10:15:30.5+01:00", "pid:>=1 detail.code<-3", `"and" or "not"`,
		"not(not(a))", "a b or c (d or e)", "\u202e é*?", "verdict:blocked,redirected", "since:1w2d3h4m5s6ms", "outcome!=refused",
	} {
		f.Add(s, "/home/ann/.ssh/id_rsa")
	}
	f.Fuzz(func(t *testing.T, text, target string) {
		query.Complete(text)
		q, err := query.Parse(text, opts)
		if err != nil {
			var e *query.Error
			if !errors.As(err, &e) || e.Msg == "" || e.Col < 1 || e.Col > utf8.RuneCountInString(text)+1 {
				t.Fatalf("%q: %#v", text, err)
			}
			return
		}
		roundTrip(t, q)
		op := anOperation()
		op.Target = target
		r := parse(t, q.String())
		if q.Match(op) != r.Match(op) {
			t.Fatalf("%q and %q disagree on %q", text, q, target)
		}
	})
}

// FuzzQuote holds for any bytes: quoted, they are a value that matches them alone.
func FuzzQuote(f *testing.F) {
	f.Add("/tmp/a b", "/tmp/a b")
	f.Add("a*\\?\"~", "ab")
	f.Add("\xff\n", "\xff\n")
	f.Fuzz(func(t *testing.T, s, other string) {
		if len(s) > query.MaxLength/4-20 {
			return
		}
		q := parse(t, "target:"+query.Quote(s))
		if !q.Match(&core.Operation{Target: s}) || q.Match(&core.Operation{Target: other}) != (s == other) {
			t.Fatalf("%q as a value: %s, against %q", s, q, other)
		}
		roundTrip(t, q)
	})
}

// FuzzPattern holds a pattern against the plainest way to match one.
func FuzzPattern(f *testing.F) {
	for _, s := range [][2]string{{"*a?b*", "xxaébyy"}, {"??", "€"}, {"*??", "€"}, {"?\x82*", "€\x82"}, {"*?a", "aaa"}, {"a*a", "a"}, {"", ""}, {"*\xac", "€"}, {"*ab*abc", "ababc"}, {`\**\?`, "*?"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, glob, s string) {
		if len(glob) > 30 || len(s) > 60 || strings.Count(glob, "*") > 4 {
			return
		}
		for _, scope := range []string{"w", "b", "a"} {
			p, err := query.DecodePattern(scope + glob)
			if err != nil {
				t.Fatal(err)
			}
			g, in := glob, s
			switch scope {
			case "b":
				in = s[strings.LastIndex(s, "/")+1:]
			case "a":
				// A \ at the end stands for itself, which a star behind it would change.
				if strings.HasSuffix(strings.ReplaceAll(g, `\\`, ""), `\`) {
					g += `\`
				}
				g, in = "*"+asciiLower(g)+"*", asciiLower(s)
			}
			want := plainMatch(g, in, 0)
			if got := p.Match(s); got != want {
				t.Fatalf("%s %q against %q: %v, want %v", scope, glob, s, got, want)
			}
			if l, ok := p.Literal(); ok && (s == l) != want {
				t.Fatalf("literal %q of %q", l, glob)
			}
			if l, ok := p.Prefix(); ok && strings.HasPrefix(s, l) != want {
				t.Fatalf("prefix %q of %q", l, glob)
			}
			if want && !strings.Contains(asciiLower(s), asciiLower(p.Longest())) {
				t.Fatalf("%q matches %q, which does not contain %q", glob, s, p.Longest())
			}
			if d, err := query.DecodePattern(p.Encode()); err != nil || d.Match(s) != want {
				t.Fatalf("%q does not survive being encoded", glob)
			}
		}
	})
}

// plainMatch says whether s from i on matches glob, trying everything.
func plainMatch(glob, s string, i int) bool {
	if glob == "" {
		return i == len(s)
	}
	switch c := glob[0]; {
	case c == '*':
		for j := i; j <= len(s); j++ {
			if plainMatch(glob[1:], s, j) {
				return true
			}
		}
		return false
	case c == '?':
		// The characters of s from its start on: ? takes one of them, whole.
		for at := 0; at < len(s); {
			_, n := utf8.DecodeRuneInString(s[at:])
			if at == i {
				return plainMatch(glob[1:], s, i+n)
			}
			at += n
		}
		return false
	case c == '\\' && len(glob) > 1:
		glob = glob[1:]
	}
	return i < len(s) && s[i] == glob[0] && plainMatch(glob[1:], s, i+1)
}

func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return string(b)
}

func BenchmarkMatch(b *testing.B) {
	for _, text := range []string{"verdict:blocked", "ssh", "target:/home/*", "exe:curl", "target:*/.ssh/*.pub", "surface:net.* since:1h (pid>100 or leak:true)"} {
		b.Run(text, func(b *testing.B) {
			q, op := parse(b, text), anOperation()
			b.ReportAllocs()
			for b.Loop() {
				q.Match(op)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		parse(b, "verdict:blocked,redirected surface:net.* exe:curl since:1h (pid>100 or -leak:true)")
	}
}

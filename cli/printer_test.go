package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestWhatABoxControlsCannotMoveTheCursor(t *testing.T) {
	for _, c := range []struct{ name, in, clean, escape string }{
		{"plain text stays", "/home/me/ä.txt", "/home/me/ä.txt", "/home/me/ä.txt"},
		{"an escape sequence is shown", "\x1b[2J", `\x1b[2J`, `\x1b[2J`},
		{"a newline does not make a line", "a\nb", `a\nb`, `a\nb`},
		{"bytes that are not UTF-8", "a\xff", `a\xff`, `a\xff`},
		{"a C1 control", "\u009b2J", `\u009b2J`, `\u009b2J`},
		{"text that runs backwards", "gnp.\u202eexe", `gnp.\u202eexe`, `gnp.\u202eexe`},
		{"a tag character", "\U000e0041", `\U000e0041`, `\U000e0041`},
		{"a backslash", `a\n`, `a\n`, `a\\n`},
		{"DEL", "\x7f", `\x7f`, `\x7f`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := clean(c.in); got != c.clean {
				t.Errorf("clean(%q) = %s, want %s", c.in, got, c.clean)
			}
			if got := escape(c.in); got != c.escape {
				t.Errorf("escape(%q) = %s, want %s", c.in, got, c.escape)
			}
		})
	}
}

func FuzzNoStringReachesATerminalUnescaped(f *testing.F) {
	for _, s := range []string{"", "\x1b]52;c;aGk=\a", "a\\\xc3", "\u2028", "\U0010ffff", "é\u0301"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, out := range []string{clean(s), escape(s)} {
			if !utf8.ValidString(out) {
				t.Fatalf("%q became invalid UTF-8: %q", s, out)
			}
			if i := strings.IndexFunc(out, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
				t.Fatalf("%q lets %q through", s, out[i:])
			}
		}
		j, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		safe := harmlessJSON(j)
		if i := strings.IndexFunc(string(safe), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Fatalf("JSON of %q lets %q through", s, safe[i:])
		}
		var before, after string
		if json.Unmarshal(j, &before) != nil || json.Unmarshal(safe, &after) != nil || before != after {
			t.Fatalf("JSON of %q changed: %s became %s", s, j, safe)
		}
	})
}

func FuzzEscapeKeepsStringsApart(f *testing.F) {
	f.Add("a\n", `a\n`)
	f.Add("\xff", `\xff`)
	f.Fuzz(func(t *testing.T, a, b string) {
		if a != b && escape(a) == escape(b) {
			t.Fatalf("%q and %q look the same: %s", a, b, escape(a))
		}
	})
}

package web

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"/plain/path.txt":    "/plain/path.txt",
		"":                   "",
		"a b":                "a b",
		" a  b ":             "[\\x20]a [\\x20]b[\\x20]",
		"a\nb\r\tc":          "a[\\n]b[\\r\\t]c",
		"\x1b[31m\x7f\x00":   "[\\x1b][31m[\\x7f\\x00]",
		"\xff\xc3(":          "[\\xff\\xc3](",
		"a\u202eb":           "a[\\u{202e}]b",
		"a\u2028b\u00a0c":    "a[\\u{2028}]b[\\u{a0}]c",
		"e\u0301tude":        "e\u0301tude",
		"/\u0301x":           "/[\\u{301}]x",
		"日本語/עברית":          "日本語/עברית",
		"\\x1b is not one":   "\\x1b is not one",
		"\ufffd":             "\ufffd",
		"a\u3164b\U000e0041": "a[\\u{3164}]b[\\u{e0041}]",
	} {
		got := ""
		for _, r := range visible(in) {
			if r.escaped {
				got += "[" + r.text + "]"
			} else {
				got += r.text
			}
		}
		if got != want {
			t.Errorf("visible(%q) = %q, not %q", in, got, want)
		}
	}
}

func TestWhatIsCutSaysSo(t *testing.T) {
	head, tail, left := middle("/abc/"+strings.Repeat("é", 500)+"/end", 60)
	if !utf8.ValidString(head) || !utf8.ValidString(tail) || len(head)+len(tail)+left != 1009 || !strings.HasSuffix(tail, "/end") || len(head)+len(tail) > 60 {
		t.Errorf("middle: %q %q %d", head, tail, left)
	}
	if head, left := cut("aé", 2); head != "a" || left != 2 {
		t.Errorf("cut: %q %d", head, left)
	}
}

// TestWhatIsCopiedIsOneWordOfAShell asks bash.
func TestWhatIsCopiedIsOneWordOfAShell(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash")
	}
	words := append([]string{"", "a b", "it's", "$(rm -rf /)", "`x`", "\\", "!!", "~", "a\\'b\n", "-n", "é\u0301", "\x80a1"}, hostile...)
	for _, w := range words {
		w = strings.ReplaceAll(w, "\x00", "") // no word has that
		out, err := exec.CommandContext(t.Context(), bash, "--norc", "-c", "printf %s "+shellQuote(w)).Output()
		if w == "-n" {
			out, err = []byte(w), nil // printf's own
		}
		if err != nil || string(out) != w {
			t.Errorf("bash reads %.80q as %.80q: %v", shellQuote(w), out, err)
		}
		for _, r := range shellQuote(w) {
			if !unicode.IsGraphic(r) {
				t.Errorf("what is copied has %q", r)
			}
		}
	}
}

func FuzzVisible(f *testing.F) {
	for _, s := range hostile {
		f.Add(s, 100)
	}
	f.Fuzz(func(t *testing.T, s string, n int) {
		if !utf8.ValidString(visibleText(s)) {
			t.Errorf("%q becomes %q", s, visibleText(s))
		}
		for _, r := range visibleText(s) {
			if !unicode.IsGraphic(r) || r != ' ' && unicode.IsSpace(r) {
				t.Errorf("%q shows %q", s, r)
			}
		}
		n &= 0xfff
		head, tail, left := middle(s, n)
		if !strings.HasPrefix(s, head) || !strings.HasSuffix(s, tail) || len(head)+left+len(tail) != len(s) {
			t.Errorf("middle(%q, %d) = %q, %q, %d", s, n, head, tail, left)
		}
		var b strings.Builder
		if err := pathShort(s).Render(context.Background(), &b); err != nil {
			t.Error(err)
		}
		if strings.ContainsAny(b.String(), "\n\r\x00\x1b") || strings.Count(b.String(), "<bdi") != 1 {
			t.Errorf("%q is shown by %q", s, b.String())
		}
		shellQuote(s)
		before, at, after := around(s, n)
		if !strings.Contains(s, before+at+after) {
			t.Errorf("around(%q, %d) = %q %q %q", s, n, before, at, after)
		}
	})
}

package layers

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func patchOf(t testing.TB, path, was, is string, o PatchOptions) string {
	t.Helper()
	reader := func(s string) io.Reader {
		if s == "none" {
			return nil
		}
		return strings.NewReader(s)
	}
	var b bytes.Buffer
	if err := Patch(&b, path, reader(was), reader(is), o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPatch(t *testing.T) {
	for _, tt := range []struct{ name, path, was, is, want string }{
		{"changed", "/a/b", "1\n2\n3\n", "1\n2x\n3\n", "--- /a/b\n+++ /a/b\n@@ -1,3 +1,3 @@\n 1\n-2\n+2x\n 3\n"},
		{"new", "/a", "none", "1\n", "--- /dev/null\n+++ /a\n@@ -0,0 +1 @@\n+1\n"},
		{"gone, without a last newline", "/a", "1", "none", "--- /a\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n\\ No newline at end of file\n"},
		{"the same", "/a", "1", "1", ""},
		{"a name to be quoted", "/a b\n\xff\"", "none", "1\n", "--- /dev/null\n+++ \"/a b\\n\\377\\\"\"\n@@ -0,0 +1 @@\n+1\n"},
		{"binary", "/a", "0123456789abcdefXY\x00", "0123456789abcdefXZ\x00!", "Binary or large files /a and /a differ: 19 and 20 bytes\n" +
			"-00000010  58 59 00                                         |XY.|\n+00000010  58 5a 00 21                                      |XZ.!|\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := patchOf(t, tt.path, tt.was, tt.is, PatchOptions{}); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestPatchIsBounded(t *testing.T) {
	large := strings.Repeat("x\n", 1<<20)
	if got := patchOf(t, "/a", large, large+"y", PatchOptions{OldSize: 2 << 20, NewSize: 2<<20 + 1}); got != "Binary or large files /a and /a differ: 2097152 and 2097153 bytes\nthe first 1048576 bytes are the same\n" {
		t.Errorf("of large files: %q", got)
	}
	// Nothing in common: neither time nor output grow with the square of it.
	var was, is strings.Builder
	for i := range 1 << 16 {
		was.WriteString(strings.Repeat("a", i%7) + "\n")
		is.WriteString(strings.Repeat("b", i%5+1) + "\n")
	}
	got := patchOf(t, "/a", was.String(), is.String(), PatchOptions{MaxLines: 100})
	if n := strings.Count(got, "\n"); n != 101 || !strings.HasSuffix(got, " more lines\n") {
		t.Errorf("%d lines, the last %q", n, got[len(got)-40:])
	}
	if err := Patch(io.Discard, "/a", io.MultiReader(strings.NewReader("1"), failing{}), strings.NewReader(""), PatchOptions{}); !errors.Is(err, syscall.EIO) {
		t.Errorf("an error of reading is %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, syscall.EIO }

// FuzzPatch: of whatever text, patch(1) makes the one of the other.
func FuzzPatch(f *testing.F) {
	f.Add("a\nb\n", "a\nc\n")
	f.Add("", "x")
	f.Add("x\r\n\xff", "\n\n")
	if _, err := exec.LookPath("patch"); err != nil {
		f.Skip("patch(1) is not installed")
	}
	f.Fuzz(func(t *testing.T, was, is string) {
		got := patchOf(t, "f", was, is, PatchOptions{})
		if isBinary([]byte(was+is)) || len(was) > 1<<20 || len(is) > 1<<20 || was == is || was == "none" || is == "none" {
			return
		}
		file := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(file, []byte(was), 0o600); err != nil {
			t.Fatal(err)
		}
		c := exec.Command("patch", "--binary", "-s", file)
		c.Stdin = strings.NewReader(got)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, got)
		}
		data, err := os.ReadFile(file)
		if err != nil && !(is == "" && errors.Is(err, fs.ErrNotExist)) || string(data) != is {
			t.Errorf("patched %q, want %q\n%s", data, is, got)
		}
	})
}

func TestOpen(t *testing.T) {
	e := newBench(t, "in")
	e.put("f", "d/g", "l -> d")
	up := e.b.Upper(e.ls[0])
	e.must(os.WriteFile(filepath.Join(up, "f"), []byte("box f"), 0))
	e.must(os.Mkdir(filepath.Join(up, "l"), 0o755))
	e.must(os.WriteFile(filepath.Join(up, "l", "g"), []byte("box l/g"), 0o644))
	e.must(os.Symlink("/etc", filepath.Join(up, "link")))
	e.must(os.Symlink("/etc/passwd", filepath.Join(up, "passwd")))
	e.must(syscall.Mkfifo(filepath.Join(up, "fifo"), 0o644))
	e.must(os.WriteFile(filepath.Join(e.b.Upper(e.ls[1]), "n"), []byte("box in/n"), 0o644))
	for _, tt := range []struct {
		path string
		own  bool
		want string
	}{
		{"f", false, "real f"}, {"f", true, "box f"}, {"d/g", false, "real d/g"}, {"d/g", true, ""},
		{"l/g", true, "box l/g"}, {"l/g", false, ""}, // the real l is a link, to somewhere else
		{"in/n", true, "box in/n"}, {"link/passwd", true, ""}, {"passwd", true, ""}, {"fifo", true, ""}, {"d", false, ""}, {"../f", true, ""}, {"none", false, ""},
	} {
		p := e.real + "/" + tt.path
		f, is, err := e.b.Open(p, tt.own)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%s, own %v, was opened", tt.path, tt.own)
				f.Close()
			} else if !strings.Contains(err.Error(), e.real) {
				t.Errorf("%s: the error does not say which: %v", tt.path, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s, own %v: %v", tt.path, tt.own, err)
			continue
		}
		data, err := io.ReadAll(f)
		f.Close()
		if err != nil || string(data) != tt.want || is.Size != int64(len(tt.want)) {
			t.Errorf("%s, own %v: %q, %v", tt.path, tt.own, data, err)
		}
	}
	if fi, err := os.Lstat(filepath.Join(up, "f")); err != nil || fi.Mode().Perm() != 0 {
		t.Errorf("a file that the box has closed is left with %v, %v", fi.Mode(), err)
	}
	e.expect(e.changes(), "M f content,mode", "A fifo", "M l type", "A l/g", "A link", "A passwd", "A in/n")
}

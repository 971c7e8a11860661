package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// changes lists what a box changed, "A path parts", without the layers that hold the test's
// own folders.
func (l *lab) changes(box string) (out []string) {
	l.t.Helper()
	err := layers.Dir(l.boxDir(box)).Changes(context.Background(), func(c *core.Change) error {
		s := c.Kind.String() + " " + strings.TrimPrefix(c.Path, l.dir+"/")
		if len(c.Parts) > 0 {
			s += " " + strings.Join(c.Parts, ",")
		}
		if c.Unread != "" {
			s += " (" + c.Unread + ")"
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

func (l *lab) changed(want ...string) {
	l.t.Helper()
	if got := l.changes("b"); !slices.Equal(got, want) {
		l.t.Errorf("changes\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// A box that did nothing has changed nothing: neither the layers that a session makes nor
// the directories of others on the way to a user's own are changes.
func TestABoxThatDidNothingHasChangedNothing(t *testing.T) {
	l := newLab(t)
	dir, err := os.MkdirTemp("/var/tmp", "sandglass-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l.dir = filepath.Join(dir, "work")
	l.write("f", "real")
	l.sh("cat f; ls -R . >/dev/null; ls / /etc /var /usr >/dev/null")
	l.changed()
	l.sh("echo n > f; echo n > /var/tmp/" + filepath.Base(dir) + "/n")
	l.changed("A "+dir+"/n", "M f content")
	if n, err := layers.Dir(l.boxDir("b")).Discard(context.Background(), nil); err != nil || n.Total() != 2 {
		t.Errorf("discarded %v, %v", n, err)
	}
	l.changed()
	if r := l.sh("cat f; ls .."); r.out != "realwork\n" {
		t.Errorf("after that the box sees %q", r.out)
	}
}

func TestChangesOfABox(t *testing.T) {
	l := newLab(t)
	for _, n := range []string{"f", "same", "gone", "tree/a/b", "tree/c", "anew/x", "anew/y/z", "closed/f"} {
		l.write(n, "real "+n)
	}
	check := unharmed(t, l.dir)
	l.sh(`echo box > f; touch same tree; rm gone; rm -r tree/a; rm -r anew; mkdir -p anew/y; echo n > anew/n; ln -s /etc link; mkfifo fifo; chmod 0 closed
		mkdir -p deep; cd deep; i=0; while [ $i -lt 100 ]; do mkdir abc; cd abc; i=$((i+1)); done`)
	want := []string{"D anew/x", "D anew/y/z", "A anew/n", "M closed mode", "M f content", "A fifo", "D gone", "A link", "D tree/a"}
	var got []string
	for _, c := range l.changes("b") {
		if !strings.HasPrefix(c, "A deep") {
			got = append(got, c)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("changes\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	b := layers.Dir(l.boxDir("b"))
	r := l.run(runOpts{live: func(op *core.Operation) {
		if op.Surface == core.FilesExec {
			if _, err := b.Discard(context.Background(), nil); err == nil || len(core.Hints(err)) == 0 {
				t.Errorf("while a session runs: %v", err)
			}
		}
	}}, "/bin/true")
	if r.code != 0 {
		t.Error(r.stderr)
	}
	if _, err := b.Discard(context.Background(), []string{filepath.Join(l.dir, "same/x")}); !errors.Is(err, core.ErrNotFound) && len(core.Hints(err)) == 0 {
		t.Errorf("what is not there was discarded: %v", err)
	}
	if _, err := b.Discard(context.Background(), []string{filepath.Join(l.dir, "anew"), filepath.Join(l.dir, "deep"), filepath.Join(l.dir, "link")}); err != nil {
		t.Error(err)
	}
	l.changed("M closed mode", "M f content", "A fifo", "D gone", "D tree/a")
	if r := l.sh("cat anew/x anew/y/z; ls anew"); r.out != "real anew/xreal anew/y/zx\ny\n" {
		t.Errorf("the box sees %q", r.out)
	}
	check()
}

package layers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sandglass/sandglass/core"
)

func TestLevels(t *testing.T) { inMounts(t, "TestTheLevelsOfATreeAreItsChanges") }

// TestTheLevelsOfATreeAreItsChanges walks the trees of random boxes level by level, a few
// names at a time, and must find what a scan of the whole box finds.
func TestTheLevelsOfATreeAreItsChanges(t *testing.T) {
	if os.Getenv("OWN_MOUNTS") == "" {
		return // run by TestLevels
	}
	for seed := range uint64(12) {
		e := newBench(t, "in")
		r := rand.New(rand.NewPCG(seed, 7))
		for range 40 {
			randomOp(r, e.real)(e.real)
		}
		e.mount()
		for range 40 {
			randomOp(r, e.box)(e.box)
		}
		e.unmount()
		want := e.changes()
		slices.Sort(want)
		got := e.levels("/", 3)
		slices.Sort(got)
		if e.expect(got, want...); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// levels lists the changes below a directory by its levels.
func (e *bench) levels(dir string, limit int) (out []string) {
	e.t.Helper()
	after := ""
	for {
		l, err := e.b.Level(context.Background(), dir, after, limit)
		e.must(err)
		for _, n := range l.Nodes {
			p := filepath.Join(dir, n.Name)
			alone, err := e.b.Change(context.Background(), p)
			e.must(err)
			if (alone == nil) != (n.Change == nil) {
				e.t.Errorf("%q is a change alone: %v, in its directory: %v", p, alone, n.Change)
			}
			if c := n.Change; c != nil {
				out = append(out, line(e.real, c.Path, c.Kind, c.Parts, c.Unread))
			}
			if n.Inside {
				out = append(out, e.levels(p, limit)...)
			}
		}
		if !l.More {
			return out
		}
		if l.After <= after && after != "" {
			e.t.Fatalf("after %q comes %q", after, l.After)
		}
		after = l.After
	}
}

// A box plants a link where the page looks for a directory, and asks for what is no path.
func TestALevelFollowsNoLink(t *testing.T) {
	e := newBench(t)
	secret := filepath.Join(e.top, "secret")
	e.must(os.MkdirAll(filepath.Join(secret, "inner"), 0o755))
	e.must(os.WriteFile(filepath.Join(secret, "key"), nil, 0o600))
	e.must(os.Symlink(secret, filepath.Join(e.b.Upper(e.ls[0]), "dir")))
	for _, dir := range []string{"dir", "dir/inner"} {
		l, err := e.b.Level(context.Background(), filepath.Join(e.real, dir), "", 10)
		if err != nil || len(l.Nodes) > 0 {
			t.Errorf("%s: %+v, %v", dir, l, err)
		}
	}
	for _, dir := range []string{"", "x", "/a/../b", "/a/", "//"} {
		if _, err := e.b.Level(context.Background(), dir, "", 10); err == nil {
			t.Errorf("%q is taken for a directory", dir)
		}
	}
}

func TestALevelOfManyNamesIsReadAPageAtATime(t *testing.T) {
	e := newBench(t)
	up := e.b.Upper(e.ls[0])
	const all = 2*namesAtOnce + 10
	for i := range all {
		e.must(os.WriteFile(filepath.Join(up, fmt.Sprintf("f%05d", i)), nil, 0o600))
	}
	seen, after := 0, ""
	for {
		l, err := e.b.Level(context.Background(), e.real, after, 1000)
		e.must(err)
		for _, n := range l.Nodes {
			if want := fmt.Sprintf("f%05d", seen); n.Name != want || n.Change == nil || n.Change.Kind != core.Added {
				t.Fatalf("%+v, want %s", n, want)
			}
			seen++
		}
		if after = l.After; !l.More {
			break
		}
	}
	if seen != all {
		t.Errorf("%d names of %d", seen, all)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if l, err := e.b.Level(ended, e.real, "", 10); err != nil || !l.More || len(l.Nodes) != 0 {
		t.Errorf("when there is no time: %+v, %v", l, err)
	}
}

func BenchmarkLevel(b *testing.B) {
	e := newBench(b)
	up := e.b.Upper(e.ls[0])
	for i := range 100_000 {
		d := filepath.Join(up, fmt.Sprint(i/1000))
		if i%1000 == 0 {
			e.must(os.Mkdir(d, 0o755))
		}
		e.must(os.WriteFile(filepath.Join(d, fmt.Sprint(i)), nil, 0o600))
	}
	for b.Loop() {
		if _, err := e.b.Level(context.Background(), filepath.Join(e.real, "7"), "", 200); err != nil {
			b.Fatal(err)
		}
	}
}

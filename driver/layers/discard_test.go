package layers

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

func (e *bench) discard(paths ...string) core.ChangeCounts {
	e.t.Helper()
	for i := range paths {
		paths[i] = filepath.Join(e.real, paths[i])
	}
	n, err := e.b.Discard(context.Background(), paths)
	e.must(err)
	if left, err := os.ReadDir(e.b.At("layers", "trash")); err != nil || len(left) > 0 {
		e.t.Errorf("in the trash is %v, %v", left, err)
	}
	return n
}

func TestDiscard(t *testing.T) { inMounts(t, "TestDiscardOfOverlays") }

func TestDiscardOfOverlays(t *testing.T) {
	if os.Getenv("OWN_MOUNTS") == "" {
		return // run by TestDiscard
	}
	for _, tt := range []struct {
		name, do string
		discard  []string
		count    int
		left     []string
	}{
		{name: "a new file", do: "echo n > n; echo n > m", discard: []string{"n"}, count: 1, left: []string{"A m"}},
		{name: "a changed one", do: "echo n > f; echo n > d/g", discard: []string{"d/g"}, count: 1, left: []string{"M f content"}},
		{name: "a deleted one", do: "rm f d/g", discard: []string{"f"}, count: 1, left: []string{"D d/g"}},
		{name: "a deleted directory", do: "rm -r d", discard: []string{"d"}, count: 1},
		{name: "a directory with what is in it", do: "echo n > d/g; rm -r d/sub; chmod 700 d; echo n > f", discard: []string{"d"}, count: 3, left: []string{"M f content"}},
		{name: "a directory made anew", do: "rm -r d; mkdir d; echo n > d/n", discard: []string{"d"}, count: 3},
		{name: "one file that a directory made anew hides", do: "rm -r d; mkdir d; echo n > d/n; mkdir d/sub; echo n > d/sub/n", discard: []string{"d/g"}, count: 1,
			left: []string{"A d/n", "D d/sub/deep", "A d/sub/n"}},
		{name: "one file further down in a directory made anew", do: "rm -r d; mkdir -p d/sub; echo n > d/sub/n", discard: []string{"d/sub/deep"}, count: 1,
			left: []string{"D d/g", "A d/sub/n"}},
		{name: "one of the box's own in a directory made anew", do: "rm -r d; mkdir d; echo n > d/g; echo n > d/n", discard: []string{"d/g"}, count: 1,
			left: []string{"A d/n", "D d/sub"}},
		{name: "a type that changed", do: "rm -r d; ln -s /etc d", discard: []string{"d"}, count: 1},
		{name: "what was only looked at closely", do: "touch f", discard: []string{"f"}},
		{name: "a layer", do: "echo n > in/n; rm in/f; chmod 700 in; echo n > n", discard: []string{"in"}, count: 3, left: []string{"A n"}},
		{name: "several, of which one is in another", do: "mkdir -p n/m/k; echo n > f", discard: []string{"n", "f"}, count: 4},
		{name: "everything", do: "rm -r d; mkdir d; echo n > n; rm in/f; chmod 700 . in; mkdir -m 0 z; mkdir -p x/y; touch x/y/z; chmod 500 x/y x", count: 10},
		{name: "what was deleted in what cannot be written to", do: "chmod 500 d; rm d/g", discard: []string{"d/g"}, count: 1, left: []string{"M d mode"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newBench(t, "in")
			e.put("f", "d/g", "d/sub/deep", "in/f")
			e.mount()
			e.sh(tt.do)
			e.unmount()
			if n := e.discard(tt.discard...); n.Total() != tt.count {
				t.Errorf("%d changes discarded, want %d", n.Total(), tt.count)
			}
			e.expect(e.changes(), tt.left...)
			e.mount()
			view := trees(t, e.real, e.box)
			e.unmount()
			if tt.left = slices.DeleteFunc(tt.left, func(s string) bool { return s == "M  mode" }); !slices.Equal(view, sorted(tt.left)) {
				t.Errorf("the box sees %q, want %q", view, tt.left)
			}
		})
	}
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.SortFunc(s, func(a, b string) int { return strings.Compare(a[2:], b[2:]) })
	return s
}

// Whatever a box did: what is discarded is real again, and the rest as it was.
func TestDiscardTakesNothingElse(t *testing.T) { inMounts(t, "TestRandomDiscards") }

func TestRandomDiscards(t *testing.T) {
	if os.Getenv("OWN_MOUNTS") == "" {
		return // run by TestDiscardTakesNothingElse
	}
	for seed := range uint64(15) {
		e := newBench(t, "in")
		r := rand.New(rand.NewPCG(seed, 6))
		for range 40 {
			randomOp(r, e.real)(e.real)
		}
		e.mount()
		for range 50 {
			randomOp(r, e.box)(e.box)
		}
		e.unmount()
		for {
			before := e.changes()
			if len(before) == 0 {
				break
			}
			p := strings.Fields(before[r.IntN(len(before))])[1]
			var want []string
			for _, l := range before {
				if !Under(strings.Fields(l)[1], p) {
					want = append(want, l)
				}
			}
			if n := e.discard(p); n.Total() != len(before)-len(want) {
				t.Errorf("seed %d: %d discarded of %q, want %d", seed, n.Total(), p, len(before)-len(want))
			}
			if got := e.changes(); !slices.Equal(got, want) {
				t.Fatalf("seed %d: without %q there is\n\t%s\nof\n\t%s", seed, p, strings.Join(got, "\n\t"), strings.Join(before, "\n\t"))
			}
			e.mount()
			view := trees(t, e.real, e.box)
			e.unmount()
			slices.Sort(view)
			slices.Sort(want)
			if !slices.Equal(view, want) {
				t.Fatalf("seed %d: without %q the box sees\n\t%s\nand has changed\n\t%s", seed, p, strings.Join(view, "\n\t"), strings.Join(want, "\n\t"))
			}
		}
	}
}

func TestDiscardOfHostileLayers(t *testing.T) {
	e := newBench(t)
	e.put("d/g", "secret/key", "secret/other", "k/secret")
	up := e.b.Upper(e.ls[0])
	in := func(names ...string) string { return filepath.Join(append([]string{up}, names...)...) }
	outside := filepath.Join(e.top, "outside")
	e.must(os.MkdirAll(filepath.Join(outside, "sub"), 0o755))
	e.must(os.WriteFile(filepath.Join(outside, "f"), nil, 0o600))
	plant := func() {
		e.must(os.Symlink(outside, in("link")))
		e.must(os.Symlink(outside, in("d")))
		e.must(os.MkdirAll(in("n", "m"), 0o755))
		e.must(os.Symlink(outside, in("n", "m", "link")))
		e.must(os.Symlink(filepath.Join(outside, "f"), in("n", "f")))
		deep(t, in("n", "m"), 10000)
		e.must(os.Chmod(in("n", "m"), 0))
		e.must(os.Chmod(in("n"), 0o500))
	}
	plant()
	for _, p := range []string{"link/f", "link/sub", "d/g", "none", "n/none"} {
		if n, err := e.b.Discard(context.Background(), []string{filepath.Join(e.real, p)}); err == nil || n.Total() != 0 && p != "d/g" {
			t.Errorf("%s was discarded: %v", p, n)
		}
	}
	for _, p := range []string{"", "d/g", "/a/../b", "/a/"} {
		if _, err := e.b.Discard(context.Background(), []string{p}); err == nil {
			t.Errorf("%q was taken", p)
		}
	}
	e.discard("link", "n")
	e.expect(e.changes(), "M d type")
	e.must(os.Remove(in("d")))
	plant()

	// What the sandbox hides stays hidden, also where the box has put something in its place.
	masks, err := json.Marshal([][]byte{[]byte(filepath.Join(e.real, "secret/key")), []byte(filepath.Join(e.real, "k/secret"))})
	e.must(err)
	e.must(os.WriteFile(e.b.At("masks.json"), masks, 0o600))
	e.must(os.Mkdir(in("secret"), 0o700))
	e.must(os.WriteFile(in("secret", "other"), nil, 0o600))
	e.must(sys.MakeWhiteout(-100, in("secret", "key")))
	e.must(os.Mkdir(in("k"), 0o755))
	e.must(os.WriteFile(in("k", "secret"), []byte("box"), 0o600))
	e.discard()
	e.expect(e.changes())
	for _, m := range []string{"secret/key", "k/secret"} {
		if is, err := Lstat(in(m)); err != nil || !Whiteout(in(m), is) {
			t.Errorf("%s is to be seen: %v, %v", m, is, err)
		}
	}
	if ents, err := os.ReadDir(outside); err != nil || len(ents) != 2 {
		t.Errorf("outside is %v, %v", ents, err)
	}
}

// A discard that was cut short in the middle is gone on with.
func TestADiscardThatWasCutShort(t *testing.T) {
	e := newBench(t)
	up := e.b.Upper(e.ls[0])
	e.must(os.MkdirAll(filepath.Join(up, "a", "b"), 0o755))
	e.must(os.MkdirAll(filepath.Join(up, "c", "d"), 0o755))
	d := discard{b: e.b, ctx: context.Background(), ls: e.ls}
	var err error
	d.trash, err = e.b.openTrash()
	e.must(err)
	e.must(d.path(filepath.Join(e.real, "a"))) // and no sweep
	d.trash.Close()
	e.expect(e.changes(), "A c", "A c/d")
	e.discard("c/d")
	e.expect(e.changes(), "A c")

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := e.b.Discard(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a discard that was called off: %v", err)
	}
	e.expect(e.changes(), "A c")
}

func TestDiscardIsRefusedWhileASessionRuns(t *testing.T) {
	e := newBench(t)
	e.must(os.WriteFile(filepath.Join(e.b.Upper(e.ls[0]), "n"), nil, 0o600))
	e.must(os.Mkdir(e.b.At("run"), 0o700))
	run, err := e.b.Register(SessionRef{ID: "S"})
	e.must(err)
	if _, err := e.b.Discard(context.Background(), nil); err == nil || len(core.Hints(err)) == 0 {
		t.Errorf("it was done: %v", err)
	}
	run.Close()
	e.discard()
	e.expect(e.changes())
	never := Dir(filepath.Join(t.TempDir(), "b"))
	e.must(os.Mkdir(string(never), 0o700))
	e.must(os.WriteFile(never.At("box.json"), []byte("{}"), 0o600))
	if _, err := never.Discard(context.Background(), nil); err != nil {
		t.Errorf("a box that never ran: %v", err)
	}
}

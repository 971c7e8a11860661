package layers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// inMounts runs one of this binary's tests in a user and a mount namespace of its own, where
// it may mount overlays as a box's first process does. Without the user namespace an overlay
// would note where a copied file is from (user.overlay.origin), and take a real file that
// shows again for another name of its copy, if that was renamed.
func inMounts(t *testing.T, test string, env ...string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("unshare", "-Urm", "--propagation", "private", exe, "-test.run", "^"+test+"$", "-test.v")
	c.Env = append(append(os.Environ(), "OWN_MOUNTS=yes"), env...)
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Errorf("%v\n%s", err, out)
	}
}

// bench is a box's folder made by hand, with real overlays: it stands where a session would.
type bench struct {
	t    testing.TB
	top  string
	b    Dir
	real string // the real tree
	box  string // where the box sees it, while it is mounted
	ls   []Layer
}

func newBench(t testing.TB, layers ...string) *bench {
	t.Helper()
	top, err := os.MkdirTemp("", "sandglass-layers-")
	if err != nil {
		t.Fatal(err)
	}
	if top, err = filepath.EvalSymlinks(top); err != nil {
		t.Fatal(err)
	}
	e := &bench{t: t, top: top, b: Dir(filepath.Join(top, "box")), real: filepath.Join(top, "real"), box: filepath.Join(top, "view")}
	t.Cleanup(func() {
		e.unmount()
		if err := RemoveTree(top); err != nil {
			t.Errorf("something is left: %v", err)
		}
	})
	for _, d := range []string{e.real, e.box} {
		e.must(os.Mkdir(d, 0o755))
	}
	for i, rel := range append([]string{""}, layers...) {
		l := Layer{Path: filepath.Join(e.real, rel), Dir: strconv.Itoa(i), Mode: syscall.S_IFDIR | 0o755}
		e.must(os.MkdirAll(l.Path, 0o755))
		e.must(os.MkdirAll(e.b.At("layers", l.Dir), 0o700))
		e.must(os.Mkdir(e.b.Upper(l), 0o755))
		e.must(os.Mkdir(e.b.Work(l), 0o700))
		e.ls = append(e.ls, l)
	}
	data, err := json.Marshal(e.ls)
	e.must(err)
	e.must(os.WriteFile(e.b.At("layers.json"), data, 0o600))
	e.must(os.WriteFile(e.b.At("box.json"), []byte("{}"), 0o600))
	return e
}

func (e *bench) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *bench) mount() {
	e.t.Helper()
	for _, l := range e.ls {
		opts := "lowerdir=" + l.Path + ",upperdir=" + e.b.Upper(l) + ",workdir=" + e.b.Work(l) + ",userxattr"
		if err := sys.Mount("box", e.at(l), "overlay", 0, opts); err != nil {
			e.t.Fatalf("mount %s: %v", l.Path, err)
		}
	}
}

func (e *bench) at(l Layer) string { return filepath.Join(e.box, strings.TrimPrefix(l.Path, e.real)) }

func (e *bench) unmount() {
	for i := len(e.ls) - 1; i >= 0; i-- {
		for syscall.Unmount(e.at(e.ls[i]), 0) == nil {
		}
	}
}

// put makes real files: a name that ends in / is a directory, " -> " is a link.
func (e *bench) put(names ...string) {
	e.t.Helper()
	for _, n := range names {
		p := filepath.Join(e.real, n)
		e.must(os.MkdirAll(filepath.Dir(p), 0o755))
		switch name, text, link := strings.Cut(n, " -> "); {
		case link:
			e.must(os.Symlink(text, filepath.Join(e.real, name)))
		case strings.HasSuffix(n, "/"):
			e.must(os.MkdirAll(p, 0o755))
		default:
			e.must(os.WriteFile(p, []byte("real "+n), 0o644))
		}
	}
}

// sh runs a script in the box's view.
func (e *bench) sh(script string) {
	e.t.Helper()
	c := exec.Command("/bin/sh", "-ec", script)
	c.Dir = e.box
	if out, err := c.CombinedOutput(); err != nil {
		e.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// changes lists what [Dir.ChangesIn] says, a line for each.
func (e *bench) changes(paths ...string) []string {
	e.t.Helper()
	for i := range paths {
		paths[i] = filepath.Join(e.real, paths[i])
	}
	var out []string
	err := e.b.ChangesIn(context.Background(), paths, func(c *core.Change) error {
		out = append(out, line(e.real, c.Path, c.Kind, c.Parts, c.Unread))
		if c.Kind != core.Added && c.Was == nil || c.Kind != core.Deleted && c.Is == nil && c.Unread == "" {
			e.t.Errorf("%s %q has not both states: %v, %v", c.Kind, c.Path, c.Was, c.Is)
		}
		return nil
	})
	e.must(err)
	return out
}

func line(top, p string, k core.ChangeKind, parts []string, unread string) string {
	s := k.String() + " " + strings.TrimPrefix(strings.TrimPrefix(p, top), "/")
	if len(parts) > 0 {
		s += " " + strings.Join(parts, ",")
	}
	if unread != "" {
		s += " (" + unread + ")"
	}
	return s
}

func (e *bench) expect(got []string, want ...string) {
	e.t.Helper()
	if !slices.Equal(got, want) {
		e.t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// trees compares two trees without knowing anything of layers.
func trees(t testing.TB, was, is string) (out []string) {
	t.Helper()
	var walk func(rel string, both bool)
	walk = func(rel string, both bool) {
		seen := map[string]bool{}
		var all []string
		for _, top := range []string{is, was} {
			if top == was && !both {
				continue
			}
			ents, err := os.ReadDir(filepath.Join(top, rel))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range ents {
				if !seen[e.Name()] {
					seen[e.Name()] = true
					all = append(all, e.Name())
				}
			}
		}
		slices.Sort(all)
		for _, n := range all {
			p := filepath.Join(rel, n)
			a, aerr := Lstat(filepath.Join(was, p))
			b, berr := Lstat(filepath.Join(is, p))
			if !both {
				aerr = fs.ErrNotExist
			}
			switch {
			case berr != nil:
				out = append(out, line("", p, core.Deleted, nil, ""))
				continue
			case aerr != nil:
				out = append(out, line("", p, core.Added, nil, ""))
			default:
				var parts []string
				if a.Type != b.Type {
					parts = []string{"type"}
				} else {
					if a.Type == core.TypeFile {
						x, err := os.ReadFile(filepath.Join(was, p))
						if err != nil {
							t.Fatal(err)
						}
						y, err := os.ReadFile(filepath.Join(is, p))
						if err != nil {
							t.Fatal(err)
						}
						if !bytes.Equal(x, y) {
							parts = append(parts, "content")
						}
					}
					if a.Link != b.Link {
						parts = append(parts, "link")
					}
					if a.Mode != b.Mode {
						parts = append(parts, "mode")
					}
					if a.UID != b.UID || a.GID != b.GID {
						parts = append(parts, "owner")
					}
					x, _ := sys.Lgetxattr(filepath.Join(was, p), "user.a")
					y, _ := sys.Lgetxattr(filepath.Join(is, p), "user.a")
					if !bytes.Equal(x, y) {
						parts = append(parts, "xattrs")
					}
				}
				if len(parts) > 0 {
					out = append(out, line("", p, core.Modified, parts, ""))
				}
			}
			if b.Type == core.TypeDir {
				walk(p, aerr == nil && a.Type == core.TypeDir)
			}
		}
	}
	walk("", true)
	return out
}

func TestChanges(t *testing.T) { inMounts(t, "TestChangesOfOverlays") }

func TestChangesOfOverlays(t *testing.T) {
	if os.Getenv("OWN_MOUNTS") == "" {
		return // run by TestChanges
	}
	// do happens in the box, later to the real tree after that.
	for _, tt := range []struct {
		name      string
		do, later string
		want      []string
	}{
		{name: "nothing"},
		{name: "reading changes nothing", do: "cat f d/g; ls -R; stat l"},
		{name: "times alone are no change", do: "touch f d d/g; touch -h l"},
		{name: "a directory whose content changed is none itself", do: "echo new > d/new", want: []string{"A d/new"}},
		{name: "added", do: "echo n > n; mkdir -p m/k; ln -s n s; mkfifo p; echo n > m/k/n",
			want: []string{"A m", "A m/k", "A m/k/n", "A n", "A p", "A s"}},
		{name: "modified", do: "echo n > f; chmod 600 d/g; chmod 700 d; ln -sfn n l",
			want: []string{"M d mode", "M d/g mode", "M f content", "M l link"}},
		{name: "the same content written again is no change", do: "cp f x; cat x > f; rm x"},
		{name: "the same content in another file is no change", do: "cp -p f x; mv x f"},
		{name: "deleted", do: "rm f l; rm -r d", want: []string{"D d", "D f", "D l"}},
		{name: "deleted and made again as it was", do: "cp -p f x; rm f; cp -p x f; rm x"},
		{name: "a directory deleted and made anew shows nothing of the real one", do: "rm -r d; mkdir d; echo n > d/n; mkdir d/sub; echo n > d/sub/n",
			want: []string{"D d/g", "A d/n", "D d/sub/deep", "A d/sub/n"}},
		{name: "a directory deleted and made anew twice, across sessions", do: "rm -r d; mkdir d\n--\nmkdir d/sub; echo n > d/sub/deep\n--\nrm -r d/sub; mkdir -p d/sub/deep",
			want: []string{"D d/g", "M d/sub/deep type"}},
		{name: "a file instead of a directory", do: "rm -r d; echo n > d", want: []string{"M d type"}},
		{name: "a directory instead of a file", do: "rm f; mkdir f; echo n > f/n", want: []string{"M f type", "A f/n"}},
		{name: "a directory instead of a link, with the names of what it leads to", do: "rm l; mkdir l; echo n > l/x; mkdir l/y", want: []string{"M l type", "A l/x", "A l/y"}},
		{name: "a link instead of a directory", do: "rm -r e; ln -s /etc e", want: []string{"M e type"}},
		{name: "a FIFO instead of a file is not opened", do: "rm f; mkfifo f", want: []string{"M f type"}},
		{name: "renamed", do: "mv f h; mv d/g g", want: []string{"D d/g", "D f", "A g", "A h"}},
		{name: "hard links", do: "ln f f2; ln f2 d/f3; echo n >> f", want: []string{"A d/f3", "M f content", "A f2"}},
		{name: "names of any bytes", do: `touch "$(printf 'a\nb\033\377')"; touch -- '-n' ' ' '*'`, want: []string{"A  ", "A *", "A -n", "A a\nb\x1b\xff"}},
		{name: "an order by path", do: "mkdir a a.b; touch a/z a.b/y a-", want: []string{"A a", "A a/z", "A a-", "A a.b", "A a.b/y"}},
		{name: "a layer inside", do: "echo n > in/f; rm in/g; rm -r in/k; echo n > in2", want: []string{"A in2", "M in/f content", "D in/g", "D in/k"}},
		{name: "the mode of a layer's own directory", do: "chmod 711 . in", want: []string{"M  mode", "M in mode"}},
		{name: "a mode that was changed outside is not the box's", do: "echo n > n", later: "chmod 711 . in", want: []string{"A n"}},
		{name: "deleted outside too", do: "rm f; rm -r d", later: "rm f; rm -r d"},
		{name: "made outside too", do: "echo n > n; mkdir k; echo n > k/n", later: "echo o > n; mkdir k; echo o > k/o", want: []string{"A k/n", "M n content"}},
		{name: "gone outside", do: "echo n > d/sub/deep", later: "rm -r d", want: []string{"A d", "A d/sub", "A d/sub/deep"}},
		{name: "a file outside where the box has a directory", do: "echo n > d/n", later: "rm -r d; echo o > d", want: []string{"M d type", "A d/n"}},
		{name: "a link outside where the box has a directory", do: "echo n > d/x", later: "rm -r d; ln -s e d", want: []string{"M d type", "A d/x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newBench(t, "in")
			e.put("f", "d/g", "d/sub/deep", "e/x", "l -> e", "in/f", "in/g", "in/k/h")
			for _, do := range strings.Split(tt.do, "\n--\n") {
				e.mount()
				e.sh(do)
				e.unmount()
			}
			if tt.later != "" {
				real := *e
				real.box = e.real
				real.sh(tt.later)
			}
			e.expect(e.changes(), tt.want...)
		})
	}
}

// What a box does is what the same program does to a copy of the tree; and a change is what
// the box's view and the real tree differ in, also when the real one goes on changing.
func TestChangesAreTheDifferenceOfTheTrees(t *testing.T) {
	inMounts(t, "TestRandomChanges")
}

func TestRandomChanges(t *testing.T) {
	if os.Getenv("OWN_MOUNTS") == "" {
		return // run by TestChangesAreTheDifferenceOfTheTrees
	}
	for seed := range uint64(25) {
		randomChanges(t, seed)
		if t.Failed() {
			return
		}
	}
}

// FuzzChanges is the same with seeds of the fuzzer's choice. It needs a mount namespace:
// `unshare -Urm env OWN_MOUNTS=yes go test -fuzz FuzzChanges ./driver/layers`.
func FuzzChanges(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		if os.Getenv("OWN_MOUNTS") != "" {
			randomChanges(t, seed)
		}
	})
}

func randomChanges(t *testing.T, seed uint64) {
	e := newBench(t, "in")
	r := rand.New(rand.NewPCG(seed, 5))
	for range 40 {
		randomOp(r, e.real)(e.real)
	}
	var log []string
	copied := filepath.Join(e.top, "copy")
	if out, err := exec.Command("cp", "-a", e.real, copied).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for session := range 4 {
		e.mount()
		for range 15 {
			op := randomOp(r, e.box)
			what := op(e.box)
			log = append(log, what)
			if session == 3 || strings.HasSuffix(what, syscall.EXDEV.Error()) || strings.HasSuffix(what, syscall.EBUSY.Error()) {
				continue // what an overlay does not do, or a mount point
			}
			if native := op(copied); native != what {
				t.Fatalf("seed %d: in the box: %s; on the copy: %s\nafter\n\t%s", seed, what, native, strings.Join(log, "\n\t"))
			}
		}
		view := trees(t, e.real, e.box)
		if want := trees(t, e.real, copied); session < 3 && !slices.Equal(view, want) {
			t.Fatalf("seed %d: the box's view differs from the real tree in\n\t%s\nand the copy in\n\t%s", seed, strings.Join(view, "\n\t"), strings.Join(want, "\n\t"))
		}
		e.unmount()
		got := e.changes()
		slices.Sort(got)
		slices.Sort(view)
		if !slices.Equal(got, view) {
			t.Fatalf("seed %d, session %d: changes\n\t%s\nbut the trees differ in\n\t%s\nafter\n\t%s", seed, session, strings.Join(got, "\n\t"), strings.Join(view, "\n\t"), strings.Join(log, "\n\t"))
		}
		if session == 2 { // the real tree goes on, from here the view alone is to be compared with
			for range 20 {
				log = append(log, "outside: "+randomOp(r, e.real)(e.real))
			}
		}
	}
}

// randomOp chooses something to do in a tree; done, it says what and how it ended.
func randomOp(r *rand.Rand, tree string) func(top string) string {
	var all, dirs []string
	filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(p, tree)
		if rel == "/in" && err == nil {
			dirs = append(dirs, rel)
			return nil
		}
		if err == nil && rel != "" {
			all = append(all, rel)
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, rel)
		}
		return nil
	})
	slices.Sort(all)
	slices.Sort(dirs)
	any := func() string {
		if len(all) == 0 {
			return "/none"
		}
		return all[r.IntN(len(all))]
	}
	fresh := func() string { return dirs[r.IntN(len(dirs))] + "/" + string(rune('a'+r.IntN(5))) }
	a, b, n, text := any(), any(), fresh(), strconv.Itoa(r.IntN(4))
	mode := []uint32{0o644, 0o600, 0o755, 0o700, 0o4755, 0o1777}[r.IntN(6)]
	did := func(what string, err error) string {
		var no syscall.Errno
		if errors.As(err, &no) {
			return what + ": " + no.Error()
		}
		return what
	}
	inside := func(p string) bool { return p == "/in" || p == "/none" }
	regular := func(p string) bool { fi, err := os.Lstat(p); return err == nil && fi.Mode().IsRegular() }
	switch k := r.IntN(16); {
	case k < 3:
		return func(top string) string {
			if fi, err := os.Lstat(top + n); err == nil && !fi.Mode().IsRegular() {
				return "not a file"
			}
			return did("write "+n, os.WriteFile(top+n, []byte(text), 0o644))
		}
	case k < 5:
		return func(top string) string { return did("mkdir "+n, os.Mkdir(top+n, 0o755)) }
	case k == 5:
		return func(top string) string {
			return did("symlink "+n, os.Symlink([]string{"a", "../in", "/etc"}[len(text+n)%3], top+n))
		}
	case k == 6:
		return func(top string) string { return did("mkfifo "+n, syscall.Mkfifo(top+n, 0o600)) }
	case k < 9:
		return func(top string) string {
			if inside(a) {
				return "stays"
			}
			return did("remove "+a, os.RemoveAll(top+a))
		}
	case k == 9:
		return func(top string) string {
			if !regular(top + a) {
				return "not a file"
			}
			f, err := os.OpenFile(top+a, os.O_WRONLY|os.O_APPEND, 0)
			if err == nil {
				_, err = f.WriteString(text)
				f.Close()
			}
			return did("append "+a, err)
		}
	case k == 10:
		return func(top string) string {
			fi, err := os.Lstat(top + a)
			if err != nil || fi.Mode()&fs.ModeSymlink != 0 {
				return "not to chmod"
			}
			m := mode
			if fi.IsDir() {
				m |= 0o700
			}
			return did("chmod "+a, syscall.Chmod(top+a, m))
		}
	case k == 11:
		return func(top string) string {
			if inside(a) {
				return "stays"
			}
			var st syscall.Stat_t
			if err := syscall.Lstat(top+a, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
				return "no attributes"
			}
			return did("setxattr "+a, sys.Lsetxattr(top+a, "user.a", []byte(text)))
		}
	case k < 14:
		return func(top string) string {
			if inside(a) {
				return "stays"
			}
			return did(fmt.Sprint("rename ", a, " ", n), syscall.Rename(top+a, top+n))
		}
	case k == 14 && filepath.Base(tree) != "real": // an overlay copies up one name of several (index=off)
		return func(top string) string {
			if !regular(top + a) {
				return "not a file"
			}
			return did(fmt.Sprint("link ", a, " ", n), os.Link(top+a, top+n))
		}
	}
	return func(top string) string { // the one in the other's place
		if inside(a) || inside(b) || !regular(top+a) || !regular(top+b) {
			return "not two files"
		}
		return did(fmt.Sprint("replace ", b, " by ", a), syscall.Rename(top+a, top+b))
	}
}

// What a hostile box can leave behind costs it nothing but a line.
func TestChangesOfHostileLayers(t *testing.T) {
	e := newBench(t)
	e.put("f", "d/g", "secret/key", "secret/sub/key", "l -> /etc")
	up := e.b.Upper(e.ls[0])
	in := func(names ...string) string { return filepath.Join(append([]string{up}, names...)...) }
	e.must(os.Symlink("/etc", in("link")))
	e.must(os.Symlink(e.real, in("d"))) // d/g is not looked for through it
	e.must(syscall.Mkfifo(in("f"), 0o644))
	e.must(os.Mkdir(in("l"), 0o755)) // the real one is a link to a directory with a passwd, too
	e.must(os.WriteFile(in("l", "passwd"), nil, 0o644))
	e.must(sys.MakeWhiteout(-100, in("none")))
	e.expect(e.changes(), "M d type", "M f type", "M l type", "A l/passwd", "A link")
	e.expect(e.changes("l/passwd"), "M l type", "A l/passwd")
	e.expect(e.changes("d/g"), "M d type")
	e.expect(e.changes("link/passwd"))

	// What the sandbox hides was not deleted; what the box puts there is a change.
	e.must(sys.MakeWhiteout(-100, in("secret")))
	masks, err := json.Marshal([][]byte{[]byte(filepath.Join(e.real, "secret"))})
	e.must(err)
	e.must(os.WriteFile(e.b.At("masks.json"), masks, 0o600))
	e.expect(e.changes("secret"))
	e.must(os.Remove(in("secret")))
	e.must(os.Mkdir(in("secret"), 0o755))
	e.must(sys.Lsetxattr(in("secret"), "user.overlay.opaque", []byte("y")))
	e.must(os.WriteFile(in("secret", "key"), []byte("other"), 0o644))
	e.must(os.Mkdir(in("secret", "sub"), 0o755))
	e.expect(e.changes("secret"), "M secret/key content")
}

func TestChangesOfADeepTree(t *testing.T) {
	e := newBench(t)
	deep(t, e.b.Upper(e.ls[0]), 10000)
	got := e.changes()
	last := got[len(got)-1]
	if want := (pathMax - len(e.real)) / 2; len(got) != want+1 || !strings.HasSuffix(last, "("+errTooDeep.Error()+")") {
		t.Errorf("%d changes, the last %q: want %d", len(got), core.Shorten(last, 100), want+1)
	}
}

// deep makes a directory with that many below each other.
func deep(t testing.TB, dir string, levels int) {
	t.Helper()
	fd, err := sys.OpenPath(-1, dir, syscall.O_DIRECTORY)
	for range levels {
		if err != nil {
			t.Fatal(err)
		}
		if err = sys.MakeDir(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		var next int
		next, err = sys.OpenPath(fd, "d", syscall.O_DIRECTORY)
		sys.CloseFD(fd)
		fd = next
	}
	sys.CloseFD(fd)
}

// What a box has closed to its own user is opened while it is looked at, and only then.
func TestChangesOfWhatIsClosed(t *testing.T) {
	e := newBench(t)
	e.put("f", "same", "d/g", "d/k/h")
	up := e.b.Upper(e.ls[0])
	for n, text := range map[string]string{"f": "fear f", "same": "real same", "d/g": "real d/g", "d/k/n": "n"} {
		e.must(os.MkdirAll(filepath.Dir(filepath.Join(up, n)), 0o755))
		e.must(os.WriteFile(filepath.Join(up, n), []byte(text), 0o644))
	}
	closed := []string{"f", "same", "d/g", "d/k", "d"}
	for _, n := range closed {
		e.must(os.Chmod(filepath.Join(up, n), 0))
	}
	e.expect(e.changes(), "M d mode", "M d/g mode", "M d/k mode", "A d/k/n", "M f content,mode", "M same mode")
	if os.Getuid() == 0 {
		return // whom nothing is closed to
	}
	run, err := e.b.Register(SessionRef{ID: "S"})
	if errors.Is(err, fs.ErrNotExist) {
		e.must(os.Mkdir(e.b.At("run"), 0o700))
		run, err = e.b.Register(SessionRef{ID: "S"})
	}
	e.must(err)
	defer run.Close()
	e.expect(e.changes(), "M d mode (permission denied)", "M f mode (permission denied)", "M same mode (permission denied)")
	for _, n := range closed[len(closed)-1:] {
		if fi, err := os.Lstat(filepath.Join(up, n)); err != nil || fi.Mode().Perm() != 0 {
			t.Errorf("%s is left with mode %v, %v", n, fi.Mode(), err)
		}
	}
}

// A frame has copies of the real directory's small files, without owner and attributes.
func TestChangesOfAFrame(t *testing.T) {
	e := newBench(t, "in")
	e.put("f", "g")
	e.must(sys.Lsetxattr(filepath.Join(e.real, "f"), "user.a", []byte("1")))
	e.ls[0].Frame = true
	data, err := json.Marshal(e.ls)
	e.must(err)
	e.must(os.WriteFile(e.b.At("layers.json"), data, 0o600))
	up := e.b.Upper(e.ls[0])
	e.must(os.WriteFile(filepath.Join(up, "f"), []byte("real f"), 0o644)) // copied up for its times
	e.must(os.WriteFile(filepath.Join(up, "g"), []byte("real g"), 0o600))
	e.must(os.WriteFile(filepath.Join(e.b.Upper(e.ls[1]), "n"), nil, 0o600))
	e.expect(e.changes(), "M g mode", "A in/n")
	e.must(sys.Lsetxattr(filepath.Join(up, "f"), "user.b", []byte("1")))
	e.expect(e.changes("f"), "M f xattrs")
}

// Memory stays small however many names there are, and they come in runs that are sorted.
func TestADirectoryOfManyNames(t *testing.T) {
	e := newBench(t)
	e.put("d/real")
	up := filepath.Join(e.b.Upper(e.ls[0]), "d")
	e.must(os.MkdirAll(up, 0o755))
	e.must(sys.Lsetxattr(up, "user.overlay.opaque", []byte("y")))
	one := filepath.Join(up, "0")
	e.must(os.WriteFile(one, nil, 0o644))
	const many = runOfNames + 1000
	for i := 1; i < many; i++ {
		name := filepath.Join(up, strconv.Itoa(i))
		if err := os.Link(one, name); errors.Is(err, syscall.EMLINK) { // 65000 in ext4
			one = name
			e.must(os.WriteFile(one, nil, 0o644))
		} else {
			e.must(err)
		}
	}
	got := e.changes()
	if len(got) != many+1 || !slices.IsSorted(got[:runOfNames]) || !slices.IsSorted(got[runOfNames:many]) || got[many] != "D d/real" {
		t.Errorf("%d changes, the last %q", len(got), got[len(got)-1])
	}
}

// BenchmarkChanges looks over 100,000 files of a box: half of them new, half changed.
func BenchmarkChanges(b *testing.B) {
	e := newBench(b)
	up := e.b.Upper(e.ls[0])
	for d := range 100 {
		dir := fmt.Sprintf("d%02d", d)
		e.put(dir + "/")
		e.must(os.Mkdir(filepath.Join(up, dir), 0o755))
		for i := range 1000 {
			name := filepath.Join(dir, strconv.Itoa(i))
			if i%2 == 0 {
				e.must(os.WriteFile(filepath.Join(e.real, name), []byte("real"), 0o644))
			}
			e.must(os.WriteFile(filepath.Join(up, name), []byte("here"), 0o644))
		}
	}
	for b.Loop() {
		n := 0
		e.must(e.b.Changes(context.Background(), func(*core.Change) error { n++; return nil }))
		if n != 100000 {
			b.Fatalf("%d changes", n)
		}
	}
}

package layers

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SANDGLASS_TEST_COMMIT"); dir != "" {
		commitAndDie(Dir(dir), os.Getenv("SANDGLASS_TEST_STEP"))
	}
	os.Exit(m.Run())
}

// commitAndDie commits a box and is killed at the given step.
func commitAndDie(b Dir, text string) {
	at, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	n := 0
	x := &commit{b: b, ctx: context.Background(), step: func(string) {
		if n == at {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		n++
	}}
	if _, err := x.run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("committed")
	os.Exit(0)
}

// pair is a real directory and a box with a layer of it, made by hand as overlayfs keeps it.
type pair struct {
	*testing.T
	real, up string
	box      Dir
}

func newPair(t *testing.T) *pair {
	t.Helper()
	top, err := os.MkdirTemp("", "sandglass-test-")
	if err == nil {
		top, err = filepath.EvalSymlinks(top)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveTree(top); err != nil {
			t.Error(err)
		}
	})
	p := &pair{T: t, real: filepath.Join(top, "real"), box: Dir(filepath.Join(top, "home", "boxes", "b"))}
	p.up = p.box.At("layers", "0", "upper")
	p.check(os.MkdirAll(filepath.Dir(p.up), 0o700))
	for d, mode := range map[string]fs.FileMode{p.real: 0o755, p.up: 0o755, filepath.Join(filepath.Dir(p.up), "work"): 0o700} {
		p.check(os.Mkdir(d, mode))
	}
	p.check(os.WriteFile(p.box.At("box.json"), []byte("{}"), 0o600))
	p.check(os.WriteFile(p.box.At("layers.json"), fmt.Appendf(nil, `[{"path":%q,"dir":"0"}]`, p.real), 0o600))
	return p
}

func (p *pair) check(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *pair) write(top, name, text string, mode fs.FileMode) string {
	p.Helper()
	f := filepath.Join(top, name)
	p.check(os.MkdirAll(filepath.Dir(f), 0o755))
	p.check(os.WriteFile(f, []byte(text), 0o600))
	p.check(os.Chmod(f, mode))
	return f
}

// later waits until the clock of the file system, which goes in ticks, has gone on: what is
// made then is younger than all that is there.
func (p *pair) later() {
	p.Helper()
	f := filepath.Join(filepath.Dir(p.real), "tick")
	p.check(os.WriteFile(f, nil, 0o600))
	first, err := os.Stat(f)
	p.check(err)
	for end := time.Now().Add(time.Minute); ; {
		p.check(os.Remove(f))
		p.check(os.WriteFile(f, nil, 0o600))
		fi, err := os.Stat(f)
		p.check(err)
		if fi.ModTime().After(first.ModTime()) {
			return
		}
		if time.Now().After(end) {
			p.Fatal("the clock stands still")
		}
	}
}

func (p *pair) whiteout(name string) {
	p.Helper()
	p.check(os.MkdirAll(filepath.Dir(filepath.Join(p.up, name)), 0o755))
	p.check(syscall.Mknod(filepath.Join(p.up, name), syscall.S_IFCHR, 0))
}

func (p *pair) opaque(name string) {
	p.Helper()
	p.check(syscall.Setxattr(filepath.Join(p.up, name), "user.overlay.opaque", []byte("y"), 0))
}

func (p *pair) commit(paths ...string) (*CommitReport, error) {
	for i := range paths {
		paths[i] = filepath.Join(p.real, paths[i])
	}
	return p.box.Commit(context.Background(), CommitOptions{Paths: paths})
}

// changes lists what Changes says.
func (p *pair) changes() []string {
	p.Helper()
	out := []string{}
	p.check(p.box.Changes(context.Background(), func(c *core.Change) error {
		out = append(out, c.Kind.String()+" "+strings.TrimPrefix(c.Path, p.real+"/"))
		return nil
	}))
	return out
}

// look describes a tree in all that a commit is to keep. times says which directories'
// times count: those of directories in which something is changed are not the box's.
func looks(t *testing.T, top string, times func(rel string) bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(top, func(f string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		s, err := Lstat(f)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, f)
		line := fmt.Sprintf("%s %o %d:%d %q", s.Type, s.Mode, s.UID, s.GID, s.Link)
		if s.Type != core.TypeDir || times(rel) {
			line += s.MTime.UTC().Format(" 15:04:05.000000000")
		}
		for _, n := range slices.Sorted(maps.Keys(Xattrs(f))) {
			line += fmt.Sprintf(" %s=%x", n, Xattrs(f)[n])
		}
		if s.Type == core.TypeFile {
			in, err := OpenRegular(f)
			if err != nil {
				return err
			}
			defer in.Close()
			h := sha256.New()
			if _, err := io.Copy(h, in); err != nil {
				return err
			}
			var st syscall.Stat_t
			if err := syscall.Lstat(f, &st); err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x sparse:%v", s.Size, h.Sum(nil)[:8], st.Blocks*512 < s.Size)
			if s.Links > 1 {
				if first[s.Inode] == "" {
					first[s.Inode] = rel
				}
				line += " link:" + first[s.Inode]
			}
		}
		out[rel] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func diffLooks(got, want map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got[k] != want[k] {
			fmt.Fprintf(&b, "%q: is   %s\n%q: want %s\n", k, got[k], k, want[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok {
			fmt.Fprintf(&b, "%q is there: %s\n", k, got[k])
		}
	}
	return b.String()
}

// everything makes a box that has changed something of each kind, and returns what the real
// directory is to be after a commit; times leaves out the directories it changes in.
func everything(t *testing.T) (p *pair, want map[string]string) {
	p = newPair(t)
	for _, f := range []string{"same", "edit", "dir/edit", "dir/gone", "deldir/a", "deldir/sub/b", "tofile/x", "todir", "tolink", "meta/f", "opaque/was", "opaque/sub/was"} {
		p.write(p.real, f, "real "+f, 0o640)
	}
	p.write(p.real, "opened/f", "real", 0o640)
	p.check(os.Chmod(filepath.Join(p.real, "opened"), 0o555))
	p.check(os.Chmod(filepath.Join(p.real, "meta"), 0o750))
	p.check(os.Symlink("same", filepath.Join(p.real, "link")))
	p.check(os.Link(filepath.Join(p.real, "edit"), filepath.Join(p.real, "other name of edit")))
	p.later()

	p.write(p.up, "edit", "the box's, and longer", 0o600)
	p.write(p.up, "dir/edit", "the box's", 0o640)
	p.write(p.up, "opened/f", "the box's", 0o640)
	p.whiteout("dir/gone")
	p.whiteout("deldir")
	p.write(p.up, "tofile", "now a file", 0o644)
	p.write(p.up, "todir/in", "in a directory", 0o444)
	p.check(os.Symlink("/etc/passwd", filepath.Join(p.up, "tolink")))
	p.check(os.Symlink("edit", filepath.Join(p.up, "link")))
	p.check(os.Mkdir(filepath.Join(p.up, "meta"), 0o700))
	p.check(syscall.Setxattr(filepath.Join(p.up, "meta"), "user.colour", []byte("blue"), 0))
	p.check(os.MkdirAll(filepath.Join(p.up, "opaque", "sub"), 0o755))
	p.opaque("opaque")
	p.write(p.up, "opaque/is", "after all", 0o644)
	p.write(p.up, "opaque/sub/is", "too", 0o644)
	p.write(p.up, "new/deep/a\nb\xff", "a hostile name", 0o644)
	p.write(p.up, "new/deep/empty", "", 0o644)
	p.write(p.up, "new/twice", "two names", 0o604)
	p.check(os.Link(filepath.Join(p.up, "new/twice"), filepath.Join(p.up, "thrice")))
	p.check(syscall.Setxattr(filepath.Join(p.up, "new/twice"), "user.sandglass", []byte{0, 1, 0xff}, 0))
	// system.posix_acl_access, version 2: user::rw- user:1:r-- group::r-- mask::r-- other::---
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 4, 0, 1, 0, 0, 0, 4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}
	p.check(syscall.Setxattr(p.write(p.up, "acl", "who may", 0o600), "system.posix_acl_access", acl, 0))
	sparse, err := os.Create(filepath.Join(p.up, "sparse"))
	p.check(err)
	_, err = sparse.WriteAt([]byte("in the middle"), 5<<20)
	p.check(err)
	p.check(sparse.Truncate(9<<20 + 7))
	p.check(sparse.Close())
	p.check(syscall.Mkfifo(filepath.Join(p.up, "new", "fifo"), 0o620))
	p.check(os.Chmod(filepath.Join(p.up, "new", "deep"), 0o555))
	if os.Geteuid() == 0 {
		p.check(os.Chown(filepath.Join(p.up, "new", "twice"), 12, 34))
		p.check(os.Chown(filepath.Join(p.up, "dir", "edit"), 12, 0))
	}
	n := 0
	p.check(filepath.WalkDir(p.up, func(f string, d fs.DirEntry, err error) error {
		if n++; err == nil && d.Type().IsRegular() {
			err = os.Chtimes(f, time.Time{}, time.Unix(1e9, int64(n)*1000001))
		}
		return err
	}))

	// What there is to be, made by means of the world outside.
	dir := filepath.Join(filepath.Dir(p.real), "want")
	for _, c := range [][]string{{"cp", "-a", p.real, dir}, {"chmod", "u+w", dir + "/opened"}, {"rm", "-rf", dir + "/dir/gone", dir + "/deldir", dir + "/tofile", dir + "/todir", dir + "/tolink", dir + "/link", dir + "/opaque", dir + "/edit"},
		{"cp", "-a", "--sparse=always", p.up + "/.", dir}} {
		cmd := exec.Command(c[0], c[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil && !strings.Contains(string(out), "special file") {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	for _, f := range []string{"dir/gone", "deldir"} { // whiteouts
		p.check(os.RemoveAll(filepath.Join(dir, f)))
	}
	p.check(syscall.Removexattr(filepath.Join(dir, "opaque"), "user.overlay.opaque"))
	want = looks(t, dir, newOnly)
	return p, want
}

// newOnly are the directories that are new, whose times are the box's.
func newOnly(rel string) bool { return strings.HasPrefix(rel, "new") || rel == "todir" }

func all(string) bool { return true }

func TestACommitIsWhatTheBoxShows(t *testing.T) {
	p, want := everything(t)
	r, err := p.commit()
	p.check(err)
	if d := diffLooks(looks(t, p.real, newOnly), want); d != "" {
		t.Error(d)
	}
	if got := p.changes(); len(got) > 0 {
		t.Errorf("the box still differs: %q", got)
	}
	if r.Counts != (core.ChangeCounts{Added: 12, Modified: 9, Deleted: 4}) {
		t.Errorf("counts %+v of %d", r.Counts, len(r.Changes))
	}
	if len(r.Left)+len(r.Skipped)+len(r.Warnings) > 0 {
		t.Errorf("%+v", r)
	}
	if left := looks(t, p.up, newOnly); len(left) != 1 { // itself
		t.Errorf("in the layer there are %v", left)
	}
}

// TestACommitThatIsKilledAtAnyStep kills one at each step in turn.
func TestACommitThatIsKilledAtAnyStep(t *testing.T) {
	outcomes := map[string]int{}
	for at := 0; ; at++ {
		p, want := everything(t)
		before, boxBefore := looks(t, p.real, all), p.changes()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "SANDGLASS_TEST_COMMIT="+string(p.box), "SANDGLASS_TEST_STEP="+strconv.Itoa(at))
		out, err := cmd.CombinedOutput()
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ws.Signaled() {
			if err != nil || string(out) != "committed\n" {
				t.Fatalf("at %d: %v: %s", at, err, out)
			}
			break
		}
		recoverKilled(t, p)
		if j, state, err := p.box.readJournal(); j != nil || err != nil {
			t.Fatalf("at %d: the journal is %q (%v)", at, state, err)
		}
		old := diffLooks(looks(t, p.real, all), before)
		if old == "" {
			outcomes["undone"]++
			if got := p.changes(); !slices.Equal(got, boxBefore) {
				t.Fatalf("at %d: undone, and the box has %q", at, got)
			}
			if _, err := p.commit(); err != nil {
				t.Fatalf("at %d: undone, and a second one: %v", at, err)
			}
		} else {
			outcomes["finished"]++
		}
		if d := diffLooks(looks(t, p.real, newOnly), want); d != "" {
			t.Fatalf("at %d: neither the old tree:\n%s\nnor the new one:\n%s", at, old, d)
		}
		if got := p.changes(); len(got) > 0 {
			t.Fatalf("at %d: finished, and the box has %q", at, got)
		}
		if t.Failed() {
			return
		}
		RemoveTree(filepath.Dir(p.real))
	}
	if outcomes["undone"] < 50 || outcomes["finished"] < 10 {
		t.Errorf("too few steps to be all of them: %v", outcomes)
	}
	t.Log(outcomes)
}

type cut struct{}

// recoverKilled recovers, cut short at each step in turn, each time going on from what the
// last one left.
func recoverKilled(t *testing.T, p *pair) {
	t.Helper()
	for at := 0; at < 1000; at++ {
		n := 0
		done := func() (done bool) {
			defer func() {
				if r := recover(); r != nil && r != any(cut{}) {
					panic(r)
				}
			}()
			x := &commit{b: p.box, step: func(string) {
				if n++; n > at {
					panic(cut{})
				}
			}}
			p.check(x.resume())
			return true
		}()
		if done {
			return
		}
	}
	t.Fatal("recovery comes to no end")
}

func TestPathsOfACommit(t *testing.T) {
	for _, test := range []struct {
		name  string
		paths []string
		want  []string // what is committed
		err   string
	}{
		{"a file alone", []string{"edit"}, []string{"M edit"}, ""},
		{"a directory is all that is in it", []string{"dir"}, []string{"M dir/edit", "D dir/gone"}, ""},
		{"new directories on the way come along", []string{"new/deep/empty"}, []string{"A new", "A new/deep", "A new/deep/empty"}, ""},
		{"a name is not the beginning of another", []string{"new/tw"}, nil, "the box has changed nothing there"},
		{"one that is no path", []string{"../x"}, nil, "the box has changed nothing there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := everything(t)
			before := p.changes()
			r, err := p.commit(test.paths...)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v", err)
				}
				return
			}
			p.check(err)
			var got []string
			for _, c := range r.Changes {
				got = append(got, c.Kind.String()+" "+strings.TrimPrefix(c.Path, p.real+"/"))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("committed %q", got)
			}
			rest := slices.DeleteFunc(before, func(c string) bool { return slices.Contains(test.want, c) })
			if got := p.changes(); !slices.Equal(got, rest) {
				t.Errorf("the box has\n%q, want\n%q", got, rest)
			}
		})
	}
	p, _ := everything(t)
	for _, bad := range []string{"relative", p.real + "/../x", p.real + "/", p.real + "//x"} {
		if _, err := p.box.Commit(context.Background(), CommitOptions{Paths: []string{bad}}); err == nil || !strings.Contains(err.Error(), "not an absolute, clean path") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestAnOpaqueDirectoryInParts: a box that has made a directory anew hides what the real one
// has. What is committed of it must not look deleted in the box then.
func TestAnOpaqueDirectoryInParts(t *testing.T) {
	p, _ := everything(t)
	if _, err := p.commit("opaque/is"); err != nil {
		t.Fatal(err)
	}
	got := slices.DeleteFunc(p.changes(), func(c string) bool { return !strings.Contains(c, "opaque") })
	if want := []string{"A opaque/sub/is", "D opaque/sub/was", "D opaque/was"}; !slices.Equal(got, want) {
		t.Errorf("the box has %q, want %q", got, want)
	}
	if _, err := p.commit("opaque"); err != nil {
		t.Fatal(err)
	}
	p.write(p.real, "opaque/later", "made outside", 0o644)
	if got := slices.DeleteFunc(p.changes(), func(c string) bool { return !strings.Contains(c, "opaque") }); len(got) > 0 {
		t.Errorf("all of it is committed, and the box has %q", got)
	}
}

func TestConflicts(t *testing.T) {
	for _, test := range []struct {
		name    string
		outside func(p *pair)
		why     string
		hard    bool
	}{
		{"a file that was changed since", func(p *pair) { p.write(p.real, "edit", "mine", 0o640) }, "edit: the real file has changed since", false},
		{"only its mode", func(p *pair) { p.check(os.Chmod(p.real+"/dir/edit", 0o644)) }, "dir/edit: the real file has changed since", false},
		{"a deleted file that was changed since", func(p *pair) { p.write(p.real, "dir/gone", "mine", 0o640) }, "dir/gone: the real file has changed since", false},
		{"something in a deleted directory", func(p *pair) { p.write(p.real, "deldir/sub/b", "mine", 0o640) }, "deldir: the real directory has changed since", false},
		{"something new in a directory that becomes a file", func(p *pair) { p.write(p.real, "tofile/y", "mine", 0o640) }, "tofile: the real directory has changed since", false},
		{"an added file that is there now", func(p *pair) { p.write(p.real, "acl", "mine", 0o640) }, "acl: the real file has changed since", false},
		{"an added directory that is a file now", func(p *pair) { p.write(p.real, "new", "mine", 0o640) }, "new: the real file has changed since", false},
		{"a directory whose mode was changed since", func(p *pair) { p.check(os.Chmod(p.real+"/meta", 0o711)) }, "meta: the real directory has changed since", false},
		{"a directory that is gone", func(p *pair) {
			p.check(syscall.Setxattr(p.up+"/dir", "user.overlay.origin", []byte{0}, 0)) // as copying up leaves it
			p.check(os.RemoveAll(p.real + "/dir"))
		}, "dir: the real directory is gone since", false},
		{"a directory that is a symbolic link now", func(p *pair) {
			p.check(os.Rename(p.real+"/dir", p.real+"/moved"))
			p.check(os.Symlink("moved", p.real+"/dir"))
		}, "dir: the real symbolic link has changed since", false},
		{"the directory of the layer is gone", func(p *pair) { p.check(os.Rename(p.real, p.real+"2")) }, "real: the directory is gone", true},
		{"the directory of the layer is a symbolic link", func(p *pair) {
			p.check(os.Rename(p.real, p.real+"2"))
			p.check(os.Symlink("real2", p.real))
		}, "real: the directory is not one now", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := everything(t)
			p.later()
			test.outside(p)
			top := filepath.Dir(p.real)
			before := looks(t, top, all)
			_, err := p.commit()
			var conflict *ConflictError
			if !errors.As(err, &conflict) {
				t.Fatalf("error %v", err)
			}
			found := false
			for _, c := range conflict.Conflicts {
				found = found || strings.Contains(c.Path+": "+c.Why, "/"+test.why) && c.Hard == test.hard
			}
			if !found {
				t.Errorf("conflicts %v", conflict.Conflicts)
			}
			ignoreRun(before)
			after := looks(t, top, all)
			ignoreRun(after)
			if d := diffLooks(after, before); d != "" {
				t.Error(d)
			}
			_, err = p.box.Commit(context.Background(), CommitOptions{Force: true})
			if test.hard != (err != nil) {
				t.Errorf("with force: %v", err)
			}
			if !test.hard {
				if got := p.changes(); len(got) > 0 {
					t.Errorf("with force, and the box has %q", got)
				}
			}
		})
	}
}

// ignoreRun leaves the box's lock out.
func ignoreRun(l map[string]string) {
	for k := range l {
		if k == "home/boxes/b" || strings.HasPrefix(k, "home/boxes/b/run") {
			delete(l, k)
		}
	}
}

func TestSetIDBitsNeedForce(t *testing.T) {
	p := newPair(t)
	p.check(os.Chmod(p.write(p.up, "su", "#!/bin/sh\n", 0o755), fs.ModeSetuid|0o755))
	p.check(os.Chmod(p.write(p.up, "sg", "#!/bin/sh\n", 0o755), fs.ModeSetgid|0o755))
	_, err := p.commit()
	var conflict *ConflictError
	if !errors.As(err, &conflict) || len(conflict.Conflicts) != 2 || !strings.Contains(conflict.Conflicts[1].Why, "set-user-ID bit") {
		t.Fatalf("error %v", err)
	}
	r, err := p.box.Commit(context.Background(), CommitOptions{Force: true})
	p.check(err)
	fi, err := os.Stat(p.real + "/su")
	p.check(err)
	if fi.Mode() != fs.ModeSetuid|0o755 || len(r.Warnings) != 2 {
		t.Errorf("mode %v, warnings %v", fi.Mode(), r.Warnings)
	}
}

func TestWhatRunsLaterIsWarnedOf(t *testing.T) {
	p := newPair(t)
	p.write(p.up, ".bashrc", "evil", 0o644)
	p.write(p.up, "else", "text", 0o644)
	r, err := p.commit()
	p.check(err)
	if len(r.Warnings) != 1 || !strings.HasSuffix(r.Warnings[0].Path, "/.bashrc") || !strings.Contains(r.Warnings[0].Why, core.Persists("/home/u/.bashrc")) {
		t.Errorf("warnings %v", r.Warnings)
	}
}

// TestACommitIsNotSomebodyFromOutside: it takes from the layers, and reads them.
func TestACommitIsNotSomebodyFromOutside(t *testing.T) {
	p, _ := everything(t)
	ctx := context.Background()
	p.check(p.box.WriteManifest(ctx))
	_, err := p.commit("edit", "new", "dir")
	p.check(err)
	p.check(p.box.CompareManifest(ctx, func(c OutsideChange) error {
		t.Errorf("%+v", c)
		return nil
	}))
}

func TestSocketsStay(t *testing.T) {
	p := newPair(t)
	p.check(os.Mkdir(p.up+"/d", 0o755))
	p.write(p.up, "d/f", "text", 0o644)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	p.check(err)
	defer syscall.Close(fd)
	p.check(os.Chdir(p.up + "/d"))
	p.check(syscall.Bind(fd, &syscall.SockaddrUnix{Name: "sock"}))
	p.check(os.Chdir("/"))
	r, err := p.commit()
	p.check(err)
	if len(r.Skipped) != 1 || !strings.Contains(r.Skipped[0].Why, "socket") {
		t.Errorf("skipped %v", r.Skipped)
	}
	if got := p.changes(); !slices.Equal(got, []string{"A d/sock"}) {
		t.Errorf("the box has %q", got)
	}
	if _, err := os.Lstat(p.real + "/d/f"); err != nil {
		t.Error(err)
	}
}

// TestPrivatePlaces: the box never saw what is there, so it decides nothing about it.
func TestPrivatePlaces(t *testing.T) {
	p := newPair(t)
	p.write(p.real, ".ssh/id", "secret", 0o600)
	p.write(p.real, ".ssh/config", "mine", 0o600)
	p.later()
	masks, err := json.Marshal([][]byte{[]byte(p.real + "/.ssh")})
	p.check(err)
	p.check(os.WriteFile(p.box.At("masks.json"), masks, 0o600))
	p.write(p.up, ".ssh/config", "the box's", 0o600)
	p.write(p.up, ".ssh/new", "the box's", 0o600)
	p.opaque(".ssh")
	p.write(p.up, "else", "the box's", 0o600)

	r, err := p.commit()
	p.check(err)
	if r.Counts.Total() != 1 || len(r.Skipped) != 2 {
		t.Errorf("%+v, skipped %v", r.Counts, r.Skipped)
	}
	r, err = p.commit(".ssh/new")
	p.check(err)
	if r.Counts.Total() != 1 {
		t.Errorf("%+v", r.Changes)
	}
	var conflict *ConflictError
	if _, err := p.commit(".ssh"); !errors.As(err, &conflict) || !strings.Contains(err.Error(), "never saw") {
		t.Errorf("error %v", err)
	}
	r, err = p.box.Commit(context.Background(), CommitOptions{Force: true, Paths: []string{p.real}})
	p.check(err)
	if len(r.Skipped) != 1 || r.Counts.Total() != 0 {
		t.Errorf("by force, but not by its name: %+v, skipped %v", r.Changes, r.Skipped)
	}
	for name, want := range map[string]string{"id": "secret", "config": "mine"} {
		if got, err := os.ReadFile(p.real + "/.ssh/" + name); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A directory that the box deleted, moved away or replaced may hold what it never saw.
func TestWhatIsAboveAPrivatePlaceIsNotDeleted(t *testing.T) {
	for name, do := range map[string]func(p *pair){
		"deleted":  func(p *pair) { p.whiteout("work") },
		"a file":   func(p *pair) { p.write(p.up, "work", "a file", 0o600) },
		"a link":   func(p *pair) { p.check(os.Symlink("/", p.up+"/work")) },
		"anew":     func(p *pair) { p.write(p.up, "work/new", "new", 0o600); p.opaque("work") },
		"anew, in": func(p *pair) { p.write(p.up, "work/deep/new", "new", 0o600); p.opaque("work/deep") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			secret := p.write(p.real, "work/deep/.env", "secret", 0o600)
			p.write(p.real, "work/open", "open", 0o600)
			p.check(p.box.WriteMasks([]string{secret}))
			p.later()
			do(p)
			for _, o := range []CommitOptions{{}, {Force: true}, {Force: true, Paths: []string{p.real + "/work"}}} {
				if _, err := p.box.Commit(context.Background(), o); err != nil {
					t.Logf("%+v: %v", o, err)
				}
				if got, err := os.ReadFile(secret); string(got) != "secret" {
					t.Fatalf("%+v: %q, %v", o, got, err)
				}
			}
			if strings.HasPrefix(name, "anew") {
				if _, err := os.Lstat(p.real + "/work/open"); name == "anew" && err == nil {
					t.Error("what the box deleted beside it is there")
				}
				return
			}
			r, err := p.commit()
			p.check(err)
			if len(r.Skipped) != 1 || !strings.Contains(r.Skipped[0].Why, secret) {
				t.Errorf("skipped %v", r.Skipped)
			}
		})
	}
}

func TestTheSizeIsWithoutWhatTheSandboxPlanted(t *testing.T) {
	p := newPair(t)
	p.check(p.box.WriteMasks([]string{p.real + "/a/b/secret", p.real + "/own"}))
	p.whiteout("a/b/secret")
	p.whiteout("own")
	if _, n, err := p.box.Size(); n != 0 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
	p.whiteout("a/deleted")
	p.write(p.up, "a/b/file", "text", 0o600)
	p.check(os.Remove(p.up + "/own"))
	p.write(p.up, "own", "the box's", 0o600)
	if _, n, err := p.box.Size(); n != 3 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
}

func TestACommitWhileASessionRuns(t *testing.T) {
	p := newPair(t)
	p.write(p.up, "f", "text", 0o600)
	p.check(os.MkdirAll(p.box.At("run"), 0o700))
	f, err := p.box.Register(SessionRef{ID: "s"})
	p.check(err)
	if _, err := p.commit(); err == nil || len(core.Hints(err)) == 0 {
		t.Errorf("error %v", err)
	}
	f.Close()
	if _, err := p.commit(); err != nil {
		t.Error(err)
	}
}

// TestSomebodyComesBetween has a step's world changed between plan and deed.
func TestSomebodyComesBetween(t *testing.T) {
	for _, test := range []struct {
		name string
		at   string // the step before which it happens
		do   func(p *pair)
	}{
		{"a directory becomes a symbolic link before it is written in", "write the journal", func(p *pair) { p.swap("dir") }},
		{"after", "seal the journal", func(p *pair) { p.swap("dir") }},
		{"another directory is put there", "seal the journal", func(p *pair) {
			p.check(os.Rename(p.real+"/dir", p.real+"/moved"))
			p.check(os.Mkdir(p.real+"/dir", 0o755))
		}},
		{"a directory vanishes", "seal the journal", func(p *pair) { p.check(os.RemoveAll(p.real + "/dir")) }},
		{"a file is changed", "seal the journal", func(p *pair) { p.write(p.real, "edit", "mine", 0o640) }},
		{"a file is changed in the last moment", "exchange dir/edit", func(p *pair) { p.write(p.real, "dir/edit", "mine", 0o640) }},
		{"a file appears", "seal the journal", func(p *pair) { p.write(p.real, "acl", "mine", 0o640) }},
		{"in a directory that goes away", "move aside deldir", func(p *pair) { p.write(p.real, "deldir/sub/b", "mine", 0o640) }},
		{"a file that goes away is another", "move aside gone", func(p *pair) {
			p.check(os.Remove(p.real + "/dir/gone"))
			p.write(p.real, "dir/gone", "mine", 0o640)
		}},
		{"a target becomes a symbolic link", "exchange edit", func(p *pair) {
			p.check(os.Remove(p.real + "/edit"))
			p.check(os.Symlink("/etc/passwd", p.real+"/edit"))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := everything(t)
			var after map[string]string // once it has happened
			victim := filepath.Dir(p.real) + "/victim"
			p.check(os.Mkdir(victim, 0o755))
			p.write(victim, "edit", "never", 0o644)
			p.write(victim, "gone", "never", 0o644)
			boxBefore := p.changes()
			x := &commit{b: p.box, ctx: context.Background(), step: func(what string) {
				what = strings.ReplaceAll(what, p.real+"/", "")
				if what == test.at && after == nil {
					p.later()
					test.do(p)
					after = looks(t, p.real, func(string) bool { return false })
				}
			}}
			_, err := x.run()
			if after == nil {
				t.Fatal("the moment never came")
			}
			if err == nil || !strings.Contains(err.Error(), p.real) {
				t.Errorf("error %v", err)
			}
			if got := looks(t, victim, all); len(got) != 3 {
				t.Errorf("outside there are %v", got)
			}
			for _, f := range []string{"edit", "gone"} {
				if got, _ := os.ReadFile(victim + "/" + f); string(got) != "never" {
					t.Errorf("%s outside is %q", f, got)
				}
			}
			for f := range looks(t, p.real, all) {
				if strings.Contains(f, ".sandglass-") && !strings.HasPrefix(f, "moved/") {
					t.Errorf("%s is left", f)
				}
			}
			if got := p.changes(); len(got) < len(boxBefore)-1 { // what vanished is not deleted any more
				t.Errorf("the box had %q, has %q", boxBefore, got)
			}
		})
	}
}

// TestADirectoryThatIsSwappedAllTheTime has somebody put a symbolic link in the place of a
// directory and back, as fast as he can, while it is committed into.
func TestADirectoryThatIsSwappedAllTheTime(t *testing.T) {
	p := newPair(t)
	victim := filepath.Dir(p.real) + "/victim"
	p.write(victim, "f", "never", 0o644)
	p.write(p.real, "dir/f", "real", 0o644)
	p.check(os.Symlink(victim, p.real+"/link"))
	fd, err := sys.RealDir(p.real)
	p.check(err)
	defer sys.CloseFD(fd)
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				if n%2 == 1 {
					sys.Exchange(fd, "dir", "link")
				}
				stopped <- n
				return
			default:
				if sys.Exchange(fd, "dir", "link") == nil {
					n++
				}
				if n%2 == 0 { // the link is there for a moment only, the directory for longer
					for range 3000 {
						sys.StatAt(fd, "dir")
					}
				}
			}
		}
	}()
	committed := 0
	for i := range 60 {
		p.write(p.up, "dir/f", fmt.Sprint("the box's ", i), 0o644)
		p.write(p.up, "dir/new"+strconv.Itoa(i), "the box's", 0o644)
		if _, err := p.box.Commit(context.Background(), CommitOptions{Force: true}); err == nil {
			committed++
		}
	}
	close(stop)
	if n := <-stopped; n < 60 {
		t.Errorf("swapped %d times only", n)
	}
	if got, _ := os.ReadFile(victim + "/f"); string(got) != "never" || len(looks(t, victim, all)) != 2 {
		t.Errorf("outside there are %q and %v", got, looks(t, victim, all))
	}
	if _, err := p.box.Commit(context.Background(), CommitOptions{Force: true}); err != nil {
		t.Error(err)
	}
	for f := range looks(t, filepath.Dir(p.real), all) {
		if strings.Contains(f, ".sandglass-") {
			t.Errorf("%s is left", f)
		}
	}
	t.Logf("%d of 60 were committed", committed)
}

// swap puts a symbolic link to the victim in the place of a directory.
func (p *pair) swap(name string) {
	p.check(os.Rename(filepath.Join(p.real, name), filepath.Join(p.real, "moved")))
	p.check(os.Symlink(filepath.Dir(p.real)+"/victim", filepath.Join(p.real, name)))
}

// TestACommitIntoAClosedDirectory: what its owner may not write in is refused, unless the box
// has opened it, and opening is part of the commit.
func TestACommitIntoAClosedDirectory(t *testing.T) {
	p := newPair(t)
	p.write(p.real, "closed/f", "real", 0o644)
	p.write(p.real, "opened/f", "real", 0o644)
	for _, d := range []string{"closed", "opened"} {
		p.check(os.Chmod(filepath.Join(p.real, d), 0o555))
	}
	p.later()
	p.write(p.up, "opened/f", "the box's", 0o644)
	_, err := p.commit()
	p.check(err)
	if got, err := os.ReadFile(p.real + "/opened/f"); string(got) != "the box's" {
		t.Errorf("%q, %v", got, err)
	}
	p.later()
	p.write(p.up, "closed/f", "the box's", 0o644)
	p.check(os.Chmod(p.up+"/closed", 0o555))
	p.write(p.up, "else", "the box's", 0o644)
	_, err = p.commit()
	if os.Geteuid() == 0 {
		p.check(err)
		return
	}
	if err == nil || !strings.Contains(err.Error(), p.real+"/closed/f: permission denied") {
		t.Errorf("error %v", err)
	}
	if got, _ := os.ReadFile(p.real + "/closed/f"); string(got) != "real" {
		t.Errorf("%q", got)
	}
	if _, err := os.Lstat(p.real + "/else"); err == nil {
		t.Error("half of it was committed")
	}
}

func TestACommitThatIsCancelled(t *testing.T) {
	p, _ := everything(t)
	before := looks(t, p.real, all)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := p.box.Commit(ctx, CommitOptions{Progress: func(done, total int) {
		if done == total/2 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if d := diffLooks(looks(t, p.real, all), before); d != "" {
		t.Error(d)
	}
}

func TestAPlanThatHasChangedIsNotCarriedOut(t *testing.T) {
	p, _ := everything(t)
	r, err := p.box.Commit(context.Background(), CommitOptions{DryRun: true})
	p.check(err)
	p.write(p.up, "one more", "that nobody has seen", 0o644)
	before := looks(t, p.real, all)
	if _, err := p.box.Commit(context.Background(), CommitOptions{Expect: r.Digest}); err == nil {
		t.Error("it was carried out")
	}
	if d := diffLooks(looks(t, p.real, all), before); d != "" {
		t.Error(d)
	}
	p.check(os.Remove(p.up + "/one more"))
	if _, err := p.box.Commit(context.Background(), CommitOptions{Expect: r.Digest}); err != nil {
		t.Error(err)
	}
}

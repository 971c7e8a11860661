package driver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

func init() {
	programs["move a tree"] = moveATree
	programs["move in all ways"] = moveInAllWays
	programs["move while others write"] = moveWhileOthersWrite
	programs["move while names are exchanged"] = moveWhileNamesAreExchanged
	programs["move much"] = moveMuch
	programs["be killed while moving"] = beKilledWhileMoving
}

// realTree makes a tree below dir with something of all that belongs to files.
func realTree(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"", "empty", "sub/deep/deeper", "closed", "sticky", "setgid"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for f, mode := range map[string]os.FileMode{"plain": 0o644, "private": 0o600, "none": 0, "exec": 0o755, "sub/x": 0o640, "sub/deep/deeper/y": 0o400,
		"closed/in": 0o644, "odd \xff\n\\name": 0o644, "suid": 0o755 | os.ModeSetuid} {
		must(os.WriteFile(filepath.Join(dir, f), []byte("content of "+f), 0o600))
		must(os.Chmod(filepath.Join(dir, f), mode))
	}
	must(os.Link(filepath.Join(dir, "plain"), filepath.Join(dir, "sub/hard")))
	must(os.Link(filepath.Join(dir, "plain"), filepath.Join(dir, "hard")))
	must(os.Symlink("plain", filepath.Join(dir, "link")))
	must(os.Symlink("/nowhere", filepath.Join(dir, "sub/dangling")))
	must(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o640))
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	_, err = f.WriteAt([]byte("in the middle"), 3<<30)
	must(err)
	must(f.Truncate(5 << 30))
	must(f.Close())
	must(syscall.Setxattr(filepath.Join(dir, "plain"), "user.note", []byte("a note"), 0))
	must(syscall.Setxattr(filepath.Join(dir, "sub"), "user.note", []byte("of a directory"), 0))
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}
	for f, name := range map[string]string{"exec": "system.posix_acl_access", "sub/deep": "system.posix_acl_default"} {
		if err := syscall.Setxattr(filepath.Join(dir, f), name, acl, 0); err != nil && err != syscall.ENOTSUP {
			t.Fatal(err)
		}
	}
	must(os.Chmod(filepath.Join(dir, "sticky"), 0o777|os.ModeSticky))
	must(os.Chmod(filepath.Join(dir, "setgid"), 0o755|os.ModeSetgid))
	if os.Geteuid() == 0 {
		must(os.Chown(filepath.Join(dir, "sub/x"), 1234, 2345))
		must(os.Chmod(filepath.Join(dir, "sub/x"), 0o644))
		must(os.Chown(filepath.Join(dir, "setgid"), 0, 2345))
	}
	i := int64(0)
	must(filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		i++
		ts := []syscall.Timespec{{Sec: 1e9 + i, Nsec: 123456789}, {Sec: 9e8 + i, Nsec: 987654321}}
		if d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		return errors.Join(err, syscall.UtimesNano(p, ts))
	}))
	must(os.Chmod(filepath.Join(dir, "closed"), 0o555))
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "closed"), 0o755) })
}

// tell says all of a tree that a rename keeps, a line for each path. How many files a link
// count of a directory counts is the file system's.
func tell(dir string) (map[string]string, error) {
	out := map[string]string{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, dir)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%v %d:%d %d", fi.Mode(), st.Uid, st.Gid, fi.ModTime().UnixNano())
		if !d.IsDir() {
			line += fmt.Sprintf(" size %d links %d", st.Size, st.Nlink)
		}
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			l, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " to " + l
		case fi.Mode().IsRegular():
			if st.Nlink > 1 {
				if inodes[st.Ino] == "" {
					inodes[st.Ino] = rel
				}
				line += " as " + inodes[st.Ino]
			}
			if st.Size > 1<<20 && st.Blocks > 1024 {
				line += fmt.Sprintf(" %d blocks", st.Blocks)
			}
			if f, err := os.Open(p); err == nil {
				b := make([]byte, 4096)
				at := max(0, st.Size-2<<30) // of the sparse one
				n, _ := f.ReadAt(b, at)
				line += fmt.Sprintf(" %x", sha256.Sum256(b[:n]))
				f.Close()
			}
		}
		names := make([]byte, 4096)
		if n, err := syscall.Listxattr(p, names); err == nil && fi.Mode()&fs.ModeSymlink == 0 {
			for name := range strings.FieldsFuncSeq(string(names[:n]), func(r rune) bool { return r == 0 }) {
				v := make([]byte, 4096)
				n, _ := syscall.Getxattr(p, name, v)
				line += fmt.Sprintf(" %s=%x", name, v[:max(n, 0)])
			}
		}
		out[rel] = line
		return nil
	})
	return out, err
}

func fail(format string, a ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", a...)
	os.Exit(1)
}

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

// diff says in what two trees differ.
func diffTrees(a, b map[string]string) (lines []string) {
	both := maps.Clone(a)
	maps.Copy(both, b)
	for _, p := range slices.Sorted(maps.Keys(both)) {
		if a[p] != b[p] {
			lines = append(lines, fmt.Sprintf("%q was %q, is %q", p, a[p], b[p]))
		}
	}
	return lines
}

// TestADirectoryOfTheRealTreeIsRenamed with all that is in it, which the overlay by itself
// refuses.
func TestADirectoryOfTheRealTreeIsRenamed(t *testing.T) {
	for _, observe := range []core.Observe{core.ObserveFull, core.ObserveLean} {
		t.Run(string(observe), func(t *testing.T) {
			l := newLab(t)
			realTree(t, filepath.Join(l.dir, "tree"))
			l.write("other/f", "f")
			check := unharmedBut(t, l.dir)
			r := l.boxed(runOpts{observe: observe}, "move a tree", l.dir)
			check()
			copied := 0
			for _, op := range r.ops {
				if why := op.Detail["why"]; why != "" {
					t.Errorf("not renamed: %s", why)
				}
				if op.Action == core.ActRename && op.Detail["how"] == "copied" && op.Outcome == core.Performed && op.Verdict == core.Redirected && op.Detail["entries"] != "" {
					copied++
				}
			}
			if copied != 1 {
				t.Errorf("%d renames are logged as copied, want 1 of 3", copied)
			}
			r = l.run(runOpts{}, "/bin/sh", "-ec", "cat again/plain again/mine other/in/sub/x; test ! -e tree; ls -A .")
			if want := "content of plainmine and morecontent of sub/xagain\nother\n"; r.out != want {
				t.Errorf("in the next session: %q, want %q\n%s", r.out, want, r.stderr)
			}
			for _, op := range r.ops {
				if op.Target == filepath.Join(l.dir, "again/plain") && op.Action == core.ActRead && op.Verdict != core.Redirected {
					t.Errorf("a read of what was renamed is %s", op.Verdict)
				}
			}
		})
	}
}

// unharmedBut is unharmed without the content, which is large.
func unharmedBut(t *testing.T, dir string) func() {
	t.Helper()
	before, err := tell(dir)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		after, err := tell(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range diffTrees(before, after) {
			t.Errorf("outside: %s", line)
		}
	}
}

func moveATree() {
	must(os.Chdir(os.Args[1]))
	// Something of its own in it, open and locked: it stays the same file.
	f, err := os.OpenFile("tree/mine", os.O_RDWR|os.O_CREATE, 0o644)
	must(err)
	_, err = f.WriteString("mine")
	must(err)
	must(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	fi, err := f.Stat()
	must(err)
	before, err := tell("tree")
	must(err)
	must(os.Rename("tree", "other/moved"))
	after, err := tell("other/moved")
	must(err)
	for _, line := range diffTrees(before, after) {
		fail("after the rename %s", line)
	}
	if _, err := os.Lstat("tree"); !errors.Is(err, fs.ErrNotExist) {
		fail("the old name: %v", err)
	}
	now, err := os.Stat("other/moved/mine")
	must(err)
	if !os.SameFile(fi, now) {
		fail("what was open is another file")
	}
	_, err = f.WriteString(" and more")
	must(err)
	g, err := os.Open("other/moved/mine")
	must(err)
	if e := syscall.Flock(int(g.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); e != syscall.EWOULDBLOCK {
		fail("the lock is gone: %v", e)
	}
	// The box's own: nothing is copied any more.
	must(os.Rename("other/moved", "again"))
	must(os.Mkdir("other/in", 0o755))
	must(os.Rename("again/sub", "other/in/sub"))
	left, err := os.ReadDir(".")
	must(err)
	if len(left) != 2 {
		fail("left behind: %v", left)
	}
	fmt.Println("end")
}

func TestRenamesOfRealDirectories(t *testing.T) {
	l := newLab(t)
	for _, d := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		l.write(d+"/of-"+d, d)
	}
	for _, d := range []string{"empty", "empty2"} {
		os.Mkdir(filepath.Join(l.dir, d), 0o755)
	}
	l.write("file", "file")
	os.Symlink("a", filepath.Join(l.dir, "link"))
	if err := os.MkdirAll(filepath.Join(l.dir, "shut/in"), 0o755); err != nil {
		t.Fatal(err)
	}
	check := unharmed(t, l.dir)
	l.boxed(runOpts{}, "move in all ways", l.dir)
	check()
}

func moveInAllWays() {
	must(os.Chdir(os.Args[1]))
	const cwd = -100
	rename := func(from, to string, flags uint32, want error) {
		if err := sys.Rename2(cwd, from, cwd, to, flags); err != want && !(want == nil && err == nil) {
			fail("rename(%q, %q, %d): %v, want %v", from, to, flags, err, want)
		}
	}
	has := func(p, want string) {
		if data, err := os.ReadFile(p); err != nil || string(data) != want {
			fail("%s: %q, %v, want %q", p, data, err, want)
		}
	}
	rename("a", "b", 0, syscall.ENOTEMPTY)
	rename("a", "empty", sys.RenameNoreplace, syscall.EEXIST)
	rename("a", "file", 0, syscall.ENOTDIR)
	rename("file", "a", 0, syscall.EISDIR)
	rename("a", "a/in", 0, syscall.EINVAL)
	rename("a/..", "x", 0, syscall.EBUSY)
	rename("a/.", "x", 0, syscall.EBUSY)
	rename("link/", "x", 0, syscall.ENOTDIR)
	rename("a", "none/x", 0, syscall.ENOENT)
	rename("none", "x", 0, syscall.ENOENT)
	rename("a", "/dev/shm/x", 0, syscall.EXDEV)
	rename("a", "a", 0, nil)
	rename("a/", "empty/", 0, nil)
	has("empty/of-a", "a")
	rename("empty", "a", sys.RenameNoreplace, nil)
	has("a/of-a", "a")
	rename("b", "c", sys.RenameExchange, nil)
	has("b/of-c", "c")
	has("c/of-b", "b")
	rename("d", "file", sys.RenameExchange, nil)
	has("file/of-d", "d")
	has("d", "file")
	must(os.Mkdir("mine", 0o755))
	rename("mine", "e", sys.RenameExchange, nil)
	has("mine/of-e", "e")
	rename("f", "mine/f", 0, nil)
	has("mine/f/of-f", "f")
	// A real directory that the box has replaced by a file.
	must(os.RemoveAll("empty2"))
	must(os.WriteFile("empty2", []byte("2"), 0o644))
	rename("empty2", "b", sys.RenameExchange, nil)
	has("b", "2")
	rename("empty2", "b", sys.RenameExchange, nil)
	// By descriptor, and what is in a directory that moves with it.
	dir, err := os.Open("mine")
	must(err)
	must(sys.Rename2(cwd, "g", int(dir.Fd()), "f/g", 0))
	has("mine/f/g/of-g", "g")
	rename("mine", "yours", 0, nil)
	has("yours/f/g/of-g", "g")
	if os.Geteuid() != 0 { // who may not change its ".." may not move it elsewhere
		must(os.Chmod("shut", 0o555))
		rename("shut", "yours/shut", 0, syscall.EACCES)
		rename("shut/in", "x", 0, syscall.EACCES)
	}
	ents, err := os.ReadDir(".")
	must(err)
	var names []string
	for _, e := range ents {
		names = append(names, e.Name())
	}
	if want := []string{"a", "b", "c", "d", "e", "empty2", "file", "link", "shut", "yours"}; !slices.Equal(names, want) {
		fail("left are %q, want %q", names, want)
	}
	fmt.Println("end")
}

// What the box makes and changes in a directory while it is renamed goes with it.
func TestWhatIsWrittenWhileADirectoryIsRenamedIsNotLost(t *testing.T) {
	l := newLab(t)
	for i := range 300 {
		l.write(fmt.Sprintf("tree/%d/f", i%10+1), "real")
		l.write(fmt.Sprintf("tree/%d/f%d", i%10+1, i), "real")
	}
	check := unharmed(t, l.dir)
	l.boxed(runOpts{}, "move while others write", l.dir)
	check()
}

func moveWhileOthersWrite() {
	must(os.Chdir(os.Args[1]))
	var wg sync.WaitGroup
	made := make([][]string, 3)
	stop := make(chan struct{})
	ready := make(chan struct{}, len(made))
	for w := range made {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("%d/made-%d-%d", i%10+1, w, i)
				if f, err := os.OpenFile("tree/"+name, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
					f.WriteString(name)
					f.Close()
					made[w] = append(made[w], name)
				}
				if i == 20 {
					ready <- struct{}{}
				}
			}
		})
	}
	for range made {
		<-ready
	}
	err := os.Rename("tree", "moved")
	close(stop)
	wg.Wait()
	must(err)
	n := 0
	for _, names := range made {
		for _, name := range names {
			if data, err := os.ReadFile("moved/" + name); err != nil || string(data) != name {
				fail("%s: %q, %v", name, data, err)
			}
			n++
		}
	}
	if n < 60 {
		fail("only %d files were made", n)
	}
	fmt.Println("end")
}

// Names that are exchanged while a tree is copied lead its copy nowhere else.
func TestNamesThatAreExchangedWhileADirectoryIsRenamed(t *testing.T) {
	l := newLab(t)
	for i := range 20 {
		l.write(fmt.Sprintf("tree%d/sub/deep/f", i), "real")
		l.write(fmt.Sprintf("tree%d/sub/g", i), "real")
	}
	l.write("secret/f", "secret")
	check := unharmed(t, l.dir)
	l.boxed(runOpts{}, "move while names are exchanged", l.dir)
	check()
}

func moveWhileNamesAreExchanged() {
	must(os.Chdir(os.Args[1]))
	must(os.Symlink("/etc", "toetc"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 20 {
		tree := fmt.Sprintf("tree%d", i)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				const cwd = -100
				sys.Rename2(cwd, tree+"/sub/g", cwd, "toetc", sys.RenameExchange)
				ents, _ := os.ReadDir(".")
				for _, e := range ents {
					if strings.HasPrefix(e.Name(), ".sandglass-moves") { // the copy, while it is made
						os.Rename(e.Name()+"/sub", "stolen")
						os.Symlink("/etc", e.Name()+"/sub")
						os.Rename("stolen", e.Name()+"/sub/stolen")
					}
				}
			}
		})
		os.Rename(tree, tree+"-moved") // whatever comes of it
		os.Rename(tree+"-moved", tree)
	}
	close(stop)
	wg.Wait()
	fmt.Println("end")
}

// A session that ends while a tree is copied ends at once, and nothing is left of the copy.
func TestASessionThatEndsWhileADirectoryIsRenamed(t *testing.T) {
	l := newLab(t)
	for i := range 2000 {
		l.write(fmt.Sprintf("tree/%d/f%d", i%20, i), "real")
	}
	check := unharmed(t, l.dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l.run(runOpts{ctx: ctx, quiet: true, env: []string{"BOXED_PROGRAM=move much"}, live: func(op *core.Operation) {
		if strings.HasSuffix(op.Target, "/it-has-begun") {
			cancel()
		}
	}}, l.self(), l.dir)
	check()
	r := l.sh("ls -A; find . -type f | wc -l")
	if r.out != "tree\n2000\n" && r.out != "moved\n2000\n" {
		t.Errorf("afterwards: %q", r.out)
	}
	check()
}

func moveMuch() {
	must(os.Chdir(os.Args[1]))
	go os.Rename("tree", "moved")
	awaitCopy()
	os.Open("it-has-begun")
	select {}
}

// awaitCopy returns when the copy of a tree is seen in the working directory.
func awaitCopy() {
	for {
		ents, err := os.ReadDir(".")
		must(err)
		for _, e := range ents {
			if strings.HasPrefix(e.Name(), ".sandglass-moves") || e.Name() == "moved" {
				return
			}
		}
	}
}

// A program that is killed while it waits for its rename: it comes to nothing, or to all.
func TestAProgramThatIsKilledWhileADirectoryIsRenamed(t *testing.T) {
	l := newLab(t)
	for i := range 2000 {
		l.write(fmt.Sprintf("tree/%d/f%d", i%20, i), "real")
	}
	check := unharmed(t, l.dir)
	l.boxed(runOpts{}, "be killed while moving", l.dir)
	check()
}

func beKilledWhileMoving() {
	must(os.Chdir(os.Args[1]))
	if len(os.Args) > 2 {
		must(os.Rename("tree", "moved"))
		os.Exit(0)
	}
	p, err := os.StartProcess("/proc/self/exe", []string{os.Args[0], ".", "child"}, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, os.Stdout, os.Stderr}})
	must(err)
	awaitCopy()
	must(p.Kill())
	_, err = p.Wait()
	must(err)
	for { // until what was begun is undone, or done
		ents, err := os.ReadDir(".")
		must(err)
		if len(ents) == 1 {
			n := 0
			must(filepath.WalkDir(ents[0].Name(), func(p string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					n++
				}
				return err
			}))
			if n == 2000 && (ents[0].Name() == "tree" || ents[0].Name() == "moved") {
				break
			}
			fail("%d files in %s", n, ents[0].Name())
		}
	}
	fmt.Println("end")
}

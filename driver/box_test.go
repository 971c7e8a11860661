package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

func TestMain(m *testing.M) {
	Stage()
	if f, ok := programs[os.Getenv("BOXED_PROGRAM")]; ok {
		f()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// programs are run in a box (or outside) by re-executing the test binary: small,
// exact, and without a C library that opens files of its own. Each ends with a word
// on standard output: a test passes only when the program got there.
var programs = map[string]func(){}

// lab is a place for one test: a state folder, a box and a real directory to harm.
type lab struct {
	t    *testing.T
	home string
	dir  string // real files, which must stay as they are
	seq  int
}

func newLab(t *testing.T) *lab {
	t.Helper()
	// Not below t.TempDir, whose removal would stumble over directories that only
	// removeTree can enter.
	top, err := os.MkdirTemp("", "sandglass-test-")
	if err != nil {
		t.Fatal(err)
	}
	if top, err = filepath.EvalSymlinks(top); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := layers.RemoveTree(top); err != nil {
			t.Errorf("something is left: %v", err)
		}
	})
	l := &lab{t: t, home: filepath.Join(top, "home"), dir: filepath.Join(top, "work")}
	for _, d := range []string{l.home, l.dir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func (l *lab) write(name, text string) string {
	l.t.Helper()
	p := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return p
}

type result struct {
	code   int
	out    string
	ops    []core.Operation
	err    error
	took   time.Duration
	stderr string
}

// options of a run; the zero value is the default.
type runOpts struct {
	box     string
	observe core.Observe
	net     core.Net
	env     []string
	stdin   string
	ctx     context.Context
	live    func(*core.Operation)
	log     func(*core.Operation) error
	quiet   bool
	policy  func(*core.Policy)
	guarded func() []uint16
	ended   func()
	capture string // file for packets
	notice  func(string)
}

func (l *lab) run(o runOpts, argv ...string) result {
	l.t.Helper()
	if o.box == "" {
		o.box = "b"
	}
	if o.ctx == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		o.ctx = ctx
	}
	observe, err := core.ParseObserve(string(o.observe))
	if err != nil {
		l.t.Fatal(err)
	}
	network, err := core.ParseNet(string(o.net))
	if err != nil {
		l.t.Fatal(err)
	}
	l.seq++
	pol, err := core.BuiltinPolicy("")
	if err != nil {
		l.t.Fatal(err)
	}
	if o.policy != nil {
		o.policy(pol)
	}
	dir := filepath.Join(l.home, "boxes", o.box)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	inR, inW, _ := os.Pipe()
	outR, outW, _ := os.Pipe()
	errR, errW, _ := os.Pipe()
	var out, stderr bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(&out, io.LimitReader(outR, 64<<20)) })
	wg.Go(func() { io.Copy(&stderr, io.LimitReader(errR, 1<<20)) })
	go func() { io.WriteString(inW, o.stdin); inW.Close() }()
	var r result
	begin := time.Now()
	r.code, r.err = Run(o.ctx, Options{
		BoxDir: dir, Hide: []string{l.home}, Policy: pol, Dir: l.dir,
		Session: core.Session{ID: core.SessionID(fmt.Sprintf("S%d-%s", l.seq, o.box)), Box: o.box, Command: argv, Observe: observe, Net: network},
		Env:     append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + l.dir, "LC_ALL=C"}, o.env...),
		Stdin:   inR, Stdout: outW, Stderr: errW, Guarded: o.guarded, Ended: o.ended, Capture: o.capture, CaptureLimit: 256 << 10, Notice: o.notice,
		Log: func(op *core.Operation) error {
			r.ops = append(r.ops, *op)
			if o.live != nil {
				o.live(op)
			}
			if o.log != nil {
				return o.log(op)
			}
			return nil
		},
	})
	r.took = time.Since(begin)
	for _, f := range []*os.File{inR, outW, errW} {
		f.Close()
	}
	wg.Wait()
	outR.Close()
	errR.Close()
	r.out, r.stderr = out.String(), stderr.String()
	if !o.quiet && r.err != nil {
		l.t.Errorf("run %q: %v (hints %q)\n%s", argv, r.err, core.Hints(r.err), r.stderr)
	}
	l.whole(r.ops)
	return r
}

// sh runs a script and expects it to succeed.
func (l *lab) sh(script string) result {
	l.t.Helper()
	r := l.run(runOpts{}, "/bin/sh", "-ec", script)
	if r.code != 0 {
		l.t.Errorf("%s\n: exit code %d\n%s%s", script, r.code, r.out, r.stderr)
	}
	return r
}

// self is the path of the test binary.
func (l *lab) self() string {
	l.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	return exe
}

func (l *lab) boxDir(name string) string { return filepath.Join(l.home, "boxes", name) }

// boxed runs one of the programs above in a box, and checks that it came to its end.
func (l *lab) boxed(o runOpts, name string, args ...string) result {
	l.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	o.env = append(o.env, "BOXED_PROGRAM="+name)
	r := l.run(o, append([]string{exe}, args...)...)
	if r.code != 0 || !strings.HasSuffix(r.out, "end\n") {
		l.t.Errorf("program %s: exit code %d, output %q\n%s", name, r.code, r.out, r.stderr)
	}
	return r
}

// whole checks what holds for the log of every session.
func (l *lab) whole(ops []core.Operation) {
	l.t.Helper()
	for i, op := range ops {
		if op.Seq != core.Seq(i+1) {
			l.t.Fatalf("operation %d has number %d", i+1, op.Seq)
		}
		if op.Verdict == core.Blocked && op.Errno == "" && op.Action != core.ActResolve { // that has an rcode
			l.t.Errorf("blocked without an errno: %v", op)
		}
	}
}

// below returns what the ops say of files below dir, as lines "action target verdict"
// with dir cut off, reads by the dynamic linker and the like left out by their place.
func below(ops []core.Operation, dir string) (lines []string) {
	for _, op := range ops {
		if !under(op.Target, dir) || op.Surface == core.ProcessLife || op.Surface == core.FilesExec || op.PID == 0 {
			continue
		}
		cut := func(s string) string { return strings.TrimPrefix(strings.TrimPrefix(s, dir), "/") }
		line := fmt.Sprintf("%s %s %s", op.Action, cut(op.Target), op.Verdict)
		if to := op.Detail["to"]; to != "" {
			line += " to " + cut(to)
		}
		if from := op.Detail["from"]; from != "" {
			line += " from " + cut(from)
		}
		if op.Errno != "" {
			line += " " + op.Errno
		}
		lines = append(lines, line)
	}
	return lines
}

// manifest describes every file below dir: path, type, mode, owner, size, time, content.
func manifest(t *testing.T, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%v %d:%d %d %v %d", fi.Mode(), st.Uid, st.Gid, fi.Size(), fi.ModTime().UnixNano(), st.Nlink)
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + string(data)
		case fi.Mode()&os.ModeSymlink != 0:
			link, _ := os.Readlink(p)
			line += " -> " + link
		}
		m[p] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// unharmed returns a check that dir is as it is now.
func unharmed(t *testing.T, dir string) func() {
	t.Helper()
	before := manifest(t, dir)
	return func() {
		t.Helper()
		after := manifest(t, dir)
		for p, want := range before {
			if after[p] != want {
				t.Errorf("%s was %q, is %q", p, core.Shorten(want, 200), core.Shorten(after[p], 200))
			}
		}
		for p := range after {
			if _, ok := before[p]; !ok {
				t.Errorf("%s has appeared", p)
			}
		}
	}
}

func TestWritesLandInTheBox(t *testing.T) {
	l := newLab(t)
	l.write("real.txt", "real")
	l.write("gone.txt", "gone")
	l.write("tree/a/b.txt", "b")
	check := unharmed(t, l.dir)
	l.sh(`echo box > real.txt; rm gone.txt; mkdir new; echo n > new/n; mv tree/a/b.txt c.txt; ln -s real.txt link
		chmod 600 real.txt; touch -d 2001-01-01 real.txt; rm -r tree; ln c.txt hard; mkfifo fifo; sed -i s/box/BOX/ real.txt`)
	check()
	r := l.sh(`cat real.txt c.txt new/n; ls; test ! -e gone.txt; test ! -e tree`)
	check()
	if want := "BOX\nbn\nc.txt\nfifo\nhard\nlink\nnew\nreal.txt\n"; r.out != want {
		t.Errorf("the next session of the box sees %q, want %q", r.out, want)
	}
	if r := l.run(runOpts{box: "other"}, "/bin/cat", "real.txt"); r.out != "real" {
		t.Errorf("another box sees %q", r.out)
	}
}

// A user's folder below a directory of root's that is no mount of its own.
func TestAFolderBelowAnotherOwners(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "sandglass-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l := newLab(t)
	l.dir = filepath.Join(dir, "work")
	l.write("real", "real")
	check := unharmed(t, dir)
	r := l.sh("echo box > real; echo new > new; cat real new; ls -d ..; echo x > /var/tmp/" + filepath.Base(dir) + ".probe")
	check()
	if r.out != "box\nnew\n..\n" {
		t.Errorf("in the box: %q", r.out)
	}
	if _, err := os.Lstat(dir + ".probe"); err == nil {
		t.Error("the file is there, outside")
	}
}

// A session begins in a folder that the box has replaced by a link to another one: the
// layers are made ready for it outside of the box.
func TestABoxThatPutsALinkInTheWayOfItsNextSession(t *testing.T) {
	l := newLab(t)
	l.write("x/work/f", "real")
	l.write("secret/f", "real")
	top := l.dir
	check := unharmed(t, top)
	l.sh("rm -r x; ln -s " + top + "/secret x")
	check()
	l.dir = filepath.Join(top, "x/work")
	if r := l.run(runOpts{quiet: true}, "/bin/ls", top+"/x"); r.err == nil {
		t.Errorf("it began in a folder that the box does not have: %q", r.out)
	}
	check()
}

// The same where the way there is of another owner, and where a mount point has appeared.
func TestNoLinkInALayerIsFollowed(t *testing.T) {
	dir := t.TempDir()
	b := boxDir{layers.Dir(filepath.Join(dir, "box"))}
	outer := layers.Layer{Path: "/usr", Dir: "0"}
	real := filepath.Join(dir, "real")
	for _, d := range []string{b.Upper(outer), filepath.Join(real, "bin")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(real, filepath.Join(b.Upper(outer), "local")); err != nil {
		t.Fatal(err)
	}
	check := unharmed(t, real)
	if err := b.reach([]layers.Layer{outer}, "/usr/local/lib"); err != nil {
		t.Error(err)
	}
	check()
	inner := layers.Layer{Path: "/usr/local/bin", Dir: "1"}
	if err := b.makeLayer(&inner, []layers.Layer{outer}); err != nil {
		t.Error(err)
	}
	check()
	if _, err := os.Lstat(b.Upper(inner)); err != nil {
		t.Error(err)
	}
}

func TestHardLinkToARealFileIsAcrossFileSystems(t *testing.T) {
	l := newLab(t)
	real := l.write("real", "real")
	check := unharmed(t, l.dir)
	r := l.run(runOpts{observe: core.ObserveLean}, "/bin/sh", "-c", `ln real link; ln none link2; ln -s real soft; ln soft soft2; echo mine > mine; ln mine mine2; ls`)
	check()
	if r.out != "mine\nmine2\nreal\nsoft\nsoft2\n" {
		t.Errorf("in the box: %q\n%s", r.out, r.stderr)
	}
	var refused []string
	for _, op := range r.ops {
		if op.Verdict == core.Blocked {
			refused = append(refused, fmt.Sprint(op.Action, " ", op.Target, " from ", op.Detail["from"], " ", op.Errno))
		}
	}
	if want := []string{"link " + l.dir + "/link from " + real + " EXDEV"}; !reflect.DeepEqual(refused, want) {
		t.Errorf("refused %q, want %q", refused, want)
	}
}

func TestAReadOfWhatALeanSessionChangedIsKnown(t *testing.T) {
	l := newLab(t)
	f := l.write("f", "real")
	l.write("g", "real")
	l.run(runOpts{}, "/bin/true") // makes the filter
	l.run(runOpts{observe: core.ObserveLean}, "/bin/sh", "-c", "echo box > f")
	for range 2 {
		r := l.run(runOpts{}, "/bin/cat", "f", "g")
		for _, op := range r.ops {
			if want := core.Redirected; op.Target == f && op.Verdict != want {
				t.Errorf("a read of what the box changed is %s", op.Verdict)
			}
			if op.Target == filepath.Join(l.dir, "g") && op.Verdict != core.Allowed {
				t.Errorf("a read of a real file is %s", op.Verdict)
			}
		}
	}
}

func TestWritesOutsideHomeLandInTheBox(t *testing.T) {
	l := newLab(t)
	name := filepath.Base(filepath.Dir(l.dir))
	check := unharmed(t, l.dir)
	l.sh(`echo x > /tmp/` + name + `.probe; echo x > /dev/shm/` + name + `; echo x > /run/` + name + `; mkdir -p /tmp/` + name + `.d/e`)
	check()
	for _, p := range []string{"/tmp/" + name + ".probe", "/dev/shm/" + name, "/run/" + name, "/tmp/" + name + ".d"} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			os.RemoveAll(p)
			t.Errorf("%s is there, outside: %v", p, err)
		}
	}
}

func TestLogOfAScriptedSession(t *testing.T) {
	l := newLab(t)
	l.write("real.txt", "real")
	l.write("d/in.txt", "in")
	os.Symlink("real.txt", filepath.Join(l.dir, "link"))
	os.Symlink("d", filepath.Join(l.dir, "dlink"))
	check := unharmed(t, l.dir)
	r := l.boxed(runOpts{}, "script", l.dir)
	check()
	got := below(r.ops, l.dir)
	want := []string{
		"read real.txt allowed",
		"read real.txt allowed", // through link
		"read missing allowed",
		"create new.txt redirected",
		"read new.txt redirected",
		"write real.txt redirected",
		"read real.txt redirected",
		"mkdir sub redirected",
		"path sub redirected",
		"create sub/f redirected", // by dirfd
		"rename sub/f redirected to sub/g",
		"read sub/g redirected",
		"read d/in.txt allowed", // dlink/../dlink/./in.txt
		"symlink s redirected from real.txt",
		"link h redirected from real.txt",
		"chmod real.txt redirected", // through link
		"chmod new.txt redirected",  // by descriptor
		"utime d/in.txt redirected",
		"truncate new.txt redirected",
		"truncate new.txt redirected", // by descriptor
		"setxattr new.txt blocked EPERM",
		"mknod fifo redirected",
		"mknod dev blocked EPERM",
		"bind sock redirected",
		"delete s redirected",
		"delete sub/g redirected",
		"rmdir sub redirected",
		"read d redirected",        // the directory: d/in.txt below it was copied up
		"create d/x redirected",    // relative, after chdir
		"read d/x redirected",      // /proc/self/fd/N
		"read d/x redirected",      // /proc/self/cwd/x
		"path real.txt redirected", // O_PATH
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the log says\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	exe, _ := os.Executable()
	exe, _ = filepath.EvalSymlinks(exe)
	for _, op := range r.ops {
		if under(op.Target, l.dir) && op.PID != 0 && op.Surface != core.FilesExec && (op.Exe != exe || op.PID < 2) {
			t.Errorf("operation %d: by %q, pid %d", op.Seq, op.Exe, op.PID)
		}
	}
}

func init() { programs["script"] = script }

func script() {
	d := os.Args[1]
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	open := func(p string, flags int) int {
		fd, err := syscall.Open(p, flags, 0o644)
		must(err)
		return fd
	}
	read := func(p string) { syscall.Close(open(p, syscall.O_RDONLY)) }
	read(d + "/real.txt")
	read(d + "/link")
	if _, err := syscall.Open(d+"/missing", syscall.O_RDONLY, 0); err != syscall.ENOENT {
		must(fmt.Errorf("missing: %v", err))
	}
	newfd := open(d+"/new.txt", syscall.O_CREAT|syscall.O_RDWR)
	read(d + "/new.txt")
	syscall.Close(open(d+"/real.txt", syscall.O_WRONLY|syscall.O_TRUNC))
	read(d + "/real.txt")
	must(syscall.Mkdir(d+"/sub", 0o755))
	sub := open(d+"/sub", oPath)
	fd, err := syscall.Openat(sub, "f", syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY, 0o600)
	must(err)
	syscall.Close(fd)
	must(syscall.Renameat(sub, "f", sub, "g"))
	read(d + "/sub/g")
	read(d + "/dlink/../dlink/./in.txt")
	must(syscall.Symlink("real.txt", d+"/s"))
	must(syscall.Link(d+"/real.txt", d+"/h"))
	must(syscall.Chmod(d+"/link", 0o640))
	must(syscall.Fchmod(newfd, 0o600))
	must(syscall.UtimesNano(d+"/dlink/in.txt", []syscall.Timespec{{Sec: 1}, {Sec: 1}}))
	must(syscall.Truncate(d+"/new.txt", 10))
	must(syscall.Ftruncate(newfd, 20))
	if err := syscall.Setxattr(d+"/new.txt", "user.overlay.opaque", []byte("y"), 0); err != syscall.EPERM {
		must(fmt.Errorf("forged attribute: %v", err))
	}
	must(syscall.Mkfifo(d+"/fifo", 0o600))
	if err := syscall.Mknod(d+"/dev", syscall.S_IFCHR, 0); err != syscall.EPERM {
		must(fmt.Errorf("device node: %v", err))
	}
	s, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	must(err)
	must(syscall.Chdir(d))
	must(syscall.Bind(s, &syscall.SockaddrUnix{Name: "sock"}))
	must(syscall.Unlink(d + "/s"))
	must(syscall.Unlinkat(sub, "g"))
	must(syscall.Rmdir(d + "/sub"))
	read(d + "/d")
	must(syscall.Chdir(d + "/d"))
	x := open("x", syscall.O_CREAT|syscall.O_RDWR)
	read(fmt.Sprintf("/proc/self/fd/%d", x))
	read("/proc/self/cwd/x")
	syscall.Close(open(d+"/link", oPath))
	fmt.Println("end")
}

func TestProcessesAreBornAndDie(t *testing.T) {
	l := newLab(t)
	r := l.sh(`/bin/true; /bin/sh -c 'exit 3' || :; /bin/sh -c 'kill -9 $$' || :; (exit 4) || :`)
	var starts, exits []string
	live := map[core.ProcID]bool{}
	for _, op := range r.ops {
		if op.Surface != core.ProcessLife {
			continue
		}
		switch op.Action {
		case core.ActStart:
			starts = append(starts, string(op.Proc))
			if live[op.Proc] {
				t.Errorf("process %s starts twice", op.Proc)
			}
			if p := core.ProcID(op.Detail["pproc"]); p != "" && !live[p] {
				t.Errorf("process %s has the parent %s, which does not live", op.Proc, p)
			}
			live[op.Proc] = true
		case core.ActExit:
			exits = append(exits, op.Detail["code"]+op.Detail["signal"])
			if !live[op.Proc] {
				t.Errorf("process %s ends without a start", op.Proc)
			}
			delete(live, op.Proc)
		}
	}
	if want := []string{"0", "3", "SIGKILL", "4", "0"}; !sameSet(exits, want) || len(starts) != len(want) {
		t.Errorf("starts %q, exits %q, want %q", starts, exits, want)
	}
	if len(live) > 0 {
		t.Errorf("never ended: %v", live)
	}
}

func sameSet(a, b []string) bool {
	m := map[string]int{}
	for _, x := range a {
		m[x]++
	}
	for _, x := range b {
		m[x]--
	}
	for _, n := range m {
		if n != 0 {
			return false
		}
	}
	return len(a) == len(b)
}

func TestExitCodes(t *testing.T) {
	l := newLab(t)
	l.write("data", "no program")
	for _, c := range []struct {
		name string
		argv []string
		want int
	}{
		{"success", []string{"/bin/true"}, 0},
		{"failure", []string{"/bin/sh", "-c", "exit 42"}, 42},
		{"by PATH", []string{"sh", "-c", "exit 7"}, 7},
		{"a signal is 128 and its number", []string{"/bin/sh", "-c", "kill -TERM $$"}, 143},
		{"a command that is not there", []string{"no-such-command-anywhere"}, 127},
		{"a path that is not there", []string{"./no/such"}, 127},
		{"a file that is no program", []string{"./data"}, 126},
		{"a directory", []string{"/tmp"}, 126},
	} {
		r := l.run(runOpts{quiet: true}, c.argv...)
		var ce *CommandError
		if r.code != c.want || r.err != nil && !errors.As(r.err, &ce) {
			t.Errorf("%s: exit code %d (%v), want %d", c.name, r.code, r.err, c.want)
		}
	}
}

func TestBoxHasNoPrivilegesAndNoStrangers(t *testing.T) {
	l := newLab(t)
	extra, err := os.Open("/etc/passwd") // a descriptor that must not get in
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	syscall.Syscall(syscall.SYS_FCNTL, extra.Fd(), syscall.F_SETFD, 0)
	t.Setenv("SSH_AUTH_SOCK", "/x")
	r := l.run(runOpts{env: []string{"SSH_AUTH_SOCK=/x", "KEEP=1", "DBUS_SESSION_BUS_ADDRESS=unix:path=/x"}}, "/bin/sh", "-c",
		`grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -s '\t ' ' '; id -u; ls /proc/self/fd | tr '\n' ' '; echo
		ls /proc | grep -c '^[0-9]'; env | grep -E 'SSH|path=/x|KEEP'; cat /proc/net/dev | grep -c :; (exec 3</proc/1/mem) 2>/dev/null && echo init-open; (exec 3</proc/1/environ) 2>/dev/null && echo init-open; kill -9 1; kill -TERM 1; echo survived`)
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	want := []string{"CapInh: 0000000000000000", "CapPrm: 0000000000000000", "CapEff: 0000000000000000", "CapBnd: 0000000000000000",
		"CapAmb: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2", fmt.Sprint(os.Getuid()), "0 1 2 3 ", "4", "KEEP=1", "2", "survived"}
	if len(lines) != len(want) {
		t.Fatalf("%d lines:\n%s\nwant %q", len(lines), r.out, want)
	}
	for i := range want {
		if i == 9 { // the number of processes: init, sh, ls, grep at most
			continue
		}
		if strings.TrimSpace(lines[i]) != strings.TrimSpace(want[i]) {
			t.Errorf("line %d: %q, want %q", i, lines[i], want[i])
		}
	}
}

func TestRefusedCallsAreLogged(t *testing.T) {
	l := newLab(t)
	r := l.boxed(runOpts{observe: core.ObserveLean}, "refused")
	var got []string
	for _, op := range r.ops {
		if op.Verdict == core.Blocked {
			got = append(got, fmt.Sprintf("%s %s %s %s", op.Surface, op.Action, op.Target, op.Errno))
		}
	}
	want := []string{
		"system.kernel mount /mnt EPERM",
		"system.kernel mount /mnt EPERM",
		"system.kernel namespace / EPERM",
		"system.kernel namespace CLONE_NEWUSER EPERM",
		"system.kernel namespace CLONE_NEWTIME|CLONE_NEWNET EPERM",
		"system.kernel namespace CLONE_NEWUSER EPERM",
		"system.kernel namespace CLONE_NEWNS EPERM",
		"system.kernel io_uring io_uring_setup ENOSYS",
		"files.handle handle /etc EOPNOTSUPP",
		"files.handle handle  EPERM",
	}
	if abi := "system.abi syscall x32 call 39 ENOSYS"; sys.NativeArch() == sys.ArchAMD64 {
		want = append(want, abi)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestStateIsHidden(t *testing.T) {
	l := newLab(t)
	secret := filepath.Join(l.home, "secret")
	if err := os.WriteFile(secret, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := l.run(runOpts{}, "/bin/sh", "-c", `cat `+secret+`; ls -a `+l.home+`; echo x > `+secret+`; chmod 777 `+l.home+`; mv `+l.home+` /tmp/x; rm -rf `+l.home+`; true`)
	if strings.Contains(r.out, "token") || strings.Contains(r.out, "secret") {
		t.Errorf("the box reads the state: %q", r.out)
	}
	if data, err := os.ReadFile(secret); string(data) != "token" {
		t.Errorf("the box changed the state: %q, %v", data, err)
	}
	n := 0
	for _, op := range r.ops {
		if op.Surface == core.SandboxSelf && op.Verdict == core.Blocked && op.Errno == "EACCES" {
			n++
		}
	}
	if n < 4 {
		t.Errorf("%d tries on the state are logged as blocked, want at least 4", n)
	}
}

func TestSessionsOfOneBoxShareIt(t *testing.T) {
	l := newLab(t)
	l.write("real", "real")
	started, done := make(chan struct{}), make(chan result, 1)
	var once sync.Once
	first := &lab{t: t, home: l.home, dir: l.dir, seq: 100}
	go func() {
		done <- first.run(runOpts{live: func(op *core.Operation) {
			if op.Target == filepath.Join(l.dir, "one") && op.Action == core.ActCreate {
				once.Do(func() { close(started) })
			}
		}}, "/bin/sh", "-c", `echo one > one; while ! test -e two; do sleep 0.02; done; cat two real`)
	}()
	<-started
	r := l.run(runOpts{}, "/bin/sh", "-ec", `cat one; echo box > real; cat real; echo two > two.new; mv two.new two; kill -0 6; ls /proc | grep -c '^[0-9]'`)
	f := <-done
	if f.out != "two\nbox\n" || !strings.HasPrefix(r.out, "one\nbox\n") {
		t.Errorf("first session saw %q, second %q", f.out, r.out)
	}
	// The first session reads what the second changed, and knows that it is the box's.
	for _, op := range f.ops {
		if op.Target == filepath.Join(l.dir, "real") && op.Action == core.ActRead && op.Verdict != core.Redirected {
			t.Errorf("the first session's read of what the second wrote: %s", op.Verdict)
		}
	}
	for _, op := range r.ops {
		if op.Target == filepath.Join(l.dir, "one") && op.Verdict != core.Redirected {
			t.Errorf("the second session's read of what the first wrote: %s", op.Verdict)
		}
		if op.Action == core.ActBegin && op.Detail["joined"] != "true" {
			t.Error("the second session did not join")
		}
	}
}

func TestNetworks(t *testing.T) {
	l := newLab(t)
	outside, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	names := func(dev string) (ns []string) {
		for line := range strings.Lines(dev) {
			if n, _, ok := strings.Cut(line, ":"); ok {
				ns = append(ns, strings.TrimSpace(n))
			}
		}
		return ns
	}
	if r := l.run(runOpts{net: core.NetNone}, "/bin/cat", "/proc/self/net/dev"); !reflect.DeepEqual(names(r.out), []string{"lo"}) {
		t.Errorf("interfaces of a box without a network: %q", names(r.out))
	}
	if r := l.run(runOpts{box: "own"}, "/bin/cat", "/proc/self/net/dev"); !reflect.DeepEqual(names(r.out), []string{"lo", "sand0"}) {
		t.Errorf("interfaces of a box with a network of its own: %q; %s", names(r.out), r.ops[0].Detail["no_network"])
	}
	r := l.run(runOpts{box: "host", net: core.NetHost}, "/bin/cat", "/proc/self/net/dev")
	if !reflect.DeepEqual(names(r.out), names(string(outside))) {
		t.Errorf("interfaces of a box with the host's network: %q, want %q", names(r.out), names(string(outside)))
	}
	if !r.ops[0].Leak {
		t.Error("a session with the host's network does not begin as a leak")
	}
}

// Arguments are in the log whole, wherever in memory they lie.
func TestArguments(t *testing.T) {
	l := newLab(t)
	var argv []string
	for i := range 30 {
		argv = append(argv, strings.Repeat(string(rune('a'+i%26)), 120+i%7))
	}
	r := l.run(runOpts{}, append([]string{"/bin/true"}, argv...)...)
	want := "/bin/true " + strings.Join(argv, " ")
	for _, op := range r.ops {
		if op.Action == core.ActExec && op.Detail["argv"] != want {
			t.Errorf("argv %q, want %q", op.Detail["argv"], want)
		}
	}
	r = l.run(runOpts{}, "/bin/true", "with space", "", strings.Repeat("x", 500))
	want = "/bin/true 'with space' '' " + strings.Repeat("x", 128) + "..."
	for _, op := range r.ops {
		if op.Action == core.ActExec && op.Detail["argv"] != want {
			t.Errorf("argv %q, want %q", op.Detail["argv"], want)
		}
	}
}

func TestManyBoxesAtOnce(t *testing.T) {
	l := newLab(t)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			x := &lab{t: t, home: l.home, dir: l.dir, seq: 1000 * i}
			r := x.run(runOpts{box: fmt.Sprintf("n%d", i)}, "/bin/sh", "-c", fmt.Sprintf("echo %d > f; cat f", i))
			if r.out != fmt.Sprintf("%d\n", i) {
				t.Errorf("box %d: %q", i, r.out)
			}
		})
	}
	wg.Wait()
	if ents, _ := os.ReadDir(l.dir); len(ents) != 0 {
		t.Errorf("real files appeared: %v", ents)
	}
}

func TestBoxEndsWithItsContext(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(context.Background())
	r := l.run(runOpts{ctx: ctx, live: func(op *core.Operation) {
		if op.Action == core.ActExec && strings.HasSuffix(op.Target, "/sleep") {
			cancel()
		}
	}}, "/bin/sleep", "1000")
	if r.code != 137 {
		t.Errorf("exit code %d, want 137", r.code)
	}
}

func TestALogThatFailsEndsTheBox(t *testing.T) {
	l := newLab(t)
	r := l.run(runOpts{quiet: true, log: func(op *core.Operation) error {
		if op.Seq > 5 {
			return errors.New("disk on fire")
		}
		return nil
	}}, "/bin/sh", "-c", "while :; do /bin/true; done")
	if r.code != 125 || r.err == nil || !strings.Contains(r.err.Error(), "disk on fire") {
		t.Errorf("exit code %d, error %v", r.code, r.err)
	}
}

func TestStandardStreams(t *testing.T) {
	l := newLab(t)
	in := l.write("in", "line 1\nline 2\n")
	run := func(stdin, stdout *os.File, argv ...string) (int, []core.Operation) {
		var ops []core.Operation
		pol, _ := core.BuiltinPolicy("")
		l.seq++
		os.MkdirAll(filepath.Join(l.home, "boxes", "b"), 0o700)
		code, err := Run(context.Background(), Options{BoxDir: filepath.Join(l.home, "boxes", "b"), Hide: []string{l.home}, Policy: pol, Dir: l.dir,
			Session: core.Session{ID: core.SessionID(fmt.Sprint("T", l.seq)), Box: "b", Command: argv, Observe: core.ObserveFull, Net: core.NetNone},
			Env:     []string{"PATH=/usr/bin:/bin"}, Stdin: stdin, Stdout: stdout, Log: func(op *core.Operation) error { ops = append(ops, *op); return nil }})
		if err != nil {
			t.Log(err)
		}
		return code, ops
	}
	f, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := os.Create(filepath.Join(l.dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// A file given to read must not be opened again to write.
	if code, _ := run(f, out, "/bin/sh", "-c", `cat; echo harm > /proc/self/fd/0; echo harm > /dev/stdin; exit 0`); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if data, _ := os.ReadFile(in); string(data) != "line 1\nline 2\n" {
		t.Errorf("standard input was changed: %q", data)
	}
	if data, _ := os.ReadFile(out.Name()); string(data) != "line 1\nline 2\n" {
		t.Errorf("standard output got %q", data)
	}
	dir, err := os.Open(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if code, ops := run(dir, nil, "/bin/true"); code != 125 || len(ops) != 0 {
		t.Errorf("a directory as standard input: exit code %d, %d operations; want it refused", code, len(ops))
	}
	_, ops := run(f, nil, "/bin/true")
	if d := ops[0].Detail; d["stdin"] != "file" || d["stdout"] != "closed" {
		t.Errorf("the session's first operation says of its streams: %v", d)
	}
}

func TestRemoveBox(t *testing.T) {
	l := newLab(t)
	l.sh(`mkdir -p a/b/c; echo x > a/b/c/d; chmod 0 a/b/c; chmod 0 a/b`)
	dir := filepath.Join(l.home, "boxes", "b")
	if n, files, err := layers.Dir(dir).Size(); err != nil && !errors.Is(err, os.ErrPermission) || files < 3 || n == 0 { // closed to an ordinary user
		t.Errorf("size %d, %d files, %v", n, files, err)
	}
	if err := layers.Dir(dir).Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the box is still there: %v", err)
	}
}

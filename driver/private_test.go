package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

const canary = "CANARY-3f1b"

// secret writes a canary to a path below the lab's home, which is its working directory.
func (l *lab) secret(name string) string {
	l.t.Helper()
	p := l.write(name, canary+" "+name+"\n")
	if err := os.Chmod(p, 0o600); err != nil {
		l.t.Fatal(err)
	}
	return p
}

// private returns the operations on files.private of a program on a target.
func privateOps(ops []core.Operation, target string) (out []core.Operation) {
	for _, op := range ops {
		if op.Surface == core.FilesPrivate && op.Target == target {
			out = append(out, op)
		}
	}
	return out
}

func grants(texts ...string) func(*core.Policy) {
	return func(p *core.Policy) {
		for _, t := range texts {
			if err := p.AddGrant(t); err != nil {
				panic(err)
			}
		}
	}
}

// realPath is where a program of the system is, without links.
func realPath(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err == nil {
		p, err = filepath.EvalSymlinks(p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEveryDefaultPlaceIsHidden(t *testing.T) {
	l := newLab(t)
	pol, err := core.BuiltinPolicy("")
	if err != nil {
		t.Fatal(err)
	}
	var planted []string
	for i, place := range pol.Private {
		rest, ok := strings.CutPrefix(place, "~/")
		if !ok {
			continue
		}
		name := strings.NewReplacer("*", "x", "?", " ").Replace(rest)
		if i%2 == 0 { // half of them as directories with something in them
			name += "/deep/file"
		}
		planted = append(planted, l.secret(name))
	}
	plain := l.write(".gitconfig", "[user]\n\tname = me\n")
	r := l.run(runOpts{}, "/bin/sh", "-c", `grep -rl `+canary+` . ; cat .gitconfig; for f; do cat "$f"; done 2>/dev/null; ls -A | grep -c ssh; echo end`, "sh")
	if want := "[user]\n\tname = me\n0\nend\n"; r.out != want {
		t.Errorf("the box sees %q", r.out)
	}
	args := append([]string{"/bin/sh", "-c", `for f; do test -e "$f" && echo "$f"; cat "$f"; done 2>/dev/null; echo end`, "sh"}, planted...)
	r = l.run(runOpts{}, args...)
	if r.out != "end\n" {
		t.Errorf("the box sees %q", r.out)
	}
	for _, p := range planted {
		ops := privateOps(r.ops, p)
		if len(ops) == 0 || ops[0].Verdict != core.Blocked || ops[0].Errno != "ENOENT" || ops[0].Outcome != core.Refused {
			t.Errorf("%s: the try is not on record: %v", p, ops)
		}
	}
	_ = plain
	var changes []string
	err = layers.Dir(l.boxDir("b")).Changes(context.Background(), func(c *core.Change) error {
		if under(c.Path, l.dir) {
			changes = append(changes, c.Path)
		}
		return nil
	})
	if err != nil || len(changes) > 0 {
		t.Errorf("masks are changes: %v %v", changes, err)
	}
}

func TestPlacesOutsideOfTheHome(t *testing.T) {
	l := newLab(t)
	other := filepath.Join(filepath.Dir(l.dir), "srv")
	for _, n := range []string{"a.pem", "b.pem", "c.txt"} {
		if err := os.MkdirAll(other, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(other, n), []byte(canary), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := l.run(runOpts{policy: func(p *core.Policy) { p.AddPrivate(other + "/*.pem") }}, "/bin/sh", "-c", "ls "+other+"; cat /etc/shadow")
	if r.out != "c.txt\n" {
		t.Errorf("the box sees %q", r.out)
	}
	ops := privateOps(r.ops, "/etc/shadow")
	want := "ENOENT"
	if os.Geteuid() != 0 {
		want = "EACCES"
	}
	if len(ops) == 0 || ops[0].Errno != want {
		t.Errorf("/etc/shadow: %v", ops)
	}
}

// A box makes its own where the real one is hidden; it stays its own; and a policy that names
// the place no more shows both.
func TestABoxMakesItsOwnInAHiddenPlace(t *testing.T) {
	l := newLab(t)
	real := l.secret(".ssh/id_rsa")
	l.secret(".npmrc")
	l.secret(".pypirc")
	check := unharmed(t, l.dir)
	l.sh(`mkdir .ssh; echo own > .ssh/config; echo tok > .npmrc; test "$(ls .ssh)" = config`)
	r := l.sh(`cat .ssh/config .npmrc; ls -A .ssh; cat .ssh/id_rsa || echo none; rm -r .ssh; test ! -e .ssh; mkdir .ssh; ls -A .ssh; echo again > .ssh/config`)
	if want := "own\ntok\nconfig\nnone\n"; r.out != want {
		t.Errorf("the box sees %q", r.out)
	}
	open := func(p *core.Policy) {
		for _, x := range []string{"!~/.ssh", "!~/.npmrc", "!~/.pypirc"} {
			if err := p.AddPrivate(x); err != nil {
				t.Error(err)
			}
		}
	}
	r = l.run(runOpts{policy: open}, "/bin/sh", "-c", "ls -A .ssh; cat .ssh/config .npmrc .pypirc "+real)
	if want := "config\nid_rsa\nagain\ntok\n" + canary + " .pypirc\n" + canary + " .ssh/id_rsa\n"; r.out != want {
		t.Errorf("the place is private no more, and the box sees %q, want %q", r.out, want)
	}
	var deleted []string
	layers.Dir(l.boxDir("b")).Changes(context.Background(), func(c *core.Change) error {
		if c.Kind == core.Deleted && under(c.Path, l.dir) {
			deleted = append(deleted, c.Path)
		}
		return nil
	})
	if len(deleted) > 0 {
		t.Errorf("counted as deleted by the box: %v", deleted)
	}
	// And private again, with the box's own directory there.
	if r = l.sh(`ls -A .ssh; cat .ssh/config`); r.out != "config\nagain\n" {
		t.Errorf("private again, and the box sees %q", r.out)
	}
	check()
}

// A whiteout that is there costs nothing more: what a second session finds is what the first has made.
func TestMasksAreMadeOnce(t *testing.T) {
	l := newLab(t)
	l.secret(".ssh/id")
	l.sh("true")
	up := ""
	filepath.WalkDir(l.boxDir("b"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == ".ssh" {
			up = p
		}
		return nil
	})
	before, err := os.Lstat(up)
	if err != nil || before.Mode()&os.ModeCharDevice == 0 {
		t.Fatalf("no whiteout: %v %v", before, err)
	}
	masks, err := os.Stat(filepath.Join(l.boxDir("b"), "masks.json"))
	if err != nil {
		t.Fatal(err)
	}
	l.sh("true")
	after, err := os.Lstat(up)
	again, err2 := os.Stat(filepath.Join(l.boxDir("b"), "masks.json"))
	if err != nil || err2 != nil || !os.SameFile(before, after) || !os.SameFile(masks, again) {
		t.Errorf("made anew: %v %v", err, err2)
	}
}

// Nor is it somebody from outside who makes it, or takes it away, in a box that has run.
func TestMasksAreNotFromOutside(t *testing.T) {
	l := newLab(t)
	l.sh("echo own > own")
	l.secret(".ssh/id")
	for _, what := range []string{"a place that has become private", "the same again"} {
		if got := l.fromOutside(l.run(runOpts{}, "/bin/true").ops); len(got) != 0 {
			t.Errorf("%s: on record %q", what, got)
		}
	}
	open := func(p *core.Policy) { p.Private = nil }
	for _, what := range []string{"a place that is private no more", "the same again"} {
		if got := l.fromOutside(l.run(runOpts{policy: open}, "/bin/true").ops); len(got) != 0 {
			t.Errorf("%s: on record %q", what, got)
		}
	}
	if r := l.run(runOpts{policy: open}, "/bin/cat", ".ssh/id"); r.code != 0 {
		t.Errorf("it is private still: %s", r.stderr)
	}
}

func TestLinksToAndOfPrivatePlaces(t *testing.T) {
	l := newLab(t)
	data := filepath.Join(filepath.Dir(l.dir), "data")
	if err := os.MkdirAll(filepath.Join(data, "ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	id := filepath.Join(data, "ssh", "id")
	if err := os.WriteFile(id, []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(data, "ssh"), filepath.Join(l.dir, ".ssh")); err != nil {
		t.Fatal(err)
	}
	l.secret(".netrc")
	if err := os.Symlink(".netrc", filepath.Join(l.dir, "link")); err != nil {
		t.Fatal(err)
	}
	r := l.run(runOpts{}, "/bin/sh", "-c", `cat .ssh/id link `+id+` /proc/self/root`+id+` /proc/self/cwd/.netrc; ln .netrc hard; cat hard; ln -s .netrc l2; cat l2; echo end`)
	if r.out != "end\n" {
		t.Errorf("the box sees %q", r.out)
	}
	// With a grant the link is followed to what it leads to.
	r = l.run(runOpts{box: "g", policy: grants("allow ~/.ssh from " + realPath(t, "cat"))}, "/bin/sh", "-c", "cat .ssh/id; ls .ssh/; od .ssh/id")
	if want := canary + "id\n"; r.out != want {
		t.Errorf("the box with a grant sees %q, want %q", r.out, want)
	}
}

func TestAGrantIsForItsProgram(t *testing.T) {
	l := newLab(t)
	id, conf, netrc := l.secret(".ssh/id_rsa"), l.secret(".ssh/config"), l.secret(".netrc")
	cat := realPath(t, "cat")
	pol := grants("block ~/.ssh/id_rsa from "+cat, "allow ~/.ssh from "+cat, "allow ~/.netrc from "+cat)
	check := unharmed(t, l.dir)
	r := l.run(runOpts{policy: pol}, "/bin/sh", "-c", `cat .ssh/config .netrc; echo; cat .ssh/id_rsa; head -c 20 .ssh/config; tail .netrc; wc -c < .netrc; ls .ssh; stat -c '%n %s %a %Y' .ssh/* .netrc; test -r .ssh/config && echo readable`)
	var stats strings.Builder
	for _, p := range []string{conf, id, netrc} {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&stats, "%s %d %o %d\n", strings.TrimPrefix(p, l.dir+"/"), fi.Size(), fi.Mode().Perm(), fi.ModTime().Unix())
	}
	want := canary + " .ssh/config\n" + canary + " .netrc\n\nconfig\nid_rsa\n" + stats.String() + "readable\n"
	if r.out != want {
		t.Errorf("the box sees %q, want %q\n%s", r.out, want, r.stderr)
	}
	seen := map[string]string{}
	for _, op := range r.ops {
		if op.Surface == core.FilesPrivate && op.Action == core.ActRead {
			seen[filepath.Base(op.Exe)+" "+filepath.Base(op.Target)] = fmt.Sprint(op.Verdict, " ", op.Leak, " ", op.Errno, " ", op.Outcome)
		}
	}
	for k, want := range map[string]string{"cat config": "allowed true  performed", "cat .netrc": "allowed true  performed",
		"cat id_rsa": "blocked false EACCES refused", "head config": "blocked false EACCES refused", "tail .netrc": "blocked false EACCES refused"} {
		if seen[k] != want {
			t.Errorf("%s: on record as %q, want %q", k, seen[k], want)
		}
	}
	check()
	// What the box changes there is its own; a skeleton's file is replaced, not changed.
	r = l.run(runOpts{policy: pol}, "/bin/sh", "-c", `echo own > .ssh/known_hosts; echo x >> .ssh/config || echo no; chmod 644 .ssh/config || echo no; mv .ssh/config .ssh/c2 || echo no; echo new > .ssh/n; mv .ssh/n .ssh/config; cat .ssh/config .ssh/known_hosts; rm .ssh/id_rsa; ls .ssh`)
	if want := "no\nno\nno\nnew\nown\nconfig\nknown_hosts\n"; r.out != want {
		t.Errorf("the box sees %q, want %q\n%s", r.out, want, r.stderr)
	}
	// Without the grants all of it is hidden but what is the box's own; without being private all is there.
	if r = l.run(runOpts{}, "/bin/sh", "-c", "ls .ssh; cat .ssh/config; cat .netrc || echo none"); r.out != "config\nknown_hosts\nnew\nnone\n" {
		t.Errorf("without grants the box sees %q", r.out)
	}
	r = l.run(runOpts{policy: func(p *core.Policy) { p.AddPrivate("!~/.ssh") }}, "/bin/sh", "-c", "ls .ssh; cat .ssh/config")
	if r.out != "config\nknown_hosts\nnew\n" {
		t.Errorf("not private, the box sees %q", r.out)
	}
	check()
}

// why is what the log gives as the reason for a refusal of that program.
func why(r result, target string) string {
	for _, op := range privateOps(r.ops, target) {
		if op.Verdict == core.Blocked {
			return op.Detail["why"]
		}
	}
	return ""
}

func TestWhatIsNotTheProgramOfTheGrant(t *testing.T) {
	l := newLab(t)
	id := l.secret(".ssh/id")
	cat := realPath(t, "cat")
	libc := ""
	out, err := exec.Command("ldd", cat).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range strings.Fields(string(out)) {
		if strings.Contains(w, "libc.so") && strings.HasPrefix(w, "/") {
			libc, _ = filepath.EvalSymlinks(w)
		}
	}
	if libc == "" {
		t.Fatalf("no libc in %s", out)
	}
	loader := ""
	for _, w := range strings.Fields(string(out)) {
		if strings.Contains(w, "ld-linux") {
			loader, _ = filepath.EvalSymlinks(w)
		}
	}
	for i, c := range []struct{ name, script, why string }{
		{"LD_PRELOAD", "LD_PRELOAD=" + libc + " cat .ssh/id", "environment: LD_PRELOAD"},
		{"LD_LIBRARY_PATH", "LD_LIBRARY_PATH=/tmp cat .ssh/id", "environment: LD_LIBRARY_PATH"},
		{"a library that the box changed", "cp " + libc + " new; cp new " + libc + " && cat .ssh/id", "mapped, and the box's own: " + libc},
		{"a copy of the program", "cp /bin/ls x; cp $(command -v od) mycat; ./mycat .ssh/id", ""},
		{"the linker", loader + " " + cat + " .ssh/id; echo; true", ""},
		{"a linked name", "ln -s " + cat + " c2; ./c2 .ssh/id >/dev/null; head .ssh/id", ""},
		{"ld.so.preload", "cp " + libc + " /var/tmp/evil.so; echo /var/tmp/evil.so > /etc/ld.so.preload && cat .ssh/id", "mapped, and the box's own: /var/tmp/evil.so"},
	} {
		if os.Geteuid() != 0 && (strings.Contains(c.script, "> /etc") || strings.Contains(c.script, "cp new")) {
			continue // the box's user cannot, as outside
		}
		r := l.run(runOpts{box: "b" + strconv.Itoa(i), policy: grants("allow ~/.ssh from " + cat)}, "/bin/sh", "-c", c.script)
		if strings.Contains(r.out, canary) {
			t.Errorf("%s: the box sees %q", c.name, r.out)
		}
		if got := why(r, id); c.why != "" && got != c.why {
			t.Errorf("%s: the log says %q, want %q\n%s", c.name, got, c.why, r.stderr)
		}
	}
	// A program that the box changed itself is none.
	if os.Geteuid() == 0 {
		l.run(runOpts{box: "own"}, "/bin/sh", "-c", "cp "+cat+" x; cp x "+cat+".new; mv "+cat+".new "+cat)
		r := l.run(runOpts{box: "own", policy: grants("allow ~/.ssh from " + cat)}, "/bin/sh", "-c", "cat .ssh/id")
		if strings.Contains(r.out, canary) || why(r, id) != "what runs is not the real program" {
			t.Errorf("a changed program: %q, %q\n%s %v", r.out, why(r, id), r.stderr, privateOps(r.ops, id))
		}
	}
}

func TestScriptsAndInterpreters(t *testing.T) {
	l := newLab(t)
	id := l.secret(".ssh/id")
	sh := realPath(t, "sh")
	tool := l.write("tool", "#!"+sh+"\nwhile read x; do echo $x; done < .ssh/id\n")
	lib := l.write("lib", "")
	sourcing := l.write("sourcing", "#!"+sh+"\n. ./lib\nwhile read x; do echo $x; done < .ssh/id\n")
	for _, p := range []string{tool, sourcing} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret := canary + " .ssh/id\n"
	for i, c := range []struct{ name, grant, script, out, why string }{
		{"a script of a grant", tool, "./tool", secret, ""},
		{"by its interpreter's name", tool, sh + " tool", secret, ""},
		{"another script", tool, "./sourcing", "", ""},
		{"the same script, changed", tool, "echo >> tool; ./tool", "", "its script is the box's own: " + tool},
		{"the interpreter of a grant, with a real script", sh, "./tool", secret, ""},
		{"with what it is told", sh, sh + ` -c 'read x < .ssh/id && echo $x'`, "", "an interpreter whose first argument is no script"},
		{"what the script sources", sourcing, "./sourcing", secret, ""},
		{"what the script sources, changed", sourcing, "echo evil=1 > lib; ./sourcing", "", "it has opened what is the box's own: " + lib},
		{"an interpreter's variable", tool, "ENV=x ./tool", "", "environment: ENV"},
	} {
		r := l.run(runOpts{box: "b" + strconv.Itoa(i), policy: grants("allow ~/.ssh from " + c.grant)}, "/bin/bash", "-c", c.script)
		if r.out != c.out || why(r, id) != c.why {
			t.Errorf("%s: the box sees %q, the log says %q, want %q and %q\n%s", c.name, r.out, why(r, id), c.out, c.why, r.stderr)
		}
	}
}

func init() {
	// private-reader reads a private file and is then at the mercy of others.
	programs["private-reader"] = func() {
		f, err := os.Open(os.Args[1])
		if err != nil {
			fmt.Println("open:", err)
			fmt.Println("end")
			return
		}
		for _, flags := range []int{os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC} {
			if g, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0); err == nil {
				if _, err := g.WriteString("x"); err == nil || flags&os.O_TRUNC != 0 {
					fmt.Println("opened again to write", flags)
				}
			}
		}
		if len(os.Args) == 3 && syscall.Fchmod(int(f.Fd()), 0o777) == nil { // a copy's mode is nobody's affair
			fmt.Println("mode changed")
		}
		if syscall.Ftruncate(int(f.Fd()), 0) == nil {
			fmt.Println("truncated")
		}
		for _, up := range []string{"..", "../id", "../../.netrc"} {
			if _, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), up)); err == nil {
				fmt.Println("out by", up)
			}
		}
		if fd, err := syscall.Openat(int(f.Fd()), "../.netrc", syscall.O_RDONLY, 0); err == nil {
			fmt.Println("out by openat", fd)
		}
		// Others of the box try to get at it.
		attacker := exec.Command(os.Args[2], strconv.Itoa(os.Getpid()), strconv.Itoa(int(f.Fd())))
		attacker.Env = []string{"BOXED_PROGRAM=private-attacker"}
		out, err := attacker.CombinedOutput()
		fmt.Print(string(out))
		if err != nil {
			fmt.Println("attacker:", err)
		}
		// And it may pass it on.
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err == nil {
			syscall.Sendmsg(fds[0], []byte("x"), syscall.UnixRights(int(f.Fd())), nil, 0)
		}
		data := make([]byte, 100)
		n, _ := f.Read(data)
		fmt.Printf("read %s", data[:n])
		fmt.Println("end")
	}
	programs["private-attacker"] = func() {
		pid, _ := strconv.Atoi(os.Args[1])
		if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/fd/%s", pid, os.Args[2])); err == nil {
			fmt.Printf("fd link: %s\n", data)
		}
		if _, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0); err == nil {
			fmt.Println("memory opened")
		}
		if err := syscall.PtraceAttach(pid); err == nil {
			fmt.Println("traced")
		}
		fmt.Println("tried")
	}
}

// background runs a session until what it returns is called.
func (l *lab) background(o runOpts) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	begun, ended := make(chan struct{}), make(chan struct{})
	o.ctx, o.quiet = ctx, true
	o.live = func(op *core.Operation) {
		if op.Action == core.ActBegin {
			close(begun)
		}
	}
	go func() { defer close(ended); l.run(o, "/bin/sleep", "1000") }()
	select {
	case <-begun:
	case <-ended:
		l.t.Fatal("the session in the background did not begin")
	}
	return func() { cancel(); <-ended }
}

func TestWhatAProgramWithAGrantHolds(t *testing.T) {
	for _, clone := range []bool{true, false} {
		t.Run(map[bool]string{true: "read-only mount", false: "copy"}[clone], func(t *testing.T) {
			l := newLab(t)
			id := l.secret(".ssh/id")
			l.secret(".netrc")
			exe := filepath.Join(l.dir, "reader")
			data, err := os.ReadFile(l.self())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(exe, data, 0o755); err != nil {
				t.Fatal(err)
			}
			pol := grants("allow ~/.ssh from " + exe)
			check := unharmed(t, filepath.Join(l.dir, ".ssh"))
			if !clone { // who joins a session has no mounts to make
				defer l.background(runOpts{policy: pol})()
			}
			r := l.run(runOpts{env: []string{"BOXED_PROGRAM=private-reader"}, policy: pol}, append([]string{exe, id, l.self()}, map[bool][]string{false: {"copy"}}[clone]...)...)
			if want := "tried\nread " + canary + " .ssh/id\nend\n"; r.out != want {
				t.Errorf("the box says %q, want %q\n%s", r.out, want, r.stderr)
			}
			check()
			var passed, given bool
			for _, op := range privateOps(r.ops, id) {
				passed = passed || op.Action == core.ActPass && op.Verdict == core.Allowed && op.Leak
				given = given || op.Action == core.ActRead && op.Detail["given"] == map[bool]string{true: "read-only", false: "a copy"}[clone]
			}
			if !passed || !given {
				t.Errorf("on record: given %v, passed %v: %v", given, passed, privateOps(r.ops, id))
			}
		})
	}
}

func init() {
	// private-race opens a file whose path another thread rewrites meanwhile, and tells what
	// it got of a private one.
	programs["private-race"] = func() {
		plain, secret := os.Args[1], os.Args[2]
		path := make([]byte, 4096)
		swap := func(p string) {
			copy(path, p)
			path[len(p)] = 0
		}
		if len(plain) != len(secret) {
			fmt.Println("paths of two lengths")
			return
		}
		swap(plain)
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
					copy(path, secret)
					copy(path, plain)
				}
			}
		}()
		data := make([]byte, 100)
		for range 3000 {
			fd, _, e := syscall.Syscall6(syscall.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(&path[0])), syscall.O_RDONLY, 0, 0, 0)
			if e != 0 {
				continue
			}
			n, _ := syscall.Read(int(fd), data)
			if strings.Contains(string(data[:max(n, 0)]), canary) {
				fmt.Println("read", string(data[:n]))
			}
			syscall.Close(int(fd))
		}
		close(stop)
		fmt.Println("end")
	}
}

// Whatever the supervisor was shown, the kernel finds nothing, or zeros.
func TestARaceReadsNothingPrivate(t *testing.T) {
	l := newLab(t)
	l.secret(".ssh/id")
	l.write("open/id", "plain")
	l.write("xssh/id", "plain")
	l.boxed(runOpts{}, "private-race", filepath.Join(l.dir, "xssh/id"), filepath.Join(l.dir, ".ssh/id"))
	l.boxed(runOpts{box: "g", policy: grants("allow ~/.ssh from " + realPath(t, "cat"))}, "private-race", filepath.Join(l.dir, "open/id"), filepath.Join(l.dir, ".ssh/id"))
}

func TestAPersonIsAskedAboutAPrivateFile(t *testing.T) {
	for _, c := range []struct {
		answer string
		out    string
	}{{"allow", canary + " .ssh/id\n"}, {"block", ""}} {
		l := newLab(t)
		id := l.secret(".ssh/id")
		asked := make(chan string, 1)
		done := make(chan error, 1)
		go func() {
			ask := <-asked
			if ask == "" {
				done <- nil
				return
			}
			qs, err := Questions(l.boxDir("b"))
			if err == nil && (len(qs) != 1 || qs[0].ID != ask || qs[0].Proto != "file" || qs[0].Target != id) {
				err = fmt.Errorf("questions: %v", qs)
			}
			_, aerr := Ask(l.boxDir("b"), Order{Do: "answer", Ask: ask, Allow: c.answer == "allow"})
			done <- errors.Join(err, aerr)
		}()
		r := l.run(runOpts{policy: grants("ask ~/.ssh from " + realPath(t, "cat")), live: func(op *core.Operation) {
			if op.Action == core.ActAsk && op.Detail["answer"] == "" {
				asked <- op.Detail["ask"]
			}
		}}, "/bin/sh", "-c", "cat .ssh/id")
		close(asked)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if r.out != c.out {
			t.Errorf("%s: the box sees %q", c.answer, r.out)
		}
		var answered bool
		for _, op := range privateOps(r.ops, id) {
			answered = answered || op.Action == core.ActAsk && op.Detail["answer"] == c.answer
		}
		if !answered {
			t.Errorf("%s: the answer is not on record: %v", c.answer, privateOps(r.ops, id))
		}
	}
}

func TestWhoJoinsHasTheSameView(t *testing.T) {
	l := newLab(t)
	l.secret(".ssh/id")
	defer l.background(runOpts{})()
	r := l.run(runOpts{quiet: true, policy: func(p *core.Policy) { p.AddPrivate("!~/.ssh") }}, "/bin/cat", ".ssh/id")
	if r.err == nil || !strings.Contains(r.err.Error(), "other private places or grants") || len(core.Hints(r.err)) == 0 {
		t.Errorf("another view: %v, %q", r.err, r.out)
	}
	r = l.run(runOpts{}, "/bin/sh", "-c", "cat .ssh/id || echo none")
	if r.out != "none\n" {
		t.Errorf("the same view: %q", r.out)
	}
}

func TestARunThatCannotBeIsRefused(t *testing.T) {
	l := newLab(t)
	l.secret(".ssh/id")
	r := l.run(runOpts{quiet: true, observe: core.ObserveLean, policy: grants("allow ~/.ssh from /bin/cat")}, "/bin/true")
	if r.err == nil || !strings.Contains(r.err.Error(), "observe") || len(core.Hints(r.err)) == 0 {
		t.Errorf("a grant without seeing what is opened: %v", r.err)
	}
	pr := private{Places: []privPlace{{Path: l.dir, Text: "~/notes", How: privGone}}}
	err := pr.checkDir(filepath.Join(l.dir, ".ssh"))
	if err == nil || !strings.Contains(err.Error(), "is private (~/notes)") || len(core.Hints(err)) == 0 {
		t.Errorf("a working directory that is private: %v", err)
	}
}

// The same place by another mount, and a mount of what is in it.
func TestPrivatePlacesByOtherMounts(t *testing.T) {
	vis := map[string]mountEntry{
		"/":       {id: 1, dev: "8:1", root: "/", point: "/", fstype: "ext4"},
		"/mnt/b":  {id: 2, dev: "8:1", root: "/home/me", point: "/mnt/b", fstype: "ext4"},
		"/mnt/in": {id: 3, dev: "8:1", root: "/home/me/.ssh/keys", point: "/mnt/in", fstype: "ext4"},
	}
	if got, want := strings.Join(hidden(vis, []string{"/home/me/.ssh"}), " "), "/home/me/.ssh /mnt/b/.ssh /mnt/in"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

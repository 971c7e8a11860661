package driver

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

func init() {
	programs["behindwall"] = behindWall
	programs["flipabstract"] = flipAbstract
}

func TestLandlockRules(t *testing.T) {
	root := []rootEntry{{"dev", true}, {"etc", true}, {"home", true}, {"initrd", false}, {"proc", true}, {"run", true}, {"sys", true}}
	// What each version of the kernel added (Documentation/userspace-api/landlock.rst).
	files := map[int]uint64{2: 0x1fff | sys.LandlockRefer, 5: sys.LandlockIoctl}
	known, net, scopes := uint64(0), uint64(0), uint64(0)
	for abi := landlockABI; abi < 10; abi++ {
		known |= files[abi]
		if abi == 4 {
			net = sys.LandlockConnectTCP
		}
		if abi == 6 {
			scopes = sys.LandlockSignal | sys.LandlockAbstract
		}
		for _, hostNet := range []bool{false, true} {
			for _, closed := range []bool{false, true} {
				name := fmt.Sprintf("abi %d, host network %v, closed root %v", abi, hostNet, closed)
				var in []rootEntry
				if closed {
					in = root
				}
				r := landlockRules(abi, hostNet, in)
				if r.Files&^known != 0 {
					t.Errorf("%s: the kernel does not know %#x", name, r.Files&^known)
				}
				wantNet, wantScopes := uint64(0), scopes&^sys.LandlockAbstract
				if hostNet {
					wantNet, wantScopes = net, scopes
				}
				if r.Net != wantNet || r.Scopes != wantScopes {
					t.Errorf("%s: network %#x, scopes %#x; want %#x, %#x", name, r.Net, r.Scopes, wantNet, wantScopes)
				}
				at := map[string]uint64{}
				for _, p := range r.Places {
					if p.Rights&nodeRights != 0 || p.Rights&^r.Files != 0 || p.Rights == 0 || at[p.Path] != 0 {
						t.Errorf("%s: %#x at %s", name, p.Rights, p.Path)
					}
					at[p.Path] = p.Rights
				}
				if r.Files&nodeRights != nodeRights || at["/"] != sys.LandlockRefer || at["/sys"] != 0 {
					t.Errorf("%s: handles %#x, gives %#x at / and %#x at /sys", name, r.Files, at["/"], at["/sys"])
				}
				if !closed {
					if r.Files&writeRights != 0 {
						t.Errorf("%s: writes are restricted", name)
					}
					continue
				}
				if at["/home"] != writeRights || at["/run"] != writeRights || at["/proc"] != sys.LandlockWrite || at["/initrd"] != sys.LandlockWrite ||
					at["/dev"] != writeRights|r.Files&sys.LandlockIoctl {
					t.Errorf("%s: %#x", name, at)
				}
			}
		}
	}
}

// needsLandlock returns the kernel's version of it. A machine whose doctor says that there
// is none has nothing to test.
func needsLandlock(t *testing.T, least int) int {
	t.Helper()
	abi, err := sys.LandlockABI()
	if err != nil || abi < least {
		t.Skipf("no Landlock of version %d: %d %v", least, abi, err)
	}
	return abi
}

func TestTheSecondWallAloneHolds(t *testing.T) {
	needsLandlock(t, 6)
	unshared(t, "TestBehindTheSecondWall", `
mount -t tmpfs t "$TOP"; cd "$TOP"; mkdir a b m; touch null; mount --bind /dev/null null
mount -t tmpfs t /sys; touch /sys/setting`)
}

// TestBehindTheSecondWall runs outside of any box, where nothing but the rules stands: what
// works before it enters the domain, and must not after.
func TestBehindTheSecondWall(t *testing.T) {
	top := os.Getenv("PREPARED_MOUNTS")
	if top == "" {
		return // run by TestTheSecondWallAloneHolds, in the mounts that it makes
	}
	other := exec.Command("/bin/cat") // somebody outside of the domain
	stdin, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stdin.Close(); other.Wait() }()
	outside := "@sandglass-outside-" + strconv.Itoa(os.Getpid())
	l, err := net.Listen("unix", outside)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: outside + "-dgram", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer gram.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	n := 0
	fresh := func(dir string) string { n++; return filepath.Join(top, dir, strconv.Itoa(n)) }

	tcpAddr := &unix.SockaddrInet4{Port: tcp.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	attempts := []struct {
		name  string
		do    func() error
		after error
	}{
		{"make a device node", func() error { return unix.Mknod(fresh("a"), unix.S_IFCHR|0o600, 0) }, unix.EACCES},
		{"mount", func() error { return unix.Mount("t", filepath.Join(top, "m"), "tmpfs", 0, "") }, unix.EPERM},
		{"unmount", func() error { return unix.Unmount(filepath.Join(top, "m"), 0) }, unix.EPERM},
		{"write a setting", func() error { return openClose("/sys/setting", unix.O_WRONLY) }, unix.EACCES},
		{"make a file in /sys", func() error { return unix.Mknod("/sys/"+strconv.Itoa(n), unix.S_IFREG|0o600, 0) }, unix.EACCES},
		{"an ioctl of a device out of /dev", func() error { return terminalIoctl(filepath.Join(top, "null")) }, unix.EACCES},
		{"a signal to somebody outside", func() error { return unix.Kill(other.Process.Pid, 0) }, unix.EPERM},
		{"read the memory of somebody outside", func() error { return openClose(fmt.Sprintf("/proc/%d/mem", other.Process.Pid), unix.O_RDONLY) }, unix.EACCES},
		{"an abstract socket outside", func() error { return connects(unix.AF_UNIX, unix.SOCK_STREAM, &unix.SockaddrUnix{Name: outside}) }, unix.EPERM},
		{"a datagram to an abstract socket outside", func() error { return sends(&unix.SockaddrUnix{Name: outside + "-dgram"}) }, unix.EPERM},
		{"a TCP connection", func() error { return connects(unix.AF_INET, unix.SOCK_STREAM, tcpAddr) }, unix.EACCES},

		{"write a file", func() error { return os.WriteFile(fresh("a"), []byte("x"), 0o600) }, nil},
		{"read a setting", func() error { return openClose("/sys/setting", unix.O_RDONLY) }, nil},
		{"write what is one's own in /proc", func() error { return openClose("/proc/self/comm", unix.O_WRONLY) }, nil},
		{"make a FIFO", func() error { return unix.Mkfifo(fresh("a"), 0o600) }, nil},
		{"move a file to another directory", func() error { return moved(fresh("a"), fresh("b"), os.Rename) }, nil},
		{"link a file to another directory", func() error { return moved(fresh("a"), fresh("b"), os.Link) }, nil},
		{"an ioctl of a device of /dev", func() error { return terminalIoctl("/dev/null") }, unix.ENOTTY},
		{"an abstract socket of its own", func() error {
			return serves(unix.AF_UNIX, &unix.SockaddrUnix{Name: fmt.Sprintf("@own-%d-%d", os.Getpid(), n)})
		}, nil},
		{"a signal to a child", signalsChild, nil},
		{"read the memory of a child", readsChild, nil},
	}
	for _, a := range attempts {
		before := error(nil)
		if strings.HasPrefix(a.name, "an ioctl") {
			before = unix.ENOTTY // the driver of /dev/null was asked
		}
		if err := a.do(); !errors.Is(err, before) {
			t.Errorf("without the wall: %s: %v, want %v", a.name, err, before)
		}
	}
	if err := unix.Mount("t", filepath.Join(top, "m"), "tmpfs", 0, ""); err != nil { // something to unmount
		t.Fatal(err)
	}
	if err := sys.NoNewPrivs(); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	abi, err := sys.LandlockABI()
	if err != nil {
		t.Fatal(err)
	}
	if err := sys.LandlockSelf(landlockRules(abi, true, rootEntries())); err != nil {
		t.Fatal(err)
	}
	for _, a := range attempts {
		if err := a.do(); !errors.Is(err, a.after) {
			t.Errorf("behind the wall: %s: %v, want %v", a.name, err, a.after)
		}
	}
	// As the supervisor does: the socket is of the domain, the thread is not.
	inside, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inside)
	c := make(chan error)
	go func() { c <- unix.Connect(inside, tcpAddr) }()
	if err := <-c; err != nil {
		t.Errorf("a thread out of the domain connects a socket of it: %v", err)
	}
}

func openClose(name string, flags int) error {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func terminalIoctl(name string) error {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.IoctlGetTermios(fd, unix.TCGETS)
	return err
}

func connects(family, kind int, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, to)
}

func sends(to unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte("x"), 0, to)
}

func serves(family int, at unix.Sockaddr) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, at); err != nil {
		return err
	}
	if err := unix.Listen(fd, 1); err != nil {
		return err
	}
	return connects(family, unix.SOCK_STREAM, at)
}

func moved(from, to string, do func(from, to string) error) error {
	if err := os.WriteFile(from, nil, 0o600); err != nil {
		return err
	}
	return do(from, to)
}

// withChild runs do with a child of this thread.
func withChild(do func(pid int) error) error {
	c := exec.Command("/bin/cat")
	stdin, err := c.StdinPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	defer func() { stdin.Close(); c.Wait() }()
	return do(c.Process.Pid)
}

func signalsChild() error { return withChild(func(pid int) error { return unix.Kill(pid, 0) }) }

func readsChild() error {
	return withChild(func(pid int) error { return openClose(fmt.Sprintf("/proc/%d/mem", pid), unix.O_RDONLY) })
}

// firstOf returns the detail of a session's first operation.
func firstOf(t *testing.T, r result) core.Detail {
	t.Helper()
	if len(r.ops) == 0 || r.ops[0].Action != core.ActBegin {
		t.Fatal("no beginning on record")
	}
	return r.ops[0].Detail
}

func TestASessionSaysWhichWallsStand(t *testing.T) {
	l := newLab(t)
	abi, err := sys.LandlockABI()
	for _, c := range []struct {
		net  core.Net
		more string
	}{{core.NetNone, ""}, {core.NetHost, ", tcp, abstract sockets"}} {
		want := "none: "
		if err == nil && abi >= 6 {
			want = fmt.Sprintf("abi %d: device nodes, mounts, tracing, device ioctls, signals%s", abi, c.more)
			if os.Getuid() != 0 { // who cannot write in /
				want = strings.Replace(want, "ioctls", "ioctls, writes", 1)
			}
		} else if err == nil {
			want = fmt.Sprintf("abi %d", abi)
		}
		r := l.run(runOpts{net: c.net, box: string(c.net)}, "/bin/true")
		if got := firstOf(t, r)["landlock"]; !strings.HasPrefix(got, want) || err == nil && abi >= 6 && got != want {
			t.Errorf("net %s: the session says %q, want %q", c.net, got, want)
		}
	}
}

// behindWall does what programs do and a domain could be in the way of.
func behindWall() {
	dir := os.Args[1]
	at := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	say := func(what string, err error) { fmt.Printf("%s: %v\n", what, err) }
	for _, d := range []string{"a", "b"} {
		say("mkdir", os.Mkdir(at(d), 0o700))
	}
	say("move", moved(at("a", "1"), at("b", "1"), os.Rename))
	say("move a real file", os.Rename(at("real", "f"), at("b", "f")))
	say("link", moved(at("a", "2"), at("b", "2"), os.Link))
	say("exchange", unix.Renameat2(unix.AT_FDCWD, at("a", "2"), unix.AT_FDCWD, at("b", "1"), unix.RENAME_EXCHANGE))
	fd, err := unix.Open(at("a"), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	say("a file without a name", err)
	say("gets one", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, at("b", "3"), unix.AT_SYMLINK_FOLLOW))
	for _, p := range []string{"/tmp/", "/dev/shm/", "/run/user/" + strconv.Itoa(os.Getuid()) + "/", "/var/tmp/"} {
		name := p + "sandglass-test-" + strconv.Itoa(os.Getpid())
		say("write in "+p, os.WriteFile(name, []byte("x"), 0o600))
		say("remove", os.Remove(name))
	}
	for _, p := range []string{"/proc/self/comm", "/proc/self/oom_score_adj", "/proc/thread-self/comm", "/dev/null", "/proc/self/fd/1", "/dev/stdout"} {
		say("open to write "+p, openClose(p, unix.O_WRONLY))
	}
	ptmx, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	say("a pty", err)
	n, err := unix.IoctlGetInt(ptmx, unix.TIOCGPTN)
	say("its number", err)
	say("unlocks", unix.IoctlSetPointerInt(ptmx, unix.TIOCSPTLCK, 0))
	tty, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	say("its other end", err)
	_, err = unix.IoctlGetTermios(tty, unix.TCGETS)
	say("is a terminal", err)
	say("signal a child", signalsChild())
	say("read a child", readsChild())
	say("trace a child", traces())
	say("an abstract socket", serves(unix.AF_UNIX, &unix.SockaddrUnix{Name: fmt.Sprintf("@own-%d", os.Getpid())}))
	say("its init", unix.Kill(1, unix.SIGTERM))
	fmt.Println("end")
}

// traces runs a program step by step, as a debugger does.
func traces() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := exec.Command("/bin/true")
	c.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := c.Start(); err != nil {
		return err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(c.Process.Pid, &ws, 0, nil); err != nil || !ws.Stopped() {
		return fmt.Errorf("%w %#x", err, ws)
	}
	var word [8]byte
	if _, err := unix.PtracePeekUser(c.Process.Pid, 0, word[:]); err != nil && runtime.GOARCH == "amd64" {
		return err
	}
	if err := unix.PtraceCont(c.Process.Pid, 0); err != nil {
		return err
	}
	return c.Wait()
}

func TestProgramsWorkBehindTheSecondWall(t *testing.T) {
	for _, o := range []core.Observe{core.ObserveFull, core.ObserveLean} {
		l := newLab(t)
		l.write("real/f", "real")
		check := unharmed(t, l.dir)
		for _, n := range []core.Net{core.NetNone, core.NetHost} {
			r := l.boxed(runOpts{observe: o, net: n, box: string(n)}, "behindwall", l.dir)
			for line := range strings.Lines(strings.TrimSuffix(r.out, "end\n")) {
				if o == core.ObserveLean && n == core.NetHost && strings.HasPrefix(line, "an abstract socket: connection refused") {
					continue // without the traps it is not known whose it is
				}
				if n == core.NetHost && os.Getuid() == 0 && strings.HasPrefix(line, "open to write /proc/") && strings.Contains(line, "/comm: read-only") {
					continue // see procReadOnly
				}
				if n == core.NetHost && os.Getuid() == 0 && strings.HasPrefix(line, "open to write /proc/self/oom_score_adj: read-only") {
					continue
				}
				if !strings.HasSuffix(line, ": <nil>\n") {
					t.Errorf("observe %s, net %s: %s", o, n, line)
				}
			}
		}
		check()
	}
	if os.Getuid() == 0 { // who may do so outside
		newLab(t).sh(`mkdir /sandglass-test; echo x > /sandglass-test/f; echo x > /sandglass-test.f; mv /sandglass-test.f /sandglass-test/g; rm -r /sandglass-test`)
	}
}

// A box cannot make the wall of its next session lower.
func TestTheSecondWallDoesNotAskTheBox(t *testing.T) {
	needsLandlock(t, 6)
	if os.Getuid() == 0 {
		return // who may write in / outside, may do so in a box
	}
	l := newLab(t)
	l.sh(`chmod u+w /`)
	r := l.run(runOpts{}, "/bin/sh", "-c", "ls -ld / | cut -c1-4; (echo x > /sandglass-test) 2>/dev/null || echo refused")
	if got := firstOf(t, r)["landlock"]; !strings.Contains(got, ", writes,") {
		t.Errorf("the session says %q", got)
	}
	if r.out != "drwx\nrefused\n" {
		t.Errorf("in the box: %q", r.out)
	}
}

// flipAbstract connects to a name of its own while a thread puts an address of outside in
// its place.
func flipAbstract() {
	own := os.Args[1]
	port, _ := strconv.Atoi(os.Args[3])
	l, err := net.Listen("unix", own)
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		for {
			if c, err := l.Accept(); err == nil {
				c.Close()
			}
		}
	}()
	unixAddr := func(name string) (a [32]byte) {
		a[0] = unix.AF_UNIX
		copy(a[3:], name[1:])
		return a
	}
	inet := [32]byte{unix.AF_INET, 0, byte(port >> 8), byte(port), 127, 0, 0, 1}
	mine, theirs := unixAddr(own), unixAddr(os.Args[2])
	size := uintptr(2 + len(own))
	for _, c := range []struct {
		family int
		other  [32]byte
	}{{unix.AF_UNIX, theirs}, {unix.AF_INET, inet}} {
		addr := mine
		var stop atomic.Bool
		done := make(chan bool)
		go func() {
			defer close(done)
			for !stop.Load() {
				for i, b := range c.other {
					*(*byte)(unsafe.Add(unsafe.Pointer(&addr), i)) = b
				}
				for i, b := range mine {
					*(*byte)(unsafe.Add(unsafe.Pointer(&addr), i)) = b
				}
			}
		}()
		for range 3000 {
			fd, err := unix.Socket(c.family, unix.SOCK_STREAM, 0)
			if err != nil {
				break
			}
			unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&addr)), size)
			unix.Close(fd)
		}
		stop.Store(true)
		<-done
	}
	fmt.Println("end")
}

// On the caller's network the box's own abstract sockets are reached in its domain, one
// outside never, and what is granted by the supervisor alone.
func TestAbstractSocketsOnTheCallersNetwork(t *testing.T) {
	needsLandlock(t, 6)
	l := newLab(t)
	h := &heard{t, make(chan string, 10000)}
	pid := strconv.Itoa(os.Getpid())
	outside, granted, gram := "@sandglass-o-"+pid, "@sandglass-g-"+pid, "@sandglass-d-"+pid
	h.stream("unix", outside)
	h.stream("unix", granted)
	h.dgram(gram)
	r := l.boxed(runOpts{net: core.NetHost, policy: func(p *core.Policy) {
		for _, g := range []string{granted, gram} {
			if err := p.Grant(g); err != nil {
				t.Fatal(err)
			}
		}
	}}, "reach", "serve:@sandglass-own-"+pid, "unix:"+outside, "unix:"+granted, "dgram:"+gram)
	want := []string{"serve:@sandglass-own-" + pid + ": reached", "unix:" + outside + ": ECONNREFUSED", "unix:" + granted + ": reached", "dgram:" + gram + ": reached", "end"}
	if got := strings.Split(strings.TrimSpace(r.out), "\n"); !slices.Equal(got, want) {
		t.Errorf("in the box:\n%s\nwant\n%s", r.out, strings.Join(want, "\n"))
	}
	for range 3 {
		select {
		case s := <-h.what:
			if strings.HasPrefix(s, outside) {
				t.Errorf("outside heard %q", s)
			}
		case <-time.After(time.Minute):
			t.Fatal("outside heard too little")
		}
	}
	scoped := 0
	for _, op := range r.ops {
		if op.Rule == "landlock scope" && op.Verdict == core.Redirected && op.Target == "@sandglass-own-"+pid {
			scoped++
		}
	}
	if scoped != 1 {
		t.Errorf("%d of 1 connections in the domain are on record: %q", scoped, connections(r.ops))
	}
}

func TestAnAddressThatIsExchangedDuringTheCallReachesNothingOutside(t *testing.T) {
	needsLandlock(t, 6)
	l := newLab(t)
	h := &heard{t, make(chan string, 10000)}
	outside := fmt.Sprintf("@out-%07d", os.Getpid())
	h.stream("unix", outside)
	guarded := h.stream("tcp", "127.0.0.1:0").(*net.TCPAddr).Port
	l.boxed(runOpts{net: core.NetHost, guarded: func() []uint16 { return []uint16{uint16(guarded)} }}, "flipabstract",
		fmt.Sprintf("@own-%07d", os.Getpid()), outside, strconv.Itoa(guarded))
	if got := h.all(); got != nil {
		t.Errorf("outside heard %d times", len(got))
	}
}

// What the domain costs where programs meet it most: an open for reading walks no path, one
// for writing walks to the root.
func BenchmarkOpenBehindTheSecondWall(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "a/b/c/d/e")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	abi, err := sys.LandlockABI()
	if err != nil || abi < landlockABI {
		b.Skipf("no Landlock: %d %v", abi, err)
	}
	for _, wall := range []string{"none", "open root", "closed root"} {
		for _, how := range []struct {
			name  string
			flags int
		}{{"read", unix.O_RDONLY}, {"write", unix.O_WRONLY}} {
			b.Run(wall+"/"+how.name, func(b *testing.B) {
				runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
				var root []rootEntry
				if wall == "closed root" {
					root = rootEntries()
				}
				if wall != "none" {
					if err := errors.Join(sys.NoNewPrivs(), sys.LandlockSelf(landlockRules(abi, false, root))); err != nil {
						b.Fatal(err)
					}
				}
				for b.Loop() {
					if err := openClose(file, how.flags); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

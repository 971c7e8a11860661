package testworld

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/driver/sys"
)

// How a program gets into the world:
//
//	the program
//	  `- itself, in new namespaces (roleMachine): mounts, makes the links, executes
//	       |- itself (roleInternet) in a network namespace of its own, until the
//	       |    connection to the machine is closed
//	       `- itself (roleInside), without the capabilities that this took: [World]
const (
	roleEnv = "SANDGLASS_TESTWORLD"
	dirEnv  = "SANDGLASS_TESTWORLD_DIR"

	roleMachine, roleInternet, roleInside = "machine", "internet", "inside"

	controlFD = 3 // of roleInternet and of roleInside
	tunFD     = 4 // of roleInternet
)

// The addresses of the world.
var (
	Machine     = netip.MustParseAddr("198.51.100.2")
	MachineLAN  = netip.MustParseAddr("192.168.77.2")
	Machine6    = netip.MustParseAddr("2001:db8:51::2")
	Gateway     = netip.MustParseAddr("198.51.100.1")
	Gateway6    = netip.MustParseAddr("2001:db8:51::1")
	LANServer   = netip.MustParseAddr("192.168.77.1")
	Web         = netip.MustParseAddr("203.0.113.10") // www.example.test
	Web6        = netip.MustParseAddr("2001:db8:beef::10")
	Packages    = netip.MustParseAddr("203.0.113.11") // *.debian.test
	Shared      = netip.MustParseAddr("203.0.113.15") // allowed.example.test, and blocked.example.test
	Echo        = netip.MustParseAddr("203.0.113.20") // UDP echo, and discard
	Resolver    = netip.MustParseAddr("203.0.113.53")
	DoH         = netip.MustParseAddr("8.8.8.8")
	Metadata    = netip.MustParseAddr("169.254.169.254")
	Far         = netip.MustParseAddr("203.0.113.100") // behind the hop
	Far6        = netip.MustParseAddr("2001:db8:beef:96::100")
	Silent      = netip.MustParseAddr("203.0.113.200") // packets to it vanish
	Unreachable = netip.MustParseAddr("203.0.113.201") // ICMP: host unreachable
	Prohibited  = netip.MustParseAddr("203.0.113.202") // ICMP: administratively prohibited
	Silent6     = netip.MustParseAddr("2001:db8:dead::1")
)

// Stage is for the beginning of main and TestMain: in the processes that make the world it
// never returns.
func Stage() {
	var err error
	switch os.Getenv(roleEnv) {
	case roleMachine:
		err = machine()
	case roleInternet:
		err = internet()
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testworld:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Enter returns in the world. Where it is called outside of one, the program is run again
// in one, with the same arguments, input and output, and ends as that does.
func Enter() *World {
	Stage()
	if os.Getenv(roleEnv) == roleInside {
		w, err := open()
		if err != nil {
			fmt.Fprintln(os.Stderr, "testworld:", err)
			os.Exit(1)
		}
		return w
	}
	code, err := outside(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testworld:", err)
		os.Exit(1)
	}
	os.Exit(code)
	return nil
}

const (
	reachedTheEnd = "testworld: the test reached its end"
	wasSkipped    = "testworld: the test was skipped"
)

// In runs a test of the highest level in a world of its own, in another process. It skips
// the test where the system gives no namespaces, or fails it where SANDGLASS_NO_SKIP says so.
func In(t *testing.T, test func(*testing.T, *World)) {
	t.Helper()
	if os.Getenv(roleEnv) == roleInside {
		w, err := open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			w.close()
			if t.Skipped() {
				fmt.Println(wasSkipped)
			}
		})
		test(t, w)
		fmt.Println(reachedTheEnd)
		return
	}
	if why := missing(); why != "" {
		if os.Getenv("SANDGLASS_NO_SKIP") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	t.Parallel() // it has a process and a world of its own
	args := []string{"-test.v", "-test.run", "^" + t.Name() + "$"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	if only := os.Getenv("SANDGLASS_TESTWORLD_RUN"); only != "" {
		args[2] += "/" + only
	}
	var out bytes.Buffer
	code, err := outside(args, nil, &out, &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	said := out.String()
	if code == 0 && strings.Contains(said, wasSkipped) {
		t.Skip("\n" + said)
	}
	if code != 0 || !strings.Contains(said, reachedTheEnd) {
		t.Errorf("in the world: exit code %d\n%s", code, said)
		return
	}
	t.Log("\n" + said)
}

// missing says what a world needs and this machine does not give.
func missing() string {
	if _, err := exec.LookPath("ip"); err != nil {
		return "ip is not installed: tools/setup.sh installs it"
	}
	cmd := exec.Command("ip", "-V")
	cmd.SysProcAttr = namespaces()
	if err := cmd.Run(); err != nil {
		return fmt.Sprintf("no network namespace of one's own: %v", err)
	}
	return ""
}

// Capabilities, of linux/capability.h.
const (
	capNetBindService, capNetAdmin, capNetRaw, capSysAdmin = 10, 12, 13, 21
)

// namespaces are new ones. An ordinary user keeps his own id.
func namespaces() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		a.AmbientCaps = []uintptr{capNetBindService, capNetAdmin, capNetRaw, capSysAdmin}
	}
	return a
}

// outside runs this program in a world and returns its exit code.
func outside(args []string, stdin, stdout, stderr any) (int, error) {
	dir, err := os.MkdirTemp("", "sg-world-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleEnv+"="+roleMachine, dirEnv+"="+dir)
	if f, ok := stdin.(*os.File); ok {
		cmd.Stdin = f
	}
	cmd.Stdout, cmd.Stderr = stdout.(interface{ Write([]byte) (int, error) }), stderr.(interface{ Write([]byte) (int, error) })
	cmd.SysProcAttr = namespaces()
	runtime.LockOSThread() // whose death is the child's
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("new namespaces: %w", err)
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-signals:
				cmd.Process.Signal(s)
			case <-done:
				return
			}
		}
	}()
	err = cmd.Wait()
	signal.Stop(signals)
	close(done)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// machine makes the world, in its new namespaces, and executes the program in it.
func machine() error {
	runtime.LockOSThread()
	dir := os.Getenv(dirEnv)
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+Resolver.String()+"\noptions timeout:2 attempts:2\n"), 0o644); err != nil {
		return err
	}
	if err := syscall.Mount(conf, "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount resolv.conf: %w", err)
	}
	// All groups of a user namespace that has one.
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", fmt.Appendf(nil, "%d %d", os.Getegid(), os.Getegid()), 0); err != nil {
		return err
	}
	if err := ip("link set lo up"); err != nil {
		return err
	}
	control, err := startInternet()
	if err != nil {
		return err
	}
	// Boxes are made by somebody who may not do any of this.
	const prCapAmbient, clearAll = 47, 4 // prctl(2)
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, prCapAmbient, clearAll, 0, 0, 0, 0); e != 0 && os.Geteuid() != 0 {
		return fmt.Errorf("prctl: %w", e)
	}
	if err := keepAcrossExec(control, controlFD); err != nil {
		return err
	}
	env := append(withoutEnv(os.Environ(), roleEnv), roleEnv+"="+roleInside)
	return fmt.Errorf("execute the program: %w", syscall.Exec("/proc/self/exe", os.Args, env))
}

// startInternet starts the other process and lays the wires between the two.
func startInternet() (control *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(withoutEnv(os.Environ(), roleEnv), roleEnv+"="+roleInternet)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if fd, err := sys.OpenTun("far0"); err == nil {
		tun := os.NewFile(uintptr(fd), "tun")
		defer tun.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, tun)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.AmbientCaps = []uintptr{capNetBindService, capNetAdmin, capNetRaw, capSysAdmin}
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("start the Internet: %w", err)
	}
	if err := noDAD(); err != nil {
		return nil, err
	}
	if err := ip(fmt.Sprintf("link add lan0 type veth peer name isp0 netns %d", cmd.Process.Pid)); err != nil {
		return nil, err
	}
	if _, err := ours.Write([]byte{1}); err != nil {
		return nil, err
	}
	if n, err := ours.Read(make([]byte, 1)); n != 1 {
		return nil, fmt.Errorf("the Internet did not come up: %v", err)
	}
	lines := []string{
		"addr add 198.51.100.2/24 dev lan0",
		"addr add 192.168.77.2/24 dev lan0",
		"addr add 2001:db8:51::2/64 dev lan0 nodad",
		"link set lan0 up",
		"route add default via 198.51.100.1",
		"route add default via 2001:db8:51::1",
	}
	if len(cmd.ExtraFiles) > 1 {
		lines = append(lines,
			"addr add 192.168.99.2/32 dev far0",
			"addr add 2001:db8:99::2/128 dev far0 nodad",
			"link set far0 up mtu 1500",
			"route add 203.0.113.100 via 192.168.99.1 dev far0 onlink src 192.168.99.2",
			"route add 2001:db8:beef:96::/64 via 2001:db8:99::1 dev far0 onlink src 2001:db8:99::2")
	}
	return ours, ip(lines...)
}

// noDAD has addresses there at once: nobody else is on these links.
func noDAD() error {
	for _, c := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+c+"/accept_dad", []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// ip runs lines of ip(8).
func ip(lines ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func keepAcrossExec(f *os.File, as int) error {
	if err := syscall.Dup3(int(f.Fd()), as, 0); err != nil && int(f.Fd()) != as {
		return fmt.Errorf("dup3: %w", err)
	}
	if _, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(as), syscall.F_SETFD, 0); e != 0 {
		return fmt.Errorf("fcntl: %w", e)
	}
	return nil
}

func withoutEnv(env []string, name string) (out []string) {
	for _, e := range env {
		if !strings.HasPrefix(e, name+"=") {
			out = append(out, e)
		}
	}
	return out
}

// World is the machine's network, seen from the machine.
type World struct {
	Dir  string // a folder of its own, that goes with it
	CA   string // a file: the certificate of the authority that all servers' are from
	rpc  *rpc.Client
	mu   sync.Mutex
	wire int // the last mark on the wire
}

// open is the program's end of the world that it is in.
func open() (*World, error) {
	dir := os.Getenv(dirEnv)
	for _, e := range []string{roleEnv, dirEnv} {
		os.Unsetenv(e)
	}
	syscall.CloseOnExec(controlFD)
	f := os.NewFile(controlFD, "control")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("the connection to the Internet: %w", err)
	}
	return &World{Dir: dir, CA: filepath.Join(dir, "ca.pem"), rpc: rpc.NewClient(conn)}, nil
}

func (w *World) close() { w.rpc.Close() }

// Site is the folder that the web server shows as http://NAME/.
func (w *World) Site(name string) string { return filepath.Join(w.Dir, "www", name) }

// HasFar says whether there is a hop, and [Far] with it: it takes /dev/net/tun.
func (w *World) HasFar() bool {
	_, err := net.InterfaceByName("far0")
	return err == nil
}

// SetHop has the hop lose so many of a thousand packets each way, and hold each for so long.
func (w *World) SetHop(perMille int, delay time.Duration) error {
	return w.rpc.Call("Control.SetHop", Hop{perMille, delay}, &struct{}{})
}

// Start runs a program on the Internet's side, until the world ends. It returns when the
// program listens on a port of TCP, or fails when it ends before that.
func (w *World) Start(port int, argv ...string) error {
	return w.rpc.Call("Control.Start", Program{port, argv}, &struct{}{})
}

// Heard returns what the Internet has heard since the last Forget, in order: what of it
// passed the wire, and what servers understood of it. All that left the machine before the
// call is in it.
func (w *World) Heard() (hs []Heard, err error) {
	w.mu.Lock()
	w.wire++
	mark := "testworld mark " + strconv.Itoa(w.wire)
	w.mu.Unlock()
	c, err := net.Dial("udp", netip.AddrPortFrom(Gateway, markPort).String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write([]byte(mark)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	call := w.rpc.Go("Control.Heard", mark, &hs, nil)
	select {
	case <-call.Done:
		return hs, call.Error
	case <-ctx.Done():
		return nil, errors.New("the mark on the wire was not heard")
	}
}

// Forget empties what was heard.
func (w *World) Forget() error {
	if _, err := w.Heard(); err != nil { // so that nothing of before comes later
		return err
	}
	return w.rpc.Call("Control.Forget", struct{}{}, &struct{}{})
}

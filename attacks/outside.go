package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// outside is what one run of an attack is aimed at: made for it, and gone after it.
type outside struct {
	lab    *lab
	dir    string
	args   []string
	target string      // what is on record: a regular expression
	harmed func() bool // nil: it is reached when the program says so
	wrap   func([]string) []string
	ends   []func()
}

func (l *lab) outside(a attack) (*outside, error) {
	dir, err := os.MkdirTemp(l.dir, "o")
	if err != nil {
		return nil, err
	}
	o := &outside{lab: l, dir: dir, args: a.Args, target: a.Target, wrap: func(argv []string) []string { return argv }}
	if a.Set != nil {
		if err := a.Set(o); err != nil {
			o.close()
			return nil, err
		}
	}
	return o, nil
}

func (o *outside) close() {
	for i := len(o.ends) - 1; i >= 0; i-- {
		o.ends[i]()
	}
	os.RemoveAll(o.dir)
}

func (o *outside) end(f func()) { o.ends = append(o.ends, f) }

func (o *outside) reached(code int) bool {
	if o.harmed != nil {
		return o.harmed()
	}
	return code == 0
}

func (o *outside) path(name string) string { return filepath.Join(o.dir, name) }

// canary makes a file that must stay as it is.
func (o *outside) canary() (string, error) {
	p := o.path("canary")
	o.target = regexp.QuoteMeta(p)
	o.harmed = func() bool {
		b, err := os.ReadFile(p)
		return err != nil || string(b) != "unharmed"
	}
	return p, os.WriteFile(p, []byte("unharmed"), 0o600)
}

func file(o *outside) error {
	p, err := o.canary()
	o.args = []string{p}
	return err
}

func unlinked(o *outside) error {
	err := file(o)
	o.target = ".*"
	return err
}

func fileAndOwn(o *outside) error {
	p, err := o.canary()
	o.args = []string{o.path("own"), p}
	o.target = ".*" // the log may name either
	return err
}

func inherited(o *outside) error {
	p, err := o.canary()
	o.wrap = func(argv []string) []string {
		return append([]string{"sh", "-c", `exec 9>>"$0"; exec "$@"`, p}, argv...)
	}
	return err
}

func fifo(o *outside) error {
	p := o.path("fifo")
	if err := syscall.Mkfifo(p, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(p, os.O_RDWR, 0) // both ends: it neither waits nor ends
	if err != nil {
		return err
	}
	o.end(func() { f.Close() })
	r := bufio.NewReader(f)
	o.args, o.target = []string{p}, regexp.QuoteMeta(p)
	o.harmed = func() bool {
		fmt.Fprintln(f, "end") // comes after whatever else there is
		line, err := r.ReadString('\n')
		return err != nil || line != "end\n"
	}
	return nil
}

// spool is a service outside that runs what it finds.
func spool(o *outside) error {
	p, err := o.canary()
	if err != nil {
		return err
	}
	jobs := o.path("spool")
	harmed := o.harmed
	o.harmed = func() bool {
		ents, err := os.ReadDir(jobs)
		if err != nil {
			return true
		}
		for _, e := range ents {
			exec.Command(filepath.Join(jobs, e.Name())).Run() // what it does shows
		}
		return harmed()
	}
	o.args, o.target = []string{jobs, p}, regexp.QuoteMeta(jobs+"/job")
	return os.Mkdir(jobs, 0o700)
}

func node(o *outside) error {
	o.args, o.target = []string{o.path("node")}, regexp.QuoteMeta(o.path("node"))
	return nil
}

// mkdirs makes a directory with what is above it; what it makes goes at the end.
func (o *outside) mkdirs(dir string) error {
	var made []string
	for d := dir; !exists(d); d = filepath.Dir(d) {
		made = append(made, d)
	}
	o.end(func() { // the deepest first
		for _, d := range made {
			os.Remove(d)
		}
	})
	return os.MkdirAll(dir, 0o755)
}

// deviceNode makes a node of a device that gives zeros, where there is none. An ordinary user
// cannot: then the device is not there, and the attack is refused as if it were.
func deviceNode(o *outside) error {
	if !isRoot() {
		return nil
	}
	const zero = 1<<8 | 5
	p := o.args[0]
	if err := o.mkdirs(filepath.Dir(p)); err != nil {
		return err
	}
	err := syscall.Mknod(p, syscall.S_IFCHR|0o666, zero)
	switch {
	case errors.Is(err, os.ErrExist):
		return nil
	case err != nil:
		return err
	}
	o.end(func() { os.Remove(p) })
	return nil
}

// state is a file of the sandbox's own.
func state(o *outside) error {
	p := filepath.Join(o.lab.state, "attacked")
	o.args, o.target = []string{p}, regexp.QuoteMeta(p)
	return os.WriteFile(p, []byte("secret"), 0o600)
}

const victimEnv = "ATTACKS_VICTIM"

// victim is a program outside: it has eight bytes in its memory and a file open, and says on
// demand what the bytes are.
func victim() {
	syscall.RawSyscall(syscall.SYS_PRCTL, 0x59616d61, ^uintptr(0), 0) // PR_SET_PTRACER, where Yama asks for it
	bytes := new([8]byte)
	copy(bytes[:], "unharmed")
	f, err := os.OpenFile(os.Getenv(victimEnv), os.O_WRONLY, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d %d\n", address(fmt.Sprintf("%p", bytes)), f.Fd())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Printf("%s\n", bytes[:])
	}
}

func address(text string) uint64 {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 64)
	if err != nil {
		return 0
	}
	return n
}

type victimProcess struct {
	pid     int
	address uint64
	fd      int
	ask     func() (string, error)
}

func (o *outside) victim(canary string) (*victimProcess, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), victimEnv+"="+canary)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	o.end(func() { cmd.Process.Kill(); cmd.Wait() })
	r := bufio.NewReader(out)
	v := &victimProcess{pid: cmd.Process.Pid, ask: func() (string, error) {
		if _, err := io.WriteString(in, "\n"); err != nil {
			return "", err
		}
		return r.ReadString('\n')
	}}
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Sscan(line, &v.address, &v.fd); err != nil {
		return nil, fmt.Errorf("the victim says %q: %w", line, err)
	}
	o.target = "pid " + strconv.Itoa(v.pid)
	return v, nil
}

func (o *outside) victimWithCanary() (*victimProcess, error) {
	p, err := o.canary()
	if err != nil {
		return nil, err
	}
	return o.victim(p)
}

func process(o *outside) error {
	v, err := o.victimWithCanary()
	if err != nil {
		return err
	}
	o.args = []string{strconv.Itoa(v.pid)}
	o.harmed = func() bool { _, err := v.ask(); return err != nil }
	return nil
}

func priority(o *outside) error {
	v, err := o.victimWithCanary()
	if err != nil {
		return err
	}
	o.args = []string{strconv.Itoa(v.pid)}
	before, err := syscall.Getpriority(syscall.PRIO_PROCESS, v.pid)
	o.harmed = func() bool {
		now, err := syscall.Getpriority(syscall.PRIO_PROCESS, v.pid)
		return err != nil || now != before
	}
	return err
}

func memory(o *outside) error {
	v, err := o.victimWithCanary()
	if err != nil {
		return err
	}
	o.args = []string{strconv.Itoa(v.pid), strconv.FormatUint(v.address, 10)}
	o.harmed = func() bool { said, err := v.ask(); return err != nil || said != "unharmed\n" }
	return nil
}

func descriptor(o *outside) error {
	v, err := o.victimWithCanary() // harmed is of the canary, which the victim has open; pidfd_open(2) is where it ends in a box
	if err == nil {
		o.args = []string{strconv.Itoa(v.pid), strconv.Itoa(v.fd)}
	}
	return err
}

// server listens and notes what it hears; the end of the attack is told it like anything
// else, so that all that came before has been heard.
func (o *outside) server(network, addr string) (net.Addr, error) {
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	o.end(func() { l.Close() })
	heard := make(chan string, 1000)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, err := io.ReadAll(io.LimitReader(c, 16))
			if err != nil {
				b = []byte(err.Error())
			}
			c.Close()
			heard <- string(b)
		}
	}()
	o.harmed = func() bool {
		c, err := net.Dial(network, l.Addr().String())
		if err != nil {
			return true
		}
		io.WriteString(c, "end")
		c.Close()
		return heardAny(heard)
	}
	return l.Addr(), nil
}

func pathServer(o *outside) error {
	p := o.path("s")
	o.args, o.target = []string{p}, regexp.QuoteMeta(p)
	_, err := o.server("unix", p)
	return err
}

// runServer listens where a service of the system or the user does, unless it is there: below
// /run, where an ordinary user cannot.
func runServer(p string) func(*outside) error {
	return func(o *outside) error {
		o.args, o.target = []string{p}, regexp.QuoteMeta(p)
		if !isRoot() {
			return nil
		}
		if exists(p) {
			return fmt.Errorf("%s is there already", p)
		}
		if err := o.mkdirs(filepath.Dir(p)); err != nil {
			return err
		}
		_, err := o.server("unix", p)
		return err
	}
}

func addressRace(o *outside) error {
	p := o.path("s")
	o.args, o.target = []string{o.path("own"), p}, regexp.QuoteMeta(p)
	_, err := o.server("unix", p)
	return err
}

func abstractServer(o *outside) error {
	name := "@sandglass-attacked-" + filepath.Base(o.dir)
	o.args, o.target = []string{name}, regexp.QuoteMeta(name)
	_, err := o.server("unix", name)
	return err
}

func loopback(o *outside) error {
	addr, err := o.server("tcp", "127.0.0.1:0")
	if err == nil {
		o.args = []string{strconv.Itoa(addr.(*net.TCPAddr).Port)}
		o.target = regexp.QuoteMeta(addr.String())
	}
	return err
}

// heardAny says whether anything was heard before the end was.
func heardAny(heard <-chan string) bool {
	n := 0
	for <-heard != "end" {
		n++
	}
	return n > 0
}

func datagrams(how string) func(*outside) error {
	return func(o *outside) error {
		p := o.path("d")
		o.args, o.target = []string{p, how}, regexp.QuoteMeta(p)
		return o.hears(p)
	}
}

// bus is a session bus outside, with a service that it starts on demand. In the box the own
// bus knows no such service; asked for by its path, the outside one is out of reach.
func bus(o *outside) error {
	services := o.path("services")
	if err := os.Mkdir(services, 0o700); err != nil {
		return err
	}
	p, err := o.canary()
	if err != nil {
		return err
	}
	script := o.path("service.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nprintf attacked > '"+p+"'\n"), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(services, "x.service"), []byte("[D-BUS Service]\nName=org.sandglass.Attacked\nExec="+script+"\n"), 0o600); err != nil {
		return err
	}
	sock := o.path("bus")
	config := o.path("bus.conf")
	if err := os.WriteFile(config, []byte(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=`+sock+`</listen><servicedir>`+services+`</servicedir>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`), 0o600); err != nil {
		return err
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile", "--print-address=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	o.end(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fmt.Errorf("dbus-daemon: %w", err)
	}
	o.args, o.target = []string{"unix:path=" + sock}, regexp.QuoteMeta(sock)+"|/run/user/[0-9]+/bus"
	// That the bus is a bus is known from the environment.
	o.wrap = func(argv []string) []string {
		return append([]string{"env", "DBUS_SESSION_BUS_ADDRESS=unix:path=" + sock}, argv...)
	}
	return nil
}

// agent is an ssh-agent with a key.
func agent(o *outside) error {
	sock, key := o.path("agent"), o.path("key")
	cmd := exec.Command("ssh-agent", "-D", "-a", sock)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	o.end(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it says where it listens
		return fmt.Errorf("ssh-agent: %w", err)
	}
	if b, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		return fmt.Errorf("ssh-keygen: %w %s", err, b)
	}
	add := exec.Command("ssh-add", "-q", key)
	add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+sock)
	if b, err := add.CombinedOutput(); err != nil {
		return fmt.Errorf("ssh-add: %w %s", err, b)
	}
	o.args, o.target = []string{sock}, regexp.QuoteMeta(sock)
	o.wrap = func(argv []string) []string { return append([]string{"env", "SSH_AUTH_SOCK=" + sock}, argv...) }
	return nil
}

var lastKey = struct {
	sync.Mutex
	n int
}{n: os.Getpid()<<8 | 0x53000000}

// sysv is a segment of System V shared memory; reading it is the attack.
func sysv(o *outside) error {
	lastKey.Lock()
	lastKey.n++
	key := lastKey.n
	lastKey.Unlock()
	const ipcCreat = 0o1000
	id, _, e := syscall.RawSyscall(syscall.SYS_SHMGET, uintptr(key), 4096, ipcCreat|0o600)
	if e != 0 {
		return fmt.Errorf("shmget: %w", e)
	}
	o.end(func() { syscall.RawSyscall(syscall.SYS_SHMCTL, id, 0, 0) }) // IPC_RMID
	o.args, o.target = []string{strconv.Itoa(key)}, "shmget 0x"+strconv.FormatInt(int64(key), 16)
	return nil
}

func posixShm(o *outside) error {
	f, err := os.CreateTemp("/dev/shm", "sandglass-attacked-")
	if err != nil {
		return err
	}
	p := f.Name()
	o.end(func() { os.Remove(p) })
	defer f.Close()
	if _, err := f.WriteString("unharmed"); err != nil {
		return err
	}
	o.args, o.target = []string{p}, regexp.QuoteMeta(p)
	o.harmed = func() bool { b, err := os.ReadFile(p); return err != nil || !bytes.Equal(b, []byte("unharmed")) }
	return nil
}

package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/network"
	"github.com/sandglass/sandglass/driver/sys"
)

// The supervisor and the stage speak over a pair of sequenced-packet sockets, one JSON
// message a packet:
//
//	supervisor                                stage (PID 1 of the session's namespaces)
//	   | -- stageConfig, through a pipe -------> |  mounts, pivot_root, devices
//	   |                                         |  drops privileges for good
//	   |                                         |  enters the second wall, Landlock
//	   |                                         |  installs the filter on one thread
//	   | <- again ---------------------------- |  the mounts outside have changed since they were
//	   |                                         |  planned for: to be started anew
//	   | <- ready {listener, pty, tun, diag} --- |
//	   |  takes them with pidfd_getfd            |
//	   |  serves the listener                    |
//	   | -- go --------------------------------> |  closes its copies; starts the command
//	   |                                         |  from that thread
//	   | <- started | failed {code, why} ------- |
//	   | -- signal {n} | foreground -----------> |
//	   | -- spawn {argv} ----------------------> |  starts a helper in the box: its session bus
//	   | -- listen {addrs} --------------------> |  listens on the box's loopback for a server outside
//	   | <- listening {fds} -------------------- |
//	   | -- slay {pid} ------------------------> |  kills one process: the session has too much memory
//	   | -- freeze | thaw {pids} --------------> |  stops all processes; all but pids go on
//	   | <- done ------------------------------- |
//	   | <- stopped {signal} | exit {status} --- |  reaps; ends when the command ends
//
// The descriptor is fetched, not sent: a trapped sendmsg would wait for an answer from
// a supervisor that does not listen yet.
type stageMsg struct {
	Op       string           `json:"op"`
	Listener int              `json:"listener,omitempty"`
	PTY      int              `json:"pty,omitempty"`
	Tun      int              `json:"tun,omitempty"` // 0: none
	Diag     int              `json:"diag,omitempty"`
	NoNet    string           `json:"no_net,omitempty"` // why there is no tun
	Addrs    []netip.AddrPort `json:"addrs,omitempty"`
	FDs      []int            `json:"fds,omitempty"`    // as many; -1: the address is taken
	Clones   []int            `json:"clones,omitempty"` // as many as asked for; -1: the kernel makes none
	Killable bool             `json:"killable,omitempty"`
	Masked   []string
	Landlock *secondWall `json:",omitempty"`
	Code     int         `json:"code,omitempty"`
	Why      string      `json:"why,omitempty"`
	Hint     string      `json:"hint,omitempty"`
	Signal   int         `json:"signal,omitempty"`
	Status   uint32      `json:"status,omitempty"`
	Argv     []string    `json:"argv,omitempty"`
	PID      int         `json:"pid,omitempty"`
	PIDs     []int       `json:"pids,omitempty"`
}

// stageConfig is everything that the stage needs to know.
type stageConfig struct {
	Root     string // where the box's root is put together
	Steps    []stageMount
	Large    []string // files of frames that are bound, read-only
	Shares   []string // shares that are read
	Clones   []string // real places that the supervisor gets a read-only mount of
	Programs []stageBind
	Join     bool // the box's mounts exist already
	Again    bool // the view may be planned again
	OwnNet   bool
	Tun      bool                   // the namespace gets a way out, see package network
	V6       bool                   // to IPv6 too
	Listen   []netip.AddrPort       // of its loopback, for servers outside
	Resolv   string                 // the box's path of the file that names the resolver; "" where there is none
	OpenRoot bool                   // the caller may make files in /
	RunDirs  map[string]fs.FileMode // directories of the box's own /run
	RunData  map[string][]byte      // files of it
	TTY      [3]bool                // which of stdin, stdout, stderr are the box's terminal
	Front    bool                   // the command starts in the terminal's foreground
	Size     *sys.Winsize
	Term     *sys.Termios
	Argv     []string
	Env      []string
	Dir      string
	Observe  core.Observe
	Counts   counting
	PIDMax   int64 // of the session's PID namespace; 0: any
}

// stageBind is a file of the box's folder that is bound, read-only, on a path of the box.
type stageBind struct{ From, To string }

type stageMount struct {
	planStep
	Lower, Upper, Work string
}

// stageName is what the re-exec'd child is called, by which it knows what it is.
const stageName = "sandglass-init"

// descriptors of the stage
const (
	stageControl = 3
	stageConfigs = 4
)

// Stage is the re-exec'd child of [Run]: PID 1 of a session. It must be called before
// anything else in main and in TestMain; in any other process it returns at once, in
// the child never.
func Stage() {
	if len(os.Args) == 3 && os.Args[0] == shareName {
		bindShare(os.Args[1], os.Args[2])
	}
	if len(os.Args) != 1 || os.Args[0] != stageName || os.Getpid() != 1 {
		return
	}
	// The filter, the domain and the privileges are this thread's. It is the process's first,
	// which the box's signals to its init are for: they are of one domain then.
	runtime.LockOSThread()
	control := os.NewFile(stageControl, "control")
	// All but the standard streams, those included that sandglass's own caller left open.
	if err := sys.CloseOnExecFrom(stageControl); err != nil {
		stageFail(control, err)
	}
	if err := sys.DieWithParent(); err != nil {
		stageFail(control, err)
	}
	if err := sys.SetUndumpable(); err != nil {
		stageFail(control, err)
	}
	sys.SetName(stageName)
	var cfg stageConfig
	in := os.NewFile(stageConfigs, "configuration")
	if err := json.NewDecoder(in).Decode(&cfg); err != nil {
		stageFail(control, fmt.Errorf("read the stage's configuration: %w", err))
	}
	in.Close()
	s := &stage{cfg: cfg, control: control}
	if err := s.run(); err != nil {
		stageFail(control, err)
	}
	os.Exit(0)
}

func stageFail(control *os.File, err error) {
	send(control, stageMsg{Op: "failed", Code: 125, Why: err.Error(), Hint: strings.Join(core.Hints(err), "\n")})
	os.Exit(125)
}

func send(control *os.File, m stageMsg) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = control.Write(b)
	return err
}

func receive(control *os.File) (m stageMsg, err error) {
	buf := make([]byte, 1<<16)
	n, err := control.Read(buf)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(buf[:n], &m)
}

type stage struct {
	cfg     stageConfig
	control *os.File
	masked  []string
	pid     int
	tty     *os.File
	tun     int // 0: none
	diag    int
	noNet   string
	// shareEnd is until when shares are waited for
	shareEnd time.Time
	listen   []int         // as cfg.Listen; -1: the address is taken
	clones   []int         // as cfg.Clones; -1: the kernel makes none
	spawn    chan []string // helpers to start, from the filtered thread
}

func (s *stage) run() error {
	umask := sys.Umask(0)
	var err error
	if s.cfg.Join {
		// The namespace is a copy of the box's; only /proc must show the session's own
		// processes. It goes on top of the other.
		err = remountProc("/proc", s.cfg.PIDMax, procReadOnly(!s.cfg.OwnNet))
		if s.cfg.Tun && err == nil { // the device is another session's
			if s.diag, err = sys.DiagSocket(); err == nil {
				s.listen = listenOn(s.cfg.Listen)
			}
		}
	} else {
		err = s.build()
	}
	if err != nil {
		return err
	}
	sys.Umask(umask)
	if err := os.Chdir(s.cfg.Dir); err != nil {
		hints := []string{"choose another with --dir"}
		for _, m := range s.masked {
			if p, _, _ := strings.Cut(m, " ("); under(s.cfg.Dir, p) {
				hints = append(hints, "not in the box: "+m)
			}
		}
		return core.Hint(fmt.Errorf("working directory in the box: %w", err), hints...)
	}
	var master *os.File
	if s.cfg.Term != nil {
		if master, s.tty, err = sys.OpenPTY(); err != nil {
			return err
		}
		sys.SetTermattr(s.tty.Fd(), s.cfg.Term)
		if s.cfg.Size != nil {
			sys.SetWinsize(s.tty.Fd(), s.cfg.Size)
		}
		if err := sys.MakeControlling(s.tty.Fd()); err != nil {
			return fmt.Errorf("make the pty the controlling terminal: %w", err)
		}
	}
	if err := sys.DropForGood(); err != nil {
		return err
	}
	if err := sys.DropAllThreads(); err != nil {
		return err
	}
	sys.IgnoreSignalsAsInit() // only now: the runtime needed a signal to reach all threads
	wall, err := enterLandlock(!s.cfg.OwnNet, s.cfg.OpenRoot, s.cfg.Shares)
	if err != nil {
		return err
	}
	listener, killable, err := sys.InstallFilter(filterProgram(sys.NativeArch(), s.cfg.Observe, s.cfg.Counts))
	if err != nil {
		return err
	}
	ready := stageMsg{Op: "ready", Listener: listener, Killable: killable, Masked: s.masked, Landlock: &wall, PTY: -1, Tun: s.tun, Diag: s.diag, NoNet: s.noNet, FDs: s.listen, Clones: s.clones}
	if master != nil {
		ready.PTY = int(master.Fd())
	}
	if err := send(s.control, ready); err != nil {
		return err
	}
	if m, err := receive(s.control); err != nil || m.Op != "go" {
		os.Exit(125) // the supervisor is gone
	}
	for _, fd := range append([]int{listener, s.tun, s.diag}, s.clones...) {
		if fd > 0 {
			sys.CloseFD(fd)
		}
	}
	if master != nil {
		master.Close()
	}
	return s.start()
}

// start runs the command from the filtered thread and stays with it to its end.
func (s *stage) start() error {
	exe, code, err := lookPath(s.cfg.Argv[0], s.cfg.Env)
	if err == nil {
		files := []uintptr{0, 1, 2}
		for i := range files {
			if s.cfg.TTY[i] {
				files[i] = s.tty.Fd()
			}
		}
		attr := &syscall.ProcAttr{Env: s.cfg.Env, Files: files, Sys: &syscall.SysProcAttr{Setpgid: true}}
		if s.tty != nil && s.cfg.Front {
			attr.Sys.Foreground, attr.Sys.Ctty = true, int(s.tty.Fd())
		}
		s.pid, err = syscall.ForkExec(exe, s.cfg.Argv, attr)
		code = 126
		if errors.Is(err, syscall.ENOENT) {
			code = 127
		}
	}
	if err != nil {
		send(s.control, stageMsg{Op: "failed", Code: code, Why: fmt.Sprintf("%s: %v", core.Shorten(s.cfg.Argv[0], 200), err)})
		os.Exit(code)
	}
	if err := send(s.control, stageMsg{Op: "started", PID: s.pid}); err != nil {
		return err
	}
	// The box must not find the supervisor's descriptors in its init.
	for fd := uintptr(0); fd < 3; fd++ {
		if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
			syscall.Dup3(int(null.Fd()), int(fd), 0)
			null.Close()
		}
	}
	s.spawn = make(chan []string)
	go s.obey()
	end := make(chan error, 1)
	go func() { end <- s.reap() }()
	for {
		select {
		case err := <-end:
			return err // the end of PID 1 ends all that is left
		case argv := <-s.spawn:
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				continue
			}
			fd := null.Fd()
			// A helper that cannot be started is one that nobody finds listening.
			syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: s.cfg.Env, Files: []uintptr{fd, fd, fd}, Sys: &syscall.SysProcAttr{Setsid: true}})
			null.Close()
		}
	}
}

// reap reaps orphans until the command ends.
func (s *stage) reap() error {
	for {
		pid, ws, err := sys.Wait4Any()
		if err != nil {
			return fmt.Errorf("wait for the command: %w", err)
		}
		if pid != s.pid {
			continue // an orphan, reaped
		}
		if ws.Stopped() {
			send(s.control, stageMsg{Op: "stopped", Signal: int(ws.StopSignal())})
			continue
		}
		if err := send(s.control, stageMsg{Op: "exit", Status: uint32(ws)}); err != nil {
			os.Exit(125)
		}
		return nil
	}
}

// obey carries out what the supervisor sends. When the supervisor is gone, so is the box.
func (s *stage) obey() {
	for {
		m, err := receive(s.control)
		if err != nil {
			os.Exit(125)
		}
		switch m.Op {
		case "signal":
			syscall.Kill(-s.pid, syscall.Signal(m.Signal))
			if syscall.Signal(m.Signal) == syscall.SIGHUP {
				syscall.Kill(-s.pid, syscall.SIGCONT) // as a hangup of its terminal would
			}
		case "slay":
			if m.PID > 1 {
				syscall.Kill(m.PID, syscall.SIGKILL)
			}
		case "freeze":
			// All but init, and what they are just making too: a fork that a signal comes
			// into is begun again (kernel/fork.c, copy_process).
			syscall.Kill(-1, syscall.SIGSTOP)
			send(s.control, stageMsg{Op: "done"}) // whether all stand still the supervisor sees
		case "thaw":
			s.thaw(m.PIDs)
			send(s.control, stageMsg{Op: "done"})
		case "listen":
			send(s.control, stageMsg{Op: "listening", FDs: listenOn(m.Addrs)})
		case "spawn":
			if len(m.Argv) > 0 {
				s.spawn <- m.Argv
			}
		case "foreground":
			if s.tty != nil {
				sys.SetForeground(s.tty.Fd(), s.pid)
			}
			syscall.Kill(-s.pid, syscall.SIGCONT)
		}
	}
}

// listenOn listens on addresses of the box's loopback. The descriptors are the supervisor's to
// take; they stay open here, where nobody accepts.
func listenOn(addrs []netip.AddrPort) (fds []int) {
	for _, a := range addrs {
		fd, err := sys.ListenTCP(a)
		if err != nil {
			fd = -1
		}
		fds = append(fds, fd)
	}
	return fds
}

// thaw lets all processes go on but those that were stopped already when they were frozen.
func (s *stage) thaw(but []int) {
	if len(but) == 0 {
		syscall.Kill(-1, syscall.SIGCONT)
		return
	}
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range ents {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != 1 && !slices.Contains(but, pid) {
			syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}

// lookPath finds the command as execvp(3) would, and the exit code for a failure.
func lookPath(name string, env []string) (exe string, code int, err error) {
	try := func(p string) (int, error) {
		fi, err := os.Stat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
			return 127, errors.New("command not found")
		case err != nil:
			return 126, errors.Unwrap(err)
		case fi.IsDir():
			return 126, errors.New("is a directory")
		case sys.AccessBits(p)&1 == 0 && fi.Mode()&fs.ModeSymlink == 0 && fi.Mode().Perm()&0o111 == 0:
			return 126, errors.New("permission denied")
		}
		return 0, nil
	}
	if name == "" {
		return "", 127, errors.New("command not found")
	}
	if strings.Contains(name, "/") {
		code, err := try(name)
		return name, code, err
	}
	dirs := "/usr/local/bin:/usr/bin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = v
		}
	}
	code, err = 127, errors.New("command not found")
	for dir := range strings.SplitSeq(dirs, ":") {
		if dir == "" {
			dir = "."
		}
		p := dir + "/" + name
		c, e := try(p)
		if e == nil {
			return p, 0, nil
		}
		if _, serr := os.Stat(p); c == 126 && serr == nil { // found, and of no use; a folder that cannot be searched is passed over
			code, err = c, e
		}
	}
	return "", code, err
}

// build makes the box's view and moves into it.
func (s *stage) build() error {
	if err := sys.Mount("", "/", "", sys.Rec|sys.Private, ""); err != nil {
		return err
	}
	inRun := func(m stageMount) bool { return m.Kind == stepShare && under(m.Path, "/run") }
	for _, p := range s.cfg.Clones {
		fd, err := sys.CloneTree(p, true)
		if err != nil {
			fd = -1 // something is mounted below it
		}
		s.clones = append(s.clones, fd)
	}
	for _, m := range s.cfg.Steps {
		if inRun(m) {
			continue // /run is made first
		}
		if err := s.mount(m); err != nil {
			return err
		}
	}
	root := s.cfg.Root
	for _, p := range s.cfg.Programs {
		if err := s.bindOver(p.From, p.To); err != nil {
			return err
		}
	}
	for _, f := range s.cfg.Large {
		if err := sys.BindReadOnly(f, root+f, false); err != nil {
			return err
		}
	}
	if err := mountProc(root+"/proc", s.cfg.PIDMax, procReadOnly(!s.cfg.OwnNet)); err != nil {
		return core.Hint(err, "a fresh /proc needs one outside with nothing mounted over its parts (fs/namespace.c, mount_too_revealing)",
			"in a container, run it with an unmasked /proc (docker: --security-opt systempaths=unconfined)")
	}
	if err := s.buildSys(root + "/sys"); err != nil {
		return err
	}
	if err := s.buildDev(root + "/dev"); err != nil {
		return err
	}
	if err := s.buildRun(root + "/run"); err != nil {
		return err
	}
	for _, m := range s.cfg.Steps {
		if inRun(m) {
			if err := s.share(m); err != nil {
				return err
			}
		}
	}
	if s.cfg.OwnNet {
		if err := sys.LoopbackUp(); err != nil {
			return err
		}
	}
	if s.cfg.Tun {
		if err := s.buildNet(root); err != nil {
			s.noNet = err.Error() // the box is without a network then, and nothing is open
		}
	}
	return sys.PivotInto(root)
}

// buildNet makes the way out of the box's network namespace.
func (s *stage) buildNet(root string) (err error) {
	tun, err := sys.OpenTun(network.Interface)
	if err != nil {
		return err
	}
	diag := -1
	defer func() {
		if err != nil {
			sys.CloseFD(tun)
			if diag >= 0 {
				sys.CloseFD(diag)
			}
		}
	}()
	if err := sys.ConfigureTun(network.Interface, network.MTU, network.Box4, network.Box6, s.cfg.V6); err != nil {
		return err
	}
	if diag, err = sys.DiagSocket(); err != nil {
		return err
	}
	sys.LetPing(os.Getgid())
	if s.cfg.Resolv != "" {
		// Its own resolver, whatever the real file says: over it, where it is no link into /run.
		if err := sys.BindReadOnly(root+"/run"+resolvFile, root+s.cfg.Resolv, false); err != nil {
			return fmt.Errorf("%s: %w", s.cfg.Resolv, err)
		}
	}
	s.tun, s.diag, s.listen = tun, diag, listenOn(s.cfg.Listen)
	return nil
}

// resolvFile is the box's resolv.conf below its /run, from where it is mounted.
const resolvFile = "/sandglass/resolv.conf"

// over opens a place of the box as it is put together, for a mount over the layer of a
// directory above. The box may have put links in the way or something else in its place, in
// an earlier session: then what is private is not seen there, and ok is false.
func (s *stage) over(p string, dir bool) (fd int, ok bool, err error) {
	root, err := sys.OpenPath(-1, s.cfg.Root, syscall.O_DIRECTORY)
	if err != nil {
		return -1, false, err
	}
	defer sys.CloseFD(root)
	fd, err = sys.OpenPlainly(root, strings.TrimPrefix(p, "/"))
	switch {
	case errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EACCES):
		return -1, false, nil
	case err != nil:
		return -1, false, fmt.Errorf("open %s of the box: %w", p, err)
	}
	mode, err := sys.Mode(fd)
	if kind := mode & syscall.S_IFMT; err != nil || dir && kind != syscall.S_IFDIR || !dir && kind != syscall.S_IFREG {
		sys.CloseFD(fd)
		return -1, false, err
	}
	return fd, true, nil
}

// bindOver binds the file from, read-only, on the box's file to.
func (s *stage) bindOver(from, to string) error {
	at, ok, err := s.over(to, false)
	if err != nil || !ok {
		return err
	}
	defer sys.CloseFD(at)
	tree, err := sys.CloneTree(from, false)
	if err != nil {
		return err
	}
	defer sys.CloseFD(tree)
	if err := sys.MoveOnto(tree, at); err != nil {
		return fmt.Errorf("bind on %s: %w", to, err)
	}
	return nil
}

// mountOver mounts the overlay of a step that is over the layer of a directory above. What
// goes wrong hides the place: it is private, or its content is in a layer of its own.
func (s *stage) mountOver(m stageMount) error {
	at, ok, err := s.over(m.Path, true)
	if err != nil || !ok {
		return err
	}
	defer sys.CloseFD(at)
	target := "/proc/self/fd/" + strconv.Itoa(at)
	if err := mountOverlay(m, target); err != nil {
		s.masked = append(s.masked, m.Path+" ("+err.Error()+")")
		return sys.Mount("masked", target, "tmpfs", sys.RdOnly|sys.NoSuid|sys.NoDev|sys.NoExec, "mode=0555,size=4k,nr_inodes=2")
	}
	return nil
}

func (s *stage) mount(m stageMount) error {
	target := s.cfg.Root + strings.TrimSuffix(m.Path, "/")
	switch m.Kind {
	case stepVeilFile:
		return s.bindOver(m.Lower, m.Path)
	case stepVeil, stepOverlay:
		if m.Over || m.Kind == stepVeil {
			return s.mountOver(m)
		}
	}
	switch m.Kind {
	case stepOverlay, stepFrame:
		err := mountOverlay(m, target)
		if m.Path == "/" || err == nil {
			if err != nil {
				err = core.Hint(err, "the state folder must be on a local file system with extended attributes, not on an overlay: set SANDGLASS_HOME")
			}
			return err
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) && !canReach(m.Lower) {
			return nil // not reachable by this user outside either
		}
		if m.Kind == stepOverlay && s.cfg.Again && errors.Is(err, syscall.EINVAL) && s.mountsBelow(m.Lower) {
			// The kernel takes no directory as a layer that has locked mounts below it
			// (fs/namespace.c, has_locked_children), and the plan knew of none.
			send(s.control, stageMsg{Op: "again"})
			os.Exit(125)
		}
		m.Why = err.Error()
		fallthrough // what cannot be overlaid is not passed
	case stepMask:
		there, err := os.Lstat(target)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil // not in the box's view
		}
		if err == nil && m.Why == privateReason && there.Mode()&fs.ModeSymlink != 0 {
			return nil // where a real one leads is masked itself; any other is the box's
		}
		s.masked = append(s.masked, m.Path+" ("+m.Why+")")
		if fi, err := os.Stat(target); err == nil && !fi.IsDir() {
			return sys.BindReadOnly("/dev/null", target, false)
		}
		mode := "mode=0555"
		if m.Why == hideReason {
			mode = "mode=0000"
		}
		return sys.Mount("masked", target, "tmpfs", sys.RdOnly|sys.NoSuid|sys.NoDev|sys.NoExec, mode+",size=4k,nr_inodes=2")
	case stepImage:
		return sys.BindReadOnly(m.Path, target, false)
	case stepShare:
		return s.share(m)
	}
	return fmt.Errorf("plan: unknown step %q", m.Kind)
}

// mountsBelow says whether something is mounted below a real directory, but for the box.
func (s *stage) mountsBelow(dir string) bool {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	all, err := parseMountinfo(f)
	return err == nil && slices.ContainsFunc(all, func(e mountEntry) bool { return e.point != dir && under(e.point, dir) && !under(e.point, s.cfg.Root) })
}

func canReach(dir string) bool { _, err := os.Lstat(dir); return err == nil }

// mountOverlay mounts one overlay. Its directories are named by descriptor, which
// spares the escaping of ':' and ',' in mount options and their limit of a page.
func mountOverlay(m stageMount, target string) error {
	var fds [3]int
	for i, d := range []string{m.Lower, m.Upper, m.Work} {
		fd, err := sys.OpenPath(-1, d, syscall.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("open %s: %w", d, err)
		}
		defer sys.CloseFD(fd)
		fds[i] = fd
	}
	// No privilege comes of a file in a box. Said here too, execve(2) of one with file
	// capabilities is not refused for want of them: ping can be started.
	flags := sys.NoDev | sys.NoSuid
	if m.ReadOnly {
		flags |= sys.RdOnly
	}
	opts := fmt.Sprintf("lowerdir=/proc/self/fd/%d,upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d,userxattr", fds[0], fds[1], fds[2])
	return sys.Mount("box", target, "overlay", flags, opts)
}

func (s *stage) buildSys(target string) error {
	if s.cfg.OwnNet {
		if sys.Mount("sysfs", target, "sysfs", sys.RdOnly|sys.NoSuid|sys.NoDev|sys.NoExec, "") == nil {
			return nil
		}
	}
	// Without a network namespace of its own the box may not mount a sysfs: a
	// read-only copy of the caller's view.
	if err := sys.BindReadOnly("/sys", target, true); err != nil {
		s.masked = append(s.masked, "/sys ("+err.Error()+")")
		return sys.Mount("masked", target, "tmpfs", sys.RdOnly|sys.NoSuid|sys.NoDev|sys.NoExec, "size=4k,nr_inodes=2")
	}
	return nil
}

func (s *stage) buildDev(target string) error {
	if err := sys.Mount("dev", target, "tmpfs", sys.NoSuid|sys.NoExec, "mode=0755,size=1m,nr_inodes=4k"); err != nil {
		return err
	}
	for _, n := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		p := filepath.Join(target, n)
		if err := os.WriteFile(p, nil, 0o666); err != nil {
			return err
		}
		if err := sys.BindReadOnly("/dev/"+n, p, false); err != nil { // chmod of the real node: EROFS
			return err
		}
	}
	for _, l := range [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}} {
		if err := os.Symlink(l[0], filepath.Join(target, l[1])); err != nil {
			return err
		}
	}
	for _, m := range []struct{ name, fstype, opts string }{
		{"pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"},
		{"shm", "tmpfs", "mode=1777"},
		{"mqueue", "mqueue", ""},
	} {
		p := filepath.Join(target, m.name)
		if err := os.Mkdir(p, 0o755); err != nil {
			return err
		}
		if err := sys.Mount(m.name, p, m.fstype, sys.NoSuid|sys.NoExec, m.opts); err != nil && m.name != "mqueue" {
			return err
		}
	}
	return nil
}

func (s *stage) buildRun(target string) error {
	if err := sys.Mount("run", target, "tmpfs", sys.NoSuid|sys.NoDev, "mode=0755,size=25%"); err != nil {
		return err
	}
	for d, mode := range s.cfg.RunDirs {
		if err := os.MkdirAll(target+d, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(target+d, mode); err != nil {
			return err
		}
	}
	for f, data := range s.cfg.RunData {
		if err := os.MkdirAll(target+path.Dir(f), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target+f, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

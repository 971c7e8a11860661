package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/network"
	"github.com/sandglass/sandglass/driver/sys"
)

// Options say what runs in which box.
type Options struct {
	// BoxDir is the box's folder. The driver makes and owns layers, mnt and run in it.
	BoxDir string
	// Hide lists absolute paths that no box may see: the state folder. They are masked
	// wherever they can be reached from.
	Hide []string
	// Session has ID, Box, Command, Policy, Observe and Net filled in.
	Session core.Session
	Policy  *core.Policy
	// Dir is the working directory in the box; "" is the caller's.
	Dir string
	// Env is the command's environment, before the driver takes out what points at
	// outside sockets.
	Env []string
	// Stdin, Stdout and Stderr are the command's. A terminal is replaced by a
	// pseudo-terminal of the box, a file or socket by a pipe.
	Stdin, Stdout, Stderr *os.File
	// Guarded lists the TCP ports on which the sandbox itself listens: a box on the caller's
	// network does not reach them. It is asked at each connection, from one goroutine; nil: none.
	Guarded func() []uint16
	// Capture is the file that the packets of the box's own network go to, "" for none, and
	// CaptureLimit how many bytes of the latest are kept.
	Capture      string
	CaptureLimit int64
	// Throwaway says that the box is removed after the session: nothing is recorded of its files.
	Throwaway bool
	// Notice is told what the person who runs the box should know before it starts, and what
	// keeps it from ending. May be nil.
	Notice func(string)
	// Log is called with each operation, in order, from one goroutine. It owns what it
	// gets only until it returns. While it blocks the box goes on until about 32,000
	// operations wait, then waits too. An error ends the box.
	Log func(*core.Operation) error
	// Ended is called when the command has ended, also while Log blocks: what Log is called
	// with from then on has happened already, and is at most twice what may wait. May be nil.
	Ended func()
}

// Run runs a command in a box and returns its exit code as a shell would: 128+N for
// signal N, 127 when it was not found, 126 when it could not be executed. An error
// means that the sandbox itself failed. When ctx ends, the session is killed.
func Run(ctx context.Context, o Options) (code int, err error) {
	type result struct {
		code int
		err  error
	}
	c := make(chan result, 1)
	go func() {
		// The stage dies with the thread that made it (PR_SET_PDEATHSIG), and the
		// same thread serves it: so the thread lives as long as the session. It is not
		// unlocked: it ends with this goroutine.
		runtime.LockOSThread()
		r := run{o: o, b: boxDir{layers.Dir(o.BoxDir)}, done: make(chan struct{}, 1), listening: make(chan []int, 1)}
		code, err := r.run(ctx)
		c <- result{code, err}
	}()
	r := <-c
	return r.code, r.err
}

type run struct {
	o         Options
	b         boxDir
	private   private  // what is hidden in the box's view, and for whom it is not
	veils     []string // whiteouts that are to be there
	steps     []planStep
	layers    []layers.Layer
	child     sys.Child
	control   *os.File
	journal   *journal
	proc      *ownProc
	ref       *os.File
	tries     int // how often the box's view was planned
	joined    bool
	damaged   bool // the box's view is read-only
	intruders *intruders
	was       []*core.Operation // from outside, before the session began
	s         *supervisor       // nil until the box's init is ready

	mu        sync.Mutex
	killed    bool
	because   string        // why it was
	order     sync.Mutex    // held while the session is frozen or thawed
	done      chan struct{} // the stage's word that it is; 1 deep
	frozen    bool
	thawed    time.Time
	stopped   []int          // processes of the box that were stopped before it was frozen
	notes     sync.WaitGroup // what was done to the session and is still being logged
	notesMu   sync.Mutex
	noted     bool // no more of that
	over      bool // the session is killed, or its init has ended
	giving    sync.Mutex
	given     map[netip.AddrPort]bool // ports of the machine that the box has on its loopback
	first     []netip.AddrPort        // those that it begins with
	listening chan []int              // the stage's word that it listens; 1 deep
	noNet     string                  // why it has no network of its own, though it should
}

func (r *run) run(ctx context.Context) (code int, err error) {
	o := &r.o
	if len(o.Session.Command) == 0 {
		return 125, errors.New("no command to run")
	}
	if o.Dir == "" {
		if o.Dir, err = os.Getwd(); err != nil {
			return 125, fmt.Errorf("working directory: %w", err)
		}
	}
	if err := checkLimits(o.Policy.Limits); err != nil {
		return 125, err
	}
	lock, err := r.b.Lock()
	if err != nil {
		return 125, err
	}
	unlock := func() {
		if lock != nil {
			lock.Close()
			lock = nil
		}
	}
	defer unlock()
	if err := r.b.Recover(); err != nil { // while nobody uses the layers: where one does, there is nothing to recover
		return 125, err
	}

	term, err := newTerminal(o.Stdin, o.Stdout, o.Stderr)
	if err != nil {
		return 125, err
	}
	defer term.close()

	m, stop, err := r.ready(ctx, term)
	if err != nil {
		return 125, err
	}
	defer sys.CloseFD(r.child.Pidfd)
	defer r.control.Close()
	reaped := false
	defer func() {
		if !reaped {
			sys.PidfdKill(r.child.Pidfd, syscall.SIGKILL)
			r.child.Wait()
		}
	}()
	defer stop()
	term.started()
	if m.Op == "failed" {
		return m.Code, stageError(m)
	}
	if m.Op != "ready" {
		return 125, fmt.Errorf("unexpected answer %q of the box's init", m.Op)
	}
	s, err := r.supervisor(m)
	if err != nil {
		return 125, err
	}
	defer sys.CloseFD(s.paths.root)
	defer s.changed.close()
	defer s.warden.close()
	defer s.history.Close()
	r.mu.Lock()
	r.s = s
	r.mu.Unlock()
	if m.PTY >= 0 {
		fd, err := sys.PidfdGetfd(r.child.Pidfd, m.PTY)
		if err != nil {
			return 125, fmt.Errorf("take the box's terminal: %w", err)
		}
		if err := term.attach(fd); err != nil {
			return 125, err
		}
	}
	r.ref, err = r.b.Register(layers.SessionRef{ID: o.Session.ID, Supervisor: os.Getpid(), Init: r.child.PID, Net: o.Session.Net, Shares: sharesRead(o.Policy), Damaged: r.damaged})
	if err != nil {
		return 125, err
	}
	defer func() {
		os.Remove(r.ref.Name())
		r.ref.Close()
	}()
	unlock()

	r.journal = s.journal
	r.begin(m, s, term)
	for _, op := range r.was {
		r.journal.add(op)
	}
	r.was = nil
	if r.noNet != "" && o.Notice != nil {
		o.Notice("the box has no network: " + r.noNet + " (" + networkHint(r.noNet) + ")")
	}
	watch := r.watch()
	if !r.damaged {
		r.intruders = watchIntruders(r.b, r.layers, r.child.PID, r.knew, r.later)
	}
	remote, err := r.remote()
	if err != nil {
		watch.close()
		r.intruders.close()
		return 125, err
	}
	ended := make(chan stageMsg, 1)
	go r.listen(term, ended)
	signals := r.forward(term)
	if err := send(r.control, stageMsg{Op: "go"}); err != nil {
		return 125, fmt.Errorf("start the box: %w", err)
	}
	failed := make(chan struct{})
	go func() { // a log that fails ends the box
		defer close(failed)
		select {
		case <-s.journal.broken:
			sys.PidfdKill(r.child.Pidfd, syscall.SIGKILL)
		case <-s.journal.done:
		}
	}()
	s.serve() // until no process is left
	s.performer.end()
	s.relays.close()
	if s.net != nil {
		if r.why() == "" && ctx.Err() == nil {
			s.net.Drain()
		}
		s.net.Close()
	}
	s.l.Close()
	ws, werr := r.child.Wait()
	reaped = true
	signal.Stop(signals)
	close(signals)
	remote.close()
	s.procs.close()
	end := <-ended
	watch.close()
	term.finish()
	r.intruders.close()
	lerr := r.leave(context.WithoutCancel(ctx))

	switch {
	case end.Op == "failed":
		code = end.Code
		if code == 125 {
			err = stageError(end)
		} else {
			err = &CommandError{Code: code, Why: end.Why}
		}
	case end.Op == "exit":
		st := syscall.WaitStatus(end.Status)
		code = st.ExitStatus()
		if st.Signaled() {
			code = 128 + int(st.Signal())
		}
	case ctx.Err() != nil:
		code, err = 137, nil
	case r.why() != "":
		code, err = 137, &KilledError{r.why()}
	default:
		if ws.Signaled() {
			r.journal.add(&core.Operation{Surface: core.OutsideKill, Action: core.ActSignal, Target: "the session's init", Verdict: core.Allowed,
				Outcome: core.Performed, Rule: "unexplained signal", Leak: true, Detail: core.Detail{"signal": signalName(ws.Signal())}})
		}
		code, err = 125, fmt.Errorf("the box's init died: %s %w", waitText(ws), werr)
	}
	r.endNotes()
	s.journal.add(&core.Operation{Surface: core.SandboxLifecycle, Action: core.ActEnd, Target: strings.Join(o.Session.Command, " "),
		Verdict: core.Allowed, Outcome: core.Performed, Rule: "supervisor", Detail: core.Detail{"code": strconv.Itoa(code)}})
	if jerr := s.journal.close(); jerr != nil {
		return 125, fmt.Errorf("write the log: %w", jerr)
	}
	<-failed
	if err == nil && lerr != nil {
		return 125, lerr
	}
	return code, err
}

// CommandError says why the command itself could not be run: exit code 126 or 127.
type CommandError struct {
	Code int
	Why  string
}

func (e *CommandError) Error() string { return e.Why }

// KilledError says why the session was ended by force: exit code 137.
type KilledError struct{ Why string }

func (e *KilledError) Error() string { return "the session was killed: " + e.Why }

// kill ends the session by force, once. why is for the log and the caller; "" when the
// caller asked for it.
func (r *run) kill(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.killed {
		return
	}
	r.killed, r.because = true, why
	sys.PidfdKill(r.child.Pidfd, syscall.SIGKILL) // before anything that may have to wait
	r.over = true
	if r.s != nil {
		r.s.letGo()
		r.s.outside.ends(true)
		var d core.Detail
		if why != "" {
			d = core.Detail{"why": why}
		}
		r.note(core.ActKill, strings.Join(r.o.Session.Command, " "), d)
	}
}

func (r *run) why() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.because
}

func stageError(m stageMsg) error {
	err := errors.New(m.Why)
	if m.Hint == "" {
		return err
	}
	return core.Hint(err, strings.Split(m.Hint, "\n")...)
}

func waitText(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return "killed by " + signalName(ws.Signal())
	}
	return "exit code " + strconv.Itoa(ws.ExitStatus())
}

// ready starts the stage and waits for its word. A mount that has appeared between the plan of
// the box's view and its namespaces makes a place that nothing can be mounted over: then it is
// planned anew, a few times. stop ends the watch of ctx, which kills the stage.
func (r *run) ready(ctx context.Context, term *terminal) (m stageMsg, stop func() bool, err error) {
	for r.tries = 1; ; r.tries++ {
		if err := r.start(ctx, term); err != nil {
			return m, nil, err
		}
		stop = context.AfterFunc(ctx, func() { r.kill("") })
		m, err = receive(r.control)
		again := err == nil && m.Op == "again" && r.tries < maxTries
		if err == nil && !again {
			return m, stop, nil
		}
		if !stop() {
			again = false
		}
		r.control.Close()
		sys.PidfdKill(r.child.Pidfd, syscall.SIGKILL)
		r.child.Wait()
		r.mu.Lock() // whoever kills it is done with it
		sys.CloseFD(r.child.Pidfd)
		r.child.Pidfd = -1
		r.mu.Unlock()
		if !again {
			if err == nil {
				err = errors.New("ended")
			}
			return m, nil, fmt.Errorf("the box's init died: %w", err)
		}
	}
}

// planned is called when the box's view is planned and its namespaces are not made yet: for tests.
var planned = func() {}

// maxTries is how often the box's view is planned while the mounts outside change.
const maxTries = 5

// start makes the stage: in new namespaces, or in those of the box when a session
// already runs in it.
func (r *run) start(ctx context.Context, term *terminal) error {
	refs, err := r.b.Running()
	if err != nil {
		return err
	}
	for _, ref := range refs {
		r.damaged = r.damaged || ref.Damaged
	}
	if len(refs) == 0 && r.tries < 2 {
		if err := r.b.FinishRollback(); err != nil {
			return err
		}
		if err := r.inspect(ctx); err != nil {
			return err
		}
	}
	if err := r.plan(); err != nil {
		return err
	}
	planned()
	control, theirs, err := sys.Socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	cfgR, cfgW, err := os.Pipe()
	if err != nil {
		control.Close()
		return fmt.Errorf("pipe: %w", err)
	}
	defer cfgR.Close()
	files := []*os.File{term.child[0], term.child[1], term.child[2], theirs, cfgR}
	env := []string{"GODEBUG=asyncpreemptoff=1"}
	argv := []string{stageName}

	cfg := r.config(term)
	cfg.Shares = boundShares(r.steps)
	for _, ref := range refs {
		if ref.Net != r.o.Session.Net && ref.Net != "" {
			control.Close()
			cfgW.Close()
			return core.Hint(fmt.Errorf("the box runs with another network: %s, not %s", ref.Net, r.o.Session.Net),
				"the sessions of a box have one network: run it with --net "+string(ref.Net)+", or in another box")
		}
		if ref.Shares != sharesRead(r.o.Policy) {
			control.Close()
			cfgW.Close()
			return core.Hint(errors.New("the box runs with another policy on shares"), "the sessions of a box have one view of the machine's mounts: run it with the same files.share, or in another box")
		}
		// The session may be about to end: then the next, or a box of our own.
		var fds []int
		for _, n := range []string{"user", "mnt", "ipc", "uts", "net", "cgroup"} {
			fd, err := syscall.Open(fmt.Sprintf("/proc/%d/ns/%s", ref.Init, n), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			if err != nil {
				break
			}
			fds = append(fds, fd)
		}
		if len(fds) == 6 {
			var exe *os.File
			if exe, err = os.Open(sys.SelfExe()); err == nil {
				r.child, err = sys.SpawnJoined(exe, argv, env, files, fds, sys.NewPID|sys.NewMount)
				exe.Close()
			}
			r.joined = err == nil
			r.damaged = r.joined && ref.Damaged
		}
		for _, fd := range fds {
			syscall.Close(fd)
		}
		if r.joined {
			break
		}
	}
	if !r.joined && r.damaged {
		if err = r.salvage(&cfg); err == nil {
			r.child, err = r.spawn(argv, env, files)
		}
	} else if !r.joined {
		var large []string
		if r.layers, large, err = r.b.prepare(r.steps, r.o.Hide); err == nil {
			cfg.Large = large
			if err = r.hidePrivate(&cfg); err == nil {
				err = r.fillMounts(&cfg)
			}
			if os.Geteuid() != 0 {
				for _, d := range []string{"/var/tmp", r.o.Dir} {
					if p, e := filepath.EvalSymlinks(d); e == nil && err == nil {
						err = r.b.reach(r.layers, p)
					}
				}
			}
		}
		if err == nil {
			r.child, err = r.spawn(argv, env, files)
		}
	} else if r.damaged {
		r.layers = r.b.Salvage()
		sortLayers(r.layers)
	} else if r.layers, err = r.b.Layers(); err == nil {
		err = r.joinPrivate()
		sortLayers(r.layers)
	}
	if err != nil {
		control.Close()
		cfgW.Close()
		return err
	}
	cfg.Join = r.joined
	cfg.Again = r.tries < maxTries
	r.control = control
	go func() {
		json.NewEncoder(cfgW).Encode(cfg) // a stage that died reads no more: seen on the control socket
		cfgW.Close()
	}()
	return nil
}

// spawn makes the stage in namespaces of its own.
func (r *run) spawn(argv, env []string, files []*os.File) (sys.Child, error) {
	ns := sys.AllNS
	if r.o.Session.Net == core.NetHost {
		ns &^= sys.NewNet
	}
	c, err := sys.SpawnIn(sys.SelfExe(), argv, env, files, ns)
	return c, spawnHint(err)
}

// spawnHint says what to do about a kernel that makes no user namespaces.
func spawnHint(err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("make the box's namespaces: %w", err)
	var hints []string
	for _, c := range usernsSettings {
		if v, e := os.ReadFile(c.file); e == nil && strings.TrimSpace(string(v)) == c.bad {
			hints = append(hints, c.hint)
		}
	}
	if len(hints) == 0 && (errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC)) {
		hints = append(hints, "this user may not make user namespaces; `sandglass doctor` says more")
	}
	return core.Hint(err, hints...)
}

var usernsSettings = []struct{ file, bad, hint string }{
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "user namespaces are off for ordinary users: sudo sysctl kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/user/max_user_namespaces", "0", "user namespaces are off: sudo sysctl user.max_user_namespaces=15000"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor restricts user namespaces: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or load a profile that allows `userns` for sandglass"},
}

// plan works out the box's view.
func (r *run) plan() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := parseMountinfo(f)
	if err != nil {
		return err
	}
	ls, err := r.b.Layers()
	if r.damaged {
		ls, err = r.b.Salvage(), nil
	}
	if err != nil {
		return err
	}
	vis := visibleMounts(all)
	var splits, over []string
	for _, l := range ls {
		if mountKind(mountOf(vis, l.Path)) == fsShare { // not to be looked at
			continue
		}
		// One that has gone outside (a mount of an earlier day) is not in the view.
		if _, err := os.Lstat(l.Path); err == nil && !l.Over {
			splits = append(splits, l.Path)
		} else if err == nil {
			over = append(over, l.Path)
		}
	}
	hide := make([]string, len(r.o.Hide))
	for i, h := range r.o.Hide {
		if !filepath.IsAbs(h) {
			return fmt.Errorf("state folder %q: not an absolute path", h)
		}
		if hide[i], err = filepath.EvalSymlinks(h); err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
	}
	r.o.Hide = hide
	r.steps, err = planMounts(vis, splits, hide, func(d string) (names []string, isDir bool, err error) {
		if fi, err := os.Lstat(d); err == nil && !fi.IsDir() {
			return nil, false, nil
		}
		ents, err := os.ReadDir(d)
		if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
			return nil, true, nil
		}
		for _, e := range ents {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
		return names, true, err
	})
	if err != nil {
		return err
	}
	return r.planPrivate(vis, over)
}

func (r *run) fillMounts(cfg *stageConfig) error {
	byPath := map[string]layers.Layer{}
	for _, l := range r.layers {
		byPath[l.Path] = l
	}
	for _, s := range r.steps {
		m := stageMount{planStep: s}
		switch s.Kind {
		case stepOverlay, stepFrame, stepVeil:
			l, ok := byPath[s.Path]
			if !ok {
				return fmt.Errorf("no layer for %s", s.Path)
			}
			m.Lower, m.Upper, m.Work = s.Path, r.b.Upper(l), r.b.Work(l)
			if s.Kind != stepOverlay {
				m.Lower = r.b.Frame(l)
			}
		case stepVeilFile:
			m.Lower = r.b.veilFile(s.Path)
		}
		m.Points, m.Blind, m.Hide, m.Roots = nil, nil, nil, nil
		cfg.Steps = append(cfg.Steps, m)
	}
	return nil
}

func (r *run) config(term *terminal) stageConfig {
	uid := strconv.Itoa(os.Getuid())
	cfg := stageConfig{
		Root: r.b.At("mnt"), OwnNet: r.o.Session.Net != core.NetHost, Counts: countingOf(r.o.Policy.Limits, os.Getuid() == 0), PIDMax: pidMax(r.o.Policy.Limits), OpenRoot: sys.AccessBits("/")&2 != 0,
		RunDirs: map[string]os.FileMode{"/lock": 0o777 | os.ModeSticky, "/user": 0o755, "/user/" + uid: 0o700},
		TTY:     term.tty, Front: term.front, Size: term.size, Term: term.attr,
		Argv: r.o.Session.Command, Env: boxEnv(r.o.Env, r.o.Policy), Dir: r.o.Dir, Observe: r.o.Session.Observe,
	}
	// Names are looked up by way of a file in the real /run where a resolver keeps it.
	p, err := filepath.EvalSymlinks("/etc/resolv.conf")
	inRun := err == nil && under(p, "/run")
	switch r.o.Session.Net {
	case core.NetHost:
		if data, err := os.ReadFile(p); err == nil && inRun {
			cfg.RunData = map[string][]byte{strings.TrimPrefix(p, "/run"): data}
		}
	case core.NetOwn:
		r.first = r.offered(r.o.Policy)
		cfg.Listen = r.first
		cfg.Tun, cfg.V6 = true, hasIPv6Route()
		data := resolvConf(readBounded("/etc/resolv.conf", 64<<10), cfg.V6)
		cfg.RunData = map[string][]byte{resolvFile: data}
		if inRun {
			cfg.RunData[strings.TrimPrefix(p, "/run")] = data
		} else if err == nil {
			cfg.Resolv = p
		}
	}
	return cfg
}

// supervisor takes the listener over and sets the supervisor up.
func (r *run) supervisor(ready stageMsg) (*supervisor, error) {
	fd, err := sys.PidfdGetfd(r.child.Pidfd, ready.Listener)
	if err != nil {
		return nil, fmt.Errorf("take the filter's listener: %w", err)
	}
	s := &supervisor{hide: hiddenPaths(r.steps), hostNet: r.o.Session.Net == core.NetHost, ports: r.o.Guarded, sockets: socketsOf(r.o.Env), settings: settingsOf(r.o.Env), moving: make(chan struct{}, 1)}
	if daemon := busDaemon(); daemon != "" && r.o.Policy.Decide(core.IPCDBus).Verdict == core.Redirected {
		s.bus = &sessionBus{path: busPath(), start: func() error {
			return send(r.control, stageMsg{Op: "spawn", Argv: busCommand(daemon, busPath())})
		}}
	}
	if ready.Landlock != nil {
		s.wall = *ready.Landlock
	}
	s.damaged = r.damaged
	s.policy.Store(r.o.Policy)
	s.l, s.sync = sys.NewListener(fd)
	r.noNet = ready.NoNet
	s.steps = slices.Clone(r.steps)
	sort.SliceStable(s.steps, func(i, j int) bool { return len(s.steps[i].Path) > len(s.steps[j].Path) })
	root, err := sys.OpenPath(-1, fmt.Sprintf("/proc/%d/root", r.child.PID), syscall.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open the box's root: %w", err)
	}
	s.paths = newResolver(root)
	if s.shares, err = sharesOf(r.child.PID, r.steps); err != nil {
		return nil, err
	}
	for _, x := range s.shares {
		s.paths.unseen = append(s.paths.unseen, x.path)
	}
	if s.changed, err = openChanged(r.b, r.layers, r.o.Session.Observe == core.ObserveLean, !r.joined); err != nil {
		return nil, err
	}
	s.warden = r.newWarden(ready.Clones)
	s.changed.forget = func() {
		if err := r.b.ForgetManifest(); err != nil {
			r.kill("the record of the box's files cannot be taken away: " + err.Error())
		}
	}
	if s.history, err = openHistory(r.b, r.layers, &r.o); err != nil {
		return nil, err
	}
	s.journal = newJournal(r.o.Session, r.o.Log)
	s.performer = newPerformer(s.l, s.journal.add)
	if s.procs, err = newProcesses(r.child.PID, s.journal.add); err != nil {
		return nil, err
	}
	s.outside = newOutside(s.procs, r.later)
	s.procs.mourn = func(p *proc, ws syscall.WaitStatus) {
		s.outside.died(p, ws)
		s.killedByLimit(p, ws)
	}
	if r.proc, err = openOwnProc(root); err != nil {
		return nil, err
	}
	s.limits = newLimiter(r.o.Policy.Limits, r.proc.threads)
	if ready.Diag > 0 {
		s.net, err = r.network(ready, s)
		if errors.Is(err, network.ErrNobodyHas) { // the session that made the box's namespace had none
			r.noNet, err = err.Error(), nil
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		r.give(s.net, r.first, ready.FDs)
	}
	return s, nil
}

// watch begins to look at the session from outside.
func (r *run) watch() *watcher {
	w := &watcher{s: r.s, later: r.later, proc: r.proc, limits: r.o.Policy.Limits, outside: r.s.outside, over: map[string]bool{},
		end: r.kill, slay: func(pid int) { send(r.control, stageMsg{Op: "slay", PID: pid}) },
		boxSize: func() (int64, bool) {
			n, _, err := layers.Dir(r.o.BoxDir).Size()
			return n, err == nil
		},
		stop: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

func hiddenPaths(steps []planStep) (ps []string) {
	for _, s := range steps {
		if s.Kind == stepMask && s.Why == hideReason {
			ps = append(ps, s.Path)
		}
	}
	return ps
}

func (r *run) begin(m stageMsg, s *supervisor, term *terminal) {
	o := &r.o
	d := core.Detail{
		"policy": o.Policy.Name, "observe": string(o.Session.Observe), "net": string(o.Session.Net), "dir": o.Dir,
		"stdin": term.kinds[0], "stdout": term.kinds[1], "stderr": term.kinds[2],
		"sync_wake_up": strconv.FormatBool(s.sync), "wait_killable": strconv.FormatBool(m.Killable),
		"joined": strconv.FormatBool(r.joined), "landlock": s.wall.String(),
	}
	if r.noNet != "" {
		d["no_network"] = r.noNet
	}
	if c := o.Policy.Changes(); c != "" {
		d["changes"] = core.Shorten(c, 4096)
	}
	if len(m.Masked) > 0 {
		d["masked"] = core.Shorten(strings.Join(m.Masked, ", "), 4096)
	}
	var shares []string
	for _, x := range s.shares {
		if x.read {
			shares = append(shares, x.path+" ("+x.kind+")")
		}
	}
	if shares != nil {
		d["shares"] = core.Shorten(strings.Join(shares, ", "), 4096)
	}
	r.journal.add(&core.Operation{Surface: core.SandboxLifecycle, Action: core.ActBegin, Target: strings.Join(o.Session.Command, " "),
		Verdict: core.Allowed, Outcome: core.Performed, Rule: "supervisor", Leak: o.Session.Net == core.NetHost, Detail: d})
}

// listen reads what the stage says until it ends.
func (r *run) listen(term *terminal, ended chan<- stageMsg) {
	var last stageMsg
	end := sync.OnceFunc(func() {
		if r.o.Ended != nil {
			r.o.Ended()
		}
	})
	for {
		m, err := receive(r.control)
		if err != nil {
			end()
			r.ends()
			r.s.outside.ends(last.Op == "") // then it is the init that died
			ended <- last
			return
		}
		switch m.Op {
		case "listening":
			select {
			case r.listening <- m.FDs:
			default:
			}
		case "done":
			select {
			case r.done <- struct{}{}:
			default: // nobody waits any more
			}
		case "started":
			r.s.outside.begins(m.PID)
		case "exit", "failed":
			last = m
			end()
			r.s.outside.ends(false)
		case "stopped":
			if r.stoppedByUs(syscall.Signal(m.Signal)) {
				continue // by us: the command is not to be told from here, nor is our caller
			}
			if term.stopped(syscall.Signal(m.Signal)) {
				send(r.control, stageMsg{Op: "foreground"})
			}
		}
	}
}

// forward passes the signals of the caller on to the command.
func (r *run) forward(term *terminal) chan os.Signal {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	go func() {
		for s := range c {
			if s == syscall.SIGWINCH {
				term.resize()
				continue
			}
			r.s.outside.sendsMany(uint32(s.(syscall.Signal)))
			send(r.control, stageMsg{Op: "signal", Signal: int(s.(syscall.Signal))})
		}
	}()
	return c
}

// boxEnv is the environment of a box: the caller's, without what points at sockets and
// agents outside but where the policy allows or grants them, and with the box's own bus.
func boxEnv(env []string, p *core.Policy) []string {
	var out []string
	bus := p.Decide(core.IPCDBus).Verdict == core.Redirected && busDaemon() != ""
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		sf, outside := outsideVar(name)
		keep := !outside || sf != "" && p.Decide(sf).Verdict == core.Allowed
		for socket, sf := range socketsOf([]string{e}) {
			if outside && p.DecideConnect(sf, socket).Verdict == core.Allowed {
				keep = true
				bus = bus && name != "DBUS_SESSION_BUS_ADDRESS"
			}
		}
		if keep {
			out = append(out, e)
		}
	}
	if bus {
		out = append(out, "DBUS_SESSION_BUS_ADDRESS=unix:path="+busPath())
	}
	return out
}

// outsideVars are variables that point outside, with the surface that allows them; "":
// none does.
var outsideVars = func() map[string]core.Surface {
	m := map[string]core.Surface{}
	for sf, names := range map[core.Surface]string{
		core.IPCDBus: "DBUS_SESSION_BUS_ADDRESS DBUS_SYSTEM_BUS_ADDRESS AT_SPI_BUS_ADDRESS IBUS_ADDRESS",
		core.IPCAgent: `SSH_AUTH_SOCK SSH_AGENT_PID GPG_AGENT_INFO GPG_TTY GNOME_KEYRING_CONTROL GNOME_KEYRING_PID
			DISPLAY XAUTHORITY WAYLAND_DISPLAY PULSE_SERVER PULSE_COOKIE PIPEWIRE_REMOTE PIPEWIRE_RUNTIME_DIR
			DOCKER_HOST CONTAINER_HOST PODMAN_HOST CUPS_SERVER`,
		"": `
		DBUS_STARTER_ADDRESS DBUS_STARTER_BUS_TYPE
		SSH_CONNECTION SSH_CLIENT SSH_TTY WAYLAND_SOCKET WINDOWID SESSION_MANAGER DESKTOP_STARTUP_ID XDG_ACTIVATION_TOKEN
		TMUX TMUX_PANE STY NOTIFY_SOCKET LISTEN_FDS LISTEN_PID LISTEN_FDNAMES
		WATCHDOG_PID WATCHDOG_USEC JOURNAL_STREAM INVOCATION_ID MAINPID MANAGERPID SYSTEMD_EXEC_PID CREDENTIALS_DIRECTORY
		I3SOCK SWAYSOCK HYPRLAND_INSTANCE_SIGNATURE NIRI_SOCKET KITTY_LISTEN_ON ALACRITTY_SOCKET WEZTERM_UNIX_SOCKET
		NVIM NVIM_LISTEN_ADDRESS VIM_SERVERNAME EMACS_SOCKET_NAME VSCODE_IPC_HOOK VSCODE_IPC_HOOK_CLI VSCODE_GIT_IPC_HANDLE
		MAKEFLAGS_JOBSERVER_FD KRB5CCNAME`,
	} {
		for n := range strings.FieldsSeq(names) {
			m[n] = sf
		}
	}
	return m
}()

// outsideVar says whether a variable points outside, and which surface allows it.
func outsideVar(name string) (core.Surface, bool) {
	if sf, ok := outsideVars[name]; ok {
		return sf, true
	}
	return "", strings.HasPrefix(name, "SANDGLASS_") || strings.HasPrefix(name, "SYSTEMD_")
}

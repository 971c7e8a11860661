package driver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/network"
	"github.com/sandglass/sandglass/driver/sys"
)

// journal is the order of the session's operations: it numbers them and hands them to
// the caller's function from one goroutine, so that no verdict waits for the log -
// until the log is too far behind: then the box waits.
type journal struct {
	mu     sync.Mutex
	room   *sync.Cond // signalled when the buffer has been taken
	buf    []core.Operation
	seq    core.Seq
	err    error
	wake   chan struct{} // 1 deep
	closed bool
	box    string
	id     core.SessionID
	done   chan struct{}
	broken chan struct{} // closed when err is set
	slowed bool
}

const (
	journalRoom = 1 << 15 // operations that may wait; about 10 MB
	journalRest = 20 * time.Millisecond
)

func newJournal(s core.Session, log func(*core.Operation) error) *journal {
	j := &journal{wake: make(chan struct{}, 1), box: s.Box, id: s.ID, done: make(chan struct{}), broken: make(chan struct{})}
	j.room = sync.NewCond(&j.mu)
	go j.write(log)
	return j
}

// add takes the operation over, gives it its number and, when it has none, its time.
func (j *journal) add(op *core.Operation) {
	op.Box, op.Session = j.box, j.id
	if op.Time.IsZero() {
		op.Time = time.Now()
	}
	j.mu.Lock()
	for len(j.buf) >= journalRoom && j.err == nil && !j.closed {
		j.slowed = true
		j.room.Wait()
	}
	if j.slowed {
		j.slowed = false
		j.seq++
		j.buf = append(j.buf, core.Operation{Seq: j.seq, Time: op.Time, Box: j.box, Session: j.id, Surface: core.SandboxLifecycle,
			Action: core.ActSlow, Target: "log", Verdict: core.Allowed, Outcome: core.Performed, Rule: "journal"})
	}
	j.seq++
	op.Seq = j.seq
	j.buf = append(j.buf, *op)
	first := len(j.buf) == 1
	j.mu.Unlock()
	if first || op.Urgent() {
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
}

func (j *journal) write(log func(*core.Operation) error) {
	defer close(j.done)
	timer := time.NewTimer(journalRest)
	var spare []core.Operation
	for {
		<-j.wake
		// A little rest lets operations gather; one that must not wait wakes us again.
		j.mu.Lock()
		if !j.closed {
			j.mu.Unlock()
			timer.Reset(journalRest)
			select {
			case <-timer.C:
			case <-j.wake:
			}
			j.mu.Lock()
		}
		batch, closed := j.buf, j.closed
		j.buf = spare[:0]
		j.room.Broadcast()
		j.mu.Unlock()
		for i := range batch {
			if j.failed() != nil {
				break // what the log did not take is not to be followed by what it might
			}
			if err := log(&batch[i]); err != nil {
				j.mu.Lock()
				j.err = err
				close(j.broken)
				j.room.Broadcast()
				j.mu.Unlock()
			}
		}
		clear(batch) // let go of the strings
		spare = batch
		if closed && len(batch) == 0 {
			return
		}
		if closed || len(batch) > 0 && j.pending() {
			select {
			case j.wake <- struct{}{}:
			default:
			}
		}
	}
}

func (j *journal) pending() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.buf) > 0
}

// failed returns the error of the log, once it has failed.
func (j *journal) failed() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// close waits until all is handed over.
func (j *journal) close() error {
	j.mu.Lock()
	j.closed = true
	j.room.Broadcast()
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	<-j.done
	return j.failed()
}

// supervisor answers a session's trapped calls. All its methods run on one goroutine,
// locked to its thread.
type supervisor struct {
	l         *sys.Listener
	sync      bool
	journal   *journal
	performer *performer
	procs     *processes
	paths     *resolver
	changed   *changed
	history   *layers.History             // nil: what the box changes is not kept
	policy    atomic.Pointer[core.Policy] // never changed in place: a grant may be given or taken back while the session runs
	hide      []string
	steps     []planStep // longest path first: what kind of place a path is on
	hostNet   bool       // the network is the caller's
	damaged   bool       // the box was damaged from outside, and its view is read-only
	wall      secondWall
	abstract  map[string]bool // names that the box bound on the caller's network
	ports     func() []uint16
	bus       *sessionBus // nil: the box has none
	settings  settingsFiles
	shares    []share                 // longest path first
	sockets   map[string]core.Surface // that the caller's environment points at
	limits    limiter
	outside   *outside
	relays    relays
	net       *network.Network // nil: the box has no way out of its own
	warden    *warden
	frozen    atomic.Pointer[chan struct{}] // closed when the session is frozen no more; nil: it is not
	moving    chan struct{}                 // 1 deep: held while a tree is moved
	moved     atomic.Bool                   // one was: what is known of paths may be wrong

	n    *sys.Notif
	p    *proc
	now  time.Time
	path [maxPath]byte
	link [maxPath + 1]byte
	name []byte
}

// answer is what the box gets for a call: errno 0 lets the kernel do it.
type answer struct {
	errno syscall.Errno
	ops   [2]*core.Operation // logged once the answer was taken
	after func()             // done before the answer
	do    func() performed   // instead of the kernel, on another goroutine; ops[0] is what is logged
	// dropped gives back what do holds, when it is not done
	dropped func()
	// must: do is done at once when too much is being done already, and the box waits
	must bool
}

// serve answers calls until no process of the session is left.
func (s *supervisor) serve() {
	for {
		if !s.sync && !s.l.Wait() {
			return
		}
		n, e := s.l.Recv()
		if e != 0 {
			return
		}
		s.standStill()
		s.n, s.now = n, time.Now()
		s.paths.tick(s.now)
		if s.moved.Swap(false) {
			s.paths.forget()
		}
		if n.TID == 0 {
			s.l.Fail(n.ID, syscall.EPERM) // not to be named from here: not of this box
			continue
		}
		s.p = s.procs.of(n.TID, s.now)
		if s.p == nil {
			// Killed meanwhile, or it cannot be seen: no answer is a no.
			s.l.Fail(n.ID, syscall.EPERM)
			continue
		}
		a := s.judge()
		if a.after != nil {
			a.after()
		}
		if s.p.init {
			a.ops = [2]*core.Operation{}
		}
		if a.do != nil {
			op := a.ops[0]
			s.sign(op)
			if s.performer.begin(n.ID, op, a.do) {
				continue
			}
			if a.must {
				s.performer.now(n.ID, op, a.do)
				continue
			}
			if a.dropped != nil {
				a.dropped()
			}
			a = s.refuse(op.Surface, op.Action, op.Target, "too much at once", syscall.EAGAIN, op.Detail)
		}
		if a.errno != 0 {
			e = s.l.Fail(n.ID, a.errno)
		} else {
			e = s.l.Continue(n.ID)
		}
		if e == syscall.ENOENT {
			continue // killed before the answer: the call never happened, and what was read may be another's
		}
		for _, op := range a.ops {
			if op != nil {
				s.log(op)
			}
		}
	}
}

// standStill waits while the session is frozen: no call is answered then, so that nothing
// goes on that was asked for before - a SIGCONT of one process to another, say.
func (s *supervisor) standStill() {
	if c := s.frozen.Load(); c != nil {
		<-*c
	}
}

func (s *supervisor) log(op *core.Operation) {
	s.sign(op)
	s.journal.add(op)
}

// sign says in op whose it is.
func (s *supervisor) sign(op *core.Operation) {
	op.Time, op.PID, op.Proc, op.Exe = s.now, s.p.pid, s.p.id, s.p.exe
	if op.Verdict == core.Allowed && op.Surface != core.FilesRead {
		op.Leak = op.Surface.Leaks()
	}
}

// refuse answers with errno and logs the try.
func (s *supervisor) refuse(sf core.Surface, act core.Action, target, rule string, errno syscall.Errno, d core.Detail) answer {
	return answer{errno: errno, ops: [2]*core.Operation{{Surface: sf, Action: act, Target: target, Verdict: core.Blocked,
		Outcome: core.Refused, Rule: rule, Errno: sys.ErrnoName(errno), Detail: d}}}
}

// judge reads the call's arguments and decides.
func (s *supervisor) judge() answer {
	n, a := s.n, &s.n.Args
	if n.Arch != sys.NativeArch() || n.Arch == sys.ArchAMD64 && n.NR >= sys.X32Bit {
		return s.foreign()
	}
	const atFDCWD = -100
	fd := func(i int) int32 { return int32(a[i]) }
	c := sys.NativeCall(n.NR)
	switch c {
	case sys.CallOpenat:
		return s.open(fd(0), a[1], uint32(a[2]), false)
	case sys.CallOpen:
		return s.open(atFDCWD, a[0], uint32(a[1]), false)
	case sys.CallCreat:
		return s.open(atFDCWD, a[0], oCreat|oWronly|oTrunc, false)
	case sys.CallOpenat2:
		return s.openat2()
	case sys.CallExecve:
		return s.exec(atFDCWD, a[0], a[1], 0)
	case sys.CallExecveat:
		return s.exec(fd(0), a[1], a[2], uint32(a[4]))
	case sys.CallExitGroup:
		code := int(a[0] & 0xff)
		p := s.p
		return answer{after: func() { s.procs.exits(p, code) }}
	case sys.CallExit:
		p, tid := s.p, n.TID
		return answer{after: func() { s.procs.threadGone(p, tid) }}

	case sys.CallUnlink:
		return s.change(core.ActDelete, atFDCWD, a[0], false, nil)
	case sys.CallUnlinkat:
		const removeDir = 0x200
		if a[2]&removeDir != 0 {
			return s.change(core.ActRmdir, fd(0), a[1], false, nil)
		}
		return s.change(core.ActDelete, fd(0), a[1], false, nil)
	case sys.CallRmdir:
		return s.change(core.ActRmdir, atFDCWD, a[0], false, nil)
	case sys.CallMkdir:
		return s.change(core.ActMkdir, atFDCWD, a[0], false, mode(a[1]))
	case sys.CallMkdirat:
		return s.change(core.ActMkdir, fd(0), a[1], false, mode(a[2]))
	case sys.CallMknod:
		return s.mknod(atFDCWD, a[0], uint32(a[1]), a[2])
	case sys.CallMknodat:
		return s.mknod(fd(0), a[1], uint32(a[2]), a[3])
	case sys.CallRename:
		return s.rename(atFDCWD, a[0], atFDCWD, a[1], 0)
	case sys.CallRenameat:
		return s.rename(fd(0), a[1], fd(2), a[3], 0)
	case sys.CallRenameat2:
		return s.rename(fd(0), a[1], fd(2), a[3], uint32(a[4]))
	case sys.CallLink:
		return s.hardlink(atFDCWD, a[0], atFDCWD, a[1], 0)
	case sys.CallLinkat:
		return s.hardlink(fd(0), a[1], fd(2), a[3], uint32(a[4]))
	case sys.CallSymlink:
		return s.symlink(a[0], atFDCWD, a[1])
	case sys.CallSymlinkat:
		return s.symlink(a[0], fd(1), a[2])
	case sys.CallTruncate:
		return s.change(core.ActTruncate, atFDCWD, a[0], true, core.Detail{"size": strconv.FormatUint(a[1], 10)})
	case sys.CallFtruncate:
		return s.changeFD(core.ActTruncate, fd(0), core.Detail{"size": strconv.FormatUint(a[1], 10)})
	case sys.CallChmod:
		return s.change(core.ActChmod, atFDCWD, a[0], true, mode(a[1]))
	case sys.CallFchmod:
		return s.changeFD(core.ActChmod, fd(0), mode(a[1]))
	case sys.CallFchmodat:
		return s.change(core.ActChmod, fd(0), a[1], true, mode(a[2]))
	case sys.CallFchmodat2:
		return s.changeAt(core.ActChmod, fd(0), a[1], uint32(a[3]), mode(a[2]))
	case sys.CallChown:
		return s.change(core.ActChown, atFDCWD, a[0], true, owner(a[1], a[2]))
	case sys.CallLchown:
		return s.change(core.ActChown, atFDCWD, a[0], false, owner(a[1], a[2]))
	case sys.CallFchown:
		return s.changeFD(core.ActChown, fd(0), owner(a[1], a[2]))
	case sys.CallFchownat:
		return s.changeAt(core.ActChown, fd(0), a[1], uint32(a[4]), owner(a[2], a[3]))
	case sys.CallUtime, sys.CallUtimes:
		return s.change(core.ActUtime, atFDCWD, a[0], true, nil)
	case sys.CallFutimesat:
		return s.utimensat(fd(0), a[1], 0)
	case sys.CallUtimensat:
		return s.utimensat(fd(0), a[1], uint32(a[3]))
	case sys.CallSetxattr, sys.CallRemovexattr:
		return s.xattr(c == sys.CallSetxattr, atFDCWD, a[0], 0, a[1])
	case sys.CallLsetxattr, sys.CallLremovexattr:
		return s.xattr(c == sys.CallLsetxattr, atFDCWD, a[0], atSymlinkNofollow, a[1])
	case sys.CallFsetxattr, sys.CallFremovexattr:
		return s.xattr(c == sys.CallFsetxattr, fd(0), 0, atEmptyPath, a[1])
	case sys.CallSetxattrat, sys.CallRemovexattrat:
		return s.xattr(c == sys.CallSetxattrat, fd(0), a[1], uint32(a[2]), a[3])
	case sys.CallFileSetattr:
		return s.changeAt(core.ActSetattr, fd(0), a[1], uint32(a[4]), nil)
	case sys.CallBind:
		return s.bind(a[1], a[2])

	case sys.CallIoctl:
		return s.ioctl(fd(0), uint32(a[1]))

	case sys.CallNameToHandleAt:
		return s.refuse(core.FilesHandle, core.ActHandle, s.text(a[1]), "filter", syscall.EOPNOTSUPP, core.Detail{"call": c.String()})
	case sys.CallOpenByHandleAt:
		return s.refuse(core.FilesHandle, core.ActHandle, "", "filter", syscall.EPERM, core.Detail{"call": c.String()})
	case sys.CallMount:
		return s.refuse(core.SystemKernel, core.ActMount, s.text(a[1]), "filter", syscall.EPERM,
			core.Detail{"call": c.String(), "source": s.text(a[0]), "fstype": s.text(a[2])})
	case sys.CallUmount2:
		return s.refuse(core.SystemKernel, core.ActMount, s.text(a[0]), "filter", syscall.EPERM, core.Detail{"call": c.String()})
	case sys.CallChroot, sys.CallPivotRoot:
		return s.refuse(core.SystemKernel, core.ActNamespace, s.text(a[0]), "filter", syscall.EPERM, core.Detail{"call": c.String()})
	case sys.CallOpenTree, sys.CallOpenTreeAttr, sys.CallFspick, sys.CallMountSetattr:
		return s.refuse(core.SystemKernel, core.ActMount, s.text(a[1]), "filter", syscall.EPERM, core.Detail{"call": c.String()})
	case sys.CallFsopen:
		return s.refuse(core.SystemKernel, core.ActMount, s.text(a[0]), "filter", syscall.EPERM, core.Detail{"call": c.String()})
	case sys.CallMoveMount, sys.CallFsconfig, sys.CallFsmount:
		return s.refuse(core.SystemKernel, core.ActMount, "", "filter", syscall.EPERM, core.Detail{"call": c.String()})
	case sys.CallClone:
		if a[0]&cloneNewAny != 0 {
			return s.namespaces(c, a[0]&^0xff)
		}
		return s.fork(c)
	case sys.CallFork, sys.CallVfork:
		return s.fork(c)
	case sys.CallSetrlimit:
		return s.coreLimit(c, true)
	case sys.CallPrctl:
		if uint32(a[0]) == prSetMM {
			if s.warden.judges() { // by it a process is known to have executed
				return s.refuse(core.ProcessMemory, core.ActSyscall, "PR_SET_MM", privateReason, syscall.EPERM, core.Detail{"call": c.String()})
			}
			return answer{}
		}
		s.outside.sends(s.p.pid, uint32(a[1])) // when its parent dies
		return answer{}
	case sys.CallUnshare:
		return s.namespaces(c, a[0])
	case sys.CallSetns:
		return s.refuse(core.SystemKernel, core.ActNamespace, s.fdPath(fd(0)).path, "filter", syscall.EPERM, core.Detail{"call": c.String()})
	case sys.CallClone3:
		return s.clone3()
	case sys.CallIoUringSetup, sys.CallIoUringEnter, sys.CallIoUringRegister:
		return s.refuse(core.SystemKernel, core.ActIOUring, c.String(), "filter", syscall.ENOSYS, nil)
	}
	for _, judge := range [...]func(sys.Call) (answer, bool){s.judgeSocket, s.judgeProcess, s.judgeShm, s.judgeKernel} {
		if a, ok := judge(c); ok {
			return a
		}
	}
	return s.refuse(core.SystemKernel, core.ActSyscall, strconv.Itoa(int(n.NR)), "filter", syscall.ENOSYS, nil)
}

// foreign refuses a call through another table than the machine's own.
func (s *supervisor) foreign() answer {
	abi := fmt.Sprintf("arch %#x", uint32(s.n.Arch))
	nr := int(s.n.NR)
	switch {
	case s.n.Arch == sys.ArchI386:
		abi = "i386"
	case s.n.Arch == sys.ArchARM:
		abi = "arm"
	case s.n.Arch == sys.ArchAMD64:
		abi, nr = "x32", nr&^sys.X32Bit
	}
	return s.refuse(core.SystemABI, core.ActSyscall, abi+" call "+strconv.Itoa(nr), "filter", syscall.ENOSYS, nil)
}

var cloneFlags = []struct {
	bit  uint64
	name string
}{{0x80, "CLONE_NEWTIME"}, {0x20000, "CLONE_NEWNS"}, {0x2000000, "CLONE_NEWCGROUP"}, {0x4000000, "CLONE_NEWUTS"},
	{0x8000000, "CLONE_NEWIPC"}, {0x10000000, "CLONE_NEWUSER"}, {0x20000000, "CLONE_NEWPID"}, {0x40000000, "CLONE_NEWNET"}}

func (s *supervisor) namespaces(c sys.Call, flags uint64) answer {
	var names []string
	for _, f := range cloneFlags {
		if flags&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return s.refuse(core.SystemKernel, core.ActNamespace, strings.Join(names, "|"), "filter", syscall.EPERM, core.Detail{"call": c.String()})
}

// clone3 has its flags in memory, which the program may change after any look, so it
// is never let through. C libraries take ENOSYS as the word to use clone(2), whose
// flags the filter sees; one that asks for a namespace is told no and logged.
func (s *supervisor) clone3() answer {
	var b [8]byte
	if n, e := sys.ReadMem(int(s.n.TID), s.n.Args[0], b[:]); e == 0 && n == len(b) {
		if f := binary.NativeEndian.Uint64(b[:]); f&(cloneNewAny|cloneNewTime) != 0 {
			return s.namespaces(sys.CallClone3, f)
		}
	}
	return answer{errno: syscall.ENOSYS}
}

func mode(m uint64) core.Detail { return core.Detail{"mode": fmt.Sprintf("%#o", m&0o7777)} }

func owner(u, g uint64) core.Detail {
	return core.Detail{"uid": strconv.Itoa(int(int32(u))), "gid": strconv.Itoa(int(int32(g)))}
}

// text reads a string of the box for the log.
func (s *supervisor) text(addr uint64) string {
	t, e := s.cstring(addr)
	if e != 0 {
		return ""
	}
	return t
}

// cstring reads a string of at most PATH_MAX bytes, the NUL included, of the calling
// thread: EFAULT when it is not readable, ENAMETOOLONG when it has no end.
func (s *supervisor) cstring(addr uint64) (string, syscall.Errno) {
	const first = 256 // nearly every path ends within
	n, e := sys.ReadMem(int(s.n.TID), addr, s.path[:first])
	if n == 0 && e == 0 {
		e = syscall.EFAULT
	}
	if e != 0 {
		return "", e
	}
	if i := bytes.IndexByte(s.path[:n], 0); i >= 0 {
		return string(s.path[:i]), 0
	}
	if n < first {
		return "", syscall.EFAULT
	}
	m, e := sys.ReadMem(int(s.n.TID), addr+first, s.path[first:])
	if e != 0 {
		return "", e
	}
	if i := bytes.IndexByte(s.path[:first+m], 0); i >= 0 {
		return string(s.path[:i]), 0
	}
	if first+m < len(s.path) {
		return "", syscall.EFAULT
	}
	return string(s.path[:]), syscall.ENAMETOOLONG
}

// procLink reads a magic link of the calling thread: "cwd", or "fd/N".
func (s *supervisor) procLink(kind string, fd int32) (string, syscall.Errno) {
	b, dir := s.name[:0], -1
	if int(s.n.TID) == s.p.tgid {
		// From the process's own directory: a third of the time of the whole path.
		dir = s.procs.dir(s.p)
	}
	if dir < 0 { // a thread may have a table of descriptors, or a working directory, of its own
		b = strconv.AppendUint(append(b, "/proc/"...), uint64(s.n.TID), 10)
		b = append(b, '/')
	}
	b = append(b, kind...)
	if fd >= 0 {
		b = strconv.AppendInt(b, int64(fd), 10)
	}
	b = append(b, 0)
	s.name = b
	n, e := sys.ReadlinkAt(dir, b, s.link[:])
	if e == syscall.EACCES && fd >= 0 { // of a program that nobody may read: its fd directory is root's
		if own, err := sys.ThreadFD(int(s.n.TID), int(fd)); err == nil {
			s.name = strconv.AppendInt(append(s.name[:0], "/proc/self/fd/"...), int64(own), 10)
			s.name = append(s.name, 0)
			n, e = sys.ReadlinkAt(-1, s.name, s.link[:])
			sys.CloseFD(own)
		}
	}
	if e != 0 {
		return "", e
	}
	return string(s.link[:n]), 0
}

// fdPath is what a descriptor of the box stands for.
func (s *supervisor) fdPath(fd int32) place {
	t, e := s.procLink("fd/", max(fd, 0))
	if e != 0 || fd < 0 {
		return place{path: "fd " + strconv.Itoa(int(fd)), object: true, missing: true}
	}
	if !strings.HasPrefix(t, "/") || strings.HasPrefix(t, "/memfd:") {
		return place{path: t, object: true, found: true}
	}
	return place{path: t, found: true}
}

// find resolves a path argument of the call. An errno means that the kernel will
// refuse the call for the same reason: it is left to.
func (s *supervisor) find(dirfd int32, addr uint64, follow bool) (place, syscall.Errno) {
	rel, e := s.cstring(addr)
	if e != 0 {
		return place{path: rel}, e
	}
	return s.walk(dirfd, rel, follow, false)
}

func (s *supervisor) walk(dirfd int32, rel string, follow, inRoot bool) (place, syscall.Errno) {
	if rel == "" {
		return place{}, syscall.ENOENT
	}
	who := at{pid: s.p.pid, tid: s.p.pid}
	if rel[0] == '/' && !inRoot {
		return s.paths.resolve(who, "/", "/", rel, follow), 0
	}
	var base string
	var e syscall.Errno
	if dirfd == -100 {
		base, e = s.procLink("cwd", -1)
	} else if dirfd < 0 {
		e = syscall.EBADF
	} else {
		base, e = s.procLink("fd/", dirfd)
	}
	if e != 0 {
		return place{path: rel}, e
	}
	if base == "" || base[0] != '/' {
		return place{path: base, object: true}, 0
	}
	top := "/"
	if inRoot {
		top = base
	}
	return s.paths.resolve(who, top, base, rel, follow), 0
}

// spot is what kind of place a path is on.
type spot int

const (
	onOverlay spot = iota // the real tree below, the box's own above
	onOwn                 // the box's own /proc, /dev, /run
	onReal                // the kernel's: /sys, and the harmless devices
	onReadOnly
	onKernel // the kernel's part of /proc, and /sys: read-only
	onMask
	onHidden // the sandbox's own state
)

var harmless = map[string]bool{"/dev/null": true, "/dev/zero": true, "/dev/full": true, "/dev/random": true, "/dev/urandom": true, "/dev/tty": true}

func (s *supervisor) spotOf(p place) spot {
	if p.object {
		return onOwn
	}
	for _, h := range s.hide {
		if under(p.path, h) {
			return onHidden
		}
	}
	switch {
	case under(p.path, "/proc"):
		if _, ok := procKernel(p.path); ok {
			return onKernel
		}
		return onOwn
	case under(p.path, "/run"):
		return onOwn
	case under(p.path, "/dev"):
		if harmless[p.path] {
			return onReal
		}
		return onOwn
	case under(p.path, "/sys"):
		return onKernel
	}
	for _, st := range s.steps {
		if under(p.path, st.Path) {
			switch {
			case st.Kind == stepMask:
				return onMask
			case st.Kind == stepImage, st.ReadOnly:
				return onReadOnly
			}
			return onOverlay
		}
	}
	return onOverlay
}

// look judges an operation that only looks at p.
func (s *supervisor) look(sf core.Surface, act core.Action, p place, d core.Detail) answer {
	if a, ok := s.privateLook(act, p, d); ok {
		return a
	}
	dec := s.policy.Load().Decide(sf)
	op := &core.Operation{Surface: sf, Action: act, Target: p.path, Verdict: core.Allowed, Rule: dec.Rule, Detail: d}
	if p.missing {
		if op.Detail == nil {
			op.Detail = core.Detail{}
		}
		op.Detail["found"] = "no"
	}
	at := s.spotOf(p)
	if x, ok := s.shareOf(p.path); ok && !p.object && at != onHidden {
		return s.onShare(x, sf, act, p, op.Detail, false)
	}
	switch at {
	case onHidden:
		return s.refuse(core.SandboxSelf, act, p.path, "mask", syscall.EACCES, d)
	case onMask:
		op.Verdict, op.Rule = core.Redirected, "mask"
	case onKernel:
		if name, ok := procKernel(p.path); ok && procMasked[name] != "" {
			return s.refuse(procMasked[name], act, p.path, "mask", syscall.EACCES, d)
		}
	case onOwn:
		op.Verdict, op.Rule = core.Redirected, "own view"
	case onOverlay:
		if s.changed.is(p.path) {
			op.Verdict, op.Rule = core.Redirected, "overlay"
			s.opensOwn(p)
		}
	}
	if dec.Verdict == core.Blocked {
		return s.refuse(sf, act, p.path, dec.Rule, syscall.EACCES, d)
	}
	return answer{ops: [2]*core.Operation{op}}
}

// write judges an operation that changes p (and p2, when it names two).
func (s *supervisor) write(act core.Action, p place, p2 *place, d core.Detail) answer {
	rule := "overlay"
	for _, x := range []*place{&p, p2} {
		if x == nil {
			continue
		}
		if x != p2 || act != core.ActRename { // what is renamed onto is replaced
			if a, ok := s.privateWrite(act, *x, d); ok {
				return a
			}
		}
		at := s.spotOf(*x)
		if sh, ok := s.shareOf(x.path); ok && !x.object && at != onHidden {
			return s.onShare(sh, core.FilesShare, act, *x, d, true)
		}
		switch at {
		case onHidden:
			return s.refuse(core.SandboxSelf, act, p.path, "mask", syscall.EACCES, d)
		case onMask:
			return s.refuse(core.FilesWrite, act, p.path, "mask", syscall.EROFS, d)
		case onReadOnly:
			return s.refuse(core.FilesWrite, act, p.path, "read-only mount", syscall.EROFS, d)
		case onKernel:
			sf := core.SettingsSysctl
			if x.path == "/proc/sysrq-trigger" {
				sf = core.SystemPower
			}
			return s.refuse(sf, act, x.path, "read-only mount", syscall.EROFS, d)
		case onReal, onOwn:
			if under(x.path, "/proc") && !x.object && procReadOnly(s.hostNet) {
				return s.refuse(core.SettingsSysctl, act, x.path, "read-only mount", syscall.EROFS, d)
			}
			rule = "own view"
		}
	}
	sf := core.FilesWrite
	if rule == "overlay" {
		for _, x := range []*place{&p, p2} { // where it goes to says more than where it comes from
			if x != nil {
				if set := s.settings.surface(x.path, s.exists); set != "" {
					sf = set
				}
			}
		}
	}
	if s.damaged && rule == "overlay" {
		return s.refuse(sf, act, p.path, damagedRule, syscall.EROFS, d)
	}
	for _, needs := range []core.Surface{core.FilesWrite, sf} {
		if dec := s.policy.Load().Decide(needs); dec.Verdict == core.Blocked {
			return s.refuse(sf, act, p.path, dec.Rule, syscall.EACCES, d)
		}
	}
	if rule == "overlay" && adds[act] && s.limits.full.Load() {
		return s.refuse(sf, act, p.path, "limit box-size", syscall.EDQUOT, d)
	}
	return answer{ops: [2]*core.Operation{{Surface: sf, Action: act, Target: p.path, Verdict: core.Redirected, Rule: rule, Detail: d}}}
}

// unreadable is the answer for a call whose arguments the kernel will refuse as well:
// it is left to, and the try is logged with what could be read.
func (s *supervisor) unreadable(sf core.Surface, act core.Action, p place, e syscall.Errno) answer {
	if e == syscall.ESRCH || e == syscall.EPERM {
		// Not readable though it should be: no answer is a no.
		return s.refuse(sf, act, p.path, "unreadable argument", syscall.EPERM, nil)
	}
	if e == syscall.EFAULT || e == syscall.ENAMETOOLONG {
		// The kernel would refuse it too - unless the program changes its memory
		// meanwhile, so this errno is ours.
		return s.refuse(sf, act, core.Shorten(p.path, maxPath), "unreadable argument", e, nil)
	}
	return answer{ops: [2]*core.Operation{{Surface: sf, Action: act, Target: p.path, Verdict: core.Redirected, Rule: "kernel", Detail: core.Detail{"found": "no"}}}}
}

const (
	atSymlinkNofollow = 0x100
	atSymlinkFollow   = 0x400
	atEmptyPath       = 0x1000
)

// change judges a call that changes what one path names.
func (s *supervisor) change(act core.Action, dirfd int32, addr uint64, follow bool, d core.Detail) answer {
	p, e := s.find(dirfd, addr, follow)
	if e != 0 {
		return s.unreadable(core.FilesWrite, act, p, e)
	}
	return s.changePlace(act, p, d)
}

func (s *supervisor) changePlace(act core.Action, p place, d core.Detail) answer {
	a := s.write(act, p, nil, d)
	if a.errno == 0 && !p.object {
		s.changed.mark(p.path)
		switch act {
		case core.ActDelete, core.ActRmdir, core.ActMkdir, core.ActMknod, core.ActBind, core.ActSymlink:
			s.paths.changes(p.path, false)
		}
	}
	return s.keep(a, p, doing(act))
}

func (s *supervisor) changeFD(act core.Action, fd int32, d core.Detail) answer {
	return s.changePlace(act, s.fdPath(fd), d)
}

// changeAt is for the calls with AT_* flags.
func (s *supervisor) changeAt(act core.Action, dirfd int32, addr uint64, flags uint32, d core.Detail) answer {
	if flags&atEmptyPath != 0 {
		if t, e := s.cstring(addr); addr == 0 || e == 0 && t == "" {
			if dirfd == -100 {
				if cwd, e := s.procLink("cwd", -1); e == 0 {
					return s.changePlace(act, place{path: cwd, found: true}, d)
				}
			}
			return s.changeFD(act, dirfd, d)
		}
	}
	return s.change(act, dirfd, addr, flags&atSymlinkNofollow == 0, d)
}

func (s *supervisor) utimensat(dirfd int32, addr uint64, flags uint32) answer {
	if addr == 0 { // futimens(3)
		return s.changeFD(core.ActUtime, dirfd, nil)
	}
	return s.changeAt(core.ActUtime, dirfd, addr, flags, nil)
}

func (s *supervisor) mknod(dirfd int32, addr uint64, m uint32, dev uint64) answer {
	d := mode(uint64(m))
	switch m & syscall.S_IFMT {
	case syscall.S_IFCHR:
		d["type"] = "character device " + devNumber(dev)
	case syscall.S_IFBLK:
		d["type"] = "block device " + devNumber(dev)
	case syscall.S_IFIFO:
		d["type"] = "fifo"
	case syscall.S_IFSOCK:
		d["type"] = "socket"
	default:
		d["type"] = "file"
	}
	if t := m & syscall.S_IFMT; t == syscall.S_IFCHR || t == syscall.S_IFBLK {
		p, _ := s.find(dirfd, addr, false)
		return s.refuse(core.FilesWrite, core.ActMknod, p.path, "filter", syscall.EPERM, d)
	}
	return s.change(core.ActMknod, dirfd, addr, false, d)
}

func devNumber(d uint64) string {
	return fmt.Sprintf("%d:%d", d>>8&0xfff|d>>32&^0xfff, d&0xff|d>>12&^0xff)
}

func (s *supervisor) rename(fd1 int32, a1 uint64, fd2 int32, a2 uint64, flags uint32) answer {
	const exchange = 2
	act := core.ActRename
	if flags&exchange != 0 {
		act = core.ActExchange
	}
	from, plain1, slash1, e := s.findEntry(fd1, a1)
	if e != 0 {
		return s.unreadable(core.FilesWrite, act, from, e)
	}
	to, plain2, slash2, e := s.findEntry(fd2, a2)
	if e != 0 {
		return s.unreadable(core.FilesWrite, act, to, e)
	}
	ans := s.write(act, from, &to, core.Detail{"to": to.path})
	if ans.errno == 0 {
		s.changed.markTree(to.path)
		s.changed.mark(from.path)
		if act == core.ActExchange {
			s.changed.markTree(from.path)
		}
		s.paths.changes(from.path, true)
		if plain1 && plain2 {
			ans = s.moveTree(from, to, [2]string{slash1, slash2}, flags, ans)
		}
	}
	return s.keepRename(ans, from, to, act == core.ActExchange)
}

func (s *supervisor) hardlink(fd1 int32, a1 uint64, fd2 int32, a2 uint64, flags uint32) answer {
	var from place
	t, e := s.cstring(a1)
	if e == 0 && t == "" && flags&atEmptyPath != 0 {
		from = s.fdPath(fd1)
	} else if e == 0 {
		from, e = s.walk(fd1, t, flags&atSymlinkFollow != 0, false)
	}
	if e != 0 {
		return s.unreadable(core.FilesWrite, core.ActLink, from, e)
	}
	to, e := s.find(fd2, a2, false)
	if e != 0 {
		return s.unreadable(core.FilesWrite, core.ActLink, to, e)
	}
	if s.spotOf(from) == onOverlay && s.spotOf(to) == onOverlay && !s.changed.inUpper(from.path) && !strings.HasSuffix(t, "/") && s.isFile(from.path) && s.isFree(to) {
		// The overlay would copy the file up first and link the copy, which has another
		// inode number than the one that the program may have seen (an unprivileged
		// overlay keeps no index of inodes): git, for one, takes that for an attack and
		// dies. As across file systems, which programs know how to handle: they copy.
		return s.refuse(core.FilesWrite, core.ActLink, to.path, "overlay: a hard link to a real file", syscall.EXDEV, core.Detail{"from": from.path})
	}
	a := s.write(core.ActLink, to, &from, core.Detail{"from": from.path})
	if a.errno == 0 {
		s.changed.mark(to.path)
		s.changed.mark(from.path) // linking copies it up
		s.paths.changes(to.path, false)
	}
	if s.keeps(&a, from) {
		s.history.Touch(s.now, from.path, layers.Attributes)
	}
	return s.keep(a, to, layers.Comes)
}

// isFile says whether p, seen from the box's root, is a regular file.
func (s *supervisor) isFile(p string) bool {
	mode, _, err := sys.Lstat(s.paths.root, strings.TrimPrefix(p, "/"))
	return err == nil && mode&syscall.S_IFMT == syscall.S_IFREG
}

// isFree says whether a file could be made at p; if not, the kernel says why.
func (s *supervisor) isFree(p place) bool {
	_, _, err := sys.Lstat(s.paths.root, strings.TrimPrefix(p.path, "/"))
	return err == syscall.ENOENT && !p.missing && !p.loop
}

func (s *supervisor) symlink(text uint64, dirfd int32, addr uint64) answer {
	return s.change(core.ActSymlink, dirfd, addr, false, core.Detail{"from": s.text(text)})
}

// xattr refuses the attributes by which overlayfs keeps its own state: with them a box
// could forge what its upper layer says. (The overlay does not let them through
// either; this is the second wall, and the record.)
func (s *supervisor) xattr(set bool, dirfd int32, addr uint64, flags uint32, nameAddr uint64) answer {
	act := core.ActSetxattr
	if !set {
		act = core.ActRemovexattr
	}
	name, e := s.cstring(nameAddr)
	d := core.Detail{"name": core.Shorten(name, 256)}
	if e == 0 && (strings.HasPrefix(name, "user.overlay.") || strings.HasPrefix(name, "trusted.overlay.")) {
		var p place
		if flags&atEmptyPath != 0 {
			p = s.fdPath(dirfd)
		} else {
			p, _ = s.find(dirfd, addr, flags&atSymlinkNofollow == 0)
		}
		return s.refuse(core.FilesWrite, act, p.path, "overlay attribute", syscall.EPERM, d)
	}
	return s.changeAt(act, dirfd, addr, flags, d)
}

// bind makes a node when the address is a path; other addresses are not of this
// surface.
func (s *supervisor) bind(addr, size uint64) answer {
	var b [110]byte // struct sockaddr_un
	n, e := sys.ReadMem(int(s.n.TID), addr, b[:min(size, uint64(len(b)))])
	if e != 0 || n < 3 {
		return answer{}
	}
	switch binary.NativeEndian.Uint16(b[:]) {
	case syscall.AF_UNIX:
	case syscall.AF_INET, syscall.AF_INET6:
		if s.net != nil {
			s.serves(int32(s.n.Args[0])) // who a published port leads to
		}
		return answer{}
	default:
		return answer{}
	}
	if b[2] == 0 {
		s.binds(b[:n])
		return answer{}
	}
	name := b[2:n]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	p, e := s.walk(-100, string(name), false, false)
	if e != 0 {
		return s.unreadable(core.FilesWrite, core.ActBind, p, e)
	}
	return s.changePlace(core.ActBind, p, nil)
}

func (s *supervisor) openat2() answer {
	s.changed.touch() // how the file is opened is in memory, and may change after the look
	var how [24]byte  // struct open_how: flags, mode, resolve
	n, e := sys.ReadMem(int(s.n.TID), s.n.Args[2], how[:])
	if e != 0 || n < len(how) {
		return s.unreadable(core.FilesRead, core.ActRead, place{}, syscall.EFAULT)
	}
	const resolveInRoot = 0x10
	flags, resolve := binary.NativeEndian.Uint64(how[:]), binary.NativeEndian.Uint64(how[16:])
	return s.open(int32(s.n.Args[0]), s.n.Args[1], uint32(flags), resolve&resolveInRoot != 0)
}

func (s *supervisor) open(dirfd int32, addr uint64, flags uint32, inRoot bool) answer {
	follow := flags&oNofollow == 0 && flags&(oCreat|oExcl) != oCreat|oExcl
	act, writes := core.ActRead, false
	switch {
	case flags&oPath != 0:
		act = core.ActPath
	case flags&oTmpfile != 0, flags&oCreat != 0:
		act, writes = core.ActCreate, true
	case flags&oAccmode != 0, flags&oTrunc != 0:
		act, writes = core.ActWrite, true
	}
	sf := core.FilesRead
	if writes {
		sf = core.FilesWrite
	}
	rel, e := s.cstring(addr)
	var p place
	if e == 0 {
		p, e = s.walk(dirfd, rel, follow, inRoot)
	}
	if e != 0 {
		return s.unreadable(sf, act, p, e)
	}
	if a, ok := s.openFiles(); ok {
		return a
	}
	if a, ok := s.memoryFile(p, act); ok {
		return a
	}
	if a, ok := s.device(p, flags); ok {
		return a
	}
	if a, ok := s.privateOpen(p, act, flags); ok {
		return a
	}
	if !writes {
		return s.look(sf, act, p, nil)
	}
	if _, unseen := s.shareOf(p.path); act == core.ActCreate && p.found && flags&oTmpfile == 0 && !unseen {
		act = core.ActWrite // O_CREAT of what is there
	}
	d := core.Detail{"flags": openFlags(flags)}
	if act == core.ActWrite && p.missing {
		d["found"] = "no"
	}
	a := s.write(act, p, nil, d)
	if a.errno == 0 && !p.object {
		s.changed.mark(p.path)
		if act == core.ActCreate {
			s.paths.changes(p.path, false)
		}
	}
	switch {
	case flags&oTmpfile != 0, flags&oCreat == 0 && p.missing:
		return a // it has no name yet, or there is nothing to open
	case flags&(oCreat|oExcl) == oCreat|oExcl, flags&(oAccmode|oTrunc) == 0:
		return s.keep(a, p, layers.Comes)
	}
	return s.keep(a, p, layers.Writes)
}

func openFlags(f uint32) string {
	out := [...]string{"O_RDONLY", "O_WRONLY", "O_RDWR", "3"}[f&oAccmode]
	for _, x := range []struct {
		bit  uint32
		name string
	}{{oCreat, "O_CREAT"}, {oExcl, "O_EXCL"}, {oTrunc, "O_TRUNC"}, {oAppend, "O_APPEND"}, {oTmpfile, "O_TMPFILE"}} {
		if f&x.bit != 0 {
			out += "|" + x.name
		}
	}
	return out
}

func (s *supervisor) exec(dirfd int32, addr, argv uint64, flags uint32) answer {
	rel, e := s.cstring(addr)
	var p place
	switch {
	case e != 0:
	case rel == "" && flags&atEmptyPath != 0:
		p = s.fdPath(dirfd)
	default:
		p, e = s.walk(dirfd, rel, flags&atSymlinkNofollow == 0, false)
	}
	if e != 0 {
		return s.unreadable(core.FilesExec, core.ActExec, p, e)
	}
	a := s.look(core.FilesExec, core.ActExec, p, core.Detail{"argv": s.argv(argv)})
	if a.errno == 0 && s.p.exe == stageName && !s.p.init {
		if err := s.bound(s.p); err != nil {
			return s.refuse(core.SandboxLimit, core.ActLimit, p.path, "limits could not be set", syscall.EPERM, core.Detail{"error": err.Error()})
		}
	}
	if a.errno == 0 {
		p := s.p
		if !p.init {
			ops := a.ops
			// The exe that is logged is the one that asks.
			for _, op := range ops {
				if op != nil {
					op.Exe = p.exe
				}
			}
			if file := s.kept(p); file != "" && ops[0] != nil {
				ops[0].Detail["holds"] = file
			}
			a.after = func() { s.executing(p); s.procs.executes(p) }
		}
	}
	return a
}

// argv reads the first arguments for the log, each cut to 128 bytes and the whole to
// 32 of them, joined by spaces (an argument with odd characters is quoted).
func (s *supervisor) argv(addr uint64) string {
	const most, each = 32, 128
	var raw [(most + 1) * 8]byte
	n, e := sys.ReadMem(int(s.n.TID), addr, raw[:])
	if e != 0 {
		return ""
	}
	var addrs []uint64
	more := true
	for i := 0; i+8 <= n; i += 8 {
		p := binary.NativeEndian.Uint64(raw[i:])
		if p == 0 {
			more = false
			break
		}
		if len(addrs) < most {
			addrs = append(addrs, p)
		}
	}
	data := make([]byte, len(addrs)*each)
	bufs := make([][]byte, len(addrs))
	for i := range bufs {
		bufs[i] = data[i*each : (i+1)*each]
	}
	if _, e := sys.ReadMemMany(int(s.n.TID), addrs, bufs); e != 0 {
		return ""
	}
	var out strings.Builder
	for i, b := range bufs {
		if i > 0 {
			out.WriteByte(' ')
		}
		if l := int(4096 - addrs[i]%4096); l < each && bytes.IndexByte(b[:l], 0) < 0 {
			sys.ReadMem(int(s.n.TID), addrs[i]+uint64(l), b[l:]) // it goes on behind a page border
		}
		end := bytes.IndexByte(b, 0)
		arg, cut := b, end < 0
		if !cut {
			arg = b[:end]
		}
		out.WriteString(quoteArg(string(arg)))
		if cut {
			out.WriteString("...")
		}
	}
	if more && len(addrs) == most {
		out.WriteString(" ...")
	}
	return out.String()
}

func quoteArg(a string) string {
	if a == "" {
		return "''"
	}
	if strings.ContainsAny(a, " \t\n'\"\\$`|&;<>()*?[]{}~#!") {
		return "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return a
}

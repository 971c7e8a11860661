package driver

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// maxLate is how many processes that have ended are remembered.
const maxLate = 1 << 14

// proc is one process of the box.
type proc struct {
	tgid  int // outside
	pid   int // in the box
	id    core.ProcID
	exe   string
	tids  []uint32 // of its threads that were seen, the leader's included
	pidfd int      // -1 when it could not be opened
	dir   int      // descriptor of /proc/TGID; 0 when it has not been needed, -1 when it could not be opened
	// stale: it has tried to execute since exe was read
	stale bool
	// ended: its exit is in the log
	ended bool
	init  bool // the stage itself: nothing of it is logged
	// Of grants, see grant.go. All but holds are the serving goroutine's.
	image []int64      // of it when it last wanted to execute; nil: that is settled
	clean bool         // it has executed since it was made, and nobody has traced it since
	own   string       // a file of the box's own that it has opened since then
	holds *atomic.Bool // it has got a descriptor of a private file, or was made by one that has
}

// processes is the table of the session's processes. A process gets into it with its
// first trapped call - at the latest its exit_group(2) - or when a child of it does;
// it gets out when its pidfd says that it is dead. One that is killed before its
// first trapped call is not seen.
type processes struct {
	mu     sync.Mutex
	byTID  map[uint32]*proc
	byPID  map[int]*proc // by thread group id, outside
	late   map[int]bool  // thread group ids of those that have ended, of late
	byFD   map[int]*proc // by pidfd
	used   map[int]int   // by pid in the box: how often it was used before
	poller *sys.Poller
	emit   func(*core.Operation)
	mourn  func(*proc, syscall.WaitStatus) // told how a process ended that did not exit by itself; may be nil
	ending chan struct{}                   // closed by close
	done   chan struct{}
	ns     int // descriptor of the session's PID namespace
	name   []byte
	link   [maxPath]byte
}

// newProcesses makes the table for the session whose PID namespace init is in.
func newProcesses(init int, emit func(*core.Operation)) (*processes, error) {
	ns, err := syscall.Open(fmt.Sprintf("/proc/%d/ns/pid", init), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the session's PID namespace: %w", err)
	}
	p, err := sys.NewPoller()
	if err != nil {
		syscall.Close(ns)
		return nil, err
	}
	t := &processes{byTID: map[uint32]*proc{}, byPID: map[int]*proc{}, byFD: map[int]*proc{}, used: map[int]int{},
		poller: p, emit: emit, done: make(chan struct{}), ending: make(chan struct{}), ns: ns}
	go t.watch()
	return t, nil
}

// of returns the process of thread tid, seeing it for the first time if need be, or
// nil when it is gone.
func (t *processes) of(tid uint32, now time.Time) *proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byTID[tid]
	if p == nil {
		p = t.see(tid, now, 0)
	}
	if p != nil && p.stale && !p.init {
		p.exe, p.stale = t.readExe(p.tgid), false
	}
	return p
}

// readExe reads what a process executes, "" when it is gone.
func (t *processes) readExe(tgid int) string {
	b := append(strconv.AppendInt(append(t.name[:0], "/proc/"...), int64(tgid), 10), "/exe\x00"...)
	t.name = b
	n, e := sys.ReadlinkAt(-1, b, t.link[:])
	if e != 0 {
		return ""
	}
	return string(t.link[:n])
}

const deathRest = 20 * time.Millisecond

// maxAncestors bounds how many unseen ancestors of a process are looked up at once.
const maxAncestors = 64

// see adds thread tid and, when it is new, its process; before it those of its
// ancestors that have not been seen.
func (t *processes) see(tid uint32, now time.Time, depth int) *proc {
	st, pidfd, ok := t.identify(int(tid))
	if !ok || st.Inner == 0 {
		return nil
	}
	if p := t.byPID[st.TGID]; p != nil {
		if pidfd >= 0 {
			sys.CloseFD(pidfd)
		}
		t.byTID[tid] = p
		p.tids = append(p.tids, tid)
		return p
	}
	p := &proc{tgid: st.TGID, pid: st.Inner, tids: []uint32{tid}, pidfd: -1, init: st.Inner == 1, holds: new(atomic.Bool)}
	if p.init {
		if pidfd >= 0 {
			sys.CloseFD(pidfd)
		}
		t.byTID[tid], t.byPID[st.TGID] = p, p
		return p
	}
	parent := t.byPID[st.PPID]
	if parent == nil && st.PPID != 0 && depth < maxAncestors {
		parent = t.see(uint32(st.PPID), now, depth+1)
	}
	t.byTID[tid], t.byPID[st.TGID] = p, p
	n := t.used[p.pid]
	t.used[p.pid] = n + 1
	p.id = core.ProcID(strconv.Itoa(p.pid))
	if n > 0 {
		p.id += core.ProcID("." + strconv.Itoa(n))
	}
	switch {
	case parent == nil || parent.init:
		p.exe = stageName // made by the box's init, and about to execute the command
	case parent.stale || parent.exe == "":
		p.exe = t.readExe(p.tgid)
	default:
		p.exe = parent.exe // a fork executes what its parent does
	}
	op := &core.Operation{Time: now, PID: p.pid, Proc: p.id, Exe: p.exe, Surface: core.ProcessLife, Action: core.ActStart,
		Target: p.exe, Verdict: core.Redirected, Outcome: core.Performed, Rule: "pid namespace"}
	if parent != nil && !parent.init {
		op.Detail = core.Detail{"ppid": strconv.Itoa(parent.pid), "pproc": string(parent.id)}
		if parent.holds.Load() {
			p.holds.Store(true)
			op.Detail["holds"] = "private"
		}
	}
	if pidfd < 0 {
		if fd, err := sys.PidfdOpen(p.tgid); err == nil {
			pidfd = fd
		}
	}
	if pidfd >= 0 {
		p.pidfd = pidfd
		t.byFD[pidfd] = p
		if t.poller.Add(pidfd) != nil {
			t.unwatch(p)
		}
	}
	t.emit(op)
	return p
}

// identify finds out who thread tid is. For the leader of a group the pidfd is
// returned as well, for the caller to close.
func (t *processes) identify(tid int) (id sys.Identity, pidfd int, ok bool) {
	if fd, err := sys.PidfdOpen(tid); err == nil {
		if id, e := sys.Identify(fd, t.ns, tid); e == 0 {
			return id, fd, true
		}
		sys.CloseFD(fd)
	}
	id, ok = readStatus(tid)
	return id, -1, ok
}

func (t *processes) unwatch(p *proc) {
	if p.pidfd >= 0 {
		delete(t.byFD, p.pidfd)
		sys.CloseFD(p.pidfd)
		p.pidfd = -1
	}
}

// forget takes p out of the table.
func (t *processes) forget(p *proc) {
	for _, tid := range p.tids {
		if t.byTID[tid] == p {
			delete(t.byTID, tid)
		}
	}
	if t.byPID[p.tgid] == p {
		delete(t.byPID, p.tgid)
		if t.late == nil || len(t.late) >= maxLate {
			t.late = map[int]bool{}
		}
		t.late[p.tgid] = true
	}
	t.unwatch(p)
	if p.dir > 0 {
		sys.CloseFD(p.dir)
		p.dir = -1
	}
}

// dir returns a descriptor of /proc/TGID of p, which is closed with p; -1 when p is gone.
func (t *processes) dir(p *proc) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.dir == 0 {
		p.dir = -1
		if t.byPID[p.tgid] == p {
			if fd, err := sys.OpenPath(-1, "/proc/"+strconv.Itoa(p.tgid), syscall.O_DIRECTORY); err == nil {
				p.dir = fd
			}
		}
	}
	return p.dir
}

// threadGone forgets one thread: it exits, or p executes and loses all but one.
func (t *processes) threadGone(p *proc, tid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tid == uint32(p.tgid) {
		return
	}
	delete(t.byTID, tid)
	for i, x := range p.tids {
		if x == tid {
			p.tids = append(p.tids[:i], p.tids[i+1:]...)
			break
		}
	}
}

// executes notes that p is about to execute: its other threads will be gone, the one
// that calls takes the leader's id (execve(2)), and exe is to be read again.
func (t *processes) executes(p *proc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.stale = true
	if len(p.tids) == 1 && p.tids[0] == uint32(p.tgid) {
		return
	}
	for _, x := range p.tids {
		delete(t.byTID, x)
	}
	p.tids = append(p.tids[:0], uint32(p.tgid))
	t.byTID[uint32(p.tgid)] = p
}

// exits logs p's exit_group.
func (t *processes) exits(p *proc, code int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.ended || p.init {
		return
	}
	p.ended = true
	t.emit(exitOp(p, core.Attempted, core.Detail{"code": strconv.Itoa(code)}))
	if p.pidfd < 0 {
		t.forget(p)
	}
}

func exitOp(p *proc, o core.Outcome, d core.Detail) *core.Operation {
	return &core.Operation{PID: p.pid, Proc: p.id, Exe: p.exe, Surface: core.ProcessLife, Action: core.ActExit,
		Target: p.exe, Verdict: core.Redirected, Outcome: o, Rule: "pid namespace", Detail: d}
}

// watch waits for processes to die.
func (t *processes) watch() {
	defer close(t.done)
	var buf []int
	for {
		buf = t.poller.Wait(buf)
		if buf == nil {
			return
		}
		// Deaths in a row are taken together: a wake-up for each would cost a short
		// process more than all its trapped calls.
		select {
		case <-t.ending:
		case <-time.After(deathRest):
		}
		for _, fd := range buf {
			t.mu.Lock()
			if p := t.byFD[fd]; p != nil {
				t.died(p)
			}
			t.mu.Unlock()
		}
	}
}

func (t *processes) died(p *proc) {
	if !p.ended {
		p.ended = true
		d := core.Detail{}
		ws, ok := sys.ExitOf(p.pidfd)
		if !ok { // its parent has not asked yet, or the kernel is older
			ws, ok = zombieExit(p.tgid)
		}
		if ok {
			if ws.Signaled() {
				d["signal"] = signalName(ws.Signal())
			} else {
				d["code"] = strconv.Itoa(ws.ExitStatus())
			}
		}
		t.emit(exitOp(p, core.Performed, d))
		if ok && t.mourn != nil {
			t.mourn(p, ws)
		}
	}
	t.forget(p)
}

// close ends the watching once every process of the session is dead, and logs the
// ends that it has not seen yet.
func (t *processes) close() {
	close(t.ending)
	t.poller.Stop()
	<-t.done
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.byPID {
		if p.init {
			continue
		}
		t.died(p)
	}
	t.poller.Close()
	sys.CloseFD(t.ns)
}

// zombieExit returns the wait status of a process that is dead and not yet reaped: the last
// field of proc_pid_stat(5).
func zombieExit(tgid int) (syscall.WaitStatus, bool) {
	state, num, ok := parseStat(readBounded("/proc/"+strconv.Itoa(tgid)+"/stat", 1024))
	if !ok || state != 'Z' {
		return 0, false
	}
	return syscall.WaitStatus(num(52)), true
}

func signalName(s syscall.Signal) string {
	if n := sys.SignalName(s); n != "" {
		return n
	}
	return fmt.Sprintf("SIG%d", int(s))
}

// readStatus reads /proc/TID/status (proc_pid_status(5)): the way that always works.
func readStatus(tid int) (id sys.Identity, ok bool) {
	f, err := os.Open("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return id, false
	}
	var buf [2048]byte // the lines wanted are among the first; Name is escaped and short
	n, err := f.Read(buf[:])
	f.Close()
	if err != nil {
		return id, false
	}
	for line := range bytes.Lines(buf[:n]) {
		key, val, found := bytes.Cut(line, []byte(":\t"))
		if !found {
			continue
		}
		switch string(key) {
		case "Tgid":
			id.TGID = atoi(val)
		case "PPid":
			id.PPID = atoi(val)
		case "NStgid":
			if ids := bytes.Fields(val); len(ids) > 1 {
				id.Inner = atoi(ids[len(ids)-1])
			}
		}
	}
	return id, id.TGID > 0
}

func atoi(b []byte) int {
	n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil {
		return 0
	}
	return n
}

// knew says whether a process that may have ended was one of the session's.
func (t *processes) knew(tgid int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byPID[tgid] != nil || t.late[tgid]
}

package driver

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// outside watches for what others of this machine do to the box. The same user's
// processes outside may signal and trace those of a box: an ordinary user's sandbox can
// see that and say it, not prevent it.
//
// A death by a signal is somebody's outside when nothing explains it: no process of the
// box is known to have sent it, it is none that the kernel sends by itself, and the
// session has not ended.
type outside struct {
	procs *processes
	emit  func(*core.Operation)

	mu      sync.Mutex
	sent    map[int]uint64    // by pid in the box: which signals processes of the box have sent it
	many    map[int]time.Time // by signal: when one was last sent to several
	dead    []death           // unexplained so far
	traced  map[traced]bool   // that was said
	at      int               // where the next look for tracers begins
	ended   time.Time         // of the session
	forced  bool              // it was killed by the sandbox
	command core.ProcID       // the session's command, whose end is not the session's doing
	oom     string            // the machine's count of processes killed for lack of memory
}

// death is one that nothing has explained yet.
type death struct {
	seen   time.Time
	op     core.Operation
	signal syscall.Signal
}

type traced struct {
	id     core.ProcID
	tracer int
}

const (
	maxSent     = 1 << 14 // processes of which it is known what was sent to them
	maxDeaths   = 1 << 10 // that wait to be explained
	sentAgo     = 10 * time.Second
	explainRest = 300 * time.Millisecond // how long word of the session's end may take
	tracerLooks = 64                     // processes looked at in one go
)

// fromSomebody are signals that the kernel does not send of its own accord: not for a
// fault, a broken pipe, a timer, a terminal or a limit.
var fromSomebody = map[syscall.Signal]bool{syscall.SIGKILL: true, syscall.SIGTERM: true, syscall.SIGUSR1: true, syscall.SIGUSR2: true, syscall.SIGABRT: true}

func newOutside(t *processes, emit func(*core.Operation)) *outside {
	o := &outside{procs: t, emit: emit, sent: map[int]uint64{}, many: map[int]time.Time{}, traced: map[traced]bool{}, oom: oomKills()}
	return o
}

// sends notes that a process of the box, or the sandbox itself, sends pid a signal, or has
// made it so that the kernel will.
func (o *outside) sends(pid int, signal uint32) {
	if signal == 0 || signal > 64 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.sent) >= maxSent {
		clear(o.sent) // then a few deaths are called unexplained that are not
	}
	o.sent[pid] |= 1 << (signal - 1)
}

// sendsMany notes a signal to a group of processes or to all.
func (o *outside) sendsMany(signal uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if signal > 0 && signal <= 64 {
		o.many[int(signal)] = time.Now()
	}
}

// begins notes which process is the session's command.
func (o *outside) begins(pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.command = core.ProcID(strconv.Itoa(pid))
}

// ends notes that the session is over: what is killed now, the end of its init kills.
// forced: the sandbox ends it, and the command with it.
func (o *outside) ends(forced bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended.IsZero() {
		o.ended, o.forced = time.Now(), forced
	}
}

// died is told of each death of a process of the box.
func (o *outside) died(p *proc, ws syscall.WaitStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	sent := o.sent[p.pid]
	delete(o.sent, p.pid) // the number is free for another
	sig := ws.Signal()
	if !ws.Signaled() || !fromSomebody[sig] || sent&(1<<(sig-1)) != 0 || time.Since(o.many[int(sig)]) < sentAgo || len(o.dead) >= maxDeaths {
		return
	}
	o.dead = append(o.dead, death{time.Now(), core.Operation{PID: p.pid, Proc: p.id, Exe: p.exe, Surface: core.OutsideKill, Action: core.ActSignal,
		Target: "pid " + strconv.Itoa(p.pid), Verdict: core.Allowed, Outcome: core.Performed, Rule: "unexplained signal", Leak: true,
		Detail: core.Detail{"signal": signalName(sig)}}, sig})
}

// tick says what has not been explained in time, and looks for tracers.
func (o *outside) tick(now time.Time) {
	o.explain(now.Add(-explainRest))
	o.tracers()
}

// flush says, at the session's end, what is left to say.
func (o *outside) flush() { o.explain(time.Now()) }

func (o *outside) explain(before time.Time) {
	for _, op := range o.unexplained(before) {
		o.emit(&op) // it may have to wait: not with the lock
	}
}

func (o *outside) unexplained(before time.Time) (ops []core.Operation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, d := range o.dead {
		switch {
		case d.seen.After(before):
			o.dead[n] = d
			n++
			continue
		case d.signal == syscall.SIGKILL && !o.ended.IsZero() && d.seen.After(o.ended.Add(-explainRest)) && (o.forced || d.op.Proc != o.command):
			continue // the session's end
		}
		if oom := oomKills(); d.signal == syscall.SIGKILL && oom != o.oom {
			o.oom = oom
			d.op.Detail["perhaps"] = "the kernel, for lack of memory"
		}
		ops = append(ops, d.op)
	}
	clear(o.dead[n:])
	o.dead = o.dead[:n]
	return ops
}

// oomKills is the kernel's count of processes that it killed for lack of memory.
func oomKills() string {
	for line := range strings.Lines(string(readBounded("/proc/vmstat", 1<<16))) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// tracers looks at some of the session's processes, in turn, for tracers from outside.
func (o *outside) tracers() {
	for _, p := range o.procs.some(&o.at, tracerLooks) {
		for _, tid := range p.tids {
			tracer := tracerOf(int(tid))
			if tracer == 0 || o.traced[traced{p.id, tracer}] || o.procs.has(tracer) {
				continue
			}
			if len(o.traced) >= maxSent {
				clear(o.traced)
			}
			o.traced[traced{p.id, tracer}] = true
			d := core.Detail{"tracer": strconv.Itoa(tracer)}
			if exe, err := os.Readlink("/proc/" + strconv.Itoa(tracer) + "/exe"); err == nil {
				d["tracer_exe"] = exe
			}
			o.emit(&core.Operation{PID: p.pid, Proc: p.id, Exe: p.exe, Surface: core.OutsideTrace, Action: core.ActTrace,
				Target: "pid " + strconv.Itoa(p.pid), Verdict: core.Allowed, Outcome: core.Performed, Rule: "TracerPid", Leak: true, Detail: d})
		}
	}
}

// tracerOf returns the process that traces a thread, as seen from here; 0: none.
func tracerOf(tid int) int {
	for line := range strings.Lines(string(readBounded("/proc/"+strconv.Itoa(tid)+"/status", 1024))) {
		if v, ok := strings.CutPrefix(line, "TracerPid:"); ok {
			return atoi([]byte(v))
		}
	}
	return 0
}

// some returns copies of up to n of the session's processes, going on at *at next time.
func (t *processes) some(at *int, n int) (ps []proc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := make([]int, 0, len(t.byPID))
	for id := range t.byPID {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	first, _ := slices.BinarySearch(ids, *at+1)
	for i := range min(n, len(ids)) {
		id := ids[(first+i)%len(ids)]
		p := t.byPID[id]
		*at = id
		if p.init {
			continue
		}
		c := proc{tgid: p.tgid, pid: p.pid, id: p.id, exe: p.exe}
		c.tids = append(c.tids, p.tids[:min(len(p.tids), 8)]...)
		ps = append(ps, c)
	}
	return ps
}

// has says whether a process, seen from outside, is of the session.
func (t *processes) has(tgid int) bool {
	id, fd, ok := t.identify(tgid)
	if fd >= 0 {
		sys.CloseFD(fd)
	}
	if !ok {
		return false
	}
	if fd < 0 { // from its status: a number in some namespace below this one
		own, err1 := os.Readlink("/proc/self/fd/" + strconv.Itoa(t.ns))
		its, err2 := os.Readlink("/proc/" + strconv.Itoa(tgid) + "/ns/pid")
		return err1 == nil && err2 == nil && own == its
	}
	return id.Inner != 0
}

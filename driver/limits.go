package driver

import (
	"errors"
	"math"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Limits. What the kernel can bound for one process it does (setrlimit(2)): descriptors,
// the size of a file, private memory, processor time. What is of a session together - its
// processes, its memory, its time, what its box holds - the supervisor counts: processes
// where the kernel does not, the rest a few times a second ([watcher]), as a control group would
// if an ordinary user could count on having one.
//
// And no process of a box leaves a core dump: where the kernel's core_pattern is a
// program, that program would run outside, fed with what the box likes.
var limitTraps = []trap{
	{call: sys.CallSetrlimit, values: []uint32{rlimitCore}},
}

// forkTraps are set only where the kernel bounds the number of processes too loosely: a
// signal that comes before the supervisor has taken a call makes the call fail with EINTR
// when its handler is not to restart it (signal(7)), and of these calls no program
// expects that.
var forkTraps = []trap{{call: sys.CallClone}, {call: sys.CallFork}, {call: sys.CallVfork}}

// counting says what the supervisor has to see because of a limit.
type counting struct {
	Forks    bool
	Affinity bool
}

func countingOf(l core.Limits, root bool) counting { return counting{countForks(l, root), l.CPUs != 0} }

// countForks says whether the supervisor has to count: RLIMIT_NPROC does not hold root
// (kernel/fork.c, copy_process), and the size of a PID namespace is a few hundred too large.
func countForks(l core.Limits, root bool) bool {
	return root && l.Processes > 0 && l.Processes < maxCounted
}

const (
	rlimitCore = 4 // RLIMIT_CORE, asm-generic/resource.h
	// noCore makes no dump, to a file or to a program: for the latter 0 would not do
	// (fs/coredump.c, do_coredump: "1 is a special value").
	noCore = 1
	// nprocSlack is for the threads of the box's init, which the kernel counts.
	nprocSlack = 16
	maxCounted = 1024
	// reservedPIDs are never given out a second time (include/linux/threads.h, RESERVED_PIDS).
	reservedPIDs = 300
)

// checkLimits says which limits cannot be kept here.
func checkLimits(l core.Limits) error {
	if l.CPUs != math.Trunc(l.CPUs) {
		return core.Hint(errors.New("limit cpus: a part of a processor takes a control group, and sandglass makes none"),
			"a whole number: the box runs on so many processors and no others",
			"systemd-run --user --scope -p CPUQuota="+strconv.Itoa(int(l.CPUs*100))+"% sandglass run ...")
	}
	return nil
}

// rlimits lists what the kernel bounds for each process of the box.
func rlimits(l core.Limits) (rs []sys.Rlimit) {
	rs = append(rs, sys.Rlimit{Resource: rlimitCore, Soft: noCore, Hard: noCore})
	add := func(resource int, soft, hard int64) {
		if soft > 0 {
			rs = append(rs, sys.Rlimit{Resource: resource, Soft: uint64(soft), Hard: uint64(hard)})
		}
	}
	add(syscall.RLIMIT_NOFILE, l.OpenFiles, l.OpenFiles)
	file := l.FileSize
	if l.BoxSize > 0 && (file == 0 || file > l.BoxSize) {
		file = l.BoxSize
	}
	add(syscall.RLIMIT_FSIZE, file, file)
	add(syscall.RLIMIT_DATA, l.Memory, l.Memory)
	if l.CPUTime > 0 {
		s := int64((l.CPUTime + time.Second - 1) / time.Second)
		add(syscall.RLIMIT_CPU, s, s+5) // SIGXCPU, then SIGKILL
	}
	if l.Processes > 0 {
		add(sys.RlimitNproc, l.Processes+nprocSlack, l.Processes+nprocSlack)
	}
	return rs
}

// pidMax is how large the session's PID namespace is made: it bounds its processes and
// threads, root's too (kernel.pid_max of a namespace, Linux 6.14). 0: any.
func pidMax(l core.Limits) int64 {
	if l.Processes == 0 {
		return 0
	}
	return l.Processes + nprocSlack + reservedPIDs
}

// bound puts the limits on a process that the box's init has made, before it executes its
// program: what it makes in turn inherits them, and a hard limit is not raised again.
func (s *supervisor) bound(p *proc) error {
	for _, r := range rlimits(s.limits.Limits) {
		if err := sys.SetRlimit(p.tgid, r); err != nil && err != syscall.ESRCH { // it may have been killed
			return err
		}
	}
	if s.limits.cpus != nil {
		if err := sys.SetAffinity(p.tgid, s.limits.cpus); err != nil && err != syscall.ESRCH {
			return err
		}
	}
	return nil
}

// chooseCPUs returns n of the processors that this process may use, nil when it may use no
// more than that. Which they are turns with the session, so that boxes spread.
func chooseCPUs(n int, turn int) []int {
	all := sys.Affinity()
	if n == 0 || n >= len(all) {
		return nil
	}
	var out []int
	for i := range n {
		out = append(out, all[(turn+i)%len(all)])
	}
	return out
}

// affinity carries out sched_setaffinity(2) in a box that has some processors only: of those
// that are asked for it gets the ones that it has.
func (s *supervisor) affinity(pid int, size, addr uint64) answer {
	d := core.Detail{"call": sys.CallSchedSetaffinity.String()}
	if pid != 0 && pid != s.p.pid {
		return s.refuse(core.SandboxLimit, core.ActSchedule, "cpus", "limit", syscall.EPERM, d)
	}
	mask := make([]byte, min(size, 1024))
	if n, e := sys.ReadMem(int(s.n.TID), addr, mask); e != 0 || n < len(mask) {
		return s.refuse(core.SandboxLimit, core.ActSchedule, "cpus", "unreadable argument", syscall.EFAULT, d)
	}
	var got []int
	for _, c := range s.limits.cpus {
		if c/8 < len(mask) && mask[c/8]&(1<<(c%8)) != 0 { // little endian: byte by byte
			got = append(got, c)
		}
	}
	if len(got) == 0 {
		return s.refuse(core.SandboxLimit, core.ActSchedule, "cpus", "limit", syscall.EINVAL, d)
	}
	tid := int(s.n.TID)
	if pid != 0 {
		tid = s.p.tgid
	}
	d["how"] = "by the supervisor"
	op := &core.Operation{Surface: core.SandboxLimit, Action: core.ActSchedule, Target: "cpus", Verdict: core.Redirected, Rule: "limit", Detail: d}
	// It waits for its answer, so its number is its own - unless it was killed this moment.
	if !s.l.Valid(s.n.ID) || sys.SetAffinity(tid, got) != nil {
		return s.refuse(core.SandboxLimit, core.ActSchedule, "cpus", "limit", syscall.EPERM, d)
	}
	return answer{ops: [2]*core.Operation{op}, do: func() performed { return performed{} }}
}

// coreLimit answers a change of the core dump's limit: nothing is changed, and programs
// that want none (ssh-agent, gpg) are told that they have it.
func (s *supervisor) coreLimit(c sys.Call, plain bool) answer {
	d := core.Detail{"call": c.String(), "resource": "RLIMIT_CORE"}
	if !plain { // the old value is asked for as well
		return s.refuse(core.SandboxLimit, core.ActLimit, "core", "no core dumps", syscall.EPERM, d)
	}
	d["how"] = "by the supervisor"
	op := &core.Operation{Surface: core.SandboxLimit, Action: core.ActLimit, Target: "core", Verdict: core.Redirected, Rule: "no core dumps", Detail: d}
	return answer{ops: [2]*core.Operation{op}, do: func() performed { return performed{} }}
}

func newLimiter(l core.Limits, count func() int64) limiter {
	return limiter{Limits: l, full: &atomic.Bool{}, said: map[string]time.Time{}, quiet: map[string]int{}, count: count, cpus: chooseCPUs(int(l.CPUs), os.Getpid()), unkept: &seldom{}}
}

// limiter keeps what the limits of one session need. Its fields are the supervisor's
// thread's but where they are atomic.
type limiter struct {
	core.Limits
	full  *atomic.Bool // the box holds what it may: nothing is added
	said  map[string]time.Time
	quiet map[string]int // hits that were not logged since
	// of processes: how many there were at the last count, and those that were let be made since
	known, since int64
	counted      time.Time
	rest         time.Duration // until the next count
	count        func() int64
	cpus         []int   // those that the session has; nil: all
	unkept       *seldom // versions that were not kept, for lack of room
}

const (
	hitAgain   = time.Second // a limit that is hit all the time is logged once in this time
	countAgain = 20 * time.Millisecond
)

// hit refuses a call because of a limit. How often is logged with the first of a second.
func (s *supervisor) hit(name string, e syscall.Errno, limit int64, d core.Detail) answer {
	l := &s.limits
	if s.now.Sub(l.said[name]) < hitAgain {
		l.quiet[name]++
		return answer{errno: e}
	}
	l.said[name] = s.now
	if d == nil {
		d = core.Detail{}
	}
	d["limit"] = strconv.FormatInt(limit, 10)
	if n := l.quiet[name]; n > 0 {
		d["before"] = strconv.Itoa(n) + " more, not logged one by one"
		l.quiet[name] = 0
	}
	return s.refuse(core.SandboxLimit, core.ActHit, name, "limit", e, d)
}

// fork judges the making of a process or thread. The flags of clone(2) are in a register,
// so what is counted is what is made.
func (s *supervisor) fork(c sys.Call) answer {
	l := &s.limits
	if l.known+l.since >= l.Processes {
		// What was let be made may have ended, or never come to be.
		if s.now.Sub(l.counted) >= l.rest {
			l.known, l.since, l.counted = l.count(), 0, s.now
			if l.known < 0 { // it cannot be counted: no answer is a no
				l.known = l.Processes
			}
			l.rest = max(countAgain, 8*time.Since(s.now)) // a count of thousands takes its time
		}
		if l.known+l.since >= l.Processes {
			return s.hit("processes", syscall.EAGAIN, l.Processes, core.Detail{"call": c.String()})
		}
	}
	l.since++
	return answer{}
}

// openFiles refuses an open when the process has all the descriptors that it may: so it is
// logged, where the kernel alone would say EMFILE.
func (s *supervisor) openFiles() (answer, bool) {
	if s.limits.OpenFiles == 0 {
		return answer{}, false
	}
	n, ok := sys.OpenFiles(s.procs.dir(s.p))
	if !ok || n < s.limits.OpenFiles {
		return answer{}, false
	}
	return s.hit("open-files", syscall.EMFILE, s.limits.OpenFiles, nil), true
}

// killedByLimit logs the death of a process by a limit of the kernel's.
func (s *supervisor) killedByLimit(p *proc, ws syscall.WaitStatus) {
	l, name := s.limits.Limits, ""
	switch {
	case ws.Signal() == syscall.SIGXFSZ && l.FileSize+l.BoxSize > 0:
		name = "file-size"
	case ws.Signal() == syscall.SIGXCPU && l.CPUTime > 0:
		name = "cpu-time"
	default:
		return
	}
	s.journal.add(&core.Operation{PID: p.pid, Proc: p.id, Exe: p.exe, Surface: core.SandboxLimit, Action: core.ActHit, Target: name,
		Verdict: core.Blocked, Outcome: core.Performed, Rule: "limit", Errno: sys.ErrnoName(limitErrno[name]), Detail: core.Detail{"signal": signalName(ws.Signal()), "killed": "pid " + strconv.Itoa(p.pid)}})
}

// adds are the actions after which a box may hold more.
var adds = map[core.Action]bool{core.ActWrite: true, core.ActCreate: true, core.ActMkdir: true, core.ActMknod: true, core.ActSymlink: true,
	core.ActLink: true, core.ActBind: true, core.ActSetxattr: true}

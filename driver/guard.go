package driver

import (
	"encoding/binary"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Calls by which one process does something to another. Their targets are numbers and
// descriptors, not pointers: what is looked at is what the kernel uses. The wall is the
// PID namespace - a process outside has no number in the box - and these traps are the
// record, and the policy's choice within the box. Trapped at every setting of observe.
var processTraps = []trap{
	{call: sys.CallTgkill}, {call: sys.CallKill}, {call: sys.CallTkill}, {call: sys.CallPidfdSendSignal},
	{call: sys.CallRtSigqueueinfo}, {call: sys.CallRtTgsigqueueinfo},
	{call: sys.CallSetpriority}, {call: sys.CallIoprioSet},
	{call: sys.CallSchedSetscheduler, mask: anyBit}, {call: sys.CallSchedSetparam, mask: anyBit}, // 0: itself
	{call: sys.CallSchedSetattr, mask: anyBit},
	{call: sys.CallPrlimit64, mask: anyBit, also: 1, value: rlimitCore},
	{call: sys.CallPtrace, values: []uint32{ptraceTraceme, ptraceAttach, ptraceSeize}},
	{call: sys.CallProcessVMReadv}, {call: sys.CallProcessVMWritev}, {call: sys.CallPidfdOpen}, {call: sys.CallPidfdGetfd}, {call: sys.CallProcessMadvise}, {call: sys.CallKcmp},
}

const (
	anyBit = 0xffffffff

	ptraceTraceme = 0 // linux/ptrace.h
	ptraceAttach  = 16
	ptraceSeize   = 0x4206

	prSetPdeathsig = 1 // linux/prctl.h
	prSetMM        = 35
)

// judgeProcess judges the calls of [processTraps].
func (s *supervisor) judgeProcess(c sys.Call) (answer, bool) {
	a := &s.n.Args
	pid := func(i int) int { return int(int32(a[i])) }
	signal := func(i int) core.Detail { return core.Detail{"signal": signalText(uint32(a[i]))} }
	one := func(sf core.Surface, act core.Action, id int, d core.Detail) (answer, bool) {
		return s.toProcess(c, sf, act, s.procs.named(id), d), true
	}
	switch c {
	case sys.CallKill:
		switch n := pid(0); {
		case n == 0:
			return s.toMany(c, "its process group", signal(1)), true
		case n == -1:
			return s.toMany(c, "every process", signal(1)), true
		case n < 0:
			return s.toMany(c, "process group "+strconv.Itoa(-n), signal(1)), true
		default:
			return one(core.ProcessSignal, core.ActSignal, n, signal(1))
		}
	case sys.CallTkill:
		return one(core.ProcessSignal, core.ActSignal, pid(0), signal(1))
	case sys.CallTgkill:
		return one(core.ProcessSignal, core.ActSignal, pid(0), signal(2))
	case sys.CallRtSigqueueinfo:
		return one(core.ProcessSignal, core.ActSignal, pid(0), signal(1))
	case sys.CallRtTgsigqueueinfo:
		return one(core.ProcessSignal, core.ActSignal, pid(0), signal(2))
	case sys.CallPidfdSendSignal:
		return s.toProcess(c, core.ProcessSignal, core.ActSignal, s.pidfdTarget(int32(a[0])), signal(1)), true
	case sys.CallSetpriority:
		return s.priority(c, pid(0), pid(1), core.Detail{"nice": strconv.Itoa(pid(2))}), true
	case sys.CallIoprioSet:
		return s.priority(c, pid(0)-1, pid(1), core.Detail{"ioprio": strconv.Itoa(pid(2))}), true
	case sys.CallSchedSetaffinity:
		if s.limits.cpus != nil {
			return s.affinity(pid(0), a[1], a[2]), true
		}
		return one(core.ProcessSignal, core.ActSchedule, pid(0), nil)
	case sys.CallSchedSetscheduler, sys.CallSchedSetparam, sys.CallSchedSetattr:
		return one(core.ProcessSignal, core.ActSchedule, pid(0), nil)
	case sys.CallPrlimit64:
		if a[2] == 0 { // it only asks
			return answer{}, true
		}
		if to := pid(0); to == 0 || to == s.p.pid {
			if uint32(a[1]) == rlimitCore {
				return s.coreLimit(c, a[3] == 0), true
			}
			return answer{}, true // its own: within the kernel's bounds
		}
		ans, ok := one(core.ProcessSignal, core.ActLimit, pid(0), core.Detail{"resource": strconv.Itoa(pid(1))})
		if ans.errno == 0 && uint32(a[1]) == rlimitCore {
			return s.coreLimit(c, a[3] == 0), true
		}
		return ans, ok
	case sys.CallPtrace:
		switch uint32(a[0]) {
		case ptraceTraceme:
			s.outside.sends(s.p.pid, uint32(syscall.SIGKILL))
			s.p.taint()
			return answer{ops: [2]*core.Operation{{Surface: core.ProcessMemory, Action: core.ActTrace, Target: "itself, by its parent",
				Verdict: core.Redirected, Rule: "pid namespace", Detail: core.Detail{"call": c.String()}}}}, true
		default:
			return one(core.ProcessMemory, core.ActTrace, pid(1), nil)
		}
	case sys.CallProcessVMReadv:
		return one(core.ProcessMemory, core.ActMemory, pid(0), core.Detail{"how": "read"})
	case sys.CallProcessVMWritev:
		return one(core.ProcessMemory, core.ActMemory, pid(0), core.Detail{"how": "write"})
	case sys.CallProcessMadvise:
		return s.toProcess(c, core.ProcessMemory, core.ActMemory, s.pidfdTarget(int32(a[0])), core.Detail{"how": "advise"}), true
	case sys.CallPidfdOpen: // where what is done by such a descriptor ends, for a process outside
		if p := s.procs.named(pid(0)); p.none {
			return s.refuse(core.ProcessSignal, core.ActSignal, p.text, "pid namespace", syscall.ESRCH, core.Detail{"call": c.String(), "signal": "0"}), true
		}
		return answer{}, true
	case sys.CallPidfdGetfd:
		return s.toProcess(c, core.ProcessMemory, core.ActGetfd, s.pidfdTarget(int32(a[0])), core.Detail{"fd": strconv.Itoa(pid(1))}), true
	case sys.CallKcmp:
		a2, ok := one(core.ProcessMemory, core.ActCompare, pid(1), nil)
		if a2.errno == 0 && a2.ops[0] == nil {
			return one(core.ProcessMemory, core.ActCompare, pid(0), nil)
		}
		return a2, ok
	}
	return answer{}, false
}

// peer is the process that a call is about.
type peer struct {
	text string // "pid 12"
	exe  string // "" when it has not been seen
	none bool   // the box has no such process
	proc *proc  // nil when it has not been seen
}

// named finds the process with a thread of that number in the box.
func (t *processes) named(inner int) peer {
	p := peer{text: "pid " + strconv.Itoa(inner)}
	if inner <= 0 {
		return p
	}
	tgid, e := sys.ProcessIn(t.ns, inner)
	if e != 0 {
		p.none = e == syscall.ESRCH
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if x := t.byPID[tgid]; x != nil {
		if x.stale && !x.init { // still: it may not have executed yet
			x.exe = t.readExe(x.tgid)
		}
		p.text, p.exe, p.proc = "pid "+strconv.Itoa(x.pid), x.exe, x
	}
	return p
}

// pidfdTarget finds the process of one of the caller's descriptors.
func (s *supervisor) pidfdTarget(fd int32) peer {
	const line = "NSpid:"
	// Of an inotify or epoll descriptor it can be megabytes.
	info := readBounded("/proc/"+strconv.Itoa(int(s.n.TID))+"/fdinfo/"+strconv.Itoa(int(fd)), 4096)
	if info != nil {
		for l := range strings.Lines(string(info)) {
			if ids := strings.Fields(l); len(ids) > 2 && ids[0] == line {
				if n, err := strconv.Atoi(ids[len(ids)-1]); err == nil {
					return s.procs.named(n)
				}
			}
		}
	}
	return peer{text: "descriptor " + strconv.Itoa(int(fd))} // not a pidfd, or its process is gone: the kernel will say
}

// toProcess judges what is done to one process.
func (s *supervisor) toProcess(c sys.Call, sf core.Surface, act core.Action, p peer, d core.Detail) answer {
	s.noteSignal(c, p)
	if p.text == "pid "+strconv.Itoa(s.p.pid) {
		return answer{} // itself
	}
	if d == nil {
		d = core.Detail{}
	}
	d["call"] = c.String()
	if p.none {
		return s.refuse(sf, act, p.text, "pid namespace", syscall.ESRCH, d)
	}
	if p.exe != "" {
		d["exe"] = p.exe
	}
	dec := s.policy.Load().Decide(sf)
	if dec.Verdict == core.Blocked {
		return s.refuse(sf, act, p.text, dec.Rule, syscall.EPERM, d)
	}
	if sf == core.ProcessMemory && act != core.ActCompare {
		if p.proc != nil && p.proc.holds.Load() { // the kernel refuses it as well: what it executes cannot be read
			return s.refuse(sf, act, p.text, "it holds what is private", syscall.EPERM, d)
		}
		p.proc.taint()
	}
	return answer{ops: [2]*core.Operation{{Surface: sf, Action: act, Target: p.text, Verdict: core.Redirected, Rule: "pid namespace", Detail: d}}}
}

// noteSignal remembers who of the box was sent what by the box: such a death needs no other
// explanation. Also a signal that is refused then, or that the kernel does not deliver.
func (s *supervisor) noteSignal(c sys.Call, p peer) {
	a := &s.n.Args
	var n uint32
	switch c {
	case sys.CallKill, sys.CallTkill, sys.CallRtSigqueueinfo, sys.CallPidfdSendSignal:
		n = uint32(a[1])
	case sys.CallTgkill, sys.CallRtTgsigqueueinfo:
		n = uint32(a[2])
	case sys.CallPtrace:
		n = uint32(syscall.SIGKILL) // PTRACE_KILL, PTRACE_O_EXITKILL
	default:
		return
	}
	if pid, err := strconv.Atoi(strings.TrimPrefix(p.text, "pid ")); err == nil {
		s.outside.sends(pid, n)
	} else {
		s.outside.sendsMany(n)
	}
}

// toMany judges a signal to more than one process of the box.
func (s *supervisor) toMany(c sys.Call, target string, d core.Detail) answer {
	d["call"] = c.String()
	if dec := s.policy.Load().Decide(core.ProcessSignal); dec.Verdict == core.Blocked {
		return s.refuse(core.ProcessSignal, core.ActSignal, target, dec.Rule, syscall.EPERM, d)
	}
	s.noteSignal(c, peer{})
	return answer{ops: [2]*core.Operation{{Surface: core.ProcessSignal, Action: core.ActSignal, Target: target,
		Verdict: core.Redirected, Rule: "pid namespace", Detail: d}}}
}

// priority judges setpriority(2) and ioprio_set(2): of a process, a group or all of a user.
func (s *supervisor) priority(c sys.Call, which, who int, d core.Detail) answer {
	var target string
	switch {
	case which == 0 && who == 0:
		return answer{} // itself
	case which == 0:
		return s.toProcess(c, core.ProcessSignal, core.ActSchedule, s.procs.named(who), d)
	case which == 1 && who == 0:
		target = "its process group"
	case which == 1:
		target = "process group " + strconv.Itoa(who)
	default:
		target = "every process of user " + strconv.Itoa(who)
	}
	a := s.toMany(c, target, d)
	a.ops[0].Action = core.ActSchedule
	return a
}

// memoryFile judges the opening of another process's memory.
func (s *supervisor) memoryFile(p place, act core.Action) (answer, bool) {
	rest, ok := strings.CutPrefix(p.path, "/proc/")
	if !ok || !strings.HasSuffix(rest, "/mem") {
		return answer{}, false
	}
	id, _, _ := strings.Cut(rest, "/")
	n, err := strconv.Atoi(id)
	if err != nil || n == s.p.pid {
		return answer{}, false
	}
	to := s.procs.named(n)
	if to.text == "pid "+strconv.Itoa(s.p.pid) {
		return answer{}, false
	}
	how := "read"
	if act != core.ActRead {
		how = string(act)
	}
	return s.toProcess(sys.CallOpenat, core.ProcessMemory, core.ActMemory, to, core.Detail{"how": how, "path": p.path}), true
}

// Shared memory, semaphores and queues belong to the IPC namespace, which is the box's: a
// key of the outside names nothing in it. Where a policy blocks them they are refused.
var shmTraps = []trap{{call: sys.CallShmget}, {call: sys.CallSemget}, {call: sys.CallMsgget}, {call: sys.CallMqOpen}, {call: sys.CallMqUnlink}}

// judgeShm judges the calls of [shmTraps].
func (s *supervisor) judgeShm(c sys.Call) (answer, bool) {
	var target string
	switch c {
	case sys.CallShmget, sys.CallSemget, sys.CallMsgget:
		target = c.String() + " 0x" + strconv.FormatUint(uint64(uint32(s.n.Args[0])), 16)
		if uint32(s.n.Args[0]) == 0 {
			target = c.String() + " private"
		}
	case sys.CallMqOpen, sys.CallMqUnlink:
		target = "mq /" + core.Shorten(s.text(s.n.Args[0]), 256)
	default:
		return answer{}, false
	}
	d := core.Detail{"call": c.String()}
	dec := s.policy.Load().Decide(core.IPCShm)
	if dec.Verdict == core.Blocked {
		return s.refuse(core.IPCShm, core.ActAttach, target, dec.Rule, syscall.EACCES, d), true
	}
	return answer{ops: [2]*core.Operation{{Surface: core.IPCShm, Action: core.ActAttach, Target: target, Verdict: core.Redirected, Rule: "ipc namespace", Detail: d}}}, true
}

func signalText(n uint32) string {
	if n == 0 {
		return "0" // only asks whether the process is there
	}
	if n > 64 {
		return strconv.FormatUint(uint64(n), 10)
	}
	return signalName(syscall.Signal(n))
}

// kernelCall says what a call to an interface of the kernel is refused with.
type kernelCall struct {
	surface core.Surface
	action  core.Action
	errno   syscall.Errno
	never   bool // whatever the policy says: it would break a wall, or the supervisor
}

// Where a policy allows the surface, the kernel decides: it asks for capabilities in the
// first user namespace, which a box of an ordinary user never has.
var kernelCalls = map[sys.Call]kernelCall{
	sys.CallReboot:        {core.SystemPower, core.ActSyscall, syscall.EPERM, true},
	sys.CallKexecLoad:     {core.SystemPower, core.ActSyscall, syscall.EPERM, true},
	sys.CallKexecFileLoad: {core.SystemPower, core.ActSyscall, syscall.EPERM, true},
	sys.CallSettimeofday:  {core.SystemClock, core.ActSyscall, syscall.EPERM, true},
	sys.CallClockSettime:  {core.SystemClock, core.ActSyscall, syscall.EPERM, true},
	sys.CallClockAdjtime:  {core.SystemClock, core.ActSyscall, syscall.EPERM, true},
	sys.CallAdjtimex:      {core.SystemClock, core.ActSyscall, syscall.EPERM, true},
	sys.CallSwapon:        {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallSwapoff:       {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallSethostname:   {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallSetdomainname: {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallInitModule:    {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallFinitModule:   {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallDeleteModule:  {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallUserfaultfd:   {core.SystemKernel, core.ActSyscall, syscall.EPERM, true}, // a page that never comes would stop the supervisor's reading
	sys.CallIopl:          {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallIoperm:        {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallAcct:          {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallVhangup:       {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallQuotactl:      {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallQuotactlFD:    {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallFanotifyInit:  {core.SystemKernel, core.ActSyscall, syscall.EPERM, true},
	sys.CallBPF:           {core.SystemKernel, core.ActSyscall, syscall.EPERM, false},
	sys.CallPerfEventOpen: {core.SystemKernel, core.ActSyscall, syscall.EPERM, false},
	sys.CallSyslog:        {core.SystemKernel, core.ActSyscall, syscall.EPERM, false},
	sys.CallKeyctl:        {core.SettingsKeyring, core.ActSyscall, syscall.EPERM, false},
	sys.CallAddKey:        {core.SettingsKeyring, core.ActSyscall, syscall.EPERM, false},
	sys.CallRequestKey:    {core.SettingsKeyring, core.ActSyscall, syscall.EPERM, false},
}

// kernelTraps lists the calls of kernelCalls, in the order of their numbers here.
func kernelTraps() (ts []trap) {
	for _, c := range sys.Calls() {
		if _, ok := kernelCalls[c]; ok {
			ts = append(ts, trap{call: c})
		}
	}
	return ts
}

// judgeKernel judges the calls of kernelCalls.
func (s *supervisor) judgeKernel(c sys.Call) (answer, bool) {
	k, ok := kernelCalls[c]
	if !ok {
		return answer{}, false
	}
	a := &s.n.Args
	d := core.Detail{}
	switch c {
	case sys.CallAdjtimex, sys.CallClockAdjtime:
		addr := a[0]
		if c == sys.CallClockAdjtime {
			addr = a[1]
		}
		var modes [4]byte
		if n, e := sys.ReadMem(int(s.n.TID), addr, modes[:]); e == 0 && n == len(modes) && binary.NativeEndian.Uint32(modes[:]) == 0 {
			return answer{}, true // it only asks; the kernel asks for CAP_SYS_TIME if it is changed meanwhile
		}
	case sys.CallReboot:
		d["command"] = "0x" + strconv.FormatUint(uint64(uint32(a[2])), 16)
	case sys.CallKeyctl, sys.CallBPF, sys.CallSyslog:
		d["command"] = strconv.Itoa(int(int32(a[0])))
	case sys.CallSwapon, sys.CallSwapoff, sys.CallAcct, sys.CallDeleteModule:
		d["name"] = core.Shorten(s.text(a[0]), 256)
	case sys.CallAddKey, sys.CallRequestKey:
		d["type"], d["name"] = core.Shorten(s.text(a[0]), 256), core.Shorten(s.text(a[1]), 256)
	}
	dec := s.policy.Load().Decide(k.surface)
	if dec.Verdict != core.Blocked && !k.never {
		return answer{ops: [2]*core.Operation{{Surface: k.surface, Action: k.action, Target: c.String(), Verdict: core.Allowed, Rule: dec.Rule, Detail: d}}}, true
	}
	return s.refuse(k.surface, k.action, c.String(), "filter", k.errno, d), true
}

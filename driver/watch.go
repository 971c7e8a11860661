package driver

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// watcher looks at a session a few times a second for what no trapped call tells: how much
// its processes use together, and what somebody outside does to them.
type watcher struct {
	s       *supervisor
	proc    *ownProc
	limits  core.Limits
	outside *outside
	boxSize func() (n int64, whole bool)
	end     func(why string)      // kills the session
	later   func(*core.Operation) // logs without waiting
	slay    func(pid int)         // kills one process, by its number in the box

	over    map[string]bool // limits that are hit now
	sized   time.Time       // when the box's size was last taken
	sizing  time.Duration   // how long that took
	pressed int             // how often in a row there was too much memory
	spent   map[int]spent   // processor time last seen, by number in the box
	gone    time.Duration   // of processes that have ended since
	stop    chan struct{}
	done    chan struct{}
	stopped sync.Once
}

const (
	maxPressed  = 8
	watchRest   = 250 * time.Millisecond
	sizeRest    = time.Second // between two walks through the box's layers, and twenty times what one takes
	maxSizeRest = 10 * time.Second
)

func (w *watcher) run() {
	defer close(w.done)
	tick := time.NewTicker(watchRest)
	defer tick.Stop()
	if w.limits.WallTime > 0 {
		t := time.AfterFunc(w.limits.WallTime, func() { w.kill("wall-time", w.limits.WallTime.String(), w.limits.WallTime.String()) })
		defer t.Stop()
	}
	for {
		select {
		case <-w.stop:
			return
		case now := <-tick.C:
			w.outside.tick(now)
			w.crowd()
			w.use()
			w.size(now)
		}
	}
}

// close ends the watching. What is still to be said of the outside is said.
func (w *watcher) close() {
	w.stopped.Do(func() { close(w.stop) })
	<-w.done
	w.outside.flush()
	w.proc.close()
}

// crowd says when the session has as many processes and threads as it may. What holds
// them is the kernel, or the supervisor where it counts them itself.
func (w *watcher) crowd() {
	max := w.limits.Processes
	// Most of the time the whole machine has fewer: field 4 of proc_loadavg(5).
	if max == 0 || machineThreads() < max {
		w.over["processes"] = false
		return
	}
	n := w.proc.threads()
	if n >= max && !w.over["processes"] {
		w.log("processes", core.Detail{"limit": strconv.FormatInt(max, 10), "used": strconv.FormatInt(n, 10)})
	}
	w.over["processes"] = n >= max
}

// machineThreads counts the threads of the whole machine; the most there can be when that
// is not known.
func machineThreads() int64 {
	f := strings.Fields(string(readBounded("/proc/loadavg", 256)))
	if len(f) > 3 {
		if _, all, ok := strings.Cut(f[3], "/"); ok {
			if n, err := strconv.ParseInt(all, 10, 64); err == nil {
				return n
			}
		}
	}
	return math.MaxInt64
}

// use compares what the session's processes use with what they may.
func (w *watcher) use() {
	if w.limits.Memory == 0 && w.limits.CPUTime == 0 {
		return
	}
	pids := w.proc.pids()
	if w.limits.CPUTime > 0 {
		total := w.cpuTime(append(pids, 1))
		if total >= w.limits.CPUTime {
			w.kill("cpu-time", w.limits.CPUTime.String(), total.Round(10*time.Millisecond).String())
			return
		}
	}
	if w.limits.Memory > 0 {
		w.memory(pids)
	}
}

// spent is a process's own processor time, when it was last seen.
type spent struct {
	started, cpu time.Duration
}

// cpuTime adds up what a session has used of the processors: the larger of two counts that are
// both too small. Time of a child that was waited for is its parent's, of an orphan the
// init's; where a parent has its children reaped unseen (SIGCHLD ignored) it is nobody's, but
// what was seen of it before is added.
func (w *watcher) cpuTime(pids []int) time.Duration {
	var waited, own time.Duration
	now := make(map[int]spent, len(pids))
	for _, pid := range pids {
		st, ok := w.proc.stat(pid)
		if !ok {
			continue
		}
		waited += st.CPU
		own += st.Own
		now[pid] = spent{st.Started, st.Own}
		if was, ok := w.spent[pid]; ok && was.started != st.Started {
			w.gone += was.cpu
		}
	}
	for pid, was := range w.spent {
		if _, ok := now[pid]; !ok {
			w.gone += was.cpu
		}
	}
	w.spent = now
	return max(waited, own+w.gone)
}

// memory kills the session's largest processes when all of them together have more than they
// may, until they have not, as the kernel does when a control group has (its OOM killer). When
// that is to no avail for some seconds the session ends.
func (w *watcher) memory(pids []int) {
	var files int64
	for _, dir := range []string{"dev/shm", "run"} {
		files += stored(w.s.paths.root, dir)
	}
	sum := func(of func(int) int64) (total int64, each []usage) {
		total = files
		for _, pid := range pids {
			n := of(pid)
			total += n
			each = append(each, usage{pid, n})
		}
		return total, each
	}
	if used, _ := sum(w.proc.private); used <= w.limits.Memory {
		w.pressed = 0
		return
	}
	// Memory that several processes share, as after a fork, was counted for each.
	used, each := sum(w.proc.proportional)
	if used <= w.limits.Memory {
		w.pressed = 0
		return
	}
	limit := strconv.FormatInt(w.limits.Memory, 10)
	if w.pressed++; w.pressed > maxPressed || files > w.limits.Memory {
		// What is in files nobody's death gives back.
		w.kill("memory", limit, strconv.FormatInt(used, 10))
		return
	}
	slices.SortFunc(each, func(a, b usage) int { return cmp.Compare(b.bytes, a.bytes) })
	d := core.Detail{"limit": limit, "used": strconv.FormatInt(used, 10)}
	n := 0
	for _, u := range each {
		if used <= w.limits.Memory {
			break
		}
		used -= u.bytes
		w.outside.sends(u.pid, uint32(syscall.SIGKILL))
		w.slay(u.pid)
		if n++; n == 1 {
			d["killed"], d["of"] = "pid "+strconv.Itoa(u.pid), strconv.FormatInt(u.bytes, 10)
		}
	}
	if n > 1 {
		d["also"] = strconv.Itoa(n-1) + " more"
	}
	w.log("memory", d)
}

// usage is what one process has.
type usage struct {
	pid   int
	bytes int64
}

// size compares what the box holds with what it may.
func (w *watcher) size(now time.Time) {
	max := w.limits.BoxSize
	if max == 0 || now.Sub(w.sized) < min(sizeRest+20*w.sizing, maxSizeRest) {
		return
	}
	begin := time.Now()
	n, whole := w.boxSize()
	w.sized, w.sizing = time.Now(), time.Since(begin)
	// What cannot be looked into may hold anything.
	full := n >= max || !whole
	w.s.limits.full.Store(full)
	text := strconv.FormatInt(n, 10)
	switch {
	case n > max+max/4: // files that were open already have grown on
		w.kill("box-size", strconv.FormatInt(max, 10), text)
	case full && !w.over["box-size"]:
		w.log("box-size", core.Detail{"limit": strconv.FormatInt(max, 10), "used": text})
	}
	w.over["box-size"] = full
}

// limitErrno is what a call that runs into the limit fails with, or would.
var limitErrno = map[string]syscall.Errno{"memory": syscall.ENOMEM, "box-size": syscall.EDQUOT, "file-size": syscall.EFBIG,
	"processes": syscall.EAGAIN, "cpu-time": syscall.ETIME, "wall-time": syscall.ETIME}

func (w *watcher) log(name string, d core.Detail) {
	w.later(&core.Operation{Surface: core.SandboxLimit, Action: core.ActHit, Target: name,
		Verdict: core.Blocked, Outcome: core.Performed, Rule: "limit", Errno: sys.ErrnoName(limitErrno[name]), Detail: d})
}

func (w *watcher) kill(name, limit, used string) {
	w.end("limit " + name + ": " + used)
	w.log(name, core.Detail{"limit": limit, "used": used, "killed": "the session"})
}

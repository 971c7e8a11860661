package driver

import (
	"math"
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
	boxSize func() int64
	end     func(why string) // kills the session
	slay    func(pid int)    // kills one process, by its number in the box

	over    map[string]bool // limits that are hit now
	sized   time.Time       // when the box's size was last taken
	sizing  time.Duration   // how long that took
	stop    chan struct{}
	done    chan struct{}
	stopped sync.Once
}

const (
	watchRest = 250 * time.Millisecond
	sizeRest  = time.Second // between two walks through the box's layers, or twenty times what one takes
)

func (w *watcher) run() {
	defer close(w.done)
	tick := time.NewTicker(watchRest)
	defer tick.Stop()
	var wall <-chan time.Time
	if w.limits.WallTime > 0 {
		t := time.NewTimer(w.limits.WallTime)
		defer t.Stop()
		wall = t.C
	}
	for {
		select {
		case <-w.stop:
			return
		case <-wall:
			w.kill("wall-time", w.limits.WallTime.String(), w.limits.WallTime.String())
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
		// Time of the dead is with whoever waited for them, of orphans that is the init.
		total := time.Duration(0)
		for _, pid := range append(pids, 1) {
			if st, ok := w.proc.stat(pid); ok {
				total += st.CPU
			}
		}
		if total >= w.limits.CPUTime {
			w.kill("cpu-time", w.limits.CPUTime.String(), total.Round(10*time.Millisecond).String())
			return
		}
	}
	if w.limits.Memory > 0 {
		w.memory(pids)
	}
}

// memory kills the session's largest process when all of them together have more than they
// may, as the kernel does when a control group has (its OOM killer).
func (w *watcher) memory(pids []int) {
	var files int64
	for _, dir := range []string{"dev/shm", "run"} {
		files += stored(w.s.paths.root, dir)
	}
	sum := func(of func(int) int64) (total, most int64, largest int) {
		total = files
		for _, pid := range pids {
			n := of(pid)
			if total += n; n > most {
				most, largest = n, pid
			}
		}
		return
	}
	used, _, _ := sum(w.proc.private)
	if used <= w.limits.Memory {
		w.over["memory"] = false
		return
	}
	// Memory that several processes share, as after a fork, was counted for each.
	used, most, largest := sum(w.proc.proportional)
	if used <= w.limits.Memory {
		return
	}
	d := core.Detail{"limit": strconv.FormatInt(w.limits.Memory, 10), "used": strconv.FormatInt(used, 10)}
	if largest == 0 || files > w.limits.Memory {
		// What is in files nobody's death gives back.
		w.kill("memory", d["limit"], d["used"])
		return
	}
	d["killed"], d["of"] = "pid "+strconv.Itoa(largest), strconv.FormatInt(most, 10)
	w.log("memory", d)
	w.outside.sends(largest, uint32(syscall.SIGKILL))
	w.slay(largest)
}

// size compares what the box holds with what it may.
func (w *watcher) size(now time.Time) {
	max := w.limits.BoxSize
	if max == 0 || now.Sub(w.sized) < sizeRest+20*w.sizing {
		return
	}
	begin := time.Now()
	n := w.boxSize()
	w.sized, w.sizing = time.Now(), time.Since(begin)
	full := n >= max
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
	w.s.journal.add(&core.Operation{Surface: core.SandboxLimit, Action: core.ActHit, Target: name,
		Verdict: core.Blocked, Outcome: core.Performed, Rule: "limit", Errno: sys.ErrnoName(limitErrno[name]), Detail: d})
}

func (w *watcher) kill(name, limit, used string) {
	w.log(name, core.Detail{"limit": limit, "used": used, "killed": "the session"})
	w.end("limit " + name + ": " + used)
}

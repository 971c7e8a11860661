package core

import (
	"slices"
	"strings"
	"time"
)

// SessionFold is the state of a session after some of its operations: what a replay
// shows at one moment, and by the same rules what the projections hold at the end. The
// zero value is a session before its first operation. It grows with the number of
// processes and, up to a bound, of flows; not with that of operations.
type SessionFold struct {
	View     SessionView // without what only facts of life tell: host, lost, missing
	Surfaces map[SurfaceAction]Counts
	Procs    map[ProcID]*ProcessView
	flows    flowFold
}

// SurfaceAction is an action on a surface.
type SurfaceAction struct {
	Surface Surface
	Action  Action
}

// Fold adds the next operation.
func (f *SessionFold) Fold(op *Operation) {
	if f.Procs == nil {
		f.Surfaces, f.Procs = map[SurfaceAction]Counts{}, map[ProcID]*ProcessView{}
	}
	v := &f.View
	v.ID, v.Box, v.LastSeq = op.Session, op.Box, op.Seq
	if v.Start.IsZero() {
		v.Start = op.Time
	}
	v.Counts.Add(op)
	v.Fold(op)
	k := SurfaceAction{op.Surface, op.Action}
	c := f.Surfaces[k]
	c.Add(op)
	f.Surfaces[k] = c
	if flow := op.Flow(); flow != "" {
		f.flows.fold(op, flow, maxFlows)
	}
	if op.Proc == "" {
		return
	}
	p := f.Procs[op.Proc]
	if p == nil {
		p = &ProcessView{Session: op.Session, Proc: op.Proc}
		f.Procs[op.Proc] = p
		v.Procs++
		v.LiveProc++
	}
	lived := p.End.IsZero()
	p.Fold(op)
	if lived && !p.End.IsZero() {
		v.LiveProc--
	}
}

// Processes returns the processes in the order in which they started.
func (f *SessionFold) Processes() []ProcessView {
	ps := make([]ProcessView, 0, len(f.Procs))
	for _, p := range f.Procs {
		ps = append(ps, *p)
	}
	SortProcesses(ps)
	return ps
}

// SortProcesses sorts by start, and those that started at once by their ids.
func SortProcesses(ps []ProcessView) {
	slices.SortFunc(ps, func(a, b ProcessView) int {
		if c := a.Start.Compare(b.Start); c != 0 {
			return c
		}
		return strings.Compare(string(a.Proc), string(b.Proc))
	})
}

// Fold takes from one operation of the session what it tells of the session itself: how
// it began and ended. It counts nothing.
func (v *SessionView) Fold(op *Operation) {
	if op.Surface != SandboxLifecycle {
		return
	}
	switch op.Action {
	case ActBegin:
		v.Start, v.Command, v.Policy = op.Time, op.Target, op.Detail["policy"]
		v.Observe, v.Net = Observe(op.Detail["observe"]), Net(op.Detail["net"])
	case ActEnd:
		v.End, v.Exit = op.Time, exitCode(op.Detail["code"])
	}
}

// exitCode reads an exit code; what is none is -1.
func exitCode(s string) int {
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' || n > 1<<20 {
			return -1
		}
		n = n*10 + int(s[i]-'0')
	}
	if s == "" {
		return -1
	}
	return n
}

// Fold adds an operation of the process.
//
// What it executes is what the supervisor saw at its last operation. Between an exec and
// the operation after it that is the exec's target, which the kernel may have refused
// (the supervisor does not see it) or replaced by an interpreter.
func (p *ProcessView) Fold(op *Operation) {
	p.Counts.Add(op)
	if p.Start.IsZero() {
		p.Start, p.PID = op.Time, op.PID
	}
	if op.Exe != "" {
		p.Exe = op.Exe
	}
	switch {
	case op.Surface == FilesExec && op.Action == ActExec:
		if op.Verdict != Blocked && op.Detail["found"] != "no" {
			p.Exe, p.Argv = op.Target, op.Detail["argv"]
		}
	case op.Surface == ProcessLife && op.Action == ActStart:
		p.Start, p.PID, p.Parent = op.Time, op.PID, ProcID(op.Detail["pproc"])
	case op.Surface == ProcessLife && op.Action == ActExit:
		p.End, p.Exit = op.Time, op.Detail["signal"]
		if p.Exit == "" {
			p.Exit = op.Detail["code"]
		}
	}
}

// Urgent says whether op is to be seen outside at once: it was blocked, or is a leak.
func (op *Operation) Urgent() bool { return op.Verdict == Blocked || op.Leak }

// IsFile says whether the operation is about a path.
func (op *Operation) IsFile() bool {
	return strings.HasPrefix(string(op.Surface), "files.") && strings.HasPrefix(op.Target, "/")
}

// Changes says whether the box has a version of its own of the target after the
// operation, as far as the supervisor can tell: the kernel may still have refused it.
func (op *Operation) Changes() bool {
	return op.Surface == FilesWrite && op.Verdict == Redirected && op.Detail["found"] != "no"
}

// OtherPath returns the second path that the operation changes when it changes its
// target: where a rename goes. "" when there is none.
func (op *Operation) OtherPath() string {
	if op.Action != ActRename && op.Action != ActExchange {
		return ""
	}
	if to := op.Detail["to"]; strings.HasPrefix(to, "/") {
		return to
	}
	return ""
}

// AddCounts adds the counts of c.
func (c *Counts) AddCounts(o Counts) {
	c.Allowed += o.Allowed
	c.Redirected += o.Redirected
	c.Blocked += o.Blocked
	c.Leaks += o.Leaks
}

// Sparkline fits counts of seconds into n buckets of the given width, the last of which
// holds now. Seconds before the first or after the last bucket are left out.
func Sparkline(now time.Time, width time.Duration, n int, seconds []Bucket) []Bucket {
	first := now.Truncate(width).Add(-time.Duration(n-1) * width)
	out := make([]Bucket, n)
	for i := range out {
		out[i].Start = first.Add(time.Duration(i) * width)
	}
	for _, s := range seconds {
		if i := s.Start.Sub(first) / width; !s.Start.Before(first) && int(i) < n {
			out[i].Counts.AddCounts(s.Counts)
		}
	}
	return out
}

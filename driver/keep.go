package driver

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// openHistory begins the session's part of the box's history, see [layers.History].
func openHistory(b boxDir, ls []layers.Layer, o *Options) (*layers.History, error) {
	unseen := ""
	switch {
	case o.Policy.Limits.Versions == core.NoVersions:
		unseen = "a session kept no versions"
	case o.Session.Observe == core.ObserveLean:
		unseen = "a session was not watched (observe: lean)"
	}
	return layers.OpenHistory(b.Dir, ls, o.Session.ID, o.Policy.Limits, unseen)
}

// doing says what an action is about to do to its target.
func doing(act core.Action) layers.Doing {
	switch act {
	case core.ActDelete:
		return layers.Goes
	case core.ActRmdir:
		return layers.GoesDir
	case core.ActTruncate:
		return layers.Writes
	case core.ActMkdir, core.ActMknod, core.ActBind, core.ActSymlink:
		return layers.Comes
	}
	return layers.Attributes
}

// keeps says whether what is at p is to be written down before the operation that a
// answers: one on the box's own layers that is let go on.
func (s *supervisor) keeps(a *answer, p place) bool {
	return s.history != nil && s.limits.Versions != core.NoVersions && !s.p.init && a.errno == 0 && a.do == nil && a.ops[0] != nil && a.ops[0].Rule == "overlay" && !p.object && !p.loop
}

// keep has what is at p kept before it changes. What takes long is done by another
// goroutine, which then lets the operation go on.
func (s *supervisor) keep(a answer, p place, d layers.Doing) answer {
	if !s.keeps(&a, p) {
		return a
	}
	k, later := s.history.Touch(s.now, p.path, d)
	return s.keepLater(a, k, later)
}

func (s *supervisor) keepRename(a answer, from, to place, exchange bool) answer {
	if !s.keeps(&a, from) || to.object || to.loop {
		return a
	}
	k, later := s.history.Rename(s.now, from.path, to.path, exchange)
	return s.keepLater(a, k, later)
}

func (s *supervisor) keepLater(a answer, k layers.Kept, later func() layers.Kept) answer {
	op := a.ops[0]
	if later == nil {
		noteKept(op, k)
		return a
	}
	hit := core.Operation{PID: s.p.pid, Proc: s.p.id, Exe: s.p.exe, Surface: core.SandboxLimit, Action: core.ActHit, Target: "versions", Verdict: core.Allowed,
		Outcome: core.Performed, Rule: "limit", Detail: core.Detail{"limit": strconv.FormatInt(s.limits.Versions, 10), "path": op.Target}}
	a.must = true
	a.do = func() performed {
		k := later()
		noteKept(op, k)
		if k.Limit && s.limits.unkept.first() {
			s.journal.add(&hit)
		}
		return performed{proceed: true}
	}
	return a
}

// noteKept says in the operation which content was kept of its target, or that none was.
func noteKept(op *core.Operation, k layers.Kept) {
	if k.Version == "" && k.Why == "" {
		return
	}
	if op.Detail == nil {
		op.Detail = core.Detail{}
	}
	if k.Version != "" {
		op.Detail["kept"] = k.Version
	} else {
		op.Detail["kept"], op.Detail["not_kept"] = "no", k.Why
	}
}

// seldom lets one of many through in [hitAgain].
type seldom struct{ last atomic.Int64 }

func (s *seldom) first() bool {
	now := time.Now().UnixNano()
	last := s.last.Load()
	return now-last >= int64(hitAgain) && s.last.CompareAndSwap(last, now)
}

package core

import (
	"slices"
	"strings"
	"time"
)

// FlowsPage is a page of flows, the one that was opened last first.
type FlowsPage struct {
	Flows   []FlowView
	Cursors []OpCursor // of each flow: the place of its first operation
	More    bool       // there are older ones
}

// FlowTotals is what the flows of a box, or of one of its sessions, come to.
type FlowTotals struct {
	Flows    uint64 `json:"flows"`
	Open     int    `json:"open"`
	Sent     uint64 `json:"sent"` // bytes of payload
	Received uint64 `json:"received"`
}

// Flow returns the number of the flow that op is an operation of, "" when it is of none.
func (op *Operation) Flow() string {
	if op.Detail == nil {
		return ""
	}
	return op.Detail["flow"]
}

// Over closes a flow whose session has ended; end is zero while that runs.
func (f *FlowView) Over(end time.Time) {
	if f.End.IsZero() && !end.IsZero() {
		f.End, f.Reason = end, "session"
	}
}

// maxFlows is how many flows a [SessionFold] remembers.
const maxFlows = 100_000

// flowFold holds the flows of a session. When there are too many it forgets the one that
// ended first.
type flowFold struct {
	all     map[string]*FlowView
	ended   []string // in the order of their ends
	dropped uint64
}

func (f *flowFold) fold(op *Operation, flow string, most int) {
	if f.all == nil {
		f.all = map[string]*FlowView{}
	}
	v := f.all[flow]
	if v == nil {
		if len(f.all) >= most {
			f.dropped++
			if len(f.ended) == 0 {
				return
			}
			delete(f.all, f.ended[0])
			f.ended = f.ended[1:]
		}
		v = &FlowView{}
		f.all[flow] = v
	}
	open := v.End.IsZero()
	v.Fold(op)
	if open && !v.End.IsZero() {
		f.ended = append(f.ended, flow)
	}
}

// Flows returns the session's flows, the one that was opened last first. See
// [SessionFold.FlowsDropped].
func (f *SessionFold) Flows() []FlowView {
	vs := make([]FlowView, 0, len(f.flows.all))
	for _, p := range f.flows.all {
		v := *p
		v.Over(f.View.End)
		vs = append(vs, v)
	}
	slices.SortFunc(vs, func(a, b FlowView) int {
		if c := b.Start.Compare(a.Start); c != 0 {
			return c
		}
		return strings.Compare(b.Flow, a.Flow)
	})
	return vs
}

// FlowsDropped is how many flows [SessionFold.Flows] is without: there were more than
// 100,000, and first those are let go that have ended.
func (f *SessionFold) FlowsDropped() uint64 { return f.flows.dropped }

// MaxNames is how many names are remembered of a box; the one that was not asked for the
// longest makes room. Names are the box's choice: a tunnel over DNS makes millions.
const MaxNames = 10_000

// maxNameTypes is how many types of records are remembered of a name.
const maxNameTypes = 8

// NameView is a name that a box asked its resolver for.
type NameView struct {
	Box     string    `json:"box"`
	Name    string    `json:"name"` // arbitrary bytes
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   uint64    `json:"count"`
	Blocked uint64    `json:"blocked"` // of them
	Verdict Verdict   `json:"verdict"` // of the last; so are the next two
	Rule    string    `json:"rule"`
	Rcode   string    `json:"rcode,omitempty"` // NOERROR, NXDOMAIN
	Types   string    `json:"types,omitempty"` // of records that were asked for, sorted: "A AAAA"
}

// Asks says whether op is a question for a name.
func (op *Operation) Asks() bool { return op.Surface == NetDNS && op.Action == ActResolve }

// Fold adds a question for the name: see [Operation.Asks].
func (n *NameView) Fold(op *Operation) {
	if n.Count == 0 {
		n.Box, n.Name, n.First = op.Box, op.Target, op.Time
	}
	n.Count++
	if op.Verdict == Blocked {
		n.Blocked++
	}
	n.Last, n.Verdict, n.Rule, n.Rcode = op.Time, op.Verdict, op.Rule, op.Detail["rcode"]
	t := op.Detail["type"]
	if t == "" || len(t) > 16 || strings.Contains(t, " ") {
		return
	}
	types := strings.Fields(n.Types)
	if i, there := slices.BinarySearch(types, t); !there && len(types) < maxNameTypes {
		n.Types = strings.Join(slices.Insert(types, i, t), " ")
	}
}

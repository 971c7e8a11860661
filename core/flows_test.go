package core

import (
	"fmt"
	"slices"
	"testing"
)

func TestAFlowIsOverWhenItEndsOrItsSessionDoes(t *testing.T) {
	op := func(flow string, a Action, v Verdict, errno string, d Detail) Operation {
		o := Operation{Surface: NetOut, Action: a, Target: "203.0.113.5:443", Verdict: v, Errno: errno, Detail: Detail{"flow": flow}}
		for k, x := range d {
			o.Detail[k] = x
		}
		return o
	}
	ops := scripted(
		Operation{Surface: SandboxLifecycle, Action: ActBegin, Verdict: Allowed},
		op("refused", ActConnect, Allowed, "ECONNREFUSED", nil),
		op("denied", ActAsk, Allowed, "", Detail{"ask": "1", "answer": ""}),
		op("denied", ActAsk, Blocked, "", Detail{"ask": "1", "answer": "timeout"}),
		op("asked", ActAsk, Allowed, "", Detail{"ask": "2", "answer": "allow"}),
		op("asked", ActConnect, Allowed, "", Detail{"proto": "tcp"}),
		op("closed", ActConnect, Allowed, "", nil),
		op("closed", ActClose, Allowed, "", Detail{"reason": "fin", "sent": "10"}),
		op("closed", ActCount, Allowed, "", Detail{"sent": "7"}), // late
		op("lost", ActCount, Allowed, "", Detail{"sent": "7"}),   // what came before is missing
		Operation{Surface: SandboxLifecycle, Action: ActEnd, Verdict: Allowed, Detail: Detail{"code": "0"}},
	)
	var f SessionFold
	for i := range ops {
		f.Fold(&ops[i])
	}
	got := map[string]FlowView{}
	for _, v := range f.Flows() {
		got[v.Flow] = v
	}
	for flow, want := range map[string]FlowView{
		"refused": {Reason: "refused", End: at(2)},
		"denied":  {Reason: "policy", End: at(4)},
		"asked":   {Reason: "session", End: at(11)},
		"closed":  {Reason: "fin", End: at(8), Sent: 10},
		"lost":    {Reason: "session", End: at(11), Sent: 7},
	} {
		if v := got[flow]; v.Reason != want.Reason || !v.End.Equal(want.End) || v.Sent != want.Sent || v.Surface != NetOut {
			t.Errorf("%s: %+v, want %+v", flow, v, want)
		}
	}
	if len(got) != 5 || got["denied"].Verdict != Blocked || f.FlowsDropped() != 0 {
		t.Errorf("%d flows, %+v", len(got), got["denied"])
	}
}

func TestASessionRemembersSoManyFlows(t *testing.T) {
	var f flowFold
	add := func(flow string, a Action) {
		f.fold(&Operation{Action: a, Target: "x", Verdict: Allowed, Time: at(1), Detail: Detail{"flow": flow}}, flow, 3)
	}
	for i := range 3 {
		add(fmt.Sprint(i), ActConnect)
	}
	add("3", ActConnect) // all are open: there is no room
	add("1", ActClose)
	add("0", ActClose)
	add("4", ActConnect) // in the place of 1, which ended first
	add("4", ActCount)
	var left []string
	for k := range f.all {
		left = append(left, k)
	}
	slices.Sort(left)
	if want := []string{"0", "2", "4"}; !slices.Equal(left, want) || f.dropped != 2 {
		t.Errorf("flows %v, %d dropped", left, f.dropped)
	}
}

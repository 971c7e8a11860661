package store

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
)

// flowOp makes an operation of a flow.
func flowOp(flow string, a core.Action, target string, d core.Detail) core.Operation {
	op := core.Operation{PID: 7, Proc: "7", Exe: "/usr/bin/curl", Surface: core.NetOut, Action: a, Target: target, Verdict: core.Allowed, Outcome: core.Performed, Rule: "r", Detail: core.Detail{"flow": flow}}
	for k, v := range d {
		op.Detail[k] = v
	}
	return op
}

func question(name string, v core.Verdict, kind string) core.Operation {
	return core.Operation{PID: 7, Proc: "7", Exe: "/usr/bin/curl", Surface: core.NetDNS, Action: core.ActResolve, Target: name, Verdict: v, Rule: "r", Detail: core.Detail{"type": kind, "rcode": "NOERROR"}}
}

func TestAFlowIsTheFoldOfItsOperations(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	const id = "01J00000000000000000000001"
	ops := []core.Operation{
		{Surface: core.SandboxLifecycle, Action: core.ActBegin, Target: "curl", Verdict: core.Allowed},
		flowOp("1", core.ActConnect, "203.0.113.5:443", core.Detail{"proto": "tcp", "name": "a.example", "by": "dns"}),
		flowOp("2", core.ActConnect, "203.0.113.6:80", core.Detail{"proto": "tcp"}),
		flowOp("1", core.ActIdentify, "b.example", core.Detail{"by": "tls", "alpn": "h2"}),
		flowOp("1", core.ActCount, "203.0.113.5:443", core.Detail{"sent": "100", "received": "2000", "packets_out": "3", "packets_in": "4", "rtt_us": "1500"}),
		flowOp("2", core.ActClose, "203.0.113.6:80", core.Detail{"sent": "1", "received": "2", "reason": "fin"}),
		{PID: 7, Proc: "7", Exe: "/usr/bin/curl", Surface: core.NetOut, Action: core.ActConnect, Target: "198.51.100.1:25", Verdict: core.Blocked, Errno: "EACCES", Detail: core.Detail{"proto": "tcp"}},
	}
	// Each in a transaction of its own, so that flows are read again in between.
	for i, op := range ops {
		fold(t, s, opsMsg(uint64(i+1), batchOf("b", id, core.Seq(i+1), op)))
		if i == 3 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, s.dir)
		}
	}
	at := func(seq int) time.Time { return t0.Add(time.Duration(seq) * time.Second) }
	one := core.FlowView{Flow: "1", Box: "b", Session: id, Proc: "7", PID: 7, Exe: "/usr/bin/curl", Surface: core.NetOut, Proto: "tcp", Target: "203.0.113.5:443", Name: "b.example", By: "tls", ALPN: "h2",
		Verdict: core.Allowed, Rule: "r", Start: at(2), Sent: 100, Received: 2000, PktsOut: 3, PktsIn: 4, RTT: 1500}
	two := core.FlowView{Flow: "2", Box: "b", Session: id, Proc: "7", PID: 7, Exe: "/usr/bin/curl", Surface: core.NetOut, Proto: "tcp", Target: "203.0.113.6:80",
		Verdict: core.Allowed, Rule: "r", Start: at(3), End: at(6), Reason: "fin", Sent: 1, Received: 2}
	look := func(what string, f FlowFilter, want ...core.FlowView) {
		t.Helper()
		page, err := s.Flows(ctx, f)
		if err != nil || page.More || len(page.Cursors) != len(page.Flows) || len(page.Flows) != len(want) || len(want) > 0 && !reflect.DeepEqual(page.Flows, want) {
			t.Errorf("%s\n%+v, want\n%+v, %v", what, page, want, err)
		}
	}
	totals := func(session core.SessionID, want core.FlowTotals) {
		t.Helper()
		if got, err := s.FlowTotals(ctx, "b", session); err != nil || got != want {
			t.Errorf("totals %+v, want %+v, %v", got, want, err)
		}
	}
	for _, f := range []FlowFilter{{}, {Box: "b"}, {Session: id}, {Box: "b", Session: id}} {
		look(fmt.Sprintf("%+v", f), f, two, one)
		f.Open = true
		look(fmt.Sprintf("%+v", f), f, one)
	}
	look("another box", FlowFilter{Box: "x"})
	look("another session", FlowFilter{Box: "b", Session: "x", Open: true})
	totals("", core.FlowTotals{Flows: 2, Open: 1, Sent: 101, Received: 2002})
	totals(id, core.FlowTotals{Flows: 2, Open: 1, Sent: 101, Received: 2002})
	totals("x", core.FlowTotals{})
	if got, err := s.Flow(ctx, id, "1"); err != nil || got != one {
		t.Errorf("flow 1: %+v, %v", got, err)
	}

	// The end of its session closes what is open: as its operations say, or, of a supervisor
	// that died, as control does.
	fold(t, s, ctl(1, events.Life{Kind: events.SessionEnd, Time: at(60), Host: "h", Box: "b", Session: id, Lost: true}))
	one.End, one.Reason = at(60), "session"
	look("after its session was lost", FlowFilter{Box: "b"}, two, one)
	look("open ones", FlowFilter{Box: "b", Open: true})
	fold(t, s, opsMsg(8, batchOf("b", id, 8, core.Operation{Surface: core.SandboxLifecycle, Action: core.ActEnd, Verdict: core.Allowed, Detail: core.Detail{"code": "0"}})))
	one.End = at(8)
	look("after its last operation", FlowFilter{Box: "b"}, two, one)
	totals("", core.FlowTotals{Flows: 2, Sent: 101, Received: 2002})
}

func TestFlowsAreReadPageByPage(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	var want []string
	for i := range 100 {
		box := fmt.Sprint("b", i%2)
		var ops []core.Operation
		for k := range 5 {
			n := fmt.Sprint(i*5 + k)
			ops = append(ops, flowOp(n, core.ActConnect, "203.0.113.5:443", nil))
			if box == "b1" {
				want = append(want, n)
			}
		}
		fold(t, s, opsMsg(uint64(i+1), batchOf(box, core.SessionID("S"+box), core.Seq(i*5+1), ops...)))
	}
	slices.Reverse(want)
	for _, f := range []FlowFilter{{Box: "b1"}, {Session: "Sb1"}, {Box: "b1", Open: true}} {
		var got []string
		for f.Limit = 7; ; {
			page, err := s.Flows(ctx, f)
			if err != nil || len(page.Flows) == 0 || len(page.Flows) > f.Limit {
				t.Fatalf("%+v: %d flows, %v", f, len(page.Flows), err)
			}
			for _, v := range page.Flows {
				got = append(got, v.Flow)
			}
			if !page.More {
				break
			}
			f.Before = page.Cursors[len(page.Cursors)-1]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%+v: flows %v, want %v", f, got, want)
		}
	}
}

func TestNamesAreCountedAndTheOldestMakeRoom(t *testing.T) {
	batches := func() (bs []*events.Batch) {
		var ops []core.Operation
		for i := range core.MaxNames {
			ops = append(ops, question(fmt.Sprintf("n%d.example", i), core.Allowed, "A"))
		}
		ops = append(ops,
			question("n0.example", core.Blocked, "AAAA"),  // moves to the end
			question("new.example", core.Allowed, "A"),    // takes the place of n1
			question("n1.example", core.Allowed, "TXT"),   // begins anew, in the place of n2
			question("\xff\n.example", core.Blocked, "A"), // n3
			question("n1.example", core.Allowed, "A"))
		for seq := 0; seq < len(ops); seq += 1000 {
			bs = append(bs, batchOf("b", "S", core.Seq(seq+1), ops[seq:min(len(ops), seq+1000)]...))
		}
		return bs
	}()
	var content []string
	for _, perTx := range []int{1, 3, len(batches)} {
		s, ctx := open(t, t.TempDir()), t.Context()
		for i := 0; i < len(batches); i += perTx {
			var ds []events.Delivered
			for j := i; j < min(len(batches), i+perTx); j++ {
				ds = append(ds, opsMsg(uint64(j+1), batches[j]))
			}
			fold(t, s, ds...)
		}
		content = append(content, digest(t, s))
		ns, all, err := s.Names(ctx, "b", 4)
		for i := range ns {
			ns[i].First, ns[i].Last, ns[i].Rule = time.Time{}, time.Time{}, ""
		}
		want := []core.NameView{
			{Box: "b", Name: "n1.example", Count: 2, Verdict: core.Allowed, Rcode: "NOERROR", Types: "A TXT"},
			{Box: "b", Name: "\xff\n.example", Count: 1, Blocked: 1, Verdict: core.Blocked, Rcode: "NOERROR", Types: "A"},
			{Box: "b", Name: "new.example", Count: 1, Verdict: core.Allowed, Rcode: "NOERROR", Types: "A"},
			{Box: "b", Name: "n0.example", Count: 2, Blocked: 1, Verdict: core.Blocked, Rcode: "NOERROR", Types: "A AAAA"},
		}
		if err != nil || all != core.MaxNames || !reflect.DeepEqual(ns, want) {
			t.Errorf("%d batches at once: %d names, the latest\n%+v, want\n%+v, %v", perTx, all, ns, want, err)
		}
		ns, _, err = s.Names(ctx, "b", core.MaxNames)
		if last := ns[len(ns)-1].Name; err != nil || last != "n4.example" {
			t.Errorf("the oldest is %s, %v", last, err)
		}
	}
	if content[0] != content[1] || content[0] != content[2] {
		t.Errorf("what is remembered depends on the portions: %v", content)
	}
}

// TestPagesOfTheNetworkAreFoundByKey asks SQLite how it would find them.
func TestPagesOfTheNetworkAreFoundByKey(t *testing.T) {
	s := open(t, t.TempDir())
	fold(t, s, opsMsg(1, batchOf("b", "S", 1, flowOp("1", core.ActConnect, "203.0.113.5:443", nil), question("a.example", core.Allowed, "A"))))
	plan := func(sql string, args ...any) (steps []string) {
		rows, err := s.read.QueryContext(context.Background(), "EXPLAIN QUERY PLAN "+sql, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			steps = append(steps, step)
		}
		return steps
	}
	for _, f := range []FlowFilter{{}, {Before: 5}, {Box: "b"}, {Box: "b", Before: 5}, {Session: "S"}, {Session: "S", Before: 5}, {Box: "b", Open: true}, {Session: "S", Open: true}} {
		sql, args := flowsSQL(f, 1, 1)
		for _, step := range plan(sql, append(args, 10)...) {
			// All flows are walked by their key, from the newest until there are enough.
			// Of open ones the numbers are sorted, which an index has.
			if strings.HasPrefix(step, "SCAN") && (step != "SCAN f" || f.Box != "" || f.Session != "") && (step != "SCAN i" || !f.Open) {
				t.Errorf("%+v: %s", f, step)
			}
			if strings.Contains(step, "TEMP B-TREE") && !f.Open {
				t.Errorf("%+v: %s", f, step)
			}
		}
	}
	sql, args := flowsSQL(FlowFilter{Box: "b", Open: true}, 1, 1)
	if got := strings.Join(plan(sql, append(args, 10)...), "; "); !strings.Contains(got, "SEARCH f USING COVERING INDEX flows_open") {
		t.Errorf("open flows: %s", got)
	}
	if got := plan(namesSQL, 1, 10); len(got) != 1 || !strings.HasPrefix(got[0], "SEARCH names USING INDEX names_asked") {
		t.Errorf("names: %v", got)
	}
}

// BenchmarkFoldCounts is 1,000 flows that are open at once and go on: what each second of a
// busy box brings.
func BenchmarkFoldCounts(b *testing.B) {
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	seq, total := 0, 0
	next := func(a core.Action) []events.Delivered {
		var ops []core.Operation
		seq++
		for i := range 1000 {
			total++
			ops = append(ops, flowOp(fmt.Sprint(i), a, "203.0.113.5:443", core.Detail{"sent": fmt.Sprint(total), "received": fmt.Sprint(2 * total), "packets_out": fmt.Sprint(total / 1000), "packets_in": fmt.Sprint(total / 900), "rtt_us": fmt.Sprint(1000 + total%50)}))
		}
		return []events.Delivered{opsMsg(uint64(seq), batchOf("b", "S", core.Seq(1000*(seq-1)+1), ops...))}
	}
	if err := s.FoldBatches(b.Context(), next(core.ActConnect)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		ds := next(core.ActCount)
		b.StartTimer()
		if err := s.FoldBatches(b.Context(), ds); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(1000*b.N)/b.Elapsed().Seconds(), "ops/s")
}

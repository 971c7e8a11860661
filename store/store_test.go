package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
	"github.com/sandglass/sandglass/events"
)

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fold(t testing.TB, s *Store, ds ...events.Delivered) {
	t.Helper()
	if err := s.FoldBatches(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
}

func digest(t testing.TB, s *Store) string {
	t.Helper()
	d, err := s.Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// allOps reads all operations page by page.
func allOps(t testing.TB, s *Store, q OpsQuery) (ops []core.Operation) {
	t.Helper()
	for {
		page, err := s.Ops(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Ops) != len(page.Cursors) || len(page.Ops) > q.Limit && q.Limit > 0 {
			t.Fatalf("a page of %d operations with %d cursors, limit %d", len(page.Ops), len(page.Cursors), q.Limit)
		}
		ops = append(ops, page.Ops...)
		if !page.More {
			return ops
		}
		if q.Desc {
			if q.Before != 0 && page.Next >= q.Before {
				t.Fatalf("page goes on at %d, not before %d", page.Next, q.Before)
			}
			q.Before = page.Next
		} else {
			if page.Next <= q.After {
				t.Fatalf("page goes on at %d, not after %d", page.Next, q.After)
			}
			q.After = page.Next
		}
	}
}

func ctl(seq uint64, l events.Life) events.Delivered {
	return events.Delivered{Stream: events.StreamCtl, StreamSeq: seq, Life: &l}
}

func opsMsg(seq uint64, b *events.Batch) events.Delivered {
	return events.Delivered{Stream: events.StreamOps, StreamSeq: seq, Batch: b}
}

var t0 = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// batchOf makes a batch of operations, numbered from first on, a second apart.
func batchOf(box string, session core.SessionID, first core.Seq, ops ...core.Operation) *events.Batch {
	b := &events.Batch{Version: events.Version, Session: session, Box: box, Host: "h", First: first, Ops: ops}
	for i := range ops {
		op := &ops[i]
		op.Seq, op.Box, op.Session = first+core.Seq(i), box, session
		if op.Time.IsZero() {
			op.Time = t0.Add(time.Duration(op.Seq) * time.Second)
		}
	}
	return b
}

func read(target string) core.Operation {
	return core.Operation{PID: 2, Proc: "2", Exe: "/bin/cat", Surface: core.FilesRead, Action: core.ActRead, Target: target, Verdict: core.Allowed, Rule: "r"}
}

func TestAnEmptyStoreAnswersEverything(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	if bs, err := s.Boxes(ctx); err != nil || len(bs) != 0 {
		t.Errorf("boxes %v, %v", bs, err)
	}
	if _, err := s.Box(ctx, "x"); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("box: %v", err)
	}
	if vs, err := s.Sessions(ctx, SessionFilter{Box: "x"}); err != nil || len(vs) != 0 {
		t.Errorf("sessions %v, %v", vs, err)
	}
	for name, err := range map[string]error{
		"session":   func() error { _, err := s.Session(ctx, "x"); return err }(),
		"processes": func() error { _, err := s.Processes(ctx, "x"); return err }(),
		"counts":    func() error { _, err := s.Counts(ctx, "x", ""); return err }(),
		"paths":     func() error { _, err := s.Paths(ctx, "x", "/", 10); return err }(),
	} {
		if !errors.Is(err, core.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if page, err := s.Ops(ctx, OpsQuery{Box: "x", Desc: true}); err != nil || len(page.Ops) != 0 || page.More {
		t.Errorf("operations %v, %v", page, err)
	}
	if seq, epoch, err := s.Checkpoint(ctx, events.StreamOps); err != nil || seq != 0 || epoch != "" {
		t.Errorf("checkpoint %d %q, %v", seq, epoch, err)
	}
}

// TestAScriptedSession folds a session from both streams and looks at every view of it.
func TestAScriptedSession(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	s.now = func() time.Time { return t0.Add(100 * time.Second) }
	const id = "01J00000000000000000000001"
	exit := func(pid int, proc core.ProcID, code string) core.Operation {
		return core.Operation{PID: pid, Proc: proc, Exe: "/bin/sh", Surface: core.ProcessLife, Action: core.ActExit, Target: "/bin/sh", Verdict: core.Redirected, Outcome: core.Performed, Detail: core.Detail{"code": code}}
	}
	fold(t, s,
		ctl(1, events.Life{Kind: events.BoxCreate, Time: t0, Host: "h", Box: "b", Policy: "p"}),
		ctl(2, events.Life{Kind: events.SessionBegin, Time: t0.Add(time.Second), Host: "h", Box: "b", Session: id, Policy: "p", Command: []string{"sh", "-c", "x\xff"}, Observe: "full", Net: "none"}),
		ctl(3, events.Life{Kind: events.UserLogin, Time: t0, Host: "h", User: "u"}),
		opsMsg(1, batchOf("b", id, 1,
			core.Operation{Surface: core.SandboxLifecycle, Action: core.ActBegin, Target: "sh -c", Verdict: core.Allowed, Detail: core.Detail{"policy": "p"}},
			core.Operation{PID: 2, Proc: "2", Exe: "sandglass", Surface: core.ProcessLife, Action: core.ActStart, Verdict: core.Redirected},
			core.Operation{PID: 2, Proc: "2", Exe: "sandglass", Surface: core.FilesExec, Action: core.ActExec, Target: "/bin/sh", Verdict: core.Allowed, Detail: core.Detail{"argv": "sh -c x"}},
			read("/etc/passwd"),
			core.Operation{PID: 2, Proc: "2", Exe: "/bin/sh", Surface: core.FilesWrite, Action: core.ActRename, Target: "/a", Verdict: core.Redirected, Detail: core.Detail{"to": "/b"}},
			core.Operation{PID: 2, Proc: "2", Exe: "/bin/sh", Surface: core.FilesWrite, Action: core.ActWrite, Target: "/etc/shadow", Verdict: core.Blocked, Errno: "EACCES", Outcome: core.Refused},
			core.Operation{PID: 3, Proc: "3", Exe: "/bin/sh", Surface: core.ProcessLife, Action: core.ActStart, Verdict: core.Redirected, Detail: core.Detail{"ppid": "2", "pproc": "2"}},
		)))
	v, err := s.Session(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	want := core.SessionView{ID: id, Box: "b", Host: "h", Command: "sh -c x\xff", Policy: "p", Observe: "full", Net: "none", Start: t0.Add(time.Second), LastSeq: 7,
		Counts: core.Counts{Allowed: 3, Redirected: 3, Blocked: 1}, Procs: 2, LiveProc: 2}
	if v != want {
		t.Errorf("running session\n%+v, want\n%+v", v, want)
	}
	if b, err := s.Box(ctx, "b"); err != nil || b.Running != 1 || b.Sessions != 1 || b.Policy != "p" || !b.Created.Equal(t0) || !b.LastUse.Equal(t0.Add(7*time.Second)) || b.Removed ||
		b.Counts != want.Counts || len(b.Spark) != sparkCount || b.Spark[39].Counts.Total() != 4 || b.Spark[40].Counts.Total() != 3 {
		t.Errorf("box %+v, %v", b, err)
	}
	fold(t, s, opsMsg(2, batchOf("b", id, 8, exit(3, "3", "0"), exit(2, "2", "7"),
		core.Operation{Surface: core.SandboxLifecycle, Action: core.ActEnd, Verdict: core.Allowed, Detail: core.Detail{"code": "7"}})),
		ctl(4, events.Life{Kind: events.SessionEnd, Time: t0.Add(20 * time.Second), Host: "h", Box: "b", Session: id, Exit: 7, Last: 12}))
	want.End, want.Exit, want.LastSeq, want.LiveProc = t0.Add(20*time.Second), 7, 10, 0
	want.Counts.Redirected += 2
	want.Counts.Allowed++
	want.Missing = 2 // its end says that there were twelve
	if v, err = s.Session(ctx, id); err != nil || v != want {
		t.Errorf("ended session\n%+v, want\n%+v, %v", v, want, err)
	}
	if vs, err := s.Sessions(ctx, SessionFilter{Running: true}); err != nil || len(vs) != 0 {
		t.Errorf("running: %v, %v", vs, err)
	}
	ps, err := s.Processes(ctx, id)
	wantProcs := []core.ProcessView{
		{Proc: "2", PID: 2, Exe: "/bin/sh", Argv: "sh -c x", Start: t0.Add(2 * time.Second), End: t0.Add(9 * time.Second), Exit: "7", Counts: core.Counts{Allowed: 2, Redirected: 3, Blocked: 1}, Session: id},
		{Proc: "3", Parent: "2", PID: 3, Exe: "/bin/sh", Start: t0.Add(7 * time.Second), End: t0.Add(8 * time.Second), Exit: "0", Counts: core.Counts{Redirected: 2}, Session: id},
	}
	if err != nil || !reflect.DeepEqual(ps, wantProcs) {
		t.Errorf("processes\n%+v, want\n%+v, %v", ps, wantProcs, err)
	}
	paths, err := s.Paths(ctx, "b", "/", 10)
	for i := range paths {
		paths[i].Last = time.Time{}
	}
	wantPaths := []core.PathView{
		{Path: "/a", Action: core.ActRename, Verdict: core.Redirected, Changed: true, Counts: core.Counts{Redirected: 1}},
		{Path: "/b", Action: core.ActRename, Verdict: core.Redirected, Changed: true},
		{Path: "/bin/sh", Action: core.ActExec, Verdict: core.Allowed, Counts: core.Counts{Allowed: 1}},
		{Path: "/etc/passwd", Action: core.ActRead, Verdict: core.Allowed, Counts: core.Counts{Allowed: 1}},
		{Path: "/etc/shadow", Action: core.ActWrite, Counts: core.Counts{Blocked: 1}},
	}
	if err != nil || !reflect.DeepEqual(paths, wantPaths) {
		t.Errorf("paths\n%+v, want\n%+v, %v", paths, wantPaths, err)
	}
	for _, arg := range []struct{ box, session string }{{"b", ""}, {"", id}, {"", ""}} {
		cs, err := s.Counts(ctx, arg.box, core.SessionID(arg.session))
		if err != nil || len(cs) != 8 || cs[0].Surface != core.FilesExec {
			t.Errorf("counts of %v: %+v, %v", arg, cs, err)
		}
		var sum core.Counts
		for _, c := range cs {
			sum.AddCounts(c.Counts)
		}
		if sum != want.Counts {
			t.Errorf("counts of %v add up to %+v, not %+v", arg, sum, want.Counts)
		}
	}
	fold(t, s, ctl(5, events.Life{Kind: events.BoxRemove, Time: t0.Add(30 * time.Second), Host: "h", Box: "b"}))
	if b, err := s.Box(ctx, "b"); err != nil || !b.Removed || b.Running != 0 {
		t.Errorf("removed box %+v, %v", b, err)
	}
}

// history makes batches of a few sessions in a few boxes, as one stream has them, and the
// operations in them.
func history(r random, sessions, batches int) (bs []*events.Batch, all []core.Operation) {
	type run struct {
		id   core.SessionID
		box  string
		next core.Seq
	}
	var runs []*run
	for i := range sessions {
		runs = append(runs, &run{core.SessionID(fmt.Sprintf("01J%023d", i)), fmt.Sprintf("box%d", i%3), 1})
	}
	for range batches {
		s := runs[r.IntN(len(runs))]
		var ops []core.Operation
		for range 1 + r.IntN(12) {
			ops = append(ops, r.realistic())
		}
		b := batchOf(s.box, s.id, s.next, ops...)
		s.next += core.Seq(len(ops))
		bs, all = append(bs, b), append(all, b.Ops...)
	}
	return bs, all
}

// realistic makes an operation of real surfaces and hostile strings.
func (r random) realistic() core.Operation {
	op := r.operation()
	op.Time = t0.Add(time.Duration(r.IntN(1e9)) * 100)
	op.Proc = core.ProcID(r.pick([]string{"", "2", "3", "3.1", "x\xff"}))
	op.Verdict, op.Outcome = core.Verdict(r.IntN(3)), core.Outcome(r.IntN(3))
	op.Rule, op.Errno = r.pick([]string{"overlay", "x\xff"}), r.pick([]string{"", "", "EPERM"})
	surfaces := core.Surfaces()
	op.Surface = surfaces[r.IntN(len(surfaces))]
	op.Action = core.Action(r.pick([]string{"read", "write", "create", "rename", "exec", "start", "exit", "begin", "end"}))
	if r.IntN(2) == 0 {
		op.Target = "/" + op.Target
	}
	if r.IntN(3) == 0 {
		return r.network(op)
	}
	if r.IntN(4) == 0 {
		op.Detail = core.Detail{"to": "/" + r.text(), "pproc": "2", "code": r.pick([]string{"0", "1", "x"}), "argv": r.text(), "policy": r.text()}
	}
	return op
}

// network makes an operation of a flow, or a question for a name, of op.
func (r random) network(op core.Operation) core.Operation {
	if r.IntN(4) == 0 {
		op.Surface, op.Action = core.NetDNS, core.ActResolve
		op.Target = r.pick([]string{"a.example", "b.example", "c.example", "x\xff", op.Target})
		op.Detail = core.Detail{"type": r.pick([]string{"A", "AAAA", "TXT", r.text()}), "rcode": r.pick([]string{"NOERROR", "NXDOMAIN"})}
		return op
	}
	op.Surface = []core.Surface{core.NetOut, core.IPCLoopback, core.NetIn}[r.IntN(3)]
	op.Action = []core.Action{core.ActConnect, core.ActSend, core.ActAccept, core.ActIdentify, core.ActCount, core.ActCount, core.ActCount, core.ActClose, core.ActAsk}[r.IntN(9)]
	op.Detail = core.Detail{"flow": fmt.Sprint(1 + r.IntN(40))}
	for _, k := range []string{"sent", "received", "packets_out", "packets_in", "rtt_us"} {
		if r.IntN(2) == 0 {
			op.Detail[k] = r.pick([]string{fmt.Sprint(r.IntN(1e6)), fmt.Sprint(r.IntN(100)), "-1", "x", ""})
		}
	}
	for _, k := range []string{"proto", "name", "by", "alpn", "cert", "reason", "answer"} {
		if r.IntN(4) == 0 {
			op.Detail[k] = r.text()
		}
	}
	return op
}

func split(b *events.Batch, at int) (x, y *events.Batch) {
	l, m := *b, *b
	l.Ops, m.Ops, m.First = b.Ops[:at], b.Ops[at:], b.First+core.Seq(at)
	return &l, &m
}

// TestExactlyOnce folds one history in many ways - in portions of any size, with messages
// that come again, batches that overlap, and restarts in between - and finds the same
// content each time: what a plain fold gives, and what the operations themselves say.
func TestExactlyOnce(t *testing.T) {
	r := random{newRand(7)}
	batches, all := history(r, 4, 60)
	var lives []events.Life
	for i, b := range batches[:10] {
		lives = append(lives, events.Life{Kind: []events.LifeKind{events.BoxCreate, events.SessionBegin, events.SessionEnd, events.BoxRemove}[i%4], Time: t0.Add(time.Duration(i) * time.Minute),
			Host: b.Host, Box: b.Box, Session: b.Session, Command: []string{r.text()}, Policy: "p", Exit: i})
	}
	plain := open(t, t.TempDir())
	for i, b := range batches {
		fold(t, plain, opsMsg(uint64(i+1), b))
	}
	for i, l := range lives {
		fold(t, plain, ctl(uint64(i+1), l))
	}
	want := digest(t, plain)
	got := allOps(t, plain, OpsQuery{Limit: 50})
	if !reflect.DeepEqual(got, all) {
		for i := range all {
			if !reflect.DeepEqual(got[i], all[i]) {
				t.Fatalf("operation %d came back as\n%#v, want\n%#v", i, got[i], all[i])
			}
		}
	}
	for round := range 12 {
		var ds []events.Delivered
		var opsSeq, ctlSeq uint64
		add := func(b *events.Batch) { opsSeq++; ds = append(ds, opsMsg(opsSeq, b)) }
		left := lives
		for i, b := range batches {
			for len(left) > 0 && r.IntN(3) == 0 {
				ctlSeq++
				ds, left = append(ds, ctl(ctlSeq, left[0])), left[1:]
			}
			switch r.IntN(5) {
			case 0: // twice in the stream
				add(b)
				add(b)
			case 1: // in two parts, the first of which comes again with the whole
				x, y := split(b, r.IntN(len(b.Ops)))
				if len(x.Ops) > 0 {
					add(x)
				}
				add(b)
				add(y)
			case 2: // an old one again
				add(batches[r.IntN(i+1)])
				add(b)
			default:
				add(b)
			}
		}
		for _, l := range left {
			ctlSeq++
			ds = append(ds, ctl(ctlSeq, l))
		}
		dir := t.TempDir()
		s := open(t, dir)
		for at := 0; at < len(ds); {
			n := 1 + r.IntN(20)
			fold(t, s, ds[at:min(len(ds), at+n)]...)
			switch r.IntN(4) {
			case 0: // delivered again
				fold(t, s, ds[max(0, at-5):min(len(ds), at+n)]...)
			case 1: // the process starts anew
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, dir)
			case 2: // a transaction that fails changes nothing
				bad := opsMsg(1<<40, &events.Batch{Session: "s", Box: "b", First: 1})
				if err := s.FoldBatches(t.Context(), append(slices.Clone(ds[at:]), bad)); err == nil {
					t.Fatal("a batch without operations was folded")
				}
			}
			at += n
		}
		if d := digest(t, s); d != want {
			t.Fatalf("round %d: another content than the plain fold's", round)
		}
		if n := len(allOps(t, s, OpsQuery{Desc: true, Limit: 1000})); n != len(all) {
			t.Fatalf("round %d: %d operations, want %d", round, n, len(all))
		}
		if err := s.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
		fold(t, s, ds...)
		if d := digest(t, s); d != want {
			t.Fatalf("round %d: another content after a rebuild", round)
		}
	}
}

// TestAFoldIsTheFoldOfCore compares the projections with core's own fold of the session.
func TestAFoldIsTheFoldOfCore(t *testing.T) {
	batches, _ := history(random{newRand(8)}, 2, 60)
	s := open(t, t.TempDir())
	folds := map[core.SessionID]*core.SessionFold{}
	for i, b := range batches {
		fold(t, s, opsMsg(uint64(i+1), b))
		f := folds[b.Session]
		if f == nil {
			f = &core.SessionFold{}
			folds[b.Session] = f
		}
		for j := range b.Ops {
			f.Fold(&b.Ops[j])
		}
	}
	for id, f := range folds {
		ps, err := s.Processes(t.Context(), id)
		if err != nil || !reflect.DeepEqual(ps, f.Processes()) {
			t.Errorf("processes of %s\n%+v, want\n%+v, %v", id, ps, f.Processes(), err)
		}
		v, err := s.Session(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		w := f.View
		want := f.Flows()
		page, err := s.Flows(t.Context(), FlowFilter{Session: id})
		byNumber := func(a, b core.FlowView) int { return strings.Compare(a.Flow, b.Flow) }
		slices.SortFunc(want, byNumber)
		slices.SortFunc(page.Flows, byNumber)
		if err != nil || len(want) < 20 || !reflect.DeepEqual(page.Flows, want) {
			t.Errorf("flows of %s\n%+v, want\n%+v, %v", id, page.Flows, want, err)
		}
		if v.Counts != w.Counts || v.Procs != w.Procs || v.Command != w.Command || v.End != w.End || v.Exit != w.Exit || v.Policy != w.Policy {
			t.Errorf("session %s\n%+v, want\n%+v", id, v, w)
		}
	}
}

func TestAGapIsDamageUntilItIsFilled(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	const id = "01J00000000000000000000001"
	want := func(last core.Seq, missing uint64, gaps ...[2]core.Seq) {
		t.Helper()
		v, err := s.Session(ctx, id)
		if err != nil || v.LastSeq != last || v.Missing != missing || v.Counts.Total() != uint64(last)-missing {
			t.Errorf("session %+v, %v; want last %d, missing %d", v, err, last, missing)
		}
		if gs, err := s.Gaps(ctx, id); err != nil || !slices.Equal(gs, gaps) {
			t.Errorf("gaps %v, want %v, %v", gs, gaps, err)
		}
	}
	fold(t, s, opsMsg(1, batchOf("b", id, 3, read("/3"), read("/4"))))
	want(4, 2, [2]core.Seq{1, 2})
	fold(t, s, opsMsg(2, batchOf("b", id, 10, read("/10"))))
	want(10, 7, [2]core.Seq{1, 2}, [2]core.Seq{5, 9})
	fold(t, s, opsMsg(3, batchOf("b", id, 6, read("/6"), read("/7"))))
	want(10, 5, [2]core.Seq{1, 2}, [2]core.Seq{5, 5}, [2]core.Seq{8, 9})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.dir)
	var ops []core.Operation
	for i := range 11 {
		ops = append(ops, read(fmt.Sprintf("/%d", i+1)))
	}
	fold(t, s, opsMsg(4, batchOf("b", id, 1, ops...)))
	want(11, 0)
	seen := map[core.Seq]string{}
	for _, op := range allOps(t, s, OpsQuery{Session: id}) {
		if seen[op.Seq] != "" || op.Target != fmt.Sprintf("/%d", op.Seq) {
			t.Errorf("operation %d is %q, and was %q", op.Seq, op.Target, seen[op.Seq])
		}
		seen[op.Seq] = op.Target
	}
	if len(seen) != 11 {
		t.Errorf("%d operations", len(seen))
	}
}

// TestStringsComeBackAsTheyWere folds strings that a hostile program may choose.
func TestStringsComeBackAsTheyWere(t *testing.T) {
	s := open(t, t.TempDir())
	strs := []string{"", "a", "\x00", "a\x00b", "\xff\xfe", "é", "é"[:1], "\n\r\x1b[2J", "'; DROP TABLE ops; --", "\"", "%_\\", "\u202e", "\ufffd", "0", "-1", "1e3", " 1 ", "\xed\xa0\x80",
		strings.Repeat("x", 4096), strings.Repeat("\xff", 4096), "/" + strings.Repeat("é/", 2000)}
	var ops []core.Operation
	for i, x := range strs {
		ops = append(ops, core.Operation{PID: i, Proc: core.ProcID(x), Exe: x, Surface: core.Surface(x), Action: core.Action(x), Target: x, Rule: x, Errno: x, Detail: core.Detail{"k": x, "a": x}})
		ops = append(ops, read("/"+x))
	}
	fold(t, s, opsMsg(1, batchOf("b", "S", 1, ops...)))
	got := allOps(t, s, OpsQuery{})
	if !reflect.DeepEqual(got, ops) {
		for i := range ops {
			if !reflect.DeepEqual(got[i], ops[i]) {
				t.Errorf("operation %d came back as\n%#v, want\n%#v", i, got[i], ops[i])
			}
		}
	}
	for _, x := range strs {
		ps, err := s.Paths(t.Context(), "b", "/"+x, 1)
		if err != nil || len(ps) != 1 || ps[0].Path != "/"+x && !strings.HasPrefix(ps[0].Path, "/"+x) {
			t.Errorf("path %q: %v, %v", x, ps, err)
		}
	}
}

// TestQueriesFindWhatThePredicateFinds holds every way in which a page is searched to the
// predicate: all queries, both directions, pages of any size, all filters.
func TestQueriesFindWhatThePredicateFinds(t *testing.T) {
	r := random{newRand(9)}
	batches, all := history(r, 5, 300)
	s := open(t, t.TempDir())
	for i, b := range batches {
		fold(t, s, opsMsg(uint64(i+1), b))
	}
	some := 0
	for n := range 160 {
		text := r.query(all, 2)
		if n%2 == 0 { // what pages ask
			op := &all[r.IntN(len(all))]
			text = r.pick([]string{"", "verdict:blocked ", "leak:true ", "surface:files.* ", "session:01J00000000000000000000001 "}) + r.pick([]string{
				"target:" + query.Quote(op.Target), query.Quote(op.Target), "exe:" + query.Quote(op.Exe), "proc:" + query.Quote(string(op.Proc)), "action:" + query.Quote(string(op.Action)),
				"since:" + op.Time.Format(time.RFC3339Nano), "until:" + op.Time.Format(time.RFC3339Nano), "target:" + query.Quote(op.Target) + "*"})
		}
		q, err := query.Parse(text, compileOptions)
		if err != nil {
			continue // an empty word
		}
		oq := OpsQuery{Query: q, Limit: 50 + r.IntN(500), Desc: r.IntN(2) == 0}
		if r.IntN(3) == 0 {
			oq.Box = r.pick([]string{"box0", "box1", "none"})
		}
		if r.IntN(3) == 0 {
			oq.Session = core.SessionID(fmt.Sprintf("01J%023d", r.IntN(6)))
		}
		if r.IntN(5) == 0 {
			oq.Patience, oq.Limit = 1, 40
		}
		var want []core.Operation
		for i := range all {
			if q.Match(&all[i]) && (oq.Box == "" || all[i].Box == oq.Box) && (oq.Session == "" || all[i].Session == oq.Session) {
				want = append(want, all[i])
			}
		}
		if oq.Desc {
			slices.Reverse(want)
		}
		got := allOps(t, s, oq)
		if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Fatalf("%s, %+v: %d operations, want %d", q, oq, len(got), len(want))
		}
		if len(want) > 0 {
			some++
		}
	}
	if some < 50 {
		t.Errorf("only %d queries found anything", some)
	}
}

// TestWhatIsNotIndexedYetIsFound folds more new targets than a transaction indexes.
func TestWhatIsNotIndexedYetIsFound(t *testing.T) {
	s := open(t, t.TempDir())
	const n = 3 * idleOps
	var ds []events.Delivered
	for first := 1; first <= n; first += 1024 {
		var ops []core.Operation
		for i := range 1024 {
			ops = append(ops, read(fmt.Sprintf("/tree/file-%d.txt", first+i)))
		}
		ds = append(ds, opsMsg(uint64(first), batchOf("b", "S", core.Seq(first), ops...)))
	}
	fold(t, s, ds...)
	find := func() {
		t.Helper()
		for _, text := range []string{"FILE-1.t", "file-6143.txt", "file-6144"} {
			q, err := query.Parse(text, query.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(allOps(t, s, OpsQuery{Query: q})); n != 1 {
				t.Errorf("%s: %d operations", text, n)
			}
		}
	}
	if s.folder.indexed != indexAlways {
		t.Errorf("%d targets are indexed", s.folder.indexed)
	}
	find()
	for more := true; more; {
		var err error
		if more, err = s.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		find()
	}
	if s.folder.indexed != n {
		t.Errorf("%d targets are indexed in the end", s.folder.indexed)
	}
}

func TestCursorsSurviveARebuild(t *testing.T) {
	batches, _ := history(random{newRand(10)}, 2, 20)
	s := open(t, t.TempDir())
	for i, b := range batches {
		fold(t, s, opsMsg(uint64(i+1), b))
	}
	before, err := s.Ops(t.Context(), OpsQuery{Limit: MaxPage})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	var ds []events.Delivered
	for i, b := range batches {
		ds = append(ds, opsMsg(uint64(i+1), b))
	}
	fold(t, s, ds...)
	after, err := s.Ops(t.Context(), OpsQuery{Limit: MaxPage})
	if err != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("other pages or cursors after a rebuild, %v", err)
	}
}

// TestAStreamThatLostMessagesBeginsAnEpoch is a power loss that JetStream's disk did not
// survive whole: numbers that were folded are given out again.
func TestAStreamThatLostMessagesBeginsAnEpoch(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	begin := func(last uint64, epoch string) (uint64, []Loss) {
		t.Helper()
		from, lost, err := s.Begin(ctx, map[string]events.StreamState{events.StreamOps: {First: 1, Last: last, Epoch: epoch}})
		if err != nil {
			t.Fatal(err)
		}
		return from[events.StreamOps], lost
	}
	if from, lost := begin(0, "e1"); from != 0 || lost != nil {
		t.Fatalf("from %d, lost %v", from, lost)
	}
	for i := range 5 {
		fold(t, s, opsMsg(uint64(i+1), batchOf("b", "S1", core.Seq(i+1), read(fmt.Sprint("/", i)))))
	}
	if from, lost := begin(7, "e1"); from != 5 || lost != nil {
		t.Fatalf("from %d, lost %v", from, lost)
	}
	from, lost := begin(3, "e1")
	if from != 0 || len(lost) != 1 || lost[0].Folded != 5 || lost[0].Last != 3 || !strings.Contains(lost[0].String(), "lost messages") {
		t.Fatalf("from %d, lost %v", from, lost)
	}
	if seq, epoch, err := s.Checkpoint(ctx, events.StreamOps); err != nil || seq != 0 || epoch != "e1+1" {
		t.Fatalf("checkpoint %d %q, %v", seq, epoch, err)
	}
	// What is left of the stream comes again, then what another session did.
	for i := range 3 {
		fold(t, s, opsMsg(uint64(i+1), batchOf("b", "S1", core.Seq(i+1), read(fmt.Sprint("/", i)))))
	}
	fold(t, s, opsMsg(4, batchOf("b", "S2", 1, read("/new"))))
	var targets []string
	for _, op := range allOps(t, s, OpsQuery{}) {
		targets = append(targets, op.Target)
	}
	if want := []string{"/0", "/1", "/2", "/3", "/4", "/new"}; !slices.Equal(targets, want) {
		t.Errorf("operations %v, want %v", targets, want)
	}
	if from, lost := begin(9, "e2"); from != 0 || len(lost) != 1 || !strings.Contains(lost[0].String(), "another one") {
		t.Errorf("from %d, lost %v", from, lost)
	}
}

// TestAReaderDoesNotWaitForTheWriter reads in the middle of a transaction.
func TestAReaderDoesNotWaitForTheWriter(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	fold(t, s, opsMsg(1, batchOf("b", "S", 1, read("/1"))))
	err := s.write(ctx, func(f *folder) error {
		return f.transact(ctx, func() error {
			if err := f.message(&events.Delivered{Stream: events.StreamOps, StreamSeq: 2, Batch: batchOf("b", "S", 2, read("/2"))}); err != nil {
				return err
			}
			if err := f.flush(); err != nil {
				return err
			}
			for range 2 * readers {
				if page, err := s.Ops(ctx, OpsQuery{}); err != nil || len(page.Ops) != 1 {
					t.Errorf("while a transaction is open: %d operations, %v", len(page.Ops), err)
				}
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if page, err := s.Ops(ctx, OpsQuery{}); err != nil || len(page.Ops) != 2 {
		t.Errorf("after it: %d operations, %v", len(page.Ops), err)
	}
}

// TestTheWriterDoesNotWaitForAReader commits while a read is under way, which keeps the
// content that it began with.
func TestTheWriterDoesNotWaitForAReader(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	fold(t, s, opsMsg(1, batchOf("b", "S", 1, read("/1"))))
	err := s.view(ctx, func(tx *sql.Tx) error {
		for i := range 3 {
			var n int
			if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM ops").Scan(&n); err != nil || n != 1 {
				t.Errorf("%d operations in the snapshot, %v", n, err)
			}
			fold(t, s, opsMsg(uint64(i+2), batchOf("b", "S", core.Seq(i+2), read("/x"))))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(allOps(t, s, OpsQuery{})); n != 4 {
		t.Errorf("%d operations", n)
	}
}

func TestTwoProcessesMayRead(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir)
	fold(t, w, opsMsg(1, batchOf("b", "S", 1, read("/1"))))
	r := open(t, dir)
	fold(t, w, opsMsg(2, batchOf("b", "S", 2, read("/2"))))
	if n := len(allOps(t, r, OpsQuery{})); n != 2 {
		t.Errorf("%d operations", n)
	}
	r.wait = 0
	if err := r.FoldBatches(t.Context(), []events.Delivered{opsMsg(3, batchOf("b", "S", 3, read("/3")))}); !errors.Is(err, ErrBusy) {
		t.Errorf("two stores wrote: %v", err)
	}
	if err := w.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	fold(t, w, opsMsg(1, batchOf("b", "S", 1, read("/1"))))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir)
	if n := len(allOps(t, r, OpsQuery{})); n != 1 {
		t.Errorf("%d operations after a reset", n)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	fold(t, r, opsMsg(2, batchOf("b", "S", 2, read("/2"))))
	if n := len(allOps(t, r, OpsQuery{})); n != 2 {
		t.Errorf("%d operations", n)
	}
}

func TestADeadlineEndsARead(t *testing.T) {
	s := open(t, t.TempDir())
	batches, _ := history(random{newRand(11)}, 2, 50)
	for i, b := range batches {
		fold(t, s, opsMsg(uint64(i+1), b))
	}
	ctx, stop := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer stop()
	if _, err := s.Ops(ctx, OpsQuery{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a deadline in the past: %v", err)
	}
	// A read that would take for ever ends with its context.
	ctx, stop = context.WithCancel(t.Context())
	began := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- s.view(ctx, func(tx *sql.Tx) error {
			close(began)
			var n int
			return tx.QueryRowContext(ctx, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n").Scan(&n)
		})
	}()
	<-began
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a read that was cancelled: %v", err)
	}
	if _, err := s.Boxes(t.Context()); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestADamagedDatabaseIsMovedAsideAndMadeAnew(t *testing.T) {
	batches, _ := history(random{newRand(12)}, 3, 400)
	var ds []events.Delivered
	for i, b := range batches {
		ds = append(ds, opsMsg(uint64(i+1), b))
	}
	garbage := func(from, to int64) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if to == 0 {
				to = fileSize(t, path)
			}
			r := newRand(1)
			b := make([]byte, to-from)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			if _, err := f.WriteAt(b, from); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		do   func(t *testing.T, path string)
	}{
		{"it is no database", garbage(0, 100)},
		{"its schema is garbage", garbage(100, 8192)},
		{"everything but its head is garbage", garbage(4096, 0)},
		{"it is cut short", func(t *testing.T, path string) {
			if err := os.Truncate(path, fileSize(t, path)/2/4096*4096); err != nil {
				t.Fatal(err)
			}
		}},
		{"it is an empty file", func(t *testing.T, path string) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			fold(t, s, ds...)
			want := digest(t, s)
			if s.Recovered() != "" {
				t.Fatalf("recovered %q", s.Recovered())
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.do(t, s.path())
			s = open(t, dir)
			seq, _, err := s.Checkpoint(t.Context(), events.StreamOps)
			if err != nil || seq != 0 {
				t.Fatalf("checkpoint %d, %v", seq, err)
			}
			if aside := s.Recovered(); aside == "" && c.name != "it is an empty file" {
				t.Error("nothing was recovered")
			} else if aside != "" {
				if _, err := os.Stat(aside); err != nil || filepath.Dir(aside) != dir {
					t.Errorf("moved aside to %s: %v", aside, err)
				}
			}
			fold(t, s, ds...)
			if d := digest(t, s); d != want {
				t.Error("another content after it was made anew")
			}
		})
	}
}

// TestDamageThatAReaderMeets is found by a read long after the database was opened, in
// the process that writes and in another one.
func TestDamageThatAReaderMeets(t *testing.T) {
	batches, _ := history(random{newRand(13)}, 3, 400)
	var ds []events.Delivered
	for i, b := range batches {
		ds = append(ds, opsMsg(uint64(i+1), b))
	}
	for _, other := range []bool{false, true} {
		t.Run(fmt.Sprintf("in another process: %v", other), func(t *testing.T) {
			dir := t.TempDir()
			w := open(t, dir)
			fold(t, w, ds...)
			want := digest(t, w)
			if _, err := w.folder.exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
				t.Fatal(err)
			}
			r := w
			if other {
				r = open(t, dir)
			}
			f, err := os.OpenFile(w.path(), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			size := fileSize(t, w.path())
			for at := int64(8 * 4096); at < size; at += 4096 {
				if _, err := f.WriteAt(make([]byte, 4096), at); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Digest(t.Context()); err == nil {
				t.Fatal("the damage was not noticed")
			}
			if err := w.FoldBatches(t.Context(), ds); !errors.Is(err, ErrRestart) {
				t.Fatalf("a fold after damage was found: %v", err)
			}
			if err := w.FoldBatches(t.Context(), ds); !errors.Is(err, ErrRestart) {
				t.Fatalf("a fold that did not ask for the checkpoint: %v", err)
			}
			if seq, _, err := w.Checkpoint(t.Context(), events.StreamOps); err != nil || seq != 0 {
				t.Fatalf("checkpoint %d, %v", seq, err)
			}
			if w.Recovered() == "" {
				t.Error("nothing was recovered")
			}
			fold(t, w, ds...)
			if d := digest(t, w); d != want {
				t.Error("another content after it was made anew")
			}
		})
	}
}

func TestAnotherVersionIsThrownAway(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	fold(t, s, opsMsg(1, batchOf("b", "S", 1, read("/1"))))
	other := &Store{dir: dir, now: time.Now, script: s.script, version: s.version ^ 2}
	if err := other.open(); !errors.Is(err, ErrBusy) {
		t.Errorf("a database that another process writes was thrown away: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := other.open(); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if seq, _, err := other.Checkpoint(t.Context(), events.StreamOps); err != nil || seq != 0 {
		t.Errorf("checkpoint %d, %v", seq, err)
	}
	if other.Recovered() != "" {
		t.Errorf("a sound database was moved aside: %s", other.Recovered())
	}
}

func TestFilesAreTheirOwnersAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b?c#d%e[f]*")
	s := open(t, dir)
	fold(t, s, opsMsg(1, batchOf("b", "S", 1, read("/1"))))
	if n := len(allOps(t, s, OpsQuery{})); n != 1 {
		t.Errorf("%d operations", n)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		fi, err := f.Info()
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f.Name(), fi.Mode(), err)
		}
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(20261123, seed)) }

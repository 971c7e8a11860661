package web

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

// memory is a source that holds all in slices: what the pages are tested against.
type memory struct {
	mu       sync.Mutex
	boxes    []core.BoxView
	sessions []core.SessionView
	procs    []core.ProcessView
	ops      []core.Operation // the cursor is the index plus one
	flows    []core.FlowView  // as they were opened; the same
	names    []core.NameView
	err      error // that every read ends in
}

func (m *memory) lock() (func(), error) { m.mu.Lock(); return m.mu.Unlock, m.err }

func (m *memory) Boxes(context.Context) ([]core.BoxView, error) {
	unlock, err := m.lock()
	defer unlock()
	return slices.Clone(m.boxes), err
}

func (m *memory) Box(_ context.Context, name string) (core.BoxView, error) {
	unlock, err := m.lock()
	defer unlock()
	if err != nil {
		return core.BoxView{}, err
	}
	for _, b := range m.boxes {
		if b.Name == name {
			return b, nil
		}
	}
	return core.BoxView{}, fmt.Errorf("box %q: %w", name, core.ErrNotFound)
}

func (m *memory) Sessions(_ context.Context, box string, limit int) ([]core.SessionView, error) {
	unlock, err := m.lock()
	defer unlock()
	var found []core.SessionView
	for _, s := range slices.Backward(m.sessions) {
		if s.Box == box && len(found) < limit {
			found = append(found, s)
		}
	}
	return found, err
}

func (m *memory) Session(_ context.Context, id core.SessionID) (core.SessionView, error) {
	unlock, err := m.lock()
	defer unlock()
	for _, s := range m.sessions {
		if s.ID == id {
			return s, err
		}
	}
	return core.SessionView{}, fmt.Errorf("session %q: %w", id, core.ErrNotFound)
}

func (m *memory) Processes(_ context.Context, session core.SessionID) ([]core.ProcessView, error) {
	unlock, err := m.lock()
	defer unlock()
	var found []core.ProcessView
	for _, p := range m.procs {
		if p.Session == session {
			found = append(found, p)
		}
	}
	return found, err
}

func (m *memory) Ops(_ context.Context, q *query.Query, box string, session core.SessionID, before, after core.OpCursor, limit int) (core.OpsPage, error) {
	unlock, err := m.lock()
	defer unlock()
	var p core.OpsPage
	take := func(i int) bool {
		op := m.ops[i]
		c := core.OpCursor(i + 1)
		if op.Box != box || session != "" && op.Session != session || !q.Match(&op) || before != 0 && c >= before || after != 0 && c <= after {
			return true
		}
		if len(p.Ops) == limit {
			p.More = true
			return false
		}
		p.Ops, p.Cursors = append(p.Ops, op), append(p.Cursors, c)
		return true
	}
	if after != 0 {
		for i := 0; i < len(m.ops) && take(i); i++ {
		}
		slices.Reverse(p.Ops)
		slices.Reverse(p.Cursors)
		return p, err
	}
	for i := len(m.ops) - 1; i >= 0 && take(i); i-- {
	}
	return p, err
}

func (m *memory) Counts(_ context.Context, box string, session core.SessionID) ([]core.SurfaceCount, error) {
	unlock, err := m.lock()
	defer unlock()
	var counts []core.SurfaceCount
	for i := range m.ops {
		op := &m.ops[i]
		if op.Box != box || session != "" && op.Session != session {
			continue
		}
		at := slices.IndexFunc(counts, func(c core.SurfaceCount) bool { return c.Surface == op.Surface && c.Action == op.Action })
		if at < 0 {
			at, counts = len(counts), append(counts, core.SurfaceCount{Surface: op.Surface, Action: op.Action})
		}
		counts[at].Counts.Add(op)
	}
	return counts, err
}

func (m *memory) Flows(_ context.Context, box string, session core.SessionID, open bool, before core.OpCursor, limit int) (core.FlowsPage, error) {
	unlock, err := m.lock()
	defer unlock()
	var p core.FlowsPage
	for i, f := range slices.Backward(m.flows) {
		c := core.OpCursor(i + 1)
		if f.Box != box || session != "" && f.Session != session || open && !f.End.IsZero() || before != 0 && c >= before {
			continue
		}
		if len(p.Flows) == limit {
			p.More = true
			break
		}
		p.Flows, p.Cursors = append(p.Flows, f), append(p.Cursors, c)
	}
	return p, err
}

func (m *memory) FlowTotals(_ context.Context, box string, session core.SessionID) (t core.FlowTotals, err error) {
	unlock, err := m.lock()
	defer unlock()
	for _, f := range m.flows {
		if f.Box != box || session != "" && f.Session != session {
			continue
		}
		t.Flows++
		if f.End.IsZero() {
			t.Open++
		}
		t.Sent, t.Received = t.Sent+f.Sent, t.Received+f.Received
	}
	return t, err
}

func (m *memory) Names(_ context.Context, box string, limit int) (ns []core.NameView, all int, err error) {
	unlock, err := m.lock()
	defer unlock()
	for _, n := range m.names {
		if n.Box != box {
			continue
		}
		if all++; len(ns) < limit {
			ns = append(ns, n)
		}
	}
	slices.SortStableFunc(ns, func(a, b core.NameView) int { return b.Last.Compare(a.Last) })
	return ns, all, err
}

// add records an operation as the projections would.
func (m *memory) add(op core.Operation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ops = append(m.ops, op)
	if n := op.Flow(); n != "" {
		i := slices.IndexFunc(m.flows, func(f core.FlowView) bool { return f.Session == op.Session && f.Flow == n })
		if i < 0 {
			i, m.flows = len(m.flows), append(m.flows, core.FlowView{})
		}
		m.flows[i].Fold(&op)
	}
	if op.Asks() {
		i := slices.IndexFunc(m.names, func(n core.NameView) bool { return n.Box == op.Box && n.Name == op.Target })
		if i < 0 {
			i, m.names = len(m.names), append(m.names, core.NameView{})
		}
		m.names[i].Fold(&op)
	}
	for i := range m.boxes {
		if m.boxes[i].Name == op.Box {
			m.boxes[i].Counts.Add(&op)
			m.boxes[i].LastUse = op.Time
		}
	}
	for i := range m.sessions {
		if m.sessions[i].ID == op.Session {
			m.sessions[i].Counts.Add(&op)
			m.sessions[i].LastSeq = op.Seq
		}
	}
	for i := range m.procs {
		if m.procs[i].Session == op.Session && m.procs[i].Proc == op.Proc {
			m.procs[i].Counts.Add(&op)
		}
	}
}

// demoSession is the session of demo's box "default".
const demoSession core.SessionID = "01KAR5Y0Z2N3W4X5Y6Z7A8B9CD"

// demo is a source with a box in which a package was installed that did more than it
// should have, and other boxes around it.
func demo() *memory {
	start := time.Now().Add(-7 * time.Minute).Truncate(time.Second)
	m := &memory{}
	spark := func(seed uint64, n int) []core.Bucket {
		var bs []core.Bucket
		for i := range n {
			x := (uint64(i)*2654435761 + seed*97) % 41
			bs = append(bs, core.Bucket{Start: start.Add(time.Duration(i) * 7 * time.Second), Counts: core.Counts{Allowed: x * 4, Redirected: x % 13, Blocked: x / 37}})
		}
		return bs
	}
	m.boxes = []core.BoxView{
		{Name: "default", Policy: core.DefaultPolicy, Created: start.Add(-time.Hour), LastUse: start, Sessions: 2, Running: 1, Spark: spark(3, 60)},
		{Name: "build", Policy: core.DefaultPolicy, Created: start.Add(-50 * time.Hour), LastUse: start.Add(-40 * time.Minute), Sessions: 14,
			Counts: core.Counts{Allowed: 1284201, Redirected: 92011}, Spark: spark(11, 60)},
		{Name: "cis-2013-comparison", Policy: "cis-2013", Created: start.Add(-50 * time.Hour), LastUse: start.Add(-26 * time.Hour), Sessions: 3,
			Counts: core.Counts{Allowed: 5120, Redirected: 311, Blocked: 12, Leaks: 7}},
		{Name: "a-name-that-is-as-long-as-a-name-of-a-box-may-be.0123456789-abcd", Policy: "restricted", LastUse: start.Add(-80 * time.Hour), Sessions: 1, Counts: core.Counts{Allowed: 3}},
		{Name: "old", Policy: core.DefaultPolicy, LastUse: start.Add(-300 * time.Hour), Sessions: 4, Removed: true, Counts: core.Counts{Allowed: 3100, Redirected: 20, Blocked: 1}},
	}
	m.sessions = []core.SessionView{
		{ID: "01KAR500000000000000000000", Box: "default", Command: "python3 -m venv env", Start: start.Add(-time.Hour), End: start.Add(-59 * time.Minute), Exit: 1, Counts: core.Counts{Allowed: 4120, Redirected: 900}, Procs: 3},
		{ID: demoSession, Box: "default", Command: "npm install ./left-pad-1.3.0.tgz --foreground-scripts", Policy: core.DefaultPolicy, Start: start, Procs: 44, LiveProc: 3},
	}
	proc := func(id, parent string, pid int, exe, argv, exit string) {
		p := core.ProcessView{Proc: core.ProcID(id), Parent: core.ProcID(parent), PID: pid, Exe: exe, Argv: argv, Start: start, Exit: exit, Session: demoSession}
		if exit != "" {
			p.End = start.Add(time.Second)
		}
		m.procs = append(m.procs, p)
	}
	proc("2", "", 2, "/usr/bin/node", "npm install ./left-pad-1.3.0.tgz --foreground-scripts", "")
	proc("3", "2", 3, "/usr/bin/tar", "tar xf left-pad-1.3.0.tgz", "0")
	proc("5", "2", 5, "/usr/bin/dash", "sh -c node postinstall.js", "")
	proc("6", "5", 6, "/usr/bin/node", "node postinstall.js", "")
	for i := range 38 {
		proc(fmt.Sprint(10+i), "6", 10+i, "/usr/bin/git", "git rev-parse", "0")
	}
	proc("90", "6", 90, "/usr/bin/cat", "cat /home/ann/.ssh/id_ed25519", "1")
	proc("91", "6", 91, "/usr/bin/unshare", "unshare -Ur sh", "SIGKILL")
	seq := core.Seq(0)
	op := func(proc string, exe string, s core.Surface, a core.Action, target string, v core.Verdict, d core.Detail) {
		seq++
		o := core.Operation{Seq: seq, Time: start.Add(time.Duration(seq) * 137 * time.Millisecond), Box: "default", Session: demoSession, Proc: core.ProcID(proc), Exe: exe,
			Surface: s, Action: a, Target: target, Verdict: v, Rule: core.DefaultPolicy + ": " + string(s), Detail: d}
		_, _ = fmt.Sscan(proc, &o.PID)
		switch v {
		case core.Blocked:
			o.Outcome, o.Errno = core.Refused, "EPERM"
			if s == core.FilesHandle {
				o.Errno = "EOPNOTSUPP"
			}
		case core.Redirected:
			o.Rule = "overlay"
		}
		m.add(o)
	}
	for i := range 160 {
		op("2", "/usr/bin/node", core.FilesRead, core.ActRead, fmt.Sprintf("/usr/lib/node_modules/npm/node_modules/semver/functions/compare-%03d.js", i), core.Allowed, core.Detail{"flags": "O_RDONLY|O_CLOEXEC"})
		if i%5 == 0 {
			op("3", "/usr/bin/tar", core.FilesWrite, core.ActCreate, fmt.Sprintf("/home/ann/project/node_modules/left-pad/lib/part-%03d.js", i), core.Redirected, core.Detail{"flags": "O_WRONLY|O_CREAT|O_EXCL", "mode": "0644"})
		}
		if i%40 == 39 {
			op("91", "/usr/bin/unshare", core.SystemKernel, core.ActNamespace, "CLONE_NEWUSER", core.Blocked, core.Detail{"call": "unshare"})
		}
	}
	op("6", "/usr/bin/node", core.FilesExec, core.ActExec, "/usr/bin/git", core.Allowed, core.Detail{"argv": "git rev-parse --show-toplevel"})
	op("6", "/usr/bin/node", core.FilesWrite, core.ActWrite, "/home/ann/.bashrc", core.Redirected, core.Detail{"flags": "O_WRONLY|O_APPEND"})
	op("91", "/usr/bin/unshare", core.FilesHandle, core.ActHandle, "/", core.Blocked, core.Detail{"call": "open_by_handle_at"})
	for _, target := range hostile {
		op("6", "/usr/bin/node", core.FilesWrite, core.ActCreate, target, core.Redirected, core.Detail{"flags": target})
	}
	op("90", "/usr/bin/cat", core.FilesRead, core.ActRead, "/home/ann/.ssh/id_ed25519", core.Allowed, core.Detail{"flags": "O_RDONLY"})
	m.ops[len(m.ops)-1].Leak = true
	m.boxes[0].Counts.Leaks++
	m.sessions[1].Counts.Leaks++
	op("91", "/usr/bin/unshare", core.SystemKernel, core.ActMount, "/proc/sys/kernel/core_pattern", core.Blocked, core.Detail{"call": "mount", "source": "none", "fstype": "tmpfs"})
	op("2", "/usr/bin/node", core.FilesWrite, core.ActRename, "/home/ann/project/package-lock.json.tmp", core.Redirected, core.Detail{"to": "/home/ann/project/package-lock.json"})
	return m
}

// online is demo in which the package that was installed also reached out.
func online() *memory {
	m := demo()
	seq, at := m.ops[len(m.ops)-1].Seq, m.ops[len(m.ops)-1].Time
	op := func(proc, exe string, s core.Surface, a core.Action, target string, v core.Verdict, errno string, kv ...string) {
		seq++
		at = at.Add(83 * time.Millisecond)
		o := core.Operation{Seq: seq, Time: at, Box: "default", Session: demoSession, Proc: core.ProcID(proc), Exe: exe, Surface: s, Action: a, Target: target, Verdict: v, Errno: errno,
			Outcome: core.Performed, Rule: core.DefaultPolicy + ": net.out", Detail: core.Detail{}}
		_, _ = fmt.Sscan(proc, &o.PID)
		for i := 0; i < len(kv); i += 2 {
			o.Detail[kv[i]] = kv[i+1]
		}
		m.add(o)
	}
	const node, git = "/usr/bin/node", "/usr/bin/git"
	ask := func(name string, v core.Verdict, rcode string, types ...string) {
		for _, t := range types {
			op("6", node, core.NetDNS, core.ActResolve, name, v, "", "type", t, "rcode", rcode, "answers", t+" 203.0.113.5")
		}
	}
	ask("registry.npmjs.org", core.Allowed, "NOERROR", "A", "AAAA", "A", "HTTPS")
	ask("github.com", core.Allowed, "NOERROR", "A", "AAAA")
	ask("telemetry.left-pad.example", core.Blocked, "NXDOMAIN", "A", "AAAA", "A")
	ask("wpad", core.Allowed, "NXDOMAIN", "A")
	ask("aGVsbG8gd29ybGQgdGhpcyBpcyBzZWNyZXQ.aGVsbG8gd29ybGQgdGhpcyBpcyBzZWNyZXQ.aGVsbG8gd29ybGQ.x.example", core.Allowed, "NOERROR", "TXT")
	for i := range 14 {
		n := fmt.Sprint(i + 1)
		op("2", node, core.NetOut, core.ActConnect, fmt.Sprintf("104.16.%d.34:443", i), core.Allowed, "", "flow", n, "proto", "tcp", "name", "registry.npmjs.org", "by", "dns")
		op("2", node, core.NetOut, core.ActIdentify, "registry.npmjs.org", core.Allowed, "", "flow", n, "by", "tls", "alpn", "h2")
		if i < 11 {
			op("2", node, core.NetOut, core.ActClose, fmt.Sprintf("104.16.%d.34:443", i), core.Allowed, "", "flow", n, "sent", fmt.Sprint(1871+i*91), "received", fmt.Sprint(i*i*82111+4000),
				"packets_out", fmt.Sprint(12+i), "packets_in", fmt.Sprint(20+i*60), "rtt_us", fmt.Sprint(11250+i*100), "reason", "fin")
		}
	}
	op("2", node, core.NetOut, core.ActCount, "104.16.12.34:443", core.Allowed, "", "flow", "13", "sent", "20480", "received", "734003200", "packets_out", "91022", "packets_in", "512001", "rtt_us", "9871")
	op("10", git, core.NetOut, core.ActConnect, "140.82.121.4:22", core.Allowed, "", "flow", "20", "proto", "tcp", "name", "github.com", "by", "dns")
	op("6", node, core.NetOut, core.ActConnect, "198.51.100.77:8443", core.Allowed, "ECONNREFUSED", "flow", "21", "proto", "tcp")
	op("6", node, core.NetOut, core.ActSend, "[2001:db8:1234:5678:9abc:def0:1234:5678]:443", core.Allowed, "", "flow", "22", "proto", "udp", "sent", "1200", "packets_out", "1")
	op("6", node, core.NetOut, core.ActConnect, "203.0.113.9:443", core.Allowed, "", "flow", "23", "proto", "tcp")
	op("6", node, core.NetOut, core.ActIdentify, "telemetry.left-pad.example", core.Blocked, "", "flow", "23", "by", "tls", "alpn", "http/1.1")
	op("6", node, core.NetOut, core.ActClose, "203.0.113.9:443", core.Blocked, "", "flow", "23", "sent", "517", "packets_out", "3", "packets_in", "1", "reason", "policy")
	op("", "", core.NetIn, core.ActAccept, "127.0.0.1:8080", core.Allowed, "", "flow", "24", "proto", "tcp", "from", "127.0.0.1:51234", "sent", "88123", "received", "402", "packets_out", "70", "packets_in", "9")
	op("6", node, core.NetOut, core.ActConnect, "10.0.0.1:80", core.Blocked, "EACCES", "proto", "tcp")
	op("6", node, core.NetOut, core.ActConnect, "169.254.169.254:80", core.Blocked, "EACCES", "proto", "tcp")
	return m
}

// hostile are names that a program chose to be misread.
var hostile = []string{
	"/tmp/<script>alert(1)</script><img src=x onerror=alert(2)>",
	"/tmp/\"><svg onload=alert(3)>' onclick='x",
	"/tmp/invoice\u202efdp.exe",
	"/tmp/two\nlines\rand\ta\x1b[31mred\x00",
	"/tmp/\xff\xfe\xc3(bad utf-8",
	"/tmp/zero\u200bwidth\ufeff",
	"/tmp/z" + string(slices.Repeat([]rune{0x0300, 0x0301}, 40)) + "algo",
	"/tmp/" + string(slices.Repeat([]byte("long/"), 818)),
	"/" + string(slices.Repeat([]byte("x"), 4095)),
	"/" + string(slices.Repeat([]byte{0xff}, 4095)),
	"\n\ndata: injected\n\nevent: gone\n\n",
	"/tmp/  two  spaces ",
	"\u2066\u2067/عربى/עברית",
}

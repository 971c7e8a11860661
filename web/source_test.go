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
	err      error            // that every read ends in
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

// add records an operation as the projections would.
func (m *memory) add(op core.Operation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ops = append(m.ops, op)
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

package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
	"github.com/sandglass/sandglass/store"
	"github.com/sandglass/sandglass/web"
)

// build makes operations in the proportions that a Go build from an empty cache was
// recorded to have: of 64 operations 3 are the start, the command and the end of a process,
// and 20 are about a path that nobody has named before.
type build struct {
	session core.Session
	now     time.Time
	seq     core.Seq
	pid     int
	live    []*compile
	sources int
}

// compile is a process of a build, with the operations that are left for it to do.
type compile struct {
	core.Operation
	dir  string
	left int
}

const (
	perProcess = 64
	compilers  = 8 // at a time
)

func newBuild(s core.Session) *build { return &build{session: s, now: s.Start, pid: 1} }

// next returns the next operation.
func (m *build) next() core.Operation {
	m.seq++
	m.now = m.now.Add(100 * time.Microsecond)
	if len(m.live) < compilers {
		m.live = append(m.live, m.start())
	}
	i := int(m.seq) % len(m.live)
	p := m.live[i]
	op := m.do(p)
	op.Seq, op.Time, op.Box, op.Session = m.seq, m.now, m.session.Box, m.session.ID
	if p.left == 0 {
		m.live[i] = m.start()
	}
	return op
}

func (m *build) start() *compile {
	m.pid++
	p := &compile{left: perProcess, dir: fmt.Sprintf("/tmp/go-build2560412866/b%d", m.pid)}
	p.PID, p.Proc, p.Exe, p.Outcome = m.pid, core.ProcID(strconv.Itoa(m.pid)), "/usr/local/go/pkg/tool/linux_amd64/compile", core.Attempted
	return p
}

func (m *build) do(p *compile) core.Operation {
	p.left--
	op := p.Operation
	read := func(v core.Verdict, path string) {
		op.Surface, op.Action, op.Verdict, op.Rule, op.Target = core.FilesRead, core.ActRead, v, "overlay", path
		if v == core.Allowed {
			op.Rule = "fully-virtualised: files.read"
		}
	}
	write := func(a core.Action, path string, detail ...string) {
		op.Surface, op.Action, op.Verdict, op.Rule, op.Target = core.FilesWrite, a, core.Redirected, "overlay", path
		if len(detail) > 0 {
			op.Detail = core.Detail{detail[0]: detail[1]}
		}
	}
	n := perProcess - 1 - p.left
	object := func(k int) string { return p.dir + "/_pkg_" + strconv.Itoa(k) + ".o" }
	shared := func(k int) string {
		return "/usr/local/go/src/internal/package" + strconv.Itoa((m.pid*7+k)%400) + "/export.go"
	}
	switch {
	case n == 0:
		op.Surface, op.Action, op.Verdict, op.Outcome, op.Rule = core.ProcessLife, core.ActStart, core.Redirected, core.Performed, "pid namespace"
		op.Exe, op.Target, op.Detail = "/usr/local/go/bin/go", "/usr/local/go/bin/go", core.Detail{"ppid": "1", "pproc": "1"}
	case n == 1:
		op.Surface, op.Action, op.Verdict, op.Rule, op.Target = core.FilesExec, core.ActExec, core.Allowed, "fully-virtualised: files.exec", p.Exe
		op.Exe, op.Detail = "/usr/local/go/bin/go", core.Detail{"argv": p.Exe + " -o " + p.dir + "/_pkg_.a -trimpath " + p.dir}
	case n == perProcess-1:
		op.Surface, op.Action, op.Verdict, op.Outcome, op.Rule = core.ProcessLife, core.ActExit, core.Redirected, core.Performed, "pid namespace"
		op.Target, op.Detail = p.Exe, core.Detail{"code": "0"}
	case n == 2:
		write(core.ActMkdir, p.dir, "mode", "0755")
	case n < 9:
		write(core.ActCreate, object(n-3), "flags", "O_WRONLY|O_CREAT|O_TRUNC")
	case n < 12:
		write(core.ActTruncate, object(n-9), "size", strconv.Itoa(1000*(m.pid%50)))
	case n < 16:
		write(core.ActUtime, object(n-12))
	case n < 29:
		m.sources++
		read(core.Allowed, fmt.Sprintf("/home/user/go/pkg/mod/example.com/module%d@v1.2.3/source_%d.go", m.sources/40, m.sources))
		if n < 20 {
			op.Detail = core.Detail{"found": "no"}
		}
	case n < 44:
		read(core.Allowed, shared(n))
	case n < 60:
		read(core.Redirected, object(n%6))
	default:
		write(core.ActDelete, object(n-60))
	}
	return op
}

// spoolBuild leaves the spool of a session that has ended and that no daemon has seen.
func spoolBuild(b *testing.B, h Home, box string, ops int) core.SessionID {
	start := time.Now().UTC()
	s := core.Session{ID: newSessionID(start), Box: box, Host: hostName(), Start: start, Command: []string{"go", "build"}, Policy: core.DefaultPolicy}
	log, err := events.OpenLog(events.LogOptions{Home: string(h), Session: s, Bad: func(err error) { b.Error(err) }})
	if err != nil {
		b.Fatal(err)
	}
	if err := log.Begin(events.Life{}); err != nil {
		b.Fatal(err)
	}
	m := newBuild(s)
	for range ops {
		op := m.next()
		if err := log.Append(&op); err != nil {
			b.Fatal(err)
		}
	}
	if err := log.End(0); err != nil {
		b.Fatal(err)
	}
	if err := log.Close(context.Background()); err != nil { // there is no bus to wait for
		b.Fatal(err)
	}
	return s.ID
}

// BenchmarkPipeline is the whole way of operations behind the supervisor, as the daemon
// has it: from the sealed spools of sessions on the disk, through the embedded server,
// which syncs what it acknowledges, to SQLite, until all is acknowledged and folded and
// the spools are gone. Everything of it is in this process.
func BenchmarkPipeline(b *testing.B) {
	const sessions, each = 4, 100_000
	folded := 0
	for b.Loop() {
		b.StopTimer()
		h := Home(b.TempDir())
		var ids []core.SessionID
		for i := range sessions {
			ids = append(ids, spoolBuild(b, h, "build"+strconv.Itoa(i%2), each))
		}
		proj, stop := assemble(b, h)
		b.StartTimer()
		if err := proj.sync(context.Background(), nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		checkFolded(b, h, proj.store, ids, each)
		stop()
		folded += sessions * each
		b.StartTimer()
	}
	b.ReportMetric(float64(folded)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(folded), "ns/operation")
}

// assemble puts together what folds in the daemon: see [daemon.run].
func assemble(b *testing.B, h Home) (p *projector, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	bus, err := openBus(ctx, h, "")
	if err != nil {
		b.Fatal(err)
	}
	st, err := openStore(h)
	if err != nil {
		b.Fatal(err)
	}
	p = newProjector(bus, st, b.Logf)
	hub := web.NewHub()
	p.onFold = func(ds []events.Delivered) { hub.Publish(tick(ds)) }
	var wg sync.WaitGroup
	wg.Go(func() { p.run(ctx) })
	return p, func() {
		cancel()
		wg.Wait()
		if err := st.Close(); err != nil {
			b.Error(err)
		}
		bus.close()
	}
}

// checkFolded fails unless all operations of the sessions are in the projections and
// nothing waits in a spool.
func checkFolded(b *testing.B, h Home, st *store.Store, ids []core.SessionID, each int) {
	for _, id := range ids {
		s, err := st.Session(context.Background(), id)
		if err != nil {
			b.Fatal(err)
		}
		counted := s.Counts.Allowed + s.Counts.Redirected + s.Counts.Blocked
		if s.LastSeq != core.Seq(each) || s.Missing != 0 || counted != uint64(each) || s.End.IsZero() || s.Lost {
			b.Fatalf("session %s: folded up to %d of %d, %d missing, %d counted, end %v, lost %t", id, s.LastSeq, each, s.Missing, counted, s.End, s.Lost)
		}
	}
	left, err := os.ReadDir(filepath.Join(string(h), "spool"))
	if err != nil || len(left) > 0 {
		b.Fatalf("left in the spool: %v, %v", left, err)
	}
}

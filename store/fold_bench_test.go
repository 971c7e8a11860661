package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
)

// mix makes operations as a build or an installation does: most are reads of a few
// thousand files, by processes that come and go.
type mix struct {
	*rand.Rand
	paths []string
	next  int // pid
	live  []core.Operation
	now   time.Time
	made  int
}

func newMix(seed uint64, paths int) *mix {
	m := &mix{Rand: rand.New(rand.NewPCG(seed, 1)), next: 2, now: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)}
	for i := range paths {
		m.paths = append(m.paths, fmt.Sprintf("/home/user/project/node_modules/package-%d/lib/internal/module_%d.js", i/40, i))
	}
	return m
}

func (m *mix) batch(session core.SessionID, first core.Seq, n int) *events.Batch {
	b := &events.Batch{Version: events.Version, Session: session, Box: "bench", Host: "host", First: first}
	for i := range n {
		op := m.op()
		m.now = m.now.Add(time.Duration(3000 + m.IntN(3000)))
		op.Time, op.Seq, op.Box, op.Session = m.now, first+core.Seq(i), b.Box, session
		b.Ops = append(b.Ops, op)
	}
	return b
}

func (m *mix) op() core.Operation {
	if len(m.live) < 4 {
		return m.start()
	}
	who := m.IntN(len(m.live))
	p := m.live[who]
	switch r := m.IntN(100); {
	case r < 70:
		p.Surface, p.Action, p.Verdict, p.Rule = core.FilesRead, core.ActRead, core.Allowed, "fully-virtualised: files.read"
		p.Target = m.paths[m.IntN(len(m.paths))]
		if r < 10 {
			p.Detail = core.Detail{"found": "no"}
		}
	case r < 76:
		p.Surface, p.Action, p.Verdict, p.Rule = core.FilesRead, core.ActPath, core.Allowed, "fully-virtualised: files.read"
		p.Target = m.paths[m.IntN(len(m.paths))]
	case r < 94:
		m.made++
		p.Surface, p.Action, p.Verdict, p.Rule = core.FilesWrite, core.ActCreate, core.Redirected, "overlay"
		p.Target = "/tmp/build/out_" + strconv.Itoa(m.made%20_000)
		p.Detail = core.Detail{"flags": "O_WRONLY|O_CREAT|O_TRUNC"}
	case r < 96 && len(m.live) < 40:
		return m.start()
	case r < 98:
		p.Surface, p.Action, p.Verdict, p.Rule = core.FilesExec, core.ActExec, core.Allowed, "fully-virtualised: files.exec"
		p.Target = "/usr/bin/tool-" + strconv.Itoa(m.IntN(30))
		p.Detail = core.Detail{"argv": p.Target + " -o " + strconv.Itoa(m.IntN(1e9))}
		m.live[who].Exe = p.Target
	default:
		p.Surface, p.Action, p.Verdict, p.Rule, p.Target = core.ProcessLife, core.ActExit, core.Redirected, "pid namespace", p.Exe
		p.Outcome, p.Detail = core.Performed, core.Detail{"code": "0"}
		m.live[who] = m.live[len(m.live)-1]
		m.live = m.live[:len(m.live)-1]
	}
	return p
}

func (m *mix) start() core.Operation {
	p := core.Operation{PID: m.next, Proc: core.ProcID(strconv.Itoa(m.next)), Exe: "/usr/bin/sh", Outcome: core.Attempted}
	m.next++
	op := p
	op.Surface, op.Action, op.Verdict, op.Outcome, op.Rule, op.Target = core.ProcessLife, core.ActStart, core.Redirected, core.Performed, "pid namespace", p.Exe
	if len(m.live) > 0 {
		q := m.live[0]
		op.Detail = core.Detail{"ppid": strconv.Itoa(q.PID), "pproc": string(q.Proc)}
	}
	m.live = append(m.live, p)
	return op
}

// encoded makes n encoded batches of 256 operations.
func encoded(b *testing.B, n int) (bodies [][]byte) {
	m := newMix(1, 5000)
	for i := range n {
		body, err := events.EncodeBatch(nil, m.batch("01J00000000000000000000000", core.Seq(i*256+1), 256))
		if err != nil {
			b.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	return bodies
}

// BenchmarkFold is the pipeline from encoded batches to SQLite: 256 batches of 256
// operations in a transaction, decoded beside the fold as [events.Consume] does it.
func BenchmarkFold(b *testing.B) {
	const batches = 256
	bodies := encoded(b, 2*batches)
	for _, perTx := range []int{batches, 16, 1} {
		b.Run(fmt.Sprintf("batches=%d", perTx), func(b *testing.B) {
			s, err := Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			decoded := make(chan []events.Delivered, 1)
			go func() {
				for n := 0; ; {
					ds := make([]events.Delivered, perTx)
					for i := range ds {
						batch, err := events.DecodeBatch(bodies[n%len(bodies)])
						if err != nil {
							panic(err)
						}
						batch.Session = core.SessionID(fmt.Sprintf("01J%023d", n/len(bodies)))
						n++
						ds[i] = events.Delivered{Stream: events.StreamOps, StreamSeq: uint64(n), Batch: batch}
					}
					select {
					case decoded <- ds:
					case <-ctx.Done():
						return
					}
				}
			}()
			ops := 0
			for b.Loop() {
				if err := s.FoldBatches(ctx, <-decoded); err != nil {
					b.Fatal(err)
				}
				ops += 256 * perTx
			}
			b.ReportMetric(float64(ops)/b.Elapsed().Seconds(), "ops/s")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(ops), "ns/operation")
			b.ReportMetric(float64(fileSize(b, s.path()))/float64(ops), "B/operation")
		})
	}
}

// BenchmarkFoldNewTargets is what a box can do to the fold at worst: every operation is
// about a target that was never seen.
func BenchmarkFoldNewTargets(b *testing.B) {
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	m := newMix(1, 1)
	n := 0
	for b.Loop() {
		b.StopTimer()
		var ds []events.Delivered
		for range 64 {
			n++
			batch := m.batch("S", core.Seq(n*256+1), 256)
			for i := range batch.Ops {
				batch.Ops[i].Target = fmt.Sprintf("/home/user/tree/directory-%d/file-%d.txt", n, i)
			}
			ds = append(ds, opsMsg(uint64(n), batch))
		}
		b.StartTimer()
		if err := s.FoldBatches(context.Background(), ds); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(256*n)/b.Elapsed().Seconds(), "ops/s")
}

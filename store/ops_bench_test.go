package store

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
	"github.com/sandglass/sandglass/events"
)

var benchSize = flag.Int("store.size", 1_000_000, "operations in the table of BenchmarkOps")

// BenchmarkOps opens pages of a large table, as the pages of the dashboard and the
// command line do. With -store.size=10000000 it is the size that is promised.
func BenchmarkOps(b *testing.B) {
	dir := os.Getenv("STORE_BENCH_DIR") // kept between runs
	if dir == "" {
		dir = b.TempDir()
	}
	s, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	at, _, err := s.Checkpoint(ctx, events.StreamOps)
	if err != nil {
		b.Fatal(err)
	}
	if at == 0 {
		m := newMix(2, 50_000)
		var ds []events.Delivered
		for n := range *benchSize / 256 {
			id := core.SessionID(fmt.Sprintf("01J%023d", n/400))
			batch := m.batch(id, core.Seq(n%400*256+1), 256)
			batch.Box = fmt.Sprintf("box%d", n/400%5)
			if n == *benchSize/512 {
				batch.Ops[7].Target, batch.Ops[7].Verdict, batch.Ops[7].Errno = "/home/user/.ssh/id_ed25519", core.Blocked, "EACCES"
			}
			if ds = append(ds, opsMsg(uint64(n+1), batch)); len(ds) == 256 || n == *benchSize/256-1 {
				if err := s.FoldBatches(ctx, ds); err != nil {
					b.Fatal(err)
				}
				ds = ds[:0]
			}
		}
	}
	first := core.SessionID(fmt.Sprintf("01J%023d", 0))
	for _, c := range []struct {
		text string
		q    OpsQuery
	}{
		{"", OpsQuery{Desc: true}},
		{"", OpsQuery{}},
		{"", OpsQuery{Box: "box1", Desc: true}},
		{"", OpsQuery{Session: first, Desc: true}},
		{"surface:files.write", OpsQuery{Box: "box1", Desc: true}},
		{"action:exit", OpsQuery{Desc: true}},
		{"verdict:blocked", OpsQuery{Desc: true}},
		{"verdict:blocked", OpsQuery{Box: "box4", Desc: true}},
		{"id_ed25519", OpsQuery{Desc: true}},
		{"target:/home/user/.ssh/*", OpsQuery{Desc: true}},
		{"target:*/nothing/*", OpsQuery{Desc: true}},
		{"module_4999", OpsQuery{Desc: true}},
		{"target:/tmp/build/out_77", OpsQuery{}},
		{"exe:tool-7", OpsQuery{Desc: true}},
		{"exe:none", OpsQuery{Desc: true}},
		{"proc:100 session:" + string(first), OpsQuery{Desc: true}},
		{"proc:100", OpsQuery{Session: first, Desc: true}},
		{"until:2026-11-23T10:00:01Z", OpsQuery{Desc: true}},
		{"detail.argv:*123456*", OpsQuery{Desc: true}},
		{"pid:100", OpsQuery{Desc: true}},
	} {
		b.Run(fmt.Sprintf("%q,box=%s,session=%v,desc=%v", c.text, c.q.Box, c.q.Session != "", c.q.Desc), func(b *testing.B) {
			q, err := query.Parse(c.text, query.Options{Now: time.Now()})
			if err != nil {
				b.Fatal(err)
			}
			c.q.Query, c.q.Limit = q, 100
			n := 0
			for b.Loop() {
				page, err := s.Ops(ctx, c.q)
				if err != nil {
					b.Fatal(err)
				}
				n = len(page.Ops)
			}
			b.ReportMetric(float64(n), "found")
		})
	}
	for name, f := range map[string]func() error{
		"boxes":     func() error { _, err := s.Boxes(ctx); return err },
		"sessions":  func() error { _, err := s.Sessions(ctx, SessionFilter{Limit: 100}); return err },
		"processes": func() error { _, err := s.Processes(ctx, first); return err },
		"counts":    func() error { _, err := s.Counts(ctx, "box1", ""); return err },
		"paths":     func() error { _, err := s.Paths(ctx, "box1", "/home/", 100); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package web

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

func TestProcessTree(t *testing.T) {
	end := time.Now()
	ended := func(id, parent, exe string) core.ProcessView {
		return core.ProcessView{Proc: core.ProcID(id), Parent: core.ProcID(parent), Exe: exe, End: end, Exit: "0"}
	}
	var many []core.ProcessView
	many = append(many, core.ProcessView{Proc: "1", Exe: "/bin/make"})
	for i := range 10000 {
		many = append(many, ended(fmt.Sprint(i+2), "1", "/bin/cc"))
	}
	var deep []core.ProcessView
	for i := range 10000 {
		deep = append(deep, ended(fmt.Sprint(i+1), fmt.Sprint(i), "/bin/sh"))
	}
	blocked := ended("4", "1", "/bin/cc")
	blocked.Counts.Blocked = 1
	for _, c := range []struct {
		name  string
		procs []core.ProcessView
		want  string // depth, program, times
	}{
		{"nothing", nil, ""},
		{"children stand below their parents", []core.ProcessView{ended("1", "", "a"), ended("2", "1", "b"), ended("3", "2", "c"), ended("4", "1", "d")}, "0a1 1b1 2c1 1d1 "},
		{"those that did the same share a line", many, "0make1 1cc10000 "},
		{"not with one that had something blocked", []core.ProcessView{ended("1", "", "/bin/make"), ended("2", "1", "/bin/cc"), ended("3", "1", "/bin/cc"), blocked, ended("5", "1", "/bin/cc")}, "0make1 1cc2 1cc1 1cc1 "},
		{"a parent that is not known is no parent", []core.ProcessView{ended("7", "3", "a")}, "0a1 "},
		{"a record that claims a circle", []core.ProcessView{ended("1", "2", "a"), ended("2", "1", "b"), ended("3", "3", "c")}, "0c1 "},
	} {
		got := ""
		for _, r := range processTree(c.procs, 100) {
			got += fmt.Sprintf("%d%s%d ", r.depth, exeName(r.Exe), r.times)
		}
		if got != c.want {
			t.Errorf("%s: %q, not %q", c.name, got, c.want)
		}
	}
	if rows := processTree(deep, 100); len(rows) != 100 || rows[99].depth != 99 {
		t.Errorf("a chain of 10,000 has %d lines", len(rows))
	}
}

func TestSparkBarsStayInsideTheirBox(t *testing.T) {
	big := core.Counts{Allowed: 1 << 63, Redirected: 5, Blocked: 1}
	buckets := make([]core.Bucket, 500)
	for i := range buckets {
		buckets[i].Counts = big
	}
	if bars := sparkBars(buckets); len(bars) != sparkBuckets || bars[len(bars)-1].x > sparkBuckets*barWidth {
		t.Errorf("%d bars", len(bars))
	}
	if sparkBars(nil) != nil || sparkBars(make([]core.Bucket, 9)) != nil {
		t.Error("nothing has bars")
	}
}

// BenchmarkOpsWindow is what a page costs each time that it is sent its newest window.
func BenchmarkOpsWindow(b *testing.B) {
	s := &site{Options: Options{Source: demo()}}
	v := boxView{boxFilter: boxFilter{box: "default"}}
	ctx := context.Background()
	var out bytes.Buffer
	b.ReportAllocs()
	for b.Loop() {
		out.Reset()
		if err := s.readOps(ctx, &v); err != nil {
			b.Fatal(err)
		}
		if err := opsWindow(v).Render(ctx, &out); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(out.Len()), "bytes/window")
}

// BenchmarkPublish is what the daemon pays for pages that do not read.
func BenchmarkPublish(b *testing.B) {
	h := NewHub()
	for range maxStreams {
		h.subscribe("default")
	}
	t := Tick{Boxes: []string{"other", "default"}, Blocked: true}
	b.ReportAllocs()
	for b.Loop() {
		t.Seq++
		h.Publish(t)
	}
}

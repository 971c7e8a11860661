package events

import (
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

// cpu returns the CPU time that this process has used.
func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkAppend is what an operation costs the supervisor's goroutine, with a spool
// that is written beside it and no bus; the rest of the log's work is in cpu-ns/op.
func BenchmarkAppend(b *testing.B) {
	home, s := b.TempDir(), session(1)
	l := openLog(b, home, s)
	ops := workload(256).Ops
	before := cpu(b)
	n := 0
	for b.Loop() {
		op := ops[n%256]
		n++
		op.Seq, op.Session = core.Seq(n), s.ID
		if err := l.Append(&op); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.End(0); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(n), "cpu-ns/op")
	b.ReportMetric(float64(l.Stats().Bytes)/float64(n), "B/op-spooled")
	b.ReportMetric(float64(l.Stats().Stalls), "stalls")
	closeLog(b, l)
}

// BenchmarkSpool is a record of 256 operations, encoded, chained and written.
func BenchmarkSpool(b *testing.B) {
	sp, err := createSpool(b.TempDir(), "bench")
	if err != nil {
		b.Fatal(err)
	}
	batch := workload(256)
	var rec []byte
	head := make([]byte, recordHead)
	for b.Loop() {
		if rec, err = EncodeBatch(append(rec[:0], head...), batch); err != nil {
			b.Fatal(err)
		}
		batch.Prev = Sum(rec[recordHead:])
		sealRecord(rec, sp.marker, kindOps, 0, 256)
		if err := sp.append(rec); err != nil {
			b.Fatal(err)
		}
	}
	perOp(b, 256)
	if err := sp.close(true); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkEndToEnd is from Append to the acknowledgement of the embedded server, whose
// disk has it then. Server and log share the process: cpu-ns/op is all of it.
func BenchmarkEndToEnd(b *testing.B) {
	home, s := b.TempDir(), session(1)
	startDaemon(b, home)
	l := openLog(b, home, s)
	ops := workload(256).Ops
	before, n := cpu(b), 0
	for b.Loop() {
		for range 10000 {
			op := ops[n%256]
			n++
			op.Seq, op.Session = core.Seq(n), s.ID
			if err := l.Append(&op); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := l.End(0); err != nil {
		b.Fatal(err)
	}
	untilAcked(b, l)
	perOp(b, 10000)
	b.ReportMetric(float64(cpu(b)-before)/float64(n), "cpu-ns/op")
	closeLog(b, l)
}

// BenchmarkConsume is from the stream's disk to a projector that does nothing.
func BenchmarkConsume(b *testing.B) {
	home, s := b.TempDir(), session(1)
	d := startDaemon(b, home)
	l := openLog(b, home, s)
	const total = 500000
	ops := workload(256).Ops
	for n := 1; n <= total; n++ {
		op := ops[n%256]
		op.Seq, op.Session = core.Seq(n), s.ID
		if err := l.Append(&op); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.End(0); err != nil {
		b.Fatal(err)
	}
	untilAcked(b, l)
	closeLog(b, l)
	before := cpu(b)
	for b.Loop() {
		done := enough{}
		if err := Consume(soon(b), d.js, nil, 256, func(ds []Delivered) error {
			for _, m := range ds {
				if m.Batch != nil && m.Batch.Last() == total {
					return done
				}
			}
			return nil
		}); err != done {
			b.Fatal(err)
		}
	}
	perOp(b, total)
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/total, "cpu-ns/op")
}

// enough is an error that says that all is well.
type enough struct{}

func (enough) Error() string { return "stop" }

// BenchmarkOpenLog is what a log costs the start of a session.
func BenchmarkOpenLog(b *testing.B) {
	home := b.TempDir()

	for n := 0; b.Loop(); n++ {
		l, err := OpenLog(LogOptions{Home: home, Session: session(n)})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		closeLog(b, l)
		b.StartTimer()
	}

}

// BenchmarkShortSession is a whole session of ten operations with a bus: what the log
// costs a command that does next to nothing, its stay on the disks included.
func BenchmarkShortSession(b *testing.B) {
	home := b.TempDir()
	startDaemon(b, home)
	before, n := cpu(b), 0
	for b.Loop() {
		s := session(n)
		n++
		l := openLog(b, home, s)
		if err := l.Begin(Life{}); err != nil {
			b.Fatal(err)
		}
		appendOps(b, l, s, 1, 10)
		if err := l.End(0); err != nil {
			b.Fatal(err)
		}
		closeLog(b, l)
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(n), "cpu-ns/op")
}

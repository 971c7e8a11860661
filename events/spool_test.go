package events

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sandglass/sandglass/core"
)

// record makes a record of the spool: a batch of n operations of s from first on.
func batchRecord(t testing.TB, m marker, s core.Session, first, n int, prev [32]byte) (rec []byte, sum [32]byte) {
	t.Helper()
	b := &Batch{Version: 1, Session: s.ID, Box: s.Box, Host: s.Host, First: core.Seq(first), Prev: prev}
	for i := range n {
		b.Ops = append(b.Ops, *operation(s, first+i))
	}
	rec, err := EncodeBatch(make([]byte, recordHead), b)
	if err != nil {
		t.Fatal(err)
	}
	sealRecord(rec, m, kindOps, b.Ops[n-1].Time.UnixNano(), n)
	return rec, Sum(rec[recordHead:])
}

// deadSpool makes the spool of a session that died: count records of ten operations each.
// It returns the folder and where the records are in its only segment.
func deadSpool(t testing.TB, home string, s core.Session, count int) (dir string, ends []int64) {
	t.Helper()
	sp, err := createSpool(SpoolDir(home), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	var sum [32]byte
	for i := range count {
		var rec []byte
		rec, sum = batchRecord(t, sp.marker, s, i*10+1, 10, sum)
		if err := sp.append(rec); err != nil {
			t.Fatal(err)
		}
		end, _ := sp.end()
		ends = append(ends, end.off)
	}
	if err := sp.close(false); err != nil {
		t.Fatal(err)
	}
	return sp.dir, ends
}

// readAll reads a spool from the beginning to its end.
func readAll(t testing.TB, dir string, s core.Session) (recs []*record, bad []*BadRecord) {
	t.Helper()
	ns, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, segName(ns[len(ns)-1])))
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{dir: dir, session: s.ID, at: position{ns[0], 0}, bad: func(b *BadRecord) { bad = append(bad, b) }}
	defer r.close()
	for {
		rec, err := r.next(position{ns[len(ns)-1], info.Size()})
		if err != nil {
			t.Fatal(err)
		}
		if rec == nil {
			return recs, bad
		}
		recs = append(recs, rec)
	}
}

func TestASpoolTornAnywhereInItsLastRecordHasAllBefore(t *testing.T) {
	home, s := t.TempDir(), session(1)
	dir, ends := deadSpool(t, home, s, 3)
	path := filepath.Join(dir, segName(1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := ends[2] - 1; size >= ends[1]; size-- {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		recs, bad := readAll(t, dir, s)
		if len(recs) != 2 {
			t.Fatalf("torn at %d: %d records", size, len(recs))
		}
		if torn := size > ends[1]; len(bad) != 0 != torn || torn && (!bad[0].Torn || bad[0].Bytes != size-ends[1]) {
			t.Fatalf("torn at %d: reported %+v", size, bad)
		}
		for _, b := range bad {
			if kept, err := os.ReadFile(b.Kept); err != nil || !bytes.Equal(kept, whole[ends[1]:size]) {
				t.Fatalf("torn at %d: kept %d bytes, %v", size, len(kept), err)
			}
		}
	}
}

func TestAFileCutAnywhereNeverGivesWhatWasNotWritten(t *testing.T) {
	home, s := t.TempDir(), session(1)
	dir, ends := deadSpool(t, home, s, 2)
	for size := ends[1]; size >= 0; size-- {
		if err := os.Truncate(filepath.Join(dir, segName(1)), size); err != nil {
			t.Fatal(err)
		}
		want := 0
		for _, end := range ends {
			if end <= size {
				want++
			}
		}
		if recs, _ := readAll(t, dir, s); len(recs) != want {
			t.Fatalf("cut at %d: %d records, want %d", size, len(recs), want)
		}
	}
}

func TestADamagedByteCostsOneRecord(t *testing.T) {
	home, s := t.TempDir(), session(1)
	dir, ends := deadSpool(t, home, s, 3)
	path := filepath.Join(dir, segName(1))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	one := make([]byte, 1)
	flip := func(at int64) {
		if _, err := f.ReadAt(one, at); err != nil {
			t.Fatal(err)
		}
		one[0] ^= 0x10
		if _, err := f.WriteAt(one, at); err != nil {
			t.Fatal(err)
		}
	}
	for at := range ends[2] {
		flip(at)
		recs, bad := readAll(t, dir, s)
		flip(at)
		lost := -1
		switch {
		case at < 8: // the magic: each record repeats the marker behind it
		case at < segHead:
			// the marker in the head, which the records then seem to lack
		case at < ends[0]:
			lost = 0
		case at < ends[1]:
			lost = 1
		default:
			lost = 2
		}
		var want, got []core.Seq
		for i := range 3 {
			if i != lost {
				want = append(want, core.Seq(i*10+1))
			}
		}
		for _, r := range recs {
			got = append(got, r.first)
		}
		if !reflect.DeepEqual(got, want) || (len(bad) == 1) != (lost >= 0) {
			t.Fatalf("byte %d damaged: records %v, want %v; reported %v", at, got, want, bad)
		}
		for _, b := range bad {
			if err := os.Remove(b.Kept); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestADamagedRecordIsSetAsideAndTheRestGoesOn(t *testing.T) {
	home, s := t.TempDir(), session(1)
	dir, ends := deadSpool(t, home, s, 3)
	path := filepath.Join(dir, segName(1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[ends[0]+100] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, home)
	rep, err := DrainSpools(soon(t), home, d.nc)
	if err != nil || len(rep.Bad) != 1 || len(rep.Lost) != 1 || rep.Bad[0].Torn || rep.Bad[0].Offset != ends[0] || rep.Bad[0].Bytes != ends[1]-ends[0] {
		t.Fatalf("report %+v, %v", rep, err)
	}
	kept, err := os.ReadFile(rep.Bad[0].Kept)
	if err != nil || !bytes.Equal(kept, b[ends[0]:ends[1]]) {
		t.Errorf("kept %d bytes, %v", len(kept), err)
	}
	ops, ctl := d.delivered(t)
	if len(ops) != 2 || ops[0].Batch.First != 1 || ops[1].Batch.First != 21 {
		t.Fatalf("in the stream: %d batches", len(ops))
	}
	_, _, err = VerifyChain(ops[0].Body, ops[1].Body)
	var broken *ChainError
	if !errors.As(err, &broken) || broken.Seq != 11 {
		t.Errorf("the chain's error: %v", err)
	}
	if end := ctl[0].Life; end.Last != 30 || !end.Lost {
		t.Errorf("end %+v", end)
	}
	// What was set aside stays, and is not reported again.
	if rep, err := DrainSpools(soon(t), home, d.nc); err != nil || len(rep.Bad)+len(rep.Drained) != 0 {
		t.Errorf("second report %+v, %v", rep, err)
	}
	if _, err := os.Stat(rep.Bad[0].Kept); err != nil {
		t.Error(err)
	}
}

func TestABoxCannotForgeARecord(t *testing.T) {
	home, s := t.TempDir(), session(1)
	sp, err := createSpool(SpoolDir(home), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := batchRecord(t, newMarker(), s, 666, 1, [32]byte{})
	b := &Batch{Version: 1, Session: s.ID, Box: s.Box, Host: s.Host, First: 1, Ops: []core.Operation{*operation(s, 1)}}
	b.Ops[0].Target = string(forged)
	rec, err := EncodeBatch(make([]byte, recordHead), b)
	if err != nil {
		t.Fatal(err)
	}
	sealRecord(rec, sp.marker, kindOps, 0, 1)
	if err := sp.append(rec); err != nil {
		t.Fatal(err)
	}
	if err := sp.close(false); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(sp.dir, segName(1))
	seg, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seg[segHead+20] ^= 1 // the record around it is damaged, so the reader looks inside it
	if err := os.WriteFile(path, seg, 0o600); err != nil {
		t.Fatal(err)
	}
	if recs, bad := readAll(t, sp.dir, s); len(recs) != 0 || len(bad) != 1 {
		t.Errorf("%d records, reported %v", len(recs), bad)
	}
}

func TestManySegments(t *testing.T) {
	defer func(n int64) { maxSegment = n }(maxSegment)
	maxSegment = 32 << 10
	home, s := t.TempDir(), session(1)
	l := openLog(t, home, s)
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	appendOps(t, l, s, 1, 10000)
	until(t, func() bool { return l.Stats().Spooled == 10000 }, func() any { return l.Stats() })
	if ns, err := segments(l.spool.dir); err != nil || len(ns) < 5 {
		t.Errorf("segments %v, %v", ns, err)
	}
	d := startDaemon(t, home)
	untilAcked(t, l)
	until(t, func() bool { ns, err := segments(l.spool.dir); return err == nil && len(ns) == 1 }, func() any { return "segments" })
	appendOps(t, l, s, 10001, 20000)
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	untilAcked(t, l)
	closeLog(t, l)
	noSpool(t, home)
	d.check(t, home, 20000, false, s)
}

func TestManySegmentsOfADeadSession(t *testing.T) {
	defer func(n int64) { maxSegment = n }(maxSegment)
	maxSegment = 32 << 10
	home, s := t.TempDir(), session(1)
	l := openLog(t, home, s)
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	appendOps(t, l, s, 1, 20000)
	closeLog(t, l)
	d := startDaemon(t, home)
	if rep, err := DrainSpools(soon(t), home, d.nc); err != nil || len(rep.Lost) != 1 {
		t.Fatalf("report %+v, %v", rep, err)
	}
	noSpool(t, home)
	d.check(t, home, 20000, true, s)
}

func TestASessionCannotBeLoggedTwice(t *testing.T) {
	home, s := t.TempDir(), session(1)
	l := openLog(t, home, s)
	appendOps(t, l, s, 1, 1)
	until(t, func() bool { return l.Stats().Spooled == 1 }, func() any { return l.Stats() })
	if _, err := OpenLog(LogOptions{Home: home, Session: s}); err == nil {
		t.Error("a second log of the same session was opened")
	}
	closeLog(t, l)
	for _, id := range []core.SessionID{"", "..", "a/b", "a.b"} {
		s.ID = id
		if _, err := OpenLog(LogOptions{Home: home, Session: s}); err == nil {
			t.Errorf("a log of session %q was opened", id)
		}
	}
}

// small makes a folder on a disk that has room for about 64 KiB, and returns it with a
// function that makes room.
func small(t *testing.T) (dir string, room func()) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("sandglass-test", dir, "tmpfs", 0, "size=64k"); err == nil {
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
		return dir, func() {
			if err := syscall.Mount("sandglass-test", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
				t.Error(err)
			}
		}
	}
	// Without the right to mount: files must not grow beyond a limit of this process.
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	lift := func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
			t.Error(err)
		}
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 64 << 10, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lift)
	return dir, lift
}

// reserving has spools reserve n bytes; with 0 it is as on a file system that cannot.
func reserving(t *testing.T, n int64) {
	before := reserve
	reserve = n
	t.Cleanup(func() { reserve = before })
}

// disk makes a folder on a disk of its own, and returns it with functions that fill it to
// the last byte and empty it of that again.
func disk(t *testing.T, size string) (dir string, fill, free func()) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("sandglass-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mounts a small disk, for which one must be root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	fill = func() {
		f, err := os.OpenFile(ballast, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return dir, fill, func() {
		if err := os.Remove(ballast); err != nil {
			t.Error(err)
		}
	}
}

func TestALogOnAFullDiskGoesOnInItsReserve(t *testing.T) {
	reserving(t, 1<<20) // of which half is more than what waits in memory
	home, s := t.TempDir(), session(1)
	dir, fill, free := disk(t, "8m")
	var said []bool
	told := make(chan struct{}, 64)
	l, err := OpenLog(LogOptions{Home: home, SpoolDir: filepath.Join(dir, "spool"), Session: s, Full: func(full bool) {
		said = append(said, full) // from one goroutine at a time
		told <- struct{}{}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	n := 0
	more := func(count int) (err error) {
		for ; count > 0 && err == nil; count-- {
			if err = l.Append(operation(s, n+1)); err == nil {
				n++
			}
		}
		return err
	}
	fill()
	if err := more(1 << 20); !errors.Is(err, ErrDiskFull) || n < 1000 {
		t.Fatalf("took %d operations on a full disk, then %v", n, err)
	}
	<-told
	free()
	<-told
	if err := more(10_000); err != nil {
		t.Fatalf("when there is room again: %v", err)
	}
	fill()
	for err = nil; err == nil; err = more(1) {
	}
	<-told
	held := n
	l.Ending()
	if err := more(1000); err != nil {
		t.Fatalf("at the end: %v", err)
	}
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	if len(said) != 3 || !said[0] || said[1] || !said[2] || n != held+1000 {
		t.Errorf("said %v, %d operations, held at %d", said, n, held)
	}
	wholeLog(t, home, l.spool.dir, s, n)
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(l.spool.dir, segName(1)), &st); err != nil || st.Blocks*512 > st.Size+4096 {
		t.Errorf("a closed spool of %d bytes has %d of the disk, %v", st.Size, st.Blocks*512, err)
	}
}

func TestAFullDiskKeepsALogInTheSegmentThatHasRoom(t *testing.T) {
	defer func(n int64) { maxSegment = n }(maxSegment)
	maxSegment = 32 << 10
	reserving(t, 256<<10)
	home, s := t.TempDir(), session(1)
	dir, fill, free := disk(t, "2m")
	l, err := OpenLog(LogOptions{Home: home, SpoolDir: filepath.Join(dir, "spool"), Session: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	fill()
	for n := 1; err == nil; n++ {
		err = l.Append(operation(s, n))
	}
	// A second one, when it found its room while the disk was being filled.
	if ns, serr := segments(l.spool.dir); !errors.Is(err, ErrDiskFull) || serr != nil || len(ns) < 1 || len(ns) > 2 {
		t.Fatalf("segments %v, %v; %v", ns, serr, err)
	}
	last := int(l.next) - 1
	free()
	observe := l.Observer(soon(t), nil)
	for ; last < 20_000; last++ {
		if err := observe(operation(s, last+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	if ns, err := segments(l.spool.dir); err != nil || len(ns) < 2 {
		t.Errorf("segments %v, %v", ns, err)
	}
	wholeLog(t, home, l.spool.dir, s, last)
}

func TestALogWithoutRoomForItsReserveDoesNotBegin(t *testing.T) {
	reserving(t, 256<<10)
	home, s := t.TempDir(), session(1)
	dir, fill, _ := disk(t, "1m")
	fill()
	l, err := OpenLog(LogOptions{Home: home, SpoolDir: filepath.Join(dir, "spool"), Session: s})
	if err == nil {
		err = errors.Join(l.Begin(Life{}), l.Close(soon(t)))
	}
	if !errors.Is(err, ErrDiskFull) || len(core.Hints(err)) == 0 {
		t.Errorf("error %v, want one that wraps %v, with a hint", err, ErrDiskFull)
	}
}

// wholeLog fails unless a spool holds the operations of a session up to last, in one
// chain, and its seal.
func wholeLog(t *testing.T, home, dir string, s core.Session, last int) {
	t.Helper()
	recs, bad := readAll(t, dir, s)
	if len(bad) != 0 {
		t.Errorf("bad records: %v", bad)
	}
	var bodies [][]byte
	for _, r := range recs[1 : len(recs)-1] {
		bodies = append(bodies, r.body)
	}
	head, got, err := VerifyChain(bodies...)
	if err != nil || got != core.Seq(last) {
		t.Errorf("chain to %d, want %d: %v", got, last, err)
	}
	key, err := SealKey(home)
	if err != nil {
		t.Fatal(err)
	}
	if err := recs[len(recs)-1].life.VerifySeal(key.Public().(ed25519.PublicKey), head, got); err != nil {
		t.Error(err)
	}
}

func TestAFullDiskHoldsTheBoxAndLosesNothing(t *testing.T) {
	reserving(t, 0)
	home, s := t.TempDir(), session(1)
	spools, room := small(t)
	var reports atomic.Int64
	l, err := OpenLog(LogOptions{Home: home, SpoolDir: filepath.Join(spools, "spool"), Session: s, Bad: func(err error) {
		if errors.Is(err, ErrDiskFull) {
			reports.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	n := 1
	for ; ; n++ {
		if err = l.Append(operation(s, n)); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrDiskFull) || len(core.Hints(err)) == 0 {
		t.Fatalf("error %v, want one that wraps %v, with a hint", err, ErrDiskFull)
	}
	if st := l.Stats(); !st.DiskFull || st.Appended != uint64(n-1) || reports.Load() != 1 {
		t.Errorf("stats %+v, %d reports", st, reports.Load())
	}
	var held []bool
	observe := l.Observer(soon(t), func(full bool) {
		if held = append(held, full); full {
			room()
		}
	})
	last := n + 5000
	for ; n <= last; n++ {
		if err := observe(operation(s, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	if len(held) < 2 || !held[0] || held[len(held)-1] {
		t.Errorf("held %v", held)
	}
	closeLog(t, l)
	if err := os.Rename(l.spool.dir, filepath.Join(home, "moved")); err != nil && !errors.Is(err, syscall.EXDEV) {
		t.Fatal(err)
	}
	wholeLog(t, home, existing(filepath.Join(home, "moved"), l.spool.dir), s, last)
}

func existing(a, b string) string {
	if _, err := os.Stat(a); err == nil {
		return a
	}
	return b
}

func TestAFullDiskAtTheEndIsTold(t *testing.T) {
	reserving(t, 0)
	home, s := t.TempDir(), session(1)
	spools, room := small(t)
	l, err := OpenLog(LogOptions{Home: home, SpoolDir: filepath.Join(spools, "spool"), Session: s})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; err == nil; n++ {
		err = l.Append(operation(s, n))
	}
	if !errors.Is(err, ErrDiskFull) {
		t.Fatal(err)
	}
	if err := l.End(0); !errors.Is(err, ErrDiskFull) {
		t.Errorf("end: %v", err)
	}
	if err := l.Close(soon(t)); !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "operations were not logged") {
		t.Errorf("close: %v", err)
	}
	room()
	recs, bad := readAll(t, l.spool.dir, s) // what is there is whole
	if len(recs) == 0 || len(bad) != 0 {
		t.Errorf("%d records, reported %v", len(recs), bad)
	}
}

func TestAppendRefuses(t *testing.T) {
	home, s := t.TempDir(), session(1)
	l := openLog(t, home, s)
	for name, change := range map[string]func(*core.Operation){
		"a gap":           func(op *core.Operation) { op.Seq = 2 },
		"another session": func(op *core.Operation) { op.Session = "other" },
		"another box":     func(op *core.Operation) { op.Box = "other" },
		"a negative pid":  func(op *core.Operation) { op.PID = -1 },
		"no time":         func(op *core.Operation) { *op = core.Operation{Seq: 1, Session: s.ID, Box: s.Box} },
		"too much details": func(op *core.Operation) {
			op.Detail = core.Detail{}
			for i := range MaxDetail + 1 {
				op.Detail[fmt.Sprint(i)] = "x"
			}
		},
	} {
		op := operation(s, 1)
		change(op)
		if err := l.Append(op); err == nil || errors.Is(err, ErrDiskFull) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	appendOps(t, l, s, 1, 1) // and is none the worse for it
	closeLog(t, l)
	if err := l.Append(operation(s, 2)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	if err := l.Close(context.Background()); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestAnOperationIsNeverTooLargeToBeLogged(t *testing.T) {
	home, s := t.TempDir(), session(1)
	d := startDaemon(t, home)
	l := openLog(t, home, s)
	huge := func(n int) string { return strings.Repeat("\xfe", n) }
	for n := 1; n <= 40; n++ {
		op := operation(s, n)
		switch n % 4 {
		case 0:
			op.Target = huge(MaxString + 1)
		case 1:
			op.Detail = core.Detail{}
			for i := range MaxDetail {
				op.Detail[fmt.Sprintf("%02d", i)] = fmt.Sprint(n, i) + huge(1<<20)
			}
		case 2:
			op.Target, op.Detail = huge(MaxString), core.Detail{"to": huge(MaxString - 1), "a": huge(MaxString - 2), "b": huge(MaxString - 3)}
		}
		if err := l.Append(op); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	untilAcked(t, l)
	closeLog(t, l)
	ops, _ := d.delivered(t)
	next := core.Seq(1)
	for _, m := range ops {
		for _, op := range m.Batch.Ops {
			if op.Seq != next {
				t.Fatalf("operation %d, want %d", op.Seq, next)
			}
			next++
			if cut := op.Seq%4 < 2; cut != (op.Detail["cut"] != "") {
				t.Errorf("operation %d: detail.cut is %q", op.Seq, op.Detail["cut"])
			}
		}
	}
	if st := l.Stats(); next != 41 || st.Cut != 20 {
		t.Errorf("%d operations, %d cut", next-1, st.Cut)
	}
}

func TestAnAcknowledgedPositionThatIsNotWholeIsIgnored(t *testing.T) {
	dir, p := t.TempDir(), position{7, 123456}
	path := filepath.Join(dir, ackedName)
	whole := formatAcked(p)
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readAcked(dir); got != p {
		t.Errorf("%v, want %v", got, p)
	}
	for i := range whole {
		for _, b := range [][]byte{whole[:i], append(append(bytes.Clone(whole[:i]), whole[i]^1), whole[i+1:]...)} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := readAcked(dir); got != (position{1, 0}) {
				t.Errorf("of %q: %v", b, got)
			}
		}
	}
}

func FuzzSegment(f *testing.F) {
	s := session(1)
	m := marker{1, 2, 3, 4, 5, 6, 7, 8}
	rec, _ := batchRecord(f, m, s, 1, 3, [32]byte{})
	seg := append(append([]byte(segMagic), m[:]...), rec...)
	f.Add(seg)
	f.Add(append(seg, rec...))
	f.Add(seg[:len(seg)-5])
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, segName(1)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		recs, bad := readAll(t, dir, s)
		at := int64(segHead)
		for _, r := range recs {
			for len(bad) > 0 && bad[0].Offset == at {
				at, bad = at+bad[0].Bytes, bad[1:]
			}
			if r.at.off != at {
				t.Fatalf("a record at %d, want %d", r.at.off, at)
			}
			at = r.end.off
		}
		for _, b := range bad {
			if b.Offset != at {
				t.Fatalf("bad bytes at %d, want %d", b.Offset, at)
			}
			at += b.Bytes
		}
		if at != max(segHead, int64(len(b))) {
			t.Errorf("%d of %d bytes accounted for", at, len(b))
		}
	})
}

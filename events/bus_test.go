package events

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sandglass/sandglass/core"
)

// patience is how long a test waits for what must happen. No test passes by it.
const patience = 30 * time.Second

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// daemon is a server with its streams and a connection to it.
type daemon struct {
	*Server
	nc *nats.Conn
	js jetstream.JetStream
}

func startDaemon(t testing.TB, home string) *daemon {
	t.Helper()
	s, err := StartServer(ServerOptions{Home: home})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{Server: s}
	if d.nc, err = s.Connect(); err != nil {
		t.Fatal(err)
	}
	if d.js, err = jetstream.New(d.nc); err != nil {
		t.Fatal(err)
	}
	if err := Streams(soon(t), d.js); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) stop() {
	if d.nc != nil {
		d.nc.Close()
		d.nc = nil
		d.Shutdown()
	}
}

// delivered returns all that is in the streams, which hold n messages together at the end.
func (d *daemon) delivered(t testing.TB) (ops, ctl []Delivered) {
	t.Helper()
	states, err := States(soon(t), d.js)
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, s := range states {
		left += int(s.Last + 1 - s.First)
	}
	if left == 0 {
		return nil, nil
	}
	done := errors.New("that was all")
	err = Consume(soon(t), d.js, nil, 100, func(ds []Delivered) error {
		for _, m := range ds {
			if m.Stream == StreamOps {
				ops = append(ops, m)
			} else {
				ctl = append(ctl, m)
			}
			left--
		}
		if left <= 0 {
			return done
		}
		return nil
	})
	if err != done {
		t.Fatal(err)
	}
	return ops, ctl
}

func session(n int) core.Session {
	return core.Session{ID: core.SessionID(fmt.Sprintf("01KAS0E4ZG5T3V8W1N6Q2B%04d", n)), Box: testBox, Host: testHost, Command: []string{"sh", "-c", "echo \xff"},
		Policy: "fully-virtualised", Observe: core.ObserveFull, Net: core.NetNone, Start: testTime}
}

// operation is the nth operation of a session.
func operation(s core.Session, n int) *core.Operation {
	op := &core.Operation{Seq: core.Seq(n), Time: testTime.Add(time.Duration(n) * time.Microsecond), Box: s.Box, Session: s.ID, PID: 2, Proc: "2", Exe: "/usr/bin/find",
		Surface: core.FilesRead, Action: core.ActRead, Target: fmt.Sprintf("/usr/share/doc/%d/\xffcopyright", n), Verdict: core.Allowed, Rule: "fully-virtualised: files.read"}
	if n%10 == 0 {
		op.Detail = core.Detail{"flags": "O_RDONLY"}
	}
	return op
}

func openLog(t testing.TB, home string, s core.Session) *Log {
	t.Helper()
	l, err := OpenLog(LogOptions{Home: home, Session: s, Bad: func(err error) { t.Log("log:", err) }})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func appendOps(t testing.TB, l *Log, s core.Session, from, to int) {
	t.Helper()
	for n := from; n <= to; n++ {
		if err := l.Append(operation(s, n)); err != nil {
			t.Fatal(err)
		}
	}
}

// untilAcked waits until the streams have all that the log has, or fails.
func untilAcked(t testing.TB, l *Log) {
	t.Helper()
	until(t, func() bool { st := l.Stats(); return st.Acked == st.Appended && st.Waiting == 0 }, func() any { return l.Stats() })
}

// until polls: what it waits for says nothing when it comes.
func until(t testing.TB, ok func() bool, state func() any) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("in vain: %+v", state())
		}
	}
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(soon(t)); err != nil {
		t.Fatal(err)
	}
}

// check demands that the streams have operations 1 to n of each session exactly once, in
// order, as they were appended, with chains and seals that hold.
func (d *daemon) check(t testing.TB, home string, n int, lost bool, sessions ...core.Session) {
	t.Helper()
	ops, ctl := d.delivered(t)
	key, err := SealKey(home)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions {
		var bodies [][]byte
		next := 1
		for _, m := range ops {
			if m.Batch.Session != s.ID {
				continue
			}
			bodies = append(bodies, m.Body)
			for i := range m.Batch.Ops {
				if want := operation(s, next); !reflect.DeepEqual(&m.Batch.Ops[i], want) {
					t.Fatalf("session %s: in the stream\n%+v\nwant\n%+v", s.ID, m.Batch.Ops[i], want)
				}
				next++
			}
		}
		if next != n+1 {
			t.Errorf("session %s: %d operations in the stream, want %d", s.ID, next-1, n)
		}
		head, last, err := VerifyChain(bodies...)
		if err != nil {
			t.Error(err)
		}
		var kinds []LifeKind
		for _, m := range ctl {
			if m.Life.Session != s.ID {
				continue
			}
			kinds = append(kinds, m.Life.Kind)
			if m.Life.Kind == SessionEnd {
				if m.Life.Lost != lost {
					t.Errorf("session %s: lost %t, want %t", s.ID, m.Life.Lost, lost)
				}
				if err := m.Life.VerifySeal(key.Public().(ed25519.PublicKey), head, last); err != nil {
					t.Error(err)
				}
			}
		}
		if want := []LifeKind{SessionBegin, SessionEnd}; !slices.Equal(kinds, want) {
			t.Errorf("session %s: life %v, want %v", s.ID, kinds, want)
		}
	}
}

func noSpool(t testing.TB, home string) {
	t.Helper()
	if es, err := os.ReadDir(SpoolDir(home)); err != nil || len(es) != 0 {
		t.Errorf("spools left: %v, %v", es, err)
	}
}

func TestASessionIsInTheStreamsWhenItsLogIsClosed(t *testing.T) {
	home, s := t.TempDir(), session(1)
	d := startDaemon(t, home)
	l := openLog(t, home, s)
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	appendOps(t, l, s, 1, 5000)
	if err := l.End(3); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	noSpool(t, home)
	d.check(t, home, 5000, false, s)
	_, ctl := d.delivered(t)
	begin, end := ctl[0].Life, ctl[1].Life
	if begin.Policy != s.Policy || !slices.Equal(begin.Command, s.Command) || begin.Net != s.Net || begin.Observe != s.Observe || !begin.Time.Equal(s.Start) {
		t.Errorf("begin: %+v", begin)
	}
	if end.Exit != 3 || end.Last != 5000 {
		t.Errorf("end: %+v", end)
	}
}

func TestMessagesAreCloudEvents(t *testing.T) {
	home, s := t.TempDir(), session(1)
	d := startDaemon(t, home)
	l := openLog(t, home, s)
	appendOps(t, l, s, 1, 3)
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	for stream, want := range map[string]map[string]string{
		StreamOps: {"ce-specversion": "1.0", "ce-id": string(s.ID) + ":1", "ce-type": "dev.sandglass.ops.v1", "content-type": "application/cbor",
			"ce-source": "/sandglass/glass/web%2Edev/" + string(s.ID), "ce-time": "2026-03-14T15:09:26.535900932Z"},
		StreamCtl: {"ce-specversion": "1.0", "ce-id": string(s.ID) + ":session.end", "ce-type": "dev.sandglass.life.v1", "content-type": "application/json",
			"ce-source": "/sandglass/glass/web%2Edev/" + string(s.ID)},
	} {
		st, err := d.js.Stream(soon(t), stream)
		if err != nil {
			t.Fatal(err)
		}
		m, err := st.GetMsg(soon(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range want {
			if got := m.Header.Get(k); got != v {
				t.Errorf("%s of a message of %s: %q, want %q", k, stream, got, v)
			}
		}
		if last := map[string]string{StreamOps: ".ops", StreamCtl: ".life"}[stream]; m.Subject != "sandglass.glass.web%2Edev."+string(s.ID)+last {
			t.Errorf("subject %q", m.Subject)
		}
	}
}

func TestNothingIsLostOrDoubledWhenTheDaemonDiesAndComesBack(t *testing.T) {
	home, s := t.TempDir(), session(1)
	d := startDaemon(t, home)
	l := openLog(t, home, s)
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	const n = 40000
	for i := range 4 {
		appendOps(t, l, s, i*n/4+1, (i+1)*n/4) // the stop comes while these are published
		d.stop()
		appendOps(t, l, s, 0, -1)
		d = startDaemon(t, home)
	}
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	untilAcked(t, l)
	closeLog(t, l)
	noSpool(t, home)
	d.check(t, home, n, false, s)
}

func TestALogWithoutABusGoesOnAndIsDrainedLater(t *testing.T) {
	home, s := t.TempDir(), session(1)
	l := openLog(t, home, s)
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	appendOps(t, l, s, 1, 3000)
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	d := startDaemon(t, home)
	rep, err := DrainSpools(soon(t), home, d.nc)
	if err != nil || len(rep.Drained) != 1 || len(rep.Lost) != 0 || len(rep.Bad) != 0 {
		t.Errorf("report %+v, %v", rep, err)
	}
	noSpool(t, home)
	d.check(t, home, 3000, false, s)
	if rep, err := DrainSpools(soon(t), home, d.nc); err != nil || rep.Published != 0 {
		t.Errorf("second report %+v, %v", rep, err)
	}
}

func TestASessionWhoseSupervisorDiedIsToldAsLost(t *testing.T) {
	for name, before := range map[string]int{"published in part": 1000, "not published": 0, "published whole": 2000} {
		t.Run(name, func(t *testing.T) {
			home, s := t.TempDir(), session(1)
			var d *daemon
			if before > 0 {
				d = startDaemon(t, home)
			}
			l := openLog(t, home, s)
			if err := l.Begin(Life{}); err != nil {
				t.Fatal(err)
			}
			appendOps(t, l, s, 1, max(before, 1))
			if before > 0 {
				untilAcked(t, l)
			}
			if before == 1000 {
				d.stop()
			}
			appendOps(t, l, s, max(before, 1)+1, 2000)
			closeLog(t, l) // without an end, as a kill leaves it, which does not note what was acknowledged
			if err := os.Remove(filepath.Join(l.spool.dir, ackedName)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if before != 2000 {
				d = startDaemon(t, home)
			}
			rep, err := DrainSpools(soon(t), home, d.nc)
			if err != nil || !slices.Equal(rep.Lost, []core.SessionID{s.ID}) {
				t.Errorf("report %+v, %v", rep, err)
			}
			noSpool(t, home)
			d.check(t, home, 2000, true, s)
		})
	}
}

func TestTheSpoolOfALivingSessionIsLeftAlone(t *testing.T) {
	home, s := t.TempDir(), session(1)
	l := openLog(t, home, s)
	d := startDaemon(t, home)
	rep, err := DrainSpools(soon(t), home, d.nc)
	if err != nil || rep.Running != 1 || rep.Published != 0 {
		t.Errorf("report %+v, %v", rep, err)
	}
	closeLog(t, l)
	noSpool(t, home) // nothing was logged, so nothing stays
}

func TestTwoSessionsAtOnce(t *testing.T) {
	home := t.TempDir()
	d := startDaemon(t, home)
	ss := []core.Session{session(1), session(2)}
	var wg sync.WaitGroup
	for _, s := range ss {
		l := openLog(t, home, s)
		wg.Go(func() {
			if err := l.Begin(Life{}); err != nil {
				t.Error(err)
			}
			for n := 1; n <= 20000; n++ {
				if err := l.Append(operation(s, n)); err != nil {
					t.Error(err)
					return
				}
			}
			if err := errors.Join(l.End(0), l.Close(soon(t))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	noSpool(t, home)
	d.check(t, home, 20000, false, ss...)
}

func TestABlockedOperationDoesNotWaitForOthers(t *testing.T) {
	home, s := t.TempDir(), session(1)
	d := startDaemon(t, home)
	l := openLog(t, home, s)
	op := operation(s, 1)
	op.Verdict, op.Errno = core.Blocked, "EPERM"
	if err := l.Append(op); err != nil {
		t.Fatal(err)
	}
	err := Consume(soon(t), d.js, nil, 10, func(ds []Delivered) error {
		if ds[0].Batch.Ops[0].Errno != "EPERM" {
			t.Errorf("%+v", ds[0].Batch)
		}
		return context.Canceled
	})
	if err != context.Canceled {
		t.Error(err)
	}
	closeLog(t, l)
}

func TestNotesReachTheStreamThroughTheDaemon(t *testing.T) {
	home := t.TempDir()
	for _, k := range []LifeKind{BoxCreate, UserLogin, BoxRemove} {
		if err := Note(home, Life{Kind: k, Time: testTime, Host: testHost, Box: map[bool]string{false: testBox}[k == UserLogin], User: "ada"}); err != nil {
			t.Fatal(err)
		}
	}
	d := startDaemon(t, home)
	if rep, err := DrainSpools(soon(t), home, d.nc); err != nil || len(rep.Drained) != 3 || len(rep.Lost) != 0 {
		t.Errorf("report %+v, %v", rep, err)
	}
	noSpool(t, home)
	_, ctl := d.delivered(t)
	seen := map[LifeKind]bool{}
	for _, m := range ctl {
		seen[m.Life.Kind] = true
	}
	if len(ctl) != 3 || len(seen) != 3 {
		t.Errorf("%d facts: %v", len(ctl), seen)
	}
	if err := Note(home, Life{Kind: SessionEnd}); err == nil {
		t.Error("a session's end was taken as a note")
	}
}

func TestConsumeGoesOnWhereItStopped(t *testing.T) {
	home, s := t.TempDir(), session(1)
	d := startDaemon(t, home)
	l := openLog(t, home, s)
	appendOps(t, l, s, 1, 10000)
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	from := map[string]uint64{}
	next, stop, largest := core.Seq(1), errors.New("stop"), 0
	for from[StreamCtl] == 0 || next != 10001 {
		err := Consume(soon(t), d.js, from, 7, func(ds []Delivered) error {
			largest = max(largest, len(ds))
			for _, m := range ds {
				if m.StreamSeq != from[m.Stream]+1 {
					t.Fatalf("message %d of %s after %d", m.StreamSeq, m.Stream, from[m.Stream])
				}
				from[m.Stream] = m.StreamSeq
				if m.Batch != nil {
					if m.Batch.First != next {
						t.Fatalf("operation %d after %d", m.Batch.First, next-1)
					}
					next = m.Batch.Last() + 1
				}
			}
			return stop
		})
		if err != stop {
			t.Fatal(err)
		}
	}
	if largest > 7 {
		t.Errorf("%d messages in one call", largest)
	}
	ctx, cancel := context.WithCancel(soon(t))
	cancel()
	if err := Consume(ctx, d.js, from, 7, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestConsumeStopsAtWhatItDoesNotKnow(t *testing.T) {
	body := encode(t, sample())
	subject := (address{testHost, testBox, testSession}).subject(StreamOps)
	life := (address{testHost, testBox, testSession}).subject(StreamCtl)
	const rm = `{"v":1,"kind":"box.rm","time":"2026-03-14T15:09:26Z","host":"glass","box":"web.dev"}`
	begin, err := EncodeLife(sampleLives()["session.begin"])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		subject, kind string
		body          []byte
		want          string
	}{
		"a type of later":             {subject, "dev.sandglass.ops.v2", body, `unknown type "dev.sandglass.ops.v2"`},
		"no type":                     {subject, "", body, `unknown type ""`},
		"a body that is not one":      {subject, TypeOps, body[:20], "cut short"},
		"a batch of another session":  {strings.Replace(subject, "01KAS", "01KAT", 1), TypeOps, body, "another session"},
		"a life that is not its type": {subject, TypeLife, body, "decode life"},
		"a box removed by a session":  {life, TypeLife, []byte(rm), "may not tell"},
		"a session's end by another":  {strings.Replace(life, "01KAS", "01KAT", 1), TypeLife, begin, "may not tell"},
		"another box's life":          {strings.Replace(life, "web", "wob", 1), TypeLife, begin, "may not tell"},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t, t.TempDir())
			m := nats.NewMsg(c.subject)
			m.Data = c.body
			m.Header.Set(headerType, c.kind)
			if _, err := d.js.PublishMsg(soon(t), m); err != nil {
				t.Fatal(err)
			}
			err := Consume(soon(t), d.js, nil, 10, func([]Delivered) error { return errors.New("delivered") })
			var bad *MessageError
			if !errors.As(err, &bad) || bad.StreamSeq != 1 || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestConsumeSurvivesTheServersAbsence(t *testing.T) {
	home, s := t.TempDir(), session(1)
	d := startDaemon(t, home)
	nc, err := Connect(home, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	l := openLog(t, home, s)
	ctx, got := soon(t), make(chan core.Seq, 10000)
	done := make(chan error, 1)
	stop := errors.New("stop")
	go func() {
		done <- Consume(ctx, js, nil, 100, func(ds []Delivered) error {
			for _, m := range ds {
				for i := range m.Batch.Ops {
					got <- m.Batch.Ops[i].Seq
					if m.Batch.Ops[i].Seq == 3000 {
						return stop
					}
				}
			}
			return nil
		})
	}()
	for i := range 3 {
		appendOps(t, l, s, i*1000+1, (i+1)*1000)
		untilAcked(t, l)
		if i < 2 {
			d.stop()
			d = startDaemon(t, home)
		}
	}
	if err := <-done; err != stop {
		t.Fatal(err)
	}
	close(got)
	next := core.Seq(1)
	for seq := range got {
		if seq != next {
			t.Fatalf("operation %d, want %d", seq, next)
		}
		next++
	}
	closeLog(t, l)
}

func TestOneServerForOneStateFolder(t *testing.T) {
	home := t.TempDir()
	startDaemon(t, home)
	if _, err := StartServer(ServerOptions{Home: home}); err == nil || len(core.Hints(err)) == 0 {
		t.Errorf("a second server: %v", err)
	}
}

func TestASocketsPathMayBeLong(t *testing.T) {
	home := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	s := session(1)
	d := startDaemon(t, home)
	l := openLog(t, home, s)
	appendOps(t, l, s, 1, 10)
	untilAcked(t, l)
	closeLog(t, l)
	d.stop()
	if _, err := os.Stat(SocketPath(home)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestTheStateFolderIsItsOwnersAlone(t *testing.T) {
	home, s := t.TempDir(), session(1)
	startDaemon(t, home)
	l := openLog(t, home, s)
	appendOps(t, l, s, 1, 10)
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	untilAcked(t, l)
	l.saveAcked()
	seen := 0
	for _, sub := range []string{"spool", "keys", "bus.sock", "bus"} {
		err := filepath.WalkDir(filepath.Join(home, sub), func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			want := os.FileMode(0o600)
			if e.IsDir() {
				want = 0o700
			}
			if strings.HasPrefix(path, filepath.Join(home, "bus")+"/") {
				return filepath.SkipDir // the server's own, behind a folder that is checked
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s: mode %v, want %v", path, got, want)
			}
			seen++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 10 {
		t.Errorf("%d files seen", seen)
	}
	closeLog(t, l)
}

func TestAServerWhoseDiskWasFullIsStartedAnew(t *testing.T) {
	home, fill, free := disk(t, "32m")
	d := startDaemon(t, home)
	t.Cleanup(d.stop) // before the disk goes
	s := session(1)
	if err := d.Ill(); err != nil {
		t.Fatal(err)
	}
	spools := filepath.Join(t.TempDir(), "spool")
	l, err := OpenLog(LogOptions{Home: home, SpoolDir: spools, Session: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	appendOps(t, l, s, 1, 1000)
	untilAcked(t, l)
	fill()
	for n := 1001; d.Ill() == nil; n += 256 { // some goes into the block that the disk has room for already
		appendOps(t, l, s, n, n+255)
		until(t, func() bool { st := l.Stats(); return st.Acked == st.Appended || d.Ill() != nil }, func() any { return l.Stats() })
	}
	if err := d.Ill(); !errors.Is(err, ErrDiskFull) {
		t.Errorf("it is ill: %v", err)
	}
	free()
	if d.Ill() == nil {
		t.Error("it got well by itself: there is no need of Restart any more")
	}
	if err := d.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := d.Ill(); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	last := int(l.next) - 1
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	untilAcked(t, l)
	closeLog(t, l)
	d.check(t, home, last, false, s)
	d.Shutdown()
	if d.Restart() == nil {
		t.Error("a server that was shut down was started anew")
	}
}

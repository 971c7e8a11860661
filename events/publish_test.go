package events

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sandglass/sandglass/core"
)

// TestMain runs a daemon that can be killed, when the environment says so.
func TestMain(m *testing.M) {
	if home := os.Getenv("SANDGLASS_TEST_DAEMON"); home != "" {
		if err := runDaemon(home); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func runDaemon(home string) error {
	s, err := StartServer(ServerOptions{Home: home})
	if err != nil {
		return err
	}
	nc, err := s.Connect()
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if err := Streams(context.Background(), js); err != nil {
		return err
	}
	select {}
}

// daemonProcess starts a daemon in a process of its own and returns how to kill it.
func daemonProcess(t *testing.T, home string) (kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SANDGLASS_TEST_DAEMON="+home)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the daemon said %q: %v", line, err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(kill)
	return kill
}

func TestADaemonThatIsKilledCostsNothing(t *testing.T) {
	home, s := t.TempDir(), session(1)
	l := openLog(t, home, s)
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range 4 {
		kill := daemonProcess(t, home)
		// The kill comes when some of this has been acknowledged and more is on its way.
		target := l.Stats().Acked + 3000
		for l.Stats().Acked < target {
			appendOps(t, l, s, n+1, n+100)
			n += 100
		}
		appendOps(t, l, s, n+1, n+3000)
		n += 3000
		kill()
	}
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, home)
	untilAcked(t, l)
	closeLog(t, l)
	noSpool(t, home)
	d.check(t, home, n, false, s)
	if l.Stats().Retries == 0 {
		t.Error("no publish was interrupted: this test shows nothing")
	}
}

// records makes count records of ten operations each.
func records(t testing.TB, s core.Session, count int) (recs []*record) {
	var sum [32]byte
	for i := range count {
		var rec []byte
		rec, sum = batchRecord(t, marker{}, s, i*10+1, 10, sum)
		recs = append(recs, &record{kind: kindOps, body: rec[recordHead:], time: testTime, first: core.Seq(i*10 + 1), count: 10})
	}
	return recs
}

func firsts(ops []Delivered) (fs []core.Seq) {
	for _, m := range ops {
		fs = append(fs, m.Batch.First)
	}
	return fs
}

func TestAPublisherThatMissedAnswersDoublesNothing(t *testing.T) {
	for _, count := range []int{1, 5, 40} {
		t.Run(fmt.Sprint(count, " at once"), func(t *testing.T) {
			home, s := t.TempDir(), session(1)
			d := startDaemon(t, home)
			recs := records(t, s, 3*count)
			forgetful := &publisher{nc: d.nc, addr: address{s.Host, s.Box, s.ID}}
			if err := forgetful.locate(soon(t)); err != nil {
				t.Fatal(err)
			}
			// What another publishes, the first does not learn of: as if answers had been lost.
			other := &publisher{nc: d.nc, addr: forgetful.addr}
			if done, err := other.publish(soon(t), recs[:2*count]); err != nil || done != 2*count {
				t.Fatal(done, err)
			}
			if done, err := forgetful.publish(soon(t), recs); !errors.Is(err, errMoved) || done != 0 {
				t.Fatalf("%d published, %v", done, err)
			}
			if done, err := forgetful.publish(soon(t), recs); err != nil || done != 3*count {
				t.Fatalf("%d published, %v", done, err)
			}
			ops, _ := d.delivered(t)
			if len(ops) != 3*count {
				t.Fatalf("in the stream: %v", firsts(ops))
			}
			for i, f := range firsts(ops) {
				if f != core.Seq(i*10+1) {
					t.Fatalf("in the stream: %v", firsts(ops))
				}
			}
		})
	}
}

func TestAStreamThatTakesNoBatchesGetsSingleMessages(t *testing.T) {
	home, s := t.TempDir(), session(1)
	d := startDaemon(t, home)
	st, err := d.js.Stream(soon(t), StreamOps)
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	cfg.AllowAtomicPublish = false
	if _, err := d.js.UpdateStream(soon(t), cfg); err != nil {
		t.Fatal(err)
	}
	p := &publisher{nc: d.nc, addr: address{s.Host, s.Box, s.ID}}
	recs := records(t, s, 50)
	done, err := p.publish(soon(t), recs)
	if err == nil || done != 0 {
		t.Fatalf("%d published as a batch, %v: the stream takes batches", done, err)
	}
	if done, err := p.publish(soon(t), recs); err != nil || done != 50 {
		t.Fatalf("%d published, %v", done, err)
	}
	if ops, _ := d.delivered(t); len(ops) != 50 {
		t.Errorf("in the stream: %v", firsts(ops))
	}
}

func TestALogWaitsForItsStreams(t *testing.T) {
	home, s := t.TempDir(), session(1)
	srv, err := StartServer(ServerOptions{Home: home}) // a bus without streams
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown()
	l := openLog(t, home, s)
	appendOps(t, l, s, 1, 100)
	until(t, func() bool { return l.Stats().Retries > 2 }, func() any { return l.Stats() })
	nc, err := srv.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := Streams(soon(t), js); err != nil {
		t.Fatal(err)
	}
	untilAcked(t, l)
	closeLog(t, l)
}

func TestAnExternalServer(t *testing.T) {
	home, s := t.TempDir(), session(1)
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	defer ns.Shutdown()
	if !ns.ReadyForConnections(patience) {
		t.Fatal("the server does not become ready")
	}
	nc, err := Connect(home, ns.ClientURL(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := Streams(soon(t), js); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLog(LogOptions{Home: home, Session: s, NATSURL: ns.ClientURL()})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Begin(Life{}); err != nil {
		t.Fatal(err)
	}
	appendOps(t, l, s, 1, 10000)
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	noSpool(t, home)
	(&daemon{js: js}).check(t, home, 10000, false, s)
}

func TestAServerThatIsFarOrGoneDoesNotHoldUpTheEnd(t *testing.T) {
	home, s := t.TempDir(), session(1)
	l, err := OpenLog(LogOptions{Home: home, Session: s, NATSURL: "nats://192.0.2.1:4222"}) // RFC 5737: nobody is there
	if err != nil {
		t.Fatal(err)
	}
	appendOps(t, l, s, 1, 10)
	if err := l.End(0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(soon(t))
	cancel()
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if recs, bad := readAll(t, filepath.Join(SpoolDir(home), string(s.ID)), s); len(recs) < 2 || len(bad) != 0 {
		t.Errorf("%d records stay, %v", len(recs), bad)
	}
}

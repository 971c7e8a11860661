package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandglass/sandglass/core"
)

// serveControl answers on the control socket of a home until the test ends.
func serveControl(t *testing.T, h Home, serve func(ctx context.Context, q request, say func(reply)) (reply, error)) {
	t.Helper()
	l, err := listenControl(h.control())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- (&controlServer{l: l, serve: serve}).run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestTheDaemonAnswersHoweverDeepTheStateFolderIs(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40), "home")
	t.Setenv("SANDGLASS_HOME", deep)
	h, err := OpenHome()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ask(context.Background(), request{Do: doLink}, nil); !errors.Is(err, errNoDaemon) {
		t.Fatalf("without a daemon: %v", err)
	}
	serveControl(t, h, func(ctx context.Context, q request, say func(reply)) (reply, error) {
		say(reply{Progress: &progress{"x", 1, 2}})
		return reply{Link: "for " + q.Do}, nil
	})
	fi, err := os.Stat(h.control())
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("control socket: %v, %v; want mode 0600", fi, err)
	}
	var steps int
	r, err := h.ask(context.Background(), request{Do: doLink}, func(reply) { steps++ })
	if err != nil || r.Link != "for link" || steps != 1 {
		t.Errorf("ask() = %+v, %v after %d steps", r, err, steps)
	}
}

func TestAnErrorOfTheDaemonComesWithItsHints(t *testing.T) {
	h := testHome(t)
	serveControl(t, h, func(context.Context, request, func(reply)) (reply, error) {
		return reply{}, core.Hint(errors.New("no\ngood"), "do this", "or that")
	})
	_, err := h.ask(context.Background(), request{Do: doSync}, nil)
	if err == nil || err.Error() != "no; good" || len(core.Hints(err)) != 2 {
		t.Errorf("ask() = %v, hints %q", err, core.Hints(err))
	}
}

func TestWhoeverAsksMayGoAway(t *testing.T) {
	h := testHome(t)
	began, ended := make(chan bool, 1), make(chan error, 1)
	serveControl(t, h, func(ctx context.Context, _ request, _ func(reply)) (reply, error) {
		began <- true
		<-ctx.Done()
		ended <- ctx.Err()
		return reply{}, ctx.Err()
	})
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		<-began
		cancel(errors.New("had enough"))
	}()
	if _, err := h.ask(ctx, request{Do: doSync}, nil); err == nil || !strings.Contains(err.Error(), "had enough") {
		t.Errorf("ask() = %v", err)
	}
	<-ended // the daemon stops working for nobody
}

func TestNonsenseOnTheControlSocketIsAnswered(t *testing.T) {
	h := testHome(t)
	serveControl(t, h, func(_ context.Context, q request, _ func(reply)) (reply, error) {
		return reply{}, errors.New("unknown request " + q.Do)
	})
	for _, in := range []string{"\n", "{\n", `{"do":"x"}` + "\n", `{"do":7}` + "\n"} {
		c, err := net.Dial("unix", h.control())
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(in))
		buf := make([]byte, 4096)
		n, err := c.Read(buf)
		if err != nil || !strings.Contains(string(buf[:n]), `"error"`) {
			t.Errorf("%q is answered with %q, %v", in, buf[:n], err)
		}
		c.Close()
	}
}

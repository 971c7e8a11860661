package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
	"github.com/sandglass/sandglass/store"
	"github.com/sandglass/sandglass/web"
)

func newServe(p *printer) *cobra.Command {
	var o struct {
		listen, nats         string
		background, inherits bool
	}
	c := &cobra.Command{
		Use:   "serve [--listen ADDR] [--nats URL] [--background]",
		Short: "Run the daemon: event bus, projections, dashboard",
		Long: `Run the daemon of this state folder: the event bus, the projections and the dashboard.
There is one at a time; ` + "`sandglass run`" + ` starts it when it is absent. Boxes do not need it to
run: what they do waits in the spool until it is there.`,
		Example: `  sandglass serve                              until Ctrl-C
  sandglass serve --background                 until sandglass stop
  sandglass serve --listen 127.0.0.1:8080
  sandglass serve --nats nats://bus.example:4222`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			if o.inherits {
				return serveInherited(c.Context(), h)
			}
			switch {
			case !c.Flags().Changed("nats"):
				o.nats = h.externalBus()
			case o.nats == embeddedBus:
				o.nats = ""
			}
			if o.background {
				return serveBackground(c.Context(), p, h, o.listen, orders{NATS: o.nats})
			}
			lock, err := lockFile(h.daemonLock(), lockTry)
			if errors.Is(err, errLocked) {
				return h.errRunning()
			}
			if err != nil {
				return err
			}
			defer lock.Unlock()
			l, err := h.listen(o.listen, false)
			if err != nil {
				return err
			}
			d := &daemon{home: h, l: l, nats: o.nats, journal: newJournal("")}
			d.ready = func() {
				p.Note("dashboard %s", d.newLink())
				if !isLoopback(l.Addr().String()) {
					p.Note("others on the network can reach it: they need a link to sign in, but nothing is encrypted on the way")
				}
			}
			return d.run(c.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&o.listen, "listen", defaultListen, "where the dashboard listens, HOST:PORT")
	f.StringVar(&o.nats, "nats", "", "URL of an external NATS server with JetStream, or \""+embeddedBus+"\" (default: as the last time; at first \""+embeddedBus+"\")")
	f.BoolVar(&o.background, "background", false, "start it in the background, and return when it answers")
	f.BoolVar(&o.inherits, "inherited", false, "take over lock, port and orders from the process that starts this one")
	f.MarkHidden("inherited")
	return c
}

// errRunning says which daemon holds the lock.
func (h Home) errRunning() error {
	err := errors.New("a daemon runs already with this state folder")
	if d, derr := h.daemonInfo(); derr == nil {
		err = fmt.Errorf("a daemon runs already with this state folder: pid %d, http://%s", d.PID, d.Address)
	}
	return core.Hint(err, "`sandglass link` signs you in to it; `sandglass stop` stops it")
}

func serveBackground(ctx context.Context, p *printer, h Home, listen string, o orders) error {
	addr, err := h.startDaemon(listen, false, o)
	if errors.Is(err, errLocked) {
		return h.errRunning()
	}
	if err != nil {
		return err
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	if err := h.awaitDaemon(ctx); err != nil {
		return err
	}
	p.Line("dashboard  http://%s  (`sandglass link` signs you in)", addr)
	return nil
}

func serveInherited(ctx context.Context, h Home) error {
	lock, l, o, err := inherited()
	if err != nil {
		return err
	}
	defer lock.Unlock()
	d := &daemon{home: h, l: l, nats: o.NATS, token: o.Token, journal: newJournal(h.daemonLog())}
	err = d.run(ctx)
	if err == nil {
		return nil
	}
	for _, hint := range core.Hints(err) {
		d.journal.Say("hint: %s", hint)
	}
	d.journal.Say("the daemon ends: %s", err) // the last line: who waits for the daemon shows it
	return exitCode(exitSandglass)
}

// daemon is the one process that serves a state folder.
type daemon struct {
	home    Home
	l       *net.TCPListener
	nats    string // URL of an external bus
	token   string // of a first link
	journal *journal
	ready   func() // called when the daemon answers; may be nil

	started time.Time
	auth    *web.Auth
	proj    *projector
	stop    context.CancelCauseFunc
}

// errStopped is the cause of a stop that was asked for.
var errStopped = errors.New("stopped")

// run serves until a signal or `sandglass stop`.
func (d *daemon) run(parent context.Context) (err error) {
	defer d.l.Close()
	d.started = time.Now()
	ctx, unsignal := untilSignal(parent)
	defer unsignal()
	ctx, d.stop = context.WithCancelCause(ctx)
	defer d.stop(nil)

	b, err := openBus(ctx, d.home, d.nats)
	if err != nil {
		return err
	}
	defer b.close()
	st, err := openStore(d.home)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := st.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close the projections: %w", cerr)
		}
	}()
	d.proj = newProjector(b, st, d.journal.Say)
	d.auth = web.NewAuth() // ends with the process
	d.keepSignIns()
	srv := d.dashboard(st)
	control, err := listenControl(d.home.control())
	if err != nil {
		return err
	}
	defer os.Remove(d.home.control())
	address := d.l.Addr().String()
	if err := d.home.writeDaemonInfo(daemonInfo{PID: os.Getpid(), Address: address, NATS: d.nats, Version: version(), Started: d.started}); err != nil {
		return homeHint(fmt.Errorf("say where the daemon is: %w", err))
	}
	defer os.Remove(d.home.daemonFile())
	if err := d.home.rememberBus(d.nats); err != nil {
		return err
	}

	var wg sync.WaitGroup
	defer wg.Wait()
	defer d.stop(nil)
	wg.Go(func() { d.proj.run(ctx) })
	wg.Go(func() { d.proj.drainSometimes(ctx) })
	wg.Go(func() { b.tend(ctx, d.journal.Say, d.proj.again) })
	wg.Go(func() {
		if err := (&controlServer{l: control, serve: d.answer}).run(ctx); err != nil {
			d.stop(err)
		}
	})
	wg.Go(func() {
		if err := srv.Serve(d.l); !errors.Is(err, http.ErrServerClosed) {
			d.stop(fmt.Errorf("serve the dashboard: %w", err))
		}
	})
	d.journal.Say("daemon %s, pid %d, dashboard http://%s, state folder %s", version(), os.Getpid(), address, d.home)
	if d.ready != nil {
		d.ready()
	}
	<-ctx.Done()
	cause := context.Cause(ctx)
	d.journal.Say("the daemon stops: %s", cause)
	grace, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	var sig *interrupted
	if errors.Is(cause, errStopped) || errors.As(cause, &sig) {
		return nil // a daemon that is told to end has done what it was told
	}
	return cause
}

// openStore opens the projections.
func openStore(h Home) (*store.Store, error) {
	st, err := store.Open(string(h))
	return st, homeHint(err)
}

// answer handles one request on the control socket.
func (d *daemon) answer(ctx context.Context, q request, say func(reply)) (reply, error) {
	tell := func(p progress) { say(reply{Progress: &p}) }
	switch q.Do {
	case doStatus:
		s, err := d.status(ctx)
		return reply{Status: s}, err
	case doLink:
		return reply{Link: d.newLink()}, nil
	case doSync:
		return reply{}, d.proj.sync(ctx, nil)
	case doRebuild:
		return reply{}, d.proj.rebuild(ctx, atIntervals(tell))
	case doStop:
		d.stop(errStopped)
		return reply{}, nil
	}
	return reply{}, fmt.Errorf("unknown request %q: this daemon is version %s", core.Shorten(q.Do, 80), version())
}

// atIntervals lets through a call now and then: who folds 100,000 operations a second
// need not say so each time.
func atIntervals(tell func(progress)) func(progress) {
	var last time.Time
	return func(p progress) {
		if now := time.Now(); now.Sub(last) > 100*time.Millisecond {
			last = now
			tell(p)
		}
	}
}

func (d *daemon) status(ctx context.Context) (*status, error) {
	since := d.started.UTC()
	s := &status{Running: true, Home: string(d.home), PID: os.Getpid(), Address: "http://" + d.l.Addr().String(), Version: version(),
		Since: &since, NATS: d.proj.bus.name, Spool: d.home.spoolInfo()}
	lag, stopped, err := d.proj.lag(ctx)
	if err != nil {
		s.Trouble = append(s.Trouble, "bus: "+oneLine(err.Error()))
	}
	for _, name := range []string{events.StreamCtl, events.StreamOps} {
		if i, ok := lag[name]; ok {
			s.Streams = append(s.Streams, i)
		}
	}
	if stopped != nil {
		s.Trouble = append(s.Trouble, "projections: "+oneLine(stopped.Error()))
	}
	d.proj.mu.Lock()
	s.Trouble = append(s.Trouble, d.proj.kept...)
	d.proj.mu.Unlock()
	return s, nil
}

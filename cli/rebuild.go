package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
)

func newRebuild(p *printer) *cobra.Command {
	return &cobra.Command{
		Use:   "rebuild",
		Short: "Throw the projections away and fold the stream again",
		Long: `Throw the projections away and fold the stream again. Nothing is lost by it: what is
shown anywhere is a fold of the stream, and comes out the same. Boxes and the daemon may
run meanwhile.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			began, of := time.Now(), uint64(0)
			tell := func(g progress) {
				of = g.Of
				p.Progress("rebuild: %d of %d messages", g.Done, g.Of)
			}
			err = h.withProjector(ctx, p, func(ask func(request, func(reply)) error, own *projector) error {
				if own != nil {
					return own.rebuild(ctx, atIntervals(tell))
				}
				return ask(request{Do: doRebuild}, func(r reply) {
					if r.Progress != nil {
						tell(*r.Progress)
					}
				})
			})
			p.Done()
			if err != nil {
				return err
			}
			_ = of
			p.Note("rebuilt in %s", time.Since(began).Round(time.Millisecond))
			return nil
		},
	}
}

// withProjector calls f with a way to ask the daemon, or, when none runs, with a projector
// of its own, which runs until f returns.
func (h Home) withProjector(ctx context.Context, p *printer, f func(ask func(request, func(reply)) error, own *projector) error) error {
	ask := func(q request, each func(reply)) error {
		_, err := h.ask(ctx, q, each)
		return err
	}
	for {
		err := f(ask, nil)
		if !errors.Is(err, errNoDaemon) {
			return err
		}
		lock, err := lockFile(h.daemonLock(), lockTry)
		if err == nil {
			defer lock.Unlock()
			return h.withOwn(ctx, p, func(own *projector) error { return f(nil, own) })
		}
		if !errors.Is(err, errLocked) {
			return err
		}
		// A daemon is on its way up or down, or another command does the same as this one.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// withOwn runs bus and projector in this process for as long as f takes. The caller holds
// the daemon's lock.
func (h Home) withOwn(ctx context.Context, p *printer, f func(*projector) error) error {
	b, err := openBus(ctx, h, h.externalBus())
	if err != nil {
		return err
	}
	defer b.close()
	st, err := openStore(h)
	if err != nil {
		return err
	}
	own := newProjector(b, st, p.Note)
	run, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		own.run(run)
		close(ended)
	}()
	err = f(own)
	stop()
	<-ended
	return errors.Join(err, st.Close())
}

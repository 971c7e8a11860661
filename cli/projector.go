package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/sandglass/sandglass/events"
	"github.com/sandglass/sandglass/store"
)

// consumeMax is how many messages are folded in one transaction at most: up to 256
// operations each. More gain nothing; fewer cost an fsync each.
const consumeMax = 256

// projector folds the streams into the projections, for as long as it runs, and brings
// what dead sessions left behind into the streams.
type projector struct {
	bus    *bus
	store  *store.Store
	say    func(format string, args ...any)
	onFold func([]events.Delivered) // told of what was folded; may be nil

	mu      sync.Mutex
	folded  map[string]uint64
	moved   chan struct{} // closed and made anew when folded changes, or trouble does
	stopped error         // why nothing is folded at the moment
	reset   bool          // begin from nothing
	restart context.CancelFunc
	kept    []string // what is not as it should be, for `status`
	aside   string   // where damaged projections were moved to

	draining sync.Mutex
}

func newProjector(b *bus, s *store.Store, say func(string, ...any)) *projector {
	return &projector{bus: b, store: s, say: say, folded: map[string]uint64{}, moved: make(chan struct{})}
}

// run folds until ctx ends.
func (p *projector) run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		again, cancel := context.WithCancel(ctx)
		p.mu.Lock()
		p.restart = cancel
		p.mu.Unlock()
		err := p.fold(again)
		restarted := again.Err() != nil
		cancel()
		if ctx.Err() != nil || restarted || errors.Is(err, store.ErrRestart) {
			continue
		}
		if said != err.Error() { // a full disk stays so for a while
			said = err.Error()
			p.say("projections: %s", err)
		}
		p.mu.Lock()
		p.stopped = err
		p.wake()
		p.mu.Unlock()
		select { // a message of a type that is not known stays so; all else may pass
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// wake tells those who wait that something has changed. p.mu is held.
func (p *projector) wake() {
	close(p.moved)
	p.moved = make(chan struct{})
}

func (p *projector) fold(ctx context.Context) error {
	p.mu.Lock()
	reset := p.reset
	p.mu.Unlock()
	if reset {
		if err := p.store.Reset(ctx); err != nil {
			return fmt.Errorf("empty the projections: %w", err)
		}
	}
	from, err := p.begin(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.folded, p.stopped, p.reset = maps.Clone(from), nil, false
	p.wake()
	p.mu.Unlock()
	return events.Consume(ctx, p.bus.js, from, consumeMax, func(ds []events.Delivered) error {
		// A fold that has begun is finished: a stop does not leave half a second's work behind.
		if err := p.store.FoldBatches(context.WithoutCancel(ctx), ds); err != nil {
			return fmt.Errorf("fold: %w", err)
		}
		p.mu.Lock()
		for _, d := range ds {
			p.folded[d.Stream] = max(p.folded[d.Stream], d.StreamSeq)
		}
		p.wake()
		p.mu.Unlock()
		if p.onFold != nil {
			p.onFold(ds)
		}
		return ctx.Err()
	})
}

// begin says from where to fold, and of what the streams have lost.
func (p *projector) begin(ctx context.Context) (map[string]uint64, error) {
	states, err := p.bus.states(ctx)
	if err != nil {
		return nil, err
	}
	from, lost, err := p.store.Begin(ctx, states)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range lost {
		p.trouble("%s", l)
	}
	if aside := p.store.Recovered(); aside != p.aside {
		p.aside = aside
		p.trouble("the projections were damaged: moved to %s, made anew from the stream", aside)
	}
	return from, err
}

// trouble says what is not as it should be, and keeps it for `status`. p.mu is held.
func (p *projector) trouble(format string, args ...any) {
	p.say(format, args...)
	if len(p.kept) < maxTrouble {
		p.kept = append(p.kept, fmt.Sprintf(format, args...))
	}
}

// lag returns, of each stream, what is there and what is folded, and why folding has
// stopped, if it has.
func (p *projector) lag(ctx context.Context) (map[string]streamInfo, error, error) {
	states, err := p.bus.states(ctx)
	if err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := map[string]streamInfo{}
	for name, s := range states {
		i := streamInfo{Name: name, First: s.First, Last: s.Last, Folded: p.folded[name]}
		if s.Last > i.Folded {
			i.Lag = s.Last - max(i.Folded, min(s.First, s.Last)-min(1, s.First))
		}
		m[name] = i
	}
	return m, p.stopped, nil
}

// live says whether the projections follow the streams, and if not, why.
func (p *projector) live() (ok bool, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.reset:
		return false, "the projections are being rebuilt"
	case p.stopped != nil:
		return false, oneLine(p.stopped.Error())
	}
	return true, ""
}

// sync returns when all that was in the spools of sessions that have ended, and in the
// streams, at the time of the call is folded. It tells tell how far it is.
func (p *projector) sync(ctx context.Context, tell func(progress)) error {
	if err := p.drain(ctx); err != nil {
		return err
	}
	states, err := p.bus.states(ctx)
	if err != nil {
		return err
	}
	for {
		p.mu.Lock()
		moved, stopped, pending := p.moved, p.stopped, p.reset
		var done, of uint64
		for name, s := range states {
			if s.Last >= s.First {
				of += s.Last - s.First + 1
				if f := min(p.folded[name], s.Last); f >= s.First && !pending {
					done += f - s.First + 1
				}
			}
		}
		p.mu.Unlock()
		if done >= of && !pending {
			return nil
		}
		if stopped != nil && !pending {
			return stopped
		}
		if tell != nil {
			tell(progress{"fold", done, of})
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// rebuild throws the projections away and folds the streams again.
func (p *projector) rebuild(ctx context.Context, tell func(progress)) error {
	p.mu.Lock()
	p.reset = true
	p.folded = map[string]uint64{}
	p.mu.Unlock()
	p.again()
	return p.sync(ctx, tell)
}

// again has the streams looked at anew, as at the beginning, and folding go on from there.
func (p *projector) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.restart != nil {
		p.restart()
	}
}

// drain brings what dead sessions left in their spools into the streams.
func (p *projector) drain(ctx context.Context) error {
	p.draining.Lock()
	defer p.draining.Unlock()
	era, ill := p.bus.well()
	if ill != nil {
		return ill
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(era, cancel)()
	r, err := events.DrainSpools(ctx, string(p.bus.home), p.bus.conn)
	for _, id := range r.Lost {
		p.say("session %s: its supervisor died; what it had recorded is in the log", string(id))
	}
	p.mu.Lock()
	for _, b := range r.Bad {
		if b.Torn { // what a crash leaves at the end: no damage
			p.say("%s", b)
		} else {
			p.trouble("%s", b)
		}
	}
	p.mu.Unlock()
	if _, ill := p.bus.well(); ill != nil && err != nil {
		return ill
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("empty the spools: %w", err)
	}
	return err
}

// drainSometimes drains at once and then every now and then, until ctx ends.
func (p *projector) drainSometimes(ctx context.Context) {
	t := time.NewTicker(drainEvery)
	defer t.Stop()
	said := ""
	for {
		if err := p.drain(ctx); err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			p.say("%s", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// maxTrouble is how much of what is not as it should be `status` lists.
const maxTrouble = 20

// drainEvery is how often the spools are looked at for sessions that ended without the
// bus: a directory's listing and one lock for each session that runs.
const drainEvery = time.Second

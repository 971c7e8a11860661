package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"strconv"
	"time"

	"github.com/sandglass/sandglass/core"
)

const (
	boxGap     = 100 * time.Millisecond // between two renderings of a box's page
	boxesGap   = 400 * time.Millisecond // of all boxes
	blockedGap = 40 * time.Millisecond  // when something was blocked: on the screen within 150 ms
	slowGap    = time.Second            // of parts that need not be exact to the moment
	beatEvery  = 5 * time.Second        // the page calls itself stale after 3 beats without one
	writeLimit = 10 * time.Second       // for one message; a browser that is slower connects again
)

// live is an event stream: the parts of a page, again and again.
type live struct {
	box   string        // whose changes matter; "" for all
	gap   time.Duration // between renderings
	parts func(ctx context.Context, slow bool) ([]part, error)
}

// stream answers with l until the browser goes away, signs out, or the hub closes. What
// it sends first is everything: a page that connects again is up to date at once,
// whatever it missed.
func (s *site) stream(w http.ResponseWriter, r *http.Request, l live) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	sub := s.Hub.subscribe(l.box)
	defer sub.close()

	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no")
	out := eventWriter{w: w, control: http.NewResponseController(w)}
	// The server's limit is for requests; this one was read long ago and lasts.
	if err := out.control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.OnError(r, fmt.Errorf("event stream: %w", err))
		return
	}
	ctx := r.Context()
	sent := map[string]uint64{} // hash of what the page has, by part
	seed := maphash.MakeSeed()

	said := "" // why the page was told that it is not up to date

	// update renders and sends what changed.
	update := func(slow bool) error {
		_, seq := sub.take()
		if _, why := s.staleness(); slow || why != said {
			if said = why; s.beat(&out, why) != nil {
				return errBrowserGone
			}
		}
		parts, err := l.parts(ctx, slow)
		if err != nil {
			if errors.Is(err, core.ErrNotFound) {
				return errors.Join(out.event("gone", "", "{}"), err)
			}
			if ctx.Err() != nil {
				return err
			}
			s.OnError(r, err)
			said = "unreadable"
			return s.beat(&out, "what was recorded cannot be read: "+visibleText(core.Shorten(err.Error(), 200)))
		}
		var b bytes.Buffer
		for _, p := range parts {
			html, err := renderPart(ctx, p)
			if err != nil {
				return err
			}
			sum := maphash.Bytes(seed, html)
			if old, ok := sent[p.id]; ok && old == sum {
				continue
			}
			sent[p.id] = sum
			fmt.Fprintf(&b, `<hx-partial hx-target="#%s" hx-swap="outerMorph">%s</hx-partial>`, p.id, html)
		}
		if b.Len() == 0 {
			return nil
		}
		id := ""
		if seq != 0 { // the hub has heard of the stream
			id = strconv.FormatUint(seq, 10)
		}
		return out.event("", id, b.String())
	}

	if err := update(true); err != nil {
		return
	}
	last, lastSlow := time.Now(), time.Now()
	var due <-chan time.Time
	var dueAt time.Time
	gap := l.gap
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		slow := false
		select {
		case <-ctx.Done():
			return
		case <-s.Hub.done:
			return
		case <-sub.wake:
			next := last.Add(gap)
			if sub.blocked() {
				next = last.Add(min(gap, max(blockedGap, gap-l.gap)))
			}
			if due == nil || next.Before(dueAt) {
				dueAt, due = next, time.After(max(0, time.Until(next)))
			}
			continue
		case <-beat.C:
			if !s.auth.stillSignedIn(r) {
				_ = out.event("gone", "", "{}") // it ends either way
				return
			}
			slow = true
		case <-due:
			slow = time.Since(lastSlow) >= slowGap
		}
		due = nil
		start := time.Now()
		if err := update(slow); err != nil {
			return
		}
		last = time.Now()
		if slow {
			lastSlow = last
		} else if time.Since(lastSlow) < slowGap {
			// The last change of a burst must reach the slow parts too.
			dueAt = lastSlow.Add(slowGap)
			due = time.After(time.Until(dueAt))
		}
		// Where reading takes long, read less often: at most half of the time.
		gap = l.gap + last.Sub(start)
	}
}

// blocked says whether something was blocked since the last take.
func (s *subscription) blocked() bool {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	return s.pending.Blocked
}

var errBrowserGone = errors.New("the browser went away")

// beat tells the page whether what it shows is up to date.
func (s *site) beat(out *eventWriter, why string) error {
	b, err := json.Marshal(map[string]any{"live": why == "", "why": why})
	if err != nil {
		return fmt.Errorf("encode beat: %w", err)
	}
	return out.event("beat", "", string(b))
}

func (s *site) staleness() (live bool, why string) {
	ok, why := s.Live()
	if ok {
		return true, ""
	}
	if why == "" {
		why = "behind"
	}
	return false, why
}

// eventWriter writes messages of an event stream
// (https://html.spec.whatwg.org/multipage/server-sent-events.html).
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	buf     bytes.Buffer
}

// event sends one message; one without a name is HTML for the page.
func (e *eventWriter) event(name, id, data string) error {
	b := &e.buf
	b.Reset()
	if name != "" {
		fmt.Fprintf(b, "event: %s\n", name)
	}
	if id != "" {
		fmt.Fprintf(b, "id: %s\n", id)
	}
	b.WriteString("data: ")
	for i := 0; i < len(data); i++ {
		switch c := data[i]; c { // each of these ends a line for the browser
		case '\r':
			b.WriteString("&#13;")
		case '\n':
			b.WriteString("\ndata: ")
		default:
			b.WriteByte(c)
		}
	}
	b.WriteString("\n\n")
	if err := e.control.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("event stream: %w", err)
	}
	if _, err := e.w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("event stream: %w", err)
	}
	if err := e.control.Flush(); err != nil {
		return fmt.Errorf("event stream: %w", err)
	}
	return nil
}

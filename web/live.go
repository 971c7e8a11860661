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
	"sync"
	"time"

	"github.com/sandglass/sandglass/core"
)

const (
	boxGap     = 100 * time.Millisecond // between two readings of a box's window
	boxesGap   = 400 * time.Millisecond // of all boxes
	blockedGap = 40 * time.Millisecond  // when something was blocked: on the screen within 150 ms
	sideGap    = time.Second            // between two readings of what need not be exact to the moment
	sideShare  = 9                      // after reading it, it is left alone for so many times as long
	beatEvery  = 5 * time.Second        // the page calls itself stale after 3 beats without one
	writeLimit = 10 * time.Second       // for one message; a browser that is slower connects again
)

// live is an event stream: the parts of a page, again and again.
type live struct {
	box string        // whose changes matter; "" for all
	gap time.Duration // between readings of now
	now func(context.Context) ([]part, error)
	// aside reads parts that may take long, as the processes of a build do: now never
	// waits for it. nil: there are none.
	aside func(context.Context) ([]part, error)
}

// rendered is a part as it is sent.
type rendered struct {
	id   string
	html []byte
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
	ctx, cancel := context.WithCancel(r.Context())
	var reading sync.WaitGroup // of what is aside
	defer reading.Wait()
	defer cancel()

	sent := map[string]uint64{} // hash of what the page has, by part
	seed := maphash.MakeSeed()
	said := ""  // why the page was told that it is not up to date
	aside := "" // why what is aside is not

	// send sends what changed.
	send := func(seq uint64, parts []rendered) error {
		var b bytes.Buffer
		for _, p := range parts {
			sum := maphash.Bytes(seed, p.html)
			if old, ok := sent[p.id]; ok && old == sum {
				continue
			}
			sent[p.id] = sum
			fmt.Fprintf(&b, `<hx-partial hx-target="#%s" hx-swap="outerMorph">%s</hx-partial>`, p.id, p.html)
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
	// tell tells the page why it is not up to date, or that it is, when that changed or
	// a beat is due.
	tell := func(why string, beat bool) error {
		if why == said && !beat {
			return nil
		}
		said = why
		return s.beat(&out, why)
	}
	// unread says why something could not be read; an error of its own ends the stream.
	unread := func(err error) (why string, end error) {
		switch {
		case errors.Is(err, core.ErrNotFound):
			return "", errors.Join(out.event("gone", "", `{"why":"missing"}`), err)
		case ctx.Err() != nil:
			return "", err
		}
		s.OnError(r, err)
		return "what was recorded cannot be read: " + visibleText(core.Shorten(err.Error(), 200)), nil
	}
	// update reads what is now and sends what changed.
	update := func(beat bool) error {
		seq := sub.take()
		parts, err := read(ctx, l.now)
		if err != nil {
			why, end := unread(err)
			if end != nil {
				return end
			}
			return tell(why, true)
		}
		_, why := s.staleness()
		if why == "" {
			why = aside
		}
		if err := tell(why, beat); err != nil {
			return err
		}
		return send(seq, parts)
	}

	type side struct {
		seq   uint64
		parts []rendered
		err   error
		took  time.Duration
	}
	sides := make(chan side, 1) // one is read at a time
	var (
		resting <-chan time.Time // ends when it may be read again
		busy    bool             // it is being read, or rests
		wanted  bool             // something changed since it was begun to be read
	)
	readSide := func() {
		busy, wanted = true, false
		reading.Go(func() {
			start := time.Now()
			seq := s.Hub.at()
			parts, err := read(ctx, l.aside)
			sides <- side{seq, parts, err, time.Since(start)}
		})
	}

	if err := update(true); err != nil {
		return
	}
	if l.aside != nil {
		readSide()
	}
	last := time.Now()
	var due <-chan time.Time
	var dueAt time.Time
	gap := l.gap
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		beating := false
		select {
		case <-ctx.Done():
			return
		case <-s.Hub.done:
			return
		case <-sub.wake:
			next := last.Add(gap)
			if sub.urgent() {
				next = last.Add(min(gap, max(blockedGap, gap-l.gap)))
			}
			if due == nil || next.Before(dueAt) {
				dueAt, due = next, time.After(max(0, time.Until(next)))
			}
			if wanted = l.aside != nil; wanted && !busy {
				readSide()
			}
			continue
		case <-resting:
			if busy = false; wanted {
				readSide()
			}
			continue
		case got := <-sides:
			var err error
			if aside = ""; got.err != nil {
				if aside, err = unread(got.err); err == nil {
					err = tell(aside, false)
				}
			} else {
				err = send(got.seq, got.parts)
			}
			if err != nil {
				return
			}
			resting = time.After(max(sideGap, sideShare*got.took))
			continue
		case <-beat.C:
			if !s.auth.stillSignedIn(r) {
				_ = out.event("gone", "", `{"why":"signed out"}`) // it ends either way
				return
			}
			beating = true
			if l.aside != nil && !busy {
				readSide()
			}
		case <-due:
		}
		due = nil
		start := time.Now()
		if err := update(beating); err != nil {
			return
		}
		last = time.Now()
		// Where reading takes long, read less often: at most half of the time.
		gap = l.gap + last.Sub(start)
	}
}

// read reads parts and makes HTML of them. A panic on the way is an error.
func read(ctx context.Context, from func(context.Context) ([]part, error)) (all []rendered, err error) {
	defer func() {
		if v := recover(); v != nil {
			all, err = nil, fmt.Errorf("panic: %v", v)
		}
	}()
	parts, err := from(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		var b bytes.Buffer
		if err := p.body.Render(ctx, &b); err != nil {
			return nil, fmt.Errorf("render %s: %w", p.id, err)
		}
		all = append(all, rendered{p.id, b.Bytes()})
	}
	return all, nil
}

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

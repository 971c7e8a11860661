package web

import (
	"slices"
	"sync"
)

// Tick says that something changed and can be read now.
type Tick struct {
	Seq     uint64   // of the stream, up to which the projections are folded; 0: as before
	Boxes   []string // that changed
	Blocked bool     // an operation was blocked, or is a leak: show it at once
}

// Hub tells open pages that something changed. A page that is slow to read finds one
// merged tick when it comes back, however many there were: Publish never waits and
// never keeps more than one tick for a reader.
type Hub struct {
	mu     sync.Mutex
	seq    uint64
	subs   map[*subscription]struct{}
	closed bool
	done   chan struct{}
}

// NewHub returns a hub that nobody listens to yet.
func NewHub() *Hub {
	return &Hub{subs: map[*subscription]struct{}{}, done: make(chan struct{})}
}

// Publish tells every page that t concerns. It does not wait. The caller may use
// t.Boxes again.
func (h *Hub) Publish(t Tick) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.Seq != 0 {
		h.seq = t.Seq
	}
	for s := range h.subs {
		if s.box == "" || slices.Contains(t.Boxes, s.box) {
			s.blocked = s.blocked || t.Blocked
			select {
			case s.wake <- struct{}{}:
			default: // it has not yet looked at the last one: it finds both in one
			}
		}
	}
}

// Close ends all event streams, so that a server can shut down. Further calls do nothing.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		close(h.done)
	}
}

// at returns the sequence up to which the projections are folded.
func (h *Hub) at() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seq
}

// subscription is one reader's place in the hub.
type subscription struct {
	hub     *Hub
	box     string // "" for all
	wake    chan struct{}
	blocked bool // since the last take; guarded by hub.mu
}

// subscribe returns a place for a reader that cares for one box, or for all ("").
func (h *Hub) subscribe(box string) *subscription {
	s := &subscription{hub: h, box: box, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subs[s] = struct{}{}
	return s
}

// take says that its reader reads now, and returns the sequence up to which the
// projections are folded.
func (s *subscription) take() (seq uint64) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.blocked = false
	return s.hub.seq
}

// urgent says whether something was blocked since the last take.
func (s *subscription) urgent() bool {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	return s.blocked
}

func (s *subscription) close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subs, s)
}

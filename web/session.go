package web

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"
)

// maxSignedIn is how many browsers may be signed in at once; one more signs the one out
// whose session would end first.
const maxSignedIn = 64

// sessionStore keeps sessions in memory. (The one that comes with scs removes expired
// ones in a goroutine, which cannot be ended without a race.)
type sessionStore struct {
	mu   sync.Mutex
	now  func() time.Time
	all  map[string]storedSession
	save func([]byte) // told of all sessions when there is something to keep; may be nil
}

type storedSession struct {
	data []byte
	ends time.Time
	kept time.Time // the end that was saved
}

// keepWithin is how much of a session's life may be lost when the daemon ends: each
// request prolongs it, and is not to be written to the disk for that.
const keepWithin = time.Hour

// keptSession is a session as it is saved. Its token is known by hash only.
type keptSession struct {
	Hash string    `json:"hash"`
	Data []byte    `json:"data"`
	Ends time.Time `json:"ends"`
}

// keep saves all sessions. s.mu is held.
func (s *sessionStore) keep() {
	if s.save == nil {
		return
	}
	list := []keptSession{}
	for t, v := range s.all {
		list = append(list, keptSession{t, v.data, v.ends})
		v.kept = v.ends
		s.all[t] = v
	}
	if data, err := json.Marshal(list); err == nil {
		s.save(data)
	}
}

// restore takes over what was saved.
func (s *sessionStore) restore(data []byte) error {
	var list []keptSession
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("read who is signed in: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range list {
		if len(s.all) < maxSignedIn && s.now().Before(k.Ends) && k.Ends.Before(s.now().Add(totalLife)) {
			s.all[k.Hash] = storedSession{k.Data, k.Ends, k.Ends}
		}
	}
	return nil
}

var _ scs.Store = (*sessionStore)(nil)

// Find implements [scs.Store].
func (s *sessionStore) Find(token string) (data []byte, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got, ok := s.all[token]
	if !ok || !s.now().Before(got.ends) {
		return nil, false, nil
	}
	return got.data, true, nil
}

// Commit implements [scs.Store].
func (s *sessionStore) Commit(token string, data []byte, ends time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, known := s.all[token]
	if !known {
		first, now := "", s.now()
		for t, v := range s.all {
			if !now.Before(v.ends) {
				delete(s.all, t)
			} else if first == "" || v.ends.Before(s.all[first].ends) {
				first = t
			}
		}
		if len(s.all) >= maxSignedIn {
			delete(s.all, first)
		}
	}
	s.all[token] = storedSession{data, ends, before.kept}
	if !known || ends.Sub(before.kept) > keepWithin {
		s.keep()
	}
	return nil
}

// Delete implements [scs.Store].
func (s *sessionStore) Delete(token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.all[token]; known {
		delete(s.all, token)
		s.keep()
	}
	return nil
}

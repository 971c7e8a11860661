package web

import (
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
	mu  sync.Mutex
	now func() time.Time
	all map[string]storedSession
}

type storedSession struct {
	data []byte
	ends time.Time
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
	if _, known := s.all[token]; !known {
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
	s.all[token] = storedSession{data, ends}
	return nil
}

// Delete implements [scs.Store].
func (s *sessionStore) Delete(token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, token)
	return nil
}

package web

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"
)

const (
	linkLife  = 10 * time.Minute // of a sign-in link that nobody follows
	maxLinks  = 32               // that wait to be followed; a new one takes the place of the oldest
	idleLife  = 24 * time.Hour   // of a session that nobody uses
	totalLife = 14 * 24 * time.Hour

	// Failed sign-ins: so many at once, then one in each span. More are answered
	// without being looked at further and without being reported.
	failureBurst = 5
	failureEvery = 10 * time.Second
)

// Auth knows who may see the dashboard: whoever followed a link that [Auth.NewLink]
// made. Sessions live on the server, in memory, and end with the daemon unless it keeps
// them: see [Auth.Keep].
//
// A wrong token is refused and counted, and too many of them are refused without being
// reported; the right token is always taken. It has 256 bits, which nobody guesses, and
// another user of the machine who sends wrong ones must not be able to lock the owner out.
type Auth struct {
	sessions *scs.SessionManager
	store    *sessionStore
	now      func() time.Time

	mu       sync.Mutex
	links    []link // oldest first
	failures int    // held against the burst
	since    time.Time
}

// link is a sign-in link that nobody has followed yet. Its token is known by hash only.
type link struct {
	hash [sha256.Size]byte
	made time.Time
}

// NewAuth returns an Auth to which nobody is signed in.
func NewAuth() *Auth {
	a := &Auth{sessions: scs.New(), now: time.Now}
	a.store = &sessionStore{now: func() time.Time { return a.now() }, all: map[string]storedSession{}}
	a.sessions.Store = a.store
	a.sessions.Lifetime = totalLife
	a.sessions.IdleTimeout = idleLife
	a.sessions.HashTokenInStore = true
	c := &a.sessions.Cookie
	c.Path, c.HttpOnly, c.SameSite, c.Persist = "/", true, http.SameSiteStrictMode, false
	// Not Secure: the dashboard is plain HTTP on the loopback interface.
	return a
}

// Keep has who is signed in outlast the daemon: saved is what save was last called with,
// nil when it never was. It holds the hashes of the sessions' tokens, with which nobody can
// sign in, and is for nobody else to write. An error is about saved; all that fails is
// that browsers sign in again.
func (a *Auth) Keep(saved []byte, save func([]byte)) (err error) {
	if saved != nil {
		err = a.store.restore(saved)
	}
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	a.store.save = save
	return err
}

// NewLink returns the token of a new sign-in link, /sign-in?token=TOKEN. It signs one
// browser in, once, within ten minutes.
func (a *Auth) NewLink() (token string) {
	var raw [32]byte
	rand.Read(raw[:]) // never fails
	token = base64.RawURLEncoding.EncodeToString(raw[:])
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire()
	if len(a.links) == maxLinks {
		a.links = a.links[1:]
	}
	a.links = append(a.links, link{sha256.Sum256([]byte(token)), a.now()})
	return token
}

// expire forgets links that are too old. The caller holds mu.
func (a *Auth) expire() {
	for len(a.links) > 0 && a.now().Sub(a.links[0].made) >= linkLife {
		a.links = a.links[1:]
	}
}

// redeem uses a link up. limited says that there were too many wrong tokens lately.
func (a *Auth) redeem(token string) (ok, limited bool) {
	hash := sha256.Sum256([]byte(token))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expire()
	found := -1
	for i := range a.links { // all of them, whichever it is
		if subtle.ConstantTimeCompare(hash[:], a.links[i].hash[:]) == 1 {
			found = i
		}
	}
	if found >= 0 {
		a.links = append(a.links[:found:found], a.links[found+1:]...)
		return true, false
	}
	now := a.now()
	if forgiven := int(now.Sub(a.since) / failureEvery); forgiven > 0 {
		a.failures = max(0, a.failures-forgiven)
		a.since = now
	}
	if a.failures >= failureBurst {
		return false, true
	}
	a.failures++
	return false, false
}

// cookieName is the name of the session's cookie. Cookies know hosts but no ports: a
// name of its own keeps two dashboards on one machine from signing one another out.
func cookieName(r *http.Request) string {
	_, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		return "sandglass_session"
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "sandglass_session"
	}
	return "sandglass_session_" + port
}

// withSession gives requests their session.
func (a *Auth) withSession(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := *a.sessions // shares the store and the place in the context
		m.Cookie.Name = cookieName(r)
		m.LoadAndSave(next).ServeHTTP(w, r)
	})
}

// signedIn says whether a request comes from a browser that is signed in. It must have
// come through the session manager.
func (a *Auth) signedIn(r *http.Request) bool {
	return a.sessions.GetBool(r.Context(), "signed in")
}

// stillSignedIn asks the store, for requests that last.
func (a *Auth) stillSignedIn(r *http.Request) bool {
	ctx, err := a.sessions.Load(r.Context(), cookieValue(r, cookieName(r)))
	return err == nil && a.sessions.GetBool(ctx, "signed in")
}

func cookieValue(r *http.Request, name string) string {
	c, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return c.Value
}

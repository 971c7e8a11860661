package web

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/a-h/templ"
	"github.com/go-chi/chi/v5"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

// Options is what the dashboard needs.
type Options struct {
	Source  Source
	Orders  Orders                          // nil: the pages only show
	Files   func(box string) (Files, error) // what a box holds; nil: the pages do not show it
	Hub     *Hub
	Auth    *Auth
	Version string
	Home    string                           // what ~ stands for in queries; "" makes it an error
	Hosts   []string                         // names that the dashboard is reached by, besides those of the loopback
	Live    func() (ok bool, why string)     // whether what the source says is up to date; nil: always
	OnLogin func(ok bool, remote string)     // told of every sign-in, and of failed ones but for a flood; nil: nobody
	OnError func(r *http.Request, err error) // told of what a page could not be made for; nil: nobody
}

// maxStreams is how many event streams there may be at once: a tab has one.
const maxStreams = 128

type site struct {
	Options
	auth    *Auth
	hosts   []string
	alarm   *query.Query  // finds what was blocked or leaked
	streams chan struct{} // a slot for each
}

// New returns the dashboard. [NewServer] makes a server of it.
func New(o Options) http.Handler {
	if o.Live == nil {
		o.Live = func() (bool, string) { return true, "" }
	}
	if o.OnLogin == nil {
		o.OnLogin = func(bool, string) {}
	}
	if o.OnError == nil {
		o.OnError = func(*http.Request, error) {}
	}
	s := &site{Options: o, auth: o.Auth, alarm: alarmQuery(), streams: make(chan struct{}, maxStreams)}
	s.hosts = []string{"127.0.0.1", "localhost", "::1"}
	for _, h := range o.Hosts {
		s.hosts = append(s.hosts, strings.ToLower(strings.Trim(h, "[]")))
	}

	r := chi.NewRouter()
	r.Use(secured, s.recovered, s.hostAllowed, s.ownOrigin, bounded)
	r.NotFound(s.notFound)
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, http.StatusMethodNotAllowed, "This page cannot be asked for like that.", "")
	})
	r.Get("/healthz", s.healthz)
	r.Head("/healthz", s.healthz)
	r.Get("/assets/*", s.asset)
	r.Head("/assets/*", s.asset)
	r.Get("/favicon.ico", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, assetURL("icon.svg"), http.StatusSeeOther)
	})
	r.Post("/theme", s.setTheme)
	r.Group(func(r chi.Router) {
		r.Use(s.auth.withSession)
		r.Get("/sign-in", s.signIn)
		r.Post("/sign-out", s.signOut)
		r.Group(func(r chi.Router) {
			r.Use(s.members)
			r.Get("/", s.boxes)
			r.Get("/live", s.boxesLive)
			r.Get("/boxes/{box}", s.box)
			r.Get("/boxes/{box}/live", s.boxLive)
			r.Get("/boxes/{box}/network", s.networkPage)
			r.Post("/boxes/{box}/cut", s.cut)
			r.Post("/boxes/{box}/offline", s.offline)
			r.Get("/boxes/{box}/files", s.files)
			r.Get("/boxes/{box}/files/image", s.fileImage)
			r.Post("/boxes/{box}/files/plan", s.planFiles)
			r.Post("/boxes/{box}/files/commit", s.doFiles(OrderCommit))
			r.Post("/boxes/{box}/files/discard", s.doFiles(OrderDiscard))
			r.Post("/boxes/{box}/files/snapshot", s.takeSnapshot)
			r.Post("/boxes/{box}/files/rollback", s.rollback)
		})
	})
	return r
}

// NewServer returns a server for a dashboard with the timeouts that it is made for, and
// that ends the event streams of hub when it shuts down.
func NewServer(h http.Handler, hub *Hub) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second, // event streams set their own with every message
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
	s.RegisterOnShutdown(hub.Close)
	return s
}

// bounded limits what a request can bring.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		room := int64(64 << 10)
		if strings.Contains(r.URL.Path, "/files/") { // many long paths may be selected
			room = 4 << 20
		}
		r.Body = http.MaxBytesReader(w, r.Body, room)
		next.ServeHTTP(w, r)
	})
}

// recovered turns a panic into a page and a report.
func (s *site) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch v := recover(); v {
			case nil:
			case http.ErrAbortHandler:
				panic(v)
			default:
				s.OnError(r, fmt.Errorf("panic: %v", v))
				if w.Header().Get("Content-Type") != "" { // an answer has begun
					panic(http.ErrAbortHandler)
				}
				s.fail(w, r, http.StatusInternalServerError, "Something went wrong in the dashboard itself.", "What the boxes do is recorded all the same.")
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// chrome is what surrounds every page.
type chrome struct {
	title    string
	nonce    string
	theme    string // "", "light" or "dark"
	here     string // the page's own address, to come back to
	version  string
	signedIn bool
	live     string // address of the event stream; "" for a page without
	stale    string // why what is shown is not up to date; "" when it is
	said     string // what became of what was ordered last; "" on most pages
	saidBad  bool   // it failed
}

func (s *site) chrome(r *http.Request, title string) chrome {
	c := chrome{title: title, nonce: nonce(r.Context()), here: r.URL.RequestURI(), version: s.Version}
	if r.Method != http.MethodGet || r.URL.Path == "/sign-in" {
		c.here = "/"
	}
	switch v := cookieValue(r, "sandglass_theme"); v {
	case "light", "dark":
		c.theme = v
	}
	return c
}

// member is the chrome of a page that only those see who are signed in.
func (s *site) member(r *http.Request, title, live string) chrome {
	c := s.chrome(r, title)
	c.signedIn, c.live = true, live
	c.said, c.saidBad = s.auth.said(r)
	if ok, why := s.Live(); !ok {
		c.stale = why
	}
	return c
}

// render writes a page, or nothing of it: an error in its middle becomes a page of its own.
func (s *site) render(w http.ResponseWriter, r *http.Request, status int, page templ.Component) {
	var b bytes.Buffer
	if err := page.Render(r.Context(), &b); err != nil {
		s.OnError(r, fmt.Errorf("render %s: %w", r.URL.Path, err))
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // a browser that went away
}

// fail answers with an error page.
func (s *site) fail(w http.ResponseWriter, r *http.Request, status int, what, hint string) {
	s.render(w, r, status, errorPage(s.chrome(r, http.StatusText(status)), status, what, hint))
}

// failErr answers with the page of an error of the source.
func (s *site) failErr(w http.ResponseWriter, r *http.Request, err error, missing string) {
	switch {
	case errors.Is(err, core.ErrNotFound):
		s.fail(w, r, http.StatusNotFound, missing, "")
	case r.Context().Err() != nil: // the browser went away
	default:
		s.OnError(r, err)
		s.fail(w, r, http.StatusServiceUnavailable, "What was recorded cannot be read right now: "+visibleText(core.Shorten(err.Error(), 400)),
			"Boxes go on and keep their record. `sandglass status` says more; `sandglass rebuild` makes the tables again.")
	}
}

func (s *site) notFound(w http.ResponseWriter, r *http.Request) {
	s.fail(w, r, http.StatusNotFound, "There is no such page.", "")
}

// healthz is for programs that watch the daemon: it needs no sign-in and says nothing
// about boxes.
func (s *site) healthz(w http.ResponseWriter, _ *http.Request) {
	ok, _ := s.Live()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "stale")
		return
	}
	fmt.Fprintln(w, "ok")
}

func (s *site) setTheme(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		s.fail(w, r, http.StatusBadRequest, "The form could not be read.", "")
		return
	}
	c := &http.Cookie{Name: "sandglass_theme", Path: "/", SameSite: http.SameSiteStrictMode, MaxAge: 365 * 24 * 3600}
	switch t := r.PostForm.Get("theme"); t {
	case "light", "dark":
		c.Value = t
	default:
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
	http.Redirect(w, r, localPath(r.PostForm.Get("back")), http.StatusSeeOther)
}

// localPath returns p when it is a path of this site, else "/".
func localPath(p string) string {
	u, err := url.Parse(p)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") ||
		strings.HasPrefix(p, "//") || strings.ContainsAny(p, "\\\r\n\t") {
		return "/"
	}
	return p
}

// signInState is what the sign-in page has to say.
type signInState struct {
	failed  bool
	limited bool
	done    bool
}

// signIn uses a sign-in link up. The browser is sent on by a page and not by a redirect
// where another site had the link: the session's cookie does not come along with
// requests that another site began, the redirected ones included.
func (s *site) signIn(w http.ResponseWriter, r *http.Request) {
	token := r.URL.Query().Get("token")
	switch {
	case token == "" && s.auth.signedIn(r):
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	case token == "":
		s.render(w, r, http.StatusOK, signInPage(s.chrome(r, "Sign in"), signInState{}))
		return
	case strings.Contains(r.Header.Get("Sec-Purpose"), "prefetch"):
		w.WriteHeader(http.StatusServiceUnavailable) // the link works once: for the visit itself
		return
	}
	member := s.auth.signedIn(r)
	ok, limited := s.auth.redeem(token)
	switch {
	case member && !ok: // a link of before, from the history
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case limited:
		w.Header().Set("Retry-After", strconv.Itoa(int(failureEvery/time.Second)))
		s.render(w, r, http.StatusTooManyRequests, signInPage(s.chrome(r, "Sign in"), signInState{failed: true, limited: true}))
	case !ok:
		s.OnLogin(false, r.RemoteAddr)
		s.render(w, r, http.StatusForbidden, signInPage(s.chrome(r, "Sign in"), signInState{failed: true}))
	default:
		if err := s.auth.sessions.RenewToken(r.Context()); err != nil {
			s.failErr(w, r, fmt.Errorf("sign in: %w", err), "")
			return
		}
		s.auth.sessions.Put(r.Context(), "signed in", true)
		s.OnLogin(true, r.RemoteAddr)
		if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
			s.render(w, r, http.StatusOK, signInPage(s.chrome(r, "Signed in"), signInState{done: true}))
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
}

func (s *site) signOut(w http.ResponseWriter, r *http.Request) {
	if err := s.auth.sessions.Destroy(r.Context()); err != nil {
		s.failErr(w, r, fmt.Errorf("sign out: %w", err), "")
		return
	}
	http.Redirect(w, r, "/sign-in", http.StatusSeeOther)
}

// parseQuery reads the text of a filter.
func (s *site) parseQuery(text string) (*query.Query, *query.Error) {
	q, err := query.Parse(text, query.Options{Home: s.Home, Now: time.Now()})
	if err == nil {
		return q, nil
	}
	var qe *query.Error
	if !errors.As(err, &qe) {
		qe = &query.Error{Col: 1, Msg: err.Error()}
	}
	return nil, qe
}

// part is a piece of a page that the event stream sends again when it changed.
type part struct {
	id   string // of its element
	body templ.Component
}

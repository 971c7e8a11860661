package cli

import (
	"context"
	"crypto/subtle"
	"errors"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
	"github.com/sandglass/sandglass/events"
	"github.com/sandglass/sandglass/store"
	"github.com/sandglass/sandglass/web"
)

// signInLink is the URL that signs in by a token, once.
func signInLink(address, token string) string {
	u := url.URL{Scheme: "http", Host: reachable(address), Path: "/sign-in", RawQuery: url.Values{"token": {token}}.Encode()}
	return u.String()
}

// reachable names a host in the place of the address that stands for all of this machine's.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort(hostName(), port)
	}
	return address
}

func (d *daemon) newLink() string {
	return signInLink(d.l.Addr().String(), d.auth.NewLink())
}

// exchange takes a token that was made before the daemon was there for one of the daemon's
// own. `run` prints a link the moment it starts a daemon, and does not wait for it: the
// link's token is among the daemon's orders. Whoever has been signed in by it once is not
// signed in by it again.
func exchange(next http.Handler, token, own string) http.Handler {
	if token == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sign-in" {
			q := r.URL.Query()
			if subtle.ConstantTimeCompare([]byte(q.Get("token")), []byte(token)) == 1 {
				q.Set("token", own)
				r = r.Clone(r.Context())
				r.URL.RawQuery = q.Encode()
			}
		}
		next.ServeHTTP(w, r)
	})
}

// dashboard makes the server of the pages, which are told of what is folded.
func (d *daemon) dashboard(st *store.Store) *http.Server {
	hub := web.NewHub()
	d.proj.onFold = func(ds []events.Delivered) { hub.Publish(tick(ds)) }
	user, _ := os.UserHomeDir()
	o := web.Options{Source: source{st}, Orders: boxOrders{d.home}, Files: (&holders{home: d.home}).open, Hub: hub, Auth: d.auth, Version: version(), Home: user, Live: d.proj.live, OnLogin: d.login,
		OnError: func(r *http.Request, err error) { d.journal.Say("dashboard: %s: %s", r.URL.Path, err) }}
	if host, _, err := net.SplitHostPort(d.l.Addr().String()); err == nil && !isLoopback(d.l.Addr().String()) {
		o.Hosts = []string{host, hostName()}
	}
	srv := web.NewServer(exchange(web.New(o), d.token, d.auth.NewLink()), hub)
	srv.ErrorLog = log.New(lineWriter(d.journal.Say), "", 0)
	return srv
}

// keepSignIns has browsers that are signed in stay so when a daemon follows another.
func (d *daemon) keepSignIns() {
	path := d.home.signInsFile()
	saved, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		saved, err = nil, nil
	}
	kerr := d.auth.Keep(saved, func(data []byte) {
		if err := writeAtomic(path, data); err != nil {
			d.journal.Say("keep who is signed in: %s", err)
		}
	})
	if err := errors.Join(err, kerr); err != nil {
		d.journal.Say("%s: %s", path, err)
	}
}

// source answers pages from the projections.
type source struct{ *store.Store }

// pagePatience is how long a page searches for operations that are rare before it shows
// what it has.
const pagePatience = 200 * time.Millisecond

func (s source) Sessions(ctx context.Context, box string, limit int) ([]core.SessionView, error) {
	return s.Store.Sessions(ctx, store.SessionFilter{Box: box, Limit: limit})
}

func (s source) Ops(ctx context.Context, q *query.Query, box string, session core.SessionID, before, after core.OpCursor, limit int) (core.OpsPage, error) {
	page, err := s.Store.Ops(ctx, store.OpsQuery{Query: q, Box: box, Session: session, Before: before, After: after,
		Limit: min(limit, store.MaxPage), Desc: after == 0, Patience: pagePatience})
	if after != 0 { // the oldest ones after it were asked for, and are shown newest first
		slices.Reverse(page.Ops)
		slices.Reverse(page.Cursors)
	}
	return page, err
}

func (s source) Flows(ctx context.Context, box string, session core.SessionID, open bool, before core.OpCursor, limit int) (core.FlowsPage, error) {
	return s.Store.Flows(ctx, store.FlowFilter{Box: box, Session: session, Open: open, Before: before, Limit: limit})
}

// login notes that somebody signed in, or tried to.
func (d *daemon) login(ok bool, remote string) {
	what := "signed in"
	if !ok {
		what = "refused"
	}
	if host, _, err := net.SplitHostPort(remote); err == nil {
		remote = host
	}
	l := events.Life{Kind: events.UserLogin, Time: time.Now(), Host: hostName(), User: what + " from " + core.Shorten(strings.ToValidUTF8(remote, "?"), 80)}
	if err := events.Note(string(d.home), l); err != nil {
		d.journal.Say("%s", err)
	}
}

// lineWriter hands each write to say, as a line.
type lineWriter func(format string, args ...any)

func (w lineWriter) Write(b []byte) (int, error) {
	w("%s", strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

// tick sums up what was folded for open pages.
func tick(ds []events.Delivered) (t web.Tick) {
	seen := map[string]bool{}
	add := func(box string) {
		if box != "" && !seen[box] {
			seen[box] = true
			t.Boxes = append(t.Boxes, box)
		}
	}
	for _, d := range ds {
		switch {
		case d.Batch != nil:
			add(d.Batch.Box)
			t.Seq = max(t.Seq, d.StreamSeq)
			for i := range d.Batch.Ops {
				t.Blocked = t.Blocked || d.Batch.Ops[i].Urgent()
			}
		case d.Life != nil:
			add(d.Life.Box)
		}
	}
	return t
}

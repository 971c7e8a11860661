package web

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/a-h/templ"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

// running is a dashboard of a test.
type running struct {
	auth    *Auth
	hub     *Hub
	session string // cookie of a browser that is signed in
	mu      sync.Mutex
	why     string
	logins  []bool
	errs    []error
	orders  recorder
	held    map[string]*holdings // of boxes, by name
}

// recorder takes orders and does what can be done in a test: it writes them down.
type recorder struct {
	mu   sync.Mutex
	all  []string
	fail error
}

func (r *recorder) Cut(_ context.Context, box string, session core.SessionID, flow string) error {
	return r.take("cut", box, string(session), flow)
}

func (r *recorder) Block(_ context.Context, box, rule string) error {
	return r.take("block", box, rule)
}

func (r *recorder) take(words ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, strings.Join(words, " "))
	return r.fail
}

// taken returns what was ordered since it was asked last.
func (r *recorder) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// files returns what a box holds: nothing, where the test says nothing.
func (s *running) files(box string) (Files, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[box]; h != nil {
		return h, nil
	}
	return &holdings{}, nil
}

// holding has the box "default" hold something.
func holding(srv *httptest.Server, h *holdings) *httptest.Server {
	s := siteOf(srv)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = map[string]*holdings{"default": h}
	return srv
}

// told returns the sign-ins and the errors that were reported so far.
func (s *running) told() (logins []bool, errs []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.logins), slices.Clone(s.errs)
}

func (s *running) setLive(why string) { s.mu.Lock(); defer s.mu.Unlock(); s.why = why }

var runningOf sync.Map // by address of the server

func siteOf(srv *httptest.Server) *running  { s, _ := runningOf.Load(srv.URL); return s.(*running) }
func hubOf(srv *httptest.Server) *Hub       { return siteOf(srv).hub }
func sessionOf(srv *httptest.Server) string { return siteOf(srv).session }

// sessionCookie is the name of the session's cookie.
func sessionCookie(srv *httptest.Server) string {
	return cookieName(&http.Request{Host: strings.TrimPrefix(srv.URL, "http://")})
}

// start runs a dashboard on a port of its own until the test ends.
func start(t testing.TB, src Source) *httptest.Server {
	t.Helper()
	s := &running{auth: NewAuth(), hub: NewHub()}
	h := New(Options{Source: src, Orders: &s.orders, Files: s.files, Hub: s.hub, Auth: s.auth, Version: "test", Home: "/home/ann",
		Live:    func() (bool, string) { s.mu.Lock(); defer s.mu.Unlock(); return s.why == "", s.why },
		OnLogin: func(ok bool, _ string) { s.mu.Lock(); defer s.mu.Unlock(); s.logins = append(s.logins, ok) },
		OnError: func(_ *http.Request, err error) { s.mu.Lock(); defer s.mu.Unlock(); s.errs = append(s.errs, err) },
	})
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = NewServer(h, s.hub)
	srv.Start()
	runningOf.Store(srv.URL, s)
	t.Cleanup(func() { s.hub.Close(); srv.Close() })
	r := do(t, srv, http.MethodGet, "/sign-in?token="+s.auth.NewLink(), nil)
	for _, c := range r.Cookies() {
		if strings.HasPrefix(c.Name, "sandglass_session") {
			s.session = c.Value
		}
	}
	if s.session == "" {
		t.Fatalf("signing in gave no session: %s", r.Status)
	}
	return srv
}

// do asks without following redirects. Headers: "Host" is the host; a "Cookie" of "-" is
// none, else the session's.
func do(t testing.TB, srv *httptest.Server, method, path string, headers map[string]string) *http.Response {
	t.Helper()
	body := io.Reader(nil)
	path, form, isForm := strings.Cut(path, "#")
	if isForm {
		body = strings.NewReader(form)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if isForm {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if s := siteOf(srv); s.session != "" && headers["Cookie"] == "" {
		r.AddCookie(&http.Cookie{Name: sessionCookie(srv), Value: s.session})
	}
	for k, v := range headers {
		switch k {
		case "Host":
			r.Host = v
		case "Cookie":
			if v != "-" {
				r.Header.Set(k, v)
			}
		default:
			r.Header.Set(k, v)
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func text(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNothingIsSeenWithoutSigningIn(t *testing.T) {
	srv := start(t, demo())
	for _, path := range []string{"/", "/live", "/boxes/default", "/boxes/default/live", "/boxes/nowhere"} {
		r := do(t, srv, http.MethodGet, path, map[string]string{"Cookie": "-"})
		if body := text(t, r); r.StatusCode != http.StatusUnauthorized || strings.Contains(body, "npm") {
			t.Errorf("%s answered %s", path, r.Status)
		}
		if r := do(t, srv, http.MethodGet, path, map[string]string{"Cookie": "sandglass_session=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}); r.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s with a made-up session answered %s", path, r.Status)
		}
	}
}

func TestALinkSignsInOnce(t *testing.T) {
	srv := start(t, demo())
	s := siteOf(srv)
	link := "/sign-in?token=" + s.auth.NewLink()
	if r := do(t, srv, http.MethodGet, link, map[string]string{"Cookie": "-", "Sec-Purpose": "prefetch"}); r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a prefetch answered %s", r.Status)
	}
	r := do(t, srv, http.MethodGet, link, map[string]string{"Cookie": "-"})
	if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != "/" {
		t.Fatalf("the link answered %s to %q", r.Status, r.Header.Get("Location"))
	}
	c := r.Header.Get("Set-Cookie")
	for _, want := range []string{"HttpOnly", "SameSite=Strict", "Path=/"} {
		if !strings.Contains(c, want) {
			t.Errorf("the cookie %q is not %s", c, want)
		}
	}
	if r := do(t, srv, http.MethodGet, link, map[string]string{"Cookie": "-"}); r.StatusCode != http.StatusForbidden {
		t.Errorf("the link again answered %s", r.Status)
	}
	if logins, _ := s.told(); !slices.Equal(logins, []bool{true, true, false}) { // the first is start's
		t.Errorf("told of sign-ins: %v", logins)
	}
}

func TestAnOldLinkDisturbsNobodyWhoIsSignedIn(t *testing.T) {
	srv := start(t, demo())
	if r := do(t, srv, http.MethodGet, "/sign-in?token=used-before", nil); r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != "/" {
		t.Errorf("answered %s to %q", r.Status, r.Header.Get("Location"))
	}
	if logins, _ := siteOf(srv).told(); slices.Contains(logins, false) {
		t.Error("it was reported as a failed sign-in")
	}
}

func TestTwoDashboardsOfOneHostKeepTheirCookiesApart(t *testing.T) {
	srv := start(t, demo())
	for host, want := range map[string]string{"localhost:7001": "sandglass_session_7001=", "127.0.0.1:7002": "sandglass_session_7002=", "localhost": "sandglass_session=", "localhost:x;y": "sandglass_session="} {
		r := do(t, srv, http.MethodGet, "/sign-in?token="+siteOf(srv).auth.NewLink(), map[string]string{"Cookie": "-", "Host": host})
		if c := r.Header.Get("Set-Cookie"); !strings.HasPrefix(c, want) {
			t.Errorf("%s set %q", host, c)
		}
	}
}

func TestALinkIsGoodForTenMinutes(t *testing.T) {
	a := NewAuth()
	now := time.Now()
	a.now = func() time.Time { return now }
	early, late := a.NewLink(), a.NewLink()
	now = now.Add(linkLife - time.Second)
	if ok, _ := a.redeem(early); !ok {
		t.Error("a link is refused before its time")
	}
	now = now.Add(time.Second)
	if ok, _ := a.redeem(late); ok {
		t.Error("a link is taken after its time")
	}
}

func TestSessionsEndAndAreBounded(t *testing.T) {
	now := time.Now()
	s := &sessionStore{now: func() time.Time { return now }, all: map[string]storedSession{}}
	for i := range maxSignedIn + 1 {
		if err := s.Commit(strconv.Itoa(i), []byte("x"), now.Add(time.Duration(i+1)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok, _ := s.Find("0"); ok || len(s.all) != maxSignedIn {
		t.Errorf("%d sessions, the first among them: %v", len(s.all), ok)
	}
	now = now.Add(10 * time.Minute)
	_, ended, _ := s.Find("9")
	_, alive, _ := s.Find("10")
	if ended || !alive {
		t.Errorf("the one that ended is found: %v, the one that did not: %v", ended, alive)
	}
}

func TestWhoIsSignedInStaysSoWhenADaemonFollowsAnother(t *testing.T) {
	var saved []byte
	saves := 0
	daemon := func() http.Handler {
		a := NewAuth()
		if err := a.Keep(saved, func(data []byte) { saved, saves = data, saves+1 }); err != nil {
			t.Fatal(err)
		}
		return a.withSession(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/in":
				a.sessions.Put(r.Context(), "signed in", true)
			case "/out":
				if err := a.sessions.Destroy(r.Context()); err != nil {
					t.Error(err)
				}
			default:
				if !a.signedIn(r) {
					w.WriteHeader(http.StatusUnauthorized)
				}
			}
		}))
	}
	ask := func(h http.Handler, path string, c *http.Cookie) (code int, set *http.Cookie) {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:7465"+path, nil)
		if c != nil {
			r.AddCookie(c)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if cs := w.Result().Cookies(); len(cs) > 0 {
			set = cs[0]
		}
		return w.Code, set
	}
	first := daemon()
	_, c := ask(first, "/in", nil)
	if c == nil || saves != 1 || strings.Contains(string(saved), c.Value) {
		t.Fatalf("cookie %v, saved %d times: %s", c, saves, saved)
	}
	for range 10 {
		ask(first, "/", c)
	}
	if saves != 1 {
		t.Errorf("saved %d times", saves)
	}
	if code, _ := ask(daemon(), "/", c); code != http.StatusOK {
		t.Errorf("after a restart: %d", code)
	}
	ask(daemon(), "/out", c)
	if code, _ := ask(daemon(), "/", c); code != http.StatusUnauthorized {
		t.Errorf("signed out: %d", code)
	}
	if err := NewAuth().Keep([]byte("garbage"), nil); err == nil {
		t.Error("garbage was taken for who is signed in")
	}
}

func TestASessionThatUseProlongsIsNotSavedEachTime(t *testing.T) {
	now, saves := time.Now(), 0
	s := &sessionStore{now: func() time.Time { return now }, all: map[string]storedSession{}, save: func([]byte) { saves++ }}
	for _, c := range []struct {
		ends  time.Duration
		saves int
	}{{time.Hour, 1}, {90 * time.Minute, 1}, {2 * time.Hour, 1}, {2*time.Hour + time.Second, 2}, {3 * time.Hour, 2}} {
		if err := s.Commit("hash", nil, now.Add(c.ends)); err != nil || saves != c.saves {
			t.Errorf("ends after %v: saved %d times, want %d; %v", c.ends, saves, c.saves, err)
		}
	}
}

func TestWrongLinksAreLimitedAndLockNobodyOut(t *testing.T) {
	srv := start(t, demo())
	s := siteOf(srv)
	for i := range failureBurst + 3 {
		r := do(t, srv, http.MethodGet, "/sign-in?token=wrong", map[string]string{"Cookie": "-"})
		want := http.StatusForbidden
		if i >= failureBurst {
			want = http.StatusTooManyRequests
		}
		if r.StatusCode != want {
			t.Errorf("wrong link %d answered %s", i+1, r.Status)
		}
	}
	if logins, _ := s.told(); len(logins) != 1+failureBurst {
		t.Errorf("%d sign-ins were reported", len(logins))
	}
	if r := do(t, srv, http.MethodGet, "/sign-in?token="+s.auth.NewLink(), map[string]string{"Cookie": "-"}); r.StatusCode != http.StatusSeeOther {
		t.Errorf("the right link answered %s", r.Status)
	}
}

func TestSigningOutEndsTheSession(t *testing.T) {
	srv := start(t, demo())
	if r := do(t, srv, http.MethodPost, "/sign-out", nil); r.StatusCode != http.StatusSeeOther {
		t.Errorf("answered %s", r.Status)
	}
	if r := do(t, srv, http.MethodGet, "/", nil); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("the session lives on: %s", r.Status)
	}
}

func TestWhoMayAsk(t *testing.T) {
	srv := start(t, demo())
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	for _, c := range []struct {
		name, method, path string
		headers            map[string]string
		want               int
	}{
		{"by 127.0.0.1", "GET", "/", nil, 200},
		{"by localhost", "GET", "/", map[string]string{"Host": "localhost:" + port}, 200},
		{"by [::1]", "GET", "/", map[string]string{"Host": "[::1]:" + port}, 200},
		{"by a name that was made to resolve here", "GET", "/", map[string]string{"Host": "evil.example:" + port}, 421},
		{"by a name that only begins right", "GET", "/", map[string]string{"Host": "localhost.evil.example"}, 421},
		{"health by a wrong name", "GET", "/healthz", map[string]string{"Host": "evil.example"}, 421},
		{"a visit from elsewhere", "GET", "/", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200},
		{"a frame elsewhere", "GET", "/", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403},
		{"a script elsewhere", "GET", "/", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403},
		{"a fetch from another port", "GET", "/live", map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403},
		{"a fetch with another origin", "GET", "/live", map[string]string{"Origin": "http://evil.example"}, 403},
		{"a form elsewhere", "POST", "/sign-out", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a form of another origin", "POST", "/theme#theme=dark", map[string]string{"Origin": "http://127.0.0.1:1"}, 403},
		{"a method that no page has", "DELETE", "/boxes/default", nil, 405},
		{"no such page", "GET", "/nothing", nil, 404},
		{"no such box", "GET", "/boxes/nowhere", nil, 404},
		{"no such session", "GET", "/boxes/default?session=x", nil, 404},
		{"no such asset", "GET", "/assets/app.css", nil, 404},
		{"health needs no sign-in", "GET", "/healthz", map[string]string{"Cookie": "-"}, 200},
		{"a query that is wrong", "GET", "/boxes/default?q=verdict:maybe", nil, 400},
		{"a stream of a wrong query", "GET", "/boxes/default/live?q=verdict:maybe", nil, 400},
		{"a stream of no box", "GET", "/boxes/nowhere/live", nil, 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			if r := do(t, srv, c.method, c.path, c.headers); r.StatusCode != c.want {
				t.Errorf("answered %s", r.Status)
			}
		})
	}
}

func TestEveryAnswerIsSecured(t *testing.T) {
	srv := start(t, demo())
	values := regexp.MustCompile(`="[^"]*"`) // templ escapes quotes in them
	inline := regexp.MustCompile(`(?i)<[a-z][^<>]*\s(style|on[a-z]+|hx-on[^=\s]*)\s*=|<script(?:[^>]*)>[^<]|<style|javascript:`)
	for _, path := range []string{"/", "/boxes/default", "/boxes/default?q=verdict:maybe", "/sign-in", "/sign-in?token=x", "/nothing", "/healthz"} {
		r := do(t, srv, http.MethodGet, path, nil)
		body := text(t, r)
		csp := r.Header.Get("Content-Security-Policy")
		nonce := regexp.MustCompile(`script-src 'nonce-([^']+)'`).FindStringSubmatch(csp)
		if nonce == nil || len(nonce[1]) < 22 || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Fatalf("%s: the policy is %q", path, csp)
		}
		for k, v := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store", "X-Frame-Options": "DENY"} {
			if r.Header.Get(k) != v {
				t.Errorf("%s: %s is %q", path, k, r.Header.Get(k))
			}
		}
		if found := inline.FindString(values.ReplaceAllString(body, `=""`)); found != "" {
			t.Errorf("%s has something inline: %q", path, found)
		}
		if n := strings.Count(body, "<script"); n != strings.Count(body, `nonce="`+nonce[1]+`" defer`)+strings.Count(body, `nonce="`+nonce[1]+`"></script>`) {
			t.Errorf("%s has a script without the nonce", path)
		}
		again := do(t, srv, http.MethodGet, path, nil)
		if again.Header.Get("Content-Security-Policy") == csp {
			t.Errorf("%s: the nonce is used twice", path)
		}
	}
}

func TestHostileNamesAreShownAsWhatTheyAre(t *testing.T) {
	srv := start(t, demo())
	body := text(t, do(t, srv, http.MethodGet, "/boxes/default", nil))
	for _, bad := range []string{"<script>alert", "<img src=x", "<svg onload", "\u202e", "\u2066", "\u200b", "\x1b", "\xff", "\r", "\x00"} {
		if strings.Contains(body, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, want := range []string{`&lt;script&gt;alert(1)&lt;/script&gt;`, `<span class="esc">\u{202e}</span>`, `<span class="esc">\n</span>`, `<span class="esc">\x1b</span>`, `<span class="esc">\xff\xfe\xc3</span>`, "bytes…"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "data: injected") {
			t.Error("a name became a line of its own")
		}
	}
}

func TestEveryLinkOfAPageLeadsSomewhere(t *testing.T) {
	srv := start(t, online())
	posts := []string{"/theme", "/sign-out", "/boxes/default/cut", "/boxes/default/offline"}
	href := regexp.MustCompile(`(?:href|src|action|data-url)="([^"]*)"`)
	seen := map[string]bool{}
	for _, page := range []string{"/", "/boxes/default", "/boxes/default/network", "/boxes/default?q=verdict:redirected&session=" + string(demoSession)} {
		for _, m := range href.FindAllStringSubmatch(text(t, do(t, srv, http.MethodGet, page, nil)), -1) {
			u := strings.NewReplacer("&amp;", "&", "&#34;", `"`, "&#39;", "'").Replace(m[1])
			if seen[u] || strings.HasPrefix(u, "#") || slices.Contains(posts, u) {
				continue
			}
			seen[u] = true
			ctx, cancel := context.WithCancel(t.Context())
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+u, nil)
			if err != nil {
				t.Fatalf("%s: %v", u, err)
			}
			r.AddCookie(&http.Cookie{Name: sessionCookie(srv), Value: sessionOf(srv)})
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s answered %s", page, u, resp.Status)
			}
			_ = resp.Body.Close()
			cancel()
		}
	}
	if len(seen) < 50 {
		t.Errorf("only found %d links", len(seen))
	}
}

func TestAWrongQueryPointsAtTheColumn(t *testing.T) {
	srv := start(t, demo())
	body := text(t, do(t, srv, http.MethodGet, "/boxes/default?q="+url.QueryEscape("exe:node verdict:maybe"), nil))
	for _, want := range []string{"Column 18", "<mark><bdi>m</bdi></mark>", `value="exe:node verdict:maybe"`, `aria-invalid="true"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestAFloodOfLongTextsIsAShortPage(t *testing.T) {
	m := demo()
	srv := start(t, m)
	long := "/" + strings.Repeat("a\xff", 2047)
	op := core.Operation{Time: time.Now(), Box: "default", Session: demoSession, Exe: long, Target: long, Surface: core.FilesRead, Action: core.ActRead, Detail: core.Detail{}}
	for i := range 64 {
		op.Detail[strconv.Itoa(i)] = long
	}
	for i := range opsPage {
		op.Seq = core.Seq(5000 + i)
		m.add(op)
	}
	body := text(t, do(t, srv, http.MethodGet, "/boxes/default", nil))
	if len(body) > 2<<20 {
		t.Errorf("the page has %d bytes", len(body))
	}
	if !strings.Contains(body, "bytes more") || strings.Contains(body, `aria-label="Copy the target"`) {
		t.Error("what is cut is not said to be, or can be copied")
	}
	alone := text(t, do(t, srv, http.MethodGet, "/boxes/default?q=seq:5000&session="+string(demoSession), nil))
	if want := shellQuote(long); strings.Count(alone, templ.EscapeString(want)) < 3 {
		t.Error("an operation alone in its window is not shown whole")
	}
}

func TestBoxesCanBeSorted(t *testing.T) {
	srv := start(t, demo())
	name := regexp.MustCompile(`<a class="row" href="/boxes/([\w.-]{3,8})`)
	for sort, want := range map[string]string{
		"":         "default build cis-2013 a-name-t old",
		"box":      "a-name-t build cis-2013 default old",
		"-box":     "old default cis-2013 build a-name-t",
		"allowed":  "build cis-2013 old default a-name-t",
		"-blocked": "a-name-t build old default cis-2013",
		"last":     "default build cis-2013 a-name-t old",
		"nonsense": "default build cis-2013 a-name-t old",
	} {
		body := text(t, do(t, srv, http.MethodGet, "/?sort="+sort, nil))
		var got []string
		for _, m := range name.FindAllStringSubmatch(body, -1) {
			got = append(got, m[1])
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("by %q they are %s", sort, g)
		}
		if sorted := sort != "" && sort != "nonsense"; strings.Contains(body, "aria-sort") != sorted || strings.Contains(body, "/live?sort=") != sorted {
			t.Errorf("by %q, the page does not say so, or goes on in another order", sort)
		}
	}
}

func TestWindowsFollowOneAnother(t *testing.T) {
	m := demo()
	srv := start(t, m)
	id := regexp.MustCompile(`<li id="o(\d+)"`)
	older := regexp.MustCompile(`<a href="([^"]+)" rel="next">`)
	newer := regexp.MustCompile(`<a href="([^"]+)" rel="prev">`)
	var all, windows []string
	page, last := "/boxes/default", ""
	for page != "" {
		body := text(t, do(t, srv, http.MethodGet, page, nil))
		window := ""
		for _, m := range id.FindAllStringSubmatch(body, -1) {
			all = append(all, m[1])
			window += m[1] + " "
		}
		windows = append(windows, window)
		last = body
		page = ""
		if m := older.FindStringSubmatch(body); m != nil {
			page = strings.ReplaceAll(m[1], "&amp;", "&")
		}
	}
	if len(all) != len(m.ops) || len(windows) < 3 {
		t.Fatalf("%d windows show %d of %d operations", len(windows), len(all), len(m.ops))
	}
	back := newer.FindStringSubmatch(last)
	if back == nil {
		t.Fatal("the oldest window has no way back")
	}
	body, window := text(t, do(t, srv, http.MethodGet, strings.ReplaceAll(back[1], "&amp;", "&"), nil)), ""
	for _, m := range id.FindAllStringSubmatch(body, -1) {
		window += m[1] + " "
	}
	if window != windows[len(windows)-2] {
		t.Errorf("back from the oldest window is another one: %q, not %q", window, windows[len(windows)-2])
	}
}

// TestASearchThatIsNotOverSaysSo is about a source that gives up on a rare query before
// it has seen everything.
func TestASearchThatIsNotOverSaysSo(t *testing.T) {
	srv := start(t, impatient{demo()})
	body := text(t, do(t, srv, http.MethodGet, "/boxes/default?q=verdict:blocked", nil))
	if !strings.Contains(body, "Nothing yet") || !strings.Contains(body, `href="/boxes/default?before=17&amp;q=verdict%3Ablocked" rel="next"`) {
		t.Error("the page does not say that there may be more, or not where")
	}
}

// impatient finds nothing and says where it stopped.
type impatient struct{ *memory }

func (impatient) Ops(context.Context, *query.Query, string, core.SessionID, core.OpCursor, core.OpCursor, int) (core.OpsPage, error) {
	return core.OpsPage{More: true, Next: 17}, nil
}

func TestASourceThatFailsIsSaidAndReported(t *testing.T) {
	m := demo()
	srv := start(t, m)
	m.err = errors.New("disk \x1b on fire")
	r := do(t, srv, http.MethodGet, "/", nil)
	if body := text(t, r); r.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, `disk \x1b on fire`) {
		t.Errorf("answered %s", r.Status)
	}
	if _, errs := siteOf(srv).told(); len(errs) != 1 || !errors.Is(errs[0], m.err) {
		t.Errorf("reported: %v", errs)
	}
}

func TestStaleIsSaid(t *testing.T) {
	srv := start(t, demo())
	siteOf(srv).setLive("20 s behind")
	if body := text(t, do(t, srv, http.MethodGet, "/", nil)); !strings.Contains(body, "20 s behind") {
		t.Error("the page does not say it")
	}
	if r := do(t, srv, http.MethodGet, "/healthz", nil); r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("health answered %s", r.Status)
	}
}

// messages reads an event stream.
func messages(t *testing.T, srv *httptest.Server, path string, headers map[string]string) func() (event, id, data string) {
	t.Helper()
	r := do(t, srv, http.MethodGet, path, headers)
	if k := r.Header.Get("Content-Type"); !strings.HasPrefix(k, "text/event-stream") {
		t.Fatalf("%s answered %s, %s", path, r.Status, k)
	}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 16<<20)
	return func() (event, id, data string) {
		t.Helper()
		for lines.Scan() {
			k, v, _ := strings.Cut(lines.Text(), ": ")
			switch k {
			case "event":
				event = v
			case "id":
				id = v
			case "data":
				data += v + "\n"
			case "":
				return event, id, data
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return
	}
}

func TestAStreamBeginsWithEverythingAndSendsWhatChanged(t *testing.T) {
	m := demo()
	srv := start(t, m)
	hubOf(srv).Publish(Tick{Seq: 41})
	next := messages(t, srv, "/boxes/default/live", map[string]string{"Last-Event-ID": "12"})
	if event, _, data := next(); event != "beat" || !strings.Contains(data, `"live":true`) {
		t.Errorf("first came %s %s", event, data)
	}
	parts := func(data string) (ids []string) {
		for _, m := range regexp.MustCompile(`<hx-partial hx-target="#(\w+)"`).FindAllStringSubmatch(data, -1) {
			ids = append(ids, m[1])
		}
		return ids
	}
	for _, want := range [][]string{{"summary", "alarms", "ops"}, {"procs", "names", "surfaces", "sessions", "files", "network"}} {
		event, id, data := next()
		if event != "" || id != "41" || !slices.Equal(parts(data), want) {
			t.Errorf("then came %q with id %q and %q, not %q", event, id, parts(data), want)
		}
	}
	m.add(core.Operation{Seq: 999, Time: time.Now(), Box: "default", Session: demoSession, Target: "/new", Surface: core.FilesRead, Action: core.ActRead, Verdict: core.Blocked})
	hubOf(srv).Publish(Tick{Seq: 42, Boxes: []string{"other"}, Blocked: true})
	hubOf(srv).Publish(Tick{Seq: 43, Boxes: []string{"default"}, Blocked: true})
	_, id, data := next()
	if id != "43" || !strings.Contains(data, "new") || !slices.Equal(parts(data), []string{"summary", "alarms", "ops"}) {
		t.Errorf("the change came with id %q in %q: %.80s", id, parts(data), data)
	}
}

func TestWhatWasBlockedStaysInSight(t *testing.T) {
	add := func(m *memory, n int, v core.Verdict, leak bool, target string) {
		for range n {
			m.add(core.Operation{Seq: 999, Time: time.Now(), Box: "build", Session: "s", Target: target, Surface: core.FilesRead, Action: core.ActRead, Verdict: v, Leak: leak})
		}
	}
	m := demo()
	s := &site{Options: Options{Source: m}, alarm: alarmQuery()}
	a := &alarms{}
	kept := func() string {
		t.Helper()
		v := boxView{boxFilter: boxFilter{box: "build"}}
		if err := s.readTop(t.Context(), &v); err != nil {
			t.Fatal(err)
		}
		if err := s.readWindow(t.Context(), &v, a); err != nil {
			t.Fatal(err)
		}
		var targets []string
		for _, op := range v.alarms {
			targets = append(targets, op.Target)
		}
		return strings.Join(targets, " ")
	}
	add(m, 50, core.Allowed, false, "/x")
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"nothing was blocked", func() {}, ""},
		{"one is, among many that are not", func() { add(m, 1, core.Blocked, false, "a"); add(m, 5000, core.Allowed, false, "/x") }, "a"},
		{"much else is done", func() { add(m, 5000, core.Allowed, false, "/x") }, "a"},
		{"two more", func() {
			add(m, 1, core.Blocked, false, "b")
			add(m, 100, core.Allowed, false, "/x")
			add(m, 1, core.Allowed, true, "leak")
		}, "leak b a"},
		{"only the last three", func() { add(m, 1, core.Blocked, false, "c") }, "c leak b"},
		{"a flood of them", func() { add(m, 1000, core.Blocked, false, "many"); add(m, 1, core.Blocked, false, "last") }, "last many many"},
		{"the record begins again", func() {
			m.ops, m.boxes[1].Counts = nil, core.Counts{}
			add(m, 1, core.Blocked, false, "anew")
		}, "anew"},
	} {
		if step.do(); kept() != step.want {
			t.Errorf("%s: kept is %q", step.what, kept())
		}
	}
}

// slowTree is a source whose processes take as long as a test wants.
type slowTree struct {
	*memory
	asked, go_ chan struct{}
}

func (s slowTree) Processes(ctx context.Context, id core.SessionID) ([]core.ProcessView, error) {
	select {
	case s.asked <- struct{}{}:
	case <-ctx.Done():
	}
	select {
	case <-s.go_:
	case <-ctx.Done():
	}
	return s.memory.Processes(ctx, id)
}

func TestABlockedOperationWaitsForNoTree(t *testing.T) {
	m := slowTree{demo(), make(chan struct{}), make(chan struct{})}
	srv := start(t, m)
	next := messages(t, srv, "/boxes/default/live", nil)
	next()
	next()
	<-m.asked // the tree is being read from here on
	m.add(core.Operation{Seq: 999, Time: time.Now(), Box: "default", Session: demoSession, Target: "/new", Surface: core.FilesRead, Action: core.ActRead, Verdict: core.Blocked})
	hubOf(srv).Publish(Tick{Seq: 43, Boxes: []string{"default"}, Blocked: true})
	if _, _, data := next(); !strings.Contains(data, `<span class="base">new</span>`) {
		t.Errorf("came %.80s", data)
	}
	m.go_ <- struct{}{}
	for {
		if _, _, data := next(); strings.Contains(data, `hx-target="#procs"`) {
			return
		}
	}
}

// breaking is a source of which one read panics.
type breaking struct{ *memory }

func (breaking) Counts(context.Context, string, core.SessionID) ([]core.SurfaceCount, error) {
	panic("a bug")
}

func TestAPanicIsSaidAndEndsNothingElse(t *testing.T) {
	srv := start(t, breaking{demo()})
	if r := do(t, srv, http.MethodGet, "/boxes/default", nil); r.StatusCode != http.StatusInternalServerError || !strings.Contains(text(t, r), "went wrong") {
		t.Errorf("the page answered %s", r.Status)
	}
	next := messages(t, srv, "/boxes/default/live", nil)
	for {
		event, _, data := next()
		if event == "beat" && strings.Contains(data, "a bug") {
			break
		}
	}
	if _, errs := siteOf(srv).told(); len(errs) < 2 {
		t.Errorf("reported were %v", errs)
	}
	if r := do(t, srv, http.MethodGet, "/", nil); r.StatusCode != http.StatusOK {
		t.Errorf("another page answers %s", r.Status)
	}
}

func TestAFixedWindowStaysWhileCountersGoOn(t *testing.T) {
	m := demo()
	srv := start(t, m)
	next := messages(t, srv, "/boxes/default/live?window=fixed", nil)
	next()
	if _, _, data := next(); strings.Contains(data, `hx-target="#ops"`) || !strings.Contains(data, `hx-target="#summary"`) {
		t.Error("the stream has the list")
	}
}

func TestStreamsEndWithTheHub(t *testing.T) {
	srv := start(t, demo())
	r := do(t, srv, http.MethodGet, "/live", nil)
	hubOf(srv).Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Error(err)
	}
}

func TestTheHubWaitsForNobodyAndMerges(t *testing.T) {
	h := NewHub()
	s := h.subscribe("a")
	for i := range 10000 {
		h.Publish(Tick{Seq: uint64(i + 1), Boxes: []string{"a"}, Blocked: i == 5000})
	}
	h.Publish(Tick{Seq: 20000, Boxes: []string{"b"}})
	if !s.urgent() {
		t.Error("that something was blocked is forgotten")
	}
	if seq := s.take(); seq != 20000 || s.urgent() || len(s.wake) != 1 {
		t.Errorf("took %d, with %d wakings", seq, len(s.wake))
	}
	h.Publish(Tick{Boxes: []string{"a"}}) // a session began: nothing new in the stream of operations
	if seq := s.take(); seq != 20000 {
		t.Errorf("took %d", seq)
	}
	<-s.wake
	s.close()
	h.Publish(Tick{Seq: 20001, Boxes: []string{"a"}})
	if len(s.wake) != 0 {
		t.Error("a subscription that was closed is still woken")
	}
}

func TestTheWayBackIsALocalPath(t *testing.T) {
	for in, want := range map[string]string{"/boxes/a?q=x": "/boxes/a?q=x", "": "/", "//evil.example": "/", "https://evil.example/": "/", `/\evil.example`: "/", "javascript:alert(1)": "/", "boxes": "/", "/\r\nSet-Cookie: a": "/"} {
		if got := localPath(in); got != want {
			t.Errorf("localPath(%q) = %q, not %q", in, got, want)
		}
	}
}

func TestVendoredScriptsAreWhatTheySay(t *testing.T) {
	notes, err := os.ReadFile("assets/VENDOR.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"htmx.min.js", "hx-sse.min.js"} {
		sum := sha256.Sum256(assets[name].data)
		if !strings.Contains(string(notes), "| "+name+" |") || !strings.Contains(string(notes), hex.EncodeToString(sum[:])) {
			t.Errorf("%s is not what VENDOR.md says", name)
		}
	}
}

func TestAssetsAreKeptForEver(t *testing.T) {
	srv := start(t, demo())
	for name, a := range assets {
		r := do(t, srv, http.MethodGet, a.url, map[string]string{"Cookie": "-"})
		if body := text(t, r); r.StatusCode != http.StatusOK || body != string(a.data) || r.Header.Get("Content-Type") != a.kind || !strings.Contains(r.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s answered %s, %v", name, r.Status, r.Header)
		}
	}
}

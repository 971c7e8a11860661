package web

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/sandglass/sandglass/core"
)

// Tests in a real browser. They wait for what is to be seen, never for a time.

// chromium starts the browser that all tests share, once.
var chromium = sync.OnceValues(func() (context.Context, error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, err
	}
	// A folder of its own for what the browser keeps is chromedp's default.
	ctx, _ := chromedp.NewExecAllocator(context.Background(), // TestMain ends it
		chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true))
	browser, _ := chromedp.NewContext(ctx)
	return browser, chromedp.Do(browser)
})

var started atomic.Bool // whether the browser was asked for

func TestMain(m *testing.M) {
	code := m.Run()
	if started.Load() {
		if ctx, err := chromium(); err == nil {
			_ = chromedp.Cancel(ctx) // its folder goes with it
		}
	}
	os.Exit(code)
}

// tab is a browser's tab that watches for complaints.
type tab struct {
	ctx  context.Context
	srv  *httptest.Server
	mu   sync.Mutex
	said []string // errors and warnings in the console, violations of the policy
}

func browse(t testing.TB, srv *httptest.Server) *tab {
	t.Helper()
	started.Store(true)
	browser, err := chromium()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs chromium")
	} else if err != nil {
		t.Fatal(err)
	}
	b := &tab{srv: srv}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext(), chromedp.WithListener(func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch ev := ev.(type) {
		case *log.EventEntryAdded:
			if ev.Entry.Level == log.EntryLevelError || ev.Entry.Level == log.EntryLevelWarning {
				b.said = append(b.said, ev.Entry.Text)
			}
		case *runtime.EventConsoleAPICalled:
			if ev.Type == runtime.ConsoleAPICalledTypeError || ev.Type == runtime.ConsoleAPICalledTypeWarning {
				for _, a := range ev.Args {
					b.said = append(b.said, string(a.Value)+a.Description)
				}
			}
		case *runtime.EventExceptionThrown:
			b.said = append(b.said, ev.ExceptionDetails.Text)
		}
	}))
	t.Cleanup(cancel)
	b.ctx = ctx
	if err := chromedp.Do(ctx); err != nil { // the tab lives as long as this context
		t.Fatal(err)
	}
	return b
}

func (b *tab) run(t testing.TB, steps ...step) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatalf("%v; the console: %q", err, b.complaints())
	}
}

// step is something done with a tab.
type step = chromedp.Action[chromedp.Void]

// get evaluates an expression of the page.
func get[T any](t *testing.T, b *tab, expression string) T {
	t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// complaints are what the console holds, but for the status of pages that were asked for.
func (b *tab) complaints() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.said {
		if !strings.Contains(s, "the server responded with a status of") {
			all = append(all, s)
		}
	}
	return all
}

// visit opens a page, signed in, and waits until it is live if it can be.
func (b *tab) visit(path, theme string) step {
	yes := true
	return chromedp.Steps(
		chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
			if theme != "" {
				if _, err := cdp.Call(ctx, tab, network.SetCookie, network.SetCookieParams{Name: "sandglass_theme", Value: theme, URL: b.srv.URL}); err != nil {
					return err
				}
			}
			_, err := cdp.Call(ctx, tab, network.SetCookie, network.SetCookieParams{Name: sessionCookie(b.srv), Value: sessionOf(b.srv), URL: b.srv.URL, HTTPOnly: &yes})
			return err
		}),
		chromedp.Navigate(b.srv.URL+path),
		see(`document.querySelector("html.js")`),
		see(`!document.querySelector("#stream") || document.querySelector("#live[data-state=live]")`),
	)
}

// eval runs a script for its effect.
func eval(script string) step {
	return chromedp.Evaluate[chromedp.Void](script+"; undefined", chromedp.EvalAsValue)
}

// see waits until an expression is true. (chromedp's own wait makes a function of text in
// the page, which the page's policy rightly forbids.)
func see(expression string) step {
	wait := `new Promise(resolve => { const look = () => (` + expression + `) ? resolve(true) : setTimeout(look, 10); look(); })`
	return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		for {
			_, err := chromedp.Evaluate[bool](wait, chromedp.EvalAwaitPromise)(ctx, tab)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("waiting for %s: %w", expression, err)
			}
			if s := err.Error(); !strings.Contains(s, "context") && !strings.Contains(s, "navigat") {
				return fmt.Errorf("waiting for %s: %w", expression, err)
			} // the page went away: look at the next one
		}
	})
}

// frame waits until what the page holds now was painted.
var frame = chromedp.Evaluate[chromedp.Void](`new Promise(painted => requestAnimationFrame(() => requestAnimationFrame(() => painted())))`, chromedp.EvalAwaitPromise)

func TestAnOperationAppearsWhileThePageIsOpen(t *testing.T) {
	m := demo()
	srv := start(t, m)
	b := browse(t, srv)
	b.run(t, b.visit("/boxes/default", ""))
	m.add(core.Operation{Seq: 1000, Time: time.Now(), Box: "default", Session: demoSession, Proc: "2", PID: 2, Exe: "/usr/bin/node",
		Surface: core.FilesWrite, Action: core.ActDelete, Target: "/home/ann/just now", Verdict: core.Blocked, Errno: "EPERM", Outcome: core.Refused, Rule: "test"})
	hubOf(srv).Publish(Tick{Seq: 7, Boxes: []string{"default"}, Blocked: true})
	b.run(t,
		see(`document.querySelector("#ops .op .target").textContent.includes("just now")`),
		see(`document.querySelector(".g-blocked .big").textContent === "7"`),
		see(`document.querySelectorAll("#alarms, #ops, #summary, #procs, #surfaces, #sessions").length === 6`),
	)
	first, count := get[string](t, b, `document.querySelector("#ops .op .verdict").textContent.trim()`), get[string](t, b, `document.querySelector("#live").textContent.trim()`)
	if first != "blocked" || count != "Live" {
		t.Errorf("the newest line says %q, the sign of life %q", first, count)
	}
	if c := b.complaints(); c != nil {
		t.Errorf("the browser complained: %q", c)
	}
}

// BenchmarkBlockedOnScreen is the time from the word that something was blocked until the
// browser has painted the line, while the box does 20,000 other operations a second: of
// usual names, and of names that were chosen to be as costly as they can be.
func BenchmarkBlockedOnScreen(b *testing.B) {
	for _, box := range []struct{ name, target string }{{"usual names", "/usr/lib/node_modules/npm/index.js"}, {"hostile names", "/" + strings.Repeat("a\xff", 2047)}} {
		b.Run(box.name, func(b *testing.B) {
			m := demo()
			srv := start(b, m)
			page := browse(b, srv)
			page.run(b, page.visit("/boxes/default", ""))
			op := core.Operation{Box: "default", Session: demoSession, Proc: "2", PID: 2, Exe: box.target, Target: box.target,
				Surface: core.FilesRead, Action: core.ActRead, Verdict: core.Allowed, Detail: core.Detail{"argv": box.target}}
			seq, done := core.Seq(5000), false
			var mu sync.Mutex
			var ended sync.WaitGroup
			ended.Go(func() {
				every := time.NewTicker(5 * time.Millisecond)
				defer every.Stop()
				for range every.C {
					mu.Lock()
					if done {
						mu.Unlock()
						return
					}
					for range 100 {
						seq++
						op.Seq, op.Time = seq, time.Now()
						m.add(op)
					}
					mu.Unlock()
					hubOf(srv).Publish(Tick{Boxes: []string{"default"}})
				}
			})
			n := 0
			for b.Loop() {
				n++
				mu.Lock()
				seq++
				blocked := op
				blocked.Seq, blocked.Time, blocked.Verdict, blocked.Target = seq, time.Now(), core.Blocked, fmt.Sprintf("/secret/%d", n)
				m.add(blocked)
				mu.Unlock()
				hubOf(srv).Publish(Tick{Boxes: []string{"default"}, Blocked: true})
				page.run(b, see(fmt.Sprintf(`[...document.querySelectorAll(".op-blocked .base")].some(e => e.textContent === "%d" && e.offsetHeight > 0)`, n)), frame)
			}
			mu.Lock()
			done = true
			mu.Unlock()
			ended.Wait()
		})
	}
}

func TestFlowsAppearWhileThePageIsOpenAndAreCut(t *testing.T) {
	m := online()
	srv := start(t, m)
	b := browse(t, srv)
	b.run(t, b.visit("/boxes/default", ""), see(`document.querySelectorAll("#network tr.open").length === 6`))
	op := func(a core.Action, kv ...string) {
		o := core.Operation{Seq: 3000, Time: time.Now(), Box: "default", Session: demoSession, Proc: "6", PID: 6, Exe: "/usr/bin/node", Surface: core.NetOut, Action: a,
			Target: "203.0.113.200:443", Verdict: core.Allowed, Rule: "test", Detail: core.Detail{"flow": "99"}}
		for i := 0; i < len(kv); i += 2 {
			o.Detail[kv[i]] = kv[i+1]
		}
		m.add(o)
		hubOf(srv).Publish(Tick{Boxes: []string{"default"}})
	}
	op(core.ActConnect, "proto", "tcp", "name", "new.example", "by", "dns")
	const line = `#network tr.open:first-child`
	b.run(t, see(`document.querySelector("`+line+` .c-to a").textContent === "new.example"`))
	op(core.ActCount, "sent", "2048", "received", "5000000")
	b.run(t, see(`document.querySelector("`+line+` .c-size").textContent.includes("2.0")`), see(`document.querySelector("`+line+` .c-size + .c-size").title.startsWith("5\u202f000\u202f000 bytes")`))

	b.run(t, chromedp.Click(chromedp.CSS(line+` button`)), see(`document.querySelector(".said")?.textContent === "Flow 99 was cut."`), see(`location.pathname === "/boxes/default"`))
	if got, want := siteOf(srv).orders.taken(), "cut default "+string(demoSession)+" 99"; len(got) != 1 || got[0] != want {
		t.Errorf("ordered %q, want %q", got, want)
	}
	b.run(t, see(`document.querySelector("#live[data-state=live]")`))
	op(core.ActClose, "reason", "cut")
	b.run(t, see(`document.querySelectorAll("#network tr.open").length === 6`), see(`[...document.querySelectorAll("#network tr:not(.open)")].some(r => r.textContent.includes("new.example") && r.querySelector(".c-end").textContent.includes("cut"))`))
	if c := b.complaints(); c != nil {
		t.Errorf("the browser complained: %q", c)
	}
}

func TestBoxesAreLive(t *testing.T) {
	m := demo()
	srv := start(t, m)
	b := browse(t, srv)
	b.run(t, b.visit("/", ""))
	m.mu.Lock()
	m.boxes = append(m.boxes, core.BoxView{Name: "newcomer", Running: 1, LastUse: time.Now()})
	m.mu.Unlock()
	hubOf(srv).Publish(Tick{Seq: 8, Boxes: []string{"newcomer"}})
	b.run(t, see(`document.querySelector("#boxes").textContent.includes("newcomer")`))
	if c := b.complaints(); c != nil {
		t.Errorf("the browser complained: %q", c)
	}
}

func TestAPageSaysWhenItIsNotLiveAndComesBack(t *testing.T) {
	m := demo()
	srv := start(t, m)
	b := browse(t, srv)
	b.run(t, b.visit("/boxes/default", ""))

	siteOf(srv).setLive("the projector stopped")
	hubOf(srv).Publish(Tick{Seq: 9, Boxes: []string{"default"}})
	b.run(t, see(`document.querySelector("#live").textContent.includes("the projector stopped")`))
	siteOf(srv).setLive("")

	srv.CloseClientConnections()
	b.run(t, see(`document.querySelector("#live[data-state=lost]")`), see(`document.querySelector("#live[data-state=live]")`))
	m.add(core.Operation{Seq: 1001, Time: time.Now(), Box: "default", Session: demoSession, Target: "/after", Surface: core.FilesRead, Action: core.ActRead, Verdict: core.Allowed})
	hubOf(srv).Publish(Tick{Seq: 10, Boxes: []string{"default"}})
	b.run(t, see(`document.querySelector("#ops .op .target").textContent.includes("after")`))
}

func TestAPageSaysThatItsSessionEnded(t *testing.T) {
	srv := start(t, demo())
	b := browse(t, srv)
	b.run(t, b.visit("/", ""))
	store := siteOf(srv).auth.sessions.Store.(*sessionStore)
	store.mu.Lock()
	clear(store.all)
	store.mu.Unlock()
	srv.CloseClientConnections()
	b.run(t, see(`document.querySelector("#live[data-state=lost]")?.textContent.includes("signed out")`), see(`!document.querySelector("#stream")`),
		chromedp.Reload(), see(`document.querySelector("h1").textContent === "Sign in"`))
}

func TestTheButtonSignsOut(t *testing.T) {
	srv := start(t, demo())
	b := browse(t, srv)
	b.run(t, b.visit("/", ""), chromedp.Click(chromedp.CSS(`form[action="/sign-out"] button`)), see(`location.pathname === "/sign-in" && document.querySelector("h1")?.textContent === "Sign in"`))
}

func TestKeysWork(t *testing.T) {
	m := demo()
	srv := start(t, m)
	b := browse(t, srv)
	focused := func(selector string) step {
		return see(fmt.Sprintf(`document.activeElement.matches(%q)`, selector))
	}
	b.run(t, b.visit("/boxes/default", ""),
		chromedp.KeyEvent("/"), focused("#q"),
		chromedp.KeyEvent("\x1b"), focused("body"),
		chromedp.KeyEvent("j"), focused("#alarms .op:nth-child(1) summary"),
		chromedp.KeyEvent("j"), focused("#alarms .op:nth-child(2) summary"), chromedp.KeyEvent("j"),
		chromedp.KeyEvent("j"), focused("#ops .op:nth-child(1) summary"),
		chromedp.KeyEvent("j"), focused("#ops .op:nth-child(2) summary"),
		chromedp.KeyEvent("k"), focused("#ops .op:nth-child(1) summary"),
		chromedp.KeyEvent("\r"), see(`document.querySelector("#ops .op:nth-child(1) details").open`),
		see(`document.querySelector("#ops[data-held]")`),
	)

	// What is being read stays where it is; what was missed comes when it is let go.
	m.add(core.Operation{Seq: 1002, Time: time.Now(), Box: "default", Session: demoSession, Target: "/while/reading", Surface: core.FilesRead, Action: core.ActRead, Verdict: core.Blocked})
	hubOf(srv).Publish(Tick{Seq: 11, Boxes: []string{"default"}, Blocked: true})
	b.run(t, see(`document.querySelector(".g-blocked .big").textContent === "7"`),
		see(`!document.querySelector("#ops").textContent.includes("reading")`),
		chromedp.KeyEvent("p"), see(`document.querySelector("#ops").textContent.includes("reading") && !document.querySelector("#ops[data-held]")`),
		chromedp.KeyEvent("?"), see(`document.querySelector("#help").open`), chromedp.KeyEvent("\x1b"),
		chromedp.Navigate(srv.URL+"/"), see(`document.querySelector("html.js")`),
		chromedp.KeyEvent("j"), focused(".boxes .row"), chromedp.KeyEvent("\r"), see(`location.pathname === "/boxes/default"`))
	if c := b.complaints(); c != nil {
		t.Errorf("the browser complained: %q", c)
	}
}

func TestTheThemeCanBeChosenAndStays(t *testing.T) {
	srv := start(t, demo())
	b := browse(t, srv)
	ground := func(want string) step {
		return see(fmt.Sprintf(`getComputedStyle(document.body).backgroundColor === %q`, want))
	}
	const light, dark = "rgb(250, 249, 247)", "rgb(20, 19, 18)"
	b.run(t, b.visit("/", ""), ground(light),
		chromedp.Click(chromedp.CSS(`#theme [value=dark]`)), ground(dark),
		see(`document.cookie === "" || document.cookie.includes("sandglass_theme=dark")`),
		chromedp.Reload(), see(`document.querySelector("html.js")`), ground(dark),
		chromedp.Click(chromedp.CSS(`#theme [value=light]`)), ground(light))
	if c := b.complaints(); c != nil {
		t.Errorf("the browser complained: %q", c)
	}
}

func TestHostileFlowsBreakNothingOnTheScreen(t *testing.T) {
	m := online()
	for i, name := range hostile {
		m.add(core.Operation{Seq: core.Seq(9000 + i), Time: time.Now(), Box: "default", Session: demoSession, Proc: core.ProcID(name), PID: 6, Exe: name, Surface: core.NetOut, Action: core.ActConnect, Target: name,
			Verdict: core.Allowed, Rule: name, Detail: core.Detail{"flow": fmt.Sprint("9", i, name), "proto": name, "name": name, "alpn": name, "cert": name, "by": name}})
		m.add(core.Operation{Seq: core.Seq(9100 + i), Time: time.Now(), Box: "default", Session: demoSession, Surface: core.NetDNS, Action: core.ActResolve, Target: name, Rule: name,
			Detail: core.Detail{"type": name, "rcode": name}})
	}
	srv := start(t, m)
	b := browse(t, srv)
	for _, path := range []string{"/boxes/default", "/boxes/default/network"} {
		for _, width := range []int64{1440, 390} {
			b.run(t, chromedp.EmulateViewport(width, 900), b.visit(path, ""),
				see(`document.documentElement.scrollWidth <= innerWidth`),
				see(`!document.querySelector("#network script, #network img, #network svg, #network [onclick], #network [style], #names script, #names img, #names svg, #names [onclick]")`),
				see(`document.querySelectorAll("#network tbody tr").length >= 10 && document.querySelectorAll("#names tbody tr").length >= 12`))
			for _, rows := range []string{"#network tr.flow", "#names tbody tr"} { // no line is higher than the others, whatever it names
				if heights := get[string](t, b, `[...new Set([...document.querySelectorAll("`+rows+`")].map(s => Math.round(s.getBoundingClientRect().height)))].join(" ")`); rows == "#network tr.flow" && path == "/boxes/default" && strings.Contains(heights, " ") {
					t.Errorf("%s, %d wide, %s have the heights %s", path, width, rows, heights)
				}
			}
		}
	}
	if c := b.complaints(); c != nil {
		t.Errorf("the browser complained: %q", c)
	}
}

func TestHostileNamesBreakNothingOnTheScreen(t *testing.T) {
	srv := start(t, demo())
	b := browse(t, srv)
	for _, width := range []int64{1440, 390} {
		b.run(t, chromedp.EmulateViewport(width, 900), b.visit("/boxes/default", ""),
			eval(`document.querySelectorAll(".op details").forEach(d => d.open = true)`),
			see(`document.documentElement.scrollWidth <= innerWidth`),
			see(`!document.querySelector("#ops script, #ops img, #ops svg, #ops [onclick], #ops [style]")`),
			see(fmt.Sprintf(`document.querySelectorAll("#ops .op").length === %d`, opsPage)))
		// No line is higher than the others, whatever it names.
		if heights := get[string](t, b, `[...new Set([...document.querySelectorAll(".op summary")].map(s => s.offsetHeight))].join(" ")`); strings.Contains(heights, " ") {
			t.Errorf("%d wide, lines have the heights %s", width, heights)
		}
	}
	if c := b.complaints(); c != nil {
		t.Errorf("the browser complained: %q", c)
	}
}

func TestChangesAreReviewedByKeysAndForms(t *testing.T) {
	h := installed()
	srv := holding(start(t, demo()), h)
	b := browse(t, srv)
	b.run(t, b.visit(filesOf, ""),
		chromedp.KeyEvent("j"), see(`document.activeElement.matches("summary.row")`),
		chromedp.KeyEvent("j"), see(`document.activeElement.matches("a.row.leaf") && document.activeElement.textContent.includes(".bashrc")`),
		chromedp.KeyEvent("x"), see(`document.activeElement.closest("li").querySelector("input").checked`),
		chromedp.KeyEvent("\r"), see(`document.querySelector("h1")?.textContent === ".bashrc"`),
		see(`document.querySelectorAll(".diff .plus").length > 0 && document.querySelector(".diff .code").offsetWidth > 300`),
		chromedp.Click(chromedp.CSS(`[name=do][value=discard]`)), see(`document.querySelector("h1")?.textContent === "Discard 1 change?"`),
		chromedp.Click(chromedp.CSS(`.primary`)), see(`document.querySelector(".said")?.textContent === "Discarded: 1 modified."`),
		see(`!document.querySelector(".changes").textContent.includes(".bashrc")`),
		chromedp.Navigate(srv.URL+pathPage("/home/ann/project/logo.png")), see(`document.images.length === 2 && [...document.images].every(i => i.complete && i.naturalWidth === 320)`),
	)
	if got := h.ordered(); len(got) != 1 || got[0] != `discard ["/home/ann/.bashrc"]` {
		t.Errorf("ordered %q", got)
	}
	if c := b.complaints(); c != nil {
		t.Errorf("the browser complained: %q", c)
	}
}

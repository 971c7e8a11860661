package web

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

// body reads an answer.
func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func form(kv ...string) string {
	v := url.Values{}
	for i := 0; i < len(kv); i += 2 {
		v.Set(kv[i], kv[i+1])
	}
	return "#" + v.Encode()
}

func TestFlowsAreCutAndBoxesTakenOffline(t *testing.T) {
	srv := start(t, online())
	orders := &siteOf(srv).orders
	for _, c := range []struct {
		name, path, form string
		fail             error
		want             []string
		back, said       string
	}{
		{"a flow", "/boxes/default/cut", form("session", string(demoSession), "flow", "13", "back", "/boxes/default?session=x"), nil,
			[]string{"cut default " + string(demoSession) + " 13"}, "/boxes/default?session=x", "Flow 13 was cut."},
		{"all flows", "/boxes/default/cut", form("back", "/boxes/default"), nil, []string{"cut default  "}, "/boxes/default", "All flows of the box were cut."},
		{"offline", "/boxes/default/offline", form("back", "/boxes/default"), nil, []string{"block default block *", "cut default  "}, "/boxes/default", "--unrule &#39;block *&#39;"},
		{"an order that fails", "/boxes/default/cut", form("back", "//evil.example/"), core.Hint(errors.New("nothing <runs> in it"), "a hint"), []string{"cut default  "}, "/", "nothing &lt;runs&gt; in it. a hint"},
		{"a rule that fails cuts nothing", "/boxes/default/offline", form("back", "/"), errors.New("no"), []string{"block default block *"}, "/", "offline: no"},
		{"a flow of no session", "/boxes/default/cut", form("flow", "13", "back", "/"), nil, nil, "/", "no flow was named"},
	} {
		orders.mu.Lock()
		orders.fail = c.fail
		orders.mu.Unlock()
		r := do(t, srv, http.MethodPost, c.path+c.form, nil)
		if got := orders.taken(); r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != c.back || !slices.Equal(got, c.want) {
			t.Errorf("%s: %s to %q, ordered %q, want %q", c.name, r.Status, r.Header.Get("Location"), got, c.want)
		}
		for _, there := range []bool{true, false} { // once
			if page := body(t, do(t, srv, http.MethodGet, "/boxes/default", nil)); strings.Contains(page, `class="said`) != there || strings.Contains(page, c.said) != there {
				t.Errorf("%s: the page says it: %v, want %v", c.name, !there, there)
			}
		}
	}
}

func TestOrdersAreTakenOfNobodyElse(t *testing.T) {
	srv := start(t, online())
	for _, what := range []string{"cut", "offline"} {
		path := "/boxes/default/" + what
		for _, c := range []struct {
			name, method, path string
			headers            map[string]string
			status             int
		}{
			{"nobody who is signed in", "POST", path + form("back", "/"), map[string]string{"Cookie": "-"}, 401},
			{"another site", "POST", path + form("back", "/"), map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
			{"another site of the same host", "POST", path + form("back", "/"), map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
			{"another origin in an old browser", "POST", path + form("back", "/"), map[string]string{"Origin": "http://evil.example"}, 403},
			{"a link", "GET", path, nil, 405},
			{"another name of this machine", "POST", path + form("back", "/"), map[string]string{"Host": "evil.example"}, 421},
			{"a box that is not there", "POST", "/boxes/nowhere/" + what + form("back", "/"), nil, 404},
		} {
			if r := do(t, srv, c.method, c.path, c.headers); r.StatusCode != c.status {
				t.Errorf("%s: %s by %s, want %d", what, r.Status, c.name, c.status)
			}
		}
	}
	if got := siteOf(srv).orders.taken(); got != nil {
		t.Errorf("orders were taken: %q", got)
	}
}

func TestABoxThatDoesNotRunTakesNoOrders(t *testing.T) {
	m := online()
	m.boxes[0].Running = 0
	srv := start(t, m)
	page := body(t, do(t, srv, http.MethodGet, "/boxes/default", nil))
	if !strings.Contains(page, "registry.npmjs.org") || strings.Contains(page, "/boxes/default/cut") || strings.Contains(page, "/boxes/default/offline") {
		t.Error("the page has no flows, or offers orders")
	}
}

func TestOpenFlowsComeFirstAndAllArePaged(t *testing.T) {
	m := online()
	srv := start(t, m)
	page := body(t, do(t, srv, http.MethodGet, "/boxes/default", nil))
	if n := strings.Count(page, `class="flow flow-`); n != flowsShown {
		t.Errorf("%d flows on the box's page", n)
	}
	if last, first := strings.LastIndex(page, `flow-allowed open"`), strings.Index(page, `class="flow flow-blocked"`); last < 0 || first < last {
		t.Errorf("an ended flow is at %d, the last open one at %d", first, last)
	}
	for i := range 2 * flowsPage {
		m.add(core.Operation{Time: time.Now(), Box: "default", Session: demoSession, Surface: core.NetOut, Action: core.ActConnect, Target: "203.0.113.77:1", Verdict: core.Allowed,
			Detail: core.Detail{"flow": "x" + string(rune('a'+i%26)) + strings.Repeat("x", i/26), "proto": "tcp"}})
	}
	seen, pages := 0, 0
	for at := "/boxes/default/network"; at != ""; pages++ {
		page := body(t, do(t, srv, http.MethodGet, at, nil))
		seen += strings.Count(page, `class="flow flow-`)
		_, after, ok := strings.Cut(page, `class="pager"`)
		at = ""
		if _, href, more := strings.Cut(after, `href="/boxes/default/network?before=`); ok && more {
			n, _, _ := strings.Cut(href, `"`)
			at = "/boxes/default/network?before=" + n
		}
	}
	if want := len(m.flows); seen != want || pages != 3 {
		t.Errorf("%d flows on %d pages, want %d", seen, pages, want)
	}
	if page := body(t, do(t, srv, http.MethodGet, "/boxes/default/network?open=1", nil)); strings.Contains(page, `flow-allowed"`) {
		t.Error("a flow that has ended is among the open ones")
	}
}

func TestTheNetworkOfABoxThatHasNone(t *testing.T) {
	srv := start(t, demo())
	page := body(t, do(t, srv, http.MethodGet, "/boxes/default", nil))
	for _, want := range []string{"No flow yet", "sandglass run --box default -- curl -I https://example.org", "No name was asked for."} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if r := do(t, srv, http.MethodGet, "/boxes/nowhere/network", nil); r.StatusCode != http.StatusNotFound {
		t.Errorf("the network of no box: %s", r.Status)
	}
}

func TestQuantitiesForPeople(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 KiB", 1871: "1.8 KiB", 10240: "10 KiB", 1023_000: "999 KiB", 1023_900: "1.0 MiB", 734003200: "700 MiB", 1 << 63: "8.0 EiB"} {
		if got := strings.ReplaceAll(sizeText(n), "\u202f", " "); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-1: "0 ms", 999 * time.Millisecond: "999 ms", 1500 * time.Millisecond: "1.5 s", 59 * time.Second: "59 s", 61 * time.Second: "1:01 min", 3700 * time.Second: "1:01 h"} {
		if got := strings.ReplaceAll(spanText(d), "\u202f", " "); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

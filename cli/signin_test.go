package cli

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
)

func TestATokenFromBeforeTheDaemonIsExchanged(t *testing.T) {
	var got string
	h := exchange(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.URL.Query().Get("token") }), "early", "own")
	for _, c := range []struct{ url, want string }{
		{"/sign-in?token=early", "own"},
		{"/sign-in?token=another", "another"},
		{"/sign-in?token=own", "own"},
		{"/sign-in", ""},
		{"/boxes?token=early", "early"},
	} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", c.url, nil))
		if got != c.want {
			t.Errorf("%s became token %q, want %q", c.url, got, c.want)
		}
	}
}

func TestASignInLinkNamesAHostThatABrowserCanReach(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:7465": "http://127.0.0.1:7465/sign-in?token=a-b",
		"[::1]:80":       "http://[::1]:80/sign-in?token=a-b",
		"0.0.0.0:7465":   "http://" + hostName() + ":7465/sign-in?token=a-b",
		"[::]:7465":      "http://" + hostName() + ":7465/sign-in?token=a-b",
	} {
		if got := signInLink(address, "a-b"); got != want {
			t.Errorf("signInLink(%q) = %s, want %s", address, got, want)
		}
	}
}

func TestOpenPagesAreToldWhatChanged(t *testing.T) {
	batch := func(box string, v core.Verdict) events.Delivered {
		return events.Delivered{Stream: events.StreamOps, StreamSeq: 7, Batch: &events.Batch{Box: box, Ops: []core.Operation{{Verdict: core.Allowed}, {Verdict: v}}}}
	}
	got := tick([]events.Delivered{batch("a", core.Allowed), batch("a", core.Redirected), {Stream: events.StreamCtl, StreamSeq: 99, Life: &events.Life{Box: "b"}}})
	if got.Seq != 7 || len(got.Boxes) != 2 || got.Blocked {
		t.Errorf("tick() = %+v", got)
	}
	if got := tick([]events.Delivered{batch("a", core.Blocked)}); !got.Blocked {
		t.Errorf("tick() of a blocked operation = %+v", got)
	}
}

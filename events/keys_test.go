package events

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/sandglass/sandglass/core"
)

// connectAs connects through the socket with a session's credentials. What the server
// refuses arrives in the channel.
func connectAs(t *testing.T, home string, s core.Session) (*nats.Conn, <-chan error) {
	t.Helper()
	userJWT, seed, err := MintSessionCreds(home, s)
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 10)
	nc, err := nats.Connect(localURL, nats.SkipHostLookup(), nats.UserJWTAndSeed(userJWT, seed), nats.SetCustomDialer(socketDialer{home}), nats.CustomInboxPrefix(inboxPrefix(s.ID)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc, refused
}

func TestASessionMayPublishItsOwnSubjectsOnly(t *testing.T) {
	home := t.TempDir()
	startDaemon(t, home)
	own, other := session(1), session(2)
	otherBox := own
	otherBox.Box = "other"
	a := address{own.Host, own.Box, own.ID}
	for subject, allowed := range map[string]bool{
		a.subject(StreamOps): true,
		a.subject(StreamCtl): true,
		(address{other.Host, other.Box, other.ID}).subject(StreamOps):                       false,
		(address{otherBox.Host, otherBox.Box, otherBox.ID}).subject(StreamOps):              false,
		"sandglass.glass.web.dev." + string(own.ID) + ".ops":                                false,
		"$JS.API.STREAM.DELETE." + StreamOps:                                                false,
		"$JS.API.STREAM.PURGE." + StreamOps:                                                 false,
		"$JS.API.STREAM.MSG.GET." + StreamOps:                                               false,
		"$JS.API.CONSUMER.CREATE." + StreamOps:                                              false,
		"$JS.API.DIRECT.GET." + StreamOps:                                                   false,
		directGet(StreamOps, a.subject(StreamOps)):                                          true,
		directGet(StreamOps, (address{other.Host, other.Box, other.ID}).subject(StreamOps)): false,
		"$SYS.REQ.SERVER.PING":                                                              false,
		inboxPrefix(other.ID) + ".x":                                                        false,
		"anything":                                                                          false,
	} {
		t.Run(subject, func(t *testing.T) {
			nc, refused := connectAs(t, home, own)
			if _, err := nc.RequestWithContext(soon(t), a.subject(StreamOps), nil); err != nil {
				t.Fatalf("its own subject: %v", err) // a control: the connection works
			}
			if err := nc.Publish(subject, nil); err != nil {
				t.Fatal(err)
			}
			if err := nc.FlushWithContext(soon(t)); err != nil { // the server has judged when it answers
				t.Fatal(err)
			}
			var err error
			if !allowed {
				select {
				case err = <-refused:
				case <-soon(t).Done():
				}
			} else {
				select {
				case err = <-refused:
				default:
				}
			}
			if got := err == nil; got != allowed || err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("allowed %t, want %t: %v", got, allowed, err)
			}
		})
	}
}

func TestASessionMayListenToItsOwnAnswersOnly(t *testing.T) {
	home := t.TempDir()
	startDaemon(t, home)
	own, other := session(1), session(2)
	for subject, allowed := range map[string]bool{
		inboxPrefix(own.ID) + ".x":   true,
		inboxPrefix(other.ID) + ".x": false,
		"_INBOX.>":                   false,
		">":                          false,
		"sandglass.>":                false,
		(address{other.Host, other.Box, other.ID}).subject(StreamOps): false,
		(address{own.Host, own.Box, own.ID}).subject(StreamOps):       false,
	} {
		t.Run(subject, func(t *testing.T) {
			nc, refused := connectAs(t, home, own)
			if _, err := nc.SubscribeSync(subject); err != nil {
				t.Fatal(err)
			}
			if err := nc.FlushWithContext(soon(t)); err != nil {
				t.Fatal(err)
			}
			var err error
			ctx, cancel := context.WithCancel(soon(t))
			if allowed {
				cancel()
			}
			select {
			case err = <-refused:
			case <-ctx.Done():
			}
			cancel()
			if got := err == nil; got != allowed || err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("allowed %t, want %t: %v", got, allowed, err)
			}
		})
	}
}

func TestTheServerRefusesStrangers(t *testing.T) {
	home := t.TempDir()
	startDaemon(t, home)
	foreign, seed, err := MintSessionCreds(t.TempDir(), session(1))
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := connectAs(t, home, session(1)) // a control: who has credentials gets in
	nc.Close()
	for name, opt := range map[string]nats.Option{
		"nobody":                      nats.Name("nobody"),
		"a user of another operator":  nats.UserJWTAndSeed(foreign, seed),
		"somebody with a password":    nats.UserInfo("admin", "admin"),
		"somebody with a known token": nats.Token("token"),
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := nats.Connect(localURL, nats.SkipHostLookup(), opt, nats.SetCustomDialer(socketDialer{home}))
			if err == nil { // the error may also be that of a write after the server hung up
				nc.Close()
				t.Error("the server took it")
			}
		})
	}
}

func TestKeysAreMadeOnceHoweverManyNeedThem(t *testing.T) {
	home := t.TempDir()
	keys := make([]string, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			k, err := SealKey(home)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = string(k)
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("two keys were made")
		}
	}
}

func TestTokensOfSubjects(t *testing.T) {
	for in, want := range map[string]string{
		"box":             "box",
		"web.dev":         "web%2Edev",
		"a b":             "a%20b",
		"*":               "%2A",
		">":               "%3E",
		"%2E":             "%252E",
		"":                "_",
		"_":               "%5F",
		"a_b-C9":          "a_b-C9",
		"\xff\r\n":        "%FF%0D%0A",
		"h\u00f6st.local": "h%C3%B6st%2Elocal",
	} {
		if got := escapeToken(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
	p := (address{"a.b", "*.>", ""}).subject(StreamOps)
	if n := strings.Count(p, "."); n != 4 {
		t.Errorf("%q has %d tokens", p, n+1)
	}
}

func FuzzEscapeToken(f *testing.F) {
	f.Add("web.dev", "web%2Edev")
	f.Fuzz(func(t *testing.T, a, b string) {
		ea, eb := escapeToken(a), escapeToken(b)
		if strings.ContainsAny(ea, ".*> \t\r\n") || ea == "" {
			t.Errorf("%q becomes %q", a, ea)
		}
		if (a == b) != (ea == eb) {
			t.Errorf("%q and %q become %q and %q", a, b, ea, eb)
		}
	})
}

package events

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

func sampleLives() map[string]*Life {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	end := &Life{Kind: SessionEnd, Time: testTime.Add(time.Minute), Host: testHost, Box: testBox, Session: testSession, Exit: 137, Last: 260}
	end.Head[0], end.Head[31] = 1, 255
	end.Seal(key)
	return map[string]*Life{
		"session.begin": {Kind: SessionBegin, Time: testTime, Host: testHost, Box: testBox, Session: testSession, Policy: "fully-virtualised",
			Command: []string{"sh", "-c", "echo \xff <&>"}, Observe: core.ObserveFull, Net: core.NetNone},
		"session.end":  end,
		"box.create":   {Kind: BoxCreate, Time: testTime, Host: testHost, Box: testBox, Policy: "fully-virtualised"},
		"box.rm":       {Kind: BoxRemove, Time: testTime, Host: testHost, Box: testBox},
		"box.commit":   {Kind: BoxCommit, Time: testTime, Host: testHost, Box: testBox, Text: "/home/ada/work", Count: 3},
		"box.discard":  {Kind: BoxDiscard, Time: testTime, Host: testHost, Box: testBox, Count: 12},
		"box.snapshot": {Kind: BoxSnapshot, Time: testTime, Host: testHost, Box: testBox, Text: "before"},
		"box.rollback": {Kind: BoxRollback, Time: testTime, Host: testHost, Box: testBox, Text: "before", Count: 7},
		"user.login":   {Kind: UserLogin, Time: testTime, Host: testHost, User: "ada"},
	}
}

func TestLivesOfVersion1AreReadAndWrittenForEver(t *testing.T) {
	for name, l := range sampleLives() {
		body := golden(t, "dev.sandglass.life.v1."+name+".json", func() []byte {
			b, err := EncodeLife(l)
			if err != nil {
				t.Fatal(err)
			}
			return b
		})
		got, err := DecodeLife(body)
		if err != nil || !reflect.DeepEqual(got, l) {
			t.Errorf("%s: read %+v, %v\nwant %+v", name, got, err, l)
		}
		if again, err := EncodeLife(l); err != nil || !bytes.Equal(again, body) {
			t.Errorf("%s: written %s, %v\nwant %s", name, again, err, body)
		}
	}
}

func TestALongCommandIsCut(t *testing.T) {
	l := sampleLives()["session.begin"]
	l.Command = []string{"sh", strings.Repeat("\xff", maxCommand), "third"}
	body, err := EncodeLife(l)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeLife(body)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Cut || len(got.Command) != 2 || got.Command[1] != l.Command[1][:maxCommand-4] {
		t.Errorf("cut %t, %d strings, the second of %d bytes", got.Cut, len(got.Command), len(got.Command[1]))
	}
}

func TestDecodingALifeRefuses(t *testing.T) {
	const head = `{"v":1,"kind":"box.rm","time":"2026-03-14T15:09:26Z","host":"h"`
	end := `"end":{"exit":0,"last":1,"head":"` + strings.Repeat("A", 43) + `="`
	for name, c := range map[string]struct{ body, want string }{
		"(nothing: this one is valid)": {head + `}`, ""},
		"an unknown field":             {head + `,"extra":1}`, "unknown field"},
		"another version":              {strings.Replace(head, `"v":1`, `"v":2`, 1) + `}`, "unknown version 2"},
		"an unknown kind":              {strings.Replace(head, "box.rm", "box.paint", 1) + `}`, `unknown kind "box.paint"`},
		"more after the end":           {head + `} {}`, "more after the end"},
		"an end that is none's":        {head + `,` + end + `}}`, "with an end"},
		"a session's end without one":  {strings.Replace(head, "box.rm", "session.end", 1) + `}`, "without a valid end"},
		"a hash that is too short":     {strings.Replace(head, "box.rm", "session.end", 1) + `,"end":{"head":"AAAA"}}`, "without a valid end"},
		"a key that is too short":      {strings.Replace(head, "box.rm", "session.end", 1) + `,` + end + `,"key":"AAAA"}}`, "key of 3 bytes"},
		"commands that differ":         {head + `,"command":["a"],"command_b64":["YQ==","YQ=="]}`, "differ"},
		"too many bytes":               {head + strings.Repeat(" ", maxLife) + `}`, "at most"},
	} {
		_, err := DecodeLife([]byte(c.body))
		if valid := strings.HasPrefix(name, "(nothing"); valid != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

func FuzzDecodeLife(f *testing.F) {
	for _, l := range sampleLives() {
		b, err := EncodeLife(l)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		l, err := DecodeLife(body)
		if err != nil {
			return
		}
		again, err := EncodeLife(l)
		if err != nil {
			return // a year past 9999, or so much that escaping made it too long
		}
		if _, err := DecodeLife(again); err != nil {
			t.Errorf("what was decoded and encoded cannot be decoded: %v\n%s", err, again)
		}
	})
}

// chain makes n batches of ten operations each.
func chain(t *testing.T, n int) (bodies [][]byte, head [32]byte) {
	for i := range n {
		rec, sum := batchRecord(t, marker{}, session(1), i*10+1, 10, head)
		bodies, head = append(bodies, rec[recordHead:]), sum
	}
	return bodies, head
}

func TestAChainProves(t *testing.T) {
	whole, head := chain(t, 4)
	foreign, _ := batchRecord(t, marker{}, session(2), 11, 10, [32]byte{})
	forged := bytes.Replace(whole[1], []byte("/usr/bin/find"), []byte("/usr/bin/fine"), 1)
	for name, c := range map[string]struct {
		bodies [][]byte
		at     core.Seq // 0: it holds
	}{
		"that nothing was altered, in any order": {[][]byte{whole[2], whole[0], whole[3], whole[1]}, 0},
		"that nothing was altered":               {[][]byte{whole[0], forged, whole[2], whole[3]}, 21},
		"that nothing was dropped in between":    {[][]byte{whole[0], whole[2], whole[3]}, 11},
		"that nothing was dropped at the start":  {whole[1:], 1},
		"that nothing is there twice":            {[][]byte{whole[0], whole[1], whole[1]}, 21},
		"that nothing is another session's":      {[][]byte{whole[0], foreign[recordHead:]}, 11},
	} {
		got, last, err := VerifyChain(c.bodies...)
		var broken *ChainError
		switch {
		case c.at == 0 && (err != nil || got != head || last != 40):
			t.Errorf("%s: %d, %v", name, last, err)
		case c.at != 0 && (!errors.As(err, &broken) || broken.Seq != c.at):
			t.Errorf("%s: error %v, want one at %d", name, err, c.at)
		}
	}
	if _, last, err := VerifyChain(); last != 0 || err != nil {
		t.Errorf("no batches: %d, %v", last, err)
	}
}

func TestASealProvesTheEnd(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	pub := key.Public().(ed25519.PublicKey)
	bodies, head := chain(t, 4)
	sealed := func() *Life {
		l := &Life{Kind: SessionEnd, Time: testTime, Host: testHost, Box: testBox, Session: session(1).ID, Last: 40, Head: head}
		l.Seal(key)
		return l
	}
	if err := sealed().VerifySeal(pub, head, 40); err != nil {
		t.Error(err)
	}
	shortHead, shortLast, err := VerifyChain(bodies[:3]...)
	if err != nil {
		t.Fatal(err)
	}
	if err := sealed().VerifySeal(pub, shortHead, shortLast); err == nil {
		t.Error("batches dropped at the end were not noticed")
	}
	for name, change := range map[string]func(*Life){
		"another key":     func(l *Life) { l.Seal(other) },
		"another end":     func(l *Life) { l.Last, l.Head = shortLast, shortHead },
		"another session": func(l *Life) { l.Session = "other" },
		"another box":     func(l *Life) { l.Box = "other" },
		"not lost":        func(l *Life) { l.Lost = true },
		"no seal":         func(l *Life) { l.Sig = nil },
	} {
		l := sealed()
		change(l)
		var broken *ChainError
		if err := l.VerifySeal(pub, head, 40); !errors.As(err, &broken) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

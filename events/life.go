package events

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/sandglass/sandglass/core"
)

// LifeKind names a fact of the stream of control.
type LifeKind string

// The kinds of facts. A reader stops at a kind that it does not know.
const (
	SessionBegin LifeKind = "session.begin"
	SessionEnd   LifeKind = "session.end"
	BoxCreate    LifeKind = "box.create"
	BoxRemove    LifeKind = "box.rm"
	BoxCommit    LifeKind = "box.commit"   // changes of the box were made to the real system
	BoxDiscard   LifeKind = "box.discard"  // changes of the box were thrown away
	BoxSnapshot  LifeKind = "box.snapshot" // a state of the box was kept
	BoxRollback  LifeKind = "box.rollback" // the box was put back to an earlier state
	UserLogin    LifeKind = "user.login"
)

// Life is a fact in the life of a box, a session or a user. Which fields are set depends
// on Kind.
type Life struct {
	Kind    LifeKind
	Time    time.Time
	Host    string
	Box     string         // "" for a user's
	Session core.SessionID // "" but for a session's

	Policy  string   // box.create, session.begin
	Text    string   // box.commit, box.discard, box.snapshot, box.rollback: what was done, in a few words; a name
	Count   int      // box.commit, box.discard, box.rollback: how many paths
	Command []string // session.begin: arbitrary bytes, cut to 64 KiB when Cut is set
	Cut     bool
	Observe core.Observe // session.begin
	Net     core.Net     // session.begin

	Exit int      // session.end: exit code as `run` returned it; -1 when Lost
	Lost bool     // session.end: the supervisor died, and whoever found its spool wrote this
	Last core.Seq // session.end: the last operation; 0 when there is none
	Head [32]byte // session.end: hash of the last batch
	Key  []byte   // session.end: public key (ed25519) of the seal
	Sig  []byte   // session.end: the seal

	User string // user.login
}

// Limits of a [Life].
const (
	maxLife    = 900 << 10 // a command that JSON has to escape is several times as long
	maxCommand = 64 << 10
)

// lifeV1 is the JSON of a Life, version 1. A string that is not UTF-8 has its bytes in
// base64 beside it.
type lifeV1 struct {
	Version    int       `json:"v"`
	Kind       string    `json:"kind"`
	Time       time.Time `json:"time"`
	Host       string    `json:"host"`
	Box        string    `json:"box,omitempty"`
	Session    string    `json:"session,omitempty"`
	Policy     string    `json:"policy,omitempty"`
	Command    []string  `json:"command,omitempty"`
	CommandB64 [][]byte  `json:"command_b64,omitempty"`
	Cut        bool      `json:"cut,omitempty"`
	Observe    string    `json:"observe,omitempty"`
	Net        string    `json:"net,omitempty"`
	End        *endV1    `json:"end,omitempty"`
	User       string    `json:"user,omitempty"`
	Text       string    `json:"text,omitempty"`
	Count      int       `json:"count,omitempty"`
}

type endV1 struct {
	Exit int    `json:"exit"`
	Lost bool   `json:"lost,omitempty"`
	Last uint64 `json:"last"`
	Head []byte `json:"head"`
	Key  []byte `json:"key,omitempty"`
	Sig  []byte `json:"sig,omitempty"`
}

// EncodeLife encodes l as JSON. A command longer than 64 KiB is cut.
func EncodeLife(l *Life) ([]byte, error) {
	w := lifeV1{Version: 1, Kind: string(l.Kind), Time: l.Time.UTC(), Host: l.Host, Box: l.Box, Session: string(l.Session),
		Policy: l.Policy, Cut: l.Cut, Observe: string(l.Observe), Net: string(l.Net), User: l.User, Text: l.Text, Count: l.Count}
	room, valid := maxCommand, true
	for _, a := range l.Command {
		if len(a)+1 > room {
			a, w.Cut = a[:max(0, room-1)], true
		}
		room -= len(a) + 1
		w.Command = append(w.Command, a)
		valid = valid && utf8.ValidString(a)
		if w.Cut {
			break
		}
	}
	if !valid {
		for _, a := range w.Command {
			w.CommandB64 = append(w.CommandB64, []byte(a))
		}
	}
	if l.Kind == SessionEnd {
		w.End = &endV1{l.Exit, l.Lost, uint64(l.Last), l.Head[:], l.Key, l.Sig}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(&w); err != nil {
		return nil, fmt.Errorf("encode %s: %w", l.Kind, err)
	}
	body := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(body) > maxLife {
		return nil, fmt.Errorf("encode %s: %d bytes, at most %d are allowed", l.Kind, len(body), maxLife)
	}
	return body, nil
}

// DecodeLife is the inverse of [EncodeLife]. Unknown fields, versions and kinds are
// refused: a projector must stop there rather than forget something.
func DecodeLife(body []byte) (*Life, error) {
	l, err := decodeLife(body)
	if err != nil {
		return nil, fmt.Errorf("decode life: %w", err)
	}
	return l, nil
}

func decodeLife(body []byte) (*Life, error) {
	if len(body) > maxLife {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(body), maxLife)
	}
	var w lifeV1
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more after the end")
	}
	if w.Version != 1 {
		return nil, fmt.Errorf("unknown version %d", w.Version)
	}
	l := &Life{Kind: LifeKind(w.Kind), Time: w.Time.UTC(), Host: w.Host, Box: w.Box, Session: core.SessionID(w.Session),
		Policy: w.Policy, Command: w.Command, Cut: w.Cut, Observe: core.Observe(w.Observe), Net: core.Net(w.Net), User: w.User, Text: w.Text, Count: w.Count}
	switch l.Kind {
	case SessionBegin, BoxCreate, BoxRemove, BoxCommit, BoxDiscard, BoxSnapshot, BoxRollback, UserLogin:
		if w.End != nil {
			return nil, fmt.Errorf("%s with an end", l.Kind)
		}
	case SessionEnd:
		if w.End == nil || len(w.End.Head) != len(l.Head) || w.End.Last > maxSeq {
			return nil, fmt.Errorf("%s without a valid end", l.Kind)
		}
		if n := len(w.End.Key); n != 0 && n != ed25519.PublicKeySize {
			return nil, fmt.Errorf("key of %d bytes", n)
		}
		if n := len(w.End.Sig); n != 0 && n != ed25519.SignatureSize {
			return nil, fmt.Errorf("signature of %d bytes", n)
		}
		l.Exit, l.Lost, l.Last, l.Key, l.Sig = w.End.Exit, w.End.Lost, core.Seq(w.End.Last), w.End.Key, w.End.Sig
		copy(l.Head[:], w.End.Head)
	default:
		return nil, fmt.Errorf("unknown kind %q", core.Shorten(w.Kind, 40))
	}
	if len(w.CommandB64) > 0 {
		if len(w.CommandB64) != len(w.Command) {
			return nil, fmt.Errorf("command and command_b64 differ")
		}
		for i, a := range w.CommandB64 {
			l.Command[i] = string(a)
		}
	}
	return l, nil
}

// Delivered is one message as a stream delivers it: either a batch or a fact of life.
type Delivered struct {
	Stream    string // [StreamOps] or [StreamCtl]
	StreamSeq uint64
	Batch     *Batch
	Life      *Life
	Body      []byte // the message's body as it was published: what the chain's hashes are of
}

// urgent says whether d is not to wait for others: it tells of a session's begin or end,
// or holds an operation that is urgent.
func (d *Delivered) urgent() bool {
	return d.Life != nil || d.Batch != nil && slices.ContainsFunc(d.Batch.Ops, func(op core.Operation) bool { return op.Urgent() })
}

// The names of the streams.
const (
	StreamOps = "SANDGLASS_OPS" // batches of operations
	StreamCtl = "SANDGLASS_CTL" // facts of life
)

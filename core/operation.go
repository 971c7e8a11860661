package core

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sort"
	"time"
	"unicode/utf8"
)

// Seq is the place of an operation in its session: 1, 2, 3 ... without a gap.
type Seq uint64

// SessionID is a ULID (26 characters of Crockford's base 32): sortable by start time.
type SessionID string

// ProcID identifies one process of one session for ever, also when its PID is used
// again: the PID in the box and how often that PID had been seen before in this
// session, "12" or "12.1".
type ProcID string

// Operation is one intercepted operation with its verdict. All strings that a box
// controls (Exe, Target, values of Detail) are arbitrary bytes without NUL: not
// necessarily UTF-8, up to 4096 bytes for a path.
type Operation struct {
	Seq     Seq
	Time    time.Time // when the supervisor received it; nanoseconds
	Box     string
	Session SessionID
	PID     int    // of the thread group, in the box's PID namespace; 0: the supervisor itself
	Proc    ProcID // the process for ever; "" for the supervisor itself
	Exe     string // absolute path in the box's view of what the process executes
	Surface Surface
	Action  Action
	Target  string // absolute path in the box's view, address, call name ...
	Verdict Verdict
	Outcome Outcome
	Rule    string // what decided: a rule of the policy, or a wall ("overlay", "filter")
	Errno   string // name of the errno that the box got when blocked ("EPERM"), else ""
	Leak    bool   // touched the real system in a way that a stricter policy would not let pass
	Detail  Detail // specific to the surface; nil when there is nothing to add
}

// Detail holds what is specific to a surface, keyed by a stable name: see the
// actions' comments. Keys are ASCII; values are arbitrary bytes.
type Detail map[string]string

// Keys returns the keys, sorted.
func (d Detail) Keys() []string {
	ks := make([]string, 0, len(d))
	for k := range d {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	return ks
}

// jsonOperation spells out the stable names of an operation's JSON.
type jsonOperation struct {
	Seq     Seq             `json:"seq"`
	Time    string          `json:"time"`
	Box     string          `json:"box"`
	Session SessionID       `json:"session"`
	PID     int             `json:"pid"`
	Proc    ProcID          `json:"proc,omitempty"`
	Exe     json.RawMessage `json:"exe"`
	ExeB64  string          `json:"exe_b64,omitempty"`
	Surface Surface         `json:"surface"`
	Action  Action          `json:"action"`
	Target  json.RawMessage `json:"target"`
	TgtB64  string          `json:"target_b64,omitempty"`
	Verdict Verdict         `json:"verdict"`
	Outcome Outcome         `json:"outcome"`
	Rule    string          `json:"rule"`
	Errno   string          `json:"errno"`
	Leak    bool            `json:"leak"`
	Detail  json.RawMessage `json:"detail,omitempty"`
}

// MarshalJSON writes the operation with the stable names of the command line's
// --json. A string that is not UTF-8 is shown with U+FFFD for each bad byte and
// given whole beside it, in base64, under the same name with "_b64" added.
func (op Operation) MarshalJSON() ([]byte, error) {
	j := jsonOperation{Seq: op.Seq, Time: op.Time.Format(time.RFC3339Nano), Box: op.Box, Session: op.Session,
		PID: op.PID, Proc: op.Proc, Surface: op.Surface, Action: op.Action, Verdict: op.Verdict,
		Outcome: op.Outcome, Rule: op.Rule, Errno: op.Errno, Leak: op.Leak}
	j.Exe, j.ExeB64 = jsonText(op.Exe)
	j.Target, j.TgtB64 = jsonText(op.Target)
	if len(op.Detail) > 0 {
		var b bytes.Buffer
		b.WriteByte('{')
		for i, k := range op.Detail.Keys() {
			if i > 0 {
				b.WriteByte(',')
			}
			kj, _ := jsonText(k)
			vj, v64 := jsonText(op.Detail[k])
			fmt.Fprintf(&b, "%s:%s", kj, vj)
			if v64 != "" {
				kj, _ = jsonText(k + "_b64")
				fmt.Fprintf(&b, ",%s:%q", kj, v64)
			}
		}
		b.WriteByte('}')
		j.Detail = b.Bytes()
	}
	return marshalPlain(j)
}

// marshalPlain is json.Marshal without the escaping of <, > and &: paths are read by people.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

func jsonText(s string) (text json.RawMessage, b64 string) {
	if !utf8.ValidString(s) {
		b64 = base64.StdEncoding.EncodeToString([]byte(s))
	}
	b, err := marshalPlain(s) // replaces invalid UTF-8 by U+FFFD
	if err != nil {
		return json.RawMessage(`""`), b64
	}
	return b, b64
}

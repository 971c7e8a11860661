package core

import (
	"strconv"
	"time"
)

// The views are what the projections answer and what pages and the command line show.
// They are plain values: whoever gets one owns it.

// Counts says how many operations ended in which verdict, and how many were leaks.
type Counts struct {
	Allowed    uint64 `json:"allowed"`
	Redirected uint64 `json:"redirected"`
	Blocked    uint64 `json:"blocked"`
	Leaks      uint64 `json:"leaks"`
}

// Total returns the number of operations.
func (c Counts) Total() uint64 { return c.Allowed + c.Redirected + c.Blocked }

// Add counts one operation.
func (c *Counts) Add(op *Operation) {
	switch op.Verdict {
	case Allowed:
		c.Allowed++
	case Redirected:
		c.Redirected++
	default:
		c.Blocked++
	}
	if op.Leak {
		c.Leaks++
	}
}

// BoxView is a box with what is known of it.
type BoxView struct {
	Name     string    `json:"name"`
	Policy   string    `json:"policy"`   // of its last session
	Created  time.Time `json:"created"`  // first fact about it
	LastUse  time.Time `json:"last_use"` // last operation
	Sessions int       `json:"sessions"`
	Running  int       `json:"running"` // sessions without an end
	Removed  bool      `json:"removed,omitempty"`
	Counts   Counts    `json:"counts"`
	Spark    []Bucket  `json:"spark,omitempty"` // activity of the last minutes, oldest first
}

// Bucket is the activity of one span of time.
type Bucket struct {
	Start  time.Time `json:"start"`
	Counts Counts    `json:"counts"`
}

// SessionView is a session with what is known of it.
type SessionView struct {
	ID       SessionID `json:"id"`
	Box      string    `json:"box"`
	Host     string    `json:"host"`
	Command  string    `json:"command"` // arbitrary bytes
	Policy   string    `json:"policy"`
	Observe  Observe   `json:"observe"`
	Net      Net       `json:"net"`
	Start    time.Time `json:"start"`
	End      time.Time `json:"end,omitzero"` // zero while it runs
	Exit     int       `json:"exit"`
	Lost     bool      `json:"lost,omitempty"` // its supervisor died
	LastSeq  Seq       `json:"last_seq"`
	Missing  uint64    `json:"missing,omitempty"` // operations that never arrived
	Counts   Counts    `json:"counts"`
	Procs    int       `json:"processes"`
	LiveProc int       `json:"live_processes"`
}

// ProcessView is one process of a session.
type ProcessView struct {
	Proc    ProcID    `json:"proc"`
	Parent  ProcID    `json:"parent,omitempty"` // "" for the command itself
	PID     int       `json:"pid"`
	Exe     string    `json:"exe"`
	Argv    string    `json:"argv,omitempty"`
	Start   time.Time `json:"start"`
	End     time.Time `json:"end,omitzero"`
	Exit    string    `json:"exit,omitempty"` // "0", "3", "SIGKILL"; "" while it lives or when unknown
	Counts  Counts    `json:"counts"`
	Session SessionID `json:"session"`
}

// SurfaceCount counts the operations of one surface and action.
type SurfaceCount struct {
	Surface Surface `json:"surface"`
	Action  Action  `json:"action"`
	Counts  Counts  `json:"counts"`
}

// PathView is what a box did with one path.
type PathView struct {
	Path    string    `json:"path"`
	Last    time.Time `json:"last"`
	Action  Action    `json:"action"` // the last
	Verdict Verdict   `json:"verdict"`
	Changed bool      `json:"changed"` // the box has its own
	Counts  Counts    `json:"counts"`
}

// OpCursor is a place in the order of all operations, for paging by key: the order in
// which the stream has them. It stays true when the projections are rebuilt. The zero
// cursor is no place.
type OpCursor uint64

// OpsPage is a page of operations, newest or oldest first as asked.
type OpsPage struct {
	Ops     []Operation
	Cursors []OpCursor // of each operation
	More    bool       // there are more in the direction that was asked for, or may be
	Next    OpCursor   // where to go on when there is More; the last of Cursors, or further
}

// FlowView is one flow of a session's network: a TCP connection, the datagrams between two
// addresses, the echo requests to a host.
type FlowView struct {
	Flow     string    `json:"flow"` // its number in the session
	Box      string    `json:"box"`
	Session  SessionID `json:"session"`
	Proc     ProcID    `json:"proc,omitempty"` // that opened it; "" when unknown, or for one that came in
	PID      int       `json:"pid"`
	Exe      string    `json:"exe"`
	Surface  Surface   `json:"surface"`
	Inbound  bool      `json:"inbound,omitempty"`
	Proto    string    `json:"proto"`  // tcp, udp, icmp
	Target   string    `json:"target"` // address and port of the other side
	Name     string    `json:"name,omitempty"`
	By       string    `json:"by,omitempty"` // who told the name: dns, tls, http
	ALPN     string    `json:"alpn,omitempty"`
	Cert     string    `json:"cert,omitempty"` // names of the server's certificate, where it is sent in the clear
	Verdict  Verdict   `json:"verdict"`
	Rule     string    `json:"rule"`
	Errno    string    `json:"errno,omitempty"` // what the other side's answer to the connect was
	Start    time.Time `json:"start"`
	End      time.Time `json:"end,omitzero"`     // zero while it is open
	Reason   string    `json:"reason,omitempty"` // why it ended: fin, reset, timeout, cut, policy, limit, session
	Sent     uint64    `json:"sent"`             // bytes of payload that left the box
	Received uint64    `json:"received"`
	PktsOut  uint64    `json:"packets_out"` // of the box
	PktsIn   uint64    `json:"packets_in"`
	RTT      int64     `json:"rtt_us,omitempty"` // smoothed, to the other side, in microseconds; 0 when unknown
}

// Fold adds an operation of the flow: one whose detail names it.
func (f *FlowView) Fold(op *Operation) {
	d := op.Detail
	set := func(to *string, key string) {
		if v := d[key]; v != "" {
			*to = v
		}
	}
	num := func(to *uint64, key string) { // what comes late takes nothing back
		if v, err := strconv.ParseUint(d[key], 10, 63); err == nil {
			*to = max(*to, v)
		}
	}
	if f.Start.IsZero() {
		f.Flow, f.Box, f.Session, f.Start, f.Surface = d["flow"], op.Box, op.Session, op.Time, op.Surface
	}
	switch op.Action {
	case ActConnect, ActSend, ActAccept:
		f.Proc, f.PID, f.Exe, f.Surface, f.Target, f.Verdict, f.Rule, f.Errno = op.Proc, op.PID, op.Exe, op.Surface, op.Target, op.Verdict, op.Rule, op.Errno
		f.Start, f.Inbound = op.Time, op.Action == ActAccept
		switch {
		case f.Verdict == Blocked:
			f.End, f.Reason = op.Time, "policy"
		case f.Errno != "":
			f.End, f.Reason = op.Time, "refused"
		}
	case ActAsk: // it is held; what it becomes comes after
		if f.Target == "" {
			f.Proc, f.PID, f.Exe, f.Surface, f.Target, f.Verdict, f.Rule = op.Proc, op.PID, op.Exe, op.Surface, op.Target, op.Verdict, op.Rule
		}
		if a := d["answer"]; a != "" && a != "allow" {
			f.End, f.Reason, f.Verdict = op.Time, "policy", Blocked
		}
	case ActIdentify:
		f.Name, f.Verdict, f.Rule = op.Target, op.Verdict, op.Rule
	case ActClose:
		f.End = op.Time
	}
	set(&f.Proto, "proto")
	set(&f.Name, "name")
	set(&f.By, "by")
	set(&f.ALPN, "alpn")
	set(&f.Cert, "cert")
	set(&f.Reason, "reason")
	num(&f.Sent, "sent")
	num(&f.Received, "received")
	num(&f.PktsOut, "packets_out")
	num(&f.PktsIn, "packets_in")
	if v, err := strconv.ParseInt(d["rtt_us"], 10, 63); err == nil {
		f.RTT = v
	}
}

package core

import "time"

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

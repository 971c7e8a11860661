package network

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Question is a flow that waits for a person's answer.
type Question struct {
	Session core.SessionID `json:"session"`
	ID      string         `json:"id"`
	Proto   string         `json:"proto"`
	Target  string         `json:"target"`
	Name    string         `json:"name,omitempty"`
	Exe     string         `json:"exe"`
	PID     int            `json:"pid"`
	Since   time.Time      `json:"since"`
	Until   time.Time      `json:"until"` // no answer by then is a no
}

// askBook has the questions that wait. The same one is asked once, however many flows want to
// know.
type askBook struct {
	mu   sync.Mutex
	open map[askedFor]*waitingAsk
	last int
}

type askedFor struct{ proto, target, name, exe string }

type waitingAsk struct {
	Question
	answered chan struct{} // closed when it is
	allow    bool
	how      string
}

const (
	askPatience = 60 * time.Second
	maxQuestion = 64 // that wait at a time
)

// ask holds the flow until a person has answered, and returns the answer as a decision.
func (n *Network) ask(f *flow, d core.FlowDecision) core.FlowDecision {
	v := f.view()
	name := f.knownName() // not what it only says itself: a person is to decide by it
	key := askedFor{v.Proto, target(v.Proto, v.Addr), name, f.owner.Exe}
	n.asks.mu.Lock()
	q := n.asks.open[key]
	if q == nil {
		if len(n.asks.open) >= maxQuestion {
			n.asks.mu.Unlock()
			return core.FlowDecision{Stance: core.Block, Rule: "too many questions wait"}
		}
		n.asks.last++
		now := time.Now()
		q = &waitingAsk{Question: Question{ID: strconv.Itoa(n.asks.last), Proto: key.proto, Target: key.target, Name: name, Exe: key.exe,
			PID: f.owner.PID, Since: now, Until: now.Add(askPatience)}, answered: make(chan struct{})}
		if n.asks.open == nil {
			n.asks.open = map[askedFor]*waitingAsk{}
		}
		n.asks.open[key] = q
		timer := time.AfterFunc(askPatience, func() { n.settle(q.ID, false, "timeout") })
		n.asks.mu.Unlock()
		defer timer.Stop()
		n.logAsk(f, &v, q, "", d.Rule)
	} else {
		n.asks.mu.Unlock()
	}
	select {
	case <-q.answered:
	case <-f.ctx.Done():
		return core.FlowDecision{Stance: core.Block, Rule: "ended while it waited for an answer"}
	}
	stance := core.Block
	if q.allow {
		stance = core.Allow
	}
	n.logAsk(f, &v, q, q.how, d.Rule)
	return core.FlowDecision{Stance: stance, Rule: d.Rule + ", answered: " + q.how}
}

// logAsk logs that a person is asked, or what the answer was.
func (n *Network) logAsk(f *flow, v *described, q *waitingAsk, answer, rule string) {
	d := core.Detail{"ask": q.ID, "proto": q.Proto, "answer": answer}
	if q.Name != "" {
		d["name"] = q.Name
	}
	op := &core.Operation{Surface: v.surface, Action: core.ActAsk, Target: q.Target, Verdict: core.Allowed, Outcome: core.Performed, Rule: rule, Detail: d}
	switch {
	case answer == "":
		op.Outcome = core.Attempted
	case !q.allow:
		op.Verdict, op.Outcome, op.Errno = core.Blocked, core.Refused, sys.ErrnoName(v.refusal())
	}
	n.log(f.owner.by(op))
}

// settle answers the question of that number, and is false when there is none.
func (n *Network) settle(id string, allow bool, how string) bool {
	n.asks.mu.Lock()
	defer n.asks.mu.Unlock()
	for k, q := range n.asks.open {
		if q.ID == id {
			q.allow, q.how = allow, how
			close(q.answered)
			delete(n.asks.open, k)
			return true
		}
	}
	return false
}

// Answer answers a question, and is false when it does not wait (any more).
func (n *Network) Answer(id string, allow bool) bool {
	how := "block"
	if allow {
		how = "allow"
	}
	return n.settle(id, allow, how)
}

// Questions lists what waits for an answer, the oldest first.
func (n *Network) Questions() (qs []Question) {
	n.asks.mu.Lock()
	defer n.asks.mu.Unlock()
	for _, q := range n.asks.open {
		qs = append(qs, q.Question)
	}
	slices.SortFunc(qs, func(a, b Question) int { return a.Since.Compare(b.Since) })
	return qs
}

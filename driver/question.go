package driver

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/network"
)

// Question is a flow, or the reading of a private file, that is held until a person has
// answered.
type Question = network.Question

// Questions lists what waits for an answer in the sessions that run in the box of that
// folder. With an error it has those of the sessions that did answer.
func Questions(dir string) (qs []Question, err error) {
	refs, err := layers.Dir(dir).Running()
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		out, e := ask(dir, ref.ID, Order{Do: "asks"})
		if e != nil {
			err = errors.Join(err, fmt.Errorf("session %s: %w", ref.ID, e))
			continue
		}
		qs = append(qs, out.Questions...)
	}
	return qs, err
}

// AskSession has one session that runs in the box of that folder carry out ord. The error
// wraps [core.ErrNotFound] when it does not run.
func AskSession(dir string, id core.SessionID, ord Order) error {
	refs, err := layers.Dir(dir).Running()
	if err != nil {
		return err
	}
	for _, ref := range refs { // whose ids are files' names: what somebody typed is none
		if ref.ID == id {
			_, err := ask(dir, id, ord)
			return err
		}
	}
	return core.Hint(fmt.Errorf("session %q does not run: %w", core.Shorten(string(id), 80), core.ErrNotFound), "`sandglass sessions` lists what ran and runs")
}

// fileAsks has the questions about private files. The same one is asked once, however many
// want to know. A network's are numbered without a letter.
type fileAsks struct {
	mu   sync.Mutex
	open []*fileAsk
	last int
}

type fileAsk struct {
	Question
	answered chan struct{} // closed when it is
	allow    bool
	how      string
}

const (
	filePatience  = 60 * time.Second
	maxFileAsks   = 32
	fileAskLetter = "f"
)

// ask waits for a person's answer, and returns it with how it came about. note is called when
// the question is put, with how "", and when it is answered. ended closed is a no.
func (b *fileAsks) ask(q Question, ended <-chan struct{}, note func(q Question, how string, allow bool)) (allow bool, how string) {
	b.mu.Lock()
	i := slices.IndexFunc(b.open, func(o *fileAsk) bool { return o.Target == q.Target && o.Exe == q.Exe })
	if i < 0 && len(b.open) >= maxFileAsks {
		b.mu.Unlock()
		return false, "too many questions wait"
	}
	var a *fileAsk
	if i >= 0 {
		a = b.open[i]
		b.mu.Unlock()
	} else {
		b.last++
		q.ID, q.Until = fileAskLetter+strconv.Itoa(b.last), q.Since.Add(filePatience)
		a = &fileAsk{Question: q, answered: make(chan struct{})}
		b.open = append(b.open, a)
		timer := time.AfterFunc(time.Until(q.Until), func() { b.settle(q.ID, false, "timeout") })
		b.mu.Unlock()
		defer timer.Stop()
		note(a.Question, "", false)
	}
	select {
	case <-a.answered:
	case <-ended:
		return false, "the session has ended"
	}
	note(a.Question, a.how, a.allow)
	return a.allow, a.how
}

func (b *fileAsks) settle(id string, allow bool, how string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.open, func(o *fileAsk) bool { return o.ID == id })
	if i < 0 {
		return false
	}
	a := b.open[i]
	b.open = slices.Delete(b.open, i, i+1)
	a.allow, a.how = allow, how
	close(a.answered)
	return true
}

// answer answers a question, and is false when it does not wait (any more).
func (b *fileAsks) answer(id string, allow bool) bool {
	how := "block"
	if allow {
		how = "allow"
	}
	return b.settle(id, allow, how)
}

// questions lists what waits, the oldest first.
func (b *fileAsks) questions() (qs []Question) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.open {
		qs = append(qs, a.Question)
	}
	return qs
}

package driver

import (
	"errors"
	"fmt"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/network"
)

// Question is a flow that is held until a person has answered.
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

package driver

import (
	"errors"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// An order is for the session that is named; a name is no path.
func TestAnOrderIsForOneSession(t *testing.T) {
	l := newLab(t)
	dir := l.boxDir("b")
	r := l.run(runOpts{quiet: true, live: func(op *core.Operation) {
		if op.Action != core.ActMkdir {
			return
		}
		refs, err := layers.Dir(dir).Running()
		if err != nil || len(refs) != 1 {
			t.Errorf("%v %v", refs, err)
			return
		}
		for _, id := range []core.SessionID{"", "01J00000000000000000000000", "../run/" + refs[0].ID, refs[0].ID + ".sock"} {
			if err := AskSession(dir, id, Order{Do: "kill"}); !errors.Is(err, core.ErrNotFound) {
				t.Errorf("session %q: %v", id, err)
			}
		}
		if err := AskSession(dir, refs[0].ID, Order{Do: "dance"}); err == nil || errors.Is(err, core.ErrNotFound) {
			t.Errorf("an unknown order: %v", err)
		}
		if err := AskSession(dir, refs[0].ID, Order{Do: "kill"}); err != nil {
			t.Errorf("kill: %v", err)
		}
	}}, "/bin/sh", "-c", "mkdir x; sleep 1000")
	if r.code != 137 {
		t.Errorf("exit code %d %s", r.code, r.stderr)
	}
	if qs, err := Questions(dir); len(qs) != 0 || err != nil {
		t.Errorf("questions where nothing runs: %v %v", qs, err)
	}
}

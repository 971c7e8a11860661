package cli

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/store"
)

// syncPatience is how long a command that looks at the projections waits for them to be
// up to date before it shows what there is.
const syncPatience = 10 * time.Second

// reader reads the projections, as they are when it is opened or later.
type reader struct {
	*store.Store
	home  Home
	inode os.FileInfo // of the database that is open
}

// openReader opens the projections once all that was recorded until now is in them: by
// the daemon, or without one by this process. When that takes too long it says so, and
// shows what there is.
func (h Home) openReader(ctx context.Context, p *printer) (*reader, error) {
	short, cancel := context.WithTimeoutCause(ctx, syncPatience, errBehind)
	defer cancel()
	err := h.withProjector(short, p, func(ask func(request, func(reply)) error, own *projector) error {
		if own != nil {
			return own.sync(short, nil)
		}
		return ask(request{Do: doSync}, nil)
	})
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		p.Note("the latest operations may be missing: %s", err)
		for _, hint := range core.Hints(err) {
			p.Note("%s", hint)
		}
	}
	r := &reader{home: h}
	return r, r.open()
}

var errBehind = errors.New("they are still being folded; `sandglass status` says how far that is")

func (r *reader) open() (err error) {
	if r.Store, err = openStore(r.home); err != nil {
		return err
	}
	r.inode, err = os.Stat(r.home.projections())
	return err
}

// current opens the projections again when their file has been replaced: they were
// damaged, say, and the daemon made them anew.
func (r *reader) current() error {
	fi, err := os.Stat(r.home.projections())
	if err != nil || os.SameFile(fi, r.inode) {
		return nil // absent for a moment: it is being replaced
	}
	if err := r.Close(); err != nil {
		return err
	}
	return r.open()
}

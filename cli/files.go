package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/events"
	"github.com/sandglass/sandglass/web"
)

// holders are the boxes whose files the dashboard has looked at.
type holders struct {
	home Home
	mu   sync.Mutex
	all  map[string]*census
}

// open returns what the pages see of a box's files.
func (h *holders) open(box string) (web.Files, error) {
	b, err := h.home.Box(box)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.all[box]
	if c == nil || !c.of.Equal(b.Created) { // another one of the same name
		c = &census{of: b.Created, dir: layers.Dir(h.home.box(box))}
		if h.all == nil {
			h.all = map[string]*census{}
		}
		h.all[box] = c
	}
	return &boxFiles{home: h.home, box: b, dir: c.dir, census: c}, nil
}

// boxFiles implements [web.Files].
type boxFiles struct {
	home   Home
	box    core.Box
	dir    layers.Dir
	census *census
}

func (b *boxFiles) Running() (int, error) {
	refs, err := b.dir.Running()
	return len(refs), err
}

func (b *boxFiles) Census(ctx context.Context) (web.Census, error) { return b.census.read(ctx) }

func (b *boxFiles) Level(ctx context.Context, dir, after string, limit int, at time.Time) (core.ChangeLevel, error) {
	if !at.IsZero() {
		return b.levelAt(ctx, dir, after, limit, at)
	}
	return b.dir.Level(ctx, dir, after, limit)
}

func (b *boxFiles) Change(ctx context.Context, path string, at time.Time) (*core.Change, error) {
	if !at.IsZero() {
		return b.changeAt(ctx, path, at)
	}
	return b.dir.Change(ctx, path)
}

func (b *boxFiles) Open(ctx context.Context, path string, own bool, at time.Time) (io.ReadCloser, error) {
	if own && !at.IsZero() {
		return b.openAt(path, at)
	}
	f, _, err := b.dir.Open(path, own)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (b *boxFiles) Xattrs(path string, own bool) map[string][]byte {
	f, _, err := b.dir.Open(path, own)
	if err != nil {
		return nil
	}
	defer f.Close()
	return layers.Xattrs(fmt.Sprintf("/proc/self/fd/%d/.", f.Fd()))
}

func (b *boxFiles) Patch(w io.Writer, path string, old, new io.Reader) error {
	return layers.Patch(w, path, old, new, layers.PatchOptions{})
}

// Plan says what an order would do, by having it planned as it would be done.
func (b *boxFiles) Plan(ctx context.Context, do web.FileOrder, paths []string, limit int) (*web.FilePlan, error) {
	p := &web.FilePlan{Whole: true}
	add := func(c *core.Change) {
		if p.Counts.Add(c.Kind); len(p.Changes) < limit {
			p.Changes = append(p.Changes, *c)
		}
	}
	if do == web.OrderDiscard {
		err := b.dir.ChangesIn(ctx, paths, func(c *core.Change) error {
			if len(paths) == 0 || slices.ContainsFunc(paths, func(o string) bool { return layers.Under(c.Path, o) }) {
				add(c)
			}
			return nil
		})
		if errors.Is(err, context.DeadlineExceeded) {
			p.Whole, err = false, nil
		}
		return p, err
	}
	r, err := b.dir.Commit(ctx, layers.CommitOptions{Paths: paths, DryRun: true})
	var conflict *layers.ConflictError
	if errors.As(err, &conflict) {
		p.Conflicts, err = conflictsOf(conflict.Conflicts), nil
	}
	if r == nil {
		return p, err
	}
	for i := range r.Changes {
		add(&r.Changes[i])
	}
	p.Warnings, p.Skipped = conflictsOf(r.Warnings), conflictsOf(r.Skipped)
	return p, err
}

func conflictsOf(cs []layers.Conflict) []web.FileConflict {
	out := make([]web.FileConflict, 0, len(cs))
	for _, c := range cs {
		out = append(out, web.FileConflict{Path: c.Path, Why: c.Why, Hard: c.Hard})
	}
	return out
}

func (b *boxFiles) Commit(ctx context.Context, paths []string, force bool) (core.ChangeCounts, error) {
	defer b.census.forget()
	r, err := b.dir.Commit(ctx, layers.CommitOptions{Paths: paths, Force: force})
	var conflict *layers.ConflictError
	if errors.As(err, &conflict) {
		return core.ChangeCounts{}, &web.ConflictError{Conflicts: conflictsOf(conflict.Conflicts)}
	}
	if err != nil {
		return core.ChangeCounts{}, err
	}
	return r.Counts, b.note(events.BoxCommit, paths, r.Counts)
}

func (b *boxFiles) Discard(ctx context.Context, paths []string) (core.ChangeCounts, error) {
	defer b.census.forget()
	n, err := b.dir.Discard(ctx, paths)
	if err != nil {
		return n, err
	}
	return n, b.note(events.BoxDiscard, paths, n)
}

// note has it on record what was done to the box.
func (b *boxFiles) note(kind events.LifeKind, paths []string, n core.ChangeCounts) error {
	return events.Note(string(b.home), events.Life{Kind: kind, Time: time.Now(), Host: hostName(), Box: b.box.Name, Text: pathsText(paths), Count: n.Total()})
}

// pathsText says in a few words which paths an order was about.
func pathsText(paths []string) string {
	switch len(paths) {
	case 0:
		return "everything"
	case 1:
		return core.Shorten(escape(paths[0]), 200)
	}
	return core.Shorten(escape(paths[0]), 160) + fmt.Sprintf(" and %d more", len(paths)-1)
}

const (
	censusMost = 1 << 20          // changes that are counted
	censusLong = 30 * time.Second // that counting takes at most
	censusRest = 20               // times as long as it took, until it is done again
)

// census counts a box's changes beside the pages that show the numbers: in a large box it
// takes longer than a page may.
type census struct {
	of  time.Time // when its box was made
	dir layers.Dir

	mu      sync.Mutex
	have    web.Census // of the last time
	err     error
	now     web.Census // of this time, so far
	done    chan struct{}
	next    time.Time // before then it is not done again
	outdate bool      // have is not true any more
}

// read returns the numbers of the last count while they are fresh, else those of a new one:
// all of them or, when ctx ends before, those so far.
func (c *census) read(ctx context.Context) (web.Census, error) {
	c.mu.Lock()
	if c.done == nil && (c.outdate || time.Now().After(c.next)) {
		c.done, c.now = make(chan struct{}), web.Census{}
		c.outdate = false
		go c.count(c.done) // ends by itself after censusLong
	}
	done := c.done
	c.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done != nil && (!c.have.Whole || c.outdate || c.now.Total() > c.have.Total()) {
		return c.now, nil
	}
	return c.have, c.err
}

var errCounted = errors.New("enough was counted")

func (c *census) count(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), censusLong)
	defer cancel()
	start := time.Now()
	err := c.dir.Changes(ctx, func(x *core.Change) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.now.Add(x.Kind)
		if c.now.Total() >= censusMost {
			return errCounted
		}
		return nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Whole = err == nil
	if errors.Is(err, errCounted) || errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	c.have, c.err = c.now, err
	c.done, c.next = nil, time.Now().Add(censusRest*time.Since(start))
	close(done)
}

// forget has the next page count anew.
func (c *census) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outdate = true
}

// errNoPast says that a moment cannot be shown.
var errNoPast = errors.New("what the box held before is not kept")

func (b *boxFiles) levelAt(context.Context, string, string, int, time.Time) (core.ChangeLevel, error) {
	return core.ChangeLevel{}, errNoPast
}

func (b *boxFiles) changeAt(context.Context, string, time.Time) (*core.Change, error) {
	return nil, errNoPast
}

func (b *boxFiles) openAt(string, time.Time) (io.ReadCloser, error) { return nil, errNoPast }

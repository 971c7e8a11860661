package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
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

	past   []core.Change // of pastAt
	pastAt time.Time
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

func (b *boxFiles) Xattrs(ctx context.Context, path string, own bool) map[string][]byte {
	return b.dir.XattrsOf(ctx, path, own)
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

// maxPast bounds the changes of an earlier moment that are laid out for a page.
const maxPast = 200_000

// then returns the changes of an earlier moment, by path. A page asks for them many times.
func (b *boxFiles) then(ctx context.Context, at time.Time) ([]core.Change, error) {
	if b.past != nil && b.pastAt.Equal(at) {
		return b.past, nil
	}
	all := []core.Change{}
	err := b.dir.ChangesAt(ctx, at, func(c *core.Change) error {
		if len(all) == maxPast {
			return core.Hint(fmt.Errorf("the box had more than %d changes then", maxPast), "`sandglass diff "+b.box.Name+" --at` lists them")
		}
		all = append(all, *c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(x, y core.Change) int { return cmp.Compare(x.Path, y.Path) })
	b.past, b.pastAt = all, at
	return all, nil
}

// levelAt makes a level of the tree of an earlier moment.
func (b *boxFiles) levelAt(ctx context.Context, dir, after string, limit int, at time.Time) (out core.ChangeLevel, err error) {
	all, err := b.then(ctx, at)
	if err != nil {
		return out, err
	}
	top := strings.TrimSuffix(dir, "/") + "/"
	nodes := map[string]*core.ChangeNode{}
	from, _ := slices.BinarySearchFunc(all, top, func(c core.Change, p string) int { return cmp.Compare(c.Path, p) })
	for i := range all[from:] {
		c := &all[from+i]
		rest, below := strings.CutPrefix(c.Path, top)
		if !below {
			break
		}
		name, _, deep := strings.Cut(rest, "/")
		if name == "" || name <= after {
			continue
		}
		n := nodes[name]
		if n == nil {
			n = &core.ChangeNode{Name: name}
			nodes[name] = n
		}
		if n.Inside = n.Inside || deep; !deep {
			n.Change = c
		}
	}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		if len(out.Nodes) == limit {
			out.More = true
			break
		}
		out.Nodes, out.After = append(out.Nodes, *nodes[name]), name
	}
	return out, nil
}

func (b *boxFiles) changeAt(ctx context.Context, path string, at time.Time) (*core.Change, error) {
	all, err := b.then(ctx, at)
	if err != nil {
		return nil, err
	}
	i, found := slices.BinarySearchFunc(all, path, func(c core.Change, p string) int { return cmp.Compare(c.Path, p) })
	if !found {
		return nil, nil
	}
	return &all[i], nil
}

func (b *boxFiles) openAt(path string, at time.Time) (io.ReadCloser, error) {
	f, _, err := b.dir.OpenAt(path, at)
	return f, err
}

func (b *boxFiles) Snapshots() ([]core.Snapshot, error) { return b.dir.Snapshots() }

func (b *boxFiles) Snapshot(ctx context.Context, name string) error {
	s, err := b.dir.Snapshot(ctx, name)
	if err != nil {
		return err
	}
	return events.Note(string(b.home), events.Life{Kind: events.BoxSnapshot, Time: time.Now(), Host: hostName(), Box: b.box.Name, Text: s.Name, Count: s.Files})
}

func (b *boxFiles) Rollback(ctx context.Context, to web.Moment, dry, force bool) (*web.FilePlan, error) {
	r, err := b.dir.Return(ctx, layers.RollbackOptions{Snapshot: to.Snapshot, Time: to.Time, DryRun: dry, Force: force})
	var lost *layers.LostError
	if errors.As(err, &lost) {
		return nil, &web.ConflictError{Conflicts: lostOf(lost.Paths)}
	}
	if err != nil {
		return nil, err
	}
	p := &web.FilePlan{Whole: true, Counts: r.Counts, Changes: r.Changes, Conflicts: lostOf(r.Lost)}
	if dry {
		return p, nil
	}
	b.census.forget()
	return p, events.Note(string(b.home), events.Life{Kind: events.BoxRollback, Time: time.Now(), Host: hostName(), Box: b.box.Name, Text: to.String(), Count: r.Counts.Total()})
}

func lostOf(paths []string) (out []web.FileConflict) {
	for _, p := range paths {
		out = append(out, web.FileConflict{Path: p, Why: "its content of then was not kept"})
	}
	return out
}

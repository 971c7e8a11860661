package events

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/oklog/ulid/v2"

	"github.com/sandglass/sandglass/core"
)

// DrainReport says what [DrainSpools] found.
type DrainReport struct {
	Running   int              // spools whose sessions live: their own publishers see to them
	Drained   []core.SessionID // spools all of which is in the streams now
	Lost      []core.SessionID // of these, sessions whose supervisors died without a word
	Published int              // records that were published
	Bad       []*BadRecord     // what could not be read
}

// DrainSpools publishes what dead sessions left in their spools, and removes these. Where
// a session did not say that it ended, an end marked as lost is published in its place.
// nc may publish all subjects. An error is about one or more spools that stay as they
// are; the others are drained all the same.
func DrainSpools(ctx context.Context, home string, nc *nats.Conn) (rep DrainReport, err error) {
	parent := SpoolDir(home)
	es, err := os.ReadDir(parent)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return rep, fmt.Errorf("drain spools: %w", err)
	}
	var errs []error
	for _, e := range es {
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		dir := filepath.Join(parent, e.Name())
		if !e.IsDir() {
			continue
		}
		if strings.HasPrefix(e.Name(), newPrefix) {
			removeUnmade(dir, e)
			continue
		}
		if ns, err := segments(dir); err == nil && len(ns) == 0 && hasBad(dir) {
			continue // nothing but what was set aside
		}
		switch err := drainSpool(ctx, home, dir, core.SessionID(e.Name()), nc, &rep); {
		case errors.Is(err, errLocked):
			rep.Running++
		case errors.Is(err, os.ErrNotExist): // its session ended meanwhile
		case err != nil:
			errs = append(errs, fmt.Errorf("drain spool %s: %w", dir, err))
		}
	}
	return rep, errors.Join(errs...)
}

// KeepDraining calls [DrainSpools] now and at intervals until ctx ends, and tells each
// of what was not uneventful: an error that stays the same, once.
func KeepDraining(ctx context.Context, home string, nc *nats.Conn, every time.Duration, each func(DrainReport, error)) {
	t := time.NewTicker(every)
	defer t.Stop()
	before := ""
	for {
		rep, err := DrainSpools(ctx, home, nc)
		if ctx.Err() != nil {
			return
		}
		now := ""
		if err != nil {
			now = err.Error()
		}
		if now != "" && now != before || len(rep.Drained) > 0 || len(rep.Bad) > 0 {
			each(rep, err)
		}
		before = now
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// removeUnmade removes what is left of the making of a spool that was cut short.
func removeUnmade(dir string, e os.DirEntry) {
	if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < time.Hour {
		return
	}
	if lock, err := lockSpool(dir); err == nil {
		os.RemoveAll(dir)
		lock.Close()
	}
}

func hasBad(dir string) bool {
	es, err := os.ReadDir(dir)
	for _, e := range es {
		if strings.HasPrefix(e.Name(), badPrefix) {
			return true
		}
	}
	return err != nil
}

func drainSpool(ctx context.Context, home, dir string, session core.SessionID, nc *nats.Conn, rep *DrainReport) error {
	if _, err := os.Stat(filepath.Join(dir, lockName)); err != nil {
		return err
	}
	lock, err := lockSpool(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	ns, err := segments(dir)
	if err != nil {
		return err
	}
	if len(ns) == 0 {
		return removeSpool(dir)
	}
	info, err := os.Stat(filepath.Join(dir, segName(ns[len(ns)-1])))
	if err != nil {
		return err
	}
	// From the first record on, acknowledged or not: they tell whose spool it is.
	end, acked := position{ns[len(ns)-1], info.Size()}, readAcked(dir)
	r := &reader{dir: dir, session: session, at: position{ns[0], 0}, bad: func(b *BadRecord) { rep.Bad = append(rep.Bad, b) }}
	defer r.close()
	d := drain{rep: rep, acked: acked}
	for {
		rec, err := r.next(end)
		if err != nil {
			return err
		}
		if rec == nil {
			break
		}
		if err := d.add(ctx, nc, rec); err != nil {
			return err
		}
	}
	if err := d.finish(ctx, home); err != nil {
		return err
	}
	r.close()
	if err := removeSpool(dir); err != nil {
		return err
	}
	rep.Drained = append(rep.Drained, session)
	return nil
}

// drain is the draining of one spool.
type drain struct {
	rep   *DrainReport
	acked position // what is before it is in the streams, even if they have dropped it since
	p     *publisher
	recs  []*record
	size  int
	last  *record // the last batch
	ended bool    // the end is among the records, or there is none to be
}

func (d *drain) add(ctx context.Context, nc *nats.Conn, rec *record) error {
	if d.p == nil {
		d.p = &publisher{nc: nc, addr: rec.addr}
		if err := d.p.locate(ctx); err != nil {
			return err
		}
	}
	if rec.addr != d.p.addr {
		return fmt.Errorf("it holds events of %v and of %v", d.p.addr, rec.addr)
	}
	switch {
	case rec.kind == kindOps:
		d.last = rec
	case rec.life.Kind != SessionBegin:
		d.ended = true
	}
	if rec.at.before(d.acked) {
		return nil
	}
	d.recs = append(d.recs, rec)
	d.size += len(rec.body)
	if len(d.recs) >= maxGroup || d.size >= maxGroupSize {
		return d.flush(ctx)
	}
	return nil
}

// flush publishes the records that wait. What fails is tried a few times: the answer to
// an earlier publish may have been lost.
func (d *drain) flush(ctx context.Context) error {
	for tries := 0; len(d.recs) > 0; tries++ {
		done, err := d.p.publish(ctx, d.recs)
		d.rep.Published += done
		d.recs = d.recs[done:]
		if err != nil && (tries >= 5 || ctx.Err() != nil) {
			return err
		}
	}
	d.recs, d.size = nil, 0
	return nil
}

// finish publishes the rest, and the end of a session that has none.
func (d *drain) finish(ctx context.Context, home string) error {
	if d.p == nil {
		return nil
	}
	if err := d.flush(ctx); err != nil {
		return err
	}
	if err := d.p.locate(ctx); err != nil {
		return err
	}
	if d.ended || d.p.last[StreamCtl].rank >= lifeRank(SessionEnd) {
		return nil
	}
	a := d.p.addr
	l := &Life{Kind: SessionEnd, Time: time.Now(), Host: a.host, Box: a.box, Session: a.session, Exit: -1, Lost: true}
	body := d.p.last[StreamOps].body // the stream may have what a crash of the machine took from the spool
	if d.last != nil && uint64(d.last.first) >= d.p.last[StreamOps].rank {
		body = d.last.body
	}
	if body != nil {
		b, err := DecodeBatch(body)
		if err != nil {
			return err
		}
		l.Last, l.Head = b.Last(), Sum(body)
	}
	key, err := SealKey(home)
	if err != nil {
		return err
	}
	l.Seal(key)
	if body, err = EncodeLife(l); err != nil {
		return err
	}
	d.recs = []*record{{kind: kindLife, body: body, time: l.Time, addr: a, life: l}}
	if err := d.flush(ctx); err != nil {
		return err
	}
	d.rep.Lost = append(d.rep.Lost, a.session)
	return nil
}

// notePrefix begins the name of a note's spool, which stands in its subject where others
// have a session. A session's credentials are for no such subject, so that it cannot tell
// of boxes and users.
const notePrefix = "note-"

// Note logs a fact that belongs to no session: that a box was made or removed, or that
// somebody signed in. It goes into a spool of its own, from where the daemon publishes
// it, now or when there is one.
func Note(home string, l Life) error {
	if l.Time.IsZero() {
		l.Time = time.Now()
	}
	l.Host, l.Session = cleanHost(l.Host), ""
	fail := func(err error) error { return fmt.Errorf("note %s: %w", l.Kind, err) }
	if l.Kind == SessionBegin || l.Kind == SessionEnd {
		return fail(errors.New("a session's life is told in its own log"))
	}
	body, err := EncodeLife(&l)
	if err != nil {
		return fail(err)
	}
	id, err := ulid.New(ulid.Timestamp(l.Time), rand.Reader)
	if err != nil {
		return fail(err)
	}
	s, err := createSpool(SpoolDir(home), core.SessionID(notePrefix+id.String()))
	if err != nil {
		return fail(err)
	}
	s.cannot = true // one small record needs no reserve
	rec := append(make([]byte, recordHead), body...)
	sealRecord(rec, s.marker, kindLife, 0, 0)
	if err := s.append(rec); err != nil {
		return fail(errors.Join(err, s.close(true)))
	}
	if err := errors.Join(s.sync(position{}), s.close(false)); err != nil {
		return fail(err)
	}
	return nil
}

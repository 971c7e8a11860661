package web

import (
	"context"
	"fmt"
	"slices"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

const (
	maxAlarms  = 3 // that a page keeps in sight
	alarmPages = 4 // that are read at most to find the newest ones
	alarmText  = "verdict:blocked or leak:true"
)

// alarms are the operations that were blocked or leaked last. A page keeps them in sight
// however much else is done: of a box with 20,000 operations a second, the newest window
// is two milliseconds long, and what was blocked would be gone before anybody saw it.
//
// The counters say when there are new ones, and those are after what was read before, so
// that a box that has none, or none lately, costs nothing.
type alarms struct {
	rows  []opRow // newest first
	total uint64  // that were counted when rows were read

	// Everything up to known was folded before total was counted. read is the newest
	// operation of the window that was read after that: it becomes known next time.
	known, read core.OpCursor
}

// alarmQuery finds alarms.
func alarmQuery() *query.Query {
	q, err := query.Parse(alarmText, query.Options{})
	if err != nil {
		panic(fmt.Sprintf("the query for alarms: %v", err)) // a test would have found it
	}
	return q
}

// keeps says whether the page of f has alarms in sight: the newest window of everything.
// Whoever asked for something else sees that, and what the counters say.
func (f boxFilter) keeps() bool { return f.newest() && f.text == "" }

// readAlarms reads what is new among the alarms, of what v counts.
func (s *site) readAlarms(ctx context.Context, v *boxView, a *alarms) error {
	ask := func(after core.OpCursor, limit int) (core.OpsPage, error) {
		p, err := s.Source.Ops(ctx, s.alarm, v.box, v.boxFilter.session, 0, after, limit)
		if err != nil {
			err = fmt.Errorf("read what was blocked: %w", err)
		}
		return p, err
	}
	total := v.counts.Blocked + v.counts.Leaks
	switch {
	case total == 0:
		a.rows = nil
	case a.total == 0 || total < a.total: // the page was just opened, or the record begins again
		p, err := ask(0, maxAlarms)
		if err != nil {
			return err
		}
		a.rows, a.known, a.read = opRows(p), 0, 0
	case total > a.total:
		found, after := a.rows, a.known
		for n := 0; ; n++ {
			if n == alarmPages || after == 0 { // so many that the newest are found at once
				p, err := ask(0, maxAlarms)
				if err != nil {
					return err
				}
				found = opRows(p)
				break
			}
			p, err := ask(after, opsPage)
			if err != nil {
				return err
			}
			found = append(opRows(p), found...)
			slices.SortFunc(found, newestFirst)
			found = slices.CompactFunc(found, func(a, b opRow) bool { return a.cursor == b.cursor })
			found = slices.Clip(found[:min(len(found), maxAlarms)])
			next := p.Next
			if next == 0 && len(p.Cursors) > 0 {
				next = slices.Max(p.Cursors)
			}
			if !p.More || next <= after {
				break
			}
			after = next
		}
		a.rows = found
	}
	a.total = total
	v.alarms = a.rows
	return nil
}

// windowRead takes note of the window that was read after the alarms.
func (a *alarms) windowRead(ops []opRow) {
	a.known = a.read
	if len(ops) > 0 {
		a.read = ops[0].cursor
	}
}

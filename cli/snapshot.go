package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/events"
	"github.com/sandglass/sandglass/store"
)

func newSnapshot(p *printer) *cobra.Command {
	var list, remove, asJSON bool
	c := &cobra.Command{
		Use:   "snapshot BOX [NAME] [--list [--json] | --rm]",
		Short: "Keep the state of a box under a name, list or remove what was kept",
		Long: `Keep what a box has changed as it is now under NAME (the time, when there is none), so
that ` + "`rollback`" + ` can bring it back. Files that are as they were in an earlier snapshot
are stored once. While a session runs, each file is kept as it is when it is read.`,
		Example: `  sandglass snapshot work before-upgrade
  sandglass snapshot work --list
  sandglass snapshot work --rm before-upgrade`,
		Args:              needArgs("the name of the box", 1, 2),
		ValidArgsFunction: completeBoxThenSnapshots,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case list && (remove || len(args) > 1):
				return usage(c.CommandPath(), errors.New("--list takes the box alone"))
			case asJSON && !list:
				return usage(c.CommandPath(), errors.New("--json goes with --list"))
			case remove && len(args) < 2:
				return usage(c.CommandPath(), errors.New("the name of the snapshot is missing"))
			}
			h, b, dir, err := openBox(args[0])
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			switch {
			case list:
				return listSnapshots(p, b.Name, dir, asJSON)
			case remove:
				return boxError(b, dir.RemoveSnapshot(args[1]))
			}
			name := time.Now().Format("2006-01-02T15.04.05")
			if len(args) > 1 {
				name = args[1]
			}
			s, err := dir.Snapshot(ctx, name)
			if err != nil {
				return boxError(b, err)
			}
			if err := noteState(h, events.BoxSnapshot, b, name, s.Files); err != nil {
				return err
			}
			p.Line("snapshot %s: %s, %s of its own", name, plural(s.Files, "path"), bytesText(s.Bytes))
			if s.Live {
				p.Note("a session runs in the box: what it wrote meanwhile may be of either moment")
			}
			if s.Missing > 0 {
				p.Note("%s could not be read and will not come back", plural(s.Missing, "file"))
			}
			return nil
		},
	}
	f := c.Flags()
	f.BoolVar(&list, "list", false, "list the snapshots of the box")
	f.BoolVar(&remove, "rm", false, "remove the snapshot NAME")
	f.BoolVar(&asJSON, "json", false, "with --list: one line of JSON for each")
	return c
}

// openBox opens the state folder and finds the box.
func openBox(name string) (h Home, b core.Box, dir layers.Dir, err error) {
	if h, err = OpenHome(); err != nil {
		return
	}
	if b, err = h.Box(name); err != nil {
		return
	}
	return h, b, layers.Dir(h.box(b.Name)), nil
}

func boxError(b core.Box, err error) error {
	if err != nil {
		return fmt.Errorf("box %s: %w", b.Name, err)
	}
	return nil
}

func noteState(h Home, kind events.LifeKind, b core.Box, text string, n int) error {
	return events.Note(string(h), events.Life{Kind: kind, Time: time.Now(), Host: hostName(), Box: b.Name, Policy: b.Policy, Text: text, Count: n})
}

func listSnapshots(p *printer, box string, dir layers.Dir, asJSON bool) error {
	ss, err := dir.Snapshots()
	if err != nil {
		return fmt.Errorf("box %s: %w", box, err)
	}
	var rows [][]string
	for _, s := range ss {
		if asJSON {
			if err := p.JSON(s); err != nil {
				return err
			}
			continue
		}
		live := ""
		if s.Live {
			live = "while a session ran"
		}
		rows = append(rows, []string{s.Name, s.Time.Local().Format("2006-01-02 15:04:05"), strconv.Itoa(s.Files), bytesText(s.Bytes), bytesText(s.Shared), live})
	}
	switch {
	case asJSON:
	case len(ss) == 0:
		p.Note("box %s has no snapshots; `sandglass snapshot %s NAME` takes one", box, box)
	default:
		p.Table([]string{"SNAPSHOT", "TAKEN", ">PATHS", ">SIZE", ">SHARED", ""}, rows)
	}
	return nil
}

func completeBoxThenSnapshots(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return completeBoxes(c, args, prefix)
	}
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	_, _, dir, err := openBox(args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ss, _ := dir.Snapshots()
	var names []string
	for _, s := range ss {
		names = append(names, s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// then says which moment of a box's past is meant.
type then struct{ at, session string }

func (t *then) flags(c *cobra.Command) {
	c.Flags().StringVar(&t.at, "at", "", "as it was right after the operation SEQ, or at a TIME: RFC 3339, 15:04:05 of today, or how long ago (10m)")
	c.Flags().StringVar(&t.session, "session", "", "the session of SEQ; else the box's last one")
}

// time finds the moment.
func (t *then) time(ctx context.Context, h Home, p *printer, box string) (time.Time, error) {
	seq, err := strconv.ParseUint(t.at, 10, 63)
	if err != nil {
		if t.session != "" {
			return time.Time{}, core.Hint(fmt.Errorf("--at %q: not the number of an operation", core.Shorten(t.at, 80)), "`sandglass ops --session "+t.session+"` lists them with their numbers")
		}
		return parseTime(t.at, time.Now())
	}
	r, err := h.openReader(ctx, p)
	if err != nil {
		return time.Time{}, err
	}
	defer r.Close()
	id := core.SessionID(t.session)
	if id == "" {
		ss, err := r.Sessions(ctx, store.SessionFilter{Box: box, Limit: 1})
		if err != nil {
			return time.Time{}, err
		}
		if len(ss) == 0 {
			return time.Time{}, core.Hint(fmt.Errorf("no session of box %s is on record", box), "--at takes a time, too")
		}
		id = ss[0].ID
	}
	q, err := query.Parse("seq:"+strconv.FormatUint(seq, 10), query.Options{})
	if err != nil {
		return time.Time{}, err
	}
	page, err := r.Ops(ctx, store.OpsQuery{Query: q, Box: box, Session: id, Limit: 1})
	if err != nil {
		return time.Time{}, err
	}
	if len(page.Ops) == 0 {
		return time.Time{}, core.Hint(fmt.Errorf("session %s of box %s has no operation %d on record", id, box, seq), "`sandglass ops --session "+string(id)+"` lists them; --session names another")
	}
	return page.Ops[0].Time, nil
}

// parseTime reads a moment as people write it.
func parseTime(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.Local), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, core.Hint(fmt.Errorf("--at %q: neither the number of an operation nor a time", core.Shorten(s, 80)), "as 1234, 14:05:00, 2026-01-31 14:05, 2026-01-31T14:05:00Z, or 10m for ten minutes ago")
}

func newRollback(p *printer) *cobra.Command {
	var t then
	var yes, force, dry bool
	c := &cobra.Command{
		Use:   "rollback BOX NAME | BOX --at SEQ|TIME [--session S] [--yes]",
		Short: "Put a box back to a snapshot, or to any moment of its past",
		Long: `Make what a box has changed what it was when the snapshot NAME was taken, or right after
an operation, or at a time. The real system is not touched. It says what will change, and
asks. No session may run in the box meanwhile. A rollback can itself be rolled back.`,
		Example: `  sandglass rollback work before-upgrade
  sandglass rollback work --at 10m              as it was ten minutes ago
  sandglass rollback work --at 1234             right after operation 1234 of its last session`,
		Args:              needArgs("the name of the box", 1, 2),
		ValidArgsFunction: completeBoxThenSnapshots,
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 2) == (t.at != "") {
				return usage(c.CommandPath(), errors.New("either the name of a snapshot or --at says where to"))
			}
			h, b, dir, err := openBox(args[0])
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			o := layers.RollbackOptions{Force: force, DryRun: true}
			what := ""
			if len(args) == 2 {
				o.Snapshot, what = args[1], args[1]
			} else {
				if o.Time, err = t.time(ctx, h, p, b.Name); err != nil {
					return err
				}
				what = o.Time.UTC().Format(time.RFC3339Nano)
			}
			r, err := dir.Return(ctx, o)
			if err != nil {
				return boxError(b, err)
			}
			for i := range r.Changes {
				p.Line("%s %s", r.Changes[i].Kind.String(), escape(r.Changes[i].Path))
			}
			for _, l := range r.Lost {
				p.Line("! %s  its content of then was not kept", escape(l))
			}
			if dry || len(r.Changes) == 0 && len(r.Lost) == 0 {
				if len(r.Changes) == 0 && len(r.Lost) == 0 {
					p.Note("box %s is as it was then", b.Name)
				}
				return nil
			}
			if !yes {
				if err := confirm(p, fmt.Sprintf("put %s of box %s back", plural(len(r.Changes), "path"), b.Name)); err != nil {
					return err
				}
			}
			o.DryRun = false
			if r, err = dir.Return(ctx, o); err != nil {
				return boxError(b, err)
			}
			if err := noteState(h, events.BoxRollback, b, what, r.Counts.Total()); err != nil {
				return err
			}
			p.Line("%d added, %d modified, %d deleted: rolled back", r.Counts.Added, r.Counts.Modified, r.Counts.Deleted)
			return nil
		},
	}
	t.flags(c)
	f := c.Flags()
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	f.BoolVarP(&dry, "dry-run", "n", false, "only show what would change")
	f.BoolVar(&force, "force", false, "leave files whose content of then was not kept as they are")
	return c
}

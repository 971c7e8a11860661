package cli

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/store"
)

func newSessions(p *printer) *cobra.Command {
	var box string
	var asJSON bool
	var limit int
	c := &cobra.Command{
		Use:   "sessions [--box NAME] [--json]",
		Short: "List sessions: what ran in which box, when, and how it ended",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			r, err := h.openReader(ctx, p)
			if err != nil {
				return err
			}
			defer r.Close()
			o := opsOptions{box: box}
			if err := o.check(ctx, h, r); err != nil {
				return err
			}
			ss, err := r.Sessions(ctx, store.SessionFilter{Box: box, Limit: limit})
			if err != nil {
				return err
			}
			if asJSON {
				for i := range ss {
					if err := p.JSON(&ss[i]); err != nil {
						return err
					}
				}
				return nil
			}
			if len(ss) == 0 {
				if p.errTTY {
					p.Note("no sessions; `sandglass run COMMAND` makes one")
				}
				return nil
			}
			rows := make([][]string, 0, len(ss))
			for i := range ss {
				rows = append(rows, sessionRow(&ss[i], time.Now()))
			}
			p.Table(sessionHead, rows)
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&box, "box", "b", "", "only of this box")
	f.BoolVar(&asJSON, "json", false, "one line of JSON for each")
	f.IntVarP(&limit, "limit", "n", 0, "the last N; 0 is all")
	if err := c.RegisterFlagCompletionFunc("box", completeBoxes); err != nil {
		panic(err) // a flag that was not defined above
	}
	return c
}

var sessionHead = []string{"SESSION", "BOX", "STARTED", ">EXIT", ">ALLOWED", ">REDIRECTED", ">BLOCKED", ">LEAKS", "COMMAND"}

// maxCommand is how much of a command a row shows, in bytes: it may be megabytes.
const maxCommand = 160

func sessionRow(s *core.SessionView, now time.Time) []string {
	exit := strconv.Itoa(s.Exit)
	switch {
	case s.Lost:
		exit = "lost"
	case s.End.IsZero():
		exit = "runs"
	}
	n := func(v uint64) string { return strconv.FormatUint(v, 10) }
	return []string{string(s.ID), s.Box, ago(s.Start, now), exit, n(s.Counts.Allowed), n(s.Counts.Redirected), n(s.Counts.Blocked), n(s.Counts.Leaks), escape(core.Shorten(s.Command, maxCommand))}
}

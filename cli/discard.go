package cli

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/events"
)

func newDiscard(p *printer) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "discard BOX [PATH...] [--yes]",
		Short: "Throw away what a box changed, so that the real files show again",
		Long: `Throw away what a box changed at PATHs, with all that is below them, or everything
that it changed when there are none. The real system is not touched. No session may
run in the box meanwhile.`,
		Example: `  sandglass discard work ~/project/build
  sandglass discard work --yes`,
		Args:              needArgs("the name of the box", 1, 0),
		ValidArgsFunction: completeBoxThenFiles,
		RunE: func(c *cobra.Command, args []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			b, err := h.Box(args[0])
			if err != nil {
				return err
			}
			paths, err := absolute(args[1:])
			if err != nil {
				return err
			}
			if len(paths) == 0 && !yes {
				if err := confirm(p, "throw away everything that box "+b.Name+" has changed"); err != nil {
					return err
				}
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			n, err := layers.Dir(h.box(b.Name)).Discard(ctx, paths)
			if err != nil {
				return err
			}
			if err := events.Note(string(h), events.Life{Kind: events.BoxDiscard, Time: time.Now(), Host: hostName(), Box: b.Name, Policy: b.Policy,
				Text: whatPaths(paths), Count: n.Total()}); err != nil {
				return err
			}
			p.Line("%d added, %d modified, %d deleted: discarded", n.Added, n.Modified, n.Deleted)
			return nil
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before the whole box's changes go")
	return c
}

// whatPaths says in a few words which paths were meant, for the log.
func whatPaths(paths []string) string {
	switch len(paths) {
	case 0:
		return "everything"
	case 1:
		return core.Shorten(paths[0], 4096)
	}
	return core.Shorten(paths[0], 4096) + " and " + fmt.Sprint(len(paths)-1) + " more"
}

// confirm asks the person at the terminal; without one the answer is no.
func confirm(p *printer, what string) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) || !p.errTTY {
		return core.Hint(errors.New("nobody is there to be asked whether to "+what), "`--yes` says so")
	}
	p.Flush()
	fmt.Fprintf(p.err, "%s? [y/N] ", clean(strings.ToUpper(what[:1])+what[1:]))
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if a := strings.ToLower(strings.TrimSpace(line)); a != "y" && a != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

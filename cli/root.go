package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
)

// Main runs the command line of this process and returns its exit code.
func Main() int {
	p := newPrinter(os.Stdout, os.Stderr)
	return finish(p, newRoot(p).Execute())
}

// The groups of commands in the help.
const (
	groupRun   = "run"
	groupLook  = "look"
	groupState = "state"
)

func newRoot(p *printer) *cobra.Command {
	root := &cobra.Command{
		Use:   "sandglass",
		Short: "Run any Linux program in a box, and see everything it does",
		Long: `Sandglass runs any Linux program in a box. It reads your real files; whatever it
writes, deletes or renames happens in the box and never to them. Every operation is
recorded, with what became of it: allowed (touched the real system), redirected
(happened in the box instead) or blocked.`,
		Example: `  sandglass run bash                      a shell in the box "default"
  sandglass run --rm -- make install      in a box that is thrown away afterwards
  sandglass ops verdict:redirected        what it changed, or thinks it did
  sandglass ops --follow surface:files.*  watch it while it runs
  sandglass link                          a link that signs you in to the dashboard`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true,
		Args:               cobra.ArbitraryArgs,
		RunE:               func(c *cobra.Command, args []string) error { return needSubcommand(c, args) },
		PersistentPreRun: func(c *cobra.Command, _ []string) {
			// What sandglass writes is its owner's alone. Not so in `run`: the umask is the command's.
			if c.Name() != "run" {
				syscall.Umask(0o077)
			}
		},
		Version: version(),
	}
	root.SetVersionTemplate("sandglass {{.Version}}\n")
	root.SetOut(p.out)
	root.SetErr(p.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c.CommandPath(), err) })
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run:"},
		&cobra.Group{ID: groupLook, Title: "Look:"},
		&cobra.Group{ID: groupState, Title: "The daemon and this machine:"},
	)
	root.SetHelpCommandGroupID(groupState)
	add := func(group string, cs ...*cobra.Command) {
		for _, c := range cs {
			c.GroupID = group
			c.DisableFlagsInUseLine = true
			root.AddCommand(c)
		}
	}
	add(groupRun, newRun(p), newBox(p), newCommit(p), newDiscard(p), newSnapshot(p), newRollback(p), newPS(p), newFreeze(), newThaw(), newKill(), newCut(), newAsks(p), newAnswer())
	add(groupLook, newDiff(p), newOps(p), newSessions(p), newFlows(p), newNames(p), newPcap(p), newLink(p))
	add(groupState, newServe(p), newStatus(p), newStop(p), newRebuild(p), newDoctor(p), newPolicy(p), newCompletion(p), newVersion(p))
	return root
}

// needSubcommand prints the help of a command that only has subcommands, or says which of
// them was meant.
func needSubcommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	name := core.Shorten(args[0], 80)
	err := fmt.Errorf("unknown command %q for %q", name, c.CommandPath())
	if c.Parent() == nil {
		if _, lerr := exec.LookPath(args[0]); lerr == nil || strings.Contains(name, "/") {
			return core.Hint(err, fmt.Sprintf("to run a program in a box: `sandglass run -- %s`", shellQuote(name)))
		}
	}
	if c.SuggestionsMinimumDistance <= 0 {
		c.SuggestionsMinimumDistance = 2
	}
	if s := c.SuggestionsFor(name); len(s) > 0 && len(name) > 2 {
		return core.Hint(err, fmt.Sprintf("did you mean `%s %s`?", c.CommandPath(), s[0]))
	}
	if c.Parent() == nil {
		return core.Hint(err, "`sandglass --help` lists the commands")
	}
	return usage(c.CommandPath(), err)
}

// noArgs and needArgs check the number of arguments, and say what was not expected.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(c.CommandPath(), fmt.Errorf("unexpected argument %q", core.Shorten(args[0], 80)))
	}
	return nil
}

func needArgs(what string, least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usage(c.CommandPath(), errors.New(what+" is missing"))
		case most > 0 && len(args) > most:
			return usage(c.CommandPath(), fmt.Errorf("unexpected argument %q", core.Shorten(args[most], 80)))
		}
		return nil
	}
}

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/events"
)

func newCommit(p *printer) *cobra.Command {
	var o commitFlags
	c := &cobra.Command{
		Use:   "commit BOX [PATH...] [--dry-run] [--force] [--yes] [--json]",
		Short: "Apply what a box changed to the real system, all of it or nothing",
		Long: `Apply the changes of a box to the real system: all of them, or those at and below PATHs. What is
shown is done as a whole or not at all, also when the machine stops meanwhile: the next command
on the box undoes or finishes it. What is committed leaves the box, which shows the real files
there from then on.

A real file that is not what it was when the box first changed it is a conflict, and stops the
commit before anything is done; with --force the box's version wins. Set-user-ID bits are
committed with --force alone, private places only when they are named.`,
		Example: `  sandglass commit work --dry-run
  sandglass commit work ~/project/src
  sandglass commit work --yes`,
		Args:              needArgs("the name of the box", 1, 0),
		ValidArgsFunction: completeBoxThenFiles,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := untilSignal(c.Context())
			defer stop()
			return commitBox(ctx, p, args[0], args[1:], o)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "show what would be done, and what stands in the way")
	f.BoolVar(&o.force, "force", false, "go on over conflicts: the box's version wins")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&o.json, "json", false, "one line of JSON for each path")
	return c
}

type commitFlags struct{ dryRun, force, yes, json bool }

// completeBoxThenFiles completes the name of a box, then paths.
func completeBoxThenFiles(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return completeBoxes(c, nil, prefix)
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// commitLine is a line of `commit --json`.
type commitLine struct {
	// Do is "add", "modify", "delete", "skip", "conflict", "warn", "left", and last "done" or "planned".
	Do      string             `json:"do"`
	Path    string             `json:"path,omitempty"`
	PathB64 []byte             `json:"path_b64,omitempty"` // where the path is not UTF-8
	Parts   []string           `json:"parts,omitempty"`
	Why     string             `json:"why,omitempty"`
	Counts  *core.ChangeCounts `json:"counts,omitempty"`
}

func commitBox(ctx context.Context, p *printer, name string, args []string, o commitFlags) error {
	h, err := OpenHome()
	if err != nil {
		return err
	}
	b, err := h.Box(name)
	if err != nil {
		return err
	}
	opts := layers.CommitOptions{Force: o.force}
	for _, a := range args {
		real, err := placeOf(a)
		if err != nil {
			return fmt.Errorf("commit box %s: %s: %w", name, a, err)
		}
		opts.Paths = append(opts.Paths, real)
	}
	if !o.dryRun && !o.yes && !term.IsTerminal(int(os.Stdin.Fd())) {
		return core.Hint(fmt.Errorf("commit box %s: nobody can be asked", name), "--dry-run shows what would be done, --yes does it")
	}
	dir := layers.Dir(h.box(name))
	plan := opts
	plan.DryRun = true
	r, err := dir.Commit(ctx, plan)
	if r != nil {
		showCommit(p, r, o)
	}
	var conflict *layers.ConflictError
	if errors.As(err, &conflict) {
		return stopCommit(p, name, conflict, o)
	}
	if err != nil {
		return commitError(ctx, name, err)
	}
	if len(r.Changes) == 0 {
		if !o.json {
			p.Note("box %s: there is nothing to commit", name)
		}
		return nil
	}
	if o.dryRun {
		endCommit(p, "planned", r, o)
		return nil
	}
	if !o.yes {
		p.Flush()
		ok, err := p.agree(ctx, fmt.Sprintf("Apply %s to the real system?", plural(r.Counts.Total(), "change")))
		if err != nil {
			return commitError(ctx, name, err)
		}
		if !ok {
			return exitCode(exitNo)
		}
	}
	opts.Expect = r.Digest
	opts.Progress = func(done, total int) {
		if done == total || done%64 == 0 {
			p.Progress("writing %d of %d", done, total)
		}
	}
	r, err = dir.Commit(ctx, opts)
	p.Done()
	if errors.As(err, &conflict) {
		return stopCommit(p, name, conflict, o)
	}
	if err != nil {
		return commitError(ctx, name, err)
	}
	for _, c := range r.Left {
		sayConflict(p, "left", c, o)
	}
	endCommit(p, "done", r, o)
	what := "everything"
	if len(opts.Paths) > 0 {
		what = core.Shorten(escape(strings.Join(opts.Paths, " ")), 200)
	}
	return events.Note(string(h), events.Life{Kind: events.BoxCommit, Time: time.Now(), Host: hostName(), Box: b.Name, Text: what, Count: r.Counts.Total()})
}

// placeOf makes a path absolute. Links on the way to it lead where they do for the caller;
// the last name is meant itself.
func placeOf(arg string) (string, error) {
	abs, err := filepath.Abs(arg)
	if err != nil || abs == "/" {
		return abs, err
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil { // else it is in the box alone
		abs = filepath.Join(dir, filepath.Base(abs))
	}
	return abs, nil
}

func showCommit(p *printer, r *layers.CommitReport, o commitFlags) {
	for i := range r.Changes {
		c := &r.Changes[i]
		if o.json {
			do := map[core.ChangeKind]string{core.Added: "add", core.Modified: "modify", core.Deleted: "delete"}[c.Kind]
			p.JSON(jsonPath(commitLine{Do: do, Parts: c.Parts}, c.Path))
			continue
		}
		note := ""
		if c.Kind == core.Modified {
			note = " (" + strings.Join(c.Parts, ", ") + ")"
		}
		p.Line("%s %s%s", c.Kind, painted(escape(c.Path)), note)
	}
	for _, c := range r.Skipped {
		sayConflict(p, "skip", c, o)
	}
	for _, c := range r.Warnings {
		sayConflict(p, "warn", c, o)
	}
}

// sayConflict says one thing about a path, beside the plan.
func sayConflict(p *printer, do string, c layers.Conflict, o commitFlags) {
	if o.json {
		p.JSON(jsonPath(commitLine{Do: do, Why: c.Why}, c.Path))
		return
	}
	word := map[string]string{"skip": "left out: ", "warn": "warning: ", "conflict": "conflict: ", "left": "left: "}[do]
	p.Note("%s%s: %s", word, painted(escape(c.Path)), c.Why)
}

func jsonPath(l commitLine, path string) commitLine {
	l.Path = path
	if strings.ToValidUTF8(path, "") != path {
		l.PathB64 = []byte(path)
	}
	return l
}

func stopCommit(p *printer, name string, e *layers.ConflictError, o commitFlags) error {
	hard := false
	for _, c := range e.Conflicts {
		sayConflict(p, "conflict", c, o)
		hard = hard || c.Hard
	}
	err := fmt.Errorf("commit box %s: %s; nothing was changed", name, plural(len(e.Conflicts), "conflict"))
	if hard {
		return core.Hint(err, "name the paths that have none")
	}
	return core.Hint(err, "`sandglass diff "+name+"` shows what it changed", "--force commits the box's version all the same")
}

func commitError(ctx context.Context, name string, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	return fmt.Errorf("commit box %s: %w", name, err)
}

func endCommit(p *printer, do string, r *layers.CommitReport, o commitFlags) {
	if o.json {
		p.JSON(commitLine{Do: do, Counts: &r.Counts})
		return
	}
	c := r.Counts
	if do == "done" {
		p.Line("committed: %d added, %d modified, %d deleted", c.Added, c.Modified, c.Deleted)
	} else {
		p.Line("would commit: %d added, %d modified, %d deleted", c.Added, c.Modified, c.Deleted)
	}
}

// agree asks a question that is answered with yes or no; no answer is a no.
func (p *printer) agree(ctx context.Context, question string) (bool, error) {
	fmt.Fprintf(p.err, "%s [y/N] ", clean(question))
	answer := make(chan string, 1)
	go func() { // ends with the process, should nobody answer
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answer:
		return a == "y" || a == "yes", nil
	case <-ctx.Done():
		fmt.Fprintln(p.err)
		return false, context.Cause(ctx)
	}
}

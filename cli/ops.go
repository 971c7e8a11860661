package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
	"github.com/sandglass/sandglass/store"
)

// How many operations a person is shown who did not say how many.
const personLimit = 1000

// Pages in which operations are read from the projections, and how often --follow looks
// for more: one look is one query by key.
const (
	opsPage     = 1000
	followEvery = 100 * time.Millisecond

	// daemonRounds is after how many looks --follow starts a daemon that has died again.
	daemonRounds = 10
)

type opsOptions struct {
	box, session   string
	follow, asJSON bool
	limit          int
	each           func(*core.Operation) error // what is done instead of printing them; may be nil
}

func newOps(p *printer) *cobra.Command {
	var o opsOptions
	c := &cobra.Command{
		Use:   "ops [flags] [QUERY]",
		Short: "List or follow operations, all or those that a query matches",
		Long: `List operations, oldest first: all, or those that a query matches.

A query is made of terms, field:value, and words, which search the target. * in a value
stands for anything, a comma between values for "or". Terms side by side must all hold;
"and", "or", "not" and parentheses combine them. pid, seq and time also know < and >.

` + fieldsHelp() + `
` + "`*` and parentheses mean something to the shell: put quotes around the query.",
		Example: `  sandglass ops verdict:blocked
  sandglass ops --box work 'surface:files.* and not exe:/usr/bin/*'
  sandglass ops target:~/.ssh/* since:1h
  sandglass ops --follow --json verdict:blocked or leak:true`,
		ValidArgsFunction: completeQuery,
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("limit") && p.tty && !o.asJSON {
				o.limit = personLimit
			}
			return o.run(c.Context(), p, strings.Join(args, " "))
		},
	}
	f := c.Flags()
	f.StringVarP(&o.box, "box", "b", "", "only of this box")
	f.StringVarP(&o.session, "session", "s", "", "only of this session")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with new ones as they come, until Ctrl-C")
	f.BoolVar(&o.asJSON, "json", false, "one line of JSON for each")
	f.IntVarP(&o.limit, "limit", "n", 0, fmt.Sprintf("the last N; 0 is all (default on a terminal: %d)", personLimit))
	if err := c.RegisterFlagCompletionFunc("box", completeBoxes); err != nil {
		panic(err) // a flag that was not defined above
	}
	return c
}

func fieldsHelp() string {
	var b strings.Builder
	for _, f := range query.Fields() {
		fmt.Fprintf(&b, "  %-9s %s\n", f.Name, f.About)
	}
	return b.String()
}

// parseQuery parses a query as a command takes it: `~` is the caller's home.
func parseQuery(text string) (*query.Query, error) {
	home, _ := os.UserHomeDir()
	q, err := query.Parse(text, query.Options{Home: home, Now: time.Now()})
	return q, err
}

func (o *opsOptions) run(ctx context.Context, p *printer, text string) error {
	if o.limit < 0 {
		return usage("sandglass ops", fmt.Errorf("--limit %d: it cannot be negative", o.limit))
	}
	q, err := parseQuery(text)
	if err != nil {
		return err
	}
	h, err := OpenHome()
	if err != nil {
		return err
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	r, err := h.openReader(ctx, p)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := o.check(ctx, h, r); err != nil {
		return err
	}
	at, n, err := o.list(ctx, p, r, q)
	if err != nil {
		return err
	}
	if !o.follow {
		if n == 0 && p.errTTY {
			p.Note("no operations%s", map[bool]string{true: "", false: " match"}[q.Root() == nil && o.box == "" && o.session == ""])
		}
		return nil
	}
	return o.goOn(ctx, p, h, r, q, at)
}

// check says so when there is no such box or session: an empty list would look as if they
// had done nothing.
func (o *opsOptions) check(ctx context.Context, h Home, r *reader) error {
	if o.box != "" {
		if err := core.CheckBoxName(o.box); err != nil {
			return err
		}
		if _, err := h.Box(o.box); errors.Is(err, core.ErrNotFound) {
			if _, err := r.Box(ctx, o.box); errors.Is(err, core.ErrNotFound) { // one that was removed is on record
				return errNoBox(o.box)
			} else if err != nil {
				return err
			}
		}
	}
	if o.session != "" {
		if _, err := r.Session(ctx, core.SessionID(o.session)); errors.Is(err, core.ErrNotFound) {
			return core.Hint(fmt.Errorf("session %q: %w", core.Shorten(o.session, 80), core.ErrNotFound), "`sandglass sessions` lists them")
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (o *opsOptions) query(q *query.Query) store.OpsQuery {
	return store.OpsQuery{Query: q, Box: o.box, Session: core.SessionID(o.session), Limit: opsPage}
}

// newest returns the cursor of the last operation of all; 0 when there is none.
func newest(ctx context.Context, r *reader) (core.OpCursor, error) {
	page, err := r.Ops(ctx, store.OpsQuery{Limit: 1, Desc: true})
	if err != nil || len(page.Cursors) == 0 {
		return 0, err
	}
	return page.Cursors[0], nil
}

// list prints what there is: up to the operation that was the last when it began, whose
// cursor it returns, and how many it printed.
func (o *opsOptions) list(ctx context.Context, p *printer, r *reader, q *query.Query) (top core.OpCursor, n int, err error) {
	if top, err = newest(ctx, r); err != nil {
		return 0, 0, err
	}
	if o.limit == 0 {
		n, err = o.between(ctx, p, r, q, 0, top)
		return top, n, err
	}
	// The last ones, newest first as they are found, then turned round.
	var pages []core.OpsPage
	for oq := o.query(q); n < o.limit; {
		oq.Desc, oq.Limit = true, min(opsPage, o.limit-n)
		page, err := r.Ops(ctx, oq)
		if err != nil {
			return top, 0, err
		}
		pages = append(pages, page)
		n += len(page.Ops)
		if !page.More || len(page.Ops) == 0 {
			break
		}
		oq.Before = page.Cursors[len(page.Cursors)-1]
	}
	for _, page := range slices.Backward(pages) {
		for i := range slices.Backward(page.Ops) {
			if err := o.print(p, &page.Ops[i]); err != nil {
				return top, n, err
			}
			top = max(top, page.Cursors[i])
		}
	}
	return top, n, p.Flush()
}

// between prints what comes after one operation, up to and with another, and says how much.
func (o *opsOptions) between(ctx context.Context, p *printer, r *reader, q *query.Query, at, top core.OpCursor) (n int, err error) {
	for oq := o.query(q); at < top; {
		oq.After, oq.Before = at, top+1
		page, err := r.Ops(ctx, oq)
		if err != nil {
			return n, err
		}
		for i := range page.Ops {
			if err := o.print(p, &page.Ops[i]); err != nil {
				return n, err
			}
		}
		n += len(page.Ops)
		if err := p.Flush(); err != nil || !page.More || len(page.Ops) == 0 {
			return n, err
		}
		at = page.Cursors[len(page.Cursors)-1]
	}
	return n, p.Flush()
}

// goOn prints operations as they come, until ctx ends. It looks at the projections, so it
// misses nothing while the daemon is away or starts again. Without a daemon nobody would
// fold: it starts one, and another one when that dies.
func (o *opsOptions) goOn(ctx context.Context, p *printer, h Home, r *reader, q *query.Query, at core.OpCursor) error {
	if err := h.needDaemon(ctx); err != nil {
		return err
	}
	t := time.NewTicker(followEvery)
	defer t.Stop()
	for round := 1; ; round++ {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
		if round%daemonRounds == 0 {
			if err := h.reviveDaemon(); err != nil {
				return err
			}
		}
		if err := r.current(); err != nil {
			return err
		}
		// Everything up to the newest was folded before it, so it has been looked at
		// when this round is over, and a query that finds little reads nothing twice.
		top, err := newest(ctx, r)
		if err == nil && top > at {
			if _, err = o.between(ctx, p, r, q, at, top); err == nil {
				at = top
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
	}
}

// print writes one operation.
func (o *opsOptions) print(p *printer, op *core.Operation) error {
	if o.each != nil {
		return o.each(op)
	}
	if !o.asJSON {
		o.printOp(p, op)
		return nil
	}
	b, err := op.MarshalJSON()
	if err != nil {
		return err
	}
	p.rawJSON(b)
	return nil
}

// opTime is how a person is shown when something happened: to the microsecond, in local time.
const opTime = "01-02 15:04:05.000000"

// printOp writes one line for people.
func (o *opsOptions) printOp(p *printer, op *core.Operation) {
	box := ""
	if o.box == "" {
		box = fmt.Sprintf("%-12s ", escape(op.Box))
	}
	exe := op.Exe
	if i := strings.LastIndexByte(exe, '/'); i >= 0 {
		exe = path.Base(exe)
	}
	tail := ""
	if to := op.Detail["to"]; to != "" {
		tail += " -> " + escape(to)
	}
	if from := op.Detail["from"]; from != "" {
		tail += " <- " + escape(from)
	}
	if op.Errno != "" {
		tail += " [" + escape(op.Errno) + "]"
	}
	if op.Leak {
		tail += " LEAK"
	}
	p.Line("%s  %s%6d %-15s %s %-17s %-11s %s", op.Time.Local().Format(opTime), painted(box), op.PID, painted(escape(exe)),
		painted(p.paint(op.Verdict, op.Leak, fmt.Sprintf("%-10s", op.Verdict))), string(op.Surface), string(op.Action), painted(escape(op.Target)+tail))
}

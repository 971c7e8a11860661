package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/store"
)

type flowsOptions struct {
	box, session         string
	open, follow, asJSON bool
	limit                int
	shown                map[flowID]core.FlowView // by --follow
}

// flowID names a flow for ever.
type flowID struct {
	session core.SessionID
	flow    string
}

func newFlows(p *printer) *cobra.Command {
	var o flowsOptions
	c := &cobra.Command{
		Use:   "flows [BOX] [--open] [--follow] [--json]",
		Short: "List or follow network flows: who, to where, how much, how it ended",
		Long: `List the flows of boxes, or of one box, the one that was opened last first: TCP connections,
datagrams between two addresses, echo requests. What was blocked before it began is no flow:
` + "`sandglass ops verdict:blocked 'surface:net.*'`" + ` has it.

With --follow the oldest comes first, and a flow is shown again when it is opened, says its
name, or ends.`,
		Example: `  sandglass flows work --open
  sandglass flows --follow --json`,
		Args: needArgs("the name of the box", 0, 1),
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeBoxes(c, args, prefix)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.box = args[0]
			}
			if !c.Flags().Changed("limit") && !o.asJSON {
				o.limit = personLimit
			}
			return o.run(c.Context(), p)
		},
	}
	f := c.Flags()
	f.StringVarP(&o.session, "session", "s", "", "only of this session")
	f.BoolVar(&o.open, "open", false, "only those that are open; --follow begins with them")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what changes, until Ctrl-C")
	f.BoolVar(&o.asJSON, "json", false, "one line of JSON for each")
	f.IntVarP(&o.limit, "limit", "n", 0, fmt.Sprintf("the last N; 0 is all (default without --json: %d)", personLimit))
	return c
}

func (o *flowsOptions) run(ctx context.Context, p *printer) error {
	if o.limit < 0 {
		return usage("sandglass flows", fmt.Errorf("--limit %d: it cannot be negative", o.limit))
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
	ops := opsOptions{box: o.box, session: o.session, follow: o.follow}
	if err := ops.check(ctx, h, r); err != nil {
		return err
	}
	if o.follow {
		return o.goOn(ctx, p, h, r, ops)
	}
	var rows []core.FlowView
	more, err := o.each(ctx, r, func(v *core.FlowView) error {
		if o.asJSON {
			return p.JSON(v)
		}
		rows = append(rows, *v)
		return nil
	})
	if err != nil || o.asJSON {
		return err
	}
	if len(rows) == 0 {
		if p.errTTY {
			p.Note("no flows%s", map[bool]string{true: " are open", false: "; `sandglass run -- curl -I https://example.org` makes one"}[o.open])
		}
		return nil
	}
	o.table(p, rows, time.Now())
	if more {
		p.Note("there are older ones: --limit 0 lists all")
	}
	return nil
}

// each hands the flows that are asked for to fn, newest first, and says whether there are more.
func (o *flowsOptions) each(ctx context.Context, r *reader, fn func(*core.FlowView) error) (more bool, err error) {
	f := store.FlowFilter{Box: o.box, Session: core.SessionID(o.session), Open: o.open}
	for n := 0; ; {
		f.Limit = opsPage
		if o.limit > 0 {
			f.Limit = min(opsPage, o.limit-n)
		}
		page, err := r.Flows(ctx, f)
		if err != nil {
			return false, err
		}
		for i := range page.Flows {
			if err := fn(&page.Flows[i]); err != nil {
				return false, err
			}
		}
		n += len(page.Flows)
		if !page.More || n == o.limit {
			return page.More, nil
		}
		f.Before = page.Cursors[len(page.Cursors)-1]
	}
}

// table writes flows for people. A column that says the same in each row is left out where
// the caller knows it.
func (o *flowsOptions) table(p *printer, vs []core.FlowView, now time.Time) {
	head := []string{">FLOW", "PROTO", "VERDICT", "TO", "NAME", ">SENT", ">RECEIVED", ">RTT", "STARTED", ">LASTED", "STATE", "PROGRAM", ">PID"}
	sessions := slices.ContainsFunc(vs, func(v core.FlowView) bool { return v.Session != vs[0].Session })
	if sessions {
		head = append([]string{"SESSION"}, head...)
	}
	if o.box == "" {
		head = append([]string{"BOX"}, head...)
	}
	rows := make([][]string, 0, len(vs))
	for i := range vs {
		v := &vs[i]
		row := []string{v.Flow, escape(v.Proto) + inbound(v), v.Verdict.String(), escape(v.Target), escape(core.Shorten(v.Name, maxCommand)), bytesText(int64(v.Sent)), bytesText(int64(v.Received)),
			rtt(v), ago(v.Start, now), clock(lasted(v, now).Seconds()), flowState(v), escape(core.Shorten(baseName(v.Exe), maxCommand)), strconv.Itoa(v.PID)}
		if sessions {
			row = append([]string{string(v.Session)}, row...)
		}
		if o.box == "" {
			row = append([]string{v.Box}, row...)
		}
		rows = append(rows, row)
	}
	p.Table(head, rows)
}

func inbound(v *core.FlowView) string {
	if v.Inbound {
		return " in"
	}
	return ""
}

func rtt(v *core.FlowView) string {
	if v.RTT == 0 {
		return ""
	}
	return fmt.Sprintf("%.1fms", float64(v.RTT)/1000)
}

func lasted(v *core.FlowView, now time.Time) time.Duration {
	if !v.End.IsZero() {
		now = v.End
	}
	return max(0, now.Sub(v.Start))
}

// flowState says whether a flow is open, or why it is not.
func flowState(v *core.FlowView) string {
	switch {
	case v.End.IsZero():
		return "open"
	case v.Errno != "":
		return escape(v.Errno)
	case v.Reason != "":
		return escape(v.Reason)
	}
	return "ended"
}

// baseName is the last part of an executable's path.
func baseName(exe string) string {
	if strings.Contains(exe, "/") {
		return path.Base(exe)
	}
	return exe
}

// flowChanges is what a flow is shown again for.
const flowChanges = "action:connect,send,accept,identify,ask,close,end"

// maxShown is how many flows --follow remembers, to show none twice as it was.
const maxShown = 10_000

// goOn prints what there is, then each flow that changes.
func (o *flowsOptions) goOn(ctx context.Context, p *printer, h Home, r *reader, ops opsOptions) error {
	q, err := parseQuery(flowChanges)
	if err != nil {
		return err
	}
	top, err := newest(ctx, r)
	if err != nil {
		return err
	}
	o.shown = map[flowID]core.FlowView{}
	var there []core.FlowView
	if o.limit == 0 {
		o.limit = store.MaxPage // they are turned round in memory
	}
	if _, err := o.each(ctx, r, func(v *core.FlowView) error {
		there = append(there, *v)
		return nil
	}); err != nil {
		return err
	}
	for i := range slices.Backward(there) {
		if err := o.show(p, &there[i]); err != nil {
			return err
		}
	}
	if err := p.Flush(); err != nil {
		return err
	}
	again := func(id flowID) error {
		v, err := r.Flow(ctx, id.session, id.flow)
		if errors.Is(err, core.ErrNotFound) { // the projections are made anew
			return nil
		}
		if err != nil {
			return err
		}
		return o.show(p, &v)
	}
	ops.each = func(op *core.Operation) error {
		if flow := op.Flow(); flow != "" {
			return again(flowID{op.Session, flow})
		}
		if op.Surface != core.SandboxLifecycle {
			return nil
		}
		for id, v := range o.shown { // the session's end is theirs
			if id.session == op.Session && v.End.IsZero() {
				if err := again(id); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return ops.goOn(ctx, p, h, r, q, top)
}

// show prints a flow that is not as it was when it was shown last.
func (o *flowsOptions) show(p *printer, v *core.FlowView) error {
	id := flowID{v.Session, v.Flow}
	if o.shown[id] == *v {
		return nil
	}
	if len(o.shown) >= maxShown {
		clear(o.shown)
	}
	o.shown[id] = *v
	if o.asJSON {
		return p.JSON(v)
	}
	at, box, to := v.Start, "", escape(v.Target)
	if !v.End.IsZero() {
		at = v.End
	}
	if o.box == "" {
		box = fmt.Sprintf("%-12s ", escape(v.Box))
	}
	if v.Name != "" {
		to = escape(v.Name) + " (" + to + ")"
	}
	p.Line("%s  %s%5s %-12s %s %-4s %s  %s sent, %s received  %s %d", at.Local().Format(opTime), painted(box), v.Flow, painted(flowState(v)),
		painted(p.paint(v.Verdict, false, fmt.Sprintf("%-10s", v.Verdict))), painted(escape(v.Proto)+inbound(v)), painted(to), bytesText(int64(v.Sent)), bytesText(int64(v.Received)), painted(escape(baseName(v.Exe))), v.PID)
	return nil
}

func newCut() *cobra.Command {
	return &cobra.Command{
		Use:   "cut BOX [FLOW...]",
		Short: "End network flows of a box at once: all, or those that are named",
		Long: `End flows of the sessions that run in a box at once: all of them, or those that are named by
number, as ` + "`sandglass flows`" + ` shows it; where several sessions run, by SESSION/NUMBER. Both sides
see a reset. What the box opens next is up to its policy: ` + "`sandglass box set BOX --rule 'block *'`" + `
keeps it offline.`,
		Example: `  sandglass cut work
  sandglass cut work 12 14`,
		Args:              needArgs("the name of the box", 1, 0),
		ValidArgsFunction: completeOpenFlows,
		RunE: func(_ *cobra.Command, args []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			box := args[0]
			if len(args) == 1 {
				return h.order([]string{box}, "cut", driver.Order{Do: "cut"})
			}
			if err := h.checkBoxes([]string{box}); err != nil {
				return err
			}
			ids := make([]flowID, 0, len(args)-1)
			for _, text := range args[1:] { // all are looked at before any is cut
				id, err := h.flowNamed(box, text)
				if err != nil {
					return fmt.Errorf("cut box %s: %w", box, err)
				}
				ids = append(ids, id)
			}
			var failed error
			for _, id := range ids {
				if err := h.cut(box, id); err != nil {
					failed = errors.Join(failed, fmt.Errorf("cut box %s: flow %s: %w", box, id.flow, err))
				}
			}
			return failed
		},
	}
}

// cut ends one flow.
func (h Home) cut(box string, id flowID) error {
	return driver.AskSession(h.box(box), id.session, driver.Order{Do: "cut", Flow: id.flow})
}

// flowNamed reads NUMBER or SESSION/NUMBER. A number alone is of the one session that runs.
func (h Home) flowNamed(box, text string) (id flowID, err error) {
	session, number, both := strings.Cut(text, "/")
	if !both {
		session, number = "", text
	}
	if n, err := strconv.ParseUint(number, 10, 63); err != nil || n == 0 {
		return id, core.Hint(fmt.Errorf("flow %q: not a number", core.Shorten(text, 80)), "`sandglass flows "+box+" --open` lists them")
	}
	refs, err := layers.Dir(h.box(box)).Running()
	switch {
	case err != nil:
		return id, err
	case len(refs) == 0:
		return id, errNothingRuns
	case both:
		return flowID{core.SessionID(session), number}, nil
	case len(refs) > 1:
		var names []string
		for _, r := range refs {
			names = append(names, string(r.ID)+"/"+number)
		}
		return id, core.Hint(fmt.Errorf("flow %s: %d sessions run, each with flows of its own", number, len(refs)), "name it by its session: "+strings.Join(names, " or "))
	}
	return flowID{refs[0].ID, number}, nil
}

var errNothingRuns = core.Hint(errors.New("nothing runs in it"), "`sandglass ps` lists what runs where")

// completeOpenFlows completes a box, then the flows that are open in it.
func completeOpenFlows(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return completeBoxes(c, args, prefix)
	}
	const none = cobra.ShellCompDirectiveNoFileComp
	h, err := OpenHome()
	if err != nil {
		return nil, none
	}
	if _, err := os.Stat(h.projections()); errors.Is(err, fs.ErrNotExist) { // who completes makes nothing
		return nil, none
	}
	st, err := openStore(h)
	if err != nil {
		return nil, none
	}
	defer st.Close()
	page, err := st.Flows(c.Context(), store.FlowFilter{Box: args[0], Open: true, Limit: 200})
	if err != nil {
		return nil, none
	}
	several := slices.ContainsFunc(page.Flows, func(v core.FlowView) bool { return v.Session != page.Flows[0].Session })
	var out []string
	for _, v := range page.Flows {
		id, to := v.Flow, v.Name
		if several {
			id = string(v.Session) + "/" + v.Flow
		}
		if to == "" {
			to = v.Target
		}
		if strings.HasPrefix(id, prefix) && !slices.Contains(args[1:], id) {
			out = append(out, clean(id)+"\t"+clean(baseName(v.Exe)+" to "+core.Shorten(to, 80)))
		}
	}
	return out, none
}

func newNames(p *printer) *cobra.Command {
	var asJSON bool
	var limit int
	c := &cobra.Command{
		Use:   "names BOX [--json]",
		Short: "List the names that a box asked for, and what became of it",
		Long: fmt.Sprintf(`List the names that the programs of a box asked the resolver for, the one that was asked for
last first. The last %d names of a box are remembered.`, core.MaxNames),
		Args:              needArgs("the name of the box", 1, 1),
		ValidArgsFunction: completeBoxes,
		RunE: func(c *cobra.Command, args []string) error {
			if limit < 0 {
				return usage("sandglass names", fmt.Errorf("--limit %d: it cannot be negative", limit))
			}
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
			if err := (&opsOptions{box: args[0]}).check(ctx, h, r); err != nil {
				return err
			}
			if limit == 0 {
				limit = core.MaxNames
			}
			ns, _, err := r.Names(ctx, args[0], limit)
			if err != nil {
				return err
			}
			var rows [][]string
			for i := range ns {
				n := &ns[i]
				if asJSON {
					if err := p.JSON(n); err != nil {
						return err
					}
					continue
				}
				rows = append(rows, []string{escape(n.Name), n.Verdict.String(), strconv.FormatUint(n.Count, 10), strconv.FormatUint(n.Blocked, 10), escape(n.Types), escape(n.Rcode), ago(n.Last, time.Now())})
			}
			switch {
			case asJSON:
			case len(rows) > 0:
				p.Table([]string{"NAME", "VERDICT", ">ASKED", ">BLOCKED", "TYPES", "ANSWER", "LAST"}, rows)
			case p.errTTY:
				p.Note("no name was asked for")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one line of JSON for each")
	c.Flags().IntVarP(&limit, "limit", "n", 0, "the last N; 0 is all")
	return c
}

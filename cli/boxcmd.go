package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/events"
	"github.com/sandglass/sandglass/store"
)

func newBox(p *printer) *cobra.Command {
	c := &cobra.Command{
		Use:   "box COMMAND",
		Short: "List, show, create, change and remove boxes",
		Args:  cobra.ArbitraryArgs,
		RunE:  func(c *cobra.Command, args []string) error { return needSubcommand(c, args) },
	}
	for _, sub := range []*cobra.Command{newBoxList(p), newBoxShow(p), newBoxCreate(p), newBoxSet(), newBoxRepair(p), newBoxRemove(p)} {
		sub.DisableFlagsInUseLine = true
		c.AddCommand(sub)
	}
	return c
}

func newBoxCreate(p *printer) *cobra.Command {
	var policy string
	c := &cobra.Command{
		Use:     "create NAME [--policy NAME|FILE]",
		Short:   "Create a box; `run` does so too",
		Example: "  sandglass box create work --policy " + core.DefaultPolicy,
		Args:    needArgs("the name of the box", 1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			name := args[0]
			if err := core.CheckBoxName(name); err != nil {
				return err
			}
			h, err := OpenHome()
			if err != nil {
				return err
			}
			_, ref, err := h.FindPolicy(policy)
			if err != nil {
				return err
			}
			b, made, err := h.CreateBox(name, ref, time.Now())
			if err != nil {
				return err
			}
			if !made {
				return core.Hint(fmt.Errorf("create box %s: there is one of this name, with policy %s", name, b.Policy), "`sandglass box rm "+name+"` removes it")
			}
			return noteBox(h, events.BoxCreate, b)
		},
	}
	c.Flags().StringVarP(&policy, "policy", "p", core.DefaultPolicy, "the policy of the box")
	if err := c.RegisterFlagCompletionFunc("policy", completePolicies); err != nil {
		panic(err) // a flag that was not defined above
	}
	return c
}

func newBoxRemove(p *printer) *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME...",
		Short:             "Remove boxes with everything in them; their operations stay on record",
		Args:              needArgs("the name of the box", 1, 0),
		ValidArgsFunction: completeBoxes,
		RunE: func(_ *cobra.Command, args []string) error {
			for _, name := range args {
				if err := core.CheckBoxName(name); err != nil {
					return err
				}
			}
			h, err := OpenHome()
			if err != nil {
				return err
			}
			var failed error
			for _, name := range args {
				b, err := h.Box(name)
				if err != nil { // damaged, or what is left of a removal that was cut short
					b = core.Box{Name: name}
				}
				if err = h.RemoveBox(name, removeLayers); err == nil {
					err = noteBox(h, events.BoxRemove, b)
				}
				if err == nil {
					continue
				}
				if failed != nil {
					p.Error(failed)
				}
				failed = err
			}
			return failed
		},
	}
}

// boxInfo is a box as `box ls --json` and `box show --json` give it.
type boxInfo struct {
	core.Box
	Bytes    int64        `json:"bytes"` // of its upper layers, on disk
	Files    int          `json:"files"`
	Versions int64        `json:"versions,omitempty"`  // bytes of old contents that are kept: of box show
	Kept     int64        `json:"snapshots,omitempty"` // bytes that snapshots have for themselves
	Running  []sessionRef `json:"running"`
	Sessions int          `json:"sessions"`
	LastUse  time.Time    `json:"last_use,omitzero"`
	Counts   core.Counts  `json:"counts"` // of its operations

	Flows *core.FlowTotals `json:"flows,omitempty"` // of box show
	outsideInfo
}

type sessionRef struct {
	ID         core.SessionID `json:"id"`
	Supervisor int            `json:"supervisor"` // PID
}

// boxInfo gathers what the box's folder tells.
func (h Home) boxInfo(name string) (*boxInfo, error) {
	b, err := h.Box(name)
	if err != nil {
		return nil, err
	}
	i := &boxInfo{Box: b, Running: []sessionRef{}}
	if i.Bytes, i.Files, err = layers.Dir(h.box(name)).Size(); err != nil && !errors.Is(err, fs.ErrPermission) { // of closed folders
		i.Damage = []string{err.Error()} // a damaged box can be shown
	}
	refs, err := layers.Dir(h.box(name)).Running()
	if err != nil {
		return nil, fmt.Errorf("box %s: %w", name, err)
	}
	for _, r := range refs {
		i.Running = append(i.Running, sessionRef{r.ID, r.Supervisor})
	}
	return i, nil
}

// know adds what the projections know of the box.
func (i *boxInfo) know(v *core.BoxView) {
	i.Sessions, i.LastUse, i.Counts = v.Sessions, v.LastUse, v.Counts
}

func newBoxList(p *printer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "ls [--json]",
		Short: "List the boxes",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			names, err := h.BoxNames()
			if err != nil {
				return err
			}
			if len(names) == 0 {
				if p.errTTY && !asJSON {
					p.Note("no boxes; `sandglass run COMMAND` makes one")
				}
				return nil
			}
			r, err := h.openReader(ctx, p)
			if err != nil {
				return err
			}
			defer r.Close()
			views, err := r.Boxes(ctx)
			if err != nil {
				return err
			}
			known := map[string]*core.BoxView{}
			for i := range views {
				known[views[i].Name] = &views[i]
			}
			var rows [][]string
			for _, name := range names {
				i, err := h.boxInfo(name)
				if errors.Is(err, core.ErrNotFound) { // removed meanwhile
					continue
				}
				if err != nil { // the others are fine
					p.Error(err)
					continue
				}
				if v := known[name]; v != nil {
					i.know(v)
				}
				if asJSON {
					if err := p.JSON(i); err != nil {
						return err
					}
					continue
				}
				rows = append(rows, i.row(time.Now()))
			}
			if !asJSON {
				p.Table([]string{"BOX", "POLICY", ">SIZE", ">FILES", ">SESSIONS", ">RUNNING", ">REDIRECTED", ">BLOCKED", ">LEAKS", "LAST USE"}, rows)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one line of JSON for each")
	return c
}

func (i *boxInfo) row(now time.Time) []string {
	last := "never"
	if !i.LastUse.IsZero() {
		last = ago(i.LastUse, now)
	}
	n := func(v uint64) string { return strconv.FormatUint(v, 10) }
	return []string{i.Name, i.Policy, bytesText(i.Bytes), strconv.Itoa(i.Files), strconv.Itoa(i.Sessions), strconv.Itoa(len(i.Running)),
		n(i.Counts.Redirected), n(i.Counts.Blocked), n(i.Counts.Leaks), last}
}

func newBoxShow(p *printer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:               "show NAME [--json]",
		Short:             "Show a box: policy, size, what it did, its sessions",
		Args:              needArgs("the name of the box", 1, 1),
		ValidArgsFunction: completeBoxes,
		RunE: func(c *cobra.Command, args []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			i, err := h.boxInfo(args[0])
			if err != nil {
				return err
			}
			if err := i.inspect(c, h); err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			r, err := h.openReader(ctx, p)
			if err != nil {
				return err
			}
			defer r.Close()
			v, err := r.Box(ctx, i.Name)
			if err != nil && !errors.Is(err, core.ErrNotFound) {
				return err
			}
			i.know(&v)
			if i.Versions, i.Kept, err = layers.Dir(h.box(i.Name)).Held(); err != nil {
				return fmt.Errorf("box %s: %w", i.Name, err)
			}
			flows, err := r.FlowTotals(ctx, i.Name, "")
			if err != nil {
				return err
			}
			i.Flows = &flows
			if asJSON {
				return p.JSON(i)
			}
			ss, err := r.Sessions(ctx, store.SessionFilter{Box: i.Name, Limit: 10})
			if err != nil {
				return err
			}
			i.print(p, h, ss)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one line of JSON")
	return c
}

func (i *boxInfo) print(p *printer, h Home, ss []core.SessionView) {
	p.Line("box         %s", i.Name)
	p.Line("policy      %s", i.Policy)
	p.Line("created     %s", i.Created.Local().Format("2006-01-02 15:04:05"))
	p.Line("size        %s in %s", bytesText(i.Bytes), plural(i.Files, "file"))
	if i.Versions+i.Kept > 0 {
		p.Line("kept        %s of old versions, %s of snapshots", bytesText(i.Versions), bytesText(i.Kept))
	}
	p.Line("folder      %s", h.box(i.Name))
	p.Line("operations  %d allowed, %d redirected, %d blocked, %d of them leaks", i.Counts.Allowed, i.Counts.Redirected, i.Counts.Blocked, i.Counts.Leaks)
	if f := i.Flows; f.Flows > 0 {
		p.Line("network     %s, %d open; %s sent, %s received: `sandglass flows %s`", plural(int(f.Flows), "flow"), f.Open, bytesText(int64(f.Sent)), bytesText(int64(f.Received)), i.Name)
	}
	i.outsideInfo.print(p, i.Name)
	for _, r := range i.Running {
		p.Line("running     session %s, supervisor %d", string(r.ID), r.Supervisor)
	}
	if len(ss) == 0 {
		p.Line("sessions    none")
		return
	}
	p.Line("")
	rows := make([][]string, 0, len(ss))
	for k := range ss {
		rows = append(rows, sessionRow(&ss[k], time.Now()))
	}
	p.Table(sessionHead, rows)
	if i.Sessions > len(ss) {
		p.Line("and %d more: `sandglass sessions --box %s`", i.Sessions-len(ss), i.Name)
	}
}

// ago writes how long ago something was, or when, for people.
func ago(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case d < time.Minute:
		return "now"
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + " min ago"
	case d < 24*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + " h ago"
	}
	return t.Local().Format("2006-01-02 15:04")
}

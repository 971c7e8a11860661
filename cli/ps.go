package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver"
)

// boxProcess is a process as `ps --json` gives it.
type boxProcess struct {
	Box string `json:"box"`
	driver.Process
}

func newPS(p *printer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "ps [BOX...] [--json]",
		Short: "List the processes of running boxes",
		Long: `List the processes that run in boxes: of those that are named, or of all. Numbers are
those in the box. A command is what its process says of itself.`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: completeBoxes,
		RunE: func(_ *cobra.Command, names []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			if len(names) == 0 {
				if names, err = h.BoxNames(); err != nil {
					return err
				}
			} else if err := h.checkBoxes(names); err != nil {
				return err
			}
			var rows [][]string
			for _, name := range names {
				ps, err := driver.Processes(h.box(name))
				if err != nil {
					return fmt.Errorf("box %s: %w", name, err)
				}
				for _, x := range ps {
					if asJSON {
						if err := p.JSON(boxProcess{name, x}); err != nil {
							return err
						}
						continue
					}
					rows = append(rows, []string{name, strconv.Itoa(x.PID), strconv.Itoa(x.Parent), x.State, bytesText(x.Memory),
						clock(x.CPU), clock(x.Seconds), escape(core.Shorten(x.Command, maxCommand))})
				}
			}
			if asJSON {
				return nil
			}
			if len(rows) == 0 {
				if p.errTTY {
					p.Note("nothing runs")
				}
				return nil
			}
			p.Table([]string{"BOX", ">PID", ">PPID", "STATE", ">MEMORY", ">CPU", ">AGE", "COMMAND"}, rows)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one line of JSON for each")
	return c
}

// clock shows seconds as a person reads them.
func clock(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// checkBoxes says which of the names is of no box.
func (h Home) checkBoxes(names []string) error {
	for _, n := range names {
		if err := core.CheckBoxName(n); err != nil {
			return err
		}
		if _, err := h.Box(n); err != nil {
			return err
		}
	}
	return nil
}

// order has every session of the boxes carry something out. A box in which nothing runs is
// an error: who freezes a box wants it to stand still.
func (h Home) order(names []string, verb string, orders ...driver.Order) error {
	if err := h.checkBoxes(names); err != nil {
		return err
	}
	var failed error
	for _, name := range names {
		for _, o := range orders {
			n, err := driver.Ask(h.box(name), o)
			if err == nil && n == 0 {
				err = errNothingRuns
			}
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s box %s: %w", verb, name, err))
				break
			}
		}
	}
	return failed
}

func newOrder(verb, short, long string) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " BOX...",
		Short:             short,
		Long:              long,
		Args:              needArgs("the name of the box", 1, 0),
		ValidArgsFunction: completeBoxes,
		RunE: func(_ *cobra.Command, names []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			return h.order(names, verb, driver.Order{Do: verb})
		},
	}
}

func newFreeze() *cobra.Command {
	return newOrder("freeze", "Stop all processes of boxes in their tracks", `Stop every process that runs in the boxes in its tracks, until thaw. What they have open
stays open; nothing is lost.`)
}

func newThaw() *cobra.Command {
	return newOrder("thaw", "Let frozen boxes go on", `Let the processes of frozen boxes go on. Those that were stopped before stay so.`)
}

func newKill() *cobra.Command {
	return newOrder("kill", "End all sessions of boxes at once", `End every session that runs in the boxes at once, with SIGKILL. Their files stay, the log
too. The exit code of such a run is 137.`)
}

func newBoxSet() *cobra.Command {
	var connect, revoke, rules, unrules []string
	c := &cobra.Command{
		Use:   "set NAME [SURFACE=allow|redirect|block...] [--rule RULE] [--unrule RULE] [--connect PATH] [--revoke PATH]",
		Short: "Change what the sessions that run in a box may do",
		Long: `Change what the sessions that run in a box now may do, from their next operation on. What
they have got already they keep - an open device, a connection - until freeze or kill.
The box's policy stays as it is: the next run begins with that.

Rules of the network come before those that there are, in the order in which they are given:
the first that matches decides. Flows that are open go on until cut.`,
		Example: `  sandglass box set work --rule 'allow *.debian.org:443' --rule 'block *'
  sandglass box set work --unrule 'block *'
  sandglass box set work device.camera=block   take the camera back
  sandglass box set work --connect /run/postgresql/.s.PGSQL.5432`,
		Args: needArgs("the name of the box", 1, 0),
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return completeBoxes(c, args, prefix)
			}
			return completeSurfaces(c, args, prefix)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			// All is checked before anything is changed.
			trial, err := core.BuiltinPolicy("")
			if err != nil {
				return err
			}
			var orders []driver.Order
			for _, kv := range args[1:] {
				surface, verdict, ok := strings.Cut(kv, "=")
				if !ok {
					return core.Hint(fmt.Errorf("box set: %q: no =", core.Shorten(kv, 80)), "as in device.camera=block")
				}
				if err := trial.Set(surface, verdict); err != nil {
					return fmt.Errorf("box set: %w", err)
				}
				orders = append(orders, driver.Order{Do: "set", Surface: surface, Verdict: verdict})
			}
			for _, s := range connect {
				if err := trial.Grant(s); err != nil {
					return fmt.Errorf("box set: %w", err)
				}
				orders = append(orders, driver.Order{Do: "grant", Socket: s})
			}
			for _, s := range revoke {
				orders = append(orders, driver.Order{Do: "revoke", Socket: s})
			}
			for _, s := range unrules {
				if _, err := core.ParseFlowRule(s); err != nil {
					return fmt.Errorf("box set: %w", err)
				}
				orders = append(orders, driver.Order{Do: "unrule", Rule: s})
			}
			for _, s := range slices.Backward(rules) { // each goes before those there are
				if err := trial.Network.AddRule(s, true); err != nil {
					return fmt.Errorf("box set: %w", err)
				}
				orders = append(orders, driver.Order{Do: "rule", Rule: s})
			}
			if len(orders) == 0 {
				return core.Hint(errors.New("box set: nothing to set"), "as in `sandglass box set "+core.Shorten(args[0], 80)+" device.camera=block`")
			}
			return h.order(args[:1], "set", orders...)
		},
	}
	c.Flags().StringArrayVar(&rules, "rule", nil, "RULE of the network, as in 'block 203.0.113.0/24' or 'allow *.debian.org:443'; may be repeated")
	c.Flags().StringArrayVar(&unrules, "unrule", nil, "RULE: take back a rule that is written like that; may be repeated")
	c.Flags().StringArrayVar(&connect, "connect", nil, "PATH: a Unix socket outside that it may connect to, @NAME for an abstract one; may be repeated")
	c.Flags().StringArrayVar(&revoke, "revoke", nil, "PATH: take such a grant back; may be repeated")
	return c
}

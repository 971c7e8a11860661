package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// errBoxFile is a box.json that cannot be read: the box is opened read-only.
var errBoxFile = errors.New("box.json is damaged")

func newBoxRepair(p *printer) *cobra.Command {
	return &cobra.Command{
		Use:   "repair NAME",
		Short: "Repair a box whose folder was damaged from outside",
		Long: `Repair a box whose folder was damaged from outside: folders are closed to others and made
anew where they are missing, records are made anew from what is there, device nodes and
attributes that nobody in the box can have made are removed. What is lost stays lost.
A line is printed for each thing that is done.`,
		Args:              needArgs("the name of the box", 1, 1),
		ValidArgsFunction: completeBoxes,
		RunE: func(c *cobra.Command, args []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			name := args[0]
			did := 0
			say := func(what string) { did++; p.Line("%s", what) }
			b, err := h.Box(name)
			if errors.Is(err, errBoxFile) {
				err = h.repairBoxFile(name, say)
			}
			if err != nil {
				return err
			}
			left, err := layers.Dir(h.box(name)).Repair(ctx, say)
			if err != nil {
				return fmt.Errorf("repair box %s: %w", name, err)
			}
			if len(left) > 0 {
				return core.Hint(fmt.Errorf("repair box %s: %w", name, &layers.DamageError{Found: left}), "`sandglass box rm "+name+"` removes the box with everything in it")
			}
			if did == 0 {
				p.Note("box %s is not damaged", b.Name)
			}
			return nil
		},
	}
}

// repairBoxFile makes a box's metadata anew. Which policy the box had is lost.
func (h Home) repairBoxFile(name string, did func(string)) error {
	path := h.path("boxes", name, "box.json")
	b := core.Box{Name: name, Policy: core.DefaultPolicy, Created: time.Now().UTC()}
	if fi, err := os.Lstat(h.box(name)); err == nil {
		b.Created = fi.ModTime().UTC()
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("repair box %s: %w", name, err)
	}
	if err := h.writeBox(b); err != nil {
		return fmt.Errorf("repair box %s: %w", name, err)
	}
	did("made box.json anew, with policy " + b.Policy)
	return nil
}

// outsideInfo is what `box show` tells of a box's folder.
type outsideInfo struct {
	Damage  []string       `json:"damage,omitempty"`
	Outside map[string]int `json:"outside,omitempty"` // changes from outside since its last session, by kind
}

// inspect looks at a box's folder: what is damaged, and what was done from outside since
// its last session. The next session says that in the log.
func (i *boxInfo) inspect(c *cobra.Command, h Home) error {
	ctx, stop := untilSignal(c.Context())
	defer stop()
	found, _, err := layers.Dir(h.box(i.Name)).Inspect(ctx, func(o layers.OutsideChange) error {
		if i.Outside == nil {
			i.Outside = map[string]int{}
		}
		i.Outside[o.What]++
		return nil
	})
	i.Damage = found
	if err != nil {
		return fmt.Errorf("box %s: %w", i.Name, err)
	}
	return nil
}

func (i *outsideInfo) print(p *printer, name string) {
	for _, d := range i.Damage {
		p.Line("damaged     %s", d)
	}
	if len(i.Damage) > 0 {
		p.Line("            `sandglass box repair %s` repairs what can be", name)
	}
	for _, k := range []string{"added", "modified", "deleted", "metadata", "read"} {
		if n := i.Outside[k]; n > 0 {
			p.Line("outside     %s %s since the box last ran: its next session has them in the log", plural(n, "file"), k)
		}
	}
}

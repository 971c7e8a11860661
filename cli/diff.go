package cli

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/settings"
	"github.com/sandglass/sandglass/driver/layers"
)

func newDiff(p *printer) *cobra.Command {
	var d diff
	c := &cobra.Command{
		Use:   "diff BOX [PATH...] [--json] [--patch] [--stat] [--at SEQ|TIME]",
		Short: "Show what a box changed against the real system",
		Long: `Show each path at which a box differs from the real system as it is now: added (A),
modified (M, with what of it) or deleted (D). Times alone are no change. A word after the
path says when a file there would run, or be trusted, later and outside of the box.`,
		Example: `  sandglass diff work
  sandglass diff work ~/project --patch | less
  sandglass diff work --at 1234 --patch    as it was right after operation 1234
  sandglass diff work --json | jq -r 'select(.runs) | .path'`,
		Args:              needArgs("the name of the box", 1, 0),
		ValidArgsFunction: completeBoxThenFiles,
		RunE: func(c *cobra.Command, args []string) error {
			if d.asJSON && d.patch || d.asJSON && d.stat || d.patch && d.stat {
				return usage(c.CommandPath(), errors.New("--json, --patch and --stat exclude one another"))
			}
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
			ctx, stop := untilSignal(c.Context())
			defer stop()
			d.p, d.dir, d.slow = p, layers.Dir(h.box(b.Name)), newSlow(p)
			defer d.slow.done()
			if found := d.dir.Damage(); len(found) > 0 {
				p.Note("%v; `sandglass box repair %s` repairs what can be", &layers.DamageError{Found: found}, b.Name)
			} else if err := d.dir.Settle(); err != nil {
				return boxError(b, err)
			}
			changes := d.dir.ChangesIn
			if d.then.at != "" {
				at, err := d.then.time(ctx, h, p, b.Name)
				if err != nil {
					return err
				}
				if d.past, err = d.dir.Past(ctx, at); err != nil {
					return boxError(b, err)
				}
				changes = d.past.ChangesIn
			}
			if err := changes(ctx, paths, d.change); err != nil {
				return fmt.Errorf("box %s: %w", b.Name, err)
			}
			if d.stat {
				d.slow.done()
				p.Line("%d added, %d modified, %d deleted", d.counts.Added, d.counts.Modified, d.counts.Deleted)
			}
			return nil
		},
	}
	d.then.flags(c)
	c.Flags().BoolVar(&d.asJSON, "json", false, "one line of JSON for each")
	c.Flags().BoolVar(&d.patch, "patch", false, "what changed in each file")
	c.Flags().BoolVar(&d.stat, "stat", false, "only how many")
	return c
}

// absolute makes paths absolute, with the links on the way to the last name resolved: what a
// box changed is known by such. What is not there outside is as it is named.
func absolute(args []string) (out []string, err error) {
	for _, a := range args {
		if a == "" {
			return nil, errors.New("an empty path names nothing")
		}
		p, err := filepath.Abs(a)
		if err != nil {
			return nil, err
		}
		if dir, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil {
			p = filepath.Join(dir, filepath.Base(p))
		}
		out = append(out, p)
	}
	return out, nil
}

// slow shows how far something is that takes more than a second, on a terminal.
type slow struct {
	p     *printer
	next  time.Time
	shown bool
}

func newSlow(p *printer) *slow { return &slow{p: p, next: time.Now().Add(time.Second)} }

func (s *slow) progress(format string, n int) {
	if n%64 != 0 || time.Now().Before(s.next) {
		return
	}
	s.p.Progress(format, n)
	s.next, s.shown = time.Now().Add(200*time.Millisecond), true
}

func (s *slow) done() {
	if s.shown {
		s.p.Done()
		s.shown = false
	}
}

// diff prints changes as they are found.
type diff struct {
	asJSON, patch, stat bool

	then then
	past *layers.Past // nil: the box is meant as it is now

	p      *printer
	dir    layers.Dir
	slow   *slow
	counts core.ChangeCounts
}

// changeJSON is a change as `diff --json` gives it.
type changeJSON struct {
	Path    string          `json:"path"`
	PathB64 string          `json:"path_b64,omitempty"` // the bytes, when path is not UTF-8
	Kind    string          `json:"kind"`               // "A", "M" or "D"
	Type    core.FileType   `json:"type,omitempty"`     // of the box's version, of the real one when it was deleted
	Parts   []string        `json:"parts,omitempty"`
	Was     *core.FileState `json:"was,omitempty"`
	Is      *core.FileState `json:"is,omitempty"`
	Runs    string          `json:"runs,omitempty"` // see core.Persists
	Unread  string          `json:"unread,omitempty"`
	// Settings are those that differ, of a file of them ([settings.Named]).
	Settings []settings.Change `json:"settings,omitempty"`
}

func jsonOfChange(c *core.Change) changeJSON {
	j := changeJSON{Path: c.Path, Kind: c.Kind.String(), Parts: c.Parts, Was: c.Was, Is: c.Is, Runs: core.Persists(c.Path), Unread: c.Unread}
	if !utf8.ValidString(c.Path) {
		j.PathB64 = base64.StdEncoding.EncodeToString([]byte(c.Path))
	}
	for _, s := range []*core.FileState{c.Was, c.Is} {
		if s != nil {
			j.Type = s.Type
		}
	}
	return j
}

func (d *diff) change(c *core.Change) error {
	d.counts.Add(c.Kind)
	switch {
	case d.stat:
		d.slow.progress("%d changes", d.counts.Total())
		return nil
	case d.asJSON:
		j := jsonOfChange(c)
		if settings.Named(c.Path) {
			j.Settings, _, _, _ = d.dir.Settings(c) // what cannot be read is bytes, as any other
		}
		if err := d.p.JSON(j); err != nil {
			return err
		}
	case d.patch:
		d.p.Line("%s", d.line(c))
		if err := d.patchOf(c); err != nil {
			d.p.Line("# %s", err)
		}
	default:
		d.p.Line("%s", d.line(c))
	}
	if d.p.failed != nil { // nobody reads on
		return d.p.failed
	}
	return nil
}

// line is a change in a line: the letter, the path, in what it differs, what would run it.
func (d *diff) line(c *core.Change) painted {
	kind, colour := c.Kind.String(), map[core.ChangeKind]string{core.Added: "32", core.Modified: "33", core.Deleted: "31"}[c.Kind]
	if d.patch {
		kind = "# " + kind // a comment to patch(1)
	}
	s := escape(c.Path)
	if c.Is != nil && c.Is.Type == core.TypeDir || c.Is == nil && c.Was != nil && c.Was.Type == core.TypeDir {
		s = strings.TrimSuffix(s, "/") + "/"
	}
	if d.p.colour {
		kind = "\x1b[" + colour + "m" + kind + "\x1b[0m"
	}
	if len(c.Parts) > 0 && (len(c.Parts) > 1 || c.Parts[0] != "content") {
		s += "  " + strings.Join(c.Parts, ", ")
	}
	if what := core.Persists(c.Path); what != "" {
		what = "[" + what + "]"
		if d.p.colour {
			what = "\x1b[35;1m" + what + "\x1b[0m"
		}
		s += "  " + what
	}
	if settings.Named(c.Path) {
		if cs, kind, ok, err := d.dir.Settings(c); ok && err == nil {
			s += fmt.Sprintf("  %s settings: %d changed", kind, len(cs))
		}
	}
	if c.Unread != "" {
		s += "  (not read: " + clean(c.Unread) + ")"
	}
	return painted(kind + " " + s)
}

// patchOf prints what changed in a file or a link; of what is neither the line has said all.
func (d *diff) patchOf(c *core.Change) error {
	var out bytes.Buffer // bounded by PatchOptions
	if is, was := c.Is, c.Was; is != nil && is.Type == core.TypeSymlink || is == nil && was.Type == core.TypeSymlink {
		return d.links(c)
	}
	if cs, _, ok, err := d.settingsOf(c); err != nil {
		return err
	} else if ok {
		d.settings(cs)
		return nil
	}
	old, oldSize, err := d.version(c, c.Was, false)
	if err != nil {
		return err
	}
	defer closeReader(old)
	now, nowSize, err := d.version(c, c.Is, true)
	if err != nil {
		return err
	}
	defer closeReader(now)
	if old == nil && now == nil {
		return nil
	}
	if err := layers.Patch(&out, c.Path, old, now, layers.PatchOptions{OldSize: oldSize, NewSize: nowSize}); err != nil {
		return err
	}
	d.p.patch(out.Bytes())
	return nil
}

// settingsOf is what a change of a database of settings says, of the box as it is now.
func (d *diff) settingsOf(c *core.Change) ([]settings.Change, string, bool, error) {
	if d.past != nil {
		return nil, "", false, nil
	}
	return d.dir.Settings(c)
}

// mostSettings bounds those that are shown of one file.
const mostSettings = 10000

// settings prints which settings differ, each on a line that is a comment to patch(1).
func (d *diff) settings(cs []settings.Change) {
	for i, c := range cs {
		if i == mostSettings {
			d.p.Line("# ... and %d more", len(cs)-i)
			return
		}
		d.p.Line("# %s", core.Shorten(c.String(), 4096))
	}
}

func (d *diff) links(c *core.Change) error {
	for _, v := range []struct {
		sign string
		is   *core.FileState
	}{{"-", c.Was}, {"+", c.Is}} {
		if v.is != nil && v.is.Type == core.TypeSymlink {
			d.p.Line("# %s -> %s", v.sign, escape(v.is.Link))
		}
	}
	return nil
}

// version opens one version of a changed file; nil where that is no regular file.
func (d *diff) version(c *core.Change, s *core.FileState, own bool) (io.Reader, int64, error) {
	if s == nil || s.Type != core.TypeFile {
		return nil, 0, nil
	}
	if own && d.past != nil {
		r, _, err := d.past.Open(c.Path)
		if err != nil {
			return nil, 0, err
		}
		return r, s.Size, nil
	}
	f, _, err := d.dir.Open(c.Path, own)
	if errors.Is(err, fs.ErrNotExist) { // gone since
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return f, s.Size, nil
}

func closeReader(r io.Reader) {
	if f, ok := r.(io.Closer); ok {
		f.Close()
	}
}

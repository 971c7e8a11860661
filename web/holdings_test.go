package web

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sandglass/sandglass/core"
)

// holdings are the files of a box and of a real system that exist in memory: what the
// pages are tested against. Package cli tests the pages of real boxes.
type holdings struct {
	mu        sync.Mutex
	real, box map[string]*held  // a nil one of the box is deleted
	before    map[string]string // content of the box's files before atLimit
	atLimit   time.Time
	running   int
	orders    []string
	conflicts []FileConflict
	snapshots []core.Snapshot
	err       error
	partly    bool // the census does not come to an end
}

type held struct {
	core.FileState
	data   string
	xattrs map[string][]byte
}

func file(data string, mode uint32) *held {
	return &held{core.FileState{Type: core.TypeFile, Mode: mode, UID: 1000, GID: 1000, Size: int64(len(data)), MTime: time.Unix(1764000000, 123456789), Links: 1}, data, nil}
}

func dirOf() *held {
	return &held{core.FileState{Type: core.TypeDir, Mode: 0o755, UID: 1000, GID: 1000, MTime: time.Unix(1764000000, 0), Links: 2}, "", nil}
}

func linkTo(to string) *held {
	return &held{core.FileState{Type: core.TypeSymlink, Mode: 0o777, UID: 1000, GID: 1000, Link: to, MTime: time.Unix(1764000000, 0), Links: 1}, "", nil}
}

// picture1 is an image with a disc of a colour.
func picture1(w, h int, c color.Color) string {
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			if dx, dy := x-w/2, y-h/2; dx*dx+dy*dy < h*h/5 {
				m.Set(x, y, c)
			}
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		panic(err)
	}
	return b.String()
}

// installed is what demo's box holds.
func installed() *holdings {
	h := &holdings{real: map[string]*held{}, box: map[string]*held{}, before: map[string]string{}}
	h.snapshots = []core.Snapshot{{Name: "before-npm", Time: time.Unix(1764000000, 0), Files: 3, Bytes: 81920, Shared: 4096},
		{Name: "a-name-that-is-as-long-as-a-name-of-a-snapshot-may-be.0123456789", Time: time.Unix(1764003600, 0), Files: 73, Bytes: 1 << 30, Live: true, Missing: 2}}
	h.real["/home/ann/.bashrc"] = file("# ~/.bashrc\nexport EDITOR=vim\nalias ll='ls -l'\n\nPS1='$ '\n", 0o644)
	h.box["/home/ann/.bashrc"] = file("# ~/.bashrc\nexport EDITOR=vim\nalias ll='ls -l'\nalias sudo='~/.cache/.s '\t \n\nPS1='$ '\n# \x1b[2Knothing \u202eereh ot ees\n", 0o644)
	h.before["/home/ann/.bashrc"] = h.real["/home/ann/.bashrc"].data
	h.real["/home/ann/project/package.json"] = file("{\n  \"name\": \"project\",\n  \"version\": \"1.0.0\"\n}\n", 0o644)
	h.box["/home/ann/project/package.json"] = file("{\n  \"name\": \"project\",\n  \"version\": \"1.0.0\",\n  \"dependencies\": {\n    \"left-pad\": \"1.3.0\"\n  }\n}\n", 0o644)
	h.real["/home/ann/project/old.log"] = file(strings.Repeat("line\n", 900), 0o644)
	h.box["/home/ann/project/old.log"] = nil
	h.real["/home/ann/project/logo.png"] = file(picture1(320, 200, color.RGBA{224, 180, 100, 255}), 0o644)
	h.box["/home/ann/project/logo.png"] = file(picture1(320, 200, color.RGBA{70, 120, 200, 255}), 0o644)
	h.box["/home/ann/project/run.sh"] = file("#!/bin/sh\necho run\n", 0o755)
	h.real["/home/ann/project/deploy.sh"] = file("#!/bin/sh\n", 0o644)
	h.box["/home/ann/project/deploy.sh"] = file("#!/bin/sh\n", 0o4755)
	h.real["/home/ann/project/deploy.sh"].xattrs = map[string][]byte{"user.note": []byte("a\x00b")}
	h.real["/home/ann/project/current"] = linkTo("releases/1")
	h.box["/home/ann/project/current"] = linkTo("/etc/shadow")
	h.box["/home/ann/project/node_modules"] = dirOf()
	h.box["/home/ann/project/node_modules/left-pad"] = dirOf()
	for i := range 60 {
		h.box[fmt.Sprintf("/home/ann/project/node_modules/left-pad/part-%03d.js", i)] = file("module.exports = "+fmt.Sprint(i)+"\n", 0o644)
	}
	h.box["/home/ann/.config"] = dirOf()
	h.box["/home/ann/.config/autostart"] = dirOf()
	h.box["/home/ann/.config/autostart/helper.desktop"] = file("[Desktop Entry]\nExec=/tmp/x\n", 0o644)
	const reg = "WINE REGISTRY Version 2\n;; All keys relative to \\\\User\\\\S-1-5-21-0-0-0-1000\n\n[Software\\\\Wine] 1700000000\n\"Version\"=\"%s\"\n"
	h.real["/home/ann/.wine/user.reg"] = file(fmt.Sprintf(reg, "win7"), 0o644)
	h.box["/home/ann/.wine/user.reg"] = file(fmt.Sprintf(reg, "<win10>"), 0o644)
	var raw bytes.Buffer
	for i := range uint32(4000) {
		_ = binary.Write(&raw, binary.LittleEndian, i*i)
	}
	h.real["/usr/local/bin/tool"] = file("\x7fELF\x02\x01\x01\x00"+raw.String(), 0o755)
	patched := []byte(h.real["/usr/local/bin/tool"].data)
	copy(patched[5321:], "\x90\x90\x90\x90owned")
	h.box["/usr/local/bin/tool"] = file(string(patched)+"tail", 0o755)
	return h
}

func (h *holdings) lock() (func(), error) { h.mu.Lock(); return h.mu.Unlock, h.err }

func (h *holdings) change(p string, at time.Time) *core.Change {
	is, there := h.box[p]
	if !there {
		return nil
	}
	if b, ok := h.before[p]; ok && !at.IsZero() && at.Before(h.atLimit) {
		is = file(b, is.Mode)
	}
	was := h.real[p]
	c := &core.Change{Path: p, Kind: core.Modified}
	if was != nil {
		c.Was = &was.FileState
	}
	if is != nil {
		c.Is = &is.FileState
	}
	switch {
	case was == nil && is == nil:
		return nil
	case was == nil:
		c.Kind = core.Added
	case is == nil:
		c.Kind = core.Deleted
	default:
		if was.data != is.data {
			c.Parts = append(c.Parts, "content")
		}
		if was.Link != is.Link {
			c.Parts = append(c.Parts, "link")
		}
		if was.Mode != is.Mode {
			c.Parts = append(c.Parts, "mode")
		}
		if !maps.EqualFunc(was.xattrs, is.xattrs, bytes.Equal) {
			c.Parts = append(c.Parts, "xattrs")
		}
		if c.Parts == nil {
			return nil
		}
	}
	return c
}

func (h *holdings) changes(at time.Time) (cs []core.Change) {
	for _, p := range slices.Sorted(maps.Keys(h.box)) {
		if c := h.change(p, at); c != nil {
			cs = append(cs, *c)
		}
	}
	return cs
}

func (h *holdings) Running() (int, error) {
	unlock, err := h.lock()
	defer unlock()
	return h.running, err
}

func (h *holdings) Census(context.Context) (c Census, err error) {
	unlock, err := h.lock()
	defer unlock()
	for _, x := range h.changes(time.Time{}) {
		c.Add(x.Kind)
	}
	c.Whole = !h.partly
	return c, err
}

func (h *holdings) Level(_ context.Context, dir, after string, limit int, at time.Time) (l core.ChangeLevel, err error) {
	unlock, err := h.lock()
	defer unlock()
	inside := map[string]bool{}
	for p := range h.box {
		if rest, ok := strings.CutPrefix(p, strings.TrimSuffix(dir, "/")+"/"); ok {
			name, _, deep := strings.Cut(rest, "/")
			inside[name] = inside[name] || deep
		}
	}
	for _, name := range slices.Sorted(maps.Keys(inside)) {
		if name <= after {
			continue
		}
		if len(l.Nodes) == limit {
			l.More = true
			break
		}
		l.After = name
		if n := (core.ChangeNode{Name: name, Change: h.change(path.Join(dir, name), at), Inside: inside[name]}); n.Inside || n.Change != nil {
			l.Nodes = append(l.Nodes, n)
		}
	}
	return l, err
}

func (h *holdings) Change(_ context.Context, p string, at time.Time) (*core.Change, error) {
	unlock, err := h.lock()
	defer unlock()
	return h.change(p, at), err
}

func (h *holdings) Open(_ context.Context, p string, own bool, at time.Time) (io.ReadCloser, error) {
	unlock, err := h.lock()
	defer unlock()
	m := h.real
	if own {
		m = h.box
	}
	f := m[p]
	if f == nil || f.Type != core.TypeFile {
		return nil, errors.Join(err, fmt.Errorf("open %q: no such file", p))
	}
	data := f.data
	if b, ok := h.before[p]; ok && own && !at.IsZero() && at.Before(h.atLimit) {
		data = b
	}
	return io.NopCloser(strings.NewReader(data)), err
}

func (h *holdings) Xattrs(_ context.Context, p string, own bool) map[string][]byte {
	unlock, _ := h.lock()
	defer unlock()
	m := h.real
	if own {
		m = h.box
	}
	if f := m[p]; f != nil {
		return f.xattrs
	}
	return nil
}

// Patch writes one hunk: what both have at the beginning and at the end is context.
func (h *holdings) Patch(w io.Writer, _ string, old, new io.Reader) error {
	a, err := io.ReadAll(old)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(new)
	if err != nil {
		return err
	}
	x, y := strings.SplitAfter(string(a), "\n"), strings.SplitAfter(string(b), "\n")
	x, y = x[:len(x)-1], y[:len(y)-1]
	i, j := 0, 0
	for i < len(x) && i < len(y) && x[i] == y[i] {
		i++
	}
	for j < len(x)-i && j < len(y)-i && x[len(x)-1-j] == y[len(y)-1-j] {
		j++
	}
	var out strings.Builder
	fmt.Fprintf(&out, "--- a\n+++ b\n@@ -1,%d +1,%d @@\n", len(x), len(y))
	put := func(sign string, lines []string) {
		for _, l := range lines {
			out.WriteString(sign + l)
		}
	}
	put(" ", x[:i])
	put("-", x[i:len(x)-j])
	put("+", y[i:len(y)-j])
	put(" ", x[len(x)-j:])
	_, err = io.WriteString(w, out.String())
	return err
}

func under(p string, of []string) bool {
	return len(of) == 0 || slices.ContainsFunc(of, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") })
}

func (h *holdings) Plan(_ context.Context, do FileOrder, paths []string, limit int) (*FilePlan, error) {
	unlock, err := h.lock()
	defer unlock()
	p := &FilePlan{Whole: true}
	for _, c := range h.changes(time.Time{}) {
		if under(c.Path, paths) {
			if p.Counts.Add(c.Kind); len(p.Changes) < limit {
				p.Changes = append(p.Changes, c)
			}
		}
	}
	for _, x := range h.conflicts {
		if do == OrderCommit && under(x.Path, paths) {
			p.Conflicts = append(p.Conflicts, x)
		}
	}
	return p, err
}

func (h *holdings) Commit(_ context.Context, paths []string, force bool) (n core.ChangeCounts, err error) {
	unlock, err := h.lock()
	defer unlock()
	h.orders = append(h.orders, fmt.Sprintf("commit %q force=%v", paths, force))
	if err != nil {
		return n, err
	}
	if h.running > 0 {
		return n, errors.New("a session runs")
	}
	if i := slices.IndexFunc(h.conflicts, func(x FileConflict) bool { return under(x.Path, paths) }); i >= 0 && !force {
		return n, &ConflictError{h.conflicts[i:]}
	}
	for _, c := range h.changes(time.Time{}) {
		if under(c.Path, paths) {
			if n.Add(c.Kind); c.Is == nil {
				delete(h.real, c.Path)
			} else {
				h.real[c.Path] = h.box[c.Path]
			}
		}
	}
	return n, nil
}

func (h *holdings) Discard(_ context.Context, paths []string) (n core.ChangeCounts, err error) {
	unlock, err := h.lock()
	defer unlock()
	h.orders = append(h.orders, fmt.Sprintf("discard %q", paths))
	if err != nil {
		return n, err
	}
	for _, c := range h.changes(time.Time{}) {
		if under(c.Path, paths) {
			n.Add(c.Kind)
			delete(h.box, c.Path)
		}
	}
	return n, nil
}

func (h *holdings) Snapshots() ([]core.Snapshot, error) {
	unlock, err := h.lock()
	defer unlock()
	return slices.Clone(h.snapshots), err
}

func (h *holdings) Snapshot(_ context.Context, name string) error {
	unlock, err := h.lock()
	defer unlock()
	h.orders = append(h.orders, "snapshot "+name)
	if err := errors.Join(err, core.CheckSnapshotName(name)); err != nil {
		return err
	}
	h.snapshots = append(h.snapshots, core.Snapshot{Name: name, Time: time.Now(), Files: len(h.box), Bytes: 4096})
	return nil
}

func (h *holdings) Rollback(_ context.Context, to Moment, dry, force bool) (*FilePlan, error) {
	unlock, err := h.lock()
	defer unlock()
	h.orders = append(h.orders, fmt.Sprintf("rollback %s dry=%v force=%v", cmp.Or(to.Snapshot, to.Time.UTC().Format(time.RFC3339)), dry, force))
	p := &FilePlan{Whole: true, Conflicts: h.conflicts, Changes: h.changes(time.Time{})}
	for _, c := range p.Changes {
		p.Counts.Add(c.Kind)
	}
	if len(h.conflicts) > 0 && !dry && !force {
		return nil, &ConflictError{h.conflicts}
	}
	return p, err
}

// ordered returns what was ordered since it was asked last.
func (h *holdings) ordered() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.orders
	h.orders = nil
	return all
}

// huge is a box that holds n files, in folders of a thousand.
func huge(n int) *holdings {
	h := &holdings{real: map[string]*held{}, box: map[string]*held{}}
	for i := range n {
		d := fmt.Sprintf("/srv/data/%03d", i/1000)
		h.box[d] = cmp.Or(h.box[d], dirOf())
		h.box[fmt.Sprintf("%s/file-%06d", d, i)] = file("x", 0o644)
	}
	return h
}

var errTorn = errors.New("layers.json is torn")

package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

const (
	maxOutsideChanges = 1000        // that are told one by one
	patience          = time.Second // with looking at a box's files without saying so
	damagedRule       = "damaged box"
)

// inspect looks, before a box is made, at what was done to its files since its last session:
// what somebody outside changed or read is for the log of this one. A box that is damaged is opened
// read-only; one that cannot be mounted even so is refused.
//
// The manifest then goes when it has told something, or when the session will not see
// all that it does to the box's files: at the session's end there is another.
func (r *run) inspect(ctx context.Context) error {
	told := r.tell("looking for what was done to the box's files since its last session")
	defer told()
	var more int
	found, mountable, err := r.b.Inspect(ctx, func(c layers.OutsideChange) error {
		if len(r.was) < maxOutsideChanges {
			r.was = append(r.was, outsideChange(c))
		} else {
			more++
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at the box's files: %w", err)
	}
	if more > 0 {
		r.was = append(r.was, &core.Operation{Surface: core.OutsideWrite, Action: core.ActWrite, Target: string(r.b.Dir), Verdict: core.Allowed,
			Outcome: core.Performed, Rule: "manifest", Leak: true, Detail: core.Detail{"change": "more", "count": strconv.Itoa(more)}})
	}
	if len(found) > 0 {
		return r.openDamaged(found, mountable)
	}
	if len(r.was) > 0 || r.o.Session.Observe != core.ObserveFull {
		return r.b.ForgetManifest()
	}
	return nil
}

// outsideChanges are the actions by which changes from outside are on record.
var outsideActions = map[string]core.Action{"added": core.ActCreate, "modified": core.ActWrite, "deleted": core.ActDelete, "metadata": core.ActSetattr, "read": core.ActRead}

// outsideChange is the operation that a change from outside becomes. Nobody knows who.
func outsideChange(c layers.OutsideChange) *core.Operation {
	op := &core.Operation{Surface: core.OutsideWrite, Action: outsideActions[c.What], Target: c.Path, Verdict: core.Allowed, Outcome: core.Performed,
		Rule: "manifest", Leak: true, Detail: core.Detail{"change": c.What}}
	if c.What == "read" {
		op.Surface = core.OutsideRead
	}
	if !c.When.IsZero() {
		op.Detail["when"] = c.When.UTC().Format(time.RFC3339Nano)
	}
	return op
}

func (r *run) openDamaged(found []string, mountable bool) error {
	name := filepath.Base(string(r.b.Dir))
	repair := "`sandglass box repair " + name + "` repairs what can be; `sandglass box rm " + name + "` removes the box"
	if !mountable {
		return core.Hint(&layers.DamageError{Found: found}, repair)
	}
	r.damaged = true
	text := strings.Join(found, "\n  ")
	r.was = append(r.was, &core.Operation{Surface: core.OutsideWrite, Action: core.ActWrite, Target: string(r.b.Dir), Verdict: core.Allowed,
		Outcome: core.Performed, Rule: damagedRule, Leak: true, Detail: core.Detail{"change": "damage", "found": core.Shorten(strings.Join(found, "; "), 4096)}})
	r.notice("the box's folder was damaged from outside, so it is opened read-only:\n  " + text + "\n" + repair)
	return nil
}

func (r *run) notice(text string) {
	if r.o.Notice != nil {
		r.o.Notice(text)
	}
}

// tell says what is being waited for when it takes longer than [patience]. The caller calls
// what it returns when that is over.
func (r *run) tell(what string) (over func()) {
	t := time.AfterFunc(patience, func() { r.notice(what + " ...") })
	return func() { t.Stop() }
}

// leave ends the session's part in the box. The last of its sessions records the state of
// the box's files, unless no session has touched one.
func (r *run) leave(ctx context.Context) error {
	lock, err := r.b.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	os.Remove(r.ref.Name())
	r.ref.Close()
	refs, err := r.b.Running()
	if err != nil || len(refs) > 0 || r.damaged || r.o.Throwaway || r.b.HasManifest() {
		return err
	}
	told := r.tell("recording the state of the box's files")
	defer told()
	if err := r.b.WriteManifest(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("record the state of the box's files: %w", err)
	}
	return nil
}

// salvage makes ready the layers of a damaged box's read-only view. Nothing is written into what
// was damaged: frames, overlayfs's own folders and what stands for a layer that is lost are made in
// run/scratch. (Lower layers alone would do, but the kernel refuses two of which one is in the
// other: fs/overlayfs/super.c, ovl_check_overlapping_layers.)
func (r *run) salvage(cfg *stageConfig) error {
	scratch := r.b.At("run", "scratch")
	if err := layers.RemoveTree(scratch); err != nil {
		return err
	}
	for _, d := range []string{r.b.At("mnt"), scratch} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	r.layers = r.b.Salvage()
	sortLayers(r.layers)
	byPath := map[string]layers.Layer{}
	for _, l := range r.layers {
		byPath[l.Path] = l
	}
	for i, s := range r.steps {
		m := stageMount{planStep: s}
		if s.Kind == stepVeil || s.Kind == stepVeilFile {
			continue // masked below, as all private places
		}
		if s.Kind == stepOverlay || s.Kind == stepFrame {
			own := filepath.Join(scratch, strconv.Itoa(i))
			m.Lower, m.Upper, m.Work, m.ReadOnly = s.Path, filepath.Join(own, "upper"), filepath.Join(own, "work"), true
			if err := os.MkdirAll(m.Work, 0o700); err != nil {
				return err
			}
			if l, ok := byPath[s.Path]; ok {
				m.Upper = r.b.Upper(l)
			} else if err := makeLike(s.Path, m.Upper); err != nil {
				return err
			}
			if s.Kind == stepFrame {
				m.Lower = filepath.Join(own, "frame")
				large, err := makeFrame(m.Lower, s)
				if err != nil {
					return err
				}
				cfg.Large = append(cfg.Large, large...)
			}
		}
		m.Points = nil
		cfg.Steps = append(cfg.Steps, m)
	}
	// Nothing is planted in layers that are damaged, and nothing is granted.
	for i := range r.private.Places {
		cfg.Steps = append(cfg.Steps, stageMount{planStep: planStep{Kind: stepMask, Path: r.private.Places[i].Path, Why: privateReason}})
	}
	return nil
}

// knew says whether a process that has ended may have been of the box.
func (r *run) knew(tgid int) bool {
	if r.joined || r.o.Session.Observe != core.ObserveFull || r.s.procs.knew(tgid) {
		return true
	}
	refs, err := r.b.Running()
	return err != nil || len(refs) > 1
}

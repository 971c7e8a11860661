package layers

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

// What people do with a box is not somebody's from outside, and is not done to a damaged one.
func TestWhatTheSandboxDoesIsNotFromOutside(t *testing.T) {
	ctx := context.Background()
	for name, do := range map[string]func(p *pair) error{
		"commit":       func(p *pair) error { _, err := p.commit("new"); return err },
		"discard":      func(p *pair) error { _, err := p.box.Discard(ctx, []string{p.real + "/new"}); return err },
		"discard all":  func(p *pair) error { _, err := p.box.Discard(ctx, nil); return err },
		"discard none": func(p *pair) error { p.box.Discard(ctx, []string{p.real + "/none"}); return nil },
		"roll back":    func(p *pair) error { _, err := p.box.Rollback(ctx, "s"); return err },
		"look": func(p *pair) error {
			_, err := p.box.Return(ctx, RollbackOptions{Snapshot: "s", DryRun: true})
			return err
		},
		"snapshot": func(p *pair) error { _, err := p.box.Snapshot(ctx, "other"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.write(p.up, "own", "then", 0o600)
			p.write(p.up, "dir/gone", "then", 0o600)
			_, err := p.box.Snapshot(ctx, "s")
			p.check(err)
			p.write(p.up, "own", "now", 0o600)
			p.write(p.up, "new", "now", 0o600)
			p.check(os.Remove(p.up + "/dir/gone"))
			p.check(p.box.WriteManifest(ctx))
			p.check(do(p))
			if !p.box.HasManifest() {
				t.Error("nothing tells what is done from outside from now on")
			}
			p.check(p.box.CompareManifest(ctx, func(c OutsideChange) error {
				t.Errorf("%+v", c)
				return nil
			}))
			if name == "look" || name == "snapshot" {
				return
			}

			p.write(p.up, "new", "again", 0o600)
			p.check(os.Chmod(p.box.At("layers"), 0o755))
			defer os.Chmod(p.box.At("layers"), 0o700)
			var damage *DamageError
			if _, err := p.commit("new"); !errors.As(err, &damage) {
				t.Errorf("commit of a damaged box: %v", err)
			}
			if _, err := p.box.Discard(ctx, nil); !errors.As(err, &damage) {
				t.Errorf("discard in a damaged box: %v", err)
			}
			if _, err := p.box.Rollback(ctx, "s"); !errors.As(err, &damage) {
				t.Errorf("rollback of a damaged box: %v", err)
			}
		})
	}
}

// What was committed is real, and the history does not take it back: it begins anew. A
// snapshot can be gone back to, which is about what the box has, and about no real file.
func TestAfterACommit(t *testing.T) {
	ctx := context.Background()
	p := newPair(t)
	file := p.write(p.real, "file", "real", 0o600)
	p.later()
	ls, err := p.box.Layers()
	p.check(err)
	h, err := OpenHistory(p.box, ls, "s", core.Limits{}, "")
	p.check(err)
	h.Touch(time.Now(), file, Writes)
	p.write(p.up, "file", "first", 0o600)
	first := time.Now()
	p.later()
	if _, later := h.Touch(time.Now(), file, Writes); later != nil {
		later()
	}
	p.write(p.up, "file", "second", 0o600)
	h.Close()
	_, err = p.box.Snapshot(ctx, "s")
	p.check(err)
	if r, err := p.box.Return(ctx, RollbackOptions{Time: first, DryRun: true}); err != nil || r.Counts.Total() != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	_, err = p.commit()
	p.check(err)

	if _, err := p.box.RollbackTo(ctx, first); err == nil || !strings.Contains(err.Error(), "changes were committed") {
		t.Errorf("back to before the commit: %v", err)
	}
	if err := p.box.ChangesAt(ctx, first, func(*core.Change) error { return nil }); err == nil {
		t.Error("what the box had before the commit is shown against what is real since")
	}
	if n, err := p.box.RollbackTo(ctx, time.Now()); err != nil || n.Total() != 0 {
		t.Errorf("%+v, %v", n, err)
	}
	_, err = p.box.Rollback(ctx, "s")
	p.check(err)
	for at, want := range map[string]string{file: "second", p.up + "/file": "second"} {
		if got, err := os.ReadFile(at); string(got) != want {
			t.Errorf("%s: %q, %v", at, got, err)
		}
	}
	if got := p.changes(); len(got) > 0 {
		t.Errorf("the box has changed %q", got)
	}
}

// A record that the loss of power has cut short is no damage of what the box holds.
func TestADamagedManifestIsNoDamage(t *testing.T) {
	p := newPair(t)
	p.write(p.up, "new", "text", 0o600)
	p.check(p.box.WriteManifest(context.Background()))
	p.check(os.Truncate(p.box.At(manifestName), 40))
	if found := p.box.Damage(); len(found) > 0 {
		t.Errorf("found %q", found)
	}
	told := 0
	if _, _, err := p.box.Inspect(context.Background(), func(c OutsideChange) error {
		if told++; !strings.HasSuffix(c.Path, manifestName) {
			t.Errorf("%+v", c)
		}
		return nil
	}); err != nil || told != 1 {
		t.Errorf("told %d, %v", told, err)
	}
	_, err := p.commit()
	p.check(err)
}

package layers

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
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

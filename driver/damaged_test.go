package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// held finds where the box keeps its version of a path of the lab's folder.
func (l *lab) held(box, name string) string {
	l.t.Helper()
	b := layers.Dir(l.boxDir(box))
	ls, err := b.Layers()
	if err != nil {
		l.t.Fatal(err)
	}
	at, rel, ok := layers.Place(ls, filepath.Join(l.dir, name))
	if !ok {
		l.t.Fatalf("no layer has %s", name)
	}
	return filepath.Join(b.Upper(at), rel)
}

// fromOutside are the lines "change path" of what a session says of outside.
func (l *lab) fromOutside(ops []core.Operation) (lines []string) {
	for _, op := range append(ofSurface(ops, core.OutsideWrite), ofSurface(ops, core.OutsideRead)...) {
		if !op.Leak || op.Verdict != core.Allowed || op.Rule == "" {
			l.t.Errorf("on record %+v", op)
		}
		lines = append(lines, op.Detail["change"]+" "+strings.TrimPrefix(strings.TrimPrefix(op.Target, l.dir), "/"))
	}
	slices.Sort(lines)
	return lines
}

func TestWhatOutsideDoesToAStoppedBoxIsOnRecord(t *testing.T) {
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		do   func(l *lab)
		want []string
	}{
		{"nothing", func(*lab) {}, nil},
		{"a write", func(l *lab) { must(os.WriteFile(l.held("b", "file"), []byte("changed"), 0o644)) }, []string{"modified file"}},
		{"a write that puts size and time back", func(l *lab) {
			p := l.held("b", "file")
			fi, err := os.Stat(p)
			must(err)
			must(os.WriteFile(p, []byte("bOX\n"), 0o644))
			must(os.Chtimes(p, fi.ModTime(), fi.ModTime()))
		}, []string{"metadata file"}},
		{"a new file", func(l *lab) { must(os.WriteFile(l.held("b", "dir/new\nname"), nil, 0o644)) }, []string{"added dir/new\nname"}},
		{"a new tree", func(l *lab) { must(os.MkdirAll(l.held("b", "a/b"), 0o755)) }, []string{"added a", "added a/b"}},
		{"a deletion", func(l *lab) { must(os.Remove(l.held("b", "dir/a"))) }, []string{"deleted dir/a"}},
		{"a deleted tree", func(l *lab) { must(os.RemoveAll(l.held("b", "dir"))) }, []string{"deleted dir"}},
		{"a deletion that the box made is undone", func(l *lab) { must(os.Remove(l.held("b", "gone"))) }, []string{"deleted gone"}},
		{"a rename", func(l *lab) { must(os.Rename(l.held("b", "dir/a"), l.held("b", "dir/z"))) }, []string{"added dir/z", "deleted dir/a"}},
		{"one file in another's place", func(l *lab) {
			must(os.WriteFile(l.held("b", "x"), []byte("box\n"), 0o644))
			must(os.Rename(l.held("b", "x"), l.held("b", "file")))
		}, []string{"modified file"}},
		{"a file where a folder was", func(l *lab) {
			must(os.RemoveAll(l.held("b", "dir")))
			must(os.WriteFile(l.held("b", "dir"), nil, 0o644))
		}, []string{"modified dir"}},
		{"something that came and went", func(l *lab) {
			must(os.WriteFile(l.held("b", "dir/x"), nil, 0o644))
			must(os.Remove(l.held("b", "dir/x")))
		}, []string{"modified dir"}},
		{"a mode", func(l *lab) { must(os.Chmod(l.held("b", "file"), 0o600)) }, []string{"metadata file"}},
		{"a folder's mode", func(l *lab) { must(os.Chmod(l.held("b", "dir"), 0o700)) }, []string{"metadata dir"}},
		{"an attribute", func(l *lab) { must(unix.Lsetxattr(l.held("b", "dir"), "user.mine", []byte("x"), 0)) }, []string{"metadata dir"}},
		{"a link's text", func(l *lab) {
			must(os.Remove(l.held("b", "link")))
			must(os.Symlink("/etc/shadow", l.held("b", "link")))
		}, []string{"modified link"}},
		{"a read", func(l *lab) {
			if _, err := os.ReadFile(l.held("b", "file")); err != nil {
				t.Fatal(err)
			}
		}, []string{"read file"}},
		{"a read of what the box itself has read", func(l *lab) {
			l.sh("cat file dir/a >/dev/null; cat file >/dev/null")
			if _, err := os.ReadFile(l.held("b", "dir/a")); err != nil {
				t.Fatal(err)
			}
		}, []string{"read dir/a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.write("file", "real")
			l.write("gone", "gone")
			l.sh(`echo box > file; rm gone; mkdir dir; echo a > dir/a; echo b > dir/b; ln -s file link; mkfifo fifo; cat file`)
			c.do(l)
			var told []string
			if err := layers.Dir(l.boxDir("b")).CompareManifest(context.Background(), func(o layers.OutsideChange) error {
				told = append(told, o.What+" "+strings.TrimPrefix(o.Path, l.dir+"/"))
				if o.When.IsZero() {
					t.Errorf("%s: nobody knows when", o.Path)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			slices.Sort(told)
			if !slices.Equal(told, c.want) {
				t.Errorf("CompareManifest tells %q, want %q", told, c.want)
			}
			r := l.run(runOpts{}, "/bin/true")
			if got := l.fromOutside(r.ops); !slices.Equal(got, c.want) {
				t.Errorf("on record %q, want %q", got, c.want)
			}
			if got := l.fromOutside(l.run(runOpts{}, "/bin/true").ops); len(got) != 0 {
				t.Errorf("told again: %q", got)
			}
		})
	}
}

// Whatever a box does to its own files, at every setting of observe, by reading too.
func TestWhatABoxDoesToItsFilesIsNotFromOutside(t *testing.T) {
	l := newLab(t)
	l.write("tree/a/b", "b")
	l.write("file", "real")
	l.write("hard", "hard")
	for _, o := range []core.Observe{core.ObserveFull, core.ObserveChanges, core.ObserveLean, core.ObserveFull} {
		for i, script := range []string{
			"true",
			"echo x >> file; mkdir d; echo y > d/y; chmod 711 d; ln d/y d/z; rm d/y; mkfifo d/p; ln -s z d/s",
			"cat file d/z; ls -R . >/dev/null; test ! -e d/y",
			"cp /bin/echo d/prog; printf '#!/bin/sh\\necho ran\\n' > d/script; chmod +x d/script",
			"d/prog hello; d/script; touch -a d/z; touch -d 2001-01-01 d/z",
			"true",
			"cat d/z; cat file",
			"mv d e; rm -r tree; mkdir -p tree/a; echo n > tree/a/b; chmod 000 e",
			"chmod 700 e; rm -r e; mv hard hard2; ln hard2 hard3; rm hard2",
			"true",
		} {
			r := l.run(runOpts{observe: o}, "/bin/sh", "-c", script)
			if got := l.fromOutside(r.ops); len(got) != 0 {
				t.Errorf("observe %s, before script %d: %q", o, i, got)
			}
		}
	}
}

func TestASessionThatTouchesNothingLeavesTheManifest(t *testing.T) {
	l := newLab(t)
	l.sh("echo box > file")
	m := filepath.Join(l.boxDir("b"), "manifest")
	before, err := os.Stat(m)
	if err != nil {
		t.Fatal(err)
	}
	l.sh("cat /etc/passwd >/dev/null")
	if after, err := os.Stat(m); err != nil || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("the manifest is written anew: %v", err)
	}
	l.sh("cat file")
	if after, err := os.Stat(m); err != nil || before.ModTime().Equal(after.ModTime()) {
		t.Errorf("the manifest is the old one: %v", err)
	}
}

// What was done while a box's last session was killed cannot be told; nor is it made up.
func TestASupervisorThatIsKilledLeavesNoManifest(t *testing.T) {
	l := newLab(t)
	l.sh("echo box > file")
	l.run(runOpts{live: func(op *core.Operation) {
		if op.Surface == core.FilesWrite && op.Target == filepath.Join(l.dir, "file") {
			if layers.Dir(l.boxDir("b")).HasManifest() {
				t.Error("the manifest is there while the box writes")
			}
		}
	}}, "/bin/sh", "-c", "echo more >> file")
}

func TestManyChangesFromOutsideAreBounded(t *testing.T) {
	l := newLab(t)
	l.sh("mkdir dir")
	for i := range maxOutsideChanges + 17 {
		if err := os.WriteFile(l.held("b", fmt.Sprintf("dir/%d", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ops := ofSurface(l.run(runOpts{}, "/bin/true").ops, core.OutsideWrite)
	if len(ops) != maxOutsideChanges+1 || ops[maxOutsideChanges].Detail["count"] != "17" {
		t.Errorf("%d operations, the last %+v", len(ops), ops[len(ops)-1])
	}
}

func TestADamagedManifestIsSaid(t *testing.T) {
	l := newLab(t)
	l.sh("echo box > file")
	m := filepath.Join(l.boxDir("b"), "manifest")
	data, err := os.ReadFile(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, data[:len(data)-1], append([]byte("x"), data...), slices.Replace(slices.Clone(data), 40, 41, data[40]^1)} {
		if err := os.WriteFile(m, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		ops := ofSurface(l.run(runOpts{}, "/bin/true").ops, core.OutsideWrite)
		if len(ops) != 1 || filepath.Base(ops[0].Target) != "manifest" {
			t.Errorf("on record %+v", ops)
		}
	}
}

func TestADamagedBoxIsOpenedReadOnly(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(l *lab, b layers.Dir, first layers.Layer) error
		says string
		box  string // what the box still shows of its file; "" where that is lost
	}{
		{"layers.json is no JSON", func(_ *lab, b layers.Dir, _ layers.Layer) error {
			return os.WriteFile(b.At("layers.json"), []byte("{"), 0o600)
		}, "layers.json", "box\n"},
		{"layers.json is gone", func(_ *lab, b layers.Dir, _ layers.Layer) error { return os.Remove(b.At("layers.json")) }, "layers.json", "box\n"},
		{"an upper layer is gone", func(l *lab, b layers.Dir, at layers.Layer) error { return layers.RemoveTree(b.Upper(at)) }, "upper", "real\n"},
		{"an upper layer is a link", func(l *lab, b layers.Dir, at layers.Layer) error {
			if err := os.Rename(b.Upper(at), b.Upper(at)+"2"); err != nil {
				return err
			}
			return os.Symlink(l.home, b.Upper(at))
		}, "not a directory", "real\n"},
		{"a layer is a link", func(l *lab, b layers.Dir, at layers.Layer) error {
			p := b.At("layers", at.Dir)
			if err := os.Rename(p, p+"x"); err != nil {
				return err
			}
			return os.Symlink(p+"x", p)
		}, "not a directory", "real\n"},
		{"the work folder is gone", func(_ *lab, b layers.Dir, at layers.Layer) error { return layers.RemoveTree(b.Work(at)) }, "work", "box\n"},
		{"the folder is open to others", func(_ *lab, b layers.Dir, _ layers.Layer) error { return os.Chmod(string(b), 0o755) }, "mode 0755", "box\n"},
		{"the layers are open to others", func(_ *lab, b layers.Dir, _ layers.Layer) error { return os.Chmod(b.At("layers"), 0o711) }, "mode 0711", "box\n"},
		{"box.json is no JSON", func(_ *lab, b layers.Dir, _ layers.Layer) error {
			return os.WriteFile(b.At("box.json"), []byte("x"), 0o600)
		}, "box.json", "box\n"},
		{"a forged redirect", func(l *lab, _ layers.Dir, _ layers.Layer) error {
			return unix.Lsetxattr(l.held("b", "dir"), "user.overlay.redirect", []byte("/etc"), 0)
		}, "user.overlay.redirect", "box\n"},
		{"a forged metacopy", func(l *lab, _ layers.Dir, _ layers.Layer) error {
			return unix.Lsetxattr(l.held("b", "file"), "user.overlay.metacopy", nil, 0)
		}, "user.overlay.metacopy", ""}, // which the kernel refuses by itself,
		{"a forged attribute, and no manifest to compare with", func(l *lab, b layers.Dir, _ layers.Layer) error {
			return errors.Join(b.ForgetManifest(), unix.Lsetxattr(l.held("b", "dir"), "user.overlay.opaque", []byte("maybe"), 0))
		}, "user.overlay.opaque", "box\n"},
		{"a device node", func(l *lab, _ layers.Dir, _ layers.Layer) error {
			if os.Geteuid() != 0 {
				return errors.ErrUnsupported
			}
			return syscall.Mknod(l.held("b", "node"), syscall.S_IFCHR|0o666, 1<<8|5)
		}, "is a device, 1:5", "box\n"},
		{"another's folder", func(_ *lab, b layers.Dir, at layers.Layer) error {
			if os.Geteuid() != 0 {
				return errors.ErrUnsupported
			}
			return os.Chown(b.Work(at), 12345, 12345)
		}, "belongs to user 12345", "box\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.write("file", "real\n")
			l.sh("echo box > file; mkdir dir")
			b := layers.Dir(l.boxDir("b"))
			if d := b.Damage(); d != nil {
				t.Fatalf("before: %q", d)
			}
			ls, err := b.Layers()
			if err != nil {
				t.Fatal(err)
			}
			at, _, _ := layers.Place(ls, l.dir)
			if err := c.do(l, b, at); errors.Is(err, errors.ErrUnsupported) {
				return // only root can do that
			} else if err != nil {
				t.Fatal(err)
			}
			if d := strings.Join(b.Damage(), "; "); !strings.Contains(d, c.says) {
				t.Errorf("found %q, want %q in it", d, c.says)
			}
			var notice string
			r := l.run(runOpts{notice: func(s string) { notice += s }}, "/bin/sh", "-c", "cat file; echo more >> file; echo $?; mkdir new; echo shm > /dev/shm/x; cat /dev/shm/x")
			if want := c.box; !strings.HasPrefix(r.out, want) || !strings.HasSuffix(r.out, "shm\n") || strings.Contains(r.out, "\n0\n") {
				t.Errorf("it shows %q, want %q first\n%s", r.out, want, r.stderr)
			}
			if !strings.Contains(notice, c.says) || !strings.Contains(notice, "sandglass box repair b") {
				t.Errorf("the notice is %q", notice)
			}
			var blocked []string
			for _, op := range ofSurface(r.ops, core.FilesWrite) {
				if op.Verdict == core.Blocked && op.Rule == damagedRule && op.Errno == "EROFS" {
					blocked = append(blocked, filepath.Base(op.Target))
				}
			}
			if !slices.Equal(blocked, []string{"file", "new"}) {
				t.Errorf("blocked are %q", blocked)
			}
			said := false
			for _, op := range ofSurface(r.ops, core.OutsideWrite) {
				said = said || op.Rule == damagedRule && strings.Contains(op.Detail["found"], c.says)
			}
			if !said {
				t.Errorf("not on record: %+v", ofSurface(r.ops, core.OutsideWrite))
			}
			var did []string
			left, err := b.Repair(context.Background(), func(s string) { did = append(did, s) })
			if err != nil || len(left) > 0 {
				if c.says != "box.json" { // that is the caller's to make
					t.Fatalf("repair: %v, left %q, did %q", err, left, did)
				}
				return
			}
			r = l.run(runOpts{}, "/bin/sh", "-c", "echo more >> file && tail -1 file")
			if r.out != "more\n" || len(did) == 0 || len(ofSurface(r.ops, core.OutsideWrite)) != 0 {
				t.Errorf("after the repair %q: %q %s %+v", did, r.out, r.stderr, ofSurface(r.ops, core.OutsideWrite))
			}
		})
	}
}

func TestABoxThatCannotBeMountedIsRefused(t *testing.T) {
	l := newLab(t)
	l.sh("echo box > file")
	b := layers.Dir(l.boxDir("b"))
	if err := os.Rename(b.At("layers"), b.At("elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(b.At("elsewhere"), b.At("layers")); err != nil {
		t.Fatal(err)
	}
	r := l.run(runOpts{quiet: true}, "/bin/true")
	var d *layers.DamageError
	if !errors.As(r.err, &d) || len(core.Hints(r.err)) == 0 {
		t.Errorf("the error is %v", r.err)
	}
}

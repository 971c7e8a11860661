package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

func TestWhatIsAShare(t *testing.T) {
	for _, c := range []struct {
		fstype, point string
		want          fsKind
	}{
		{"nfs4", "/srv", fsShare}, {"cifs", "/srv", fsShare}, {"9p", "/srv", fsShare},
		{"fuse.sshfs", "/home/me/x", fsShare}, {"fuse.gvfsd-fuse", "/run/user/1000/gvfs", fsShare}, {"fuse.whatever", "/x", fsShare}, {"fuse", "/x", fsShare}, {"fuseblk", "/x", fsShare},
		{"vfat", "/media/me/STICK", fsShare}, {"ext4", "/media/disk", fsShare}, {"iso9660", "/media/cdrom0", fsShare}, {"exfat", "/run/media/me/CARD", fsShare},
		{"vfat", "/boot/efi", fsLocal}, {"ext4", "/mnt", fsLocal}, {"tmpfs", "/media", fsLocal}, {"ext4", "/mediation/x", fsLocal}, {"squashfs", "/snap/x", fsImage},
		{"autofs", "/net", fsUnknown}, {"weirdfs", "/media/x", fsUnknown}, {"proc", "/media/x", fsPseudo}, {"fusectl", "/sys/fs/fuse/connections", fsPseudo},
	} {
		if got := mountKind(mountEntry{fstype: c.fstype, point: c.point}); got != c.want {
			t.Errorf("%s at %s: %d, want %d", c.fstype, c.point, got, c.want)
		}
	}
}

func TestPlanOfShares(t *testing.T) {
	dirs := map[string][]string{"/": {"etc", "home", "media", "nfs", "run", "srv"}, "/home": {"me", "you"}, "/srv": {"a"}}
	const mounts = `
1 0 8:2 / / rw - ext4 /dev/sda2 rw
2 1 0:50 / /nfs rw - nfs4 host:/x rw
3 1 0:51 / /srv/a rw - fuse.sshfs you@host: rw
4 3 0:52 / /srv/a/below rw - nfs4 host:/y rw
5 1 8:9 / /media/STICK rw - vfat /dev/sdb1 rw
6 1 0:25 / /run rw - tmpfs tmpfs rw
7 6 0:26 / /run/user/1000 rw - tmpfs tmpfs rw
8 7 0:53 / /run/user/1000/gvfs rw - fuse.gvfsd-fuse gvfsd-fuse rw
9 1 0:54 / /odd rw - weirdfs weird rw
10 1 0:55 / /home/me rw - fuse.gocryptfs x rw
11 1 0:56 / /net rw - autofs x rw
12 11 0:57 / /net/host rw - nfs host:/z rw
`
	all, err := parseMountinfo(strings.NewReader(strings.TrimSpace(mounts) + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	vis := visibleMounts(all)
	asked := func(d string) ([]string, bool, error) {
		if k := mountKind(mountOf(vis, d)); k != fsLocal {
			t.Errorf("%s was looked at", d)
		}
		return dirs[d], true, nil
	}
	hide := []string{"/home/me/.local/sandglass"}
	steps, err := planMounts(vis, nil, hide, asked)
	if err != nil {
		t.Fatal(err)
	}
	kinds := func(steps []planStep) map[string]stepKind {
		m := map[string]stepKind{}
		for _, s := range steps {
			if s.Share != "" || s.Kind == stepMask {
				m[s.Path] = s.Kind
			}
		}
		return m
	}
	want := map[string]stepKind{"/nfs": stepMask, "/srv/a": stepMask, "/media/STICK": stepMask, "/odd": stepMask, "/home/me": stepMask, "/net": stepMask}
	if got := kinds(steps); !reflect.DeepEqual(got, want) {
		t.Errorf("by default: %v, want %v", got, want)
	}
	read := readShares(slices.Clone(steps), vis, hidden(vis, hide))
	// The one that holds the sandbox's own state stays masked, as do types that are not
	// known, what makes mounts of its own, and what is below any of these.
	for _, p := range []string{"/nfs", "/srv/a", "/media/STICK", "/run/user/1000/gvfs"} {
		want[p] = stepShare
	}
	if got := kinds(read); !reflect.DeepEqual(got, want) {
		t.Errorf("when they are read: %v, want %v", got, want)
	}
	blindly(read)
	for _, s := range read {
		if s.Kind == stepFrame && s.Path == "/" && !slices.Equal(s.Blind, []string{"nfs"}) || s.Kind == stepFrame && s.Path == "/srv" && !slices.Equal(s.Blind, []string{"a"}) {
			t.Errorf("%s: %q is not to be looked at", s.Path, s.Blind)
		}
		if s.Kind == stepShare && !s.ReadOnly {
			t.Errorf("%s is not read-only", s.Path)
		}
	}
}

// mounted is a real FUSE file system of the test's own user: a directory seen through bindfs.
type mounted struct {
	source, point string
	server        int // PID
}

func mountShare(t *testing.T, l *lab) mounted {
	t.Helper()
	for _, p := range []string{"bindfs", "fusermount3"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%v (tools/setup.sh installs it)", err)
		}
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Fatalf("%v (tools/setup.sh opens it to all)", err)
	} else {
		f.Close()
	}
	m := mounted{source: filepath.Join(l.dir, "source"), point: filepath.Join(l.dir, "share")}
	l.write("source/file", "shared")
	l.write("source/dir/deep", "deep")
	if err := os.WriteFile(filepath.Join(m.source, "prog"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(m.source, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.point, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("bindfs", "-f", "--no-allow-other", "-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0", m.source, m.point)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	m.server = c.Process.Pid
	t.Cleanup(func() {
		syscall.Kill(m.server, syscall.SIGCONT)
		exec.Command("fusermount3", "-u", "-z", m.point).Run()
		c.Process.Kill()
		c.Wait()
	})
	for end := time.Now().Add(20 * time.Second); ; {
		if _, err := os.Stat(filepath.Join(m.point, "file")); err == nil {
			return m
		}
		if time.Now().After(end) || syscall.Kill(m.server, 0) != nil {
			t.Fatal("bindfs does not come up")
		}
	}
}

func lets(p *core.Policy) {
	if err := p.Set("files.share", "allow"); err != nil {
		panic(err)
	}
}

// shareOps lists what the ops say on files.share.
func shareOps(ops []core.Operation, dir string) (lines []string) {
	for _, op := range ops {
		if op.Surface == core.FilesShare {
			line := fmt.Sprint(op.Action, " ", strings.TrimPrefix(op.Target, dir), " ", op.Verdict)
			if op.Errno != "" {
				line += " " + op.Errno
			}
			if op.Leak {
				line += " leak"
			}
			if !strings.HasPrefix(op.Detail["fstype"], "fuse") {
				line += " of type " + op.Detail["fstype"]
			}
			lines = append(lines, line)
		}
	}
	return slices.Compact(lines)
}

// By default a share is an empty directory, and each try to reach it is on record.
func TestAShareIsMasked(t *testing.T) {
	l := newLab(t)
	m := mountShare(t, l)
	check := unharmed(t, m.source)
	r := l.run(runOpts{}, "/bin/sh", "-c", "cat share/file; echo x > share/new; share/prog; mkdir share/d; cat source/file; ls share | wc -l; (stat -c %s share/file; rm share/file) 2>/dev/null")
	if r.out != "shared0\n" {
		t.Errorf("%q\n%s", r.out, r.stderr)
	}
	check()
	want := []string{"read /share/file blocked EACCES", "create /share/new blocked EROFS", "exec /share/prog blocked EACCES", "mkdir /share/d blocked EROFS", "read /share blocked EACCES", "delete /share/file blocked EROFS"}
	if got := shareOps(r.ops, l.dir); !slices.Equal(got, want) {
		t.Errorf("on files.share:\n%q, want\n%q", got, want)
	}
	if masks := r.ops[0].Detail["masked"]; !strings.Contains(masks, m.point+" (fuse") {
		t.Errorf("the session says of masks: %q", masks)
	}
}

// Where the policy says so it is read, executed and never written; each read is a leak.
func TestAShareIsRead(t *testing.T) {
	l := newLab(t)
	m := mountShare(t, l)
	check := unharmed(t, m.source)
	r := l.run(runOpts{policy: lets}, "/bin/sh", "-c", `cat share/file; share/prog; cat share/link share/dir/deep
echo x > share/new; echo y >> share/file; rm share/file; mv share/file share/g; ln share/file hard; chmod 777 share/file; mkdir share/d; touch share/file; ls share; mv share gone`)
	if want := "sharedran\nshareddeepdir\nfile\nlink\nprog\n"; r.out != want {
		t.Errorf("%q, want %q\n%s", r.out, want, r.stderr)
	}
	check()
	got := shareOps(r.ops, l.dir)
	for _, want := range []string{"read /share/file allowed leak", "exec /share/prog allowed leak", "read /share/link allowed leak", "read /share/dir/deep allowed leak", "read /share allowed leak",
		"create /share/new blocked EROFS", "create /share/file blocked EROFS", "delete /share/file blocked EROFS", "rename /share/file blocked EROFS", "chmod /share/file blocked EROFS", "mkdir /share/d blocked EROFS"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is not among\n%q", want, got)
		}
	}
	for _, op := range r.ops {
		if op.Surface != core.FilesShare && under(op.Target, m.point) {
			t.Errorf("elsewhere: %+v", op)
		}
	}
	if s := r.ops[0].Detail["shares"]; !strings.Contains(s, m.point+" (fuse") {
		t.Errorf("the session says of shares: %q", s)
	}
	r = l.run(runOpts{policy: lets}, "/bin/cat", "/proc/self/mountinfo")
	for line := range strings.Lines(r.out) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == m.point {
			for _, o := range []string{"ro", "nosuid", "nodev"} {
				if !slices.Contains(strings.Split(f[5], ","), o) {
					t.Errorf("the share is not %s in the box: %s", o, line)
				}
			}
			return
		}
	}
	t.Errorf("the share is not in the box:\n%s", r.out)
}

// Sessions of a box have its mounts: one that asks for another view is refused, and one
// that asks for the same knows what is there.
func TestSessionsOfABoxAgreeOnShares(t *testing.T) {
	l := newLab(t)
	m := mountShare(t, l)
	inside := make(chan struct{})
	out := make(chan result, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	second := *l // its numbers are its own
	go func() {
		first := false
		out <- l.run(runOpts{ctx: ctx, policy: lets, quiet: true, live: func(op *core.Operation) {
			if op.Target == m.point+"/file" && !first {
				first = true
				close(inside)
			}
		}}, "/bin/sh", "-c", "cat share/file; sleep 600")
	}()
	<-inside
	second.seq = 100
	r := second.run(runOpts{quiet: true}, "/bin/true")
	if r.err == nil || !strings.Contains(r.err.Error(), "another policy on shares") {
		t.Errorf("a session with shares masked: %v", r.err)
	}
	r = second.run(runOpts{policy: lets}, "/bin/cat", "share/file")
	if got := shareOps(r.ops, l.dir); r.out != "shared" || !slices.Contains(got, "read /share/file allowed leak") {
		t.Errorf("%q %q", r.out, got)
	}
	cancel()
	<-out
}

// Nothing of a box waits for a share whose server does not answer: its start, a program
// that leaves it alone, its end.
func TestAShareThatDoesNotAnswer(t *testing.T) {
	l := newLab(t)
	m := mountShare(t, l)
	if err := syscall.Kill(m.server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for name, policy := range map[string]func(*core.Policy){"masked": nil, "read": lets} {
		r := l.run(runOpts{box: name, policy: policy}, "/bin/sh", "-c", "echo x > new; ls; cat new")
		if r.out != "new\nshare\nsource\nx\n" {
			t.Errorf("%s: %q\n%s", name, r.out, r.stderr)
		}
	}
	// A program that reads it waits, as outside; the session can be ended all the same, and
	// others of its programs go on.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r := l.run(runOpts{box: "waiting", policy: lets, ctx: ctx, quiet: true, live: func(op *core.Operation) {
		if op.Target == filepath.Join(l.dir, "other") {
			syscall.Kill(m.server, syscall.SIGCONT)
		}
	}}, "/bin/sh", "-c", "cat share/file & echo y > other; wait")
	if r.out != "shared" || r.err != nil {
		t.Errorf("%q %v", r.out, r.err)
	}
}

// The directory that a session begins in is not on a masked share: said before anything is made.
func TestASessionDoesNotBeginOnAMaskedShare(t *testing.T) {
	l := newLab(t)
	m := mountShare(t, l)
	l.dir = m.point
	r := l.run(runOpts{quiet: true}, "/bin/true")
	if r.err == nil || !strings.Contains(r.err.Error(), "is on a share (fuse") || len(core.Hints(r.err)) == 0 {
		t.Errorf("%v", r.err)
	}
	// It is the home here: one that is a share has private places on it.
	if r := l.run(runOpts{policy: lets, quiet: true}, "/bin/cat", "file"); r.err == nil || !strings.Contains(strings.Join(core.Hints(r.err), " "), "private place") {
		t.Errorf("%v %q", r.err, core.Hints(r.err))
	}
}

// A private place on a share, or one that leads there: all of the share stays masked.
func TestAShareWithAPrivatePlaceOnIt(t *testing.T) {
	l := newLab(t)
	mountShare(t, l)
	private := func(place string) func(*core.Policy) {
		return func(p *core.Policy) {
			lets(p)
			if err := p.AddPrivate(place); err != nil {
				t.Error(err)
			}
		}
	}
	if err := os.Symlink("share/dir", filepath.Join(l.dir, "keys")); err != nil {
		t.Fatal(err)
	}
	for i, place := range []string{"~/share/dir", "~/share", "~/keys", "~/*/deep"} {
		r := l.run(runOpts{box: fmt.Sprint("b", i), policy: private(place)}, "/bin/sh", "-c", "cat share/file share/dir/deep keys/deep")
		if r.out != "" {
			t.Errorf("%s: %q", place, r.out)
		}
		if got := shareOps(r.ops, l.dir); !slices.Contains(got, "read /share/file blocked EACCES") {
			t.Errorf("%s: %q", place, got)
		}
	}
}

// What is put in the place of a share's mount point, while it is not mounted, catches
// neither the mask nor the bind.
func TestALinkInThePlaceOfAShare(t *testing.T) {
	l := newLab(t)
	l.write("real/f", "real")
	if err := os.Mkdir(filepath.Join(l.dir, "share"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.sh("rmdir share; ln -s real share; ln -s " + l.dir + "/real share2")
	os.Remove(filepath.Join(l.dir, "share"))
	mountShare(t, l)
	for _, policy := range []func(*core.Policy){nil, lets} {
		r := l.run(runOpts{policy: policy}, "/bin/sh", "-c", "cat share/f share/file real/f 2>&1")
		if strings.Contains(r.out, "shared") {
			t.Errorf("%q", r.out)
		}
	}
}

func TestFilesShareIsNotChangedInARunningBox(t *testing.T) {
	r := run{s: &supervisor{}}
	p, _ := core.BuiltinPolicy("")
	r.s.policy.Store(p)
	err := r.change(Order{Do: "set", Surface: "files.share", Verdict: "allow"})
	if err == nil || !strings.Contains(errors.Unwrap(err).Error(), "cannot be changed") || r.s.policy.Load() != p {
		t.Errorf("%v", err)
	}
}

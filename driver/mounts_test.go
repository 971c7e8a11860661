package driver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// unshared runs one of this binary's tests in a mount namespace of its own that a
// script has set up: as root, or as root of a user namespace.
func unshared(t *testing.T, test, script string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	top, err := os.MkdirTemp("", "sandglass-mounts-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { layers.RemoveTree(top) })
	args := []string{"-m", "-i", "--propagation", "private"}
	if os.Getuid() != 0 {
		args = append(args, "-Ur")
	}
	args = append(args, "/bin/sh", "-ec", script+`
exec "$EXE" -test.run "^`+test+`\$" -test.v`)
	c := exec.Command("unshare", args...)
	c.Env = append(os.Environ(), "EXE="+exe, "TOP="+top, "PREPARED_MOUNTS="+top)
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestOddMounts(t *testing.T) {
	unshared(t, "TestInOddMounts", `
mount -t tmpfs t "$TOP"; cd "$TOP"
mkdir ro src bind many ovl low up home pseudo "with space:,\\"
mount -t tmpfs ro ro; echo real > ro/f; mount -o remount,bind,ro "$TOP/ro"
echo real > src/f; mount --bind src bind
echo real > file; echo other > otherfile; mount --bind otherfile file
mkdir low/l up/u up/w; echo real > low/l/f; mount -t overlay o -o lowerdir=low/l,upperdir=up/u,workdir=up/w,userxattr ovl
mount -t tmpfs home home; mkdir home/me; echo real > home/me/f
mount -t mqueue q pseudo
mount -t tmpfs odd "with space:,\\"; echo real > "with space:,\\/f"
i=0; while [ $i -lt 200 ]; do mkdir many/$i; mount -t tmpfs m$i many/$i; i=$((i+1)); done; echo real > many/199/f
mkdir tmp; export TMPDIR=$TOP/tmp`)
}

func TestInOddMounts(t *testing.T) {
	top := os.Getenv("PREPARED_MOUNTS")
	if top == "" {
		return // run by TestOddMounts, in the mounts that it makes
	}
	l := newLab(t)
	odd := filepath.Join(top, `with space:,\`)
	check := unharmed(t, top+"/src")
	r := l.run(runOpts{}, "/bin/sh", "-c", `cd `+top+`
for f in src/f bind/f ovl/f home/me/f many/199/f file; do echo box > $f && cat $f; done
echo box > "with space:,\\/f"; cat "with space:,\\/f"
echo box > ro/f || echo refused; cat ro/f; ls pseudo | wc -l; cat file`)
	if want := strings.Repeat("box\n", 7) + "refused\nreal\n0\nbox\n"; r.out != want {
		t.Errorf("in the box: %q, want %q\n%s", r.out, want, r.stderr)
	}
	check()
	for f, want := range map[string]string{"bind/f": "real\n", "ovl/f": "real\n", "home/me/f": "real\n", "many/199/f": "real\n", "file": "other\n", "ro/f": "real\n"} {
		if data, err := os.ReadFile(filepath.Join(top, f)); err != nil || string(data) != want {
			t.Errorf("outside, %s is %q, %v", f, data, err)
		}
	}
	if data, _ := os.ReadFile(filepath.Join(odd, "f")); string(data) != "real\n" {
		t.Errorf("outside, the file below a name that mount options escape is %q", data)
	}
	var refused []string
	for _, op := range r.ops {
		if op.Verdict == core.Blocked {
			refused = append(refused, fmt.Sprint(op.Action, " ", op.Target, " ", op.Errno))
		}
	}
	if want := []string{"write " + top + "/ro/f EROFS"}; !reflect.DeepEqual(refused, want) {
		t.Errorf("refused: %q, want %q", refused, want)
	}
	if len(r.ops) == 0 {
		t.Fatal("no operation")
	}
	if m := r.ops[0].Detail["masked"]; !strings.Contains(m, top+"/pseudo (mqueue)") {
		t.Errorf("the first operation says of masks: %q", m)
	}
}

// A mount that an earlier session of the box had a layer for may be gone.
func TestAMountThatWentAway(t *testing.T) {
	unshared(t, "TestInMountThatWentAway", `
mount -t tmpfs t "$TOP"; cd "$TOP"; mkdir -p gone/deep/mount tmp; mount -t tmpfs m gone/deep/mount; export TMPDIR=$TOP/tmp`)
}

func TestInMountThatWentAway(t *testing.T) {
	top := os.Getenv("PREPARED_MOUNTS")
	if top == "" {
		return // run by TestAMountThatWentAway, in the mounts that it makes
	}
	l := newLab(t)
	l.sh("echo box > " + top + "/gone/deep/mount/f")
	for _, cmd := range [][]string{{"umount", top + "/gone/deep/mount"}, {"rm", "-r", top + "/gone"}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if r := l.sh("ls " + top); r.out != "tmp\n" {
		t.Errorf("the box still shows %q", r.out)
	}
}

func TestRootOnOverlay(t *testing.T) {
	if os.Getuid() != 0 {
		return // an ordinary user cannot put an overlay on /: see ARCHITECTURE.md
	}
	unshared(t, "TestInRootOnOverlay", `
mount -t tmpfs t "$TOP"; cd "$TOP"; mkdir u w r
mount -t overlay root -o lowerdir=/,upperdir=u,workdir=w r
cd r; mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev; mount -t tmpfs t tmp; mount -t tmpfs t run; mkdir -p old
mkdir -p "tmp/bin"; cp "$EXE" tmp/bin/test; EXE=/tmp/bin/test
pivot_root . old; cd /; umount -l /old; export TMPDIR=/tmp`)
}

func TestInRootOnOverlay(t *testing.T) {
	if os.Getenv("PREPARED_MOUNTS") == "" {
		return // run by TestRootOnOverlay, on the root that it makes
	}
	if data, _ := os.ReadFile("/proc/self/mountinfo"); !strings.Contains(string(data), " / / rw,relatime - overlay root ") {
		t.Fatalf("the root is not an overlay:\n%s", data)
	}
	l := newLab(t)
	before, _ := os.ReadFile("/etc/hostname")
	r := l.sh(`echo box > /etc/hostname; cat /etc/hostname; rm /etc/passwd; test ! -e /etc/passwd; mkdir /usr/new; ls -d /usr/new`)
	if r.out != "box\n/usr/new\n" {
		t.Errorf("in the box: %q", r.out)
	}
	if after, _ := os.ReadFile("/etc/hostname"); string(after) != string(before) {
		t.Errorf("outside, /etc/hostname is %q", after)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

package driver

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// A mount that appears when the box's view is planned already: it is planned anew. One that
// appears each time hides the place.
func TestAMountThatAppearsAtTheStart(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root can mount for others to see
	}
	l := newLab(t)
	l.write("file", "content")
	times, n := 1, 0
	defer func(was func()) { planned = was }(planned)
	planned = func() {
		if n++; n > times {
			return
		}
		at := filepath.Join(l.dir, "mounted", strconv.Itoa(n))
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Error(err)
		}
		if err := syscall.Mount("sandglass-test", at, "tmpfs", 0, "size=64k"); err != nil {
			t.Error(err)
		}
		t.Cleanup(func() { syscall.Unmount(at, syscall.MNT_DETACH) })
		if err := os.WriteFile(filepath.Join(at, "in"), []byte(strconv.Itoa(n)), 0o644); err != nil {
			t.Error(err)
		}
	}
	r := l.run(runOpts{box: "once"}, "/bin/sh", "-c", "cat file mounted/1/in; echo x > mounted/1/in; echo y > file")
	if r.code != 0 || r.out != "content1" || n != 2 {
		t.Errorf("code %d, %q, planned %d times\n%s", r.code, r.out, n, r.stderr)
	}
	for f, want := range map[string]string{"file": "content", "mounted/1/in": "1"} {
		if b, err := os.ReadFile(filepath.Join(l.dir, f)); err != nil || string(b) != want {
			t.Errorf("outside %s is %q, %v", f, b, err)
		}
	}
	// Each in a directory that is none of a frame yet.
	n = 0
	for i := range 10 {
		l.write("other/"+strconv.Itoa(i)+"/deep/file", "x")
	}
	planned = func() {
		at := filepath.Join(l.dir, "other", strconv.Itoa(n), "deep")
		n++
		if err := syscall.Mount("sandglass-test", at, "tmpfs", 0, "size=64k"); err != nil {
			t.Error(err)
		}
		t.Cleanup(func() { syscall.Unmount(at, syscall.MNT_DETACH) })
	}
	last := strconv.Itoa(maxTries - 1)
	r = l.run(runOpts{box: "always"}, "/bin/sh", "-c", "cat file; ls other/0 other/"+last)
	if want := "contentother/0:\ndeep\n\nother/" + last + ":\n"; n != maxTries || r.code != 0 || r.out != want {
		t.Errorf("planned %d times, code %d, %q\n%s", n, r.code, r.out, r.stderr)
	}
}

package driver

import (
	"fmt"
	"path"
	"reflect"
	"strings"
	"testing"
)

const desktop = `
1 0 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
2 1 0:21 / /proc rw,nosuid - proc proc rw
3 1 0:22 / /sys rw,nosuid - sysfs sysfs rw
4 1 0:6 / /dev rw,nosuid - devtmpfs udev rw
5 4 0:24 / /dev/pts rw - devpts devpts rw
6 1 0:25 / /run rw - tmpfs tmpfs rw
7 1 8:3 / /home rw - btrfs /dev/sda3 rw
8 1 0:50 / /srv/share rw - nfs4 host:/x rw
9 1 8:2 /data /mnt/bind rw - ext4 /dev/sda2 rw
10 1 7:1 / /snap/core/1 ro - squashfs /dev/loop1 ro
11 7 0:60 / /home/me/.cache/doc rw - fuse.portal portal rw
12 1 0:70 / /opt/odd rw - weirdfs weird rw
13 1 8:4 / /media/with\040space ro - ext4 /dev/sdb1 ro
19 1 8:5 / /ro ro - ext4 /dev/sdc1 ro
14 6 0:26 / /run/user/1000 rw - tmpfs tmpfs rw
15 1 0:80 / /var/cover rw - tmpfs t rw
16 15 0:81 / /var/cover/sub rw - tmpfs t rw
17 1 0:82 / /var/cover rw - tmpfs t2 rw
18 1 8:2 /x /etc/dir/file rw - ext4 /dev/sda2 rw
`

func planOf(t *testing.T, mountinfo string, dirs map[string][]string, splits, hide []string) []planStep {
	t.Helper()
	all, err := parseMountinfo(strings.NewReader(strings.TrimSpace(mountinfo) + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	steps, err := planMounts(visibleMounts(all), splits, hide, func(d string) ([]string, bool, error) { return dirs[d], !strings.HasPrefix(path.Base(d), "file"), nil })
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

func TestPlan(t *testing.T) {
	dirs := map[string][]string{
		"/":      {"bin", "dev", "etc", "home", "media", "mnt", "opt", "proc", "ro", "run", "snap", "srv", "sys", "var"},
		"/mnt":   {"bind", "other"},
		"/home":  {"me", "you"},
		"/media": {"with space"},
		"/snap":  {"core"},
		"/var":   {"cover", "lib"},
	}
	got := map[string]planStep{}
	steps := planOf(t, desktop, dirs, nil, []string{"/home/me/state"})
	for i, s := range steps {
		got[s.Path] = s
		for _, earlier := range steps[:i] {
			if under(earlier.Path, s.Path) && earlier.Path != s.Path {
				t.Errorf("%s comes after %s and covers it", s.Path, earlier.Path)
			}
		}
	}
	for path, want := range map[string]stepKind{
		"/": stepFrame, "/bin": stepOverlay, "/etc": stepFrame, "/etc/dir": stepFrame,
		"/home": stepFrame, "/home/you": stepOverlay, "/home/me": stepFrame,
		"/home/me/.cache": stepFrame, "/home/me/.cache/doc": stepMask,
		"/srv": stepFrame, "/srv/share": stepMask, "/mnt": stepFrame, "/mnt/bind": stepOverlay, "/mnt/other": stepOverlay,
		"/snap": stepFrame, "/snap/core": stepFrame, "/snap/core/1": stepImage, "/opt": stepFrame, "/opt/odd": stepMask,
		"/media": stepFrame, "/media/with space": stepMask, "/var": stepFrame, "/var/cover": stepOverlay, "/var/lib": stepOverlay,
		"/home/me/state": stepMask,
	} {
		if got[path].Kind != want {
			t.Errorf("%s: %q, want %q", path, got[path].Kind, want)
		}
	}
	for _, absent := range []string{"/proc", "/sys", "/dev", "/run", "/run/user/1000", "/dev/pts", "/var/cover/sub", "/etc/dir/file"} {
		if s, ok := got[absent]; ok {
			t.Errorf("%s is in the plan as %q; it is the box's own or covered", absent, s.Kind)
		}
	}
	if !got["/ro"].ReadOnly {
		t.Error("a read-only mount became writable")
	}
	if p := got["/home/me"].Points; !reflect.DeepEqual(p, []string{".cache"}) {
		t.Errorf("mount points in /home/me: %q", p)
	}
}

func TestPlanHidesTheStateWhereverItCanBeSeen(t *testing.T) {
	steps := planOf(t, `
1 0 8:2 / / rw - ext4 /dev/sda2 rw
2 1 8:3 / /home rw - ext4 /dev/sda3 rw
3 1 8:3 /me /mnt/me rw - ext4 /dev/sda3 rw
4 1 8:3 / /mnt/all rw - ext4 /dev/sda3 rw
5 1 8:3 /you /mnt/you rw - ext4 /dev/sda3 rw
`, nil, nil, []string{"/home/me/.local/sg"})
	var masks []string
	for _, s := range steps {
		if s.Kind == stepMask {
			masks = append(masks, s.Path)
		}
	}
	want := []string{"/home/me/.local/sg", "/mnt/all/me/.local/sg", "/mnt/me/.local/sg"}
	if !reflect.DeepEqual(masks, want) {
		t.Errorf("masks %q, want %q", masks, want)
	}
}

func TestPlanKeepsEarlierSplits(t *testing.T) {
	dirs := map[string][]string{"/": {"var"}, "/var": {"lib", "tmp"}}
	got := map[string]stepKind{}
	for _, s := range planOf(t, "1 0 8:2 / / rw - ext4 /dev/sda2 rw", dirs, []string{"/var/lib"}, nil) {
		got[s.Path] = s.Kind
	}
	want := map[string]stepKind{"/": stepFrame, "/var": stepFrame, "/var/lib": stepOverlay, "/var/tmp": stepOverlay}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestPlanWithHundredsOfMounts(t *testing.T) {
	var b strings.Builder
	b.WriteString("1 0 8:2 / / rw - ext4 /dev/sda2 rw\n")
	for i := range 500 {
		fmt.Fprintf(&b, "%d 1 7:%d / /snap/s%d/1 ro - squashfs /dev/loop%d ro\n", i+2, i, i, i)
	}
	n := 0
	for _, s := range planOf(t, b.String(), nil, nil, nil) {
		if s.Kind == stepImage {
			n++
		}
	}
	if n != 500 {
		t.Errorf("%d images, want 500", n)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add(desktop)
	f.Add("1 1 8:2 / / rw - ext4 x rw\n1 1 8:2 / / rw - ext4 x rw\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseMountinfo(strings.NewReader(text))
		if err != nil {
			return
		}
		if len(all) > 200 {
			return
		}
		planMounts(visibleMounts(all), nil, []string{"/x"}, func(string) ([]string, bool, error) { return nil, true, nil })
	})
}

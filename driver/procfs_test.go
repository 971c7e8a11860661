package driver

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sandglass/sandglass/core"
)

// To uid 0, which a box of root keeps, the kernel's settings are writable without any
// capability: nothing in a box may write one, in its first session or in one that joins.
func TestTheKernelsSettingsAreReadOnly(t *testing.T) {
	l := newLab(t)
	settings := []string{"/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness", "/proc/sys/kernel/hostname", "/proc/pressure/cpu", "/proc/irq/default_smp_affinity"}
	before := map[string]string{}
	for _, f := range settings {
		if b, _ := os.ReadFile(f); !strings.HasPrefix(f, "/proc/pressure/") { // that one reads otherwise each time
			before[f] = string(b)
		}
	}
	script := `for f in ` + strings.Join(settings, " ") + `; do { true > $f; } 2>/dev/null && echo "$f is written"; echo 1 2>/dev/null > $f && echo "$f is written"; done
		# past the supervisor's look: by way of the directory
		cd /proc/sys/kernel; { echo x > core_pattern; } 2>/dev/null && echo written
		for f in kcore kmsg keys; do cat /proc/$f 2>/dev/null && echo "$f is read"; done
		grep -c . /proc/meminfo >/dev/null && echo boxed > /proc/self/comm && echo end`
	check := func(r result) {
		t.Helper()
		if r.code != 0 || r.out != "end\n" {
			t.Errorf("exit code %d: %s%s", r.code, r.out, r.stderr)
		}
		on := map[core.Surface]int{}
		for _, op := range r.ops {
			if op.Verdict == core.Blocked {
				on[op.Surface]++
			}
		}
		if on[core.SettingsSysctl] < 11 || on[core.DeviceMemory] == 0 || on[core.SettingsKeyring] == 0 {
			t.Errorf("blocked operations by surface: %v", on)
		}
	}
	started, done := make(chan struct{}), make(chan result, 1)
	var once sync.Once
	first := &lab{t: t, home: l.home, dir: l.dir, seq: 100}
	go func() {
		done <- first.run(runOpts{live: func(op *core.Operation) {
			if op.Target == filepath.Join(l.dir, "ready") {
				once.Do(func() { close(started) })
			}
		}}, "/bin/sh", "-c", script+"; true > $HOME/ready; while ! test -e $HOME/joined; do sleep 0.02; done")
	}()
	select {
	case <-started:
	case r := <-done:
		t.Fatalf("the first session ended with %d: %s%s", r.code, r.out, r.stderr)
	}
	second := l.run(runOpts{}, "/bin/sh", "-c", script+"; true > $HOME/joined")
	check(<-done)
	check(second)
	if second.ops[0].Detail["joined"] != "true" {
		t.Error("the second session did not join")
	}
	for f, want := range before {
		if b, _ := os.ReadFile(f); string(b) != want {
			t.Errorf("%s was %q and is %q", f, want, b)
		}
	}
}

// The entries that the kernel has in common for all of the machine keep their mode: root is
// their owner in a box too.
func TestTheKernelsEntriesKeepTheirMode(t *testing.T) {
	l := newLab(t)
	files := []string{"/proc/version", "/proc/meminfo", "/proc/filesystems", "/proc/uptime", "/proc/net/dev", "/proc/sys/vm/swappiness"}
	modes := func() (s string) {
		for _, f := range files {
			fi, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			s += fi.Mode().String() + " "
		}
		return s
	}
	before := modes()
	for _, o := range []core.Observe{core.ObserveFull, core.ObserveLean} {
		for _, n := range []core.Net{core.NetNone, core.NetHost} {
			// The same mode: what gets through changes nothing that matters.
			script := "for f in " + strings.Join(files, " ") + `; do chmod $(stat -Lc %a $f) $f 2>/dev/null && echo $f; done; echo end`
			r := l.run(runOpts{observe: o, net: n, box: string(n)}, "/bin/sh", "-c", script)
			want := "end\n"
			if n == core.NetNone && os.Getuid() == 0 {
				want = "/proc/net/dev\nend\n" // of the box's own network
			}
			if r.out != want {
				t.Errorf("observe %s, net %s: changed %q", o, n, r.out)
			}
		}
	}
	if after := modes(); after != before {
		t.Errorf("modes were %s and are %s", before, after)
	}
}

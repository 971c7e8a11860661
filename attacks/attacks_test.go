package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	os.Exit(m.Run())
}

// TestMatrix runs every attack: SANDGLASS_BINARY, or a binary that is built for it.
func TestMatrix(t *testing.T) {
	for _, p := range []string{"python3", "gcc", "dbus-daemon", "dbus-send", "ssh-agent", "ssh-add"} {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("SANDGLASS_NO_SKIP") != "" {
				t.Fatalf("%s is not installed: tools/setup.sh installs it", p)
			}
			t.Skipf("%s is not installed", p)
		}
	}
	binary := os.Getenv("SANDGLASS_BINARY")
	if binary == "" {
		binary = filepath.Join(t.TempDir(), "sandglass")
		if out, err := exec.Command("go", "build", "-o", binary, "..").CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	rows, err := runAll(binary, "", func(int, int, row) {})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 60 {
		t.Errorf("%d attacks", len(rows))
	}
	for _, r := range rows {
		t.Logf("%-4s %-36s %-17s %-20s %-22s %-18s %s", r.Row, r.Name, r.Surface, r.Control, r.Cells["block"], r.Cells["redirect"], r.Cells["allow"])
		for _, w := range r.Wrong {
			t.Errorf("%s %s: %s", r.Row, r.Name, w)
		}
	}
}

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// ownBox makes a box whose layer of dir holds the given files.
func ownBox(t *testing.T, home, dir string, files map[string][]byte) {
	t.Helper()
	t.Setenv("SANDGLASS_HOME", home)
	if out, err := exec.Command("sandglass", "box", "create", "b").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := layers.Dir(Home(home).box("b"))
	l := layers.Layer{Path: dir, Dir: "0"}
	data, err := json.Marshal([]layers.Layer{l})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{b.Upper(l), b.Work(l)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(b.At("layers.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(b.Upper(l), name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// refusesToCommit commits the box b, which must fail, say what is wanted, and change nothing.
func refusesToCommit(t *testing.T, dir, want string) {
	t.Helper()
	list := func() (names []string) {
		ents, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range ents {
			names = append(names, e.Name())
		}
		return names
	}
	before := list()
	var stderr bytes.Buffer
	cmd := exec.Command("sandglass", "commit", "b", "--yes")
	cmd.Stderr = &stderr
	if cmd.Run(); cmd.ProcessState.ExitCode() != exitSandglass || !strings.Contains(stderr.String(), want) {
		t.Errorf("exit code %d, says %q, want %q", cmd.ProcessState.ExitCode(), stderr.String(), want)
	}
	if after := list(); strings.Join(after, "/") != strings.Join(before, "/") {
		t.Errorf("%q became %q", before, after)
	}
}

func TestACommitOntoAFullDisk(t *testing.T) {
	withMount(t, func(t *testing.T) {
		ownBox(t, filepath.Join(t.TempDir(), "home"), smallDisk, map[string][]byte{"a": []byte("fits"), "large": bytes.Repeat([]byte("x"), 2<<20), "z": nil})
		refusesToCommit(t, smallDisk, smallDisk+"/large: no space left on device")
		if out, err := exec.Command("sandglass", "commit", "b", smallDisk+"/a", "--yes").CombinedOutput(); err != nil {
			t.Errorf("what fits: %v\n%s", err, out)
		}
	}, smallDisk, "size=1m,mode=777")
}

func TestACommitThatHasNoRoomForItsJournal(t *testing.T) {
	withMount(t, func(t *testing.T) {
		dir := t.TempDir()
		ownBox(t, smallDisk+"/home", dir, map[string][]byte{"a": []byte("text")})
		f, err := os.Create(smallDisk + "/ballast")
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		f.Close()
		refusesToCommit(t, dir, "no space left on device")
		if err := os.Remove(smallDisk + "/ballast"); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("sandglass", "commit", "b", "--yes").CombinedOutput(); err != nil {
			t.Errorf("with room: %v\n%s", err, out)
		}
		if got, err := os.ReadFile(dir + "/a"); string(got) != "text" {
			t.Errorf("%q, %v", got, err)
		}
	}, smallDisk, "size=2m,mode=777")
}

func TestACommitOntoAReadOnlyMount(t *testing.T) {
	withMount(t, func(t *testing.T) {
		ownBox(t, filepath.Join(t.TempDir(), "home"), smallDisk, map[string][]byte{"a": []byte("text")})
		refusesToCommit(t, smallDisk, smallDisk+"/a: read-only file system")
	}, smallDisk, "ro,mode=777")
}

// TestACommitIsAFactOfTheLog looks where it waits for the daemon.
func TestACommitIsAFactOfTheLog(t *testing.T) {
	home, dir := filepath.Join(t.TempDir(), "home"), t.TempDir()
	ownBox(t, home, dir, map[string][]byte{"a": []byte("text"), "b": nil})
	cmd := exec.Command("sandglass", "commit", "b", "--yes", "--json")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var last commitLine
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Do != "done" || last.Counts == nil || *last.Counts != (core.ChangeCounts{Added: 2}) {
		t.Errorf("%v: %s", err, out)
	}
	found := false
	filepath.WalkDir(home, func(p string, _ os.DirEntry, _ error) error {
		data, _ := os.ReadFile(p)
		found = found || bytes.Contains(data, []byte(`"box.commit"`)) && bytes.Contains(data, []byte(`"count":2`))
		return nil
	})
	if !found {
		t.Error("no fact box.commit with its count waits in the spool")
	}
}

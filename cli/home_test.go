package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

func testHome(t *testing.T) Home {
	t.Helper()
	t.Setenv("SANDGLASS_HOME", filepath.Join(t.TempDir(), "home"))
	h, err := OpenHome()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestTheStateFolderIsFoundAsTheManualSays(t *testing.T) {
	for _, c := range []struct{ name, sandglass, xdg, home, want string }{
		{"SANDGLASS_HOME wins", "/s", "/x", "/h", "/s"},
		{"then XDG_DATA_HOME", "", "/x", "/h", "/x/sandglass"},
		{"a relative XDG_DATA_HOME is ignored", "", "x", "/h", "/h/.local/share/sandglass"},
		{"then HOME", "", "", "/h", "/h/.local/share/sandglass"},
		{"nothing is an error", "", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("SANDGLASS_HOME", c.sandglass)
			t.Setenv("XDG_DATA_HOME", c.xdg)
			t.Setenv("HOME", c.home)
			got, err := homePath()
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("homePath() = %q, %v; want %q", got, err, c.want)
			}
			if err != nil && len(core.Hints(err)) == 0 {
				t.Errorf("no hint: %v", err)
			}
		})
	}
}

func TestAStateFolderThatOthersCouldWriteToIsRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(dir string) error
		wrong   string // part of the error; "" when the folder is fine
	}{
		{"an absent one is made", func(string) error { return nil }, ""},
		{"an empty one is closed to others", func(d string) error { return os.Mkdir(d, 0o755) }, ""},
		{"one that the group may write to", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, 0o770)) }, "others may write"},
		{"one that everybody may write to", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, 0o777)) }, "others may write"},
		{"a file", func(d string) error { return os.WriteFile(d, nil, 0o600) }, "not a directory"},
		{"a link to one is followed", func(d string) error {
			return errors.Join(os.Mkdir(d+"-real", 0o700), os.Symlink(d+"-real", d))
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "home")
			if err := c.prepare(dir); err != nil {
				t.Fatal(err)
			}
			t.Setenv("SANDGLASS_HOME", dir)
			h, err := OpenHome()
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Fatalf("OpenHome() = %v, want an error with %q", err, c.wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			fi, err := os.Lstat(string(h))
			if err != nil || !fi.IsDir() || fi.Mode().Perm() != 0o700 {
				t.Errorf("state folder is %v, %v; want a folder with mode 0700", fi.Mode(), err)
			}
		})
	}
}

func TestAStateFolderOfSomebodyElseIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it gives a folder away")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SANDGLASS_HOME", dir)
	if _, err := OpenHome(); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Fatalf("OpenHome() = %v", err)
	}
}

func TestABoxIsMadeOnceHoweverManyAsk(t *testing.T) {
	h := testHome(t)
	var made sync.Map
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			_, m, l, err := h.UseBox("b", core.DefaultPolicy, time.Now())
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Unlock()
			if _, twice := made.LoadOrStore(m, true); m && twice {
				t.Error("the box was made twice")
			}
		})
	}
	wg.Wait()
	if _, ok := made.Load(true); !ok {
		t.Error("nobody made the box")
	}
}

func TestSessionsThatMakeABoxDoNotWaitForOneAnother(t *testing.T) {
	h := testHome(t)
	for i := range 50 {
		const sessions = 8
		var all, begun sync.WaitGroup
		begun.Add(sessions)
		for range sessions {
			all.Go(func() {
				_, _, use, err := h.UseBox(fmt.Sprint("box", i), "", time.Now())
				begun.Done()
				if err != nil {
					t.Error(err)
					return
				}
				begun.Wait() // none ends before all have begun
				use.Unlock()
			})
		}
		all.Wait()
	}
}

func TestABoxIsNotRemovedFromUnderASession(t *testing.T) {
	h := testHome(t)
	_, made, l, err := h.UseBox("b", core.DefaultPolicy, time.Now())
	if err != nil || !made {
		t.Fatal(made, err)
	}
	if err := h.RemoveBox("b", os.RemoveAll); err == nil || !strings.Contains(err.Error(), "a session runs in it") {
		t.Fatalf("RemoveBox() = %v", err)
	}
	if _, err := h.Box("b"); err != nil {
		t.Fatalf("a refused removal changed the box: %v", err)
	}
	l.Unlock()
	if err := h.RemoveBox("b", os.RemoveAll); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Box("b"); !errors.Is(err, core.ErrNotFound) {
		t.Fatalf("Box() = %v after the removal", err)
	}
	if names, err := h.BoxNames(); err != nil || len(names) != 0 {
		t.Errorf("BoxNames() = %v, %v", names, err)
	}
	if _, err := os.Stat(h.lock("b")); err == nil {
		t.Error("the lock's file was left behind")
	}
}

func TestTheExternalBusIsRemembered(t *testing.T) {
	h := testHome(t)
	const url = "nats://me:secret@bus.example:4222"
	want := func(when, want string) {
		t.Helper()
		if got := h.externalBus(); got != want {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	want("at first", "")
	for range 2 {
		if err := h.rememberBus(url); err != nil {
			t.Fatal(err)
		}
	}
	want("after a daemon with an external one has ended", url)
	if fi, err := os.Stat(h.busFile()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", fi.Mode(), err)
	}
	if err := h.writeDaemonInfo(daemonInfo{NATS: "nats://other"}); err != nil {
		t.Fatal(err)
	}
	want("while a daemon runs", "nats://other")
	if err := os.Remove(h.daemonFile()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.rememberBus(""); err != nil {
			t.Fatal(err)
		}
	}
	want("after one with the embedded bus", "")
}

func TestADamagedBoxFileIsSaid(t *testing.T) {
	for name, content := range map[string]string{
		"no JSON": "{", "another version": `{"version":99,"name":"b"}`, "another box": `{"version":1,"name":"c"}`,
	} {
		t.Run(name, func(t *testing.T) {
			h := testHome(t)
			if _, _, err := h.CreateBox("b", core.DefaultPolicy, time.Now()); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(h.path("boxes", "b", "box.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if b, err := h.Box("b"); err == nil || errors.Is(err, core.ErrNotFound) {
				t.Errorf("Box() = %v, %v", b, err)
			}
			if err := h.RemoveBox("b", os.RemoveAll); err != nil {
				t.Errorf("RemoveBox() = %v", err)
			}
		})
	}
}

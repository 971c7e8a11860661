package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
)

// Home is the state folder: everything that Sandglass keeps is in it, and no box can see
// it. Its path is absolute and free of symbolic links, so that hiding it hides it whole.
//
//	boxes/NAME/box.json   what a box is; the rest of its folder is the driver's
//	locks/NAME            held while a box is made or removed
//	spool/ID/             a session's operations, until the bus has them
//	bus/, bus.sock        the embedded bus
//	bus.url               the external bus, when there is one
//	keys/                 who may publish what
//	sign-ins.json         which browsers are signed in to the dashboard, by hash
//	projections.db        the folds of the streams
//	daemon.lock           held by the daemon as long as it lives
//	daemon.json           where the daemon listens
//	daemon.log            what the daemon said; two of 1 MiB at most
//	control.sock          requests to the daemon
type Home string

func (h Home) path(parts ...string) string {
	return filepath.Join(append([]string{string(h)}, parts...)...)
}

func (h Home) boxes() string           { return h.path("boxes") }
func (h Home) box(name string) string  { return h.path("boxes", name) }
func (h Home) lock(name string) string { return h.path("locks", name) }
func (h Home) spool() string           { return h.path("spool") }
func (h Home) daemonLock() string      { return h.path("daemon.lock") }
func (h Home) daemonFile() string      { return h.path("daemon.json") }
func (h Home) busFile() string         { return h.path("bus.url") }
func (h Home) signInsFile() string     { return h.path("sign-ins.json") }
func (h Home) daemonLog() string       { return h.path("daemon.log") }
func (h Home) control() string         { return h.path("control.sock") }
func (h Home) projections() string     { return h.path("projections.db") }

// homePath says where the state folder is: $SANDGLASS_HOME, else
// $XDG_DATA_HOME/sandglass, else ~/.local/share/sandglass.
// https://specifications.freedesktop.org/basedir-spec: a relative XDG path is to be ignored.
func homePath() (string, error) {
	if d := os.Getenv("SANDGLASS_HOME"); d != "" {
		return filepath.Abs(d)
	}
	if d := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "sandglass"), nil
	}
	d := os.Getenv("HOME")
	if !filepath.IsAbs(d) {
		return "", core.Hint(errors.New("find the state folder: neither SANDGLASS_HOME nor HOME is set"), "set SANDGLASS_HOME to a folder of your own")
	}
	return filepath.Join(d, ".local", "share", "sandglass"), nil
}

// OpenHome finds the state folder, makes it when it is absent, and refuses one that
// somebody else could have written to: whoever writes there decides what `ops` shows.
func OpenHome() (Home, error) {
	dir, err := homePath()
	if err != nil {
		return "", err
	}
	// The basedir specification wants 0700 for what is made on the way there, too.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", homeHint(fmt.Errorf("make the state folder: %w", err))
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", homeHint(fmt.Errorf("open the state folder: %w", err))
	}
	if err := checkHome(dir); err != nil {
		return "", err
	}
	h := Home(dir)
	for _, d := range []string{h.boxes(), h.path("locks"), h.spool()} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", homeHint(fmt.Errorf("make the state folder: %w", err))
		}
	}
	return h, nil
}

func homeHint(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return core.Hint(err, "the disk is full: free some space, or set SANDGLASS_HOME to a folder on another one")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return core.Hint(err, "set SANDGLASS_HOME to a folder that you may write to")
	}
	return err
}

func checkHome(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("open the state folder: %w", err)
	}
	if !fi.IsDir() {
		return core.Hint(fmt.Errorf("open the state folder: %s is not a folder", dir), "set SANDGLASS_HOME to a folder of your own")
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() {
		return core.Hint(fmt.Errorf("open the state folder: %s belongs to user %d, not to you (%d)", dir, st.Uid, os.Geteuid()),
			"set SANDGLASS_HOME to a folder of your own; `sudo -E` and `su` without `-` keep another user's environment")
	}
	if m := fi.Mode().Perm(); m&0o022 != 0 {
		return core.Hint(fmt.Errorf("open the state folder: others may write to %s (mode %04o)", dir, m), "chmod 700 "+shellQuote(dir))
	}
	// Nobody but its owner needs to look in. Only a folder that is ours alone is closed:
	// SANDGLASS_HOME may name one that has other uses.
	if fi.Mode().Perm()&0o077 != 0 {
		if es, err := os.ReadDir(dir); err == nil && len(es) == 0 {
			if err := os.Chmod(dir, 0o700); err != nil {
				return fmt.Errorf("close the state folder to others: %w", err)
			}
		}
	}
	return nil
}

// shellQuote quotes a word for a POSIX shell, where it needs that.
func shellQuote(s string) string {
	plain := s != ""
	for _, c := range []byte(s) {
		plain = plain && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_./:=@%+,", c) >= 0)
	}
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// writeAtomic replaces a file by one with this content: whoever reads it finds the old
// one or the new one, also after a power loss.
func writeAtomic(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // file systems that cannot sync a directory say EINVAL: fsync(2)
		return err
	}
	return nil
}

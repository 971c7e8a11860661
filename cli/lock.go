package cli

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// errLocked says that somebody else holds a lock.
var errLocked = errors.New("held by another process")

// fileLock is a flock(2) on a file. It belongs to the open file description:
// a child that inherits the file holds the lock on, and it ends with the last of them.
type fileLock struct{ f *os.File }

// How a lock is taken.
const (
	lockShared = syscall.LOCK_SH                   // with others that share it; waits
	lockTry    = syscall.LOCK_EX | syscall.LOCK_NB // alone, or errLocked
)

// lockFile takes the lock on path, making the file when it is absent.
func lockFile(path string, how int) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		for err = syscall.Flock(int(f.Fd()), how); errors.Is(err, syscall.EINTR); {
			err = syscall.Flock(int(f.Fd()), how)
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, errLocked
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Whoever held it may have removed the file meanwhile: then this lock is on a
		// file that nobody else will find.
		if mine, err := f.Stat(); err == nil {
			if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
				return &fileLock{f}, nil
			}
		}
		f.Close()
	}
}

// Unlock gives the lock back.
func (l *fileLock) Unlock() { l.f.Close() }

// Remove gives the lock back and removes its file.
func (l *fileLock) Remove() {
	os.Remove(l.f.Name())
	l.f.Close()
}

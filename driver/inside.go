package driver

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/driver/sys"
)

// ownProc reads the session's own /proc from outside: there are its processes and no
// others, those included that never made a trapped call. What is read is the kernel's
// word, but for a command line, which is its process's.
type ownProc struct {
	place int    // O_PATH descriptor of it
	path  string // by which it can be opened
	page  int64
}

const (
	maxListed  = 1 << 15 // processes that are looked at
	clockTicks = 100     // USER_HZ, in which /proc counts time on amd64 and arm64
)

// openOwnProc opens the /proc below root. The caller closes it.
func openOwnProc(root int) (*ownProc, error) {
	place, err := sys.OpenInRoot(root, "proc")
	if err != nil {
		return nil, fmt.Errorf("open the box's /proc: %w", err)
	}
	return &ownProc{place, "/proc/self/fd/" + strconv.Itoa(place), int64(os.Getpagesize())}, nil
}

func (o *ownProc) close() { sys.CloseFD(o.place) }

// pids lists the processes but for the session's init.
func (o *ownProc) pids() []int {
	d, err := os.Open(o.path)
	if err != nil {
		return nil
	}
	defer d.Close()
	var pids []int
	for len(pids) < maxListed {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			if pid, err := strconv.Atoi(n); err == nil && pid != 1 {
				pids = append(pids, pid)
			}
		}
		if err != nil {
			break
		}
	}
	return pids
}

// read reads a file of a process, at most size bytes of it.
func (o *ownProc) read(pid int, file string, size int64) []byte {
	f, err := os.Open(o.path + "/" + strconv.Itoa(pid) + "/" + file)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return nil
	}
	return b
}

// procStat is what proc_pid_stat(5) says of a process.
type procStat struct {
	State   byte
	Parent  int
	Threads int64
	CPU     time.Duration // its own and that of the children it has waited for
	Own     time.Duration // its own
	Started time.Duration // after the machine's start
}

// stat reads what a process is doing; not ok when it is gone.
func (o *ownProc) stat(pid int) (st procStat, ok bool) {
	state, num, ok := parseStat(o.read(pid, "stat", 1024))
	if !ok {
		return st, false
	}
	st.State, st.Parent, st.Threads = state, int(num(4)), num(20)
	st.CPU = time.Duration(num(14)+num(15)+num(16)+num(17)) * time.Second / clockTicks
	st.Own = time.Duration(num(14)+num(15)) * time.Second / clockTicks
	st.Started = time.Duration(num(22)) * time.Second / clockTicks
	return st, true
}

// parseStat returns the state and the other numbers of proc_pid_stat(5), by the manual page's
// numbers of the fields.
func parseStat(b []byte) (state byte, num func(field int) int64, ok bool) {
	// The name comes second, in parentheses, and may have any byte in it.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 50 || len(f[0]) != 1 {
		return 0, nil, false
	}
	return f[0][0], func(field int) int64 {
		n, err := strconv.ParseInt(string(f[field-3]), 10, 64)
		if err != nil {
			return 0
		}
		return n
	}, true
}

// threads counts the session's threads, without those of its init; -1 when it cannot.
func (o *ownProc) threads() (n int64) {
	d, err := os.Open(o.path)
	if err != nil {
		return -1
	}
	d.Close()
	for _, pid := range o.pids() {
		if st, ok := o.stat(pid); ok && st.State != 'Z' {
			n += st.Threads
		}
	}
	return n
}

// status returns the values of lines of proc_pid_status(5), in kibibytes or plain.
func (o *ownProc) status(pid int, keys ...string) []int64 {
	out := make([]int64, len(keys))
	for line := range strings.Lines(string(o.read(pid, "status", 4096))) {
		key, val, _ := strings.Cut(line, ":")
		for i, k := range keys {
			if key == k {
				out[i], _ = strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(val), "kB")), 10, 64)
			}
		}
	}
	return out
}

// private returns a process's memory that is of no file, in bytes.
func (o *ownProc) private(pid int) int64 { return o.status(pid, "RssAnon")[0] << 10 }

// proportional returns a process's share of all memory that it has mapped, swapped out or
// not, in bytes. It walks the page tables: for a large process that takes milliseconds.
func (o *ownProc) proportional(pid int) (n int64) {
	for line := range strings.Lines(string(o.read(pid, "smaps_rollup", 4096))) {
		f := strings.Fields(line)
		if len(f) == 3 && (f[0] == "Pss_Anon:" || f[0] == "Pss_Shmem:" || f[0] == "SwapPss:") {
			if k, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				n += k << 10
			}
		}
	}
	return n
}

const tmpfsMagic = 0x01021994 // linux/magic.h

// stored returns what a memory file system of the box holds, in bytes. When the session is
// over its mounts are gone: what is at the path then is of no interest.
func stored(root int, path string) int64 {
	place, err := sys.OpenInRoot(root, path)
	if err != nil {
		return 0
	}
	defer sys.CloseFD(place)
	var st syscall.Statfs_t
	if syscall.Fstatfs(place, &st) != nil || st.Type != tmpfsMagic || st.Blocks < st.Bfree {
		return 0
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

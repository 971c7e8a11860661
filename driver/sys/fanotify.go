package sys

import (
	"encoding/binary"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Fanotify is a group of fanotify(7) that reports what is done in marked directories, by name.
// It never holds anybody up: it asks for no permission events.
type Fanotify struct {
	f *os.File
	// Who says that events name their process. Only root is told (CAP_SYS_ADMIN).
	Who bool
}

// The events.
const (
	FanAccess   = unix.FAN_ACCESS
	FanModify   = unix.FAN_MODIFY
	FanAttrib   = unix.FAN_ATTRIB
	FanFrom     = unix.FAN_MOVED_FROM
	FanTo       = unix.FAN_MOVED_TO
	FanCreate   = unix.FAN_CREATE
	FanDelete   = unix.FAN_DELETE
	FanOnDir    = unix.FAN_ONDIR
	FanOverflow = unix.FAN_Q_OVERFLOW
)

// FanEvent is one event.
type FanEvent struct {
	Mask uint64
	PID  int    // 0: unknown
	Dir  string // which directory: see [DirHandle]; "" when the queue has overflowed
	Name string // in it, "." for itself
}

// NewFanotify makes a group: root's, or since Linux 5.13 an ordinary user's.
func NewFanotify() (*Fanotify, error) {
	const flags = unix.FAN_CLASS_NOTIF | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK | unix.FAN_REPORT_DFID_NAME
	fd, err := unix.FanotifyInit(flags, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &Fanotify{f: os.NewFile(uintptr(fd), "fanotify"), Who: os.Geteuid() == 0 && hasCap(unix.CAP_SYS_ADMIN)}, nil
}

// Mark adds a directory, which stays in memory until the group is closed: the caller bounds how
// many.
func (n *Fanotify) Mark(dir string, mask uint64) error {
	c, err := n.f.SyscallConn()
	if err != nil {
		return err
	}
	var merr error
	err = c.Control(func(fd uintptr) {
		merr = unix.FanotifyMark(int(fd), unix.FAN_MARK_ADD|unix.FAN_MARK_ONLYDIR|unix.FAN_MARK_DONT_FOLLOW, mask|unix.FAN_EVENT_ON_CHILD|unix.FAN_ONDIR, unix.AT_FDCWD, dir)
	})
	if err == nil {
		err = merr
	}
	return err
}

// Read waits for events and appends them to evs. It ends with an error when the group is closed.
func (n *Fanotify) Read(buf []byte, evs []FanEvent) ([]FanEvent, error) {
	k, err := n.f.Read(buf)
	if err != nil {
		return evs, err
	}
	return parseFan(buf[:k], evs), nil
}

// Close ends the group and wakes its reader.
func (n *Fanotify) Close() { n.f.Close() }

// parseFan reads struct fanotify_event_metadata and the records behind each.
func parseFan(b []byte, evs []FanEvent) []FanEvent {
	for len(b) >= 24 {
		n, m := int(binary.NativeEndian.Uint32(b)), int(binary.NativeEndian.Uint16(b[6:]))
		if n < 24 || n > len(b) || m < 24 || m > n {
			break
		}
		e := FanEvent{Mask: binary.NativeEndian.Uint64(b[8:]), PID: int(int32(binary.NativeEndian.Uint32(b[20:])))}
		for r := b[m:n]; len(r) >= 4; {
			k := int(binary.NativeEndian.Uint16(r[2:]))
			if k < 4 || k > len(r) {
				break
			}
			if t := r[0]; (t == unix.FAN_EVENT_INFO_TYPE_DFID_NAME || t == unix.FAN_EVENT_INFO_TYPE_DFID) && k >= 20 {
				h := r[12:k] // behind the header and the file system's id: a struct file_handle
				if l := int(binary.NativeEndian.Uint32(h)); l <= len(h)-8 {
					e.Dir = string(h[4 : 8+l])
					e.Name, _, _ = strings.Cut(string(h[8+l:]), "\x00")
				}
			}
			r = r[k:]
		}
		evs = append(evs, e)
		b = b[n:]
	}
	return evs
}

// DirHandle is what events call a directory: its handle's type and bytes.
func DirHandle(path string) (string, error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return "", err
	}
	return string(binary.NativeEndian.AppendUint32(nil, uint32(h.Type()))) + string(h.Bytes()), nil
}

// hasCap says whether the calling thread has a capability in the first user namespace: events name
// processes only then.
func hasCap(c uint) bool {
	var h unix.CapUserHeader
	var d [2]unix.CapUserData
	h.Version = unix.LINUX_CAPABILITY_VERSION_3
	return unix.Capget(&h, &d[0]) == nil && d[c/32].Effective&(1<<(c%32)) != 0
}

package driver

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fixture makes one of each: files, directories, links and what else a tree may hold.
func fixture() error {
	var first error
	try := func(err error) {
		if first == nil {
			first = err
		}
	}
	for _, d := range []string{"d", "full", "sub/deep", "closed", "sticky", "setgid"} {
		try(os.MkdirAll(d, 0o755))
	}
	for f, mode := range map[string]os.FileMode{"f": 0o644, "ro": 0o444, "none": 0, "x": 0o755, "full/in": 0o644, "sub/deep/leaf": 0o600, "closed/in": 0o644,
		"sticky/in": 0o666, "src": 0o644, "h1": 0o644, "xa": 0o644} {
		try(os.WriteFile(f, []byte("content of "+f+"\n"), 0o600))
		try(os.Chmod(f, mode))
	}
	try(os.Link("h1", "h2"))
	here, err := os.Getwd()
	try(err)
	for link, to := range map[string]string{"l": "f", "dl": "full", "dang": "nowhere", "loop1": "loop2", "loop2": "loop1", "abs": here + "/f"} { // no link may lead out of here: this runs outside, too
		try(os.Symlink(to, link))
	}
	try(unix.Mkfifo("fifo", 0o644))
	try(unix.Mknod("sock", unix.S_IFSOCK|0o755, 0))
	try(unix.Setxattr("xa", "user.a", []byte("value"), 0))
	try(os.Chmod("sticky", 0o777|os.ModeSticky))
	try(os.Chmod("setgid", 0o755|os.ModeSetgid))
	old := time.Unix(1e9, 123456789)
	for _, f := range []string{"f", "ro", "none", "x", "full/in", "src", "h1", "xa", "d", "full", "sub", "sticky", "closed"} {
		try(os.Chtimes(f, old, old.Add(time.Second)))
	}
	try(os.Chmod("closed", 0o555))
	return first
}

// targets are the names that calls of one path are tried on.
var targets = []string{"f", "ro", "none", "x", "d", "full", "l", "dl", "dang", "loop1", "fifo", "sock", "h1", "xa", "missing", "f/in", "l/in", "dl/in", "missing/in",
	"loop1/in", "none/in", "", ".", "..", "d/", "f/", "l/", "dl/", "missing/", "d/.", "full/..", "full/../f", "./f", ".//full//in", strings.Repeat("n", 255), strings.Repeat("n", 256),
	strings.Repeat("./", 2040) + "f", strings.Repeat("./", 2047) + "f", strings.Repeat("./", 2100) + "f", "closed/in", "closed/new", "sticky/in", "abs", "x/../f"}

func short(p string) string {
	if len(p) > 40 {
		return fmt.Sprintf("%s... of %d", p[:12], len(p))
	}
	return p
}

// tellRelative says all of a tree, a line for each path. Times that are not far in the past
// are the clock's.
func tellRelative(dir string) (map[string]string, error) {
	out := map[string]string{}
	hour := time.Now().Add(-24 * time.Hour).Unix()
	inodes := map[uint64]string{}
	var walk func(fd int, rel string, depth int)
	walk = func(fd int, rel string, depth int) {
		if depth > 12 {
			return
		}
		names := namesOf(fd)
		for _, name := range names {
			p := filepath.Join(rel, name)
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				out[p] = err.Error()
				continue
			}
			line := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
			if st.Mtim.Sec < hour {
				line += fmt.Sprintf(" time %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
			}
			kind := st.Mode & unix.S_IFMT
			if kind != unix.S_IFDIR {
				line += fmt.Sprintf(" size %d links %d", st.Size, st.Nlink)
			}
			if st.Nlink > 1 && kind == unix.S_IFREG {
				if inodes[st.Ino] == "" {
					inodes[st.Ino] = p
				}
				line += " as " + inodes[st.Ino]
			}
			switch kind {
			case unix.S_IFLNK:
				b := make([]byte, 4097)
				n, _ := unix.Readlinkat(fd, name, b)
				line += " to " + string(b[:max(n, 0)])
			case unix.S_IFREG:
				if f, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW, 0); err == nil {
					h, g := sha256.New(), os.NewFile(uintptr(f), name)
					io.Copy(h, io.LimitReader(g, 1<<20))
					line += fmt.Sprintf(" %.6x", h.Sum(nil)) + xattrsOf(f)
					g.Close()
				}
			case unix.S_IFDIR:
				if f, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err == nil {
					line += xattrsOf(f)
					walk(f, p, depth+1)
					unix.Close(f)
				}
			}
			out[p] = line
		}
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	walk(fd, "", 0)
	return out, nil
}

// namesOf lists a directory, sorted by the first bytes that tell names apart.
func namesOf(fd int) []string {
	dup, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(dup), ".")
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	sortStrings(names)
	return names
}

func xattrsOf(fd int) (line string) {
	b := make([]byte, 1<<16)
	n, err := unix.Flistxattr(fd, b)
	if err != nil {
		return ""
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	sortStrings(names)
	for _, name := range names {
		if name == "" || strings.HasPrefix(name, "security.") {
			continue
		}
		v := make([]byte, 1<<16)
		n, _ := unix.Fgetxattr(fd, name, v)
		line += fmt.Sprintf(" %s:%.40x", name, v[:max(n, 0)])
	}
	return line
}

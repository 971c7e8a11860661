package driver

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func sortStrings(s []string) { slices.Sort(s) }

const cwd = unix.AT_FDCWD

// statLine is what a program may rely on of a stat.
func statLine(st *unix.Stat_t) string {
	s := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s += fmt.Sprintf(" size %d links %d", st.Size, st.Nlink)
	}
	if st.Mtim.Sec < 2e9 && st.Mtim.Sec >= 1e9 && st.Mtim.Sec < 1.1e9 {
		s += fmt.Sprintf(" mtime %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	return s
}

func init() {
	// One path.
	one := func(name string, f func(t *trial, p string) (any, error)) {
		addTrial(name, nil, func(t *trial) {
			for _, p := range targets {
				v, err := f(t, p)
				t.home()
				if v == nil {
					t.say(name+" "+short(p), err)
				} else {
					t.say(name+" "+short(p), err, v)
				}
			}
		})
	}
	for _, o := range []struct {
		name  string
		flags int
	}{
		{"O_RDONLY", unix.O_RDONLY}, {"O_WRONLY", unix.O_WRONLY}, {"O_RDWR", unix.O_RDWR}, {"3", 3},
		{"O_PATH", unix.O_PATH}, {"O_PATH|O_NOFOLLOW", unix.O_PATH | unix.O_NOFOLLOW}, {"O_PATH|O_DIRECTORY", unix.O_PATH | unix.O_DIRECTORY},
		{"O_DIRECTORY", unix.O_DIRECTORY}, {"O_NOFOLLOW", unix.O_NOFOLLOW}, {"O_WRONLY|O_NOFOLLOW", unix.O_WRONLY | unix.O_NOFOLLOW},
		{"O_CREAT", unix.O_CREAT}, {"O_CREAT|O_WRONLY", unix.O_CREAT | unix.O_WRONLY}, {"O_CREAT|O_EXCL", unix.O_CREAT | unix.O_EXCL},
		{"O_CREAT|O_WRONLY|O_TRUNC", unix.O_CREAT | unix.O_WRONLY | unix.O_TRUNC}, {"O_CREAT|O_DIRECTORY", unix.O_CREAT | unix.O_DIRECTORY},
		{"O_TRUNC", unix.O_TRUNC}, {"O_RDWR|O_TRUNC", unix.O_RDWR | unix.O_TRUNC}, {"O_WRONLY|O_APPEND", unix.O_WRONLY | unix.O_APPEND},
		{"O_TMPFILE|O_RDWR", unix.O_TMPFILE | unix.O_RDWR}, {"O_TMPFILE|O_RDONLY", unix.O_TMPFILE}, {"O_TMPFILE|O_EXCL|O_WRONLY", unix.O_TMPFILE | unix.O_EXCL | unix.O_WRONLY},
		{"O_RDONLY|O_NOATIME", unix.O_NOATIME}, {"O_CREAT|O_NOFOLLOW", unix.O_CREAT | unix.O_NOFOLLOW}, {"O_RDONLY|O_EXCL", unix.O_EXCL},
	} {
		one("open "+o.name, func(t *trial, p string) (any, error) {
			fd, err := unix.Open(p, o.flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o6751)
			if err != nil {
				return nil, err
			}
			defer unix.Close(fd)
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return nil, err
			}
			b := make([]byte, 16)
			n, rerr := unix.Read(fd, b)
			w, werr := unix.Write(fd, []byte("written"))
			return fmt.Sprintf("%s read %d %v write %d %v", statLine(&st), n, rerr, w, werr), nil
		})
	}
	one("creat", func(t *trial, p string) (any, error) {
		if r, err := unix.Open("fifo", unix.O_RDWR|unix.O_NONBLOCK, 0); err == nil { // nobody waits for a reader
			defer unix.Close(r)
		}
		fd, err := unix.Creat(p, 0o777)
		if err == nil {
			unix.Close(fd)
		}
		return nil, err
	})
	for name, resolve := range map[string]uint64{"BENEATH": unix.RESOLVE_BENEATH, "IN_ROOT": unix.RESOLVE_IN_ROOT, "NO_SYMLINKS": unix.RESOLVE_NO_SYMLINKS,
		"NO_XDEV": unix.RESOLVE_NO_XDEV, "NO_MAGICLINKS": unix.RESOLVE_NO_MAGICLINKS} {
		one("openat2 "+name, func(t *trial, p string) (any, error) {
			fd, err := unix.Openat2(cwd, p, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK, Resolve: resolve})
			if err == nil {
				unix.Close(fd)
			}
			return nil, err
		})
	}
	for name, f := range map[string]func(p string) error{
		"mkdir":                 func(p string) error { return unix.Mkdir(p, 0o7777) },
		"rmdir":                 unix.Rmdir,
		"unlink":                unix.Unlink,
		"unlinkat AT_REMOVEDIR": func(p string) error { return unix.Unlinkat(cwd, p, unix.AT_REMOVEDIR) },
		"unlinkat bad flag":     func(p string) error { return unix.Unlinkat(cwd, p, 1) },
		"mknod file":            func(p string) error { return unix.Mknod(p, unix.S_IFREG|0o666, 0) },
		"mknod fifo":            func(p string) error { return unix.Mknod(p, unix.S_IFIFO|0o666, 0) },
		"mknod socket":          func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o666, 0) },
		"mknod dir":             func(p string) error { return unix.Mknod(p, unix.S_IFDIR|0o666, 0) },
		"truncate 5":            func(p string) error { return unix.Truncate(p, 5) },
		"truncate 100000":       func(p string) error { return unix.Truncate(p, 100000) },
		"truncate -1":           func(p string) error { return unix.Truncate(p, -1) },
		"chmod 640":             func(p string) error { return unix.Chmod(p, 0o640) },
		"chmod 6777":            func(p string) error { return unix.Chmod(p, 0o6777) },
		"chmod 0":               func(p string) error { return unix.Chmod(p, 0) },
		"fchmodat2 NOFOLLOW":    func(p string) error { return unix.Fchmodat(cwd, p, 0o600, unix.AT_SYMLINK_NOFOLLOW) },
		"chown -1 -1":           func(p string) error { return unix.Chown(p, -1, -1) },
		"chown self":            func(p string) error { return unix.Chown(p, os.Geteuid(), os.Getegid()) },
		"lchown self":           func(p string) error { return unix.Lchown(p, os.Geteuid(), os.Getegid()) },
		"chdir":                 func(p string) error { return unix.Chdir(p) },
		"symlink at":            func(p string) error { return unix.Symlink("text", p) },
		"symlink empty":         func(p string) error { return unix.Symlink("", p) },
		"link src to":           func(p string) error { return unix.Link("src", p) },
		"link to new":           func(p string) error { unix.Unlink("new"); return unix.Link(p, "new") },
		"linkat FOLLOW to new": func(p string) error {
			unix.Unlink("new")
			return unix.Linkat(cwd, p, cwd, "new", unix.AT_SYMLINK_FOLLOW)
		},
		"rename to new":          func(p string) error { return unix.Rename(p, "new") },
		"rename src to":          func(p string) error { return unix.Rename("src", p) },
		"rename d to":            func(p string) error { return unix.Rename("d", p) },
		"rename full to":         func(p string) error { return unix.Rename("full", p) },
		"exchange with src":      func(p string) error { return unix.Renameat2(cwd, "src", cwd, p, unix.RENAME_EXCHANGE) },
		"exchange with full":     func(p string) error { return unix.Renameat2(cwd, "full", cwd, p, unix.RENAME_EXCHANGE) },
		"noreplace src to":       func(p string) error { return unix.Renameat2(cwd, "src", cwd, p, unix.RENAME_NOREPLACE) },
		"rename bad flags":       func(p string) error { return unix.Renameat2(cwd, "src", cwd, p, 64) },
		"rename two flags":       func(p string) error { return unix.Renameat2(cwd, "src", cwd, p, 3) },
		"rename WHITEOUT to new": func(p string) error { return unix.Renameat2(cwd, p, cwd, "new", unix.RENAME_WHITEOUT) },
		"access r":               func(p string) error { return unix.Access(p, 4) },
		"access w":               func(p string) error { return unix.Access(p, 2) },
		"access x":               func(p string) error { return unix.Access(p, 1) },
		"faccessat2 NOFOLLOW":    func(p string) error { return unix.Faccessat(cwd, p, 6, unix.AT_SYMLINK_NOFOLLOW) },
		"faccessat2 EACCESS":     func(p string) error { return unix.Faccessat(cwd, p, 2, unix.AT_EACCESS) },
		"setxattr":               func(p string) error { return unix.Setxattr(p, "user.b", []byte("bee"), 0) },
		"setxattr CREATE":        func(p string) error { return unix.Setxattr(p, "user.a", []byte("v"), unix.XATTR_CREATE) },
		"setxattr REPLACE":       func(p string) error { return unix.Setxattr(p, "user.a", []byte("longer value"), unix.XATTR_REPLACE) },
		"setxattr too big":       func(p string) error { return unix.Setxattr(p, "user.b", make([]byte, 65537), 0) },
		"setxattr long name":     func(p string) error { return unix.Setxattr(p, "user."+strings.Repeat("n", 251), nil, 0) },
		"setxattr empty name":    func(p string) error { return unix.Setxattr(p, "", []byte("x"), 0) },
		"setxattr no namespace":  func(p string) error { return unix.Setxattr(p, "name", []byte("x"), 0) },
		"setxattr trusted":       func(p string) error { return unix.Setxattr(p, "trusted.x", []byte("x"), 0) },
		"lsetxattr":              func(p string) error { return unix.Lsetxattr(p, "user.b", []byte("bee"), 0) },
		"removexattr":            func(p string) error { return unix.Removexattr(p, "user.a") },
		"lremovexattr":           func(p string) error { return unix.Lremovexattr(p, "user.a") },
		"setxattr ACL":           func(p string) error { return unix.Setxattr(p, "system.posix_acl_access", acl(6, 4, 4), 0) },
		"setxattr default ACL":   func(p string) error { return unix.Setxattr(p, "system.posix_acl_default", acl(7, 5, 0), 0) },
		"setxattr bad ACL":       func(p string) error { return unix.Setxattr(p, "system.posix_acl_access", []byte{2, 0, 0, 0, 1, 2}, 0) },
		"utimensat": func(p string) error {
			return unix.UtimesNanoAt(cwd, p, []unix.Timespec{{Sec: 1e9 + 1, Nsec: 999999999}, {Sec: 1e9 + 2, Nsec: 1}}, 0)
		},
		"utimensat NOFOLLOW": func(p string) error {
			return unix.UtimesNanoAt(cwd, p, []unix.Timespec{{Sec: 1e9 + 1, Nsec: 5}, {Sec: 1e9 + 2, Nsec: 6}}, unix.AT_SYMLINK_NOFOLLOW)
		},
		"utimensat OMIT mtime": func(p string) error {
			return unix.UtimesNanoAt(cwd, p, []unix.Timespec{{Sec: 1e9, Nsec: 7}, {Nsec: unix.UTIME_OMIT}}, 0)
		},
		"utimensat NOW": func(p string) error {
			return unix.UtimesNanoAt(cwd, p, []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, 0)
		},
		"utimensat bad ns": func(p string) error { return unix.UtimesNanoAt(cwd, p, []unix.Timespec{{Nsec: 1e9}, {Nsec: 5}}, 0) },
		"utimensat before": func(p string) error {
			return unix.UtimesNanoAt(cwd, p, []unix.Timespec{{Sec: -5, Nsec: 1}, {Sec: -6, Nsec: 2}}, 0)
		},
		"utimensat far off": func(p string) error { return unix.UtimesNanoAt(cwd, p, []unix.Timespec{{Sec: 1e10}, {Sec: 1e10}}, 0) },
	} {
		one(name, func(t *trial, p string) (any, error) { return nil, f(p) })
	}
	one("stat", func(t *trial, p string) (any, error) {
		var st unix.Stat_t
		err := unix.Stat(p, &st)
		return statLine(&st), err
	})
	one("lstat", func(t *trial, p string) (any, error) {
		var st unix.Stat_t
		err := unix.Lstat(p, &st)
		return statLine(&st), err
	})
	one("statx", func(t *trial, p string) (any, error) {
		var st unix.Statx_t
		err := unix.Statx(cwd, p, 0, unix.STATX_ALL, &st)
		return fmt.Sprintf("%#x %o %d attributes %#x", st.Mask&unix.STATX_BASIC_STATS, st.Mode, st.Blksize, st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND|unix.STATX_ATTR_NODUMP)), err
	})
	one("readlink", func(t *trial, p string) (any, error) {
		b := make([]byte, 3)
		n, err := unix.Readlink(p, b)
		return string(b[:max(n, 0)]), err
	})
	one("list", func(t *trial, p string) (any, error) {
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		return fmt.Sprintf("%q", namesOf(fd)), nil
	})
	for name, call := range map[string]func(string, string, []byte) (int, error){"getxattr": unix.Getxattr, "lgetxattr": unix.Lgetxattr} {
		one(name, func(t *trial, p string) (any, error) {
			b := make([]byte, 10)
			n, err := call(p, "user.a", b)
			_, tight := call(p, "user.a", b[:2])
			size, _ := call(p, "user.a", nil)
			_, none := call(p, "user.none", b)
			return fmt.Sprintf("%s %v %d %v", b[:max(n, 0)], tight, size, none), err
		})
	}
	one("listxattr", func(t *trial, p string) (any, error) {
		b := make([]byte, 1024)
		n, err := unix.Listxattr(p, b)
		_, tight := unix.Listxattr(p, b[:1])
		return fmt.Sprintf("%q %v", b[:max(n, 0)], tight), err
	})

	// Two.
	sources := []string{"f", "d", "full", "l", "dl", "fifo", "h1", "sub"}
	onto := []string{"new", "f2", "d2", "full2", "l2", "fifo2", "full/below", "full/in", "sub/deep", "sub/deep/new", "h2", "f", "d", ".", "missing/x", "new/", "d2/", "f2/"}
	for name, flags := range map[string]uint{"rename": 0, "noreplace": unix.RENAME_NOREPLACE, "exchange": unix.RENAME_EXCHANGE} {
		for _, from := range sources {
			addTrial(name+" "+from, func() error {
				for i := range onto {
					if err := pairFixture(fmt.Sprint(i)); err != nil {
						return err
					}
				}
				return nil
			}, func(t *trial) {
				for i, to := range onto {
					must(os.Chdir(fmt.Sprint(i)))
					t.say(fmt.Sprint(name, " ", from, " ", to), unix.Renameat2(cwd, from, cwd, to, flags))
					must(os.Chdir(".."))
				}
			})
		}
	}
}

// acl is a POSIX ACL as its attribute holds it: owner, one more user, group, mask, others.
func acl(owner, group, others byte) []byte {
	b := []byte{2, 0, 0, 0}
	add := func(tag, perm byte, id uint32) {
		b = append(b, tag, 0, perm, 0, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	const nobody = 0xffffffff
	add(1, owner, nobody)
	add(2, 4, uint32(os.Geteuid()))
	add(4, group, nobody)
	add(16, 6, nobody)
	add(32, others, nobody)
	return b
}

// pairFixture makes what two paths are tried on.
func pairFixture(dir string) error {
	var first error
	try := func(err error) {
		if first == nil {
			first = err
		}
	}
	try(os.Mkdir(dir, 0o755))
	for _, n := range []string{"", "2"} {
		for _, d := range []string{"d", "full", "sub", "sub/deep"} {
			d, rest, _ := strings.Cut(d, "/")
			try(os.MkdirAll(dir+"/"+d+n+"/"+rest, 0o755))
		}
		for _, f := range []string{"f" + n, "full" + n + "/in", "sub" + n + "/deep/leaf"} {
			try(os.WriteFile(dir+"/"+f, []byte(f), 0o644))
		}
		try(os.Symlink("f", dir+"/l"+n))
		try(os.Symlink("full", dir+"/dl"+n))
		try(unix.Mkfifo(dir+"/fifo"+n, 0o644))
	}
	try(os.WriteFile(dir+"/h1", []byte("h"), 0o644))
	try(os.Link(dir+"/h1", dir+"/h2"))
	return first
}

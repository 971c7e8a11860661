package driver

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// What calls on open files do, and what several processes see of one another.
func init() {
	open := func(p string, flags int) int {
		fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0o644)
		must(err)
		return fd
	}
	read := func(p string) string {
		data, err := os.ReadFile(p)
		if err != nil {
			return err.Error()
		}
		return string(data)
	}
	addTrial("open files", nil, func(t *trial) {
		fd := open("f", unix.O_RDWR)
		n, err := unix.Pwrite(fd, []byte("XY"), 3)
		t.say("pwrite", err, n)
		t.say("another name sees it", nil, read("l"))
		t.say("ftruncate", unix.Ftruncate(fd, 6))
		t.say("fchmod", unix.Fchmod(fd, 0o4711))
		t.say("fchown", unix.Fchown(fd, -1, os.Getegid()))
		t.say("fsetxattr", unix.Fsetxattr(fd, "user.f", []byte("1"), 0))
		t.say("fallocate", unix.Fallocate(fd, 0, 0, 1<<20))
		t.say("fallocate keep size", unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 1<<21))
		t.say("punch hole", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192))
		t.say("zero range", unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 4096))
		t.say("bad fallocate", unix.Fallocate(fd, 0, -1, 5))
		t.say("unlink", unix.Unlink("f"))
		var st unix.Stat_t
		t.say("fstat of what is unlinked", unix.Fstat(fd, &st), statLine(&st))
		n, err = unix.Pwrite(fd, []byte("still"), 0)
		t.say("write to what is unlinked", err, n)
		t.say("fsync", unix.Fsync(fd))
		unix.Close(fd)
		t.say("fd is closed", unix.Fchmod(fd, 0))
		dir := open("d", unix.O_RDONLY|unix.O_DIRECTORY)
		t.say("rmdir of an open directory", unix.Rmdir("d"))
		_, err = unix.Openat(dir, "new", unix.O_CREAT|unix.O_WRONLY, 0o644)
		t.say("make a file in it", err)
		unix.Close(dir)
	})
	addTrial("appending", nil, func(t *trial) {
		a, b := open("f", unix.O_WRONLY|unix.O_APPEND), open("f", unix.O_WRONLY|unix.O_APPEND)
		for i := range 4 {
			unix.Write(a, []byte(fmt.Sprint("a", i)))
			unix.Write(b, []byte(fmt.Sprint("b", i)))
		}
		t.say("all is there", nil, read("f"))
	})
	addTrial("a reader that was there first", nil, func(t *trial) {
		fd := open("f", unix.O_RDONLY)
		must(os.WriteFile("f", []byte("changed"), 0o644))
		b := make([]byte, 64)
		n, err := unix.Read(fd, b)
		t.say("reads", err, string(b[:max(n, 0)]))
		m, err := unix.Mmap(open("x", unix.O_RDONLY), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		must(err)
		must(os.WriteFile("x", []byte("other"), 0o755))
		t.say("has mapped", nil, string(bytes.TrimRight(m, "\x00")))
	})
	addTrial("mappings", nil, func(t *trial) {
		fd := open("f", unix.O_RDWR)
		m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		t.say("mmap", err)
		copy(m, "MAPPED")
		t.say("read through a link", nil, read("l"))
		t.say("msync", unix.Msync(m, unix.MS_SYNC))
		must(unix.Rename("f", "moved"))
		copy(m[6:], "again")
		t.say("read by its new name", nil, read("moved"))
		_, err = unix.Mmap(open("ro", unix.O_RDONLY), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		t.say("a shared writable mapping of what is open to read", err)
	})
	addTrial("without a name", nil, func(t *trial) {
		for _, dir := range []string{"d", "full", "setgid", "closed"} {
			fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
			t.say("O_TMPFILE in "+dir, err)
			if err != nil {
				continue
			}
			unix.Write(fd, []byte("nameless"))
			t.say("linkat", unix.Linkat(cwd, fmt.Sprintf("/proc/self/fd/%d", fd), cwd, dir+"/named", unix.AT_SYMLINK_FOLLOW))
			t.say("again", unix.Linkat(cwd, fmt.Sprintf("/proc/self/fd/%d", fd), cwd, dir+"/named", unix.AT_SYMLINK_FOLLOW))
			unix.Close(fd)
		}
		fd := open("d", unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL)
		t.say("linkat of O_EXCL", unix.Linkat(cwd, fmt.Sprintf("/proc/self/fd/%d", fd), cwd, "d/never", unix.AT_SYMLINK_FOLLOW))
	})
	addTrial("copies", nil, func(t *trial) {
		in, out := open("x", unix.O_RDONLY), open("f", unix.O_RDWR)
		n, err := unix.CopyFileRange(in, nil, out, nil, 5, 0)
		t.say("copy_file_range", err, n)
		_, err = unix.CopyFileRange(out, nil, in, nil, 5, 0)
		t.say("onto what is open to read", err)
		n, err = unix.Sendfile(out, in, nil, 100)
		t.say("sendfile", err, n)
		t.say("the file", nil, read("f"))
	})
	addTrial("holes", func() error {
		f, err := os.Create("sparse")
		if err == nil {
			_, err = f.WriteAt([]byte("high"), 5<<30)
			f.Close()
		}
		return err
	}, func(t *trial) {
		fd := open("sparse", unix.O_RDWR)
		for _, at := range []int64{0, 1 << 30, 5 << 30, 6 << 30, -1} {
			d, err := unix.Seek(fd, at, unix.SEEK_DATA)
			t.say(fmt.Sprint("SEEK_DATA ", at), err, d)
			h, err := unix.Seek(fd, at, unix.SEEK_HOLE)
			t.say(fmt.Sprint("SEEK_HOLE ", at), err, h)
		}
		n, err := unix.Pwrite(fd, []byte("low"), 3<<30)
		t.say("a write in the middle", err, n)
		var st unix.Stat_t
		must(unix.Fstat(fd, &st))
		t.say("it stays sparse", nil, st.Size, st.Blocks < 1000)
		b := make([]byte, 4)
		_, err = unix.Pread(fd, b, 5<<30)
		t.say("its end", err, string(b))
		t.say("truncate to 6 GiB", unix.Truncate("sparse", 6<<30))
		t.say("truncate beyond", unix.Truncate("sparse", 1<<62))
	})
	addTrial("names", func() error { return os.Mkdir("n", 0o755) }, func(t *trial) {
		made := 0
		for c := 1; c < 256; c++ {
			if c == '/' {
				continue
			}
			for _, name := range []string{string([]byte{'n', byte(c)}), string([]byte{byte(c), 'x', byte(c)})} {
				if err := os.WriteFile("n/"+name, []byte(name), 0o644); err != nil {
					t.say(fmt.Sprintf("make %q", name), err)
				} else if read("n/"+name) == name {
					made++
				}
				if c%3 == 0 {
					must(unix.Rename("n/"+name, "n/"+name+"'"))
				}
			}
		}
		t.say("files of every byte", nil, made)
	})
	addTrial("many entries", func() error {
		for i := range 3000 {
			if err := os.WriteFile(fmt.Sprintf("many-%04d", i), nil, 0o644); err != nil {
				return err
			}
		}
		return nil
	}, func(t *trial) {
		for i := 0; i < 3000; i += 2 {
			must(unix.Unlink(fmt.Sprintf("many-%04d", i)))
		}
		for i := range 500 {
			must(os.WriteFile(fmt.Sprintf("new-%04d", i), nil, 0o644))
		}
		names := namesOf(t.here)
		t.say("listed", nil, len(names), names[0], names[len(names)-1])
	})
	addTrial("who gets what", nil, func(t *trial) {
		for _, mask := range []int{0, 0o27, 0o777} {
			old := unix.Umask(mask)
			for _, dir := range []string{"d", "setgid", "sticky"} {
				name := fmt.Sprintf("%s/%o", dir, mask)
				t.say("mkdir "+name, unix.Mkdir(name, 0o2777))
				t.say("mknod "+name, unix.Mknod(name+"f", unix.S_IFREG|0o6777, 0))
			}
			unix.Umask(old)
		}
		t.say("default ACL", unix.Setxattr("full", "system.posix_acl_default", acl(7, 5, 0), 0))
		t.say("file below", unix.Mknod("full/file", unix.S_IFREG|0o666, 0))
		t.say("directory below", unix.Mkdir("full/dir", 0o777))
		t.say("chmod under ACLs", unix.Chmod("full/file", 0o604))
		t.say("remove", unix.Removexattr("full", "system.posix_acl_default"))
		t.say("remove again", unix.Removexattr("full", "system.posix_acl_default"))
		t.say("user.* of a link", unix.Lsetxattr("l", "user.x", []byte("y"), 0))
		t.say("user.* of a fifo", unix.Setxattr("fifo", "user.x", []byte("y"), 0))
		t.say("chown to another", unix.Chown("f", os.Geteuid()+1, -1))
		t.say("setuid goes with a write", setuidGoes("x"))
		fd := open("d", unix.O_RDONLY)
		t.say("immutable", unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0x10))
		unix.Close(fd)
	})
	addTrial("programs", func() error {
		if err := fixture(); err != nil {
			return err
		}
		return os.WriteFile("script", []byte("#!/bin/sh\necho script $1\n"), 0o755)
	}, func(t *trial) {
		out, err := exec.Command("./script", "a").CombinedOutput()
		t.say("script", err, string(out))
		must(os.WriteFile("script", []byte("#!/bin/sh\necho changed $1\n"), 0o755))
		out, err = exec.Command("./script", "b").CombinedOutput()
		t.say("changed script", err, string(out))
		t.say("not executable", unix.Exec("./f", []string{"f"}, nil))
		t.say("directory", unix.Exec("./d", []string{"d"}, nil))
		t.say("missing", unix.Exec("./missing", []string{"d"}, nil))
	})
	addTrial("between processes", nil, func(t *trial) {
		fd := open("f", unix.O_RDWR)
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 2, Len: 5}
		t.say("fcntl lock", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lk))
		t.say("flock", unix.Flock(fd, unix.LOCK_EX))
		t.say("the other", nil, child("locks", "l"))
		t.say("unlock", unix.Flock(fd, unix.LOCK_UN))
		unix.Close(fd)
		t.say("the other then", nil, child("locks", "f"))
		ofd := open("x", unix.O_RDWR)
		lk = unix.Flock_t{Type: unix.F_RDLCK, Start: 0, Len: 100}
		t.say("OFD lock", unix.FcntlFlock(uintptr(ofd), unix.F_OFD_SETLK, &lk))
		t.say("the other of that", nil, child("locks", "x"))

		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		must(err)
		t.say("bind", unix.Bind(s, &unix.SockaddrUnix{Name: "d/s"}))
		t.say("bind again", unix.Bind(s, &unix.SockaddrUnix{Name: "d/s2"}))
		t.say("listen", unix.Listen(s, 1))
		t.say("connect", nil, child("connect", "d/s"))
		t.say("connect to a dead one", nil, child("connect", "sock"))
		t.say("connect to a file", nil, child("connect", "f"))

		w := exec.Command("/proc/self/exe", "fifo")
		w.Env = append(os.Environ(), "FIDELITY_CHILD=write")
		must(w.Start())
		t.say("through a FIFO", nil, read("fifo"))
		must(w.Wait())
	})
	addTrial("inotify", nil, func(t *trial) {
		in, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		must(err)
		wd, err := unix.InotifyAddWatch(in, ".", unix.IN_ALL_EVENTS&^(unix.IN_ACCESS|unix.IN_OPEN|unix.IN_CLOSE_NOWRITE))
		t.say("watch", err, wd)
		wd, err = unix.InotifyAddWatch(in, "f", unix.IN_ALL_EVENTS&^(unix.IN_ACCESS|unix.IN_OPEN|unix.IN_CLOSE_NOWRITE))
		t.say("watch a file", err, wd)
		must(unix.Mknod("made", unix.S_IFREG|0o644, 0))
		must(unix.Chmod("made", 0o600))
		must(unix.Rename("made", "renamed"))
		must(unix.Unlink("renamed"))
		must(unix.Mkdir("dir", 0o755))
		must(unix.Chmod("f", 0o600))
		fd := open("f", unix.O_WRONLY)
		unix.Write(fd, []byte("x"))
		unix.Close(fd)
		must(unix.Rename("f", "d/f"))
		t.say("events", nil, eventsOf(in))
	})

	fidelityChildren["locks"] = func() {
		fd := open(os.Args[1], unix.O_RDWR)
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 3}
		a := unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lk)
		fmt.Print(a, lk.Type, lk.Start, lk.Len, lk.Pid > 0)
		lk = unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 3}
		fmt.Print(" ", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lk), " ", unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB))
	}
	fidelityChildren["connect"] = func() {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		must(err)
		fmt.Print(unix.Connect(s, &unix.SockaddrUnix{Name: os.Args[1]}))
	}
	fidelityChildren["write"] = func() {
		fd := open(os.Args[1], unix.O_WRONLY)
		unix.Write(fd, []byte("hello through it"))
	}
}

// setuidGoes writes to a program with the set-user-ID bit.
func setuidGoes(p string) error {
	if err := unix.Chmod(p, 0o6755); err != nil {
		return err
	}
	fd, err := unix.Open(p, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("x"))
	return err
}

// eventsOf reads what an inotify descriptor has: events are queued before the call that
// makes them returns.
func eventsOf(in int) string {
	var out []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(in, buf)
		if err != nil || n <= 0 {
			return strings.Join(out, " ")
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			mask := uint32(b[4]) | uint32(b[5])<<8 | uint32(b[6])<<16 | uint32(b[7])<<24
			l := int(b[12]) | int(b[13])<<8
			out = append(out, fmt.Sprintf("%d:%x:%s", b[0], mask, bytes.TrimRight(b[16:16+l], "\x00")))
			b = b[16+l:]
		}
	}
}

package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// needPrograms skips a test without those programs, or fails it where they were installed.
func needPrograms(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("SANDGLASS_NO_SKIP") != "" {
			t.Fatalf("%s is not installed: tools/setup.sh installs it", p)
		}
		t.Skipf("%s is not installed", p)
	}
}

// datagram is an IPv4 packet with a UDP datagram in it.
func datagram(payload string) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 2, 203, 0, 113, 5, 0x30, 0x39, 0, 7, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(payload)))
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...)
}

// export is what WriteCapture writes, in a file of its own.
func export(t *testing.T, path string) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteCapture(&b, path); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "all.pcapng")
	if err := os.WriteFile(to, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func output(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, &errs)
	}
	return string(out)
}

func TestWiresharkReadsACapture(t *testing.T) {
	needPrograms(t, "tshark", "capinfos")
	path := filepath.Join(t.TempDir(), "it.pcapng")
	c, err := newCapture(path, 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1764000000, 123456789)
	c.packet(at, true, datagram("out"), "curl (12)")
	c.packet(at.Add(time.Nanosecond), false, datagram("in!"), "")
	c.packet(at.Add(time.Second), true, datagram("x"), "caf\u00e9 \xff\n"+strings.Repeat("\u00e9", 600))
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", fi.Mode(), err)
	}
	got := output(t, "tshark", "-n", "-r", export(t, path), "-T", "fields", "-E", "separator=|", "-e", "frame.time_epoch", "-e", "frame.p2p_dir",
		"-e", "frame.packet_flags_direction", "-e", "ip.dst", "-e", "udp.dstport", "-e", "udp.payload", "-e", "frame.comment", "-e", "frame.interface_name")
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 3 {
		t.Fatalf("tshark reads %d packets:\n%s", len(lines), got)
	}
	for i, want := range []struct{ time, direction, data, comment string }{
		{"1764000000.123456789", "2", "6f7574", "curl (12)"},
		{"1764000000.123456790", "1", "696e21", ""},
		{"1764000001.123456789", "2", "78", "caf\u00e9 \uFFFD"},
	} {
		f := strings.Split(lines[i], "|")
		if len(f) != 8 {
			t.Fatalf("tshark reads %q", lines[i])
		}
		direction := strings.TrimPrefix(f[2], "0x0000000") // as a number, or in hexadecimal, by its version
		if f[0] != want.time || direction != want.direction || f[3] != "203.0.113.5" || f[4] != "7" || f[5] != want.data || f[7] != "box" ||
			!strings.HasPrefix(f[6], want.comment) || want.comment == "" && f[6] != "" {
			t.Errorf("tshark reads %q, want %v", f, want)
		}
	}
	if infos := output(t, "capinfos", path); !strings.Contains(infos, "Sandglass") || !strings.Contains(infos, "nanoseconds (9)") ||
		!strings.Contains(infos, "Raw IP") {
		t.Errorf("capinfos says\n%s", infos)
	}
}

func TestACaptureIsARing(t *testing.T) {
	needPrograms(t, "tshark", "capinfos")
	path := filepath.Join(t.TempDir(), "it.pcapng")
	for _, old := range []string{path, path + ".1"} {
		if err := os.WriteFile(old, []byte("of another session"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const limit, packets = 512 << 10, 3000
	c, err := newCapture(path, limit, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	data := datagram(strings.Repeat("x", 1000))
	for i := range packets {
		c.packet(time.Unix(1764000000, int64(i)), true, data, fmt.Sprint("number ", i))
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".1"} {
		if fi, err := os.Stat(p); err != nil || fi.Size() > limit/2 {
			t.Errorf("%s is of %d bytes (%v), more than half of %d", p, fi.Size(), err, limit)
		}
	}
	comments := strings.Fields(strings.ReplaceAll(output(t, "tshark", "-n", "-r", export(t, path), "-T", "fields", "-e", "frame.comment"), "number ", ""))
	first := packets - len(comments)
	if len(comments) < limit/4/1100 {
		t.Fatalf("%d packets are left", len(comments))
	}
	for i, c := range comments {
		if c != fmt.Sprint(first+i) {
			t.Fatalf("after packet %d comes %s", first+i-1, c)
		}
	}
}

// TestACaptureIsReadWhileItIsWritten: whatever the moment, what is read are whole blocks in
// order.
func TestACaptureIsReadWhileItIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it.pcapng")
	c, err := newCapture(path, leastCapture, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 1000 {
				c.packet(time.Now(), true, datagram(strings.Repeat("x", 500)), "c")
			}
		})
	}
	for range 50 {
		var b bytes.Buffer
		if err := WriteCapture(&b, path); err != nil {
			t.Error(err)
		}
		for rest := b.Bytes(); len(rest) > 0; {
			rest = rest[binary.LittleEndian.Uint32(rest[4:]):]
		}
	}
	all.Wait()
	if err := c.close(); err != nil {
		t.Error(err)
	}
	c.packet(time.Now(), true, datagram("late"), "")
	if err := c.close(); err != nil {
		t.Error("closed twice:", err)
	}
}

func TestACaptureOnAFullDiskEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it.pcapng")
	failed := make(chan error, 2)
	c, err := newCapture(path, 1<<20, func(err error) { failed <- err })
	if err != nil {
		t.Fatal(err)
	}
	whole := c.size
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.file.Close()
	c.file = full // nothing was written yet: the writer has not looked at it
	for range 200 {
		c.packet(time.Now(), true, datagram(strings.Repeat("x", 1000)), "")
	}
	if err := <-failed; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("it failed with %v", err)
	}
	if err := c.close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("close says %v", err)
	}
	if len(failed) != 0 || len(c.pending) != 0 {
		t.Errorf("it was said again, or %d bytes are kept", len(c.pending))
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != whole {
		t.Errorf("the file is of %d bytes, not %d (%v)", fi.Size(), whole, err)
	}
}

func TestACaptureThatEndsWithinABlockIsReadToItsLastWholeOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it.pcapng")
	c := &capture{path: path, half: 1 << 20}
	if err := c.begin(); err != nil {
		t.Fatal(err)
	}
	defer c.file.Close()
	p := appendPacket(nil, time.Now(), true, datagram("x"), "")
	if err := c.write(p); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{3, 10, len(p) - 4} { // as the end of a supervisor in a write leaves it
		if _, err := c.file.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := WriteCapture(&b, path); err != nil || int64(b.Len()) != c.size {
			t.Errorf("of %d whole bytes and %d more %d are read (%v)", c.size, n, b.Len(), err)
		}
		if err := c.file.Truncate(c.size); err != nil {
			t.Fatal(err)
		}
		if _, err := c.file.Seek(c.size, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestACaptureThatTheDiskIsTooSlowForCountsWhatItDrops(t *testing.T) {
	c := &capture{wake: make(chan struct{}, 1), half: 1 << 40, path: filepath.Join(t.TempDir(), "it.pcapng")}
	if err := c.begin(); err != nil {
		t.Fatal(err)
	}
	defer c.file.Close()
	data := datagram(strings.Repeat("x", 60000))
	for range 100 { // and nobody writes
		c.packet(time.Now(), true, data, "")
	}
	if len(c.pending) > maxPending+maxBlock || c.dropped == 0 {
		t.Errorf("%d bytes wait, %d packets were dropped", len(c.pending), c.dropped)
	}
	kept := 100 - int(c.dropped)
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	needPrograms(t, "tshark", "capinfos")
	if n := len(strings.Fields(output(t, "tshark", "-n", "-r", c.path, "-T", "fields", "-e", "frame.number"))); n != kept {
		t.Errorf("%d packets are in the file, %d were kept", n, kept)
	}
	if infos := output(t, "capinfos", c.path); !strings.Contains(infos, "Number of stat entries = 1") {
		t.Errorf("capinfos says\n%s", infos)
	}
}

func TestWhatIsNoCaptureIsNotRead(t *testing.T) {
	dir := t.TempDir()
	if err := WriteCapture(&bytes.Buffer{}, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no file: %v", err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("garbage!", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(garbage, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{fifo, garbage, link, dir} {
		if err := WriteCapture(&bytes.Buffer{}, p); err == nil {
			t.Errorf("%s was read", p)
		}
	}
	if _, err := newCapture(link, 1<<20, nil); err == nil {
		t.Error("a link was followed")
	}
	if _, err := newCapture(filepath.Join(dir, "small"), 1000, nil); err == nil {
		t.Error("a capture of 1000 bytes was begun")
	}
}

package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
)

// capture writes the box's packets as pcapng (IETF draft-ietf-opsawg-pcapng), for Wireshark.
// It is a ring of two files, PATH and the older PATH.1, each a capture of its own. A disk
// that cannot take it costs packets of the capture, never the box.
type capture struct {
	path   string
	half   int64       // bytes of a file, at most
	failed func(error) // called once, when nothing more is captured; may be nil

	mu      sync.Mutex
	pending []byte // whole blocks that are to be written
	dropped uint64 // packets that came while too much was pending
	ended   bool   // by close, or by a disk that failed

	wake chan struct{} // there is much to write
	quit chan struct{}
	done chan struct{}
	err  error // of the writer; read after done
	told bool  // failed has been called; read after done

	file    *os.File // the writer's own, as are:
	size    int64
	spare   []byte
	written uint64 // dropped as the file says it
}

const (
	captureEvery   = time.Second
	captureFull    = 64 << 10 // pending bytes that do not wait for the second
	maxPending     = 4 << 20
	snapLength     = 65535
	maxComment     = 512
	leastCapture   = 256 << 10
	linkRaw        = 101        // LINKTYPE_RAW: IPv4 and IPv6 packets, told by their version
	blockSection   = 0x0A0D0D0A // the types of blocks
	blockInterface = 1
	blockStats     = 5
	blockPacket    = 6
	maxBlock       = snapLength + 4096 // no block of ours is larger
)

// newCapture begins a capture in path, which is made anew, of at most limit bytes. failed is
// told, once, that no more can be written. The caller closes it.
func newCapture(path string, limit int64, failed func(error)) (*capture, error) {
	if limit < leastCapture {
		return nil, core.Hint(fmt.Errorf("capture in %s: %d bytes are too few", path, limit), "the smallest capture is of 256KiB")
	}
	if err := os.Remove(path + ".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	c := &capture{path: path, half: limit / 2, failed: failed, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	if err := c.begin(); err != nil {
		return nil, err
	}
	go c.run()
	return c, nil
}

// packet adds a packet, out when the box sent it, with a comment for people. It copies, and
// waits for no disk: packets that a disk is too slow for are counted in the file instead.
func (c *capture) packet(at time.Time, out bool, data []byte, comment string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	had := len(c.pending)
	if had > maxPending {
		c.dropped++
		return
	}
	c.pending = appendPacket(c.pending, at, out, data, comment)
	if had < captureFull && len(c.pending) >= captureFull {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// close writes what there is and ends the capture. It returns what went wrong, if anything
// did.
func (c *capture) close() error {
	c.mu.Lock()
	was := c.ended
	c.ended = true
	c.mu.Unlock()
	if !was {
		close(c.quit)
	}
	<-c.done
	return c.err
}

// run writes until close, or until the disk does not take it.
func (c *capture) run() {
	defer close(c.done)
	tick := time.NewTicker(captureEvery)
	defer tick.Stop()
	for last := false; !last && c.err == nil; {
		select {
		case <-tick.C:
		case <-c.wake:
		case <-c.quit:
			last = true
		}
		c.err = c.flush()
	}
	if err := c.file.Close(); c.err == nil {
		c.err = err
	}
	if c.err == nil {
		return
	}
	c.err = fmt.Errorf("capture: %w", c.err)
	c.mu.Lock()
	closing := c.ended
	c.ended, c.pending = true, nil
	c.mu.Unlock()
	if c.failed != nil && !closing {
		c.failed(c.err)
		c.told = true
	}
}

// flush writes what is pending, into a new file where it does not fit the present one.
func (c *capture) flush() error {
	c.mu.Lock()
	blocks := c.pending
	c.pending, c.spare = c.spare[:0], nil
	dropped := c.dropped
	c.mu.Unlock()
	defer func() { c.spare = blocks[:0] }()
	if dropped != c.written {
		blocks = appendStats(blocks, time.Now(), dropped)
		c.written = dropped
	}
	for rest := blocks; len(rest) > 0; {
		n := wholeBlocks(rest, c.half-c.size)
		if n == 0 {
			if err := c.rotate(); err != nil {
				return err
			}
			continue
		}
		if err := c.write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// wholeBlocks is how many of the bytes are of whole blocks within room.
func wholeBlocks(b []byte, room int64) (n int) {
	for n < len(b) {
		size := int(binary.LittleEndian.Uint32(b[n+4:]))
		if int64(n+size) > room {
			break
		}
		n += size
	}
	return n
}

// write appends to the file. What a full disk took of it is taken back: the file ends with a
// whole block.
func (c *capture) write(b []byte) error {
	n, err := c.file.Write(b)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, c.file.Truncate(c.size))
		}
		return err
	}
	c.size += int64(n)
	return nil
}

// begin makes the file, with its section and its one interface.
func (c *capture) begin() error {
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	c.file, c.size = f, 0
	if err := c.write(sectionHeader()); err != nil {
		f.Close()
		return err
	}
	return nil
}

// rotate makes the file the older of the two.
func (c *capture) rotate() error {
	if err := c.file.Close(); err != nil {
		return err
	}
	if err := os.Rename(c.path, c.path+".1"); err != nil {
		return err
	}
	return c.begin()
}

// Options of blocks.
const (
	optEnd       = 0
	optComment   = 1
	optHardware  = 2 // of a section
	optOS        = 3
	optUser      = 4
	optIfName    = 2 // of an interface
	optTsresol   = 9
	optFlags     = 2 // of a packet
	optIfDrop    = 5 // of statistics
	directionIn  = 1
	directionOut = 2
)

// appendBlock appends a block whose body f appends.
func appendBlock(b []byte, kind uint32, f func([]byte) []byte) []byte {
	le, at := binary.LittleEndian, len(b)
	b = le.AppendUint32(le.AppendUint32(b, kind), 0)
	b = f(b)
	size := uint32(len(b) - at + 4)
	le.PutUint32(b[at+4:], size)
	return le.AppendUint32(b, size)
}

func appendOption(b []byte, code int, value string) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(le.AppendUint16(b, uint16(code)), uint16(len(value)))
	return appendPadded(b, value)
}

// appendPadded appends value and fills up to a multiple of four.
func appendPadded[T string | []byte](b []byte, value T) []byte {
	return append(append(b, value...), "\x00\x00\x00"[:-len(value)&3]...)
}

func endOptions(b []byte) []byte { return append(b, 0, 0, 0, 0) }

func sectionHeader() []byte {
	le := binary.LittleEndian
	b := appendBlock(nil, blockSection, func(b []byte) []byte {
		b = le.AppendUint32(b, 0x1A2B3C4D) // the order of bytes
		b = le.AppendUint16(le.AppendUint16(b, 1), 0)
		b = le.AppendUint64(b, 1<<64-1) // how long the section is, is not said
		b = appendOption(b, optHardware, runtime.GOARCH)
		b = appendOption(b, optOS, runtime.GOOS)
		return endOptions(appendOption(b, optUser, "Sandglass"))
	})
	return appendBlock(b, blockInterface, func(b []byte) []byte {
		b = le.AppendUint16(le.AppendUint16(b, linkRaw), 0)
		b = le.AppendUint32(b, snapLength)
		b = appendOption(b, optIfName, "box")
		return endOptions(appendOption(b, optTsresol, "\x09")) // nanoseconds
	})
}

func appendTime(b []byte, at time.Time) []byte {
	ns := uint64(at.UnixNano())
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, uint32(ns>>32)), uint32(ns))
}

func appendPacket(b []byte, at time.Time, out bool, data []byte, comment string) []byte {
	le := binary.LittleEndian
	return appendBlock(b, blockPacket, func(b []byte) []byte {
		b = appendTime(le.AppendUint32(b, 0), at)
		kept := data[:min(len(data), snapLength)]
		b = le.AppendUint32(le.AppendUint32(b, uint32(len(kept))), uint32(len(data)))
		b = appendPadded(b, kept)
		direction := directionIn
		if out {
			direction = directionOut
		}
		b = appendOption(b, optFlags, string([]byte{byte(direction), 0, 0, 0}))
		if comment != "" {
			b = appendOption(b, optComment, commentText(comment))
		}
		return endOptions(b)
	})
}

// commentText is a comment as UTF-8 of bounded length.
func commentText(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxComment)], "\uFFFD")
	return strings.ToValidUTF8(s[:min(len(s), maxComment)], "") // what was replaced is longer, and a cut may be within one
}

func appendStats(b []byte, at time.Time, dropped uint64) []byte {
	le := binary.LittleEndian
	return appendBlock(b, blockStats, func(b []byte) []byte {
		b = appendTime(le.AppendUint32(b, 0), at)
		return endOptions(appendOption(b, optIfDrop, string(le.AppendUint64(nil, dropped))))
	})
}

// WriteCapture writes the capture in path to w, the older packets first: also while it is
// being written, up to its last whole block.
func WriteCapture(w io.Writer, path string) error {
	older, newer, err := openCapture(path)
	if err != nil {
		return err
	}
	for _, f := range []*os.File{older, newer} {
		if f == nil {
			continue
		}
		if err == nil {
			err = copyBlocks(w, f)
		}
		f.Close()
	}
	return err
}

// openCapture opens both files as they are at one time: the newer may become the older
// between the two.
func openCapture(path string) (older, newer *os.File, err error) {
	const tries = 8
	for range tries {
		if newer, err = openRegular(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, err
		}
		var olderErr error
		if older, olderErr = openRegular(path + ".1"); older == nil && newer == nil {
			return nil, nil, errors.Join(err, olderErr)
		}
		if older == nil || newer == nil || !sameFile(older, newer) {
			return older, newer, nil
		}
		older.Close()
		newer.Close()
	}
	return nil, nil, fmt.Errorf("read %s: it is replaced faster than it can be opened", path)
}

func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is not a capture", path)
	}
	return f, nil
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	y, berr := b.Stat()
	return err == nil && berr == nil && os.SameFile(x, y)
}

// copyBlocks copies whole blocks until there are no more.
func copyBlocks(w io.Writer, f *os.File) error {
	block := make([]byte, maxBlock)
	for {
		if _, err := io.ReadFull(f, block[:8]); err != nil {
			return unlessCut(err)
		}
		size := binary.LittleEndian.Uint32(block[4:])
		if size < 12 || size > maxBlock || size%4 != 0 {
			return fmt.Errorf("%s is damaged: a block of %d bytes", f.Name(), size)
		}
		if _, err := io.ReadFull(f, block[8:size]); err != nil {
			return unlessCut(err)
		}
		if !bytes.Equal(block[4:8], block[size-4:size]) {
			return fmt.Errorf("%s is damaged: a block does not end as it begins", f.Name())
		}
		if _, err := w.Write(block[:size]); err != nil {
			return err
		}
	}
}

// unlessCut is nil where err only says that the file ends.
func unlessCut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}

package events

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
)

// ErrDiskFull is wrapped by the errors about a spool that has no room to grow.
var ErrDiskFull = errors.New("disk full")

// maxSegment is where a segment ends; what the bus has of a spool is removed in segments.
var maxSegment int64 = 32 << 20

// reserve is how much of the disk a spool has for itself behind its end, before anything
// is written there. A box that fills the disk does so in its own files; the log goes on
// in what it has. Half of it is for a box that runs on, the other for what waits in
// memory when it has ended: some 60,000 operations, of 60 bytes as they usually are.
var reserve int64 = 8 << 20

// reserveStep is how much is reserved at a time.
func reserveStep() int64 { return reserve / 4 }

const (
	lockName  = "lock"
	ackedName = "acked"
	newPrefix = ".new-" // of a folder that is being made
	badPrefix = "bad-"  // of a file with bytes that could not be read
)

// spool is the writing end of a spool's folder, held by a lock for as long as it is open.
// Its methods are called by one goroutine at a time, but for end, sync and remove.
type spool struct {
	dir    string
	lock   *os.File
	marker marker

	// Of who appends:
	ahead  int64     // the segment has its room on the disk up to here
	scarce bool      // there was no more room to reserve
	tight  bool      // there is hardly any on the disk, whether or not some is needed now
	looked time.Time // when tight was found out
	retry  time.Time // when to try again
	cannot bool      // nothing is reserved: the file system does not do it

	mu     sync.Mutex
	f      *os.File      // the segment that is written to; nil before the first record
	tail   position      // the end of what is whole
	grown  chan struct{} // closed and made anew when tail moves
	synced position      // fsync has reached the disk up to here
	files  []*os.File    // earlier segments that are not yet synced
}

// SpoolDir returns the folder of all spools in a state folder.
func SpoolDir(home string) string { return filepath.Join(home, "spool") }

// createSpool makes and locks the spool of a session. Nobody sees it without its lock.
func createSpool(parent string, id core.SessionID) (*spool, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, fmt.Errorf("make spools' folder: %w", err)
	}
	dir, tmp := filepath.Join(parent, string(id)), filepath.Join(parent, newPrefix+string(id))
	if escapeToken(string(id)) != string(id) || id == noToken {
		return nil, fmt.Errorf("make spool: bad session id %q", core.Shorten(string(id), 80))
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, spoolError("make spool", err)
	}
	lock, err := lockSpool(tmp)
	if err == nil {
		if err = os.Rename(tmp, dir); err == nil {
			return &spool{dir: dir, lock: lock, marker: newMarker(), grown: make(chan struct{}), tail: position{1, 0}}, nil
		}
		lock.Close()
	}
	os.RemoveAll(tmp)
	return nil, spoolError("make spool "+dir, err)
}

// lockSpool takes the lock of a spool's folder, or returns errLocked: its owner lives.
func lockSpool(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, err
	}
	return f, nil
}

var errLocked = errors.New("its session runs")

func spoolError(doing string, err error) error {
	if isFull(err) {
		return core.Hint(fmt.Errorf("%s: %w: %w", doing, ErrDiskFull, err), "make room on the disk that holds the spool; the log goes on from where it stopped")
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// append adds a record, made by sealRecord, to the spool. When it fails, nothing of the
// record is in the spool; it may be tried again when the error wraps ErrDiskFull.
func (s *spool) append(rec []byte) error {
	s.mu.Lock()
	tail, f := s.tail, s.f
	s.mu.Unlock()
	mine := f != nil && tail.off+int64(len(rec)) <= s.ahead // there is room for it that nobody else can take
	later := mine && s.scarce && time.Now().Before(s.retry)
	if f == nil || tail.off+int64(len(rec)) > maxSegment && tail.off > segHead && !later {
		next := position{tail.seg, 0}
		if f != nil {
			next.seg++
		}
		nf, ahead, err := s.newSegment(next.seg)
		switch {
		case isFull(err) && mine: // a new one has none
			s.scarce, s.retry = true, time.Now().Add(retryFullEach)
		case err != nil:
			return spoolError("make a segment of spool "+s.dir, err)
		default:
			if f != nil {
				f.Truncate(tail.off) // gives back what was reserved and not used
			}
			next.off, s.ahead = segHead, ahead
			s.mu.Lock()
			if f != nil {
				s.files = append(s.files, f)
			}
			s.f, s.tail = nf, next
			f, tail = nf, next
			s.mu.Unlock()
		}
	}
	if _, err := f.WriteAt(rec, tail.off); err != nil {
		s.ahead, s.scarce = 0, isFull(err) && !s.cannot // what is ahead is cut off
		if terr := f.Truncate(tail.off); terr != nil {
			return fmt.Errorf("write spool %s: %w; and cut it back: %w", s.dir, err, terr)
		}
		return spoolError("write spool "+s.dir, err)
	}
	s.mu.Lock()
	s.tail.off += int64(len(rec))
	close(s.grown)
	s.grown = make(chan struct{})
	s.mu.Unlock()
	s.keepReserve()
	return nil
}

func (s *spool) newSegment(n int64) (f *os.File, ahead int64, err error) {
	path := filepath.Join(s.dir, segName(n))
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, 0, err
	}
	ahead = reserve + reserveStep()
	if err = s.allocate(f, 0, ahead); err == nil {
		_, err = f.WriteAt(append([]byte(segMagic), s.marker[:]...), 0)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, ahead, nil
}

// allocate gives a part of a file its room on the disk, and leaves its size as it is:
// what reads the spool sees nothing of it. On a file system that cannot do this it does
// nothing.
func (s *spool) allocate(f *os.File, off, size int64) error {
	const keepSize = 1 // FALLOC_FL_KEEP_SIZE of fallocate(2)
	if s.cannot {
		return nil
	}
	err := ignoringEINTR(func() error { return syscall.Fallocate(int(f.Fd()), keepSize, off, size) })
	if err != nil && !isFull(err) {
		s.cannot = true
		return nil
	}
	return err
}

func ignoringEINTR(fn func() error) error {
	for {
		if err := fn(); err != syscall.EINTR {
			return err
		}
	}
}

// keepReserve reserves more when some of the reserve was used.
func (s *spool) keepReserve() {
	if s.left() >= reserve {
		s.scarce = false
		return
	}
	if s.scarce && time.Now().Before(s.retry) {
		return
	}
	for s.scarce = false; s.left() < reserve && !s.scarce; {
		from := max(s.ahead, s.tail.off)
		if err := s.allocate(s.f, from, reserveStep()); err != nil {
			s.scarce, s.retry = true, time.Now().Add(retryFullEach)
		} else {
			s.ahead = from + reserveStep()
		}
	}
}

// tightBelow is how much room on the disk is none to speak of, and tightEvery how often
// that is looked at.
const (
	tightBelow = 128 << 10
	tightEvery = 20 * time.Millisecond
)

// look finds out how much room there is on the disk: at once, or if it was not lately.
func (s *spool) look(now bool) {
	if s.cannot || !now && time.Since(s.looked) < tightEvery {
		return
	}
	s.looked = time.Now()
	var fs syscall.Statfs_t
	s.tight = ignoringEINTR(func() error { return syscall.Fstatfs(int(s.lock.Fd()), &fs) }) == nil && int64(fs.Bavail)*int64(fs.Bsize) < tightBelow
}

// left returns how much of the reserve is left.
func (s *spool) left() int64 {
	if s.cannot || s.f == nil {
		return reserve
	}
	return max(0, s.ahead-s.tail.off)
}

// end returns the end of what is whole, and a channel that is closed when it has moved.
func (s *spool) end() (position, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tail, s.grown
}

// sync brings all that was written to the disk, but for what the bus has on its disk.
func (s *spool) sync(acked position) error {
	s.mu.Lock()
	tail, f, files, done := s.tail, s.f, s.files, !s.synced.before(s.tail) || !acked.before(s.tail)
	s.files = nil
	s.mu.Unlock()
	var errs []error
	for _, old := range files {
		if !done {
			errs = append(errs, old.Sync())
		}
		errs = append(errs, old.Close())
	}
	if !done && f != nil {
		errs = append(errs, f.Sync(), syncDir(s.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sync spool %s: %w", s.dir, err)
	}
	s.mu.Lock()
	s.synced = tail
	s.mu.Unlock()
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// close gives the spool up. What is in it stays, unless all is said to be elsewhere.
func (s *spool) close(elsewhere bool) error {
	s.mu.Lock()
	files := append(s.files, s.lock)
	if s.f != nil {
		files = append(files, s.f)
	}
	s.mu.Unlock()
	var errs []error
	switch {
	case elsewhere:
		errs = append(errs, removeSpool(s.dir))
	case s.f != nil:
		errs = append(errs, s.f.Truncate(s.tail.off)) // and no more of the disk than it needs
	}
	for _, f := range files { // the lock is given up when the files are gone
		errs = append(errs, f.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close spool %s: %w", s.dir, err)
	}
	return nil
}

// removeSpool removes a spool that is locked and all of which is in the streams, but for
// the bytes of it that were set aside.
func removeSpool(dir string) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	kept := false
	for _, e := range es {
		if len(e.Name()) > len(badPrefix) && e.Name()[:len(badPrefix)] == badPrefix {
			kept = true
		} else if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if kept {
		return nil
	}
	return os.Remove(dir)
}

// BadRecord tells of bytes of a spool that could not be read. They are kept in a file.
type BadRecord struct {
	Session core.SessionID
	Segment string
	Offset  int64
	Bytes   int64
	Torn    bool   // a record that a crash cut short, at the end: not damage
	Kept    string // the file that holds the bytes now
	Why     string
}

func (b *BadRecord) Error() string {
	what := "damaged"
	if b.Torn {
		what = "unfinished"
	}
	return fmt.Sprintf("spool of session %s: %s at byte %d: %d %s bytes (%s) set aside in %s", b.Session, b.Segment, b.Offset, b.Bytes, what, b.Why, b.Kept)
}

// reader reads a spool from a position on.
type reader struct {
	dir     string
	session core.SessionID
	bad     func(*BadRecord) // told of what cannot be read

	at     position
	f      *os.File
	marker marker
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}

// open opens the segment of r.at. The reader is at a record after it.
func (r *reader) open() error {
	f, err := os.Open(filepath.Join(r.dir, segName(r.at.seg)))
	if err != nil {
		return err
	}
	var head [segHead + len(marker{})]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		f.Close()
		return err
	}
	// The first record repeats the marker, so that a damaged head costs nothing: its own
	// is right when it fits its checksum.
	r.marker = marker(head[len(segMagic):segHead])
	if info, err := f.Stat(); err == nil && n == len(head) && r.marker != marker(head[segHead:]) {
		if _, err := readRecord(f, segHead, info.Size(), marker(head[segHead:]), nil); err == nil {
			r.marker = marker(head[segHead:])
		}
	}
	r.f = f
	r.at.off = max(r.at.off, segHead)
	return nil
}

// next returns the record at the reader's position and moves behind it. limit is the end
// of what is whole, in a spool whose owner lives, and the end of the last segment
// otherwise. Without a record before limit it returns nil. The record's body is the caller's.
func (r *reader) next(limit position) (*record, error) {
	for r.at.before(limit) {
		if r.f == nil {
			if err := r.open(); errors.Is(err, os.ErrNotExist) && r.at.seg < limit.seg {
				r.at = position{r.at.seg + 1, 0}
				continue
			} else if err != nil {
				return nil, fmt.Errorf("read spool %s: %w", r.dir, err)
			}
		}
		size := limit.off
		if r.at.seg < limit.seg {
			info, err := r.f.Stat()
			if err != nil {
				return nil, fmt.Errorf("read spool %s: %w", r.dir, err)
			}
			size = info.Size()
		}
		if r.at.off >= size {
			if r.at.seg == limit.seg {
				r.at.off = size
				return nil, nil
			}
			r.close()
			r.at = position{r.at.seg + 1, 0}
			continue
		}
		raw, err := readRecord(r.f, r.at.off, size, r.marker, nil)
		if err == nil {
			var rec *record
			end := position{r.at.seg, r.at.off + recordHead + int64(len(raw.payload))}
			if rec, err = parseRecord(raw, r.session); err == nil {
				rec.at, rec.end = r.at, end
				r.at = end
				return rec, nil
			}
			if err := r.setAside(end.off, false, err); err != nil {
				return nil, err
			}
			continue
		}
		if !errors.Is(err, errShort) && !errors.Is(err, errDamaged) {
			return nil, fmt.Errorf("read spool %s: %w", r.dir, err)
		}
		whole, nerr := nextRecord(r.f, r.at.off+1, size, r.marker)
		if nerr != nil {
			return nil, fmt.Errorf("read spool %s: %w", r.dir, nerr)
		}
		torn := errors.Is(err, errShort) && whole == size && r.at.seg == limit.seg
		if err := r.setAside(whole, torn, err); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// setAside copies the bytes up to end to a file of their own, moves behind them and reports.
func (r *reader) setAside(end int64, torn bool, why error) error {
	b := &BadRecord{Session: r.session, Segment: segName(r.at.seg), Offset: r.at.off, Bytes: end - r.at.off, Torn: torn, Why: why.Error()}
	b.Kept = filepath.Join(r.dir, fmt.Sprintf("%s%d-%d", badPrefix, r.at.seg, r.at.off))
	f, err := os.OpenFile(b.Kept, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = io.Copy(f, io.NewSectionReader(r.f, b.Offset, b.Bytes))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return spoolError("set bytes of spool "+r.dir+" aside", err)
	}
	r.at.off = end
	if r.bad != nil {
		r.bad(b)
	}
	return nil
}

// parseRecord makes a record of a payload of session's spool. Of a batch it reads the head
// alone: that the rest is what was written, the checksum says.
func parseRecord(raw rawRecord, session core.SessionID) (*record, error) {
	rec := &record{kind: raw.kind, body: raw.payload, count: raw.count}
	switch raw.kind {
	case kindOps:
		h, err := decodeHead(raw.payload)
		if err != nil {
			return nil, err
		}
		if h.Session != session {
			return nil, fmt.Errorf("a batch of session %q", core.Shorten(string(h.Session), 40))
		}
		rec.first, rec.time, rec.addr = h.First, time.Unix(0, raw.time), address{h.Host, h.Box, session}
	case kindLife:
		l, err := DecodeLife(raw.payload)
		if err != nil {
			return nil, err
		}
		if !l.belongs(session) {
			return nil, fmt.Errorf("a fact (%s) of session %q", l.Kind, core.Shorten(string(l.Session), 40))
		}
		rec.life, rec.time, rec.addr = l, l.Time, address{l.Host, l.Box, session}
	default:
		return nil, fmt.Errorf("unknown kind %d", raw.kind)
	}
	return rec, nil
}

// The file of the acknowledged position is a hint: what it does not know, a stream's last
// message tells. So it is written without a sync and ignored when it is not whole.

func formatAcked(p position) []byte {
	line := fmt.Appendf(nil, "%020d %020d ", p.seg, p.off)
	return fmt.Appendf(line, "%08x\n", crc32.Checksum(line, castagnoli))
}

func readAcked(dir string) position {
	start := position{1, 0}
	b, err := os.ReadFile(filepath.Join(dir, ackedName))
	if err != nil || len(b) != len(formatAcked(start)) {
		return start
	}
	var p position
	if _, err := fmt.Sscanf(string(b), "%d %d", &p.seg, &p.off); err != nil || string(formatAcked(p)) != string(b) {
		return start
	}
	return p
}

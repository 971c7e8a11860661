package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sandglass/sandglass/core"
)

// How the log makes batches, and what it holds in memory at most.
const (
	batchOps      = 256
	batchBytes    = 256 << 10
	batchWithin   = 5 * time.Millisecond
	bufferOps     = 4096                   // operations that wait to be encoded
	bufferBytes   = 4 << 20                // of their strings
	maxOpBytes    = 384 << 10              // of one operation's strings: batchBytes and this fit in a batch
	cutTo         = 4 << 10                // bytes that are left of a string of an operation that is too large
	urgentBehind  = 64                     // batches that are not published yet, from which on nothing is urgent
	publishEvery  = 100 * time.Millisecond // nothing urgent
	publishSoon   = 8 * time.Millisecond   // something that is
	syncEvery     = time.Second
	lifeWithin    = 2 * time.Second // for the end on a full disk
	retryFullEach = 100 * time.Millisecond
)

// LogOptions say where a session's log is.
type LogOptions struct {
	SpoolDir string // folder of all spools; "": [SpoolDir] of Home
	Home     string // the state folder
	Session  core.Session
	NATSURL  string      // an external server; "": the embedded one of Home
	Creds    string      // file with the credentials for NATSURL
	Bad      func(error) // told of what goes wrong beside the box's way: a [*BadRecord], say; may be nil
	// Full is told when the disk is full, while the log goes into what it has reserved, and
	// when there is room again; may be nil.
	Full func(full bool)
}

// Log is a session's log as its supervisor writes it. [Log.Append], [Log.Begin],
// [Log.End] and [Log.Close] are called by one goroutine at a time; Stats by any.
type Log struct {
	o     LogOptions
	addr  address
	spool *spool

	mu     sync.Mutex
	room   sync.Cond        // the buffer has been emptied, or there is no hope that it will
	buf    []core.Operation // operations that wait
	sizes  []int            // of buf's strings, in bytes
	bytes  int              // the sum of sizes
	urgent bool             // something in buf must not wait
	idle   bool             // the writer waits for the first operation
	full   bool             // the disk is
	scarce bool             // it is, but perhaps for what is reserved
	spare  bool             // and what is left of that is for the end
	ending bool             // the end has come
	giveUp time.Time        // when to stop trying; zero: never
	err    error            // why nothing can be written any more
	closed bool

	wake chan struct{} // to the writer
	next core.Seq      // of Append

	wmu   sync.Mutex // held while records are written: by the writer, or for a life
	prev  [32]byte   // hash of the last batch
	last  core.Seq   // of the last batch
	rec   []byte     // the record that is being made
	enc   encoder
	batch Batch

	ended bool // the end is in the spool

	writerDone, publisherDone, syncerDone chan struct{}
	stop                                  context.CancelFunc // of publisher and syncer
	stopped                               context.Context
	hurry                                 chan struct{} // closed by Close: publish without pauses
	soon                                  chan struct{} // to the publisher: something urgent is in the spool; 1 deep
	tried                                 chan struct{} // the first attempt to connect is over
	bus                                   atomic.Pointer[bus]

	ackMu      sync.Mutex
	acked      position
	ackedMoved chan struct{}
	saved      position // in the file; of the syncer, and of Close after it

	n counters
}

type counters struct {
	appended, batches, spooledOps, spooledBytes, published, ackedOps, ackedRecords, records, stalls, fullStalls, retries, cut atomic.Uint64
}

// Stats counts what a log did so far.
type Stats struct {
	Appended   uint64 // operations taken by Append
	Spooled    uint64 // of these, in the spool
	Acked      uint64 // of these, in the stream
	Batches    uint64 // in the spool
	Bytes      uint64 // in the spool, with all its records' heads
	Published  uint64 // records handed to the bus, again and again included
	Waiting    uint64 // records in the spool that the streams do not have
	Stalls     uint64 // how often Append had to wait
	FullStalls uint64 // how often the disk was found full
	Retries    uint64 // how often publishing had to be tried again
	Cut        uint64 // operations that had strings too long to be logged whole
	Connected  bool
	DiskFull   bool
}

// Stats returns the counters.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	full := l.full || l.scarce
	l.mu.Unlock()
	s := Stats{Appended: l.n.appended.Load(), Acked: l.n.ackedOps.Load(), Spooled: l.n.spooledOps.Load(), Batches: l.n.batches.Load(),
		Bytes: l.n.spooledBytes.Load(), Published: l.n.published.Load(), Stalls: l.n.stalls.Load(), FullStalls: l.n.fullStalls.Load(),
		Retries: l.n.retries.Load(), Cut: l.n.cut.Load(), DiskFull: full}
	s.Waiting = l.n.records.Load() - l.n.ackedRecords.Load()
	if b := l.bus.Load(); b != nil {
		up, _ := b.state()
		s.Connected = up != nil
	}
	return s
}

// OpenLog makes the spool of a session and begins to look for the bus in the background.
// Cost: a handful of system calls.
func OpenLog(o LogOptions) (*Log, error) {
	if err := core.CheckBoxName(o.Session.Box); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if strings.HasPrefix(string(o.Session.ID), notePrefix) {
		return nil, fmt.Errorf("open log: bad session id %q", core.Shorten(string(o.Session.ID), 80))
	}
	if o.SpoolDir == "" {
		o.SpoolDir = SpoolDir(o.Home)
	}
	o.Session.Host = cleanHost(o.Session.Host)
	sp, err := createSpool(o.SpoolDir, o.Session.ID)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l := &Log{o: o, addr: address{o.Session.Host, o.Session.Box, o.Session.ID}, spool: sp, next: 1, wake: make(chan struct{}, 1),
		writerDone: make(chan struct{}), publisherDone: make(chan struct{}), syncerDone: make(chan struct{}),
		hurry: make(chan struct{}), soon: make(chan struct{}, 1), tried: make(chan struct{}), acked: position{1, 0}, ackedMoved: make(chan struct{})}
	l.room.L = &l.mu
	l.enc.dict = make(map[string]uint64, 256)
	l.stopped, l.stop = context.WithCancel(context.Background())
	go l.write()
	go l.publish()
	go l.syncSometimes()
	return l, nil
}

// cleanHost makes a host's name one that a batch can hold.
func cleanHost(s string) string { return core.Shorten(strings.ToValidUTF8(s, "?"), maxName) }

// opSize returns how many bytes op's strings have.
func opSize(op *core.Operation) int {
	n := len(op.Exe) + len(op.Target) + len(op.Proc) + len(op.Surface) + len(op.Action) + len(op.Rule) + len(op.Errno) + 8
	for k, v := range op.Detail {
		n += len(k) + len(v)
	}
	return n
}

// fit returns op with strings of a length that a batch can hold, and their size. What was
// cut, detail.cut tells.
func (l *Log) fit(op *core.Operation) (core.Operation, int) {
	o, size, long := *op, opSize(op), false
	if size <= maxOpBytes { // the usual case: no string can be too long when all together are not
		long = size > MaxString && (len(o.Exe) > MaxString || len(o.Target) > MaxString)
		if size > MaxString {
			for _, v := range o.Detail {
				long = long || len(v) > MaxString
			}
		}
		if !long {
			return o, size
		}
	}
	l.n.cut.Add(1)
	shorten := func(s string) string { return strings.Clone(s[:min(len(s), cutTo)]) }
	o.Exe, o.Target = shorten(o.Exe), shorten(o.Target)
	o.Detail = make(core.Detail, len(op.Detail)+1)
	for k, v := range op.Detail {
		if len(o.Detail) < MaxDetail-1 {
			o.Detail[k] = shorten(v)
		}
	}
	o.Detail["cut"] = fmt.Sprintf("%d bytes, too many to be logged whole", size)
	return o, opSize(&o)
}

// Append adds an operation. Sequence numbers must follow one another from 1; box and
// session must be the log's. op itself may be changed afterwards, its Detail not.
//
// Append returns when the operation is in memory; it is in the spool a few milliseconds
// later. It waits while the disk is slower than the box. When the disk is full, and half
// of what the log has reserved of it is used up, it returns an error that wraps
// [ErrDiskFull] without having taken the operation: call it again with the same one, and
// let the box wait; see [Log.Observer] and [Log.Ending]. Any other error is the end of the log.
func (l *Log) Append(op *core.Operation) error {
	if op.Seq != l.next || op.Session != l.addr.session || op.Box != l.addr.box {
		return fmt.Errorf("append operation: %d of session %q in box %q, not %d of %q in %q", op.Seq, op.Session, op.Box, l.next, l.addr.session, l.addr.box)
	}
	if op.PID < 0 || op.PID > maxPID || len(op.Detail) > MaxDetail || !representable(op.Time) {
		return fmt.Errorf("append operation %d: bad pid, time or number of details: %d, %v, %d", op.Seq, op.PID, op.Time, len(op.Detail))
	}
	o, size := l.fit(op)
	l.mu.Lock()
	for stalled := false; l.err == nil && !l.held() && !l.closed && (len(l.buf) >= bufferOps || l.bytes+size > bufferBytes && len(l.buf) > 0); {
		if !stalled {
			stalled = true
			l.n.stalls.Add(1)
		}
		l.poke()
		l.room.Wait()
	}
	switch {
	case l.closed:
		l.mu.Unlock()
		return fmt.Errorf("append operation %d: %w", op.Seq, os.ErrClosed)
	case l.err != nil:
		err := l.err
		l.mu.Unlock()
		return fmt.Errorf("append operation %d: %w", op.Seq, err)
	case l.held():
		l.mu.Unlock()
		return core.Hint(fmt.Errorf("append operation %d: %w", op.Seq, ErrDiskFull), "make room on the disk that holds "+l.spool.dir)
	}
	l.buf = append(l.buf, o)
	l.sizes = append(l.sizes, size)
	l.bytes += size
	now := op.Urgent()
	if l.idle || len(l.buf) == batchOps || now && !l.urgent || l.bytes >= batchBytes && l.bytes-size < batchBytes {
		l.urgent = l.urgent || now
		l.idle = false
		l.poke()
	}
	l.mu.Unlock()
	l.next++
	l.n.appended.Add(1)
	return nil
}

// held says whether no operation is taken because the disk is full. l.mu is held.
func (l *Log) held() bool { return l.full || l.spare && !l.ending }

// Ending says that the box has ended: what Append is called with from now on is what has
// waited, and goes into what is left of the reserve. It may be called while Append or an
// Observer waits.
func (l *Log) Ending() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending = true
	l.room.Broadcast()
}

// representable says whether a batch can hold t.
func representable(t time.Time) bool { return t.Unix() >= 0 && t.Unix() < maxTime/int64(time.Second) }

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// publishNow lets the publisher rest no longer than it must.
func (l *Log) publishNow() {
	select {
	case l.soon <- struct{}{}:
	default:
	}
}

// Observer returns [Log.Append] as a function that waits, until ctx ends, while the disk
// is full, and tells held when that begins and ends.
func (l *Log) Observer(ctx context.Context, held func(full bool)) func(*core.Operation) error {
	return func(op *core.Operation) error {
		err := l.Append(op)
		if !errors.Is(err, ErrDiskFull) {
			return err
		}
		if held != nil {
			held(true)
			defer func() { held(false) }()
		}
		for errors.Is(err, ErrDiskFull) {
			if werr := l.waitRoom(ctx); werr != nil {
				return errors.Join(err, werr)
			}
			err = l.Append(op)
		}
		return err
	}
}

// waitRoom waits until the disk is not full any more.
func (l *Log) waitRoom(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.room.Broadcast()
	})
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.held() && l.err == nil && !l.closed && ctx.Err() == nil {
		l.room.Wait()
	}
	return ctx.Err()
}

// write is the writer: it takes operations from the buffer and makes records of them.
func (l *Log) write() {
	defer close(l.writerDone)
	spare, spareSizes := make([]core.Operation, 0, batchOps), make([]int, 0, batchOps)
	timer := time.NewTimer(0)
	<-timer.C
	for {
		l.mu.Lock()
		for len(l.buf) == 0 {
			if l.closed {
				l.mu.Unlock()
				return
			}
			l.idle = true
			full := l.full || l.scarce
			l.mu.Unlock()
			l.sleep(full)
			l.mu.Lock()
		}
		l.idle = false
		if !l.due() {
			l.mu.Unlock()
			timer.Reset(batchWithin)
			for waiting := true; waiting; {
				select {
				case <-timer.C:
					waiting = false
				case <-l.wake:
					l.mu.Lock()
					waiting = !l.due()
					l.mu.Unlock()
				}
			}
			timer.Stop()
			l.mu.Lock()
		}
		l.mu.Unlock()
		l.wmu.Lock() // first, so that no other takes later operations and writes them before
		l.mu.Lock()
		ops, sizes, urgent := l.buf, l.sizes, l.urgent
		l.buf, l.sizes, l.bytes, l.urgent = spare[:0], spareSizes[:0], 0, false
		l.room.Broadcast()
		l.mu.Unlock()
		n, err := l.writeOps(ops, sizes)
		if urgent {
			l.publishNow()
		}
		l.mu.Lock()
		closed := l.closed
		if errors.Is(err, ErrDiskFull) && !closed {
			l.putBack(ops[n:], sizes[n:])
			ops, sizes, err = nil, nil, nil
		}
		l.mu.Unlock()
		l.wmu.Unlock()
		if err != nil {
			l.fail(err)
			return
		}
		clear(ops)
		spare, spareSizes = ops, sizes
	}
}

// sleep waits until there is something to write. While the disk is full it looks whether
// there is room again.
func (l *Log) sleep(full bool) {
	if !full {
		<-l.wake
		return
	}
	select {
	case <-l.wake:
	case <-time.After(retryFullEach):
		l.wmu.Lock()
		l.spool.keepReserve()
		l.looked(l.full && l.spool.scarce)
		l.wmu.Unlock()
	}
}

// looked notes how full the disk is. l.wmu is held.
func (l *Log) looked(full bool) {
	l.spool.look(false)
	scarce := l.spool.scarce || l.spool.tight
	spare := l.spool.scarce && l.spool.left() < reserve/2
	l.mu.Lock()
	changed := l.scarce != scarce
	l.full, l.scarce, l.spare = full, scarce, spare
	l.room.Broadcast()
	l.mu.Unlock()
	if changed && l.o.Full != nil {
		l.o.Full(scarce)
	}
}

// due says whether the buffer is to be written now. l.mu is held.
func (l *Log) due() bool {
	return len(l.buf) >= batchOps || l.bytes >= batchBytes || l.closed ||
		l.urgent && l.n.records.Load()-l.n.ackedRecords.Load() < urgentBehind
}

func (l *Log) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.room.Broadcast()
}

// putBack puts operations that could not be written back before those that came since.
// l.mu is held.
func (l *Log) putBack(ops []core.Operation, sizes []int) {
	for _, n := range sizes {
		l.bytes += n
	}
	l.buf, l.sizes = append(ops, l.buf...), append(sizes, l.sizes...)
}

// writeOps writes operations in batches and returns how many it wrote. l.wmu is held.
func (l *Log) writeOps(ops []core.Operation, sizes []int) (done int, err error) {
	for done < len(ops) {
		n, bytes := 0, 0
		for done+n < len(ops) && n < batchOps && (n == 0 || bytes+sizes[done+n] <= batchBytes) {
			bytes += sizes[done+n]
			n++
		}
		l.batch = Batch{Version: Version, Session: l.addr.session, Box: l.addr.box, Host: l.addr.host, First: ops[done].Seq, Prev: l.prev, Ops: ops[done : done+n]}
		if l.rec, err = l.enc.encode(append(l.rec[:0], make([]byte, recordHead)...), &l.batch); err != nil {
			return done, err
		}
		sum := Sum(l.rec[recordHead:])
		last := &ops[done+n-1]
		sealRecord(l.rec, l.spool.marker, kindOps, last.Time.UnixNano(), n)
		if err := l.appendRecord(); err != nil {
			return done, err
		}
		l.prev, l.last = sum, last.Seq
		l.n.batches.Add(1)
		l.n.spooledOps.Add(uint64(n))
		done += n
	}
	return done, nil
}

// appendRecord writes l.rec to the spool. While the disk is full it tries again, until
// Close or l.giveUp. l.wmu is held.
func (l *Log) appendRecord() error {
	for {
		err := l.spool.append(l.rec)
		full := errors.Is(err, ErrDiskFull)
		l.mu.Lock()
		changed, enough := l.full != full, l.closed
		l.mu.Unlock()
		l.looked(full)
		if err == nil {
			l.n.records.Add(1)
			l.n.spooledBytes.Add(uint64(len(l.rec)))
		}
		if !full || enough {
			return err
		}
		if changed {
			l.n.fullStalls.Add(1)
			l.report(err)
		}
		select {
		case <-time.After(retryFullEach):
		case <-l.hurry:
		}
		l.mu.Lock()
		enough = !l.giveUp.IsZero() && time.Now().After(l.giveUp)
		l.mu.Unlock()
		if enough {
			return err
		}
	}
}

func (l *Log) report(err error) {
	if l.o.Bad != nil {
		l.o.Bad(err)
	}
}

// life writes a fact to the spool, behind all operations that were appended. When the
// disk is full it waits for room for as long as is said.
func (l *Log) life(f *Life, patience time.Duration) (err error) {
	l.mu.Lock()
	l.giveUp = time.Now().Add(patience)
	l.mu.Unlock()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.mu.Lock()
	ops, sizes, err := l.buf, l.sizes, l.err
	if l.closed && err == nil {
		err = os.ErrClosed
	}
	if err == nil {
		l.buf, l.sizes, l.bytes, l.urgent = nil, nil, 0, false
	}
	l.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("log %s: %w", f.Kind, err)
		}
	}()
	if err != nil {
		return err
	}
	n, err := l.writeOps(ops, sizes)
	if err == nil {
		err = l.writeLife(f)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.putBack(ops[n:], sizes[n:])
	if err == nil {
		l.giveUp = time.Time{}
		l.publishNow()
	}
	return err
}

func (l *Log) writeLife(f *Life) error {
	if f.Kind == SessionEnd {
		key, err := SealKey(l.o.Home)
		if err != nil {
			return err
		}
		f.Last, f.Head = l.last, l.prev
		f.Seal(key)
	}
	body, err := EncodeLife(f)
	if err != nil {
		return err
	}
	l.rec = append(append(l.rec[:0], make([]byte, recordHead)...), body...)
	sealRecord(l.rec, l.spool.marker, kindLife, 0, 0)
	l.spool.look(true)
	return l.appendRecord()
}

// Begin logs that the session begins. Fields of f that are empty are filled in from the
// log's session.
func (l *Log) Begin(f Life) error {
	s := &l.o.Session
	f.Kind, f.Host, f.Box, f.Session = SessionBegin, s.Host, s.Box, s.ID
	if f.Time.IsZero() {
		f.Time = s.Start
	}
	if f.Time.IsZero() {
		f.Time = time.Now()
	}
	if f.Command == nil {
		f.Command = s.Command
	}
	if f.Policy == "" {
		f.Policy = s.Policy
	}
	if f.Observe == "" {
		f.Observe = s.Observe
	}
	if f.Net == "" {
		f.Net = s.Net
	}
	if _, err := SealKey(l.o.Home); err != nil { // the end needs it, when there may be no room for a new one
		return fmt.Errorf("log %s: %w", f.Kind, err)
	}
	return l.life(&f, 0)
}

// End logs that the session ended with an exit code, and seals its chain.
func (l *Log) End(exit int) error {
	s := &l.o.Session
	f := Life{Kind: SessionEnd, Time: time.Now(), Host: s.Host, Box: s.Box, Session: s.ID, Exit: exit}
	if err := l.life(&f, lifeWithin); err != nil {
		return err
	}
	l.ended = true
	return nil
}

// Close ends the log. While there is a bus, it waits until the streams have everything,
// at most until ctx ends; what they do not have then stays on the disk, and [DrainSpools]
// brings it to them. A session that was not ended is told there as lost.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	err := l.err
	l.room.Broadcast()
	l.mu.Unlock()
	close(l.hurry)
	l.poke()
	<-l.writerDone
	l.mu.Lock()
	if err == nil {
		err = l.err
	}
	l.mu.Unlock()
	all := l.waitAcked(ctx)
	l.stop()
	<-l.publisherDone
	<-l.syncerDone
	l.saveAcked()
	if lost := l.n.appended.Load() - l.n.spooledOps.Load(); err != nil && lost > 0 {
		err = fmt.Errorf("%d operations were not logged: %w", lost, err)
	}
	elsewhere := err == nil && (all && l.ended || l.n.records.Load() == 0)
	if !elsewhere {
		err = errors.Join(err, l.spool.sync(position{}))
	}
	if err := errors.Join(err, l.spool.close(elsewhere)); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// waitAcked waits until the streams have all that is in the spool, and says whether.
func (l *Log) waitAcked(ctx context.Context) bool {
	select {
	case <-l.tried:
	case <-ctx.Done():
	}
	for {
		l.ackMu.Lock()
		acked, moved := l.acked, l.ackedMoved
		l.ackMu.Unlock()
		if end, _ := l.spool.end(); !acked.before(end) {
			return true
		}
		b := l.bus.Load()
		if b == nil {
			return false
		}
		up, changed := b.state()
		if up == nil {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-moved:
		case <-changed:
		}
	}
}

// syncSometimes brings the spool to the disk at intervals, where the bus has not done so.
func (l *Log) syncSometimes() {
	defer close(l.syncerDone)
	t := time.NewTicker(syncEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-l.stopped.Done():
			return
		}
		if err := l.spool.sync(l.ackedUpTo()); err != nil {
			l.report(err)
			if !isFull(err) {
				l.fail(err)
			}
		}
		l.saveAcked()
	}
}

// ackedUpTo returns up to where the streams have the spool.
func (l *Log) ackedUpTo() position {
	l.ackMu.Lock()
	defer l.ackMu.Unlock()
	return l.acked
}

// setAcked notes that the streams have all up to p, and removes segments that are behind it.
func (l *Log) setAcked(p position) {
	l.ackMu.Lock()
	old := l.acked
	l.acked = p
	close(l.ackedMoved)
	l.ackedMoved = make(chan struct{})
	l.ackMu.Unlock()
	for n := old.seg; n < p.seg; n++ {
		os.Remove(filepath.Join(l.spool.dir, segName(n)))
	}
}

// saveAcked writes the acknowledged position to its file; see formatAcked.
func (l *Log) saveAcked() {
	p := l.ackedUpTo()
	if p == l.saved {
		return
	}
	l.saved = p
	f, err := os.OpenFile(filepath.Join(l.spool.dir, ackedName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteAt(formatAcked(p), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil && !isFull(err) {
		l.report(fmt.Errorf("note what is published: %w", err))
	}
}

// publish is the publisher: it follows the spool and copies it to the streams.
func (l *Log) publish() {
	defer close(l.publisherDone)
	b, err := dialBus(l.stopped, l.o.Home, l.o.NATSURL, l.o.Creds, l.o.Session)
	if err != nil {
		l.report(fmt.Errorf("connect to the event bus: %w", err))
		close(l.tried)
		return
	}
	l.bus.Store(b)
	defer b.close()
	close(l.tried)
	r := &reader{dir: l.spool.dir, session: l.addr.session, at: position{1, 0}, bad: func(bad *BadRecord) {
		l.n.ackedRecords.Add(1) // it is not waited for
		l.report(bad)
	}}
	defer r.close()
	p := &publisher{nc: b.nc, addr: l.addr}
	var recs []*record
	size := 0
	wait := time.Duration(0)
	for l.stopped.Err() == nil {
		// Gather what there is.
		end, grown := l.spool.end()
		for len(recs) < maxGroup && size < maxGroupSize {
			rec, err := r.next(end)
			if err != nil {
				l.report(err) // its disk fails; whoever drains the spool may have more luck
				return
			}
			if rec == nil {
				break
			}
			recs = append(recs, rec)
			size += len(rec.body)
		}
		up, changed := b.state()
		if len(recs) == 0 || up == nil {
			if len(recs) == 0 && l.ackedUpTo().before(r.at) {
				l.setAcked(r.at) // what could not be read is not waited for
			}
			if up == nil {
				p.known, p.single = false, 0
				grown = nil
			}
			select {
			case <-grown:
			case <-changed:
			case <-l.stopped.Done():
			}
			continue
		}
		began := time.Now()
		l.n.published.Add(uint64(len(recs)))
		ctx, cancel := context.WithCancel(up)
		stop := context.AfterFunc(l.stopped, cancel)
		done, err := p.publish(ctx, recs)
		stop()
		cancel()
		for _, rec := range recs[:done] {
			l.n.ackedRecords.Add(1)
			l.n.ackedOps.Add(uint64(rec.count))
		}
		if done == len(recs) {
			l.setAcked(r.at)
		} else if done > 0 {
			l.setAcked(recs[done-1].end)
		}
		recs = append(recs[:0], recs[done:]...)
		size = 0
		for _, rec := range recs {
			size += len(rec.body)
		}
		pause := publishEvery - time.Since(began)
		if err != nil {
			l.n.retries.Add(1)
			wait = min(max(2*wait, time.Millisecond), time.Second)
			pause = wait
		} else {
			wait = 0
			if l.n.records.Load()-l.n.ackedRecords.Load() >= maxGroup {
				pause = 0
			}
		}
		if pause > 0 {
			least := pause // before what is urgent ends it
			if err == nil {
				least = publishSoon - time.Since(began)
			}
			l.rest(least, pause, err == nil)
		}
	}
}

// rest waits for d; once least has passed, no longer than until something urgent is in
// the spool. Close ends it when hurry is set.
func (l *Log) rest(least, d time.Duration, hurry bool) {
	whole := time.NewTimer(d)
	defer whole.Stop()
	first := time.NewTimer(max(0, least))
	defer first.Stop()
	closing := l.hurry
	if !hurry {
		closing = nil
	}
	var soon chan struct{}
	for {
		select {
		case <-first.C:
			soon = l.soon
			continue
		case <-whole.C:
		case <-soon:
		case <-closing:
		case <-l.stopped.Done():
		}
		return
	}
}

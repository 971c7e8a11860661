package driver

import (
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// What the supervisor does for the box itself - a connection that a policy grants, a
// device that it opens - may take long, and the supervisor's one thread must not wait:
// it is done on another goroutine. A box can keep at most maxPerforming of them busy;
// what comes then is refused.
const maxPerforming = 64

// performPatience is how long the end of a session waits for what is being performed.
const performPatience = time.Second

// performed is what came of it.
type performed struct {
	errno  syscall.Errno
	value  int64
	inject bool // fd is to be given to the box; it is closed afterwards
	fd     int
	// cloexec is of the descriptor in the box.
	cloexec bool
	// replace: fd takes the place of the box's descriptor at, and the call returns value.
	replace bool
	at      int
	// proceed: the kernel carries the call out after all; it is safe whatever it says.
	proceed bool
}

// performer runs what the supervisor does for the box.
type performer struct {
	l     *sys.Listener
	log   func(*core.Operation)
	slots chan struct{}
	done  chan struct{} // closed at the session's end: whoever waits gives up
	wg    sync.WaitGroup
	// moves are what may not be given up half done; they end by themselves soon after done
	moves sync.WaitGroup
	mu    sync.RWMutex // held while l is used: it may not be closed then
	ended bool
}

func newPerformer(l *sys.Listener, log func(*core.Operation)) *performer {
	return &performer{l: l, log: log, slots: make(chan struct{}, maxPerforming), done: make(chan struct{})}
}

// begin has do done on a goroutine and the call answered with what comes of it; op is
// logged then, with its outcome. It returns false when too much is being done already.
func (f *performer) begin(id uint64, op *core.Operation, do func() performed) bool {
	select {
	case f.slots <- struct{}{}:
	default:
		return false
	}
	f.wg.Add(1)
	go func() {
		defer f.wg.Done()
		defer func() { <-f.slots }()
		f.answer(id, op, do())
		f.log(op)
	}()
	return true
}

// waits says whether the call still waits for its answer: its thread has not been killed.
func (f *performer) waits(id uint64) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return !f.ended && f.l.Valid(id)
}

// now is begin on the caller's goroutine.
func (f *performer) now(id uint64, op *core.Operation, do func() performed) {
	f.answer(id, op, do())
	f.log(op)
}

// answer gives the box what came of it.
func (f *performer) answer(id uint64, op *core.Operation, r performed) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if r.replace && r.errno == 0 && !f.ended {
		r.errno = f.l.Replace(id, r.fd, r.at, r.cloexec)
	}
	switch {
	case f.ended:
	case r.errno != 0:
		f.l.Reply(id, 0, r.errno)
	case r.proceed:
		f.l.Proceed(id)
	case r.inject:
		// Where it has no descriptor free the call is not answered by that.
		if r.errno = f.l.Inject(id, r.fd, r.cloexec); r.errno != 0 {
			f.l.Reply(id, 0, r.errno)
		}
	default:
		f.l.Reply(id, r.value, 0)
	}
	if (r.inject || r.replace) && r.fd >= 0 {
		sys.CloseFD(r.fd)
	}
	switch {
	case r.errno != 0 && op.Verdict == core.Blocked:
		op.Errno = sys.ErrnoName(r.errno)
	case r.errno != 0:
		op.Outcome, op.Errno = core.Performed, sys.ErrnoName(r.errno)
	case !r.proceed:
		op.Outcome = core.Performed
	}
}

// end gives up what is still being done, and lets nothing use the listener any more.
func (f *performer) end() {
	close(f.done)
	idle := make(chan struct{})
	go func() { f.wg.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-time.After(performPatience):
	}
	f.moves.Wait()
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
}

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
}

// performer runs what the supervisor does for the box.
type performer struct {
	l     *sys.Listener
	log   func(*core.Operation)
	slots chan struct{}
	done  chan struct{} // closed at the session's end: whoever waits gives up
	wg    sync.WaitGroup
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
		r := do()
		if r.errno == 0 {
			op.Outcome = core.Performed
		} else {
			op.Outcome, op.Errno = core.Performed, sys.ErrnoName(r.errno)
		}
		f.mu.RLock()
		if !f.ended {
			if r.inject && r.errno == 0 {
				f.l.Inject(id, r.fd, r.cloexec)
			} else {
				f.l.Reply(id, r.value, r.errno)
			}
		}
		f.mu.RUnlock()
		if r.inject && r.errno == 0 {
			sys.CloseFD(r.fd)
		}
		f.log(op)
	}()
	return true
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
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
}

package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
)

// The control socket is how a command asks the daemon for something. Only its owner can
// connect: it is 0600, in a folder that nobody else may write to, and no box sees it. A
// client sends one request, a line of JSON; the daemon answers with lines of JSON, the
// last of which has Done set, and closes.

// request asks the daemon for something.
type request struct {
	Do string `json:"do"` // one of the constants below
}

const (
	doStatus  = "status"  // answers with Status
	doLink    = "link"    // answers with Link
	doSync    = "sync"    // answers when all that was recorded until now is folded
	doRebuild = "rebuild" // answers with Progress, again and again
	doStop    = "stop"    // answers when the daemon has begun to stop
)

// reply is one line of an answer.
type reply struct {
	Done     bool      `json:"done,omitempty"`
	Error    string    `json:"error,omitempty"`
	Hints    []string  `json:"hints,omitempty"`
	Status   *status   `json:"status,omitempty"`
	Link     string    `json:"link,omitempty"`
	Progress *progress `json:"progress,omitempty"`
}

// progress says how far something is that takes time.
type progress struct {
	What string `json:"what"`
	Done uint64 `json:"done"`
	Of   uint64 `json:"of"`
}

// maxControlLine bounds a request and a line of an answer, in bytes.
const maxControlLine = 64 << 10

// errNoDaemon says that no daemon answers.
var errNoDaemon = errors.New("no daemon is running")

// socketName returns a path that names the socket and fits into a sockaddr_un, 107 bytes
// (unix(7)), however deep the state folder is. done gives back what it holds.
func socketName(path string) (name string, done func(), err error) {
	if len(path) <= 107 {
		return path, func() {}, nil
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(path)), func() { d.Close() }, nil
}

// ask sends a request to the daemon and hands each line of the answer but the last to
// each, if that is not nil. The last one is returned. Without a daemon, or when it dies, the error
// wraps errNoDaemon.
func (h Home) ask(ctx context.Context, q request, each func(reply)) (reply, error) {
	name, done, err := socketName(h.control())
	if err != nil {
		return reply{}, err
	}
	defer done()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return reply{}, errNoDaemon
	}
	if err != nil {
		return reply{}, fmt.Errorf("ask the daemon: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })()
	fail := func(err error) (reply, error) {
		switch {
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
			err = fmt.Errorf("it went away: %w", errNoDaemon)
		}
		return reply{}, fmt.Errorf("ask the daemon for %s: %w", q.Do, err)
	}
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return fail(err)
	}
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, maxControlLine)
	var last reply
	for lines.Scan() {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fail(err)
		}
		if r.Error != "" {
			return r, core.Hint(errors.New(r.Error), r.Hints...)
		}
		if r.Done {
			last = r
		} else if each != nil {
			each(r)
		}
	}
	if err := lines.Err(); err != nil {
		return fail(err)
	}
	if !last.Done {
		return fail(io.ErrUnexpectedEOF)
	}
	return last, nil
}

// controlServer answers on the control socket. serve handles one request; what it returns
// is the last line of the answer.
type controlServer struct {
	l     *net.UnixListener
	serve func(ctx context.Context, q request, say func(reply)) (reply, error)
	conns sync.WaitGroup
	slots chan struct{} // a bound on how many are answered at a time
}

// listenControl opens the socket. The caller holds the daemon's lock, so that a socket
// that is there belongs to nobody.
func listenControl(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	name, done, err := socketName(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"}) // 0600: the daemon's umask
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // the name may lead through a descriptor that is closed by then
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// run answers until ctx ends, and returns when the last answer was given.
func (s *controlServer) run(ctx context.Context) error {
	s.slots = make(chan struct{}, 64)
	defer s.conns.Wait()
	defer context.AfterFunc(ctx, func() { s.l.Close() })()
	for {
		c, err := s.l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("control socket: %w", err)
		}
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			c.Close()
			return nil
		}
		s.conns.Go(func() {
			s.answer(ctx, c)
			<-s.slots
		})
	}
}

func (s *controlServer) answer(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReader(io.LimitReader(c, maxControlLine))
	line, err := in.ReadBytes('\n')
	if err != nil {
		return
	}
	var mu sync.Mutex
	say := func(r reply) {
		mu.Lock()
		defer mu.Unlock()
		c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		if json.NewEncoder(c).Encode(r) != nil {
			cancel() // whoever asked is gone
		}
	}
	c.SetReadDeadline(time.Time{})
	go func() { // ends with the connection
		in.ReadByte()
		cancel()
	}()
	var q request
	var r reply
	if err = json.Unmarshal(line, &q); err == nil {
		r, err = s.serve(ctx, q, say)
	}
	if err != nil {
		r = reply{Error: oneLine(err.Error()), Hints: core.Hints(err)}
	}
	r.Done = true
	say(r)
}

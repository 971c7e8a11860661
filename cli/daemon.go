package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
)

// defaultListen is where the dashboard is.
const defaultListen = "127.0.0.1:7465"

// daemonInfo is daemon.json: what there is to know of the daemon without asking it.
type daemonInfo struct {
	PID     int       `json:"pid"`
	Address string    `json:"address"` // host:port of the dashboard
	NATS    string    `json:"nats"`    // URL of an external bus; "" for the embedded one
	Version string    `json:"version"`
	Started time.Time `json:"started"`
}

// daemonInfo reads daemon.json, which is also there for a while after a daemon was killed.
func (h Home) daemonInfo() (daemonInfo, error) {
	var d daemonInfo
	f, err := os.Open(h.daemonFile())
	if err != nil {
		return d, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBoxFile))
	if err == nil {
		err = json.Unmarshal(data, &d)
	}
	if err != nil {
		return d, fmt.Errorf("read %s: %w", h.daemonFile(), err)
	}
	return d, nil
}

// ports lists where the sandbox itself is reached over the network: the dashboard, and a
// bus outside.
func (h Home) ports() (ps []uint16) {
	add := func(port string) {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
			ps = append(ps, uint16(n))
		}
	}
	if d, err := h.daemonInfo(); err == nil {
		_, port, _ := net.SplitHostPort(d.Address)
		add(port)
	}
	for addr := range strings.SplitSeq(h.externalBus(), ",") {
		u, err := url.Parse(strings.TrimSpace(addr))
		switch {
		case err != nil || u.Host == "":
		case u.Port() != "":
			add(u.Port())
		default:
			add(strconv.Itoa(defaultBusPort))
		}
	}
	return ps
}

// defaultBusPort is of a NATS URL that names none.
const defaultBusPort = 4222

func (h Home) writeDaemonInfo(d daemonInfo) error {
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	return writeAtomic(h.daemonFile(), append(data, '\n'))
}

// listen opens the dashboard's port. When it is in use: an error, unless any is set, which
// takes the port that the last daemon had, or else a free one.
func (h Home) listen(addr string, any bool) (*net.TCPListener, error) {
	try := []string{addr}
	if any {
		if d, err := h.daemonInfo(); err == nil && isLoopback(d.Address) {
			try = append(try, d.Address)
		}
		try = append(try, "127.0.0.1:0")
	}
	var first error
	for _, a := range try {
		l, err := net.Listen("tcp", a)
		if err == nil {
			return l.(*net.TCPListener), nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	err := fmt.Errorf("listen on %s: %w", core.Shorten(addr, 80), plainNetError(first))
	if errors.Is(first, syscall.EADDRINUSE) {
		return nil, core.Hint(err, "something else listens there: choose another port with --listen 127.0.0.1:PORT, or 127.0.0.1:0 for any free one")
	}
	return nil, core.Hint(err, "--listen takes HOST:PORT, such as "+defaultListen)
}

// plainNetError takes off what net wraps around an error that the caller describes better.
func plainNetError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	var sc *os.SyscallError
	if errors.As(err, &sc) {
		err = sc.Err
	}
	return err
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (ip != nil && ip.IsLoopback() || host == "localhost")
}

// A daemon that is started in the background inherits what its starter has opened
// already: the lock, so that nobody else starts one meanwhile; and the dashboard's port,
// so that a link to it works from the first moment. It reads its orders from a pipe.
const (
	inheritLock = 3 + iota
	inheritListener
	inheritOrders
)

// orders are what the starter tells a daemon.
type orders struct {
	NATS  string `json:"nats,omitempty"`
	Token string `json:"token,omitempty"` // of a first sign-in link; "" for none
}

// startDaemon starts a daemon in the background, unless one runs: then the error is
// errLocked. It does not wait for the daemon, but returns the address that it will answer on.
func (h Home) startDaemon(addr string, any bool, o orders) (address string, err error) {
	lock, err := lockFile(h.daemonLock(), lockTry)
	if err != nil {
		return "", err
	}
	defer lock.Unlock() // our copy: the daemon has its own
	l, err := h.listen(addr, any)
	if err != nil {
		return "", err
	}
	defer l.Close()
	address = l.Addr().String()
	lf, err := l.File()
	if err != nil {
		return "", fmt.Errorf("start the daemon: %w", err)
	}
	defer lf.Close()
	log, err := openLog(h.daemonLog())
	if err != nil {
		return "", fmt.Errorf("start the daemon: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("start the daemon: %w", err)
	}
	defer r.Close()
	defer w.Close()
	text, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(text); err != nil { // fits into a pipe
		return "", fmt.Errorf("start the daemon: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", "serve", "--inherited")
	cmd.Args[0] = "sandglass"
	cmd.Dir = "/"
	cmd.Env = append(withoutEnv(os.Environ(), "SANDGLASS_HOME"), "SANDGLASS_HOME="+string(h))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock.f, lf, r}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start the daemon: %w", err)
	}
	return address, cmd.Process.Release()
}

// reviveDaemon starts the daemon again when it has died. One that was stopped stays so: it
// has removed daemon.json.
func (h Home) reviveDaemon() error {
	info, err := h.daemonInfo()
	if err != nil {
		return nil
	}
	_, err = h.startDaemon(defaultListen, true, orders{NATS: info.NATS})
	if errors.Is(err, errLocked) {
		return nil
	}
	return err
}

func withoutEnv(env []string, name string) []string {
	var out []string
	for _, e := range env {
		if n, _, _ := strings.Cut(e, "="); n != name {
			out = append(out, e)
		}
	}
	return out
}

// inherited takes over what the starter has left.
func inherited() (lock *fileLock, l *net.TCPListener, o orders, err error) {
	syscall.CloseOnExec(inheritLock)
	syscall.CloseOnExec(inheritListener)
	syscall.CloseOnExec(inheritOrders)
	lock = &fileLock{os.NewFile(inheritLock, "daemon.lock")}
	lf := os.NewFile(inheritListener, "listener")
	r := os.NewFile(inheritOrders, "orders")
	defer lf.Close()
	defer r.Close()
	nl, err := net.FileListener(lf)
	if err != nil {
		return nil, nil, o, fmt.Errorf("take the listener over: %w", err)
	}
	var ok bool
	if l, ok = nl.(*net.TCPListener); !ok {
		return nil, nil, o, fmt.Errorf("take the listener over: it is a %T", nl)
	}
	if err := json.NewDecoder(io.LimitReader(r, maxControlLine)).Decode(&o); err != nil {
		return nil, nil, o, fmt.Errorf("read orders: %w", err)
	}
	return lock, l, o, nil
}

// maxLog is where the daemon's log begins anew; the one before it is kept beside it.
const maxLog = 1 << 20

func openLog(path string) (*os.File, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// journal is what a daemon says of itself: to its standard error in the foreground, to
// daemon.log in the background. It never holds more than two times maxLog there.
type journal struct {
	mu   sync.Mutex
	path string // "" in the foreground
	n    int64
}

func newJournal(path string) *journal {
	j := &journal{path: path}
	if fi, err := os.Stderr.Stat(); err == nil && path != "" {
		j.n = fi.Size()
	}
	return j
}

// Say writes a line. Arguments are cleaned: they may come from a box.
func (j *journal) Say(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	line := time.Now().Format(time.RFC3339) + " " + fmt.Sprintf(format, cleaned(args)...) + "\n"
	if j.n += int64(len(line)); j.path != "" && j.n > maxLog {
		if f, err := openLog(j.path); err == nil {
			// The runtime writes a crash to descriptor 2, so that is what must move.
			syscall.Dup3(int(f.Fd()), 2, 0)
			syscall.Dup3(int(f.Fd()), 1, 0)
			f.Close()
			j.n = int64(len(line))
		}
	}
	os.Stderr.WriteString(line)
}

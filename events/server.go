package events

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sandglass/sandglass/core"
)

// maxConns bounds the connections to the embedded server: one for each running session,
// and the daemon's own.
const maxConns = 4096

// ServerOptions say what an embedded server is to be like.
type ServerOptions struct {
	Home string        // the state folder; the server's own is bus/ in it
	Log  server.Logger // where its log goes; nil: nowhere
}

// Server is a NATS server with JetStream inside this process. It listens on no port: it
// is reached through a socket in the state folder, which only its owner can enter.
type Server struct {
	o     ServerOptions
	lock  *os.File
	ln    net.Listener
	wg    sync.WaitGroup
	life  sync.Mutex // of who restarts or ends it
	mu    sync.Mutex
	nats  *server.Server
	conns map[net.Conn]struct{} // nil once the server is shut down
}

// SocketPath returns the path of the embedded server's socket.
func SocketPath(home string) string { return filepath.Join(home, "bus.sock") }

// throughShortPath calls f with a path for the socket path that fits in a sockaddr_un
// (108 bytes, unix(7)) however long path is.
func throughShortPath(path string, f func(path string) error) error {
	if len(path) < 100 {
		return f(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return f("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path))
}

// StartServer starts the embedded server of a state folder. It returns when the server
// takes connections; the streams are another matter: see [Streams]. A second server on
// the same folder is refused.
func StartServer(o ServerOptions) (*Server, error) {
	s, err := startServer(o)
	if err != nil {
		return nil, fmt.Errorf("start the event bus: %w", err)
	}
	return s, nil
}

func startServer(o ServerOptions) (_ *Server, err error) {
	if err := os.MkdirAll(busDir(o.Home), 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(o.Home, "bus.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, core.Hint(fmt.Errorf("lock %s: %w", lock.Name(), err), "another daemon runs with this state folder: sandglass status")
	}
	ns, err := runServer(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ns.Shutdown()
			ns.WaitForShutdown()
		}
	}()
	s := &Server{o: o, lock: lock, nats: ns, conns: map[net.Conn]struct{}{}}
	sock := SocketPath(o.Home)
	if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	err = throughShortPath(sock, func(path string) error {
		s.ln, err = net.Listen("unix", path)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.ln.(*net.UnixListener).SetUnlinkOnClose(false) // its short path is gone by then
	if err := os.Chmod(sock, 0o600); err != nil {
		s.ln.Close()
		return nil, err
	}
	s.wg.Go(s.accept)
	return s, nil
}

func busDir(home string) string { return filepath.Join(home, "bus") }

// runServer starts NATS's own server, and returns when it takes connections.
func runServer(o ServerOptions) (*server.Server, error) {
	opts, err := serverOptions(o.Home)
	if err != nil {
		return nil, err
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, err
	}
	if o.Log != nil {
		ns.SetLogger(o.Log, false, false)
	}
	ns.Start()
	if !ns.ReadyForConnections(30 * time.Second) {
		ns.Shutdown()
		ns.WaitForShutdown()
		return nil, errors.New("the server does not become ready")
	}
	return ns, nil
}

func serverOptions(home string) (*server.Options, error) {
	operator, err := key(home, keyOperator, nkeys.CreateOperator)
	if err != nil {
		return nil, err
	}
	operatorID, err := operator.PublicKey()
	if err != nil {
		return nil, err
	}
	resolver := &server.MemAccResolver{}
	account := func(file, name string, limits jwt.JetStreamLimits) (string, error) {
		kp, err := key(home, file, nkeys.CreateAccount)
		if err != nil {
			return "", err
		}
		id, err := kp.PublicKey()
		if err != nil {
			return "", err
		}
		c := jwt.NewAccountClaims(id)
		c.Name = name
		c.Limits.JetStreamLimits = limits
		token, err := c.Encode(operator)
		if err != nil {
			return "", err
		}
		return id, resolver.Store(id, token)
	}
	unlimited := jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit, MaxAckPending: jwt.NoLimit}
	if _, err := account(keyAccount, "sandglass", unlimited); err != nil {
		return nil, err
	}
	system, err := account(keySystem, "system", jwt.JetStreamLimits{})
	if err != nil {
		return nil, err
	}
	oc := jwt.NewOperatorClaims(operatorID)
	oc.Name, oc.SystemAccount = "sandglass", system
	return &server.Options{
		ServerName: "sandglass",
		DontListen: true,
		NoSigs:     true,
		NoLog:      true,
		JetStream:  true,
		StoreDir:   busDir(home),
		// An acknowledged message is on the disk. By default it gets there within two
		// minutes; Jepsen's test of NATS 2.12.1 lost what was acknowledged by that.
		SyncAlways:         true,
		JetStreamMaxStore:  1 << 50, // the streams have limits of their own, the disk has the last word
		JetStreamMaxMemory: 64 << 20,
		MaxConn:            maxConns,
		TrustedOperators:   []*jwt.OperatorClaims{oc},
		AccountResolver:    resolver,
		SystemAccount:      system,
	}, nil
}

// InProcessConn is a connection to the server as it is now: it implements
// nats.InProcessConnProvider, so that a connection mends itself after a Restart.
func (s *Server) InProcessConn() (net.Conn, error) { return s.now().InProcessConn() }

func (s *Server) now() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nats
}

// Ill says why the server can no longer write, nil while it can. NATS remembers an error
// of its disk for as long as it runs, and stores nothing more in the stream that met it,
// whether or not the disk has room again: see [Server.Restart].
func (s *Server) Ill() error {
	ns := s.now()
	h := ns.Healthz(nil)
	// It first asks whether the server has started and gives that a millisecond, which on a
	// busy machine can be over before it looks.
	for range 5 {
		if !strings.Contains(h.Error, "ready for connections") || !ns.ReadyForConnections(5*time.Second) {
			break
		}
		h = ns.Healthz(nil)
	}
	if strings.Contains(h.Error, syscall.ENOSPC.Error()) { // there is no more than its text
		return ErrDiskFull
	}
	if h.Error != "" {
		return errors.New(h.Error)
	}
	return nil
}

// Restart starts the server anew over what it has on the disk. Connections of this
// process and of sessions mend themselves; what was not acknowledged is published again.
// When it fails, it may be tried again.
func (s *Server) Restart() error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	old, ended := s.nats, s.conns == nil
	s.mu.Unlock()
	if ended {
		return errors.New("start the event bus anew: it has been shut down")
	}
	old.Shutdown()
	old.WaitForShutdown()
	ns, err := runServer(s.o)
	if err != nil {
		return fmt.Errorf("start the event bus anew: %w", err)
	}
	s.mu.Lock()
	s.nats = ns
	s.mu.Unlock()
	return nil
}

// Connect connects this process to its server, with all rights over the streams. The
// connection ends with the server.
func (s *Server) Connect() (*nats.Conn, error) {
	userJWT, seed, err := mint(s.o.Home, "daemon", func(*jwt.UserClaims) {})
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(localURL, nats.SkipHostLookup(), nats.Name("daemon"), nats.InProcessServer(s), nats.UserJWTAndSeed(userJWT, seed),
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.ReconnectWait(50*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})) // the default prints; what matters comes back from calls
	if err != nil {
		return nil, fmt.Errorf("connect to the event bus: %w", err)
	}
	return nc, nil
}

// accept joins each connection on the socket to one inside the process.
func (s *Server) accept() {
	for {
		c, err := s.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say: those that come later may be luckier
			time.Sleep(10 * time.Millisecond)
			continue
		}
		in, err := s.InProcessConn()
		if err != nil {
			c.Close()
			continue
		}
		if !s.track(c, in) {
			return
		}
		s.wg.Go(func() {
			pipe(in, c)
			in.Close() // and no more: what the server says last is still on its way
		})
		s.wg.Go(func() {
			pipe(c, in)
			s.mu.Lock()
			delete(s.conns, c)
			delete(s.conns, in)
			s.mu.Unlock()
			c.Close()
			in.Close()
		})
	}
}

// track remembers connections for Shutdown, or closes them when that has been.
func (s *Server) track(cs ...net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range cs {
		if s.conns == nil {
			c.Close()
		} else {
			s.conns[c] = struct{}{}
		}
	}
	return s.conns != nil
}

// pipe copies until one side ends.
func pipe(dst io.Writer, src io.Reader) {
	// The wrappers hide splice(2) and the like, which a pipe in memory has not.
	io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 64<<10))
}

// Shutdown stops the server. What it acknowledged is on the disk. It returns when
// another server may be started on the same folder.
func (s *Server) Shutdown() {
	s.life.Lock()
	defer s.life.Unlock()
	s.ln.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	ns := s.now()
	ns.Shutdown()
	ns.WaitForShutdown()
	s.wg.Wait()
	os.Remove(SocketPath(s.o.Home)) // a socket that nobody listens on is refused all the same
	s.lock.Close()
}

package events

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sandglass/sandglass/core"
)

// bus is a connection that is there or not.
type bus struct {
	nc *nats.Conn

	mu      sync.Mutex
	up      context.Context // of the connection; nil while there is none
	down    context.CancelFunc
	changed chan struct{} // closed and made anew with each change
}

// socketDialer connects to the embedded server of a state folder.
type socketDialer struct{ home string }

// Dial implements nats.CustomDialer.
func (d socketDialer) Dial(string, string) (c net.Conn, err error) {
	err = throughShortPath(SocketPath(d.home), func(path string) error {
		c, err = net.DialTimeout("unix", path, 2*time.Second)
		return err
	})
	return c, err
}

// localURL stands for the embedded server. It is an address, and comes with the option
// SkipHostLookup: the name of a host would be asked of the DNS, custom dialer or not.
const localURL = "nats://127.0.0.1"

// Conn and JetStream are the bus's own types under names of this package, for those who
// hand them on: NATS is imported here alone.
type (
	Conn      = nats.Conn
	JetStream = jetstream.JetStream
)

// NewJetStream returns what [Streams], [Consume] and [States] work on.
func NewJetStream(nc *Conn) (JetStream, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("use the event bus: %w", err)
	}
	return js, nil
}

// Connect connects to the bus with all rights over the streams: to the server at url, with
// the credentials in the file creds, or to the embedded one of the state folder, which
// another process may run, when url is "". The connection mends itself.
func Connect(home, url, creds string) (*nats.Conn, error) {
	opts := []nats.Option{nats.Name("sandglass"), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.ReconnectWait(100 * time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}
	if url == "" {
		url = localURL
		userJWT, seed, err := mint(home, "owner", func(*jwt.UserClaims) {})
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.SetCustomDialer(socketDialer{home}), nats.SkipHostLookup(), nats.UserJWTAndSeed(userJWT, seed))
	} else if creds != "" {
		opts = append(opts, nats.UserCredentials(creds))
	}
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to the event bus: %w", err)
	}
	return nc, nil
}

// dialBus makes a connection that mends itself for ever, also when there is no server yet:
// to the server at url, with the credentials in the file creds, or to the embedded one of
// the state folder when url is "". It returns after the first attempt, or when ctx ends.
func dialBus(ctx context.Context, home, url, creds string, s core.Session) (*bus, error) {
	b := &bus{changed: make(chan struct{})}
	opts := []nats.Option{
		nats.Name("session " + string(s.ID)),
		nats.NoEcho(),
		nats.CustomInboxPrefix(inboxPrefix(s.ID)),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // keys may be another's for a while
		nats.ReconnectBufSize(-1),   // the spool is the buffer
		nats.Timeout(5 * time.Second),
		nats.CustomReconnectDelay(func(attempts int) time.Duration { return min(20*time.Millisecond<<min(attempts, 10), time.Second) }),
		nats.RetryOnFailedConnect(true),
		nats.ConnectHandler(func(*nats.Conn) { b.set(true) }),
		nats.ReconnectHandler(func(*nats.Conn) { b.set(true) }),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { b.set(false) }),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // a publish without an answer is tried again
	}
	if url == "" {
		url = localURL
		userJWT, seed, err := MintSessionCreds(home, s)
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.SetCustomDialer(socketDialer{home}), nats.SkipHostLookup(), nats.UserJWTAndSeed(userJWT, seed))
	} else if creds != "" {
		opts = append(opts, nats.UserCredentials(creds))
	}
	type dialed struct {
		nc  *nats.Conn
		err error
	}
	first := make(chan dialed, 1)
	go func() { // Connect knows no context
		nc, err := nats.Connect(url, opts...)
		first <- dialed{nc, err}
	}()
	select {
	case d := <-first:
		if d.err != nil {
			return nil, d.err
		}
		b.nc = d.nc
		if b.nc.IsConnected() {
			b.set(true) // the handler has been called, but perhaps does not run yet
		}
		return b, nil
	case <-ctx.Done():
		go func() {
			if d := <-first; d.nc != nil {
				d.nc.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

func (b *bus) set(up bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if up == (b.up != nil) {
		return
	}
	if b.down != nil {
		b.down()
		b.up, b.down = nil, nil
	}
	if up {
		b.up, b.down = context.WithCancel(context.Background())
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// state returns a context that lasts as long as the connection, nil when there is none,
// and a channel that is closed when that changes.
func (b *bus) state() (context.Context, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up, b.changed
}

func (b *bus) close() {
	b.nc.Close()
	b.set(false)
}

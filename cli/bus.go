package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
)

// bus is what a projector needs of the event bus, embedded or external.
type bus struct {
	name   string // "embedded", or a URL
	js     events.JetStream
	conn   *events.Conn
	server *events.Server // nil when it is external
	home   Home

	mu  sync.Mutex
	ill error              // why it cannot write at the moment
	era context.Context    // ends when it falls ill: nobody waits for answers that will not come
	end context.CancelFunc // of era
}

// embeddedBus is what --nats calls the bus that is not external.
const embeddedBus = "embedded"

// externalBus returns the URL of the bus that this state folder's events go to, "" for the
// embedded one: what the daemon uses, or used before it was killed; else what the last one
// was told to. A daemon that is started without being told goes on with it: events in two
// buses would be two halves of one log.
func (h Home) externalBus() string {
	if info, err := h.daemonInfo(); err == nil {
		return info.NATS
	}
	f, err := os.Open(h.busFile())
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBoxFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// rememberBus keeps the URL for daemons to come. It may have a password in it: the file is
// its owner's alone.
func (h Home) rememberBus(url string) error {
	var err error
	if url == "" {
		if err = os.Remove(h.busFile()); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		err = writeAtomic(h.busFile(), []byte(url+"\n"))
	}
	if err != nil {
		return homeHint(fmt.Errorf("remember the event bus: %w", err))
	}
	return nil
}

// openBus starts the embedded bus, or connects to an external one, and makes the streams.
// The caller holds the daemon's lock.
func openBus(ctx context.Context, h Home, external string) (_ *bus, err error) {
	b := &bus{name: embeddedBus, home: h}
	b.era, b.end = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if external == "" {
		if b.server, err = events.StartServer(events.ServerOptions{Home: string(h)}); err != nil {
			return nil, homeHint(err)
		}
		b.conn, err = b.server.Connect()
	} else {
		b.name = withoutSecrets(external)
		b.conn, err = events.Connect(string(h), external, "")
		err = core.Hint(err, "is a NATS server with JetStream running at "+core.Shorten(b.name, 200)+"?",
			"`sandglass serve --nats "+embeddedBus+"` goes back to the embedded one")
	}
	if err != nil {
		return nil, err
	}
	if b.js, err = events.NewJetStream(b.conn); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := events.Streams(ctx, b.js); err != nil {
		return nil, homeHint(err)
	}
	return b, nil
}

// withoutSecrets takes users, passwords and tokens out of a list of URLs.
func withoutSecrets(urls string) string {
	parts := strings.Split(urls, ",")
	for i, part := range parts {
		if u, err := url.Parse(strings.TrimSpace(part)); err != nil {
			parts[i] = "(not a URL)"
		} else {
			if u.User != nil {
				u.User = url.User("xxxxx")
			}
			parts[i] = u.String()
		}
	}
	return strings.Join(parts, ",")
}

func (b *bus) states(ctx context.Context) (map[string]events.StreamState, error) {
	era, ill := b.well()
	if ill != nil {
		return nil, ill
	}
	ctx, cause := context.WithCancelCause(ctx)
	defer cause(nil)
	defer context.AfterFunc(era, func() { cause(errors.New("the event bus is started anew")) })()
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, fmt.Errorf("the event bus (%s) does not answer", b.name))
	defer cancel()
	s, err := events.States(ctx, b.js)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return s, err
}

// well returns a context that ends when the bus falls ill, or why it is ill.
func (b *bus) well() (context.Context, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.era, b.ill
}

// tend looks after the embedded server until ctx ends: one whose disk was full stores
// nothing more, and is started anew when there is room. Then anew is called.
func (b *bus) tend(ctx context.Context, say func(string, ...any), anew func()) {
	if b.server == nil {
		return
	}
	t := time.NewTicker(tendEvery)
	defer t.Stop()
	var wait time.Duration
	var next time.Time
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		before := b.look()
		if _, err := b.well(); err == nil {
			if before {
				say("the event bus writes again")
			}
			continue
		} else if !before {
			say("%s", err)
			wait = 0
		}
		if free, err := freeSpace(b.home); err == nil && free < roomToTend || time.Now().Before(next) {
			continue
		}
		if err := b.server.Restart(); err != nil {
			say("%s", err)
		} else {
			anew()
		}
		wait = min(2*wait+tendEvery, time.Minute)
		next = time.Now().Add(wait)
	}
}

// look asks the server how it is, and says whether it was ill before.
func (b *bus) look() (before bool) {
	ill := b.server.Ill()
	// A server that could not begin to write, as with a batch of messages, refuses and does
	// not remember: it looks well.
	if free, err := freeSpace(b.home); ill == nil && err == nil && free < fullBelow {
		ill = events.ErrDiskFull
	}
	if ill != nil {
		ill = fmt.Errorf("the event bus cannot write: %w", ill)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before = b.ill != nil
	b.ill = ill
	switch {
	case ill != nil:
		b.end()
	case before:
		b.era, b.end = context.WithCancel(context.Background())
	}
	return before
}

// tendEvery is how often the embedded server is asked how it is: a look at two streams.
const tendEvery = time.Second

// roomToTend is how much of the disk must be free for a server to be started anew.
const roomToTend = 4 << 20

// fullBelow is how little is free on a disk that counts as full.
const fullBelow = 256 << 10

func (b *bus) close() {
	b.end()
	if b.conn != nil {
		b.conn.Close()
	}
	if b.server != nil {
		b.server.Shutdown()
	}
}

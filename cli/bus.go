package cli

import (
	"context"
	"fmt"
	"net/url"
	"strings"
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
}

// openBus starts the embedded bus, or connects to an external one, and makes the streams.
// The caller holds the daemon's lock.
func openBus(ctx context.Context, h Home, external string) (_ *bus, err error) {
	b := &bus{name: "embedded", home: h}
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
		err = core.Hint(err, "is a NATS server with JetStream running at "+core.Shorten(b.name, 200)+"?")
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
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, fmt.Errorf("the event bus (%s) does not answer", b.name))
	defer cancel()
	s, err := events.States(ctx, b.js)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return s, err
}

func (b *bus) close() {
	if b.conn != nil {
		b.conn.Close()
	}
	if b.server != nil {
		b.server.Shutdown()
	}
}

package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sandglass/sandglass/core"
)

// Retention bounds the stream of operations; what is beyond it is dropped, oldest first.
// The stream of control is kept.
type Retention struct {
	Bytes int64         // compressed; 0: [DefaultRetention]'s
	Age   time.Duration // 0: for ever
}

// DefaultRetention is about a thousand million operations.
var DefaultRetention = Retention{Bytes: 16 << 30}

// Streams makes the streams, or brings those that exist up to date, with
// [DefaultRetention].
func Streams(ctx context.Context, js jetstream.JetStream) error {
	return StreamsWith(ctx, js, DefaultRetention)
}

// StreamsWith is [Streams] with limits of one's own.
func StreamsWith(ctx context.Context, js jetstream.JetStream, r Retention) error {
	if r.Bytes == 0 {
		r.Bytes = DefaultRetention.Bytes
	}
	common := jetstream.StreamConfig{
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		Compression: jetstream.S2Compression,
		MaxMsgSize:  1 << 20,
		// A publisher asks where it stopped by it: see [publisher.locate].
		AllowDirect:        true,
		AllowAtomicPublish: true,
		Duplicates:         2 * time.Minute,
	}
	ops, ctl := common, common
	ops.Name, ops.Description = StreamOps, "operations of boxes, in batches"
	ops.Subjects = []string{"sandglass.*.*.*.ops", "sandglass.*.*.*.tty"}
	ops.MaxBytes, ops.MaxAge = r.Bytes, r.Age
	ctl.Name, ctl.Description = StreamCtl, "lives of boxes, sessions and users"
	ctl.Subjects = []string{"sandglass.*.*.*.life", "sandglass.*.*.*.ask"}
	for _, c := range []jetstream.StreamConfig{ops, ctl} {
		if _, err := js.CreateOrUpdateStream(ctx, c); err != nil {
			return fmt.Errorf("make stream %s: %w", c.Name, err)
		}
	}
	return nil
}

// StreamState is what there is in a stream.
type StreamState struct {
	First, Last uint64 // sequence numbers; First > Last when it is empty
	Epoch       string // another one means another stream: what was folded from this one is void
}

// States returns the state of each stream.
func States(ctx context.Context, js jetstream.JetStream) (map[string]StreamState, error) {
	m := map[string]StreamState{}
	for _, name := range []string{StreamOps, StreamCtl} {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("look at stream %s: %w", name, err)
		}
		i := s.CachedInfo()
		if i.State.Msgs == 0 {
			i.State.FirstSeq = i.State.LastSeq + 1
		}
		m[name] = StreamState{i.State.FirstSeq, i.State.LastSeq, i.Created.UTC().Format(time.RFC3339Nano)}
	}
	return m, nil
}

// MessageError is about a message that [Consume] cannot decode. Who decides to go on
// without it starts again behind it.
type MessageError struct {
	Stream    string
	StreamSeq uint64
	Err       error
}

func (e *MessageError) Error() string {
	return fmt.Sprintf("message %d of stream %s: %v", e.StreamSeq, e.Stream, e.Err)
}
func (e *MessageError) Unwrap() error { return e.Err }

// decodeMessage decodes a message by its type.
func decodeMessage(stream string, m jetstream.Msg) (Delivered, error) {
	d := Delivered{Stream: stream, Body: m.Data()}
	meta, err := m.Metadata()
	if err != nil {
		return d, fmt.Errorf("a message of stream %s: %w", stream, err)
	}
	d.StreamSeq = meta.Sequence.Stream
	switch kind := m.Headers().Get(headerType); kind {
	case TypeOps:
		d.Batch, err = DecodeBatch(d.Body)
		if err == nil && (address{d.Batch.Host, d.Batch.Box, d.Batch.Session}).subject(stream) != m.Subject() {
			err = fmt.Errorf("it holds a batch of another session than its subject %q says", m.Subject())
		}
	case TypeLife:
		d.Life, err = DecodeLife(d.Body)
		if err == nil {
			// The session's token is the fourth: see address.prefix. None of its bytes is escaped.
			var session core.SessionID
			if tokens := strings.Split(m.Subject(), "."); len(tokens) == 5 {
				session = core.SessionID(tokens[3])
			}
			if (address{d.Life.Host, d.Life.Box, session}).subject(stream) != m.Subject() || !d.Life.belongs(session) {
				err = fmt.Errorf("it holds a fact (%s) that its subject %q may not tell", d.Life.Kind, m.Subject())
			}
		}
	default:
		err = fmt.Errorf("unknown type %q", core.Shorten(kind, 80))
	}
	if err != nil {
		return d, &MessageError{stream, d.StreamSeq, err}
	}
	return d, nil
}

// consumeEvery is the shortest time from the end of one call of a consumer's function to
// the next, when nothing urgent comes: a transaction costs nearly as much for one batch as
// for a dozen.
const consumeEvery = 100 * time.Millisecond

// Consume hands the messages of both streams to fn, from the one after fromSeq[stream]
// on, each stream in order, at most max messages a call, or as many as have come within a
// tenth of a second; what was blocked, leaked or tells of a session's begin or end ends
// the waiting. It calls fn from one goroutine and reads ahead by at most about two calls'
// worth. It returns the first error of fn, a [*MessageError], or ctx's when it ends;
// connections that break in between are mended.
func Consume(ctx context.Context, js jetstream.JetStream, fromSeq map[string]uint64, max int, fn func([]Delivered) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(context.Canceled)
	got := make(chan Delivered, max)
	for _, stream := range []string{StreamCtl, StreamOps} {
		from := fromSeq[stream] // fn may change the map
		wg.Go(func() {
			if err := read(ctx, js, stream, from, max, got); err != nil {
				cancel(err)
			}
		})
	}
	batch := make([]Delivered, 0, max)
	rested := time.NewTimer(0)
	defer rested.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case d := <-got:
			batch = append(batch[:0], d)
		}
		// What comes after a pause goes on at once; of a stream that flows, what has come
		// since the last call and a moment ago is taken together.
		for resting := !batch[0].urgent(); resting && len(batch) < max; {
			select {
			case d := <-got:
				batch = append(batch, d)
				resting = !d.urgent()
			case <-rested.C:
				resting = false
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	more:
		for len(batch) < max {
			select {
			case d := <-got:
				batch = append(batch, d)
			default:
				break more
			}
		}
		if err := fn(batch); err != nil {
			return err
		}
		clear(batch)
		rested.Reset(consumeEvery)
	}
}

// read decodes what comes after the message from of a stream until ctx ends.
func read(ctx context.Context, js jetstream.JetStream, stream string, from uint64, max int, got chan<- Delivered) error {
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		before := from
		err := readOnce(ctx, js, stream, &from, max, got)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		var bad *MessageError
		if errors.As(err, &bad) || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		if from != before {
			wait = time.Millisecond
		}
		select { // the server is away
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func readOnce(ctx context.Context, js jetstream.JetStream, stream string, from *uint64, max int, got chan<- Delivered) error {
	cfg := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: *from + 1}
	c, err := js.OrderedConsumer(ctx, stream, cfg)
	if err != nil {
		return fmt.Errorf("read stream %s: %w", stream, err)
	}
	it, err := c.Messages(jetstream.PullMaxMessagesWithBytesLimit(max, 8<<20), jetstream.PullHeartbeat(5*time.Second))
	if err != nil {
		return fmt.Errorf("read stream %s: %w", stream, err)
	}
	defer it.Stop()
	stop := context.AfterFunc(ctx, it.Stop)
	defer stop()
	for {
		m, err := it.Next()
		if err != nil {
			return fmt.Errorf("read stream %s: %w", stream, err)
		}
		d, err := decodeMessage(stream, m)
		if err != nil {
			return err
		}
		select {
		case got <- d:
			*from = d.StreamSeq
		case <-ctx.Done():
			return nil
		}
	}
}

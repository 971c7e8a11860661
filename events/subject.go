package events

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sandglass/sandglass/core"
)

// The types of events, as CloudEvents name them. A consumer picks the decoder by them.
const (
	TypeOps  = "dev.sandglass.ops.v1"
	TypeLife = "dev.sandglass.life.v1"
)

// noToken stands in a subject for a box that there is none of. No box can have this name.
const noToken = "_"

// escapeToken makes one token of a subject, or one segment of a URI path, of any bytes:
// letters, digits, '-' and '_' stay, all others become %XX. In a NATS subject '.'
// would begin another token, '*' and '>' are wildcards, and space ends a line.
func escapeToken(s string) string {
	if s == "" {
		return noToken
	}
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' && s != noToken {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// belongs says whether l may be told under that session: a session's life by the session
// itself, any other fact by a note.
func (l *Life) belongs(session core.SessionID) bool {
	if l.Kind == SessionBegin || l.Kind == SessionEnd {
		return l.Session == session && !strings.HasPrefix(string(session), notePrefix)
	}
	return l.Session == "" && strings.HasPrefix(string(session), notePrefix)
}

// address is whose events a subject is for.
type address struct {
	host, box string
	session   core.SessionID // of a session, or the id of a lone fact
}

func (a address) prefix() string {
	return "sandglass." + escapeToken(a.host) + "." + escapeToken(a.box) + "." + escapeToken(string(a.session))
}

func (a address) source() string {
	return "/sandglass/" + escapeToken(a.host) + "/" + escapeToken(a.box) + "/" + escapeToken(string(a.session))
}

// subject returns the subject of a's events in a stream.
func (a address) subject(stream string) string {
	if stream == StreamCtl {
		return a.prefix() + ".life"
	}
	return a.prefix() + ".ops"
}

// Headers of a message: the attributes of CloudEvents 1.0 in the binary mode of its NATS
// protocol binding, and JetStream's own.
const (
	headerType         = "ce-type"
	headerExpect       = "Nats-Expected-Last-Subject-Sequence"
	headerBatchID      = "Nats-Batch-Id"
	headerBatchSeq     = "Nats-Batch-Sequence"
	headerBatchCommit  = "Nats-Batch-Commit"
	headerLastSequence = "Nats-Sequence" // of the answer to a direct get
)

// message makes the message of a record.
func (a address) message(r *record) *nats.Msg {
	m := nats.NewMsg(a.subject(r.stream()))
	kind, content := TypeOps, "application/cbor"
	if r.kind == kindLife {
		kind, content = TypeLife, "application/json"
	}
	id := r.id(a.session)
	m.Header = nats.Header{
		"ce-specversion": {"1.0"},
		"ce-id":          {id},
		headerType:       {kind},
		"ce-source":      {a.source()},
		"ce-time":        {r.time.UTC().Format(time.RFC3339Nano)},
		"content-type":   {content},
		nats.MsgIdHdr:    {id},
	}
	m.Data = r.body
	return m
}

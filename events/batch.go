package events

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"slices"
	"sort"

	"github.com/sandglass/sandglass/core"
)

// Version is the version of the batches that this package writes.
const Version = 1

// Limits of a batch. They bound what a decoder allocates for a body that somebody else
// wrote, and keep a body below the payload limit of a NATS server (1 MiB by default).
const (
	MaxBatchOps  = 1024      // operations in a batch; [Log] makes batches of up to 256
	MaxBatchSize = 960 << 10 // bytes of an encoded batch
	MaxString    = 64 << 10  // bytes of one string of an operation
	MaxDetail    = 64        // entries in one operation's detail
	maxName      = 255       // bytes of the names of a box, a host, a session
	maxSeq       = 1<<63 - 1 // SQLite and JSON have no larger ones
	maxPID       = 1<<31 - 1 // pid_t
	minOpSize    = 14        // bytes of the smallest operation: the array's head and 13 elements
	maxTime      = 1<<63 - 1 // 2262
)

// Batch is one message of the stream of operations: operations of one session that
// follow one another.
type Batch struct {
	Version int
	Session core.SessionID
	Box     string
	Host    string
	First   core.Seq         // Ops[i].Seq is First+i
	Prev    [32]byte         // SHA-256 of the encoded batch before this one; zero for the first
	Ops     []core.Operation // at least one
}

// Last returns the sequence number of the batch's last operation.
func (b *Batch) Last() core.Seq { return b.First + core.Seq(len(b.Ops)) - 1 }

// Sum returns the hash of an encoded batch, which the next batch carries as Prev.
func Sum(encoded []byte) [32]byte { return sha256.Sum256(encoded) }

// ChainError says where a session's chain of batches is broken.
type ChainError struct {
	Session core.SessionID
	Seq     core.Seq // of the first operation that is not vouched for
	Why     string
}

func (e *ChainError) Error() string {
	return fmt.Sprintf("session %s: chain broken at operation %d: %s", e.Session, e.Seq, e.Why)
}

// VerifyChain proves that encoded batches are all of one session's operations from the
// first on, unaltered. The order in which they are given does not matter; a batch that is
// given twice is an error, as it is in the stream. It returns the hash and the sequence
// number of the last, which [Life.VerifySeal] compares with the session's seal: without
// that, batches missing at the end are not noticed. Errors are of type [*ChainError].
func VerifyChain(encoded ...[]byte) (head [32]byte, last core.Seq, err error) {
	type link struct {
		b   *Batch
		sum [32]byte
	}
	links := make([]link, 0, len(encoded))
	for _, e := range encoded {
		b, err := DecodeBatch(e)
		if err != nil {
			return head, 0, &ChainError{Why: fmt.Sprintf("a batch cannot be read: %v", err)}
		}
		b.Ops = slices.Clip(b.Ops)
		links = append(links, link{b, Sum(e)})
	}
	sort.SliceStable(links, func(i, j int) bool { return links[i].b.First < links[j].b.First })
	for _, l := range links {
		fail := func(why string) ([32]byte, core.Seq, error) {
			return head, last, &ChainError{l.b.Session, last + 1, why}
		}
		switch {
		case l.b.Session != links[0].b.Session:
			return fail("a batch of session " + string(l.b.Session) + " is among them")
		case l.b.First <= last:
			return fail(fmt.Sprintf("operation %d is there twice", l.b.First))
		case l.b.First != last+1:
			return fail(fmt.Sprintf("the next one is %d", l.b.First))
		case l.b.Prev != head:
			return fail("the batch does not name the one before it")
		}
		head, last = l.sum, l.b.Last()
	}
	return head, last, nil
}

// sealText is what a session's seal signs. Its first line is a domain of its own, so that
// the signature means nothing anywhere else.
func sealText(l *Life) []byte {
	return fmt.Appendf(nil, "sandglass seal v1\n%q\n%q\n%q\n%d\n%x\n%t\n", l.Host, l.Box, l.Session, l.Last, l.Head, l.Lost)
}

// Seal signs l, the end of a session, with key: that the session's chain ends with the
// operation l.Last and the hash l.Head.
func (l *Life) Seal(key ed25519.PrivateKey) {
	l.Key = slices.Clone(key.Public().(ed25519.PublicKey))
	l.Sig = ed25519.Sign(key, sealText(l))
}

// VerifySeal proves that l, the end of a session, was sealed with the private half of key
// over a chain that ends as [VerifyChain] found it to.
func (l *Life) VerifySeal(key ed25519.PublicKey, head [32]byte, last core.Seq) error {
	fail := func(seq core.Seq, why string) error { return &ChainError{l.Session, seq, why} }
	switch {
	case len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, sealText(l), l.Sig):
		return fail(last+1, "the seal is not signed with this key")
	case l.Last != last:
		return fail(min(last, l.Last)+1, fmt.Sprintf("the seal names %d as the last operation, the chain ends with %d", l.Last, last))
	case l.Head != head:
		return fail(last, "the seal names another batch as the last")
	}
	return nil
}

package network

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/sandglass/sandglass/core"
)

// published is a network with ports that are published, on a wire that leads nowhere, where
// they listen, and its log.
func published(t *testing.T, limits core.Limits, ports ...string) (n *Network, s *sink, at []string, ops chan core.Operation) {
	t.Helper()
	p, err := core.BuiltinPolicy("")
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		if err := p.Network.AddPublish(port); err != nil {
			t.Fatal(err)
		}
	}
	ops = make(chan core.Operation, 64)
	var mu sync.Mutex
	s = newSink()
	n, err = start(Options{Tun: -1, Diag: -1, Limits: limits, Policy: func() *core.Policy { return p }, Log: func(op *core.Operation) {
		mu.Lock()
		defer mu.Unlock()
		if op.Action == core.ActListen {
			at = append(at, op.Target)
			return
		}
		ops <- *op
	}}, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	mu.Lock()
	defer mu.Unlock()
	return n, s, at, ops
}

// sendTo sends a datagram.
func sendTo(t *testing.T, addr, what string) {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, what); err != nil {
		t.Fatal(err)
	}
}

// Who came in by a published port is not judged by rules for what goes out: a change of the
// policy does not end it.
func TestAPublishedFlowStaysWhenThePolicyChanges(t *testing.T) {
	n, _, at, ops := published(t, core.Limits{}, "127.0.0.1:0:7000/udp")
	sendTo(t, at[0], "hello")
	if op := <-ops; op.Action != core.ActAccept {
		t.Fatalf("on record: %+v", op)
	}
	if k := n.PolicyChanged(); k != 0 {
		t.Errorf("%d flows have ended", k)
	}
	if k := n.Cut(""); k != 1 {
		t.Errorf("%d flows were there", k)
	}
}

// The limit on bytes holds for published ports: what has come in counts, and afterwards
// nobody comes in.
func TestPublishedPortsAreLimited(t *testing.T) {
	_, s, at, ops := published(t, core.Limits{NetBytes: 4}, "127.0.0.1:0:7000/udp", "127.0.0.1:0:7000")
	sendTo(t, at[0], "hello")
	for op := range ops {
		if op.Surface == core.SandboxLimit {
			break
		}
	}
	s.take()
	c, err := net.Dial("tcp", at[1])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("read: %v", err)
	}
	for _, p := range s.take() {
		if p[9] == protoTCP {
			t.Errorf("the box was told of it: %x", p)
		}
	}
}

// What a server of the box answers over UDP counts too.
func TestAnswersOfAPublishedPortCount(t *testing.T) {
	n, _, at, ops := published(t, core.Limits{NetBytes: 100}, "127.0.0.1:0:7000/udp")
	sendTo(t, at[0], "hello")
	<-ops
	n.mu.RLock()
	var key flowKey
	for _, d := range n.inbound {
		key = d.key
	}
	n.mu.RUnlock()
	n.receive([10]byte{}, udpPacket(key.local, key.remote, make([]byte, 200)))
	for op := range ops {
		if op.Surface == core.SandboxLimit {
			break
		}
	}
}

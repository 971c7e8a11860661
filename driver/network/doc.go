// Package network is a box's own network: the other end of the box's tun device, in the
// supervisor's process.
//
// What comes in: IP packets of the box, which may be anything at all. What goes out: bytes
// over sockets of this machine, for the flows that the policy allows, and operations that
// say which process wanted what, what came of it and how much it carried.
//
// The one idea to know: no packet of the box goes any further than this package. A TCP/IP
// stack ends each flow here, another socket begins it anew outside, and only payload passes
// between the two. What the box says of itself (a name in a TLS hello) is for the log and
// for rules that forbid more; an address it cannot lie about.
//
// The parts:
//
//	names.go    which names the box knows an address by
//	resolver.go the box's resolver: questions judged, answered
//	upstream.go and asked outside
//	message.go  what a DNS message holds
//	tunnel.go   questions that carry data
//	hello.go    what a flow says of itself: TLS server name, ALPN, certificate, HTTP host
//	capture.go  pcapng
package network

import "github.com/sandglass/sandglass/core"

// Owner is the process of the box that opened a flow or asks for a name. The zero value is
// one that is not known.
type Owner struct {
	PID  int // in the box
	Proc core.ProcID
	Exe  string
}

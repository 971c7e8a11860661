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
//	network.go  the whole: starting, deciding, ending
//	edge.go     packets of the box, taken apart, and those that are made for it
//	link.go     the TCP/IP stack, and its side of the device
//	tcp.go      connections: held, dialled, carried
//	datagram.go UDP, and what is common to all datagrams
//	echo.go     echo requests
//	flow.go     what is known and logged of a flow
//	owners.go   which process has which socket
//	near.go     which addresses are this machine's and its neighbours'
//	ask.go      flows that wait for a person
//	publish.go  ports of this machine that lead into the box
//	loopback.go ports of this machine's loopback that the box has on its own
//	proxy.go    the way out through SOCKS5 or HTTP
//	share.go    the sessions of one box, on one device
//	names.go    which names the box knows an address by
//	resolver.go the box's resolver: questions judged, answered
//	upstream.go and asked outside
//	message.go  what a DNS message holds
//	tunnel.go   questions that carry data
//	ear.go      what a flow says of itself,
//	hello.go    as TLS and HTTP have it: server name, ALPN, certificate, host
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

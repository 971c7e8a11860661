// Package testworld is a machine with an Internet of its own, for tests and benchmarks of a
// box's network: two network namespaces, so that nothing of it reaches the real one.
//
// What comes in: a test, or a program's main function. What goes out: the same, run again
// where the only network is this one, and a [World] that says what its servers and its
// wires have heard.
//
//	the machine                                    the Internet
//	lan0  198.51.100.2/24, 192.168.77.2/24,        isp0  198.51.100.1, 192.168.77.1 (a server
//	      2001:db8:51::2/64 ---------------------->      of the local network), 2001:db8:51::1
//	                                               lo    203.0.113.10-30 and .53, 2001:db8:beef::10,
//	                                                     8.8.8.8, 1.1.1.1, 169.254.169.254
//	far0  192.168.99.2, 2001:db8:99::2 --(hop)---> far0  203.0.113.100, 2001:db8:beef:96::100
//
// The hop loses and delays packets: two tun devices and a process between them, since few
// kernels have sch_netem. One process plays the whole Internet ([internet]); every server
// of it listens on every address, and behaves by its port, by the name that it is asked
// for, or by the name of the question:
//
//	dns.go      53: names, and answers that are hostile
//	web.go      80, 443: HTTP and HTTPS with a CA of its own, files of [World.Site]
//	sockets.go  echo, discard, chargen; servers that never answer, reset, talk garbage
//	quic.go     443/udp
//	wire.go     every flow that leaves the machine, whether a server heard of it or not
//
// The one idea to know: who wants to say that nothing got out asks [World.Heard], not the
// program that tried.
//
// A test that uses it has [Stage] early in its TestMain, and is run by [In].
package testworld

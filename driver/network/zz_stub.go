package network

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/sandglass/sandglass/core"
)

type state int

const (
	needsMore state = iota
	heard
	notThis
)

type hello struct {
	server string
	alpn   []string
}

func clientHello(b []byte) (hello, state)            { return hello{}, notThis }
func serverNames(b []byte) ([]string, string, state) { return nil, "", notThis }
func httpHost(b []byte) (string, state)              { return "", notThis }

type names struct{}

func newNames() *names                                 { return &names{} }
func (*names) of(now time.Time, a netip.Addr) []string { return nil }
func isFake(a netip.Addr) bool                         { return false }

type resolverConfig struct {
	Upstream func() []netip.AddrPort
	Policy   func() *core.Policy
	Log      func(*core.Operation)
	Names    *names
	Fake     bool
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
}
type resolver struct{}

func newResolver(resolverConfig) *resolver { return &resolver{} }
func (*resolver) answer(ctx context.Context, q []byte, stream bool, who Owner, asked netip.AddrPort) []byte {
	return nil
}
func systemUpstreams() []netip.AddrPort { return nil }

type capture struct{}

func newCapture(string, int64) (*capture, error)        { return &capture{}, nil }
func (*capture) packet(time.Time, bool, []byte, string) {}
func (*capture) close() error                           { return nil }
func WriteCapture(w io.Writer, path string) error       { return nil }

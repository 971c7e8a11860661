package testworld

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// authority signs the certificates of all servers of the world.
type authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

func newAuthority(dir string) (*authority, error) {
	a := &authority{leaves: map[string]*tls.Certificate{}}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "testworld"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// leaf returns a certificate for a name, or for the address when no name was given.
func (a *authority) leaf(name string, at net.Addr) (*tls.Certificate, error) {
	t := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature}
	if host, _, err := net.SplitHostPort(at.String()); name == "" && err == nil {
		name = host
		t.IPAddresses = []net.IP{net.ParseIP(host)}
	} else {
		t.DNSNames = []string{name}
	}
	t.Subject.CommonName = name
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.leaves[name]; ok {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	if len(a.leaves) < 1000 {
		a.leaves[name] = c
	}
	return c, nil
}

// tlsConfig is a server's: names that begin with "tls12." get TLS 1.2 only, whose
// certificates travel in the clear.
func (s *internetState) tlsConfig(protos ...string) *tls.Config {
	base := &tls.Config{NextProtos: protos}
	base.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return s.ca.leaf(h.ServerName, h.Conn.LocalAddr())
	}
	base.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		from, to := ends(h.Conn)
		s.journal.add(Heard{Server: "tls", From: from, To: to, What: h.ServerName})
		if strings.HasPrefix(h.ServerName, "tls12.") {
			c := base.Clone()
			c.MaxVersion, c.GetConfigForClient = tls.VersionTLS12, nil
			return c, nil
		}
		return nil, nil
	}
	return base
}

// serveWeb serves HTTP at 80 and 8080, HTTPS at 443, and, to be heard, where DNS over TLS is.
func (s *internetState) serveWeb() error {
	type connKey struct{}
	handler := func(server string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _ := r.Context().Value(connKey{}).(net.Conn)
			from, to := ends(c)
			s.journal.add(Heard{Server: server, From: from, To: to, What: r.Method + " " + r.Host + r.URL.RequestURI()})
			s.web(w, r)
		})
	}
	for _, port := range []int{80, 8080, 443, 853} {
		l, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err != nil {
			return err
		}
		srv := &http.Server{ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }}
		if port == 443 || port == 853 {
			srv.Handler, srv.TLSConfig = handler("https"), s.tlsConfig("h2", "http/1.1", "dot")
			srv.ErrorLog = quiet
			go srv.ServeTLS(l, "", "")
			continue
		}
		srv.Handler = handler("http")
		go srv.Serve(l)
	}
	return nil
}

// web answers a request:
//
//	/            hello, and who asked
//	/bytes?n=N   N bytes of [Stream]
//	/sum         the SHA-256 of what is put
//	/never       nothing
//	/half        half of what was promised
//
// and files of [World.Site] for names that have one: of git.example.test as git serves them.
func (s *internetState) web(w http.ResponseWriter, r *http.Request) {
	host, _, _ := strings.Cut(r.Host, ":")
	site := filepath.Join(s.dir, "www", filepath.Base(host))
	if host == "git.example.test" {
		s.git(w, r)
		return
	}
	if _, err := os.Stat(site); err == nil {
		http.FileServer(http.Dir(site)).ServeHTTP(w, r)
		return
	}
	switch r.URL.Path {
	case "/bytes":
		n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.Copy(w, io.LimitReader(&Stream{}, n))
	case "/sum":
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %x %v\n", n, h.Sum(nil), err)
	case "/never":
		<-r.Context().Done()
	case "/half":
		w.Header().Set("Content-Length", "1000000")
		io.Copy(w, io.LimitReader(&Stream{}, 500_000))
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	default:
		fmt.Fprintf(w, "hello from %s\n", host)
	}
}

// git runs git-http-backend(1).
func (s *internetState) git(w http.ResponseWriter, r *http.Request) {
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"), Env: []string{"GIT_HTTP_EXPORT_ALL=1",
		"GIT_PROJECT_ROOT=" + filepath.Join(s.dir, "www", "git.example.test"), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.receivepack", "GIT_CONFIG_VALUE_0=true"}}
	h.ServeHTTP(w, r)
}

// Stream is an endless sequence of bytes, always the same, in which a byte that is lost,
// doubled or changed shows in the sum.
type Stream struct{ at uint64 }

// Read fills b.
func (s *Stream) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte((s.at * 0x9e3779b97f4a7c15) >> 56)
		s.at++
	}
	return len(b), nil
}

// StreamSum is the SHA-256 of the first n bytes of a [Stream], as web answers it.
func StreamSum(n int64) string {
	h := sha256.New()
	io.Copy(h, io.LimitReader(&Stream{}, n))
	return fmt.Sprintf("%x", h.Sum(nil))
}

package web

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"net"
	"net/http"
	"slices"
	"strings"
)

type nonceKey struct{}

// nonce is what scripts and styles of this response carry.
func nonce(ctx context.Context) string {
	s, _ := ctx.Value(nonceKey{}).(string)
	return s
}

// secured sets the headers that every answer has.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var raw [18]byte
		rand.Read(raw[:])
		n := base64.RawURLEncoding.EncodeToString(raw[:])
		h := w.Header()
		// Scripts and styles by nonce alone: no inline ones, no eval, nothing from
		// elsewhere. What htmx would evaluate (hx-on, filters) is therefore never used.
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'nonce-"+n+"'; style-src 'nonce-"+n+"'; img-src 'self'; connect-src 'self'; "+
			"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		// Not no-referrer: with that, a form of ours that is posted without a script says that
		// its origin is "null" (https://fetch.spec.whatwg.org/#append-a-request-origin-header).
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=(), usb=(), payment=(), display-capture=()")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), nonceKey{}, n)))
	})
}

// hostAllowed refuses requests whose Host is not one that the dashboard is reached by: a
// page elsewhere whose name was made to resolve to 127.0.0.1 (DNS rebinding) is of the
// same origin as far as the browser knows, but it cannot choose this header.
func (s *site) hostAllowed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.ToLower(strings.Trim(host, "[]"))
		if !slices.Contains(s.hosts, host) {
			s.fail(w, r, http.StatusMisdirectedRequest, "This is not the address of the dashboard.", "Open it by 127.0.0.1 or localhost.")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ownOrigin refuses what pages of another origin ask for: everything that changes
// something, and everything but a plain visit. A visit shows nothing to them: there
// are no frames, and the session's cookie does not come along.
func (s *site) ownOrigin(next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site, mode, dest := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Sec-Fetch-Mode"), r.Header.Get("Sec-Fetch-Dest")
		visit := mode == "navigate" && (dest == "document" || dest == "")
		if cross.Check(r) != nil || (site == "cross-site" || site == "same-site") && !visit {
			s.fail(w, r, http.StatusForbidden, "This request came from another site.", "Open the dashboard itself.")
			return
		}
		if o := r.Header.Get("Origin"); o != "" && o != "http://"+r.Host && o != "https://"+r.Host {
			s.fail(w, r, http.StatusForbidden, "This request came from another site.", "Open the dashboard itself.")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// members lets only those through who are signed in.
func (s *site) members(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.auth.signedIn(r) {
			s.render(w, r, http.StatusUnauthorized, signInPage(s.chrome(r, "Sign in"), signInState{}))
			return
		}
		next.ServeHTTP(w, r)
	})
}

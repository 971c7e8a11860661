package network

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// asking is one program's questions: each of them some time after the one before.
type asking struct {
	name  string
	every time.Duration
	n     int
	typ   string // "A" when empty
	q     func(r *rand.Rand, i int) string
}

var base32small = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func bytesOf(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func pick(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }

// fold splits text into labels.
func fold(s string, n int) string {
	var labels []string
	for len(s) > n {
		labels, s = append(labels, s[:n]), s[n:]
	}
	return strings.Join(append(labels, s), ".")
}

var fourLetters = strings.Fields(`able acid army away baby back ball band bank base bath bear beat been beer bell belt best bill bird blow blue boat body
	bone book boss both bowl bulk burn bush busy call calm came camp card care case cash cast cell chat chip city club coal coat code cold come
	cook cool cope copy core cost crew crop dark data date dawn days dead deal dean dear debt deep deny desk dial diet disc disk does done door dose
	down draw drew drop drug dual duke dust duty each earn ease east easy edge else even ever evil exit face fact fail fair fall farm fast fate fear`)

func person(r *rand.Rand) string {
	s := pick(r, fourLetters...)
	for range r.IntN(3) {
		s += pick(r, "", "-") + pick(r, fourLetters...)
	}
	if r.IntN(4) == 0 {
		s += fmt.Sprint(r.IntN(100))
	}
	return s
}

var tunnelling = []asking{
	{name: "iodine, base 32, NULL", every: 20 * time.Millisecond, n: 200, typ: "NULL", q: func(r *rand.Rand, i int) string {
		return fold("0"+base32small.EncodeToString(bytesOf(r, 110)), 57) + ".t1.pirate.example"
	}},
	{name: "iodine that waits, its pings", every: time.Second, n: 120, typ: "NULL", q: func(r *rand.Rand, i int) string {
		return "p" + base32small.EncodeToString(bytesOf(r, 16)) + ".t.example.org"
	}},
	{name: "dnscat2 that sends", every: 50 * time.Millisecond, n: 100, typ: "TXT", q: func(r *rand.Rand, i int) string {
		return fold(hex.EncodeToString(bytesOf(r, 100)), 60) + ".c2.example.net"
	}},
	{name: "dnscat2 that polls", every: time.Second, n: 120, typ: "MX", q: func(r *rand.Rand, i int) string {
		return hex.EncodeToString(bytesOf(r, 17)) + ".c2.example.net"
	}},
	{name: "a key in hexadecimal, by hand", every: 100 * time.Millisecond, n: 60, q: func(r *rand.Rand, i int) string {
		return fmt.Sprintf("%d.%s.exfil.example", i, hex.EncodeToString(bytesOf(r, 30)))
	}},
	{name: "base 64 as far as names have it", every: 100 * time.Millisecond, n: 60, q: func(r *rand.Rand, i int) string {
		return strings.Trim(strings.ToLower(base64.RawURLEncoding.EncodeToString(bytesOf(r, 40))), "-_") + ".exfil.example"
	}},
	{name: "short chunks", every: 100 * time.Millisecond, n: 400, q: func(r *rand.Rand, i int) string {
		return base32small.EncodeToString(bytesOf(r, 8)) + ".exfil.co.uk"
	}},
	{name: "one a half minute", every: 30 * time.Second, n: 240, q: func(r *rand.Rand, i int) string {
		return base32small.EncodeToString(bytesOf(r, 30)) + ".slow.example"
	}},
	{name: "text that is fetched by number", every: 100 * time.Millisecond, n: 200, typ: "TXT", q: func(r *rand.Rand, i int) string {
		return fmt.Sprintf("%d.payload.example", i)
	}},
	{name: "words for bytes", every: 20 * time.Millisecond, n: 2500, q: func(r *rand.Rand, i int) string {
		return pick(r, fourLetters...) + pick(r, fourLetters...) + "-" + pick(r, fourLetters...) + pick(r, fourLetters...) + ".exfil.example"
	}},
	{name: "letters alone", every: 100 * time.Millisecond, n: 100, q: func(r *rand.Rand, i int) string {
		return strings.Map(func(c rune) rune { return 'a' + (c-'0')%26 }, hex.EncodeToString(bytesOf(r, 25))) + ".exfil.example"
	}},
	{name: "the addresses of a network", every: 100 * time.Millisecond, n: 200, typ: "PTR", q: func(r *rand.Rand, i int) string {
		return fold(fmt.Sprintf("%x", bytesOf(r, 10)), 1) + ".8.b.d.0.1.0.0.2.f.f.f.f.ip6.arpa"
	}},
}

var ordinary = []asking{
	{name: "a page's images", every: 10 * time.Millisecond, n: 2000, q: func(r *rand.Rand, i int) string {
		return pick(r, "d111111abcdef8.cloudfront.net", "d3gk2c5xim1je2.cloudfront.net", "images-na.ssl-images-amazon.com", "e1234.dscb.akamaiedge.net",
			"a248.e.akamai.net", "fonts.gstatic.com", "www.google-analytics.com", "static.xx.fbcdn.net", "scontent-fra5-1.xx.fbcdn.net")
	}},
	{name: "different distributions of a CDN", every: 10 * time.Millisecond, n: 500, q: func(r *rand.Rand, i int) string {
		return "d" + base32small.EncodeToString(bytesOf(r, 8)) + ".cloudfront.net"
	}},
	{name: "videos", every: 500 * time.Millisecond, n: 100, q: func(r *rand.Rand, i int) string {
		return fmt.Sprintf("rr%d---sn-4g5%s.googlevideo.com", 1+r.IntN(8), pick(r, "ednz7", "lznez", "e6nsz", "ednsl", "lzned", "edn6y", "ed77e", "lznl7"))
	}},
	{name: "apt", every: 5 * time.Millisecond, n: 3000, q: func(r *rand.Rand, i int) string {
		return pick(r, "deb.debian.org", "security.debian.org", "ftp2.de.debian.org", "de.archive.ubuntu.com", "_http._tcp.deb.debian.org", "debian.map.fastlydns.net")
	}},
	{name: "npm and its kin", every: 2 * time.Millisecond, n: 5000, q: func(r *rand.Rand, i int) string {
		return pick(r, "registry.npmjs.org", "registry.yarnpkg.com", "codeload.github.com", "objects.githubusercontent.com", "files.pythonhosted.org")
	}},
	{name: "machines of a cloud", every: 20 * time.Millisecond, n: 1500, q: func(r *rand.Rand, i int) string {
		return fmt.Sprintf("ec2-%d-%d-%d-%d.%s.amazonaws.com", 3+r.IntN(50), r.IntN(256), r.IntN(256), r.IntN(256), pick(r, "compute-1", "eu-west-1.compute"))
	}},
	{name: "a provider's customers", every: 100 * time.Millisecond, n: 1000, q: func(r *rand.Rand, i int) string {
		return fmt.Sprintf("p%08x.dip0.t-ipconnect.de", r.IntN(40)*7919)
	}},
	{name: "a mail server and its block lists", every: 20 * time.Millisecond, n: 4000, q: func(r *rand.Rand, i int) string {
		return fmt.Sprintf("%d.%d.%d.%d.%s", r.IntN(256), r.IntN(256), r.IntN(256), 1+r.IntN(220), pick(r, "zen.spamhaus.org", "bl.spamcop.net", "b.barracudacentral.org"))
	}},
	{name: "block lists of IPv6, their text too", every: 50 * time.Millisecond, n: 500, typ: "TXT", q: func(r *rand.Rand, i int) string {
		return fold(hex.EncodeToString(bytesOf(r, 16)), 1) + ".zen.spamhaus.org"
	}},
	{name: "the names of a log's addresses", every: 5 * time.Millisecond, n: 4000, typ: "PTR", q: func(r *rand.Rand, i int) string {
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", r.IntN(256), r.IntN(256), r.IntN(256), 1+r.IntN(220))
	}},
	{name: "the names of a log's addresses, IPv6", every: 20 * time.Millisecond, n: 1000, typ: "PTR", q: func(r *rand.Rand, i int) string {
		return fold(hex.EncodeToString(bytesOf(r, 14)), 1) + ".1.0.0.2.ip6.arpa"
	}},
	{name: "telemetry with long names", every: 100 * time.Millisecond, n: 2000, q: func(r *rand.Rand, i int) string {
		return pick(r, "incoming.telemetry.mozilla.org", "prod.ingestion-edge.prod.dataops.mozgcp.net", "v10.events.data.microsoft.com",
			"o4504571234567890.ingest.us.sentry.io", "self.events.data.microsoft.com", "settings-win.data.microsoft.com",
			"a1f3b5c7-d9e0-4a2b-8c4d-6e8f0a1b2c3d.collector.example.com", "mobile-collector.newrelic.com", "8f14e45fceea167a5a36dedd4bea2543.report.example.com")
	}},
	{name: "pages of two hundred people", every: 50 * time.Millisecond, n: 1000, q: func(r *rand.Rand, i int) string { return person(r) + fmt.Sprint(i%200) + ".github.io" }},
	{name: "a crawler of blogs", every: 150 * time.Millisecond, n: 2000, q: func(r *rand.Rand, i int) string { return person(r) + ".tumblr.com" }},
	{name: "a company's tools", every: 200 * time.Millisecond, n: 500, q: func(r *rand.Rand, i int) string {
		return person(r) + pick(r, ".slack.com", ".atlassian.net", ".zendesk.com", ".okta.com", ".sharepoint.com")
	}},
	{name: "a search list of a cluster", every: 20 * time.Millisecond, n: 1000, q: func(r *rand.Rand, i int) string {
		return pick(r, "postgres", "redis", "auth-service-v2", "www.example.com", "registry.npmjs.org") + pick(r, ".default.svc.cluster.local", ".svc.cluster.local", ".cluster.local", ".corp.example.com")
	}},
	{name: "mail's keys and policies", every: time.Second, n: 300, typ: "TXT", q: func(r *rand.Rand, i int) string {
		return pick(r, "_dmarc.", "20230601._domainkey.", "selector1._domainkey.", "s1._domainkey.", "") + person(r) + pick(r, ".com", ".de", ".org")
	}},
	{name: "buckets", every: 100 * time.Millisecond, n: 300, q: func(r *rand.Rand, i int) string {
		return person(r) + "-" + person(r) + fmt.Sprint(r.IntN(1000)) + pick(r, ".s3.amazonaws.com", ".s3.eu-central-1.amazonaws.com", ".blob.core.windows.net")
	}},
	{name: "objects by their hash, some of them", every: 5 * time.Second, n: 500, q: func(r *rand.Rand, i int) string {
		return fmt.Sprintf("%x.cdn.example.com", sha256.Sum256([]byte{byte(r.IntN(12))}))[20:]
	}},
	{name: "one name for ever", every: time.Millisecond, n: 20000, q: func(r *rand.Rand, i int) string { return "aGVsbG8gd29ybGQgdGhpcyBpcw.example.com" }},
}

func (a *asking) run(t *tunnels, r *rand.Rand) (alarms []tunnelAlarm) {
	now, typ := time.Unix(1764000000, 0), a.typ
	if typ == "" {
		typ = "A"
	}
	for i := range a.n {
		if alarm, fires := t.saw(now, strings.ToLower(a.q(r, i)), typ); fires {
			alarms = append(alarms, alarm)
		}
		now = now.Add(a.every)
	}
	return alarms
}

func TestTunnelsAreFound(t *testing.T) {
	for _, a := range tunnelling {
		t.Run(a.name, func(t *testing.T) {
			for seed := range uint64(3) {
				alarms := a.run(newTunnels(), rand.New(rand.NewPCG(seed, 1)))
				if len(alarms) == 0 {
					t.Fatal("not seen")
				}
				one := alarms[0]
				if seed == 0 {
					t.Logf("%+v", one)
				}
				if name := strings.ToLower(a.q(rand.New(rand.NewPCG(0, 0)), 0)); !strings.HasSuffix(name, "."+one.domain) || one.distinct == 0 ||
					one.questions < one.distinct || one.bytes == 0 || one.why == "" {
					t.Errorf("the alarm %+v of %s", one, name)
				}
				if most := int(time.Duration(a.n)*a.every/quiet) + 1; len(alarms) > most {
					t.Errorf("%d alarms, of at most %d", len(alarms), most)
				}
			}
		})
	}
}

func TestOrdinaryQuestionsAreNoTunnel(t *testing.T) {
	all := newTunnels()
	for _, a := range ordinary {
		t.Run(a.name, func(t *testing.T) {
			for seed := range uint64(3) {
				if alarms := a.run(newTunnels(), rand.New(rand.NewPCG(seed, 1))); len(alarms) != 0 {
					t.Fatalf("%+v", alarms[0])
				}
			}
		})
		if alarms := a.run(all, rand.New(rand.NewPCG(9, 9))); len(alarms) != 0 {
			t.Errorf("%s, among the others: %+v", a.name, alarms[0])
		}
	}
}

// TestATunnelIsNotForgottenInAFlood: what is remembered is bounded, and other questions do
// not push out the domain that carries data.
func TestATunnelIsNotForgottenInAFlood(t *testing.T) {
	u, now := newTunnels(), time.Unix(1764000000, 0)
	r, fired := rand.New(rand.NewPCG(1, 1)), false
	for range 40 {
		_, fires := u.saw(now, hex.EncodeToString(bytesOf(r, 28))+".exfil.example", "A")
		fired = fired || fires
		for i := range maxDomains + 100 {
			u.saw(now, fmt.Sprintf("a.d%d.example", i), "A")
		}
		now = now.Add(time.Second)
	}
	if !fired {
		t.Error("a tunnel was forgotten")
	}
	for i := range maxMemories * 5 / 8 { // two memories each: the name and its label
		u.saw(now, fmt.Sprintf("%d.d%d.example", i, i%200), "A")
	}
	memories := 0
	for _, e := range u.domains {
		d := e.Value.(*domain)
		if len(d.memory) > maxMemory || len(d.ring) > maxMemory || len(d.memory) != len(d.ring) {
			t.Errorf("%s remembers %d, %d in order", d.name, len(d.memory), len(d.ring))
		}
		memories += len(d.memory)
	}
	if len(u.domains) > maxDomains || u.order.Len() != len(u.domains) || memories != u.memories || memories > maxMemories {
		t.Errorf("%d domains, %d names in them, %d counted", len(u.domains), memories, u.memories)
	}
}

func TestWhatCanBeRegistered(t *testing.T) {
	for name, want := range map[string][2]string{
		"www.example.org":          {"example.org", "www"},
		"a.b.example.co.uk":        {"example.co.uk", "a.b"},
		"example.org":              {"example.org", ""},
		"org":                      {"org", ""},
		".":                        {".", ""},
		"":                         {"", ""},
		"a.b.github.io":            {"b.github.io", "a"},
		"5.113.0.203.in-addr.arpa": {"113.0.203.in-addr.arpa", "5"},
		strings.TrimSuffix(ptr("2001:db8:1:2:3:4:5:6"), "."): {"1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "60005000400030002000"},
	} {
		if base, sub := registrable(name); base != want[0] || sub != want[1] {
			t.Errorf("%s is %q and %q, want %q", name, base, sub, want)
		}
	}
}

func FuzzTunnels(f *testing.F) {
	f.Add("0123456789abcdef.example.org\nwww.example.org", "TXT", int64(1))
	f.Add("4.3.2.1.zen.spamhaus.org\n.\n..\nx.ip6.arpa", "A", int64(-1))
	f.Fuzz(func(t *testing.T, lines, typ string, step int64) {
		u, now := newTunnels(), time.Unix(1764000000, 0)
		n, last := 0, map[string]time.Time{}
		for name := range strings.SplitSeq(lines, "\n") {
			if n++; n > 5000 {
				break
			}
			if a, fires := u.saw(now, name, typ); fires {
				if at, ok := last[a.domain]; ok && now.Sub(at) < quiet && !now.Before(at) {
					t.Errorf("%s twice within %s", a.domain, now.Sub(at))
				}
				if last[a.domain] = now; !strings.HasSuffix(name, a.domain) || a.distinct > a.questions || a.why == "" {
					t.Errorf("%q raised %+v", name, a)
				}
			}
			now = now.Add(time.Duration(step % int64(time.Hour)))
		}
	})
}

func BenchmarkTunnels(b *testing.B) {
	u, now, i := newTunnels(), time.Unix(1764000000, 0), 0
	names := make([]string, 4096)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range names {
		names[i] = base32small.EncodeToString(bytesOf(r, 20)) + ".exfil.example"
	}
	b.ReportAllocs()
	for b.Loop() {
		u.saw(now, names[i%len(names)], "A")
		i++
		now = now.Add(time.Millisecond)
	}
}

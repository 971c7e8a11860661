package core

import (
	"net/netip"
	"strings"
	"testing"
)

func TestPlaces(t *testing.T) {
	n := Neighbourhood{Own: []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:51::2")},
		OnLink: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:51::/64")}}
	for place, addrs := range map[Place]string{
		Internet: "203.0.113.9 8.8.8.8 2001:db8:beef::1 64:ff9b::8.8.8.8 2002:808:808::1 ::ffff:8.8.8.8",
		LAN: `10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 169.254.169.254 224.0.0.251 255.255.255.255 198.51.100.7 fe80::1 fe80::1%eth0 fc00::1 fd00::1
			ff02::1 2001:db8:51::7 64:ff9b::192.168.1.1 2002:c0a8:101::1 ::ffff:10.0.0.1 64:ff9b:1::10.0.0.1 ::10.0.0.1 2002:a9fe:a9fe::1
			168.63.129.16 192.0.0.192 ::ffff:168.63.129.16 64:ff9b::168.63.129.16 64:ff9b:1:a9fe:a9:fe00::`,
		Host:    "127.0.0.1 127.255.255.254 ::1 0.0.0.0 :: 198.51.100.2 2001:db8:51::2 ::ffff:127.0.0.1 ::ffff:198.51.100.2 64:ff9b::127.0.0.1 2002:7f00:1::1 ::ffff:0:127.0.0.1",
		Nowhere: "0.1.2.3 240.0.0.1 100::1",
	} {
		for a := range strings.FieldsSeq(addrs) {
			if got := n.PlaceOf(netip.MustParseAddr(a)); got != place {
				t.Errorf("%s is %s, want %s", a, got, place)
			}
		}
	}
}

func TestFlowRules(t *testing.T) {
	flow := func(proto, addr string, place Place, exe string, names ...string) *Flow {
		return &Flow{Proto: proto, Addr: netip.MustParseAddrPort(addr), Place: place, Exe: exe, Names: names}
	}
	for _, c := range []struct {
		name     string
		outbound Stance
		rules    []string
		flow     *Flow
		want     Stance
		later    bool
	}{
		{"the Internet by default", Allow, nil, flow("tcp", "203.0.113.9:80", Internet, ""), Allow, false},
		{"the local network never by default", Allow, nil, flow("tcp", "192.168.1.1:80", LAN, ""), Block, false},
		{"this machine never by default", Allow, nil, flow("tcp", "127.0.0.1:80", Host, ""), Block, false},
		{"a star is the Internet", Block, []string{"allow *"}, flow("tcp", "203.0.113.9:80", Internet, ""), Allow, false},
		{"a star is not the local network", Block, []string{"allow *"}, flow("tcp", "192.168.1.1:80", LAN, ""), Block, false},
		{"a star that blocks is everything", Allow, []string{"block *", "allow 192.168.1.1"}, flow("tcp", "192.168.1.1:80", LAN, ""), Block, false},
		{"a name by what was asked for", Block, []string{"allow *.debian.org:443"}, flow("tcp", "203.0.113.9:443", Internet, "", "deb.debian.org"), Allow, false},
		{"not the name above a pattern", Block, []string{"allow *.debian.org:443"}, flow("tcp", "203.0.113.9:443", Internet, "", "debian.org"), Block, false},
		{"not another that ends like it", Block, []string{"allow *.debian.org:443"}, flow("tcp", "203.0.113.9:443", Internet, "", "evildebian.org"), Block, false},
		{"another port", Block, []string{"allow *.debian.org:443"}, flow("tcp", "203.0.113.9:80", Internet, "", "deb.debian.org"), Block, false},
		{"a name that is not known yet", Block, []string{"allow *.debian.org:443"}, flow("tcp", "203.0.113.9:443", Internet, ""), Block, true},
		{"a name that will not be known", Block, []string{"allow *.debian.org:443"}, flow("udp", "203.0.113.9:443", Internet, ""), Block, false},
		{"a blocked name that is not known yet", Allow, []string{"block evil.example"}, flow("tcp", "203.0.113.9:443", Internet, ""), Allow, true},
		{"a name that leads to the local network", Block, []string{"allow rebind.example"}, flow("tcp", "192.168.1.1:80", LAN, "", "rebind.example"), Block, false},
		{"a name that leads to this machine", Block, []string{"allow rebind.example"}, flow("tcp", "127.0.0.1:80", Host, "", "rebind.example"), Block, false},
		{"an address", Block, []string{"allow 127.0.0.1:5432"}, flow("tcp", "127.0.0.1:5432", Host, ""), Allow, false},
		{"another port of it", Block, []string{"allow 127.0.0.1:5432"}, flow("tcp", "127.0.0.1:5433", Host, ""), Block, false},
		{"a prefix does not open this machine", Block, []string{"allow 0.0.0.0/0"}, flow("tcp", "127.0.0.1:80", Host, ""), Block, false},
		{"a prefix opens the local network", Block, []string{"allow 192.168.0.0/16"}, flow("tcp", "192.168.1.1:80", LAN, ""), Allow, false},
		{"a place", Block, []string{"allow lan:631"}, flow("tcp", "192.168.1.1:631", LAN, ""), Allow, false},
		{"the first that matches", Allow, []string{"block 203.0.113.0/24", "allow 203.0.113.9"}, flow("tcp", "203.0.113.9:80", Internet, ""), Block, false},
		{"an executable", Block, []string{"allow *:22 from /usr/bin/ssh"}, flow("tcp", "203.0.113.9:22", Internet, "/usr/bin/ssh"), Allow, false},
		{"another executable", Block, []string{"allow *:22 from /usr/bin/ssh"}, flow("tcp", "203.0.113.9:22", Internet, "/tmp/ssh"), Block, false},
		{"a protocol", Block, []string{"allow udp *:443"}, flow("tcp", "203.0.113.9:443", Internet, ""), Block, false},
		{"asking", Allow, []string{"ask *"}, flow("tcp", "203.0.113.9:443", Internet, ""), Ask, false},
		{"DNS over TLS", Allow, nil, flow("tcp", "203.0.113.9:853", Internet, ""), Block, false},
		{"DNS over HTTPS, by address", Allow, nil, flow("tcp", "8.8.8.8:443", Internet, ""), Block, false},
		{"DNS over HTTPS, by name", Allow, nil, flow("tcp", "203.0.113.9:443", Internet, "", "dns.google"), Block, false},
		{"DNS over HTTPS that a rule allows", Allow, []string{"allow dns.google:443"}, flow("tcp", "203.0.113.9:443", Internet, "", "dns.google"), Allow, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := BuiltinPolicy("")
			if err != nil {
				t.Fatal(err)
			}
			p.Network.Outbound = c.outbound
			for _, r := range c.rules {
				if err := p.Network.AddRule(r, false); err != nil {
					t.Fatal(err)
				}
			}
			if d := p.DecideFlow(c.flow); d.Stance != c.want || d.Later != c.later {
				t.Errorf("%s, later %v, by %s; want %s, %v", d.Stance, d.Later, d.Rule, c.want, c.later)
			}
		})
	}
}

func TestParseFlowRule(t *testing.T) {
	for text, want := range map[string]string{
		"allow *.Debian.org.:80,443":           "allow *.debian.org:80,443",
		"block 10.1.2.3/8":                     "block 10.0.0.0/8",
		"ask tcp *:22 from /usr/bin/ssh":       "ask tcp *:22 from /usr/bin/ssh",
		"allow [2001:db8::1]:8000-8010":        "allow [2001:db8::1]:8000-8010",
		"allow 2001:db8::/32":                  "allow 2001:db8::/32",
		"allow :443":                           "allow *:443",
		"allow lan":                            "allow lan",
		"block icmp *":                         "block icmp *",
		"allow ::ffff:192.168.1.1":             "allow 192.168.1.1",
		"block *  ":                            "block *",
		"allow host:631,5432":                  "allow host:631,5432",
		"allow [2001:db8::]:443 from /opt/*/x": "allow [2001:db8::]:443 from /opt/*/x",
	} {
		r, err := ParseFlowRule(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := r.String(); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
		if again, err := ParseFlowRule(r.String()); err != nil || again.String() != r.String() {
			t.Errorf("%q does not come back: %v, %v", r.String(), again.String(), err)
		}
	}
	for _, bad := range []string{"", "allow", "permit *", "allow a b", "allow *:0", "allow *:70000", "allow *:9-3", "allow *:x", "allow icmp *:80", "allow -!-", "allow *.*.org",
		"allow * from ssh", "allow * from", "allow a..b", "allow " + strings.Repeat("a", 64) + ".org", "allow [::1", "allow 1.2.3.4/33", "allow *:" + strings.Repeat("1,", 70) + "1"} {
		if r, err := ParseFlowRule(bad); err == nil {
			t.Errorf("%q is taken for %q", bad, r.String())
		} else if len(Hints(err)) == 0 {
			t.Errorf("%q: no hint with %v", bad, err)
		}
	}
}

func FuzzParseFlowRule(f *testing.F) {
	for _, s := range []string{"allow *.debian.org:443", "ask tcp [::1]:22-80,99 from /usr/bin/*", "block 10.0.0.0/8"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseFlowRule(s)
		if err != nil {
			return
		}
		if again, err := ParseFlowRule(r.String()); err != nil || again.String() != r.String() {
			t.Errorf("%q: %q does not come back: %v", s, r.String(), err)
		}
	})
}

func TestDecideName(t *testing.T) {
	p, _ := BuiltinPolicy("")
	p.Network.Outbound = Block
	for _, r := range []string{"block bad.debian.org", "block *.debian.org:80", "allow *.debian.org:443", "ask asked.example"} {
		if err := p.Network.AddRule(r, false); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]Stance{"deb.debian.org": Allow, "bad.debian.org": Block, "example.org": Block, "asked.example": Ask} {
		if d := p.DecideName(name); d.Stance != want {
			t.Errorf("%s: %s by %s", name, d.Stance, d.Rule)
		}
	}
	p.Surfaces[NetDNS] = Blocked
	if d := p.DecideName("deb.debian.org"); d.Stance != Block {
		t.Errorf("names are blocked, and one is not: %s", d.Rule)
	}
}

func BenchmarkDecideFlow(b *testing.B) {
	p, _ := BuiltinPolicy("")
	for i := range 1000 {
		if err := p.Network.AddRule("block h"+strings.Repeat("x", i%20)+".example.org:443", false); err != nil {
			b.Fatal(err)
		}
	}
	f := &Flow{Proto: "tcp", Addr: netip.MustParseAddrPort("203.0.113.9:443"), Names: []string{"www.example.com"}, Exe: "/usr/bin/curl"}
	for b.Loop() {
		p.DecideFlow(f)
	}
}

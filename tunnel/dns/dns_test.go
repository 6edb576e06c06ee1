package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// serve starts a server on loopback whose one service is at the address in the
// returned pointer; nil there means unknown.
func serve(t *testing.T) (*Server, *atomic.Pointer[netip.Addr]) {
	t.Helper()
	var at atomic.Pointer[netip.Addr]
	s, err := Listen(Config{
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")},
		Names:  []string{"www.app.example"},
		Lookup: func(service string) (netip.Addr, bool) {
			if a := at.Load(); service == "www.app.example" && a != nil {
				return *a, true
			}
			return netip.Addr{}, false
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("run ended with %v", err)
		}
	})
	return s, &at
}

func set(at *atomic.Pointer[netip.Addr], s string) {
	a := netip.MustParseAddr(s)
	at.Store(&a)
}

// ask sends one query with a real client.
func ask(t *testing.T, s *Server, network, name string, qtype uint16) *dns.Msg {
	t.Helper()
	q := new(dns.Msg).SetQuestion(name, qtype)
	c := &dns.Client{Net: network, Timeout: 5 * time.Second}
	a, _, err := c.Exchange(q, s.Addrs()[0].String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return a
}

func TestAnswersFollow(t *testing.T) {
	s, at := serve(t)
	for _, network := range []string{"udp", "tcp"} {
		for _, where := range []string{"203.0.113.10", "198.51.100.20"} {
			set(at, where)
			a := ask(t, s, network, "WwW.aPP.example.", dns.TypeA)
			if len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != where {
				t.Fatalf("%s: %v", network, a)
			}
			if h := a.Answer[0].Header(); h.Ttl != 5 || h.Name != "WwW.aPP.example." || !a.Authoritative {
				t.Errorf("%s: %v", network, a)
			}
		}
	}
}

func TestAnswerKinds(t *testing.T) {
	s, at := serve(t)
	for _, c := range []struct {
		name            string
		at              string
		qname           string
		qtype           uint16
		rcode, answers  int
		negative, known bool
	}{
		{"address", "203.0.113.10", "www.app.example.", dns.TypeA, dns.RcodeSuccess, 1, false, true},
		{"address of the other family", "203.0.113.10", "www.app.example.", dns.TypeAAAA, dns.RcodeSuccess, 0, true, true},
		{"IPv6", "2001:db8::1", "www.app.example.", dns.TypeAAAA, dns.RcodeSuccess, 1, false, true},
		{"SOA", "203.0.113.10", "www.app.example.", dns.TypeSOA, dns.RcodeSuccess, 1, false, true},
		{"NS", "203.0.113.10", "www.app.example.", dns.TypeNS, dns.RcodeSuccess, 1, false, true},
		{"other type", "203.0.113.10", "www.app.example.", dns.TypeTXT, dns.RcodeSuccess, 0, true, true},
		{"ANY says little", "203.0.113.10", "www.app.example.", dns.TypeANY, dns.RcodeSuccess, 0, true, true},
		{"below", "203.0.113.10", "x.y.www.app.example.", dns.TypeA, dns.RcodeNameError, 0, true, true},
		{"above", "203.0.113.10", "app.example.", dns.TypeA, dns.RcodeRefused, 0, false, false},
		{"elsewhere", "203.0.113.10", "example.org.", dns.TypeA, dns.RcodeRefused, 0, false, false},
		{"root", "203.0.113.10", ".", dns.TypeNS, dns.RcodeRefused, 0, false, false},
		{"no address known", "", "www.app.example.", dns.TypeA, dns.RcodeServerFailure, 0, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			at.Store(nil)
			if c.at != "" {
				set(at, c.at)
			}
			a := ask(t, s, "udp", c.qname, c.qtype)
			if a.Rcode != c.rcode || len(a.Answer) != c.answers || a.Authoritative != c.known {
				t.Errorf("got %v", a)
			}
			if got := len(a.Ns) == 1; got != c.negative || (got && a.Ns[0].Header().Ttl > 1) {
				t.Errorf("negative %v: %v", got, a)
			}
		})
	}
}

// raw sends bytes over UDP, and after them a query when they are to be met with
// silence; it returns the first answer.
func raw(t *testing.T, s *Server, b []byte, silence bool) *dns.Msg {
	t.Helper()
	c, err := net.Dial("udp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write(b)
	if silence {
		after, err := new(dns.Msg).SetQuestion("www.app.example.", dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		c.Write(after)
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	a := new(dns.Msg)
	if err := a.Unpack(buf[:n]); err != nil {
		t.Fatalf("the answer cannot be parsed: %v", err)
	}
	return a
}

func TestMalformed(t *testing.T) {
	s, at := serve(t)
	set(at, "203.0.113.10")
	good, err := new(dns.Msg).SetQuestion("www.app.example.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	with := func(i int, v ...byte) []byte {
		b := append([]byte(nil), good...)
		copy(b[i:], v)
		return b
	}
	for _, c := range []struct {
		name  string
		in    []byte
		rcode int // -1: silence
	}{
		{"a byte", []byte{1}, -1},
		{"header only, one question announced", good[:12], dns.RcodeFormatError},
		{"half a name", good[:20], dns.RcodeFormatError},
		{"compression loop", with(12, 0xc0, 12), dns.RcodeFormatError},
		{"two questions announced", with(4, 0, 2), dns.RcodeFormatError},
		{"no question", with(4, 0, 0), dns.RcodeFormatError},
		{"65535 answers announced", with(6, 0xff, 0xff), dns.RcodeFormatError},
		{"a response", with(2, 0x80), -1},
		{"an update", with(2, 5<<3), dns.RcodeNotImplemented},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := raw(t, s, c.in, c.rcode < 0)
			if a.Rcode != max(c.rcode, 0) || (c.rcode < 0) != (len(a.Answer) == 1) {
				t.Errorf("got %v, want %d", a, c.rcode)
			}
		})
	}
}

func TestEDNS(t *testing.T) {
	s, at := serve(t)
	set(at, "203.0.113.10")
	q := new(dns.Msg).SetQuestion("www.app.example.", dns.TypeA).SetEdns0(4096, true)
	a := s.answer(q)
	if opt := a.IsEdns0(); opt == nil || opt.UDPSize() != dns.MinMsgSize || len(a.Answer) != 1 {
		t.Errorf("got %v", a)
	}
	q.IsEdns0().SetVersion(1)
	if a = s.answer(q); a.Rcode != dns.RcodeBadVers {
		t.Errorf("version 1: %v", a)
	}
}

// FuzzAnswer feeds any bytes through parser and answer: no panic, an answer
// that packs, is small, and is ours only for our names.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"www.app.example.", "a.www.app.example.", ".", "example.org."} {
		b, err := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, true).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	s, err := Listen(Config{Names: []string{"www.app.example"}, Lookup: func(string) (netip.Addr, bool) {
		return netip.MustParseAddr("203.0.113.10"), true
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		a := s.answer(q)
		out, err := a.Pack()
		if err != nil {
			t.Fatalf("the answer to %v does not pack: %v", q, err)
		}
		if len(out) > dns.MinMsgSize+len(b) {
			t.Errorf("%d bytes for %d", len(out), len(b))
		}
		for _, r := range a.Answer {
			if !strings.EqualFold(r.Header().Name, "www.app.example.") {
				t.Errorf("answered for %s", r.Header().Name)
			}
		}
	})
}

func TestListenTwice(t *testing.T) {
	s, _ := serve(t)
	if _, err := Listen(Config{Listen: s.Addrs()}); err == nil || !strings.Contains(err.Error(), "another name server") {
		t.Errorf("a second server: %v", err)
	}
}

func TestRunEndsWithContext(t *testing.T) {
	s, err := Listen(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("[::1]:0")}})
	if err != nil {
		t.Skip("no IPv6 loopback here: ", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("run ended with %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

package wg

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev/netdevtest"
	"stitch/tunnel/wg/carrier"
)

func TestLinkAddrs(t *testing.T) {
	seen := make(map[netip.Addr]int)
	for i := range 20000 {
		a, b := config.Key{byte(i), byte(i >> 8), 1}, config.Key{byte(i), byte(i >> 8), 2}
		la, ra := LinkAddrs(a, b)
		lb, rb := LinkAddrs(b, a)
		if la != rb || ra != lb || la == ra {
			t.Fatalf("%v %v against %v %v", la, ra, lb, rb)
		}
		for _, x := range []netip.Addr{la, ra} {
			o := x.As4()
			if o[0] != 169 || o[1] != 254 || o[2] == 0 || o[2] == 255 || o[2] == 169 {
				t.Fatalf("address %v", x)
			}
		}
		if low := min(la.As4()[3], ra.As4()[3]); low%2 != 0 || la.As4()[2] != ra.As4()[2] {
			t.Fatalf("%v and %v are no pair", la, ra)
		}
		seen[la]++
	}
	if len(seen) < 14000 { // 32,384 pairs: about 14,900 different ones are expected
		t.Errorf("only %d addresses for 20000 pairs of keys", len(seen))
	}
	// Two versions must agree: a golden value.
	if l, r := LinkAddrs(config.Key{1}, config.Key{2}); l.String() != "169.254.23.16" || r.String() != "169.254.23.17" {
		t.Errorf("the pair of the golden keys is %v %v", l, r)
	}
}

// RFC 7748, section 5.2: the first iteration of the test with the base point.
func TestPublicKey(t *testing.T) {
	want := config.Key(mustHex(t, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"))
	if got := PublicKey(config.Key{9}); got != want {
		t.Errorf("%x", got[:])
	}
}

func mustHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 32 {
		t.Fatalf("%q: %v", s, err)
	}
	return b
}

// The arithmetic of package config is that of the formats.
func TestMTUArithmetic(t *testing.T) {
	if config.CarrierHeader != carrier.HeaderLen {
		t.Errorf("carrier header of %d bytes, %d are reckoned with", carrier.HeaderLen, config.CarrierHeader)
	}
	if got := 1500 - 20 - 8 - config.InnerMTU(1500, false); got != device.MessageTransportSize {
		t.Errorf("transport messages have %d bytes more than their packet, %d are reckoned with", device.MessageTransportSize, got)
	}
	for _, n := range []int{config.MaxFrame(1440), config.MaxFrame(1440) + 1} {
		if parts, _ := carrier.Split(n, 1440); (parts == 1) != (n == config.MaxFrame(1440)) {
			t.Errorf("a frame of %d bytes crosses in %d parts", n, parts)
		}
	}
}

func TestSharedSecret(t *testing.T) {
	a, err := GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := GenerateKey(rand.Reader)
	if a[0]&7 != 0 || a[31]&0xc0 != 0x40 || a == b {
		t.Error("key not clamped, or not random")
	}
	one, err := SharedSecret(a, PublicKey(b), "x")
	if err != nil {
		t.Fatal(err)
	}
	two, err := SharedSecret(b, PublicKey(a), "x")
	if err != nil || one != two {
		t.Errorf("the ends disagree, %v", err)
	}
	if other, _ := SharedSecret(a, PublicKey(b), "y"); other == one {
		t.Error("the label has no effect")
	}
	if _, err := SharedSecret(a, config.Key{}, "x"); err == nil {
		t.Error("a public key of low order is accepted")
	}
	if _, err := GenerateKey(bytes.NewReader(make([]byte, 31))); err == nil {
		t.Error("31 bytes make a key")
	}
}

func TestValidate(t *testing.T) {
	good := Config{TUN: netdevtest.NewFake("x", 1), PrivateKey: config.Key{1}, PublicKey: config.Key{2}, InnerMTU: 1440}
	good.Local, good.Remote = LinkAddrs(config.Key{1}, config.Key{2})
	for _, c := range []struct {
		f    func(*Config)
		want string
	}{
		{func(c *Config) { c.TUN = nil }, "no TUN device"},
		{func(c *Config) { c.PrivateKey = config.Key{} }, "private key"},
		{func(c *Config) { c.PublicKey = PublicKey(c.PrivateKey) }, "is our own"},
		{func(c *Config) { c.InnerMTU = 1199 }, "inner MTU"},
		{func(c *Config) { c.InnerMTU = 65001 }, "inner MTU"},
		{func(c *Config) { c.Endpoint = "host" }, "write host:port"},
		{func(c *Config) { c.Endpoint = "host:0" }, "port from 1"},
		{func(c *Config) { c.Endpoint = "host:65536" }, "port from 1"},
		{func(c *Config) { c.Endpoint = ":5" }, "write host:port"},
		{func(c *Config) { c.Remote = c.Local }, "link addresses"},
	} {
		cfg := good
		c.f(&cfg)
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.want, err)
		}
	}
}

func TestHold(t *testing.T) {
	var h hold
	for i := range maxHeld {
		p := ipPacket(100, uint16(i))
		if replaced, ok := h.put(0, p); replaced || !ok {
			t.Fatalf("flow %d: %v %v", i, replaced, ok)
		}
		clear(p) // it was copied
	}
	if _, ok := h.put(0, ipPacket(100, 60000)); ok {
		t.Error("one flow too many")
	}
	if replaced, ok := h.put(0, ipPacket(200, 0)); !replaced || !ok {
		t.Error("a newer packet was refused")
	}
	all := h.take()
	if len(all) != maxHeld || len(all[0].data) != 100 || !bytes.Equal(all[maxHeld-1].data, ipPacket(200, 0)) {
		t.Error("order or content")
	}
	if len(h.flows) != 0 || h.bytes != 0 || len(h.take()) != 0 {
		t.Error("not empty")
	}
	bytesHeld := 0
	for i := range 2000 {
		if _, ok := h.put(0, ipPacket(16000, uint16(i))); ok {
			bytesHeld += 16000
		}
	}
	if bytesHeld > maxHeldBytes || bytesHeld < maxHeldBytes-16000 || h.bytes != bytesHeld {
		t.Errorf("%d bytes held, counted %d", bytesHeld, h.bytes)
	}
}

func TestKeyOf(t *testing.T) {
	frame := func(inner []byte, tags ...byte) []byte {
		f := append([]byte("\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02"), tags...)
		return append(append(f, 8, 0), inner...)
	}
	v6 := make([]byte, 60)
	v6[0], v6[6], v6[43] = 0x60, 6, 80
	v6b := slices.Clone(v6)
	v6b[43] = 81
	fragment := ipPacket(100, 5)
	fragment[7] = 10
	other := slices.Clone(fragment)
	other[21] = 9
	for _, c := range []struct {
		name   string
		sa, sb uint16
		a, b   []byte
		same   bool
	}{
		{"same flow, other length", 0, 0, ipPacket(100, 5), ipPacket(900, 5), true},
		{"other port", 0, 0, ipPacket(100, 5), ipPacket(100, 6), false},
		{"fragments have no ports", 0, 0, fragment, other, true},
		{"IPv6 ports", 0, 0, v6, v6b, false},
		{"segments", 1, 2, frame(ipPacket(100, 5)), frame(ipPacket(100, 5)), false},
		{"frames of two flows", 1, 1, frame(ipPacket(100, 5)), frame(ipPacket(100, 6)), false},
		{"VLANs", 1, 1, frame(ipPacket(100, 5), 0x81, 0, 0, 5), frame(ipPacket(100, 5), 0x81, 0, 0, 6), false},
		{"tagged flow", 1, 1, frame(ipPacket(100, 5), 0x81, 0, 0, 5), frame(ipPacket(200, 5), 0x81, 0, 0, 5), true},
		{"short frames", 1, 1, []byte{1}, []byte{2, 3}, true},
	} {
		if got := keyOf(c.sa, c.a) == keyOf(c.sb, c.b); got != c.same {
			t.Errorf("%s: same %v, want %v", c.name, got, c.same)
		}
	}
}

func FuzzKeyOf(f *testing.F) {
	f.Add(uint16(0), ipPacket(28, 5))
	f.Add(uint16(1), append([]byte("\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x81\x00\x00\x05\x08\x00"), ipPacket(28, 5)...))
	f.Fuzz(func(t *testing.T, segment uint16, data []byte) {
		if keyOf(segment, data) != keyOf(segment, slices.Clone(data)) {
			t.Fatal("two keys")
		}
	})
}

func TestBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backlog
		open := make(chan struct{})
		// In step: never full, however much passes.
		for i := range uint64(10 * maxBacklog) {
			b.entered(1, i)
			b.left(i)
		}
		if b.full() {
			t.Error("full, though everything came out")
		}
		// A marked datagram that is dropped inside does not stop the count.
		for i := range uint64(10 * maxBacklog) {
			b.entered(1, i)
			if i%3 == 0 {
				b.left(i)
			}
			time.Sleep(time.Microsecond * 100)
		}
		if b.full() {
			t.Error("full, though a third came out and the rest was dropped")
		}
		// Nothing comes out: the socket rests, and not for ever.
		start := time.Now()
		b.entered(maxBacklog, 1)
		b.wait(open)
		if d := time.Since(start); d < backlogPatience || d > 2*backlogPatience || b.full() {
			t.Errorf("waited %v, full %v", d, b.full())
		}
		b.entered(maxBacklog, 2)
		close(open)
		start = time.Now()
		b.wait(open)
		if d := time.Since(start); d > time.Millisecond {
			t.Errorf("waited %v on a closed socket", d)
		}
	})
}

// fakeResolver fails a few times first.
type fakeResolver struct{ failures int }

func (r *fakeResolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	if r.failures--; r.failures >= 0 {
		return nil, errors.New("no such host")
	}
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
}

// A host name is looked up until it succeeds; the link is up soon after.
func TestEndpointByName(t *testing.T) {
	for _, failures := range []int{0, 1, 3} {
		t.Run(fmt.Sprint(failures), func(t *testing.T) {
			bubble(t, 10*time.Millisecond, 0, func(t *testing.T, n *simNet) {
				by := func(c *Config) { c.Endpoint, c.Resolver = "peer.example:1", &fakeResolver{failures} }
				a, b := n.open(t, 0, by), n.open(t, 1, by)
				defer a.close(t)
				defer b.close(t)
				limit := time.Duration(1<<failures)*time.Second + time.Second
				a.until(t, Up, limit)
				b.until(t, Up, limit)
			})
		})
	}
}

func TestParseInfo(t *testing.T) {
	info := parseInfo("private_key=00\npublic_key=11\nendpoint=192.0.2.1:5\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=7\nodd\n")
	if info.endpoint != "192.0.2.1:5" || !info.handshake.Equal(time.Unix(5, 7)) {
		t.Errorf("%+v", info)
	}
	if !parseInfo("last_handshake_time_sec=0\nlast_handshake_time_nsec=0\n").handshake.IsZero() {
		t.Error("a handshake in 1970")
	}
}

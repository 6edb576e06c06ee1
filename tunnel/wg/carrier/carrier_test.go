package carrier

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

var (
	addrA = netip.MustParseAddr("169.254.10.20")
	addrB = netip.MustParseAddr("169.254.10.21")
)

func paths(t testing.TB) (a, b Path) {
	t.Helper()
	a, err := NewPath(addrA, addrB)
	if err != nil {
		t.Fatal(err)
	}
	b, err = NewPath(addrB, addrA)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func packet(p Path, h Header, payload []byte) []byte {
	b := make([]byte, HeaderLen+len(payload))
	p.Put(b, h, len(payload))
	copy(b[HeaderLen:], payload)
	return b
}

// vectors reads testdata/wire/carrier.txt: name, outcome, hex.
func vectors(t testing.TB) (all []vector) {
	t.Helper()
	text, err := os.ReadFile("../../../testdata/wire/carrier.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		raw, err := hex.DecodeString(strings.Join(f[2:], ""))
		if err != nil || len(f) < 3 {
			t.Fatalf("bad vector %q: %v", line, err)
		}
		all = append(all, vector{f[0], f[1], raw})
	}
	return all
}

type vector struct {
	name, outcome string
	packet        []byte
}

// outcome describes what Parse makes of a packet, as written in the vectors.
func outcome(p Path, pkt []byte) string {
	h, payload, err := p.Parse(pkt)
	switch {
	case errors.Is(err, ErrVersion):
		return "version"
	case err != nil:
		return "malformed"
	}
	return fmt.Sprintf("kind=%d,segment=%d,part=%d/%d,id=%d,payload=%x", h.Kind, h.Segment, h.Index, h.Last, h.ID, payload)
}

func TestVectors(t *testing.T) {
	a, b := paths(t)
	all := vectors(t)
	if len(all) < 12 {
		t.Fatalf("%d vectors", len(all))
	}
	for _, v := range all {
		if got := outcome(b, v.packet); got != v.outcome {
			t.Errorf("%s: %s, want %s", v.name, got, v.outcome)
		}
		h, payload, err := b.Parse(v.packet)
		if err != nil {
			continue
		}
		if got := packet(a, h, payload); !bytes.Equal(got, v.packet) {
			t.Errorf("%s: encoded as\n%x, want\n%x", v.name, got, v.packet)
		}
		if !a.Touches(v.packet) || !b.Touches(v.packet) {
			t.Errorf("%s: not seen as a packet of the link", v.name)
		}
	}
}

// The IPv4 header's checksum is right for every length.
func TestChecksum(t *testing.T) {
	a, _ := paths(t)
	var b [HeaderLen]byte
	for n := range 65535 - HeaderLen + 1 {
		a.Put(b[:], Header{Kind: Frame, Segment: 1}, n)
		var sum uint32
		for i := 0; i < ipHeader; i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
		for sum>>16 != 0 {
			sum = sum>>16 + sum&0xffff
		}
		if sum != 0xffff {
			t.Fatalf("payload of %d bytes: checksum does not verify", n)
		}
	}
}

func TestTouches(t *testing.T) {
	a, _ := paths(t)
	ip := func(proto byte, src, dst string) []byte {
		p := make([]byte, 28)
		p[0], p[9] = 0x45, proto
		copy(p[12:], netip.MustParseAddr(src).AsSlice())
		copy(p[16:], netip.MustParseAddr(dst).AsSlice())
		return p
	}
	options := ip(97, "169.254.10.20", "169.254.10.21")
	options[0] = 0x46
	for _, c := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"ours", ip(97, "169.254.10.20", "169.254.10.21"), true},
		{"theirs", ip(97, "169.254.10.21", "169.254.10.20"), true},
		{"with options", options, true},
		{"our address as source only", ip(97, "169.254.10.20", "10.0.0.1"), true},
		{"forged towards the peer", ip(97, "10.0.0.1", "169.254.10.21"), true},
		{"EtherIP of two hosts", ip(97, "10.1.0.1", "10.2.0.1"), false},
		{"TCP between the agents", ip(6, "169.254.10.20", "169.254.10.21"), false},
		{"short", ip(97, "169.254.10.20", "169.254.10.21")[:19], false},
		{"IPv6", append([]byte{0x60}, ip(97, "169.254.10.20", "169.254.10.21")[1:]...), false},
		{"empty", nil, false},
	} {
		if got := a.Touches(c.p); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestNewPathRefuses(t *testing.T) {
	v6 := netip.MustParseAddr("fe80::1")
	for _, c := range [][2]netip.Addr{{addrA, addrA}, {addrA, v6}, {v6, addrA}, {{}, addrA}} {
		if _, err := NewPath(c[0], c[1]); err == nil {
			t.Errorf("%v: no error", c)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, c := range []struct{ n, mtu, parts, size int }{
		{0, 1440, 0, 0}, {1, 1440, 1, 1}, {1412, 1440, 1, 1412}, {1413, 1440, 2, 707},
		{1500, 1440, 2, 750}, {1518, 1440, 2, 759}, {9018, 1440, 7, 1289}, {MaxMessage, 1440, 12, 1366},
		{MaxMessage + 1, 1440, 0, 0}, {MaxMessage, 1000, 0, 0}, {100, HeaderLen, 0, 0}, {-1, 1440, 0, 0},
	} {
		if parts, size := Split(c.n, c.mtu); parts != c.parts || size != c.size {
			t.Errorf("Split(%d, %d) = %d, %d, want %d, %d", c.n, c.mtu, parts, size, c.parts, c.size)
		}
	}
	// The rule of the format, for every length.
	for _, mtu := range []int{1228, 1300, 1420, 1440, 8900} {
		for n := 1; n <= MaxMessage; n++ {
			parts, size := Split(n, mtu)
			final := n - (parts-1)*size
			if size+HeaderLen > mtu || final < 1 || final > size || size-final >= max(parts, 1) {
				t.Fatalf("%d bytes, MTU %d: %d parts of %d, final %d", n, mtu, parts, size, final)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.packet)
	}
	f.Fuzz(func(t *testing.T, pkt []byte) {
		a, b := paths(t)
		saved := slices.Clone(pkt)
		h, payload, err := b.Parse(pkt)
		if !bytes.Equal(pkt, saved) {
			t.Fatal("the packet was changed")
		}
		if err != nil {
			return
		}
		if !b.Touches(pkt) {
			t.Fatal("parsed, but could have come from the LAN")
		}
		// Everything but TOS, ID, TTL and checksum is significant.
		again := packet(a, h, payload)
		for _, i := range []int{1, 4, 5, 8, 10, 11} {
			again[i] = pkt[i]
		}
		if !bytes.Equal(again, pkt) {
			t.Fatalf("encodes as %x, was %x", again, pkt)
		}
	})
}

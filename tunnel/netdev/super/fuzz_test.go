package super

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func seeds(f *testing.F, add func(s shape, p []byte, h Header)) {
	for _, s := range shapes() {
		p, h := s.super(f, pattern(60), 25)
		add(s, p, h)
		s.flags, s.options = "S", []byte{2, 4, 5, 0xb4}
		p, h = s.super(f, pattern(4), 25)
		add(s, p, h)
	}
}

// What locate finds, gopacket finds at the same place.
func FuzzLocate(f *testing.F) {
	seeds(f, func(s shape, p []byte, h Header) { f.Add(p, s.link == Ethernet) })
	f.Fuzz(func(t *testing.T, p []byte, ether bool) {
		link, first := IP, gopacket.Decoder(layers.LayerTypeIPv4)
		switch {
		case ether:
			link, first = Ethernet, layers.LayerTypeEthernet
		case len(p) > 0 && p[0]>>4 == 6:
			first = layers.LayerTypeIPv6
		}
		l, ok := locate(p, link)
		if !ok {
			return
		}
		if l.ip >= l.l4 || l.l4 >= l.body || l.body > l.end || l.end > len(p) {
			t.Fatalf("%+v of %d bytes", l, len(p))
		}
		packet := gopacket.NewPacket(p, first, gopacket.NoCopy)
		var want []byte
		switch layer := packet.TransportLayer().(type) {
		case *layers.TCP:
			want = layer.Contents
		case *layers.UDP:
			want = layer.Contents
		default:
			return // gopacket is stricter about options, and knows fewer tags
		}
		if len(want) == 0 || &want[0] != &p[l.l4] || len(want) != l.body-l.l4 {
			t.Fatalf("%+v, gopacket has %d bytes of header", l, len(want))
		}
	})
}

// Whatever the kernel hands over, cutting neither fails nor loses a byte, and
// what was cut joins to the same.
func FuzzCut(f *testing.F) {
	seeds(f, func(s shape, p []byte, h Header) {
		b := make([]byte, HeaderLen)
		h.Put(b)
		f.Add(append(b, p...), s.link == Ethernet, uint16(90))
	})
	f.Fuzz(func(t *testing.T, b []byte, ether bool, max uint16) {
		if len(b) < HeaderLen || len(b) > 4096 {
			return
		}
		link := IP
		if ether {
			link = Ethernet
		}
		h, err := ParseHeader(b)
		p := slices.Clone(b[HeaderLen:])
		var s Splitter
		if err != nil || s.Start(p, h, link, int(max)) != nil {
			return
		}
		n, carried := s.Count(), []byte(nil)
		for ; s.Len() > 0; n-- {
			q := make([]byte, s.Len())
			s.Next(q)
			carried = append(carried, q[s.body:]...)
		}
		if n != 0 || h.Kind != None && !bytes.Equal(carried, p[s.body:]) {
			t.Fatalf("%d packets too few, %d bytes of %d", n, len(carried), len(p)-s.body)
		}
	})
}

// Joined or not, nothing is lost, and nothing but a MSS option changes.
func FuzzJoinAndClamp(f *testing.F) {
	seeds(f, func(s shape, p []byte, h Header) { f.Add(p, p, s.link == Ethernet) })
	f.Fuzz(func(t *testing.T, a, b []byte, ether bool) {
		if len(a)+len(b) > 8192 {
			return
		}
		link := IP
		if ether {
			link = Ethernet
		}
		out, headers := join([][]byte{a, b}, link)
		if len(out) == 1 {
			again := cut(t, out[0], headers[0], link, 1<<17)
			if len(again) != 2 || !bytes.Equal(again[0], a) || !bytes.Equal(again[1], b) {
				la, _ := locate(a, link) // only identifications of packets that may not be fragmented may differ
				if len(again) != 2 || la.v6 || a[la.ip+6]&0x40 == 0 {
					t.Fatalf("%x and %x became %x", a, b, again)
				}
			}
		} else if !bytes.Equal(out[0], a) || !bytes.Equal(out[1], b) {
			t.Fatal("changed, though not joined")
		}
		before := slices.Clone(a)
		if !ClampMSS(a, link, 1000, false) && !bytes.Equal(a, before) {
			t.Fatal("written to, and not said")
		}
	})
}

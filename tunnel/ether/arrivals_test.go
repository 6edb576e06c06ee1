package ether

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/config"
)

// vlanTCP returns an IP packet of TCP to macA in a VLAN, from the last byte of
// its address.
func vlanTCP(vlan uint16, v6 bool, last byte, size int) []byte {
	var f []byte
	if v6 {
		f = eth(macA, macB, typeIPv6, ipv6Packet(fmt.Sprintf("2001:db8::%x", last), "2001:db8::99", protoTCP, make([]byte, size)...)...)
	} else {
		f = eth(macA, macB, typeIPv4, ipv4Packet(protoTCP, 0, make([]byte, size)...)...)
		f[headerLen+15] = last
	}
	if vlan != 0 {
		f = tagged(f, 0x8100, vlan)
	}
	return f
}

func TestAlike(t *testing.T) {
	change := func(frame []byte, at int, to byte) []byte {
		frame = slices.Clone(frame)
		frame[at] = to
		return frame
	}
	for _, v6 := range []bool{false, true} {
		for _, vlan := range []uint16{0, 20} {
			a := vlanTCP(vlan, v6, 1, 40)
			ip := len(a) - 40 - ipv4HeaderLen
			proto, length := ip+9, ip+2
			if v6 {
				ip = len(a) - 40 - ipv6HeaderLen
				proto, length = ip+6, ip+4
			}
			for name, c := range map[string]struct {
				frame []byte
				want  bool
			}{
				"itself":           {a, true},
				"shorter":          {vlanTCP(vlan, v6, 1, 20), true},
				"other content":    {change(a, len(a)-1, 7), true},
				"other source":     {vlanTCP(vlan, v6, 2, 40), false},
				"other MAC":        {change(a, 11, 99), false},
				"not TCP":          {change(a, proto, protoUDP), false},
				"other VLAN":       {vlanTCP(21, v6, 1, 40), false},
				"a length too big": {change(a, length, 4), false},
				"not its version":  {change(a, ip, 0x15), false},
				"cut":              {a[:ip+ipv4HeaderLen-1], false},
			} {
				if got := alike(a, c.frame); got != c.want {
					t.Errorf("IPv6 %v, VLAN %d, %s: %v", v6, vlan, name, got)
				}
			}
			if alike(nil, a) || alike(a, nil) {
				t.Error("alike to nothing")
			}
		}
	}
}

// FuzzArrivals gives frames of a peer to one switch together and to another one
// by one, and expects the same of both. A record is a length and a frame; length
// 0 is the frame before with another byte: where, and which.
func FuzzArrivals(f *testing.F) {
	one := func(frame []byte) []byte { return append([]byte{byte(len(frame))}, frame...) }
	var all []byte
	for _, v := range filterVectors() {
		if n := len(v.frame); n > 0 && n < 256 {
			twice := append(one(v.frame), 0, byte(n-1), 9, 0, 20, 4)
			f.Add(twice)
			all = append(all, twice...)
		}
	}
	f.Add(all)
	for _, v6 := range []bool{false, true} {
		for _, vlan := range []uint16{0, 20, 21} {
			frame := one(vlanTCP(vlan, v6, 1, 30))
			for at := range byte(60) {
				frame = append(frame, 0, at, 200, 0, at, 1, 0, at, frame[1+at])
			}
			f.Add(frame)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var frames [][]byte
		for len(in) > 0 {
			n := min(int(in[0]), len(in)-1)
			switch {
			case n > 0:
				frames = append(frames, in[1:1+n])
			case len(in) >= 3 && len(frames) > 0 && len(frames[len(frames)-1]) > int(in[1]):
				n = 2
				frame := slices.Clone(frames[len(frames)-1])
				frame[in[1]] = in[2]
				frames = append(frames, frame)
			}
			in = in[1+n:]
		}
		var together, alone *Switch
		for _, s := range []**Switch{&together, &alone} {
			*s = NewSwitch(testBasic, 2, []config.MAC{macOwn}, []Workload{{MAC: macVM, IP: vmIP, At: Local}})
			for i, frame := range frames { // their receivers are known, but for some
				if len(frame) >= headerLen && i%3 != 2 {
					tag := uint16(0)
					if isTag(binary.BigEndian.Uint16(frame[12:])) && len(frame) > 16 {
						tag = binary.BigEndian.Uint16(frame[14:]) & 0xfff
					}
					(*s).FromLAN(0, tagged(data(broadcast, config.MAC(frame[:6])), 0x8100, tag))
				}
			}
		}
		const now = time.Minute
		a := together.arrivals(now, 1)
		for i, frame := range frames {
			want := alone.FromPeer(now, 1, frame)
			var got Reason // Carried
			if !a.again(frame) {
				got = a.judge(frame).Drop
			}
			if got != want.Drop {
				t.Fatalf("frame %d, %x: %v, by itself %v", i, frame, got, want.Drop)
			}
		}
		if together.link != alone.link {
			t.Fatalf("counted %v, one by one %v", together.link, alone.link)
		}
		if a, b := known(together), known(alone); a != b {
			t.Fatalf("knows\n%s, one by one\n%s", a, b)
		}
	})
}

// known describes what a switch has learnt.
func known(s *Switch) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s.table.byMAC)) {
		e := s.table.byMAC[k]
		fmt.Fprintf(&b, "%v %d: at %d, seen %v, since %v", k.mac(), k.vlan(), e.place, e.seen, e.since)
		for _, n := range e.ips {
			fmt.Fprintf(&b, ", %v %v", n.ip, n.seen)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

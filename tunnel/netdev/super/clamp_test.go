package super

import (
	"bytes"
	"slices"
	"testing"
)

// max is the length of a packet with 1400 bytes of IP.
func (s shape) max() int {
	if s.link == IP {
		return 1400
	}
	return 1400 + etherLen + len(s.tags)*tagLen
}

func TestClampMSS(t *testing.T) {
	for _, s := range shapes() {
		if s.udp {
			continue
		}
		s.flags = "S"
		for _, c := range []struct {
			options []byte
			change  bool
		}{
			{[]byte{2, 4, 0xff, 0xff}, true},
			{[]byte{2, 4, 5, 0xb4}, true}, // 1460
			{[]byte{2, 4, 5, 0}, false},   // 1280: fits
			{[]byte{2, 4, 0, 0}, false},
			{nil, false}, // no option
			{[]byte{3, 4, 9, 9}, false},
		} {
			s.options = c.options
			p := s.build(t, nil)
			before := slices.Clone(p)
			if got := ClampMSS(p, s.link, s.max(), false); got != c.change {
				t.Errorf("%v %x: changed %v", s, c.options, got)
			}
			if !c.change {
				if !bytes.Equal(p, before) {
					t.Errorf("%v %x: written to", s, c.options)
				}
				continue
			}
			valid(t, p, s.link)
			l, _ := locate(p, s.link)
			want := 1360
			if s.v6 {
				want = 1340
			}
			if got := int(p[l.l4+22])<<8 | int(p[l.l4+23]); got != want {
				t.Errorf("%v: MSS %d, want %d", s, got, want)
			}
			if ClampMSS(p, s.link, s.max(), false) {
				t.Errorf("%v: clamped twice", s)
			}
		}
		// Only a SYN announces, and a partial checksum is left alone.
		s.flags, s.options = "A", []byte{2, 4, 0xff, 0xff}
		if ClampMSS(s.build(t, nil), s.link, s.max(), false) {
			t.Errorf("%v: no SYN, and changed", s)
		}
		s.flags = "S"
		p, h := s.super(t, nil, 1)
		if !ClampMSS(p, s.link, s.max(), true) || !Complete(p, h) {
			t.Errorf("%v: a SYN with partial checksum", s)
		}
		valid(t, p, s.link)
	}
}

// The option at an odd offset, behind a no-operation, and options that lie.
func TestMSSOption(t *testing.T) {
	for _, c := range []struct {
		options []byte
		at      int
	}{
		{[]byte{1, 2, 4, 5, 0xb4, 1, 1, 0}, 3}, {[]byte{8, 2, 2, 4, 1, 1}, 4}, {[]byte{0, 2, 4, 5}, -1}, {[]byte{2}, -1}, {[]byte{2, 4, 5}, -1},
		{[]byte{2, 3, 5, 0}, -1}, {[]byte{7, 0, 2, 4, 5, 5}, -1}, {[]byte{7, 1, 2, 4, 5, 5}, -1}, {nil, -1},
	} {
		if got := mssOption(c.options); got != c.at {
			t.Errorf("%x: %d, want %d", c.options, got, c.at)
		}
	}
	s := shape{link: Ethernet, flags: "S", port: 7, options: []byte{2, 4, 5, 0xb4}}
	p := s.build(t, nil)
	copy(p[54:], []byte{1, 2, 4, 5}) // 05xx begins at an odd offset
	p = append(p[:58], 0xb4, 1, 1, 0)
	p[34+12], p[17] = 7<<4, p[17]+4
	fix(p, Ethernet)
	if !ClampMSS(p, Ethernet, 1400, false) {
		t.Fatal("not clamped")
	}
	want := slices.Clone(p)
	fix(want, Ethernet)
	if !bytes.Equal(p, want) {
		t.Errorf("checksum %x, want %x", p[50:52], want[50:52])
	}
}

package super

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// fix writes the checksums of a packet that was changed.
func fix(p []byte, link Link) {
	l, ok := locate(p, link)
	if !ok {
		return
	}
	l.setLength(p, l.end)
	at := l.l4 + tcpSumOffset
	if l.proto == protoUDP {
		at = l.l4 + udpSumOffset
	}
	p[at], p[at+1] = 0, 0
	binary.BigEndian.PutUint16(p[at:], ^fold(sum(p[l.l4:l.end], l.pseudo(p, l.end-l.l4))))
}

// Two packets are joined only if nothing gets lost.
func TestJoinRules(t *testing.T) {
	type change struct {
		name  string
		apply func(p []byte, l layout)
		only  string // "4", "6", "tcp", "udp" or all
	}
	for _, c := range []change{
		{"nothing", func(p []byte, l layout) {}, ""},
		{"sequence gap", func(p []byte, l layout) { p[l.l4+7]++ }, "tcp"},
		{"acknowledgement", func(p []byte, l layout) { p[l.l4+11]++ }, "tcp"},
		{"window", func(p []byte, l layout) { p[l.l4+15]++ }, "tcp"},
		{"urgent pointer", func(p []byte, l layout) { p[l.l4+19]++ }, "tcp"},
		{"FIN", func(p []byte, l layout) { p[l.l4+13] |= finFlag }, "tcp"},
		{"SYN", func(p []byte, l layout) { p[l.l4+13] |= synFlag }, "tcp"},
		{"CWR", func(p []byte, l layout) { p[l.l4+13] |= reducedFlag }, "tcp"},
		{"reserved bits", func(p []byte, l layout) { p[l.l4+12] |= 1 }, "tcp"},
		{"option", func(p []byte, l layout) { p[l.l4+23]++ }, "tcp"},
		{"source port", func(p []byte, l layout) { p[l.l4]++ }, ""},
		{"destination port", func(p []byte, l layout) { p[l.l4+3]++ }, ""},
		{"ToS", func(p []byte, l layout) { p[l.ip+1] ^= 0x10 }, "4"},
		{"identification", func(p []byte, l layout) { p[l.ip+5] += 2 }, "4"},
		{"DF", func(p []byte, l layout) { p[l.ip+6] ^= 0x40 }, "4"},
		{"fragment", func(p []byte, l layout) { p[l.ip+7] = 1 }, "4"},
		{"TTL", func(p []byte, l layout) { p[l.ip+8]-- }, "4"},
		{"source", func(p []byte, l layout) { p[l.ip+15]++ }, "4"},
		{"header checksum", func(p []byte, l layout) { p[l.ip+11]++ }, "4"},
		{"traffic class", func(p []byte, l layout) { p[l.ip+1] ^= 0x10 }, "6"},
		{"flow label", func(p []byte, l layout) { p[l.ip+3]++ }, "6"},
		{"hop limit", func(p []byte, l layout) { p[l.ip+7]-- }, "6"},
		{"source6", func(p []byte, l layout) { p[l.ip+23]++ }, "6"},
		{"MAC", func(p []byte, l layout) { p[0] ^= 4 }, "ether"},
		{"VLAN", func(p []byte, l layout) { p[15]++ }, "tag"},
		{"payload without checksum", func(p []byte, l layout) { p[l.body]++ }, ""},
		{"checksum 0", func(p []byte, l layout) { p[l.l4+6], p[l.l4+7] = 0, 0 }, "udp"},
	} {
		for _, s := range shapes() {
			name := s.String()
			if !(c.only == "" || c.only == "4" && !s.v6 || c.only == "6" && s.v6 || c.only == "tcp" && !s.udp || c.only == "udp" && s.udp ||
				c.only == "ether" && s.link == Ethernet || c.only == "tag" && len(s.tags) > 0) {
				continue
			}
			s.flags, s.options = "A", []byte{8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
			if s.udp {
				s.options = nil
			}
			p, h := s.super(t, pattern(300), 100)
			packets := cut(t, p, h, s.link, 1000)
			l, _ := locate(packets[1], s.link)
			c.apply(packets[1], l)
			if c.name != "payload without checksum" && c.name != "checksum 0" && c.name != "header checksum" {
				fix(packets[1], s.link)
			}
			out, _ := join(packets, s.link)
			if c.name == "nothing" {
				if len(out) != 1 {
					t.Errorf("%s: equal packets are not joined", name)
				}
				continue
			}
			// The changed one leaves as it came.
			if !slices.ContainsFunc(out, func(q []byte) bool { return bytes.Equal(q, packets[1]) }) {
				t.Errorf("%s, %s: the changed packet is gone", name, c.name)
			}
		}
	}
}

// A shorter packet and one with PSH end a super-packet, a longer one begins
// the next.
func TestJoinEnds(t *testing.T) {
	for _, c := range []struct {
		sizes []int
		flags []string
		want  int
	}{
		{[]int{100, 100, 100}, []string{"A", "A", "A"}, 1},
		{[]int{100, 100, 50}, []string{"A", "A", "A"}, 1},
		{[]int{100, 50, 50}, []string{"A", "A", "A"}, 2},
		{[]int{100, 50, 100}, []string{"A", "A", "A"}, 2},
		{[]int{50, 100, 100}, []string{"A", "A", "A"}, 2},
		{[]int{100, 100, 100}, []string{"A", "AP", "A"}, 2},
		{[]int{100, 100, 100}, []string{"AP", "A", "A"}, 2},
		{[]int{100, 0, 100}, []string{"A", "A", "A"}, 3}, // a bare acknowledgement keeps its place
		{[]int{100, 100, 100}, []string{"A", "AS", "A"}, 3},
	} {
		s := shape{link: Ethernet, seq: 5, id: 9, port: 7}
		var packets [][]byte
		for i, n := range c.sizes {
			s.flags = c.flags[i]
			packets = append(packets, s.build(t, pattern(n)))
			s.seq += uint32(n)
			s.id++
		}
		if out, _ := join(packets, Ethernet); len(out) != c.want {
			t.Errorf("%v %v: %d packets, want %d", c.sizes, c.flags, len(out), c.want)
		}
	}
}

// Interleaved flows, damaged and odd packets: after cutting what was joined
// every packet is there, and each flow's are in the order they came.
func TestJoinKeepsAll(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	joined := 0
	for range 200 {
		flows := make([]shape, 1+rng.IntN(5))
		for i := range flows {
			flows[i] = shapes()[4+rng.IntN(len(shapes())-4)]
			flows[i].port, flows[i].flags = uint16(i), "A"
		}
		var in [][]byte
		for range MaxBatch {
			s := &flows[rng.IntN(len(flows))]
			n := []int{100, 100, 100, 100, 40, 0}[rng.IntN(6)]
			p := s.build(t, pattern(n))
			s.seq += uint32(n)
			s.id++
			switch rng.IntN(20) {
			case 0: // a repeated packet
				s.seq -= uint32(n)
			case 1:
				p[len(p)-1]++
			case 2:
				p = []byte{1, 2, 3}
			}
			in = append(in, p)
		}
		out, headers := join(in, Ethernet)
		joined += len(in) - len(out)
		var again [][]byte
		for i, p := range out {
			again = append(again, cut(t, p, headers[i], Ethernet, 2000)...)
		}
		key := func(p []byte) int {
			if l, ok := locate(p, Ethernet); ok {
				return int(p[l.l4+3])
			}
			return -1
		}
		for k := -1; k < len(flows); k++ {
			other := func(p []byte) bool { return key(p) != k }
			want, got := slices.DeleteFunc(slices.Clone(in), other), slices.DeleteFunc(slices.Clone(again), other)
			if !slices.EqualFunc(want, got, bytes.Equal) {
				t.Fatalf("flow %d: %d packets in, %d out, or in another order", k, len(want), len(got))
			}
		}
	}
	if joined < 5000 {
		t.Errorf("only %d packets joined: the test shows little", joined)
	}
}

func TestJoinLimits(t *testing.T) {
	s := shape{link: IP, udp: true, port: 7}
	var packets [][]byte
	for range MaxBatch {
		packets = append(packets, s.build(t, pattern(10)))
		s.id++
	}
	if out, _ := join(packets, IP); len(out) != 2 {
		t.Errorf("128 datagrams make %d super-packets, want 2", len(out))
	}
	s = shape{link: IP, flags: "A", port: 7}
	packets = packets[:0]
	for range 60 {
		packets = append(packets, s.build(t, pattern(1400)))
		s.id++
		s.seq += 1400
	}
	out, _ := join(packets, IP)
	if len(out) != 2 || len(out[0]) > maxIPLen || len(out[0])+1400 <= maxIPLen {
		t.Errorf("%d super-packets, the first of %d bytes", len(out), len(out[0]))
	}
	var m Merger
	m.Reset(IP, JoinNothing)
	for _, p := range packets {
		m.Add(p)
	}
	if m.Groups() != len(packets) {
		t.Error("joined though told not to")
	}
	m.Reset(IP, JoinTCP)
	for _, p := range packets {
		m.Add(p)
	}
	if m.Groups() != 2 {
		t.Errorf("TCP only: %d packets", m.Groups())
	}
	// Each packet can be had as it came.
	m.Reset(IP, JoinAll)
	for _, p := range packets {
		m.Add(p)
	}
	for i := range m.Count(0) {
		if got := bytes.Join(m.Alone(0, i, nil), nil); !bytes.Equal(got[HeaderLen:], packets[i]) || !bytes.Equal(got[:HeaderLen], make([]byte, HeaderLen)) {
			t.Errorf("packet %d alone is another", i)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	s := shape{link: Ethernet, tags: []uint16{5}, flags: "A", port: 7}
	p, h := s.super(t, pattern(60000), 1300)
	var c Splitter
	var m Merger
	bufs := make([][]byte, MaxBatch)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	var pieces [][]byte
	if n := testing.AllocsPerRun(20, func() {
		if c.Start(p, h, Ethernet, 1400) != nil {
			t.Fatal("refused")
		}
		m.Reset(Ethernet, JoinAll)
		for i := 0; c.Len() > 0; i++ {
			b := bufs[i][:c.Len()]
			c.Next(b)
			ClampMSS(b, Ethernet, 1400, false)
			m.Add(b)
		}
		for g := range m.Groups() {
			pieces = m.Pieces(g, pieces[:0])
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d packets", n, m.n)
	}
}

func BenchmarkCut(b *testing.B)  { benchmark(b, true) }
func BenchmarkJoin(b *testing.B) { benchmark(b, false) }

func benchmark(b *testing.B, cutting bool) {
	s := shape{link: Ethernet, flags: "A", port: 7}
	p, h := s.super(b, pattern(60000), 1346)
	packets := cut(b, p, h, Ethernet, 1412)
	var c Splitter
	var m Merger
	buf := make([]byte, 2000)
	pieces := make([][]byte, 0, 256)
	b.SetBytes(60000)
	b.ReportAllocs()
	for b.Loop() {
		if cutting {
			_ = c.Start(p, h, Ethernet, 1412)
			for c.Len() > 0 {
				c.Next(buf)
			}
			continue
		}
		m.Reset(Ethernet, JoinAll)
		for _, p := range packets {
			m.Add(p)
		}
		pieces = m.Pieces(0, pieces[:0])
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(packets)), "ns/packet")
}

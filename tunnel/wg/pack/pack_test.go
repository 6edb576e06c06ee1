package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"stitch/compress"
	"stitch/tunnel/netdev/super"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// frozen is a clock that stands still.
func frozen() time.Duration { return 0 }

// text returns n bytes that compress well, random ones that do not.
func text(rng *rand.Rand, n int) []byte {
	words := []string{"GET /index.html ", "200 OK ", "INSERT INTO t VALUES ", "0x0000 ", "accept\n", "10.2.0.10 "}
	var b []byte
	for len(b) < n {
		b = append(b, words[rng.IntN(len(words))]...)
	}
	return b[:n]
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// shape is a form of super-packet.
type shape struct {
	link         super.Link
	tags         int
	v6           bool
	ip4Options   int // in bytes, a multiple of 4
	tcpOptions   int
	size, length int // of a segment, of the payload
	flags        byte
	seed         uint64
}

func randomShape(rng *rand.Rand) shape {
	s := shape{
		link: super.Link(rng.IntN(2)), v6: rng.IntN(2) == 1, tcpOptions: 4 * rng.IntN(11),
		size: MinSize + rng.IntN(1200), flags: 0x10, seed: rng.Uint64(),
	}
	if s.link == super.Ethernet {
		s.tags = rng.IntN(3)
	}
	if !s.v6 {
		s.ip4Options = 4 * rng.IntN(11)
	}
	if rng.IntN(2) == 0 {
		s.flags |= 0x08 // PSH
	}
	if rng.IntN(8) == 0 {
		s.flags |= 0x01 // FIN
	}
	s.length = s.size + 1 + rng.IntN(65535-60-60-s.size)
	return s
}

// make returns the super-packet with its payload, as a kernel hands it over.
func (s shape) make(payload []byte) ([]byte, super.Header) {
	rng := rand.New(rand.NewPCG(s.seed, 3))
	var p []byte
	if s.link == super.Ethernet {
		p = append(p, random(rng, 12)...)
		for i := range s.tags {
			p = append(p, 0x81, 0, 0, byte(i+10))
		}
		if s.v6 {
			p = append(p, 0x86, 0xdd)
		} else {
			p = append(p, 8, 0)
		}
	}
	tcp := 20 + s.tcpOptions
	kind := super.TCP4
	if s.v6 {
		kind = super.TCP6
		h := random(rng, 40)
		h[0] = 0x60
		binary.BigEndian.PutUint16(h[4:], uint16(tcp+len(payload)))
		h[6] = 6
		p = append(p, h...)
	} else {
		h := random(rng, 20+s.ip4Options)
		h[0] = 0x40 | byte(len(h)/4)
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)+tcp+len(payload)))
		h[6], h[7], h[9] = 0x40, 0, 6
		p = append(p, h...)
	}
	start := len(p)
	h := random(rng, tcp)
	h[12], h[13] = byte(tcp/4)<<4, s.flags
	p = append(append(p, h...), payload...)
	return p, super.Header{Partial: true, Kind: kind, Size: uint16(s.size), Start: uint16(start), Offset: 16}
}

// cut returns the packets of a super-packet.
func cut(t testing.TB, p []byte, h super.Header, link super.Link, most int) (all [][]byte) {
	t.Helper()
	var s super.Splitter
	if err := s.Start(bytes.Clone(p), h, link, most); err != nil {
		t.Fatalf("cut: %v", err)
	}
	for n := s.Len(); n > 0; n = s.Len() {
		b := make([]byte, n)
		s.Next(b)
		all = append(all, b)
	}
	return all
}

// offer makes an Offer of a super-packet.
func offer(t testing.TB, p []byte, h super.Header, link super.Link, segment uint16, mtu int) *Offer {
	t.Helper()
	var s super.Splitter
	if err := s.Start(p, h, link, mtu); err != nil {
		t.Fatal(err)
	}
	o := &Offer{Packet: p, Segment: segment, Size: s.Size(), Count: s.Count(), Room: mtu - 28}
	o.IP, o.Transport, o.Body = s.Offsets()
	return o
}

// The packets of a unit are those that would have crossed without, bit by bit,
// whatever the super-packet looks like, with each codec.
func TestRoundTrip(t *testing.T) {
	pool := compress.NewPool(1, 0)
	rng := rand.New(rand.NewPCG(1, 1))
	var packed [2]int
	for i := range 400 {
		s := randomShape(rng)
		p, h := s.make(text(rng, s.length))
		segment := uint16(s.link) * uint16(1+rng.IntN(65535))
		pk := NewPacker(pool, frozen)
		if i%2 == 1 {
			pk.gov.level = compress.Fast
		}
		before := bytes.Clone(p)
		unit, v := pk.Pack(nil, offer(t, p, h, s.link, segment, 1440))
		if !bytes.Equal(p, before) {
			t.Fatal("the super-packet was changed")
		}
		if v != Packed {
			continue
		}
		packed[i%2]++
		u, err := NewUnpacker(pool, nil).Unpack(nil, unit)
		if err != nil {
			t.Fatalf("%+v: %v", s, err)
		}
		if u.Segment != segment || u.Link != s.link || !bytes.Equal(u.Packet, p) {
			t.Fatalf("%+v: another super-packet came out", s)
		}
		want := cut(t, p, h, s.link, 1440)
		got := cut(t, u.Packet, u.Header, u.Link, len(u.Packet))
		if len(got) != len(want) {
			t.Fatalf("%+v: %d packets, want %d", s, len(got), len(want))
		}
		for j := range want {
			if !bytes.Equal(got[j], want[j]) {
				t.Fatalf("%+v: packet %d of %d differs", s, j, len(want))
			}
		}
	}
	if packed[0] < 150 || packed[1] < 150 {
		t.Errorf("only %v of 400 were packed: this proves little", packed)
	}
}

// bulk is a full super-packet of IPv4 with the given payload.
func bulk(payload []byte) ([]byte, super.Header) {
	return shape{size: 1388, tcpOptions: 12, flags: 0x10, seed: 7}.make(payload)
}

func TestMost(t *testing.T) {
	for _, c := range []struct {
		n    int
		p    float64
		want int
	}{
		{2, 0, 1}, {2, 0.5, 1}, {3, 0, 2}, {4, 0, 3}, {46, 0, 34}, {1, 0, 0}, {0, 0, 0},
		// The table in the package's documentation.
		{46, 0.001, 34}, {46, 0.01, 33}, {46, 0.02, 27}, {46, 0.03, 23}, {46, 0.05, 18}, {46, 0.1, 12},
		{46, -1, 33}, // not known
		{46, 1, 1},
	} {
		if got := Most(c.n, c.p); got != c.want {
			t.Errorf("Most(%d, %v) = %d, want %d", c.n, c.p, got, c.want)
		}
	}
}

// At the most that the rule allows at least as large a share of what is sent
// arrives as without, and one more would be too many.
func TestMostAgainstDefinition(t *testing.T) {
	pays := func(n, k int, p float64) bool {
		all := 1.0
		for range k - 1 {
			all *= 1 - p
		}
		return 4*k <= 3*n && float64(k) <= float64(n)*all
	}
	for n := 2; n <= 256; n++ {
		for _, p := range []float64{0, 0.001, 0.01, 0.03, 0.1, 0.3} {
			if k := Most(n, p); k > 0 && !pays(n, k, p) || pays(n, k+1, p) {
				t.Fatalf("Most(%d, %v) = %d", n, p, k)
			}
		}
	}
}

func TestVerdicts(t *testing.T) {
	pool := compress.NewPool(1, 0)
	rng := rand.New(rand.NewPCG(2, 2))
	half := append(text(rng, 30000), random(rng, 30000)...) // saves less than a half
	for _, c := range []struct {
		name    string
		payload []byte
		edit    func(*Packer, *Offer)
		want    Verdict
	}{
		{"text", text(rng, 60000), nil, Packed},
		{"two packets", text(rng, 2000), nil, Packed},
		{"random", random(rng, 60000), nil, Encrypted},
		{"TLS", append([]byte{22, 3, 1, 2, 0, 1}, text(rng, 60000)...), nil, Encrypted},
		{"SSH", append([]byte("SSH-2.0-x"), text(rng, 60000)...), nil, Encrypted},
		{"base64 of random", bits6(random(rng, 60000)), nil, Small},
		{"half", half, nil, Packed},
		{"half, at 10 % loss", half, func(_ *Packer, o *Offer) { o.Loss = 0.1 }, Lossy},
		{"text, at 10 % loss", text(rng, 60000), func(_ *Packer, o *Offer) { o.Loss = 0.1 }, Packed},
		{"no time", text(rng, 60000), func(p *Packer, _ *Offer) { p.gov.level, p.gov.until = compress.Store, 1 }, Busy},
		{"SYN", text(rng, 60000), func(_ *Packer, o *Offer) { o.Packet[o.Transport+tcpFlags] |= syn }, Odd},
		{"one packet", text(rng, 1000), nil, Odd},
		{"tiny segments", text(rng, 60000), func(_ *Packer, o *Offer) { o.Size = MinSize - 1 }, Odd},
	} {
		p, h := bulk(c.payload)
		pk := NewPacker(pool, frozen)
		o := offer(t, p, h, super.IP, 0, 1440)
		if c.edit != nil {
			c.edit(pk, o)
		}
		dst := []byte("before")
		unit, v := pk.Pack(dst, o)
		if v != c.want || !bytes.HasPrefix(unit, dst) || (len(unit) > len(dst)) != (v == Packed) {
			t.Errorf("%s: verdict %d with %d bytes, want %d", c.name, v, len(unit), c.want)
		}
	}
}

// bits6 makes bytes that need six bits each.
func bits6(b []byte) []byte {
	for i := range b {
		b[i] = b[i]&63 + 48
	}
	return b
}

// A flow that looks encrypted is soon hardly looked at, one that is compressed
// without gain too, and another flow does not suffer.
func TestFlows(t *testing.T) {
	pool := compress.NewPool(1, 0)
	rng := rand.New(rand.NewPCG(3, 3))
	pk := NewPacker(pool, frozen)
	count := func(payload []byte, port byte) (seen [Verdicts]int) {
		p, h := bulk(payload)
		p[21] = port
		o := offer(t, p, h, super.IP, 0, 1440)
		for range 1000 {
			_, v := pk.Pack(nil, o)
			seen[v]++
		}
		return seen
	}
	if s := count(random(rng, 60000), 1); s[Encrypted] != 2 || s[Passed] != 998 {
		t.Errorf("random: %v", s)
	}
	if s := count(bits6(random(rng, 60000)), 2); s[Small] > 12 || s[Small]+s[Passed] != 1000 {
		t.Errorf("six bits: %v", s)
	}
	if s := count(text(rng, 60000), 3); s[Packed] != 1000 {
		t.Errorf("text: %v", s)
	}
	// The flow that had no gain is taken up again when it has.
	if s := count(text(rng, 60000), 2); s[Packed] < 1000-failSkip {
		t.Errorf("text after six bits: %v", s)
	}
}

// A compressor that takes all of the time is soon given up, and tried again
// ever more seldom: it takes less than a twentieth of a minute. One that takes
// a tenth goes on. The times are made up.
func TestGovernor(t *testing.T) {
	for _, c := range []struct {
		name           string
		balanced, fast time.Duration // for one unit
		every          time.Duration // a unit comes, if nothing is compressed
		least, most    float64       // share of the time
		level          compress.Level
	}{
		{"slow link", 100 * time.Microsecond, 30 * time.Microsecond, 3 * time.Millisecond, 0.025, 0.035, compress.Balanced},
		{"S2 keeps up", 200 * time.Microsecond, 60 * time.Microsecond, 400 * time.Microsecond, 0.05, 0.2, compress.Fast},
		{"fast link", 200 * time.Microsecond, 60 * time.Microsecond, 10 * time.Microsecond, 0.001, 0.01, compress.Store},
	} {
		var now, spent time.Duration
		g := newGovernor(0)
		for now < time.Minute {
			level := g.at(now)
			now += c.every
			if level == compress.Store {
				continue
			}
			d := c.balanced
			if level == compress.Fast {
				d = c.fast
			}
			now += d
			spent += d
			g.took(d, now)
		}
		if got := spent.Seconds() / now.Seconds(); got < c.least || got > c.most || g.level != c.level {
			t.Errorf("%s: %.4f of the time, level %d", c.name, got, g.level)
		}
	}
}

// golden are the vectors of testdata/wire/unit.txt: name, outcome, unit.
func golden(t testing.TB) map[string][]byte {
	t.Helper()
	pool := compress.NewPool(1, 0)
	payload := bytes.Repeat([]byte("stitch "), 100)
	p, h := shape{size: 300, flags: 0x18, seed: 1}.make(payload)
	f, fh := shape{link: super.Ethernet, tags: 1, v6: true, tcpOptions: 12, size: 300, flags: 0x10, seed: 2}.make(payload)
	fast := NewPacker(pool, frozen)
	fast.gov.level = compress.Fast
	s2, v1 := fast.Pack(nil, offer(t, p, h, super.IP, 0, 1440))
	zstd, v2 := NewPacker(pool, frozen).Pack(nil, offer(t, f, fh, super.Ethernet, 100, 1412))
	if v1 != Packed || v2 != Packed {
		t.Fatalf("verdicts %d, %d", v1, v2)
	}
	with := func(at int, b ...byte) []byte {
		u := bytes.Clone(s2)
		copy(u[at:], b)
		return u
	}
	return map[string][]byte{
		"packet-s2": s2, "frame-zstd": zstd, "codec-0": with(0, 0), "codec-3": with(0, 3), "reserved": with(1, 1),
		"size-255": with(4, 0, 255), "length-1-more": with(10, s2[10], s2[11]+1), "length-4-GiB": with(8, 255, 255, 255, 255),
		"checksum": with(12, s2[12]+1), "cut-short": s2[:len(s2)-1], "header-only": s2[:HeaderLen],
	}
}

func outcome(pool *compress.Pool, unit []byte) string {
	u, err := NewUnpacker(pool, nil).Unpack(nil, unit)
	if err != nil {
		return "malformed"
	}
	return fmt.Sprintf("segment=%d,kind=%d,size=%d,start=%d,packet=%x", u.Segment, u.Header.Kind, u.Header.Size, u.Header.Start, u.Packet)
}

func TestVectors(t *testing.T) {
	const file = "../../../testdata/wire/unit.txt"
	pool := compress.NewPool(1, 0)
	if *update {
		var b strings.Builder
		b.WriteString("# Units (package tunnel/wg/pack): name, outcome, unit.\n# Outcome: malformed, or the fields of the header and the super-packet.\n")
		all := golden(t)
		for _, name := range []string{"packet-s2", "frame-zstd", "codec-0", "codec-3", "reserved", "size-255", "length-1-more", "length-4-GiB", "checksum", "cut-short", "header-only"} {
			fmt.Fprintf(&b, "%s %s %x\n", name, outcome(pool, all[name]), all[name])
		}
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for name, v := range vectors(t, file) {
		n++
		if got := outcome(pool, v.unit); got != v.outcome {
			t.Errorf("%s: %s, want %s", name, got, v.outcome)
		}
	}
	if n < 11 {
		t.Errorf("%d vectors", n)
	}
}

type vector struct {
	outcome string
	unit    []byte
}

func vectors(t testing.TB, file string) map[string]vector {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]vector{}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var name string
		var v vector
		if _, err := fmt.Sscanf(line, "%s %s %x", &name, &v.outcome, &v.unit); err != nil {
			t.Fatalf("bad vector %q: %v", line, err)
		}
		all[name] = v
	}
	return all
}

// What a hostile peer sends costs no more than a packet's memory, and is cut
// into no more than 256 packets.
func TestHostile(t *testing.T) {
	pool := compress.NewPool(1, 0)
	zeros := make([]byte, super.MaxPacket+1)
	bomb, _ := pool.Encode(make([]byte, HeaderLen), make([]byte, compress.MaxBlock), compress.Balanced)
	for name, n := range map[string]int{"as it is": compress.MaxBlock, "as a packet": super.MaxPacket, "as nothing": 0, "beyond": 1<<32 - 1} {
		bomb[0], bomb[4] = byte(compress.Zstd), 2
		binary.BigEndian.PutUint32(bomb[8:], uint32(n))
		dst := make([]byte, 0, super.MaxPacket)
		allocs := testing.AllocsPerRun(10, func() {
			if u, err := NewUnpacker(pool, nil).Unpack(dst, bomb); !errors.Is(err, ErrFormat) {
				t.Errorf("a bomb claimed %s: %d bytes, %v", name, len(u.Packet), err)
			}
		})
		if allocs > 10 && !raceEnabled { // of errors
			t.Errorf("a bomb claimed %s: %v allocations", name, allocs)
		}
	}
	p, h := shape{size: MinSize, flags: 0x10, seed: 1}.make(zeros[:65535-40])
	if n := len(cut(t, p, h, super.IP, 1440)); n > 256 {
		t.Errorf("%d packets of one unit", n)
	}
}

// Neither way allocates once its buffers are there.
func TestNoAllocs(t *testing.T) {
	pool := compress.NewPool(1, 0)
	p, h := bulk(text(rand.New(rand.NewPCG(4, 4)), 60000))
	o := offer(t, p, h, super.IP, 0, 1440)
	for _, level := range []compress.Level{compress.Fast, compress.Balanced} {
		pk := NewPacker(pool, frozen)
		pk.gov.level = level
		unit, _ := pk.Pack(nil, o)
		if n := testing.AllocsPerRun(100, func() { unit, _ = pk.Pack(unit[:0], o) }); n > 0 {
			t.Errorf("level %d: packing allocates %v times", level, n)
		}
		dst := make([]byte, 0, super.MaxPacket)
		u := NewUnpacker(pool, nil)
		if n := testing.AllocsPerRun(100, func() { _, _ = u.Unpack(dst, unit) }); n > 0 {
			t.Errorf("level %d: unpacking allocates %v times", level, n)
		}
	}
}

// Nothing of one unit is in another: its size does not tell what crossed before.
func TestUnitsAlone(t *testing.T) {
	pool := compress.NewPool(1, 0)
	rng := rand.New(rand.NewPCG(5, 5))
	p, h := bulk(text(rng, 60000))
	want, _ := NewPacker(pool, frozen).Pack(nil, offer(t, p, h, super.IP, 0, 1440))
	pk := NewPacker(pool, frozen)
	for range 20 {
		other, oh := bulk(text(rng, 20000+rng.IntN(40000)))
		pk.Pack(nil, offer(t, other, oh, super.IP, 0, 1440))
		if got, _ := pk.Pack(nil, offer(t, p, h, super.IP, 0, 1440)); !bytes.Equal(got, want) {
			t.Fatal("a unit depends on the one before")
		}
	}
}

// TestUnitTells is the control of TestUnitsAlone: a secret and a guess in one unit,
// which is what the documentation warns of, are told apart by its size.
func TestUnitTells(t *testing.T) {
	pool := compress.NewPool(1, 0)
	rng := rand.New(rand.NewPCG(7, 7))
	secret := random(rng, 64)
	size := func(guess []byte) int {
		page := append(append(text(rand.New(rand.NewPCG(8, 8)), 20000), secret...), text(rand.New(rand.NewPCG(9, 9)), 20000)...)
		p, h := bulk(append(page, guess...))
		unit, v := NewPacker(pool, frozen).Pack(nil, offer(t, p, h, super.IP, 0, 1440))
		if v != Packed {
			t.Fatalf("verdict %d", v)
		}
		return len(unit)
	}
	if right, wrong := size(secret), size(random(rng, 64)); right >= wrong {
		t.Errorf("a right guess takes %d bytes, a wrong one %d", right, wrong)
	}
}

func FuzzUnpack(f *testing.F) {
	for _, v := range vectors(f, "../../../testdata/wire/unit.txt") {
		f.Add(v.unit)
	}
	pool := compress.NewPool(1, 0)
	f.Fuzz(func(t *testing.T, unit []byte) {
		saved := bytes.Clone(unit)
		u, err := NewUnpacker(pool, nil).Unpack(make([]byte, 0, super.MaxPacket), unit)
		if !bytes.Equal(unit, saved) {
			t.Fatal("the unit was changed")
		}
		if err != nil {
			return
		}
		if len(u.Packet) > super.MaxPacket || u.Header.Size < MinSize {
			t.Fatalf("%d bytes in packets of %d", len(u.Packet), u.Header.Size)
		}
		var s super.Splitter
		if s.Start(u.Packet, u.Header, u.Link, len(u.Packet)) != nil {
			return
		}
		if s.Count() > 256 {
			t.Fatalf("%d packets", s.Count())
		}
		for n := s.Len(); n > 0; n = s.Len() {
			s.Next(make([]byte, n))
		}
	})
}

// BenchmarkPack packs and unpacks full super-packets of text.
func BenchmarkPack(b *testing.B) {
	pool := compress.NewPool(1, 0)
	rng := rand.New(rand.NewPCG(6, 6))
	for _, n := range []int{2 * 1388, 10 * 1388, 46 * 1388} {
		for name, payload := range map[string][]byte{"text": text(rng, n), "random": random(rng, n)} {
			p, h := bulk(payload)
			o := offer(b, p, h, super.IP, 0, 1440)
			for level, l := range map[string]compress.Level{"s2": compress.Fast, "zstd": compress.Balanced} {
				b.Run(fmt.Sprintf("%s/%d/%s", name, n, level), func(b *testing.B) {
					pk := NewPacker(pool, frozen)
					pk.gov.level = l
					var unit []byte
					var v Verdict
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for b.Loop() {
						unit, v = pk.Pack(unit[:0], o)
					}
					if v == Packed {
						b.ReportMetric(float64(len(unit))/float64(n), "ratio")
					}
				})
			}
		}
	}
}

package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"stitch/compress"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/pack/history"
)

// parcel is what crosses: a unit, a note, a packet, or (back) a report.
type parcel struct {
	unit   []byte
	packet []byte
	report []byte
	at     int // when it arrives
}

// pastSim is two ends with a history between which parcels get lost, late,
// repeated, and that forget all.
type pastSim struct {
	t          *testing.T
	rng        *rand.Rand
	size       int
	loss, late float64
	spoil      func([]byte)
	wholeSent  map[string]bool // super-packets and packets that were sent

	now  int
	sent *history.Sender
	pk   *Packer
	past *history.Receiver
	un   *Unpacker
	ways []parcel

	// What came of it.
	bytes, carried, repeats, missing, wrong, delivered int
}

func newPastSim(t *testing.T, seed uint64) *pastSim {
	s := &pastSim{t: t, rng: rand.New(rand.NewPCG(seed, 8)), size: history.MinSize, wholeSent: map[string]bool{}}
	s.restartSender()
	s.restartReceiver()
	return s
}

func (s *pastSim) restartSender() {
	s.sent = history.NewSender(s.size, s.rng.Uint32())
	s.pk = NewPacker(compress.NewPool(1, 0), frozen)
}

func (s *pastSim) restartReceiver() {
	s.past = history.NewReceiver(s.size, s.rng.Uint32())
	s.un = NewUnpacker(compress.NewPool(1, 0), s.past)
}

// push lets a parcel cross, if it is not lost.
func (s *pastSim) push(p parcel) {
	if s.rng.Float64() < s.loss {
		return
	}
	n := 1
	if s.rng.Float64() < s.late {
		n = 2
	}
	for range n {
		p.at = s.now
		if s.rng.Float64() < s.late {
			p.at += s.rng.IntN(20)
		}
		s.ways = append(s.ways, p)
	}
}

// send offers a super-packet of a flow, and what comes of it crosses.
func (s *pastSim) send(payload []byte, port uint16, seq uint32) {
	p, h := bulk(payload)
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint32(p[24:], seq)
	o := offer(s.t, p, h, super.IP, 0, 1440)
	o.Past, o.Group, o.Loss = s.sent, 1, 0
	s.wholeSent[string(p)] = true
	packets := cut(s.t, p, h, super.IP, 1440)
	for _, b := range packets {
		s.wholeSent[string(b)] = true
	}
	unit, v := s.pk.Pack(nil, o)
	s.bytes += len(p)
	s.carried += len(unit)
	if len(unit) > 0 {
		if s.spoil != nil {
			s.spoil(unit)
		}
		s.push(parcel{unit: unit})
	}
	if v == Packed {
		s.repeats += s.pk.Repeats()
	} else {
		for _, b := range packets {
			s.carried += len(b)
			s.push(parcel{packet: b})
		}
	}
	s.step()
}

// step lets what is due arrive.
func (s *pastSim) step() {
	s.now++
	left := s.ways[:0]
	var due []parcel
	for _, p := range s.ways {
		if p.at < s.now {
			due = append(due, p)
		} else {
			left = append(left, p)
		}
	}
	s.ways = left
	for _, p := range due {
		s.arrive(p)
	}
	if s.past.Due() || s.past.Fresh() && s.rng.IntN(4) == 0 {
		r := s.past.Report()
		s.push(parcel{report: r.Append(nil)})
	}
}

func (s *pastSim) arrive(p parcel) {
	switch {
	case p.report != nil:
		r, ok := history.ParseReport(p.report)
		if !ok {
			s.t.Fatal("a report that is none")
		}
		s.sent.Reported(r)
	case p.packet != nil:
		s.deliver(p.packet)
		if s.un.Watching() {
			s.un.Saw(p.packet, super.IP, 0)
		}
	case s.un.Note(p.unit):
	default:
		u, err := s.un.Unpack(nil, p.unit)
		switch {
		case errors.Is(err, ErrMissing):
			s.missing++
		case err != nil:
			s.wrong++
		default:
			s.deliver(u.Packet)
		}
	}
}

func (s *pastSim) deliver(b []byte) {
	s.delivered++
	if !s.wholeSent[string(b)] {
		s.wrong++
	}
}

// download sends a file in super-packets of odd lengths.
func (s *pastSim) download(file []byte, port uint16) {
	seq := s.rng.Uint32()
	for len(file) > 0 {
		n := min(len(file), 3000+s.rng.IntN(60000))
		s.send(file[:n], port, seq)
		file, seq = file[n:], seq+uint32(n)
	}
}

// A second download of the same bytes crosses as references, whatever they are.
func TestPastRepeats(t *testing.T) {
	for name, make := range map[string]func(*rand.Rand, int) []byte{"random": random, "text": text} {
		s := newPastSim(t, 1)
		file := make(s.rng, 600<<10)
		s.download(file, 1)
		for range 4 {
			s.step()
		}
		r := s.past.Report()
		s.sent.Reported(r)
		first := s.carried
		s.carried, s.repeats = 0, 0
		s.download(file, 2)
		s.step()
		t.Logf("%s: %d bytes, first %d, again %d, %d of them by reference, %d dropped", name, len(file), first, s.carried, s.repeats, s.missing)
		if s.repeats < len(file)*9/10 || s.carried > len(file)/10 || s.wrong > 0 || s.missing > 0 {
			t.Errorf("%s: %d bytes again took %d, %d by reference; %d wrong, %d dropped", name, len(file), s.carried, s.repeats, s.wrong, s.missing)
		}
	}
}

// Whatever gets lost, late or comes twice, and whoever forgets all: what arrives
// is what was sent, and the history works again. The control case is a unit that
// is damaged on the way.
func TestPastSim(t *testing.T) {
	for seed := range uint64(12) {
		s := newPastSim(t, seed)
		s.loss, s.late = []float64{0, 0.05, 0.3}[seed%3], 0.2
		files := make([][]byte, 5)
		for i := range files {
			files[i] = random(s.rng, 100<<10)
			if i%2 == 0 {
				files[i] = text(s.rng, 100<<10)
			}
		}
		for i := range 60 {
			switch i {
			case 20:
				s.restartReceiver()
			case 40:
				s.restartSender()
			}
			f := bytes.Clone(files[s.rng.IntN(len(files))])
			for range s.rng.IntN(20) {
				f[s.rng.IntN(len(f))]++
			}
			s.download(f, uint16(i))
			if i == 19 || i == 39 {
				s.repeats = 0
			}
		}
		if s.wrong > 0 || s.delivered == 0 {
			t.Fatalf("seed %d: %d of %d were wrong", seed, s.wrong, s.delivered)
		}
		// Nobody sends again what got lost, so few records are whole then.
		if want := []int{500 << 10, 200 << 10, 0}[seed%3]; s.repeats < want {
			t.Errorf("seed %d: only %d bytes by reference after both restarts", seed, s.repeats)
		}
		if s.missing == 0 && s.loss == 0 {
			t.Errorf("seed %d: nothing was missing after a restart", seed)
		}
	}
	s := newPastSim(t, 1)
	s.spoil = func(u []byte) { u[len(u)-1]++ }
	s.download(text(s.rng, 200<<10), 1)
	if s.wrong == 0 {
		t.Error("nobody sees damage")
	}
}

// A receiver whose history holds something else delivers nothing wrong, says so,
// and is believed.
func TestPastDoubt(t *testing.T) {
	s := newPastSim(t, 1)
	file := random(s.rng, 60000)
	s.send(file, 1, 0)
	rec := s.past.Report()
	s.sent.Reported(rec)
	// Another receiver with the same instance and epoch, and other bytes.
	s.past = history.NewReceiver(s.size, rec.Instance)
	s.un = NewUnpacker(compress.NewPool(1, 0), s.past)
	s.past.Watch(history.Note{Record: history.Record{Epoch: rec.Epoch, Seq: 1}, Len: 60000, Flow: 9})
	s.past.Saw(9, 0, random(s.rng, 60000))
	s.past.Report()
	s.send(file, 2, 0)
	if s.missing != 1 || s.wrong > 0 {
		t.Fatalf("%d missing, %d wrong", s.missing, s.wrong)
	}
	s.step()
	s.repeats = 0
	s.send(file, 3, 0)
	if s.repeats > 0 {
		t.Error("the sender refers to what is doubted")
	}
}

// What is TLS or SSH is kept out of the history, and who has another group finds
// nothing in it.
func TestPastApart(t *testing.T) {
	s := newPastSim(t, 1)
	p, h := bulk(append([]byte{23, 3, 3, 64, 0, 1}, random(s.rng, 60000)...))
	o := offer(t, p, h, super.IP, 0, 1440)
	o.Past, o.Group = s.sent, 1
	for range 3 {
		if unit, v := s.pk.Pack(nil, o); len(unit) > 0 || v == Packed {
			t.Errorf("TLS: verdict %d, %d bytes", v, len(unit))
		}
		p[o.Body] = 0 // in the middle of a record
	}
	if _, seq := s.sent.Base(); seq != 0 {
		t.Error("TLS is in the history")
	}
	file := random(s.rng, 60000)
	s.send(file, 1, 0)
	s.sent.Reported(s.past.Report())
	p, h = bulk(file)
	o = offer(t, p, h, super.IP, 0, 1440)
	for _, c := range []struct {
		group uint64
		want  Verdict
	}{{2, Encrypted}, {1, Packed}} {
		p[21]++
		o.Past, o.Group = s.sent, c.group
		if _, v := s.pk.Pack(nil, o); v != c.want {
			t.Errorf("group %d: verdict %d, want %d", c.group, v, c.want)
		}
	}
}

// The history is the first thing that is given up when it takes too much time,
// and comes back.
func TestPastGovernor(t *testing.T) {
	g := newGovernor(0)
	now := time.Duration(0)
	if !g.usePast(now) {
		t.Fatal("it is not used")
	}
	level := g.at(now)
	now += saved
	g.took(saved, now)
	if g.usePast(now) || g.at(now) != level {
		t.Errorf("used %v, level %d, was %d", g.usePast(now), g.at(now), level)
	}
	if now += firstRest; !g.usePast(now) {
		t.Error("it does not come back")
	}
}

// Neither way allocates.
func TestPastNoAllocs(t *testing.T) {
	s := newPastSim(t, 1)
	file := random(s.rng, 60000)
	for i := range uint16(3) {
		s.send(file, i, 0)
		s.sent.Reported(s.past.Report())
	}
	p, h := bulk(file)
	o := offer(t, p, h, super.IP, 0, 1440)
	o.Past, o.Group = s.sent, 1
	unit, v := s.pk.Pack(nil, o)
	if v != Packed || s.pk.Repeats() < 50000 {
		t.Fatalf("verdict %d, %d by reference", v, s.pk.Repeats())
	}
	if n := testing.AllocsPerRun(100, func() { unit, _ = s.pk.Pack(unit[:0], o) }); n > 0 {
		t.Errorf("packing allocates %v times", n)
	}
	dst := make([]byte, 0, super.MaxPacket)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := s.un.Unpack(dst, unit); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("unpacking allocates %v times", n)
	}
}

// FuzzUnpackPast takes any units, those with references and notes among them, at a
// receiver that holds a record: what comes out is as long as the unit says and has
// its checksum, or nothing does; the unit is only borrowed, and memory bounded.
func FuzzUnpackPast(f *testing.F) {
	rng := rand.New(rand.NewPCG(9, 9))
	sent := history.NewSender(history.MinSize, 7)
	kept := history.NewReceiver(history.MinSize, 8)
	pk, un := NewPacker(compress.NewPool(1, 0), frozen), NewUnpacker(compress.NewPool(1, 0), kept)
	file := random(rng, 20000)
	var first []byte // the note of the record
	for port := range uint16(2) {
		p, h := bulk(append(file, random(rng, 3000)...))
		binary.BigEndian.PutUint16(p[20:], port)
		o := offer(f, p, h, super.IP, 0, 1440)
		o.Past, o.Group = sent, 1
		unit, v := pk.Pack(nil, o)
		if f.Add(unit); port == 0 {
			first = unit
			un.Note(unit)
			for _, b := range cut(f, p, h, super.IP, 1440) {
				un.Saw(b, super.IP, 0)
			}
			sent.Reported(kept.Report())
		} else if v != Packed || pk.Repeats() == 0 {
			f.Fatalf("verdict %d, %d bytes by reference", v, pk.Repeats())
		}
	}
	pool := compress.NewPool(1, 0)
	f.Fuzz(func(t *testing.T, unit []byte) {
		kept := history.NewReceiver(history.MinSize, 8)
		un := NewUnpacker(pool, kept)
		if !un.Note(first) {
			t.Fatal("no note")
		}
		p, h := bulk(file)
		binary.BigEndian.PutUint16(p[20:], 0)
		for _, b := range cut(t, p, h, super.IP, 1440) {
			un.Saw(b, super.IP, 0)
		}
		saved := bytes.Clone(unit)
		un.Note(unit)
		u, err := un.Unpack(make([]byte, 0, super.MaxPacket), unit)
		if !bytes.Equal(unit, saved) {
			t.Fatal("the unit was changed")
		}
		if cap(un.literals) > 2*compress.MaxBlock || len(kept.Report().Missed) > 16 {
			t.Fatalf("%d bytes of literals", cap(un.literals))
		}
		switch {
		case err != nil && len(u.Packet) > 0:
			t.Fatalf("%d bytes and %v", len(u.Packet), err)
		case err == nil && (len(u.Packet) != int(binary.BigEndian.Uint32(unit[8:])) || xxh3.Hash(u.Packet) != binary.BigEndian.Uint64(unit[12:])):
			t.Fatalf("%d bytes, which the unit does not say", len(u.Packet))
		}
	})
}

package pack

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"stitch/compress"
	"stitch/tunnel/wg/pack/history"
)

const (
	// HeaderLen is the length of a unit's header.
	HeaderLen = 20
	// pastLen is the length of what follows it about the history, without the
	// tokens, of which each has maxToken bytes at most.
	pastLen, maxToken = 12, 5 + 3*binary.MaxVarintLen16
	// flagPast and flagNote say that this is there, and a history.Note behind it.
	flagPast, flagNote = 1, 2
	// noteKind is in the place of a unit's codec if there is a note only.
	noteKind, noteAt = 3, 4
	// tailPart is the part of a flow that its next record is long, for when the
	// flow ends that one is in vain.
	tailPart = 4
	// MinSize is the least that the packets of a unit but the last carry. It
	// bounds how many there are.
	MinSize = 256
	// tcpSum is where TCP's checksum is in its header.
	tcpSum = 16
	// tcpFlags is where its flags are, syn and urgent those that never are in a
	// unit.
	tcpFlags, syn, urgent = 13, 0x02, 0x20
)

// Verdict is what became of a super-packet that was offered.
type Verdict uint8

// The verdicts. All but Packed leave the super-packet to be cut.
const (
	Packed Verdict = iota
	// Passed over: what was seen of the flow before.
	Passed
	// Encrypted: it looks so.
	Encrypted
	// Small: too little was saved.
	Small
	// Lossy: it would have saved enough, but not at this loss.
	Lossy
	// Busy: compressing takes too much time.
	Busy
	// Odd: flags, sizes or a number of datagrams that units are not made of.
	Odd
	Verdicts // how many there are
)

// Offer is a TCP super-packet, as super.Splitter accepts it.
type Offer struct {
	Packet []byte // borrowed
	// Segment of an Ethernet frame; 0: an IP packet.
	Segment uint16
	// IP, Transport and Body are the offsets of the headers and of the payload.
	IP, Transport, Body int
	// It would be cut into Count packets that carry Size each.
	Size, Count int
	// Room is how many bytes of a unit fit into one datagram.
	Room int
	// Loss of the direction, 0 to 1; negative: not known.
	Loss float64
	// Past is what the unit may refer to, and becomes a part of; nil: nothing. A
	// Group refers to itself only.
	Past  *history.Sender
	Group uint64
}

// Packer makes units. It is not safe for concurrent use.
type Packer struct {
	pool     *compress.Pool
	clock    func() time.Duration
	gov      governor
	flows    flows
	literals []byte
	repeats  int
	note     history.Note // of the record that begins, if noted
	noted    bool
}

// NewPacker returns a Packer that compresses with pool. The clock may have any
// origin and never goes back.
func NewPacker(pool *compress.Pool, clock func() time.Duration) *Packer {
	return &Packer{pool: pool, clock: clock, gov: newGovernor(clock()), flows: flows{seed: maphash.MakeSeed()}}
}

// Repeats returns how many bytes of the latest unit are of the history.
func (p *Packer) Repeats() int { return p.repeats }

// Pack appends the unit of a super-packet to dst, if that pays. If not, it is to
// be cut, and ahead of its packets the note is to be sent that Pack may have
// appended instead.
func (p *Packer) Pack(dst []byte, o *Offer) ([]byte, Verdict) {
	flags := o.Packet[o.Transport+tcpFlags]
	if o.Count < 2 || o.Size < MinSize || o.Room < 1 || flags&(syn|urgent) != 0 {
		return dst, Odd
	}
	f := p.flows.of(o)
	payload := o.Packet[o.Body:]
	f.sealed = f.sealed || sealed(payload)
	p.repeats, p.noted = 0, false
	if o.Past == nil || f.sealed || len(payload) > history.MaxRecord {
		return p.alone(dst, o, f, true)
	}
	start := p.clock()
	if !p.gov.usePast(start) {
		return p.alone(dst, o, f, true)
	}
	unit, v := p.kept(dst, o, f)
	end := p.clock()
	p.gov.took(end-start, end)
	return unit, v
}

// kept is Pack for what becomes a part of the history.
func (p *Packer) kept(dst []byte, o *Offer, f *flow) (unit []byte, v Verdict) {
	n := len(o.Packet) - o.Body
	tokens := o.Past.Match(o.Packet[o.Body:], o.Group, &f.last)
	found, young := o.Past.Found()
	// What repeats need not be there twice, unless it soon will not be there.
	p.noted = p.keep(o, f, young && found > n-n/8)
	if found > 0 {
		unit, v = p.refer(dst, o, f, tokens, found)
	} else {
		unit, v = p.alone(dst, o, f, false)
	}
	if v != Packed && p.noted {
		unit = p.note.Append(append(unit, noteKind, 0, 0, 0))
	}
	return unit, v
}

// keep adds the payload that was matched to the record of its flow, or lets that
// end. True means that another one begins, of which the note is.
func (p *Packer) keep(o *Offer, f *flow, end bool) bool {
	tcp, n := binary.BigEndian.Uint32(o.Packet[o.Transport+4:]), len(o.Packet)-o.Body
	at, again := f.overlap(tcp, n)
	if again {
		return false
	}
	f.next = tcp + uint32(n)
	if end {
		f.record = history.Record{}
		return false
	}
	if at += o.Past.Keep(f.record, at); at == n {
		return false
	}
	length := min(max(int(f.recorded/tailPart), n-at, history.MinRecord), history.MaxRecord)
	f.recorded = min(f.recorded+int32(length), tailPart*history.MaxRecord)
	f.record = o.Past.Open(length, o.Group)
	o.Past.Keep(f.record, at)
	p.note = history.Note{
		Record: f.record, TCP: tcp + uint32(at), Len: length,
		Flow: history.Flow(o.Segment, o.Packet[o.IP:], o.Packet[o.Transport:]),
	}
	return true
}

// Pass adds a packet that is no super-packet to the record of its flow.
func (p *Packer) Pass(o *Offer) {
	f := p.flows.of(o)
	payload := o.Packet[o.Body:]
	tcp := binary.BigEndian.Uint32(o.Packet[o.Transport+4:])
	at, again := f.overlap(tcp, len(payload))
	if again || f.record == (history.Record{}) {
		return
	}
	f.next = tcp + uint32(len(payload))
	if o.Past.Append(f.record, payload[at:]) < len(payload)-at {
		f.record = history.Record{}
	}
}

// refer appends the unit that refers to the history.
func (p *Packer) refer(dst []byte, o *Offer, f *flow, tokens []history.Token, matched int) ([]byte, Verdict) {
	at := o.Body
	p.literals = append(p.literals[:0], o.Packet[:at]...)
	for _, t := range tokens {
		p.literals = append(p.literals, o.Packet[at:at+t.Lit]...)
		at += t.Lit + t.Len
	}
	p.literals = append(p.literals, o.Packet[at:]...)
	level := p.gov.at(p.clock())
	if compress.Random(p.literals) {
		level = compress.Store
	}
	tokens[0].Lit += o.Body
	unit, _ := p.encode(dst, o, p.literals, tokens, level)
	v := p.judge(len(unit)-len(dst), o)
	if v != Packed {
		return dst, v
	}
	p.repeats = matched
	f.packed()
	return unit, v
}

// alone appends the unit that refers to nothing. timed: its time is to be counted.
func (p *Packer) alone(dst []byte, o *Offer, f *flow, timed bool) ([]byte, Verdict) {
	if !f.due() {
		return dst, Passed
	}
	if payload := o.Packet[o.Body:]; sealed(payload) || compress.Random(payload) {
		f.encrypted()
		return dst, Encrypted
	}
	start := p.clock()
	level := p.gov.at(start)
	if level == compress.Store {
		return dst, Busy
	}
	unit, codec := p.encode(dst, o, o.Packet, nil, level)
	if timed {
		end := p.clock()
		p.gov.took(end-start, end)
	}
	v := Small
	if codec != compress.Raw {
		v = p.judge(len(unit)-len(dst), o)
	}
	if v != Packed {
		f.failed()
		return dst, v
	}
	f.packed()
	return unit, v
}

// judge says whether a unit of n bytes pays.
func (p *Packer) judge(n int, o *Offer) Verdict {
	k := (n + o.Room - 1) / o.Room
	switch {
	case k > Most(o.Count, 0):
		return Small
	case k > Most(o.Count, o.Loss):
		return Lossy
	}
	return Packed
}

// encode appends a unit of literals and tokens.
func (p *Packer) encode(dst []byte, o *Offer, literals []byte, tokens []history.Token, level compress.Level) ([]byte, compress.Codec) {
	at := len(dst)
	dst = slices.Grow(dst, HeaderLen+pastLen+maxToken*len(tokens)+history.NoteLen+compress.ScratchLen(len(literals)))[:at+HeaderLen]
	flags := byte(0)
	if len(tokens) > 0 || p.noted {
		dst, flags = p.appendPast(dst, o.Past, tokens)
	}
	dst, codec := p.pool.Encode(dst, literals, level)
	h := dst[at:]
	h[0], h[1] = byte(codec), flags
	binary.BigEndian.PutUint16(h[2:], o.Segment)
	binary.BigEndian.PutUint16(h[4:], uint16(o.Size))
	binary.BigEndian.PutUint16(h[6:], uint16(o.Transport))
	binary.BigEndian.PutUint32(h[8:], uint32(len(o.Packet)))
	binary.BigEndian.PutUint64(h[12:], xxh3.Hash(o.Packet))
	return dst, codec
}

// appendPast appends the part of a unit about the history, and returns its flags.
func (p *Packer) appendPast(dst []byte, past *history.Sender, tokens []history.Token) (_ []byte, flags byte) {
	epoch, base := past.Base()
	dst = binary.BigEndian.AppendUint32(dst, epoch)
	dst = binary.BigEndian.AppendUint32(dst, base)
	at := len(dst)
	dst = history.AppendTokens(append(dst, 0, 0, 0, 0), tokens, base)
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	if !p.noted {
		return dst, flagPast
	}
	return p.note.Append(dst), flagPast | flagNote
}

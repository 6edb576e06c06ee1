package wg

import (
	"encoding/binary"
	"time"

	"stitch/tunnel/wg/quality"
)

const (
	// probeInterval is the time between two probes.
	probeInterval = 200 * time.Millisecond
	// tickInterval is how often the prober looks at the clock.
	tickInterval = 50 * time.Millisecond
	// suspectAfter is how old the latest proof is when a probe or its echo has
	// certainly been lost: from then on every tick sends a probe, so that mere
	// loss is not taken for a dead link.
	suspectAfter = probeInterval * 3 / 2
	// probeRing is how many probes are remembered: 25 s of them.
	probeRing = 128
	// probeLen is the length of a probe without features.
	probeLen = 16
	// never is the age of what has not been heard at all, or not for a minute.
	never = 0xffff
)

// probe is a message of kind carrier.Probe, in numbers of big-endian order:
// type u8 (1 request, 2 echo), loss u8, age u16, sequence u32, instance u64.
//
// loss is the share of the receiver's requests that do not arrive at the sender
// (quality.Meter.Share; 0: not known, as from older agents).
// age is how many milliseconds ago the sender last heard a probe of the
// receiver (0xffff: never, or too long), so every probe tells the receiver
// until when its own ones arrived. instance is a random number of the process
// that made the request; sequence counts its requests. An echo has the
// sequence and instance of the request. Behind these 16 bytes may follow one
// with features: bit 0, the sender takes units (package pack);
// bit 1, it answers gauges; bit 2, it keeps a history of units (package
// pack/history). What is not there is 0, as from older agents. A receiver ignores
// other types and further bytes.
type probe struct {
	echo     bool
	loss     uint8
	age      uint16
	seq      uint32
	instance uint64
	features features
}

// features are what the sender of a probe can do.
type features uint8

const (
	// featureUnits: it takes units.
	featureUnits features = 1 << iota
	_                     // earlier gauges
	// featureHistory: it keeps a history of units.
	featureHistory
	// featureGauges: it answers gauges.
	featureGauges
)

func (p probe) append(b []byte) []byte {
	kind := byte(1)
	if p.echo {
		kind = 2
	}
	b = append(b, kind, p.loss)
	b = binary.BigEndian.AppendUint16(b, p.age)
	b = binary.BigEndian.AppendUint32(b, p.seq)
	b = binary.BigEndian.AppendUint64(b, p.instance)
	return append(b, byte(p.features))
}

func parseProbe(b []byte) (probe, bool) {
	if len(b) < probeLen || b[0] != 1 && b[0] != 2 {
		return probe{}, false
	}
	var f features
	if len(b) > probeLen {
		f = features(b[probeLen])
	}
	return probe{
		features: f, echo: b[0] == 2, loss: b[1], age: binary.BigEndian.Uint16(b[2:]),
		seq: binary.BigEndian.Uint32(b[4:]), instance: binary.BigEndian.Uint64(b[8:]),
	}, true
}

// prober decides whether packets cross both ways. It is pure, and not safe for
// concurrent use. It lives on its own running time: when nothing called it for
// longer than a probe interval, the excess does not count, so a process that
// was not scheduled does not blame its peer.
type prober struct {
	instance uint64
	state    State
	last     time.Time     // when it was last called
	run      time.Duration // own running time
	// heard is when (in running time) a probe of the peer last arrived, and
	// proof the latest time at which the peer certainly heard ours.
	heard, proof       time.Duration
	hasHeard, hasProof bool
	nextSend           time.Duration
	seq                uint32
	ring               [probeRing]sentProbe
	srtt, rttvar       time.Duration
	// peer is the peer's instance, offered and taken what each can do.
	peer           uint64
	offered, taken features
	understood     features // by the peer, whatever is offered
	quality        quality.Meter
}

type sentProbe struct {
	seq    uint32
	at     time.Time
	run    time.Duration
	used   bool // this entry is a probe sent while up
	echoed bool
}

func newProber(instance uint64, now time.Time) *prober {
	return &prober{instance: instance, state: Connecting, last: now}
}

// advance moves the running time on to now.
func (p *prober) advance(now time.Time) {
	p.run += max(min(now.Sub(p.last), probeInterval), 0)
	p.last = now
}

// deadline is how long there may be no proof.
func (p *prober) deadline() time.Duration {
	return max(3*probeInterval, p.srtt+4*p.rttvar+2*probeInterval)
}

// tick returns the request to send now, if one is due, and updates the state.
func (p *prober) tick(now time.Time) (request probe, send bool) {
	p.advance(now)
	if p.state == Up && p.run-p.proof > p.deadline() {
		p.state = Down
		p.quality.Restart()
	}
	suspect := p.state == Up && p.run-p.proof > suspectAfter
	if p.run < p.nextSend && !suspect {
		return probe{}, false
	}
	p.nextSend = p.run + probeInterval
	p.seq++
	p.ring[p.seq%probeRing] = sentProbe{seq: p.seq, at: now, run: p.run, used: p.state == Up}
	return probe{loss: p.quality.Share(), age: p.age(), seq: p.seq, instance: p.instance, features: p.offered}, true
}

// age is the age field of a probe sent now.
func (p *prober) age() uint16 {
	ms := (p.run - p.heard) / time.Millisecond
	if !p.hasHeard || ms >= never {
		return never
	}
	return uint16(ms)
}

// receive takes in a probe of the peer, updates the state and returns the echo
// to send, if it asks for one.
func (p *prober) receive(in probe, now time.Time) (echo probe, send bool) {
	p.advance(now)
	if in.echo && in.instance != p.instance {
		return probe{}, false // for our predecessor
	}
	p.heard, p.hasHeard = p.run, true
	p.taken, p.understood = in.features&p.offered, in.features
	p.quality.Told(in.loss)
	if in.echo {
		p.echoed(in.seq, now)
	} else {
		p.peer = in.instance
		p.quality.Heard(in.instance, in.seq)
	}
	if in.age != never {
		p.prove(p.run - time.Duration(in.age)*time.Millisecond)
	}
	if in.echo {
		return probe{}, false
	}
	return probe{echo: true, loss: p.quality.Share(), age: 0, seq: in.seq, instance: in.instance, features: p.offered}, true
}

// prove notes that the peer heard us at the running time at.
func (p *prober) prove(at time.Duration) {
	if !p.hasProof || at > p.proof {
		p.proof, p.hasProof = at, true
	}
	if p.run-p.proof <= p.deadline() {
		p.state = Up
	}
}

// echoed takes the round trip of a probe. One that was sent while the link was
// not up may have waited for a handshake and says nothing.
func (p *prober) echoed(seq uint32, now time.Time) {
	e := &p.ring[seq%probeRing]
	if e.seq != seq || e.echoed || !e.used {
		return
	}
	e.echoed = true
	rtt := max(now.Sub(e.at), time.Microsecond)
	if p.srtt == 0 {
		p.srtt, p.rttvar = rtt, rtt/2
	} else { // RFC 6298
		p.rttvar += ((p.srtt - rtt).Abs() - p.rttvar) / 4
		p.srtt += (rtt - p.srtt) / 8
	}
	p.quality.RoundTrip(p.run, rtt, p.srtt)
}

// loss returns the share of probes without an echo, over those of the last
// 25 s that were sent while up and long enough ago.
func (p *prober) loss() float64 {
	sent, lost := 0, 0
	for _, e := range p.ring {
		if !e.used || !e.echoed && p.run-e.run <= p.deadline() {
			continue
		}
		sent++
		if !e.echoed {
			lost++
		}
	}
	if sent == 0 {
		return 0
	}
	return float64(lost) / float64(sent)
}

// deaf reports that the peer is heard and does not hear us.
func (p *prober) deaf() bool {
	return p.state != Up && p.hasHeard && p.run-p.heard <= p.deadline()
}

// judge returns the link's quality, given its counters of bytes.
func (p *prober) judge(in, out uint64) quality.Report {
	p.quality.Traffic(p.run, in, out)
	return p.quality.Report(p.state == Up, p.deaf())
}

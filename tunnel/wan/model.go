package wan

import (
	"math/rand/v2"
	"time"
)

// Model decides what happens to each packet of one direction of a path. It
// holds no packets, no goroutine and no clock: time comes in as a duration
// since any fixed instant. It is not safe for concurrent use.
type Model struct {
	p     Params
	rng   *rand.Rand
	hold  time.Duration // longest wait for the transmitter: the queue as time
	free  time.Duration // when the transmitter has sent all it accepted
	carry int64         // remainder of the last transmission time, in 1/Rate ns
	last  time.Duration // latest delivery promised in order
	bad   bool          // burst state
	c     Counters
}

// Verdict says what becomes of one packet.
type Verdict struct {
	// At is when it leaves the path, on the clock of Enqueue's now.
	At time.Duration
	// Copies is how often it does: 0 (dropped), 1, or 2 (duplicated).
	Copies int
}

// Counters of one Model. At any moment
//
//	Packets + Duplicates = Delivered + LossDrops + QueueDrops + DownDrops
//
// where Delivered also counts what is still on its way. Bytes are IP bytes.
type Counters struct {
	// Packets and Bytes were offered to the path: what the sender put on the
	// wire.
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// Delivered and DeliveredBytes leave at the other end, duplicates counted.
	Delivered      uint64 `json:"delivered"`
	DeliveredBytes uint64 `json:"delivered_bytes"`
	// LossDrops fell to Loss or Burst, QueueDrops to a full queue, DownDrops
	// to a path that was down.
	LossDrops  uint64 `json:"loss_drops"`
	QueueDrops uint64 `json:"queue_drops"`
	DownDrops  uint64 `json:"down_drops"`
	// Duplicates are extra copies, Reordered packets held back on purpose.
	Duplicates uint64 `json:"duplicates"`
	Reordered  uint64 `json:"reordered"`
}

// Drops is the number of packets dropped for any cause.
func (c Counters) Drops() uint64 { return c.LossDrops + c.QueueDrops + c.DownDrops }

// NewModel returns a Model for p, or what is wrong with p.
func NewModel(p Params) (*Model, error) {
	m := &Model{rng: rand.New(rand.NewPCG(p.Seed, 0x77616e))}
	if err := m.Set(p); err != nil {
		return nil, err
	}
	return m, nil
}

// Set changes the parameters for the packets that follow. Counters, the
// backlog and the random sequence go on (Seed is ignored); what was promised
// stays promised. On error nothing changes.
func (m *Model) Set(p Params) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if p.ReorderBy == 0 {
		p.ReorderBy = time.Millisecond
	}
	if p.Burst.Loss == 0 {
		p.Burst.Loss = 1
	}
	m.p, m.carry, m.hold = p, 0, 0
	if p.Rate > 0 {
		m.hold = time.Duration(float64(p.QueueBytes()) * 8e9 / float64(p.Rate))
	}
	return nil
}

// Params returns the parameters in effect, defaults filled in but for Queue.
func (m *Model) Params() Params { return m.p }

// Counters returns the counters so far.
func (m *Model) Counters() Counters { return m.c }

// Enqueue offers one packet of size IP bytes (1 to 65535) at now and returns
// its fate. Calls must come in order of now. Without Reorder deliveries are in
// order of the calls.
func (m *Model) Enqueue(now time.Duration, size int) Verdict {
	m.c.Packets++
	m.c.Bytes += uint64(size)
	if m.p.Down {
		m.c.DownDrops++
		return Verdict{}
	}
	sent, ok := m.transmit(now, size)
	if !ok {
		m.c.QueueDrops++
		return Verdict{}
	}
	if m.lost() {
		m.c.LossDrops++
		return Verdict{}
	}
	v := Verdict{At: m.arrival(sent), Copies: 1}
	if m.chance(m.p.Duplicate) {
		m.c.Duplicates++
		v.Copies = 2
	}
	m.c.Delivered += uint64(v.Copies)
	m.c.DeliveredBytes += uint64(v.Copies * size)
	return v
}

// transmit returns when the transmitter has sent the packet, or false if the
// queue has no room for it.
func (m *Model) transmit(now time.Duration, size int) (time.Duration, bool) {
	if m.p.Rate == 0 {
		return now, true
	}
	start, carry := m.free, m.carry
	if start <= now {
		start, carry = now, 0
	}
	work := int64(size)*8e9 + carry
	sent := start + time.Duration(work/m.p.Rate)
	if start > now && sent-now > m.hold {
		return 0, false
	}
	m.free, m.carry = sent, work%m.p.Rate
	return sent, true
}

// lost draws independent and burst loss.
func (m *Model) lost() bool {
	if m.bad {
		m.bad = !m.chance(m.p.Burst.Leave)
	} else {
		m.bad = m.chance(m.p.Burst.Enter)
	}
	return m.chance(m.p.Loss) || m.bad && m.chance(m.p.Burst.Loss)
}

// arrival adds delay, jitter and reordering to the moment of transmission.
func (m *Model) arrival(sent time.Duration) time.Duration {
	at := sent + m.p.Delay
	if m.p.Jitter > 0 {
		at += time.Duration(m.rng.Int64N(int64(m.p.Jitter) + 1))
	}
	if m.chance(m.p.Reorder) {
		m.c.Reordered++
		return max(at, m.last) + m.p.ReorderBy
	}
	m.last = max(at, m.last)
	return m.last
}

// chance is true with probability p; it draws nothing for p = 0.
func (m *Model) chance(p float64) bool { return p > 0 && m.rng.Float64() < p }

package wg

import (
	"encoding/binary"
	"time"
)

// Some kernels, drivers and hypervisors lose or damage datagrams that leave as a
// train, in one call (UDP_SEGMENT), or that the receiver's kernel hands over
// merged (UDP_GRO). Whoever is behind one sees everything stall but pings. So when
// a link comes up, and again every half minute in which little crosses (the path
// may be another one, and a link that stalls carries little), it sends a short
// train, and as many messages one at a time, and asks the peer how many of each
// arrived. Which of the two ends is to blame cannot be told from that, so both
// do without: the one sends, the other receives one at a time.

const (
	trainCars = 16
	// carLen is the length of a car: about a full datagram, all equal.
	carLen = MaxControl
	// trainPatience is how long cars may take, questionEvery the time between
	// questions about them, of which there are so many at most.
	trainPatience = 500 * time.Millisecond
	questionEvery = 250 * time.Millisecond
	maxQuestions  = 6
	// A train was lost when no more than fewCars of it arrived, though at
	// least mostCars did when they left one at a time. It takes badRounds of
	// these, within maxRounds, before trains are given up.
	fewCars   = 4
	mostCars  = 12
	badRounds = 3
	maxRounds = 6
	// trainAgain is the time from one test to the next, calm the rate in bytes a
	// second up to which there is one: in a crowd trains get lost anyway.
	trainAgain = 30 * time.Second
	calm       = 64 << 10
)

// trainKind is the type of a message about trains. They are probes (see probe)
// of further types: type u8, zero u8, count u16, id u32, and padding. The count of
// a car is 1 if it left by itself.
type trainKind uint8

const (
	car      trainKind = 3 // of the train id
	question trainKind = 4 // how many cars of the train id arrived?
	answer   trainKind = 5 // count of them
)

// trainMsg is one message.
type trainMsg struct {
	kind  trainKind
	count uint16
	id    uint32
}

func (m trainMsg) append(b []byte) []byte {
	b = append(b, byte(m.kind), 0)
	b = binary.BigEndian.AppendUint16(b, m.count)
	b = binary.BigEndian.AppendUint32(b, m.id)
	if m.kind == car {
		b = append(b, make([]byte, carLen-8)...)
	}
	return b
}

func parseTrain(b []byte) (trainMsg, bool) {
	if len(b) < 8 || trainKind(b[0]) < car || trainKind(b[0]) > answer {
		return trainMsg{}, false
	}
	return trainMsg{trainKind(b[0]), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:])}, true
}

// platform counts the cars of the newest train that arrives, and judges, as the
// sender does, whether trains do not arrive here.
type platform struct {
	id     uint32
	count  uint16
	single bool // the cars of this one left by themselves
	asked  bool // about this one
	judge  judge
}

// receive takes in a car or a question; a question has an answer.
func (p *platform) receive(m trainMsg) (reply trainMsg, send bool) {
	if m.id != p.id {
		if m.kind != car && m.kind != question {
			return trainMsg{}, false
		}
		*p = platform{id: m.id, judge: p.judge}
	}
	switch m.kind {
	case car:
		p.single = m.count == 1
		p.count = min(p.count+1, 1<<15)
	case question:
		if !p.asked {
			p.asked = true
			p.judge.train(p.count, p.single)
		}
		return trainMsg{kind: answer, count: p.count, id: m.id}, true
	}
	return trainMsg{}, false
}

// judge counts rounds of a train and as many cars by themselves.
type judge struct {
	together int // how many of the last train arrived
	rounds   int
	bad      int
}

// train takes in how many cars of a train arrived, or of those that left by
// themselves. An end that does not send trains is not judged.
func (j *judge) train(count uint16, single bool) {
	switch {
	case !single && count >= mostCars:
		*j = judge{}
	case !single:
		j.together = int(count)
	default:
		if j.rounds == maxRounds {
			*j = judge{together: j.together}
		}
		j.rounds++
		if j.together <= fewCars && count >= mostCars {
			j.bad++
		}
	}
}

// harmful reports whether trains get lost and single cars do not.
func (j *judge) harmful() bool { return j.bad >= badRounds }

// trainer finds out whether trains arrive. It is pure, and not safe for
// concurrent use.
type trainer struct {
	id        uint32 // of the current train
	running   bool
	single    bool // its cars leave one at a time
	left      int  // of these, to be sent
	due       time.Time
	questions int
	judge     judge
	harmful   bool      // trains are lost
	again     time.Time // of the next test; zero: none
}

// start begins a test, unless the answer is known to be bad.
func (t *trainer) start(now time.Time) {
	if !t.harmful {
		*t = trainer{id: t.id}
		t.depart(now, false)
	}
}

// idle reports whether the next test is due.
func (t *trainer) idle(now time.Time) bool {
	return !t.running && !t.harmful && !t.again.IsZero() && !now.Before(t.again)
}

// depart begins a train.
func (t *trainer) depart(now time.Time, single bool) {
	t.id++
	t.running, t.single, t.left, t.questions, t.due = true, single, trainCars, 0, now
}

// tick returns how many cars, or else whether a question, are to be sent now.
func (t *trainer) tick(now time.Time) (cars int, ask bool) {
	switch {
	case !t.running || now.Before(t.due):
		return 0, false
	case t.left > 0:
		if cars = t.left; t.single {
			cars = 1
		}
		if t.left -= cars; t.left == 0 {
			t.due = now.Add(trainPatience)
		}
		return cars, false
	case t.questions == maxQuestions: // it does not answer, or is gone
		t.running = false
		return 0, false
	}
	t.questions++
	t.due = now.Add(questionEvery)
	return 0, true
}

// answered takes in how many cars of a train arrived.
func (t *trainer) answered(m trainMsg, now time.Time) {
	switch {
	case !t.running || m.id != t.id || t.questions == 0:
		return
	case !t.single && m.count >= mostCars:
		t.running, t.again = false, now.Add(trainAgain) // all is well
		return
	case !t.single:
		t.judge.train(m.count, false)
		t.depart(now, true)
		return
	}
	t.judge.train(m.count, true)
	t.harmful = t.judge.harmful()
	t.running, t.again = false, now.Add(trainAgain)
	if !t.harmful && t.judge.rounds < maxRounds {
		t.depart(now, false)
	}
}

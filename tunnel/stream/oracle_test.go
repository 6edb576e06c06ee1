package stream

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"stitch/dedupe"
	"stitch/tunnel/config"
	"stitch/tunnel/stream/block"
)

// side is one direction of a link with its far end: what an observer of the
// WAN sees the sizes of.
type side struct {
	t     *testing.T
	ours  *dedupe.History
	peers *dedupe.History
	shop  *block.Shop
	id    uint64
}

func newSide(t *testing.T) *side {
	s := &side{t: t, ours: dedupe.NewHistory(1 << 20), peers: dedupe.NewHistory(1 << 20), shop: block.NewShop(1)}
	for s.ours.Stats().Sent < 1<<28 { // positions are of one length from here on
		s.forget()
		s.stream(config.StreamRule{Domain: "d"}, false).send([]byte("x"))
	}
	return s
}

// forget empties the histories on both sides.
func (s *side) forget() {
	s.ours.Restart()
	s.peers.Restart()
	a, b := s.ours.Summary(), s.peers.Summary()
	_, err := s.ours.Agree(a, b)
	if err == nil {
		_, err = s.peers.Agree(b, a)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// oneFlow is one stream as the rules have it carried.
type oneFlow struct {
	s   *side
	enc *block.Encoder
	dec *block.Decoder
}

// stream opens a stream of a rule in a domain with one or many tenants.
func (s *side) stream(r config.StreamRule, many bool) *oneFlow {
	s.id++
	near := &peerConn{id: s.id, domain: &domain{name: r.Domain}, history: s.ours, terms: terms{Tenants: many}}
	far := &peerConn{id: s.id, domain: near.domain, history: s.peers, terms: near.terms}
	f := &oneFlow{s: s}
	f.enc, _ = near.codec(modeOf(r), s.shop)
	_, f.dec = far.codec(modeOf(r), s.shop)
	return f
}

// send sends bytes, has them acknowledged, and returns the size on the wire.
func (f *oneFlow) send(b []byte) int {
	body := f.enc.Append(nil, b)
	out, err := f.dec.Decode(nil, body)
	if err != nil || string(out) != string(b) {
		f.s.t.Fatal(err, len(out))
	}
	if err := f.enc.Ack(f.dec.AppendAck(nil)); err != nil {
		f.s.t.Fatal(err)
	}
	return len(body)
}

// hexDigits are what the secret consists of.
const hexDigits = "0123456789abcdef"

// attack tries to learn a secret that stands behind text the attacker knows: it
// sends the text with one more byte guessed at a time through a stream of its own
// and takes the guess that came out smallest. The attacker has patience: each try
// is made when the victim has just sent its page and older tries are forgotten. It
// returns how many bytes of the secret it got right in a row.
func attack(t *testing.T, rule config.StreamRule, many bool, known, secret, page []byte, tries int) int {
	r := rand.New(rand.NewPCG(1, 2))
	rounds := tries / (len(hexDigits) * len(secret))
	guessed := append([]byte(nil), known...)
	for range secret {
		s := newSide(t)
		size := make(map[rune]int)
		best := rune(hexDigits[0])
		for _, c := range hexDigits {
			for range rounds {
				s.forget()
				s.stream(rule, many).send(page)
				text := append(guessed[:len(guessed):len(guessed)], byte(c))
				for range 40 { // what follows is noise
					text = append(text, byte(r.Uint32()))
				}
				size[c] += s.stream(rule, many).send(text)
			}
			if size[c] < size[best] {
				best = c
			}
		}
		guessed = append(guessed, byte(best))
	}
	return common(guessed[len(known):], secret)
}

// common is how many bytes at the beginning are the same.
func common(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// TestSizeOracle holds what sizes tell about other streams. In the default
// settings, and in a domain of many tenants, the tries do not recover a secret of
// 16 bytes, nor more than luck of it. The control is a domain of one tenant,
// where they recover much of it, as far as the rounding of sizes to bytes lets
// them: the attack works where it may. STITCH_LONG=1
// makes 2^16 tries instead of 2^10.
func TestSizeOracle(t *testing.T) {
	tries := 1 << 10
	if os.Getenv("STITCH_LONG") != "" {
		tries = 1 << 16
	}
	r := rand.New(rand.NewPCG(7, 7))
	known := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n")
	for len(known) < 4000 {
		known = fmt.Appendf(known, "X-Header-%d: value %d\r\n", r.IntN(1e6), r.IntN(1e6))
	}
	known = append(known, "Set-Cookie: session="...)
	secret := make([]byte, 16)
	for i := range secret {
		secret[i] = hexDigits[r.IntN(16)]
	}
	page := append(append(append([]byte(nil), known...), secret...), "; HttpOnly\r\n\r\nand the rest of the page"...)
	for _, c := range []struct {
		name        string
		rule        config.StreamRule
		many        bool
		least, most int
	}{
		{"default", config.StreamRule{Optimize: config.Full}, false, 0, 2},
		{"compress", config.StreamRule{Optimize: config.Compress}, false, 0, 2},
		{"domain of many tenants", config.StreamRule{Optimize: config.Full, Domain: "d"}, true, 0, 2},
		{"control: domain of one tenant", config.StreamRule{Optimize: config.Full, Domain: "d"}, false, 6, 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := attack(t, c.rule, c.many, known, secret, page, tries); got < c.least || got > c.most {
				t.Errorf("%d bytes of the secret were recovered, want %d to %d", got, c.least, c.most)
			}
		})
	}
}

package stream

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
)

// Dialler does the dialling side's handshake with a token, whatever the
// listener's is; nil means that the listener has accepted it.
func Dialler(c Conn, token [32]byte) error {
	c.SetDeadline(time.Now().Add(time.Minute))
	mine := strangerHello().append(nil)
	c.Write(appendFrame(nil, frameHello, mine))
	_, theirs, err := readFrame(c, nil)
	if err != nil {
		return err
	}
	mac := helloMAC(&token, diallerLabel, mine, theirs[:len(theirs)-macLen])
	c.Write(appendFrame(nil, frameAuth, mac[:]))
	c.Write(appendFrame(nil, frameResync, dedupe.NewHistory(1<<20).Summary()))
	for _, want := range []frameType{frameResync, frameReady} {
		if t, _, err := readFrame(c, nil); err != nil || t != want {
			return errors.Join(io.ErrUnexpectedEOF, err)
		}
	}
	return nil
}

// strangerHello is the hello of a process whose history nobody knows.
func strangerHello() hello {
	return hello{Min: minVersion, Max: maxVersion, Offered: ourFeatures, ConnID: 1, Epoch: 77, Domain: "lab"}
}

// Ask sends a hello changed by edit, and returns the reason it was rejected
// for; "" if it was not.
func Ask(c Conn, token [32]byte, edit func(*Hello)) (reason string, err error) {
	c.SetDeadline(time.Now().Add(time.Minute))
	h := strangerHello()
	edit(&Hello{&h})
	mine := h.append(nil)
	c.Write(appendFrame(nil, frameHello, mine))
	t, body, err := readFrame(c, nil)
	if err != nil || t != frameReject {
		return "", err
	}
	return parseReject(body, &token, mine).Error(), nil
}

// Hello lets a test write a hello.
type Hello struct{ h *hello }

// Versions sets the versions spoken, Require adds a feature that the other side
// must have, Domain names the domain.
func (h *Hello) Versions(least, most uint8) { h.h.Min, h.h.Max = least, most }
func (h *Hello) Require(bit uint64)         { h.h.Required |= features(bit); h.h.Offered |= features(bit) }
func (h *Hello) Offer(bit uint64)           { h.h.Offered |= features(bit) }
func (h *Hello) Domain(name string)         { h.h.Domain = name }

// Flood opens a stream on a connection of Dialler and sends n blocks, or until
// the other side ends it; it returns how many bytes were sent by then.
func Flood(c Conn, src, dst netip.AddrPort, n int) (sent int, err error) {
	c.Write(appendFrame(nil, frameOpen, openRequest{Window: minWindow, Src: src, Dst: dst}.append(nil)))
	for _, want := range []frameType{frameDialing, frameOpened} {
		if t, _, err := readFrame(c, nil); err != nil || t != want {
			return 0, errors.Join(errFrame, err)
		}
	}
	enc, data := block.NewEncoder(nil, 1, block.Options{}), make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{}).Read(data)
	for range n {
		body := enc.Append(nil, data)
		if _, err := c.Write(appendFrame(nil, frameData, body)); err != nil {
			return sent, err
		}
		sent += len(data)
	}
	for {
		if t, _, err := readFrame(c, nil); err != nil || t == frameReset {
			return sent, errors.Join(errReset, err)
		}
	}
}

var errReset = errors.New("the other side ended it")

// ListenerHello does the listening side's handshake with a token; nil means that
// the dialler has shown its own.
func ListenerHello(c Conn, token [32]byte) error {
	c.SetDeadline(time.Now().Add(time.Minute))
	_, theirs, err := readFrame(c, nil)
	if err != nil {
		return err
	}
	peer, err := parseHello(theirs)
	if err != nil {
		return err
	}
	h := strangerHello()
	h.Domain = peer.Domain
	mine := h.append(nil)
	mac := helloMAC(&token, listenerLabel, theirs, mine)
	c.Write(appendFrame(nil, frameWelcome, append(mine[:len(mine):len(mine)], mac[:]...)))
	_, _, err = readFrame(c, nil)
	return err
}

// Frame is a frame with a body of n bytes.
func Frame(n int) []byte { return appendFrame(nil, frameData, make([]byte, n)) }

// FrameReader returns a function that reads the next frame from a connection of
// another agent and returns the length of its body.
func FrameReader(c Conn) func() (int, error) {
	pc := newPeerConn(c, func(f func()) { go f() })
	return func() (int, error) {
		_, body, err := readFrame(&pc.whole, nil)
		return len(body), err
	}
}

// Histories are those shared with a peer.
func (p *Proxy) Histories(peer string) (out []*dedupe.History) {
	q := p.byName[peer]
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.domains {
		out = append(out, d.history)
	}
	return out
}

// SetBack puts in the place of each history shared with a peer what change makes
// of it, and ends the connections, without telling anybody.
func (p *Proxy) SetBack(peer string, change func(*dedupe.History) *dedupe.History) {
	q := p.byName[peer]
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.domains {
		d.history = change(d.history)
		d.dropConns()
	}
}

// LoseHistory gives every connection there is to a peer an empty history
// without telling anybody: what damage to the memory would do.
func (p *Proxy) LoseHistory(peer string) {
	q := p.byName[peer]
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.domains {
		for pc := range d.conns {
			pc.history = dedupe.NewHistory(d.history.Size())
		}
	}
}

// Connections is how many connections to a peer are on the account.
func (p *Proxy) Connections(peer string) (n int) {
	q := p.byName[peer]
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.domains {
		n += len(d.conns)
	}
	return n
}

// Loops are the locks of what Prove asks after, by name.
func (p *Proxy) Loops() map[string]*sync.Mutex {
	out := map[string]*sync.Mutex{
		"hold device": &p.holding, "listener": &p.accepting, "table": &p.mu, "gate": &p.gate.mu,
	}
	for _, q := range p.peers {
		out["peer "+q.link.Peer] = &q.mu
	}
	return out
}

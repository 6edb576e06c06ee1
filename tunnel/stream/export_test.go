package stream

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
)

// Dialler does the dialling side's handshake with a token, whatever the
// listener's is; nil means that the listener has accepted it.
func Dialler(c Conn, token [32]byte) error {
	c.SetDeadline(time.Now().Add(time.Minute))
	mine := hello{ConnID: 1, Epoch: 77, History: 1 << 20}.append(nil)
	c.Write(appendFrame(nil, frameHello, mine))
	_, theirs, err := readFrame(c, nil)
	if err != nil {
		return err
	}
	mac := helloMAC(&token, diallerLabel, mine, theirs[:helloLen])
	c.Write(appendFrame(nil, frameAuth, mac[:]))
	t, _, err := readFrame(c, nil)
	if err == nil && t != frameReady {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Flood opens a stream on a connection of Dialler and sends n blocks, or until
// the other side ends it; it returns how many bytes were sent by then.
func Flood(c Conn, src, dst netip.AddrPort, n int) (sent int, err error) {
	c.Write(appendFrame(nil, frameOpen, openRequest{minWindow, src, dst}.append(nil)))
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
	mine := hello{ConnID: 1, Epoch: 77, History: 1 << 20}.append(nil)
	mac := helloMAC(&token, listenerLabel, theirs, mine)
	c.Write(appendFrame(nil, frameWelcome, append(mine, mac[:]...)))
	_, _, err = readFrame(c, nil)
	return err
}

// LoseHistory gives every connection there is to a peer an empty history
// without telling anybody: what damage to the memory would do.
func (p *Proxy) LoseHistory(peer string) {
	q := p.byName[peer]
	q.mu.Lock()
	defer q.mu.Unlock()
	for pc := range q.conns {
		pc.history = dedupe.NewHistory(q.history.Size())
	}
}

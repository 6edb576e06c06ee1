package block_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

// message is a body, an ack or a nack on the way.
type message struct {
	kind byte
	body []byte
}

// TestConcurrent runs four connections each way over rings that wrap all the
// time, each with a goroutine that sends, one that receives, and one that takes
// the answers: no wrong byte, whatever is recycled meanwhile (D-18).
func TestConcurrent(t *testing.T) {
	a := blocktest.NewAgents(small)
	var wg sync.WaitGroup
	misses := make([]int64, 8)
	for i := range 8 {
		from, to := a.A, a.B
		if i%2 == 1 {
			from, to = to, from
		}
		wg.Go(func() {
			var err error
			if misses[i], err = carry(from, to, uint64(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("misses %v", misses)
}

// carry sends 150 blocks over one connection and checks what arrives.
func carry(from, to *dedupe.History, id uint64) (misses int64, err error) {
	enc, dec := newEncoder(from, id), newDecoder(to, id)
	defer enc.Close()
	defer dec.Close()
	var blocks [][]byte
	m := newMaterial(1) // the same pool for everyone
	m.r = rand.New(rand.NewPCG(id, 6))
	size := 0
	for range 150 {
		b := m.any()
		blocks = append(blocks, b)
		size += len(b)
	}
	forth, back := make(chan message, 8), make(chan message, 1000)
	resend := make(chan []byte, 1000)
	var wg sync.WaitGroup
	wg.Go(func() { takeAnswers(enc, back, resend) })
	wg.Go(func() { sendAll(enc, blocks, resend, forth) })
	err = receiveAll(dec, bytes.Join(blocks, nil), forth, back)
	close(back)
	for range forth { // let the sender finish after an error
	}
	wg.Wait()
	if err != nil {
		return 0, fmt.Errorf("connection %d: %w", id, err)
	}
	return dec.Stats().Resent, nil
}

func sendAll(enc *block.Encoder, blocks [][]byte, resend <-chan []byte, forth chan<- message) {
	defer close(forth)
	for i, b := range blocks {
		enc.Pin(levels[i%len(levels)])
		forth <- message{'d', enc.Append(nil, b)}
		select {
		case r := <-resend:
			forth <- message{'d', r}
		default:
		}
	}
	for r := range resend { // closed when the receiver has everything
		forth <- message{'d', r}
	}
}

func takeAnswers(enc *block.Encoder, back <-chan message, resend chan<- []byte) {
	defer close(resend)
	for m := range back {
		if m.kind == 'a' {
			_ = enc.Ack(m.body)
			continue
		}
		if body, err := enc.Resend(nil, m.body); err == nil {
			resend <- body
		} else {
			resend <- []byte{} // the receiver reports it
		}
	}
}

func receiveAll(dec *block.Decoder, want []byte, forth <-chan message, back chan<- message) error {
	at := 0
	for at < len(want) {
		m, ok := <-forth
		if !ok {
			return errors.New("the sender stopped")
		}
		out, err := dec.Decode(nil, m.body)
		if at+len(out) > len(want) || !bytes.Equal(out, want[at:at+len(out)]) {
			return fmt.Errorf("wrong bytes behind %d", at)
		}
		at += len(out)
		switch {
		case errors.Is(err, block.ErrMiss):
			back <- message{'n', dec.AppendNack(nil)}
		case err != nil:
			return err
		default:
			back <- message{'a', dec.AppendAck(nil)}
		}
	}
	return nil
}

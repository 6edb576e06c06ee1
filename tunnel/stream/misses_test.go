package stream

import (
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
)

// TestMisses: a stream whose blocks are being repaired, one after the other, goes on for as
// long as blocks between them are good, though these wait behind repaired ones; in
// the control none is, and after maxMisses of them both sides start again.
func TestMisses(t *testing.T) {
	random := func(seed uint64, n int) []byte {
		b := make([]byte, n)
		rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
		return b
	}
	const blocks, size = 2 * maxMisses, 8 << 10
	known := random(1, blocks*size)
	for _, between := range []bool{true, false} {
		here := dedupe.NewHistory(4 << 20)
		first := block.NewEncoder(here, 1, block.Options{})
		defer first.Close()
		first.Append(nil, known[:len(known)/2])
		first.Append(nil, known[len(known)/2:])
		if err := first.Ack([]byte{2}); err != nil {
			t.Fatal(err)
		}
		enc := block.NewEncoder(here, 2, block.Options{})
		defer enc.Close()
		local, host := kernelPair(t)
		conn, agent := kernelPair(t)
		go io.Copy(io.Discard, agent)
		go io.Copy(io.Discard, host)
		pc := newPeerConn(conn, func(f func()) { go f() })
		pc.id, pc.domain, pc.history = 2, &domain{name: "lab"}, dedupe.NewHistory(4<<20) // which lacks it
		r := newRelay(tuple{}, false, local, pc, modeFull, startWindow, &buffers{shop: block.NewShop(1)}, func(f func()) { go f() })
		restarts := 0
		r.desync = func() { restarts++ }
		var bodies [][]byte
		total := 0
		for i := range blocks {
			src := [][]byte{known[i*size:][:size], random(uint64(2+i), 100)}
			for _, b := range src[:1+map[bool]int{true: 1}[between]] {
				bodies = append(bodies, enc.Append(nil, b))
				total += len(b)
			}
		}
		var err error
		for i := 0; i < len(bodies) && err == nil; i++ {
			err = r.decode(bodies[i])
		}
		for err == nil && r.dec.Missing() {
			body, failed := enc.Resend(nil, r.dec.AppendNack(nil))
			if failed != nil {
				t.Fatal(failed)
			}
			err = r.decode(body)
		}
		if between && (err != nil || restarts > 0 || int(r.received.Load()) != total) {
			t.Errorf("%v, %d bytes of %d, %d restarts", err, r.received.Load(), total, restarts)
		}
		if !between && (!errors.Is(err, errDesync) || restarts != 1) {
			t.Errorf("control: %v, %d restarts", err, restarts)
		}
		r.abort(false)
		r.tasks.Wait()
		r.enc.Close()
		r.dec.Close()
	}
}

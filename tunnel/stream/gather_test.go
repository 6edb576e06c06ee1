package stream_test

import (
	"io"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/stream"
	"stitch/tunnel/stream/streamtest"
)

// reads counts the reads of a connection. Hasty, it is woken by whatever arrives.
type reads struct {
	stream.Conn
	hasty bool
	n     int
}

func (r *reads) Read(b []byte) (int, error) {
	r.n++
	return r.Conn.Read(b)
}

func (r *reads) Gather(n int) error {
	if r.hasty {
		return nil
	}
	return r.Conn.Gather(n)
}

// TestGather: a long frame that comes packet by packet is not read packet by packet,
// and what follows it, however short, is read at once. In the control it is.
func TestGather(t *testing.T) {
	for _, hasty := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			near, far := streamtest.Pipe(netip.AddrPort{}, netip.AddrPort{}, 1<<20, time.Millisecond)
			counted := &reads{Conn: near, hasty: hasty}
			const packet, size = 1400, 200 << 10
			long, short := stream.Frame(size), stream.Frame(100)
			go func() {
				for range 2 {
					for rest := long; len(rest) > 0; rest = rest[min(packet, len(rest)):] {
						far.Write(rest[:min(packet, len(rest))])
						time.Sleep(100 * time.Microsecond)
					}
					time.Sleep(time.Second)
					far.Write(short)
					time.Sleep(time.Second)
				}
				far.Write(long[:size/2])
				far.Close()
			}()
			next := stream.FrameReader(counted)
			for i := range 4 {
				began := time.Now()
				n, err := next()
				if want := []int{size, 100}[i%2]; n != want || err != nil {
					t.Fatalf("frame %d: %d bytes, %v", i, n, err)
				}
				if took := time.Since(began); i%2 == 1 && took > time.Second+time.Millisecond {
					t.Errorf("a short frame behind a long one took %v", took)
				}
			}
			if _, err := next(); err == nil || err == io.EOF {
				t.Errorf("half a frame and a reset: %v", err)
			}
			if few := counted.n <= 20; few == hasty {
				t.Errorf("hasty %v: %d reads", hasty, counted.n)
			}
		})
	}
}

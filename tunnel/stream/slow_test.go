package stream_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/stream"
)

// TestSlowHello is H-12: somebody at the peer's address connects and says nothing, or
// a byte a second. Either is over within 10 s, however many there are, and the
// next one that says hello is listened to. That one is the control case too.
func TestSlowHello(t *testing.T) {
	bubble(t, time.Millisecond, func(w *world) {
		for name, drip := range map[string]bool{"nothing": false, "a byte a second": true} {
			start := time.Now()
			var conns []stream.Conn
			var tasks sync.WaitGroup
			for range 20 {
				c, err := w.fabric.Site(edge1).DialPeer(context.Background(), w.a.link, config.StreamPort)
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
				tasks.Go(func() {
					for ; drip; time.Sleep(time.Second) {
						if _, err := c.Write([]byte{1}); err != nil {
							return
						}
					}
				})
			}
			for i, c := range conns {
				_ = c.SetReadDeadline(start.Add(20 * time.Second))
				n, err := c.Read(make([]byte, 1))
				if took := time.Since(start); n > 0 || err == nil || took > 10*time.Second {
					t.Errorf("%s: connection %d: %d bytes, %v after %v", name, i, n, err, took)
				}
				c.Close()
			}
			tasks.Wait()
			c, err := w.fabric.Site(edge1).DialPeer(context.Background(), w.a.link, config.StreamPort)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Dialler(c, w.a.link.Token); err != nil {
				t.Errorf("after %s: %v", name, err)
			}
			c.Close()
		}
	})
}

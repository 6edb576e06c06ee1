package stream_test

import (
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/stream"
)

// TestFlowsOfStreams: a stream says at either end how it is carried, how it
// began, and how far it has come.
func TestFlowsOfStreams(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		near := func(port uint16) (f stream.Flow) {
			for _, f := range w.a.proxy.Flows(100).Flows {
				if f.Dst.Port() == port {
					return f
				}
			}
			return f
		}
		for _, c := range []struct {
			port                     uint16
			send, carried, handshake string
			reason                   stream.Reason
		}{
			{4000, "hello", "full", "faithful", 0},
			{5000, "hello", "full", "early", 0},
			{6100, "hello", "compress", "faithful", 0},
			{6200, "hello", "accelerate", "faithful", stream.RuleAccelerates},
			{4001, "SSH-2.0-x\r\n", "accelerate", "faithful", stream.Encrypted},
		} {
			a, _ := w.split(c.port)
			a.Write([]byte(c.send))
			time.Sleep(time.Second)
			f := near(c.port)
			if f.Carried != c.carried || f.Reason != c.reason || f.Handshake != c.handshake || f.State != "open" ||
				f.BytesOut != int64(len(c.send)) || f.WireOut == 0 || f.Age < 0.5 || f.Side != "near" || f.Peer != "dc2" {
				t.Errorf("port %d: %+v", c.port, f)
			}
			a.CloseWrite()
			synctest.Wait()
			if f := near(c.port); f.State != "half-closed" {
				t.Errorf("port %d, after one end: %+v", c.port, f)
			}
		}
		if l := w.b.proxy.Flows(100); len(l.Flows) != 5 || l.Flows[0].Side != "far" || l.Flows[0].Handshake != "" {
			t.Errorf("the other site: %+v", l)
		}
	})
}

// TestFlowsOfPackets: why a SYN was passed is known long after it; what the
// kernel routes elsewhere is not listed.
func TestFlowsOfPackets(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		w.a.net.Routes = map[netip.Addr]string{server: "st-dc2"}
		forward := func(src netip.AddrPort, to netip.AddrPort) {
			w.a.net.Forwarded = append(w.a.net.Forwarded, stream.Tracked{Proto: 6, Src: src, Dst: to, At: to})
		}
		passed := func(port uint16) {
			dst := netip.AddrPortFrom(server, port)
			w.fabric.Serve(dst)
			if _, _, err := w.connect(dst); err != nil {
				t.Fatal(err)
			}
			forward(netip.AddrPortFrom(client, w.nextSrc), dst)
		}
		passed(7000)
		passed(6400)
		w.b.kill()
		time.Sleep(10 * time.Second)
		passed(4002)
		w.b.start()
		time.Sleep(10 * time.Minute)
		forward(netip.AddrPortFrom(edge1, 5), netip.AddrPortFrom(server, 4003))
		forward(netip.AddrPortFrom(client, 5), netip.AddrPortFrom(server, 4004))
		forward(netip.AddrPortFrom(client, 5), netip.AddrPortFrom(edge2, 4005)) // the peer's subnet, but no route to it
		got := map[uint16]stream.Reason{}
		for _, f := range w.a.proxy.Flows(100).Flows {
			got[f.Dst.Port()] = f.Reason
		}
		want := map[uint16]stream.Reason{7000: stream.NoDialRule, 6400: stream.OtherDomain, 4002: stream.PeerUnreachable, 4003: stream.FromEdge, 4004: stream.BegunEarlier}
		if !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// TestFlowsOfHeld: a connection whose SYN waits for the far server's answer is
// no packet flow yet, though the kernel tracks it without the mark of a stream.
// Control: another tuple of the same rule is one.
func TestFlowsOfHeld(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		w.a.net.Routes = map[netip.Addr]string{server: "st-dc2"}
		dst := netip.AddrPortFrom(server, 4000)
		w.fabric.Serve(dst)
		tracked := func(port uint16) stream.Tracked {
			return stream.Tracked{Proto: 6, Src: netip.AddrPortFrom(client, port), Dst: dst, At: dst}
		}
		w.a.net.Forwarded = []stream.Tracked{tracked(w.nextSrc + 1), tracked(5)}
		done := make(chan error, 1)
		go func() {
			_, _, err := w.connect(dst)
			done <- err
		}()
		time.Sleep(5 * time.Millisecond)
		if l := w.a.proxy.Flows(100).Flows; len(l) != 1 || l[0].Src.Port() != 5 || l[0].Reason != stream.BegunEarlier {
			t.Errorf("%+v", l)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

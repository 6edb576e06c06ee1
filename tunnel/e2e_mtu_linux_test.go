package tunnel_test

import (
	"encoding/json"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"stitch/tunnel/lab"
)

// TestE2EBlackHole: the path begins to swallow datagrams above 1400 bytes and
// says nothing. Connections on the link and on the segment that were opened
// before go on, in packets that fit. The control case is the same connections
// before, in packets that fill 1500 bytes.
func TestE2EBlackHole(t *testing.T) {
	l := world(t, lab.Options{Rate: 100e6, RTT: 20 * time.Millisecond})
	flows := map[string]*atomic.Int64{
		"link":    flow(t, l, "h1", "h2", "10.2.0.10:7001"),
		"segment": flow(t, l, "s1", "s2", "10.1.0.12:7001"),
	}
	progress := func(when string) {
		for name, n := range flows {
			from := n.Load()
			eventually(t, 30*time.Second, "the "+name+"'s connection goes on "+when, func() bool { return n.Load() > from+1<<20 })
		}
	}
	progress("before")
	for _, edge := range []string{"e1", "e2"} {
		if got := innerMTU(t, l, edge); got != 1440 {
			t.Errorf("%s sends packets of %d bytes before, want 1440", edge, got)
		}
	}
	for _, edge := range []string{"e1", "e2"} {
		run(t, l, edge, "nft", "add table inet hole { chain in { type filter hook prerouting priority -400; iifname wan0 udp length > 1380 drop; }; }")
	}
	start := time.Now()
	eventually(t, 30*time.Second, "both ends send packets that fit", func() bool {
		return innerMTU(t, l, "e1") == 1328 && innerMTU(t, l, "e2") == 1328
	})
	t.Logf("found out in %v", time.Since(start).Round(10*time.Millisecond))
	progress("after")
}

// innerMTU is the largest packet an edge sends in one datagram.
func innerMTU(t *testing.T, l *lab.Lab, edge string) int {
	t.Helper()
	var s struct {
		InnerMTU int `json:"inner_mtu"`
	}
	if err := json.Unmarshal(status(t, l, edge).Links[0].Detail, &s); err != nil {
		t.Fatal(err)
	}
	return s.InnerMTU
}

// flow sends over TCP from one host to another until the test ends; it counts
// what arrives.
func flow(t *testing.T, l *lab.Lab, from, to, addr string) *atomic.Int64 {
	t.Helper()
	ln := listen(t, l, to, addr)
	n := new(atomic.Int64)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(counter{n}, c) // ends with the test
	}()
	var c net.Conn
	eventually(t, 10*time.Second, "a connection to "+addr, func() (ok bool) {
		var err error
		c, err = dial(l, from, addr)
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	return n
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

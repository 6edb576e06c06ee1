package traffic

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pair joins a client and a server through conns; spoil may change what the
// client receives.
func pair(t *testing.T, spoil func([]byte)) (client net.Conn, served *Meter, end chan error) {
	t.Helper()
	near, far := net.Pipe()
	served = NewMeter("server", time.Second)
	end = make(chan error, 1)
	go func() { end <- ServeConn(far, served, 100*time.Millisecond) }()
	if spoil == nil {
		return near, served, end
	}
	return &spoiled{Conn: near, spoil: spoil}, served, end
}

type spoiled struct {
	net.Conn
	spoil func([]byte)
}

func (s *spoiled) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	s.spoil(b[:n])
	return n, err
}

func TestRunUntilStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, served, end := pair(t, nil)
		m := NewMeter("client", time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second+time.Millisecond)
		defer cancel()
		load := Load{Pace: 100 * time.Millisecond, Sizes: Sizes(5), Stall: time.Minute}
		if err := NewClient(conn, 5, m).Run(ctx, load); err != nil {
			t.Fatal(err)
		}
		if err := <-end; err != nil {
			t.Fatalf("server: %v", err)
		}
		c, s := m.Snapshot(), served.Snapshot()
		if c.Requests < 100 || c.Requests != s.Requests {
			t.Errorf("client made %d requests, server saw %d, want 100 or 101", c.Requests, s.Requests)
		}
		if c.BytesIn != s.BytesOut || c.BytesOut != s.BytesIn {
			t.Errorf("bytes: client %d in, %d out; server %d in, %d out", c.BytesIn, c.BytesOut, s.BytesIn, s.BytesOut)
		}
		if !c.Exact() || !s.Exact() || c.Up || s.Up {
			t.Errorf("client %+v, server %+v", c, s)
		}
	})
}

func TestWrongAnswerEndsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := 0
		conn, _, end := pair(t, func(b []byte) {
			if seen < 5000 && seen+len(b) >= 5000 {
				b[5000-seen-1] ^= 1
			}
			seen += len(b)
		})
		m := NewMeter("client", time.Second)
		load := Load{Pace: time.Millisecond, Sizes: Sizes(1), Stall: time.Minute}
		if err := NewClient(conn, 1, m).Run(t.Context(), load); !errors.Is(err, ErrWrong) {
			t.Fatalf("got %v, want ErrWrong", err)
		}
		<-end
		if s := m.Snapshot(); s.Wrong != 1 || s.Resets != 1 || s.Exact() {
			t.Errorf("meter %+v", s)
		}
	})
}

func TestWrongRequestIsToldToTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, served, end := pair(t, nil)
		h := header{magic: magicRequest, length: 10, arg: 4, id: 3}
		go conn.Write(append(h.append(nil), "not-what-w"...))
		b := make([]byte, headerSize+4)
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatal(err)
		}
		if a, err := parseHeader(b, magicAnswer); err != nil || a.arg != 1 {
			t.Errorf("answer %+v, %v, want arg 1", a, err)
		}
		if err := <-end; !errors.Is(err, ErrWrong) {
			t.Errorf("server: %v, want ErrWrong", err)
		}
		if served.Snapshot().Wrong != 1 {
			t.Errorf("meter %+v", served.Snapshot())
		}
	})
}

func TestStallIsAGapAtBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slept := false
		conn, served, end := pair(t, func([]byte) {
			if !slept {
				slept = true
				time.Sleep(3 * time.Second)
			}
		})
		m := NewMeter("client", time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		load := Load{Pace: 100 * time.Millisecond, Sizes: Sizes(1), Stall: time.Minute}
		if err := NewClient(conn, 1, m).Run(ctx, load); err != nil {
			t.Fatal(err)
		}
		<-end
		if g := m.Gaps(); len(g) != 1 || g[0].Length != 3*time.Second {
			t.Errorf("client's gaps %v, want one of 3 s", g)
		}
		if l := served.Snapshot().Longest; l != 2900*time.Millisecond {
			t.Errorf("server's longest gap %v, want 2.9s", l)
		}
	})
}

func TestCutConnectionCountsAsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go func() {
			io.ReadFull(far, make([]byte, 10))
			far.Close()
		}()
		m := NewMeter("client", time.Second)
		load := Load{Pace: time.Millisecond, Sizes: Sizes(1), Stall: time.Minute}
		if err := NewClient(near, 1, m).Run(t.Context(), load); err == nil {
			t.Error("no error")
		}
		if m.Snapshot().Resets != 1 {
			t.Errorf("meter %+v", m.Snapshot())
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	f.Add(header{magic: magicRequest, length: 5, arg: 9, id: 1, off: 7}.append(nil))
	f.Add([]byte("STQ1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b, magicRequest)
		if err != nil {
			return
		}
		if h.length > MaxBody || string(h.append(nil)) != string(b[:headerSize]) {
			t.Errorf("%x gave %+v", b, h)
		}
	})
}

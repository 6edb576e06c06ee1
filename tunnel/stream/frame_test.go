package stream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stitch/tunnel/stream/block"
)

var update = flag.Bool("update", false, "rewrite the golden vectors: then read the difference")

// golden holds what two releases must agree on.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("..", "..", "testdata", "wire", "stream-"+name+".hex")
	if *update {
		if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != hex.Dump(got) {
		t.Errorf("%s changed:\n%swant\n%s", path, hex.Dump(got), want)
	}
}

func testHello() hello {
	h := hello{ConnID: 0x1122334455667788, Epoch: 0xa1a2a3a4a5a6a7a8, History: 256 << 20}
	for i := range h.Nonce {
		h.Nonce[i] = byte(i)
	}
	return h
}

func testTuple(v6 bool) tuple {
	if v6 {
		return tuple{netip.MustParseAddrPort("[fd00:1::10]:40000"), netip.MustParseAddrPort("[fd00:2::10]:4444")}
	}
	return tuple{netip.MustParseAddrPort("10.1.0.10:40000"), netip.MustParseAddrPort("10.2.0.10:4444")}
}

func TestGoldenFrames(t *testing.T) {
	token := [32]byte{1, 2, 3}
	dialler, listener := testHello(), testHello()
	listener.Epoch++
	d, l := dialler.append(nil), listener.append(nil)
	golden(t, "hello", appendFrame(nil, frameHello, d))
	mac := helloMAC(&token, listenerLabel, d, l)
	golden(t, "welcome", appendFrame(nil, frameWelcome, append(l[:helloLen:helloLen], mac[:]...)))
	mac = helloMAC(&token, diallerLabel, d, l)
	golden(t, "auth", appendFrame(nil, frameAuth, mac[:]))
	golden(t, "ready", appendFrame(nil, frameReady, nil))
	for name, v6 := range map[string]bool{"open4": false, "open6": true} {
		k := testTuple(v6)
		golden(t, name, appendFrame(nil, frameOpen, openRequest{minWindow, k.src, k.dst}.append(nil)))
	}
	golden(t, "opened", appendOpened(nil, minWindow))
	golden(t, "refused", appendFrame(nil, frameRefused, []byte{byte(HostUnreachable)}))
	golden(t, "credit", appendCount(nil, frameCredit, 1<<40+5))
	golden(t, "fin", appendCount(nil, frameFin, 7))
	golden(t, "done", appendCount(nil, frameDone, 7))
	golden(t, "reset", appendFrame(nil, frameReset, nil))
}

func TestFrameBounds(t *testing.T) {
	for typ := range 256 {
		lo, hi, ok := bodyBounds(frameType(typ))
		for _, n := range []int{0, 1, lo - 1, lo, hi, hi + 1, 1<<24 - 1} {
			if n < 0 || n >= 1<<24 {
				continue
			}
			_, got, err := parseHeader([4]byte{byte(typ), byte(n >> 16), byte(n >> 8), byte(n)})
			if good := ok && lo <= n && n <= hi; good != (err == nil) || good && got != n {
				t.Errorf("type %d, %d bytes: %d, %v", typ, n, got, err)
			}
			if err != nil && !errors.Is(err, errFrame) {
				t.Errorf("type %d: %v does not wrap errFrame", typ, err)
			}
		}
	}
	if maxBody >= 1<<24 {
		t.Error("a block does not fit into a frame")
	}
}

func TestReadFrameTruncated(t *testing.T) {
	whole := appendFrame(nil, frameOpen, openRequest{1, testTuple(false).src, testTuple(false).dst}.append(nil))
	for n := range whole {
		_, _, err := readFrame(bytes.NewReader(whole[:n]), nil)
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", n, err, want)
		}
	}
}

func TestParseOpen(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		k := testTuple(v6)
		want := openRequest{Window: 12345, Src: k.src, Dst: k.dst}
		body := want.append(nil)
		if got, err := parseOpen(body); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		for n := range body {
			if _, err := parseOpen(body[:n]); err == nil {
				t.Errorf("%d of %d bytes are taken", n, len(body))
			}
		}
		if _, err := parseOpen(append(body, 0)); err == nil {
			t.Error("one byte more is taken")
		}
	}
	mapped := netip.MustParseAddrPort("[::ffff:10.1.0.1]:80")
	body := openRequest{Src: testTuple(true).src, Dst: testTuple(true).dst}.append(nil)
	copy(body[5:], mapped.Addr().AsSlice())
	if _, err := parseOpen(body); err == nil {
		t.Error("IPv4 inside IPv6 is taken")
	}
}

func TestRefusal(t *testing.T) {
	for k := RefusedByServer; k <= Unable; k++ {
		if got := parseRefusal([]byte{byte(k)}); got != k || strings.HasPrefix(k.String(), "kind") {
			t.Errorf("%v: %v", k, got)
		}
	}
	for _, b := range [][]byte{nil, {0}, {byte(Unable) + 1}, {255}, {1, 1}} {
		if got := parseRefusal(b); got != Unable {
			t.Errorf("%v: %v", b, got)
		}
	}
}

func TestHello(t *testing.T) {
	want := testHello()
	b := want.append(nil)
	if got, err := parseHello(b); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range b {
		if _, err := parseHello(b[:n]); err == nil {
			t.Errorf("%d bytes are taken", n)
		}
	}
	for name, i := range map[string]int{"magic": 0, "version": 4} {
		bad := bytes.Clone(b)
		bad[i]++
		if _, err := parseHello(bad); err == nil {
			t.Errorf("wrong %s is taken", name)
		}
	}
	zero := want
	zero.Epoch = 0
	if _, err := parseHello(zero.append(nil)); err == nil {
		t.Error("epoch 0 is taken")
	}
	reserved := bytes.Clone(b)
	reserved[5] = 9
	if _, err := parseHello(reserved); err != nil {
		t.Error("reserved bytes are not ignored:", err)
	}
}

func TestHelloMAC(t *testing.T) {
	token, other := [32]byte{1}, [32]byte{2}
	d, l := []byte("dialler"), []byte("listener")
	mac := helloMAC(&token, listenerLabel, d, l)
	if !validMAC(&token, listenerLabel, d, l, mac[:]) {
		t.Error("right MAC refused")
	}
	bad := mac
	bad[31] ^= 1
	for name, ok := range map[string]bool{
		"other token":   validMAC(&other, listenerLabel, d, l, mac[:]),
		"other role":    validMAC(&token, diallerLabel, d, l, mac[:]),
		"other dialler": validMAC(&token, listenerLabel, []byte("diallex"), l, mac[:]),
		"swapped":       validMAC(&token, listenerLabel, l, d, mac[:]),
		"one bit":       validMAC(&token, listenerLabel, d, l, bad[:]),
		"empty":         validMAC(&token, listenerLabel, d, l, nil),
	} {
		if ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestEpochs walks through restarts, in every order of the two sides' hellos:
// they must agree on one pair of epochs after a few connections, and a pair
// must never be met by a history that has known another.
func TestEpochs(t *testing.T) {
	type side struct {
		epochs
		fresh uint64
	}
	for order := range 1 << 10 {
		a, b := &side{epochs{1, 0}, 100}, &side{epochs{2, 0}, 200}
		connect := func(d, l *side) bool {
			own, theirs := d.own, l.own
			for _, s := range []struct {
				s    *side
				peer uint64
			}{{d, theirs}, {l, own}} {
				if !s.s.accept(s.peer) {
					s.s.fresh++
					s.s.restart(s.s.fresh)
					return false
				}
			}
			return l.tie(theirs, own) && d.tie(own, theirs)
		}
		restart := func(s *side) {
			s.fresh += 50
			s.restart(s.fresh)
		}
		if !connect(a, b) || !connect(b, a) {
			t.Fatal("two fresh sides do not meet")
		}
		switch order & 3 {
		case 1:
			restart(a)
		case 2:
			restart(b)
		case 3:
			restart(a)
			restart(b)
		}
		failures := 0
		for bit := 2; bit < 10; bit++ {
			d, l := a, b
			if order>>bit&1 == 1 {
				d, l = b, a
			}
			if !connect(d, l) {
				failures++
			}
		}
		if failures > 2 || a.peer != b.own || b.peer != a.own {
			t.Errorf("order %b: %d failures, %+v %+v", order, failures, a, b)
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, frameHello, testHello().append(nil)))
	f.Add(appendFrame(nil, frameOpen, openRequest{1, testTuple(true).src, testTuple(true).dst}.append(nil)))
	f.Add(appendCount(nil, frameCredit, 99))
	f.Add(appendFrame(nil, frameData, bytes.Repeat([]byte{7}, 100)))
	f.Add([]byte{20, 255, 255, 255, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		typ, body, err := readFrame(bytes.NewReader(in), make([]byte, 0, 64))
		if err != nil {
			return
		}
		if len(body) > block.MaxFrame {
			t.Fatalf("body of %d bytes", len(body))
		}
		if again := appendFrame(nil, typ, body); !bytes.Equal(again, in[:len(again)]) {
			t.Fatalf("%x became %x", in, again)
		}
		if o, err := parseOpen(body); typ == frameOpen && err == nil && !bytes.Equal(o.append(nil), body) {
			t.Fatalf("open %x became %x", body, o.append(nil))
		}
		if h, err := parseHello(body); typ == frameHello && err == nil {
			if again, err := parseHello(h.append(nil)); err != nil || again != h {
				t.Fatalf("hello %x became %+v", body, again)
			}
		}
	})
}

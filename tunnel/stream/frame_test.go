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
	"reflect"
	"strings"
	"testing"

	"stitch/dedupe"
	"stitch/tunnel/bench/far"
	"stitch/tunnel/config"
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
	h := hello{
		Min: 1, Max: 2, Tenants: true, Offered: 0x0f, Required: 0x01, ConnID: 0x1122334455667788,
		Epoch: 0xa1a2a3a4a5a6a7a8, Tied: 0xb1b2b3b4b5b6b7b8, Domain: "migration", Received: 0xc1c2c3c4c5c6c7c8,
	}
	for i := range h.Nonce {
		h.Nonce[i] = byte(i)
	}
	return h
}

func testPlanting() *planting {
	p := &planting{Index: 7}
	for _, b := range []dedupe.Block{
		{TxHead: 1 << 20, RxHead: 99, Spans: [2]dedupe.Span{{Pos: 4096, Len: 262144}}},
		{TxHead: 2 << 20, RxHead: 100, Spans: [2]dedupe.Span{{Pos: 266240, Len: 1000}, {Pos: 1 << 20, Len: 261144}}},
	} {
		p.add(&b)
	}
	return p
}

func testTuple(v6 bool) tuple {
	if v6 {
		return tuple{src: netip.MustParseAddrPort("[fd00:1::10]:40000"), dst: netip.MustParseAddrPort("[fd00:2::10]:4444")}
	}
	return tuple{src: netip.MustParseAddrPort("10.1.0.10:40000"), dst: netip.MustParseAddrPort("10.2.0.10:4444")}
}

func TestGoldenFrames(t *testing.T) {
	token := [32]byte{1, 2, 3}
	dialler, listener := testHello(), testHello()
	listener.Epoch++
	d, l := dialler.append(nil), listener.append(nil)
	golden(t, "hello", appendFrame(nil, frameHello, d))
	mac := helloMAC(&token, listenerLabel, d, l)
	golden(t, "welcome", appendFrame(nil, frameWelcome, append(l[:len(l):len(l)], mac[:]...)))
	mac = helloMAC(&token, diallerLabel, d, l)
	golden(t, "auth", appendFrame(nil, frameAuth, mac[:]))
	golden(t, "ready", appendFrame(nil, frameReady, nil))
	golden(t, "reject", appendFrame(nil, frameReject, appendReject(nil, &token, d, errTerms)))
	golden(t, "resync", appendFrame(nil, frameResync, []byte("a summary of package dedupe")))
	for name, v6 := range map[string]bool{"open4": false, "open6": true} {
		k := testTuple(v6)
		golden(t, name, appendFrame(nil, frameOpen, openRequest{Window: minWindow, Mode: modeCompress, Src: k.src, Dst: k.dst}.append(nil)))
	}
	k := testTuple(false)
	golden(t, "open-segment", appendFrame(nil, frameOpen, openRequest{
		Window: minWindow, Src: k.src, Dst: k.dst, Segment: 100, SrcMAC: config.MAC{2, 0x53, 0x54, 1, 0, 0x11}, DstMAC: config.MAC{2, 0x53, 0x54, 1, 0, 0x12},
	}.append(nil)))
	piece, other := digest{1, 2, 3}, digest{4, 5, 6}
	golden(t, "offer", appendFrame(nil, frameOffer, append(piece[:], other[:]...)))
	golden(t, "have", appendFrame(nil, frameHave, []byte{byte(pieceKnown), byte(piecePlanted)}))
	golden(t, "plant", appendFrame(nil, framePlant, testPlanting().append(nil)))
	golden(t, "planted", appendFrame(nil, framePlanted, []byte{1}))
	golden(t, "bench", appendFrame(nil, frameBench, benchRequest{startWindow, far.Echo}.append(nil)))
	golden(t, "opened", appendOpened(nil, minWindow))
	golden(t, "refused", appendFrame(nil, frameRefused, []byte{byte(HostUnreachable)}))
	golden(t, "credit", appendCount(nil, frameCredit, 1<<40+5))
	golden(t, "fin", appendCount(nil, frameFin, 7))
	golden(t, "urgent", appendCount(nil, frameUrgent, 7))
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
	whole := appendFrame(nil, frameOpen, openRequest{Window: 1, Src: testTuple(false).src, Dst: testTuple(false).dst}.append(nil))
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
	k := testTuple(false)
	want := openRequest{Src: k.src, Dst: k.dst, Segment: 100, SrcMAC: config.MAC{2, 1}, DstMAC: config.MAC{2, 2}}
	if got, err := parseOpen(want.append(nil)); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if _, err := parseOpen(append(openRequest{Src: k.src, Dst: k.dst}.append(nil), make([]byte, openSegment)...)); err == nil {
		t.Error("segment 0 is taken")
	}
	mapped := netip.MustParseAddrPort("[::ffff:10.1.0.1]:80")
	body := openRequest{Src: testTuple(true).src, Dst: testTuple(true).dst}.append(nil)
	copy(body[6:], mapped.Addr().AsSlice())
	if _, err := parseOpen(body); err == nil {
		t.Error("IPv4 inside IPv6 is taken")
	}
	body = openRequest{Mode: modeAccelerate + 1, Src: testTuple(false).src, Dst: testTuple(false).dst}.append(nil)
	if _, err := parseOpen(body); err == nil {
		t.Error("an unknown mode is taken")
	}
}

// TestPlanting: blocks come out of a PLANT as they went in, as long as it says,
// and nothing else is taken.
func TestPlanting(t *testing.T) {
	p := testPlanting()
	want := []dedupe.Span{{Pos: 4096, Len: 263144}, {Pos: 1 << 20, Len: 261144}}
	if !reflect.DeepEqual(p.Spans, want) {
		t.Fatalf("joined to %+v", p.Spans)
	}
	body := p.append(nil)
	got, err := parsePlanting(body)
	if err != nil || !reflect.DeepEqual(&got, p) {
		t.Errorf("%+v, %v", got, err)
	}
	piece := bytes.Repeat([]byte("abcdefg"), 524288/7+1)[:524288]
	var put []byte
	if err := got.blocks(piece, func(b []byte, at *dedupe.Block) error {
		if len(b) > dedupe.MaxBlock || at.Spans[0].Len != len(b) || at.TxHead != 2<<20 || at.RxHead != 100 {
			t.Errorf("block of %d bytes at %+v", len(b), at)
		}
		put = append(put, b...)
		return nil
	}); err != nil || !bytes.Equal(put, piece) {
		t.Errorf("%d bytes, %v", len(put), err)
	}
	if err := got.blocks(piece[1:], nil); !errors.Is(err, errFrame) {
		t.Errorf("a shorter piece: %v", err)
	}
	large := planting{TxHead: 8 << 20, Spans: []dedupe.Span{{Pos: 0, Len: pieceSize}, {Pos: 2 << 20, Len: 1}}}
	backwards := planting{TxHead: 10, Spans: []dedupe.Span{{Pos: 8, Len: 3}}}
	many := planting{TxHead: 8 << 20}
	for i := range uint64(maxSpans + 1) {
		many.Spans = append(many.Spans, dedupe.Span{Pos: 10 * i, Len: 1})
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "no stretch": body[:6], "cut": body[:len(body)-1], "more than a piece": large.append(nil),
		"beyond the head": backwards.append(nil), "too many": many.append(nil), "no end": append(body[:2:2], 0xff, 0xff),
	} {
		if got, err := parsePlanting(b); !errors.Is(err, errFrame) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if n := len(many.append(nil)); n > maxPlanting {
		t.Errorf("%d bytes", n)
	}
}

func TestRefusal(t *testing.T) {
	for k := RefusedByServer; k <= Mismatch; k++ {
		if got := parseRefusal([]byte{byte(k)}); got != k || strings.HasPrefix(k.String(), "kind") {
			t.Errorf("%v: %v", k, got)
		}
	}
	for _, b := range [][]byte{nil, {0}, {byte(Mismatch) + 1}, {255}, {1, 1}} {
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
	named := len(b) - 8
	for n := range named {
		if _, err := parseHello(b[:n]); err == nil {
			t.Errorf("%d bytes are taken", n)
		}
	}
	old := want
	old.Received = 0
	if got, err := parseHello(b[:named]); err != nil || got != old {
		t.Errorf("of an older release: %+v, %v", got, err)
	}
	bad := bytes.Clone(b)
	bad[0]++
	if _, err := parseHello(bad); err == nil {
		t.Error("wrong magic is taken")
	}
	for name, edit := range map[string]func(*hello){
		"epoch 0":            func(h *hello) { h.Epoch = 0 },
		"versions backwards": func(h *hello) { h.Min = h.Max + 1 },
		"long name":          func(h *hello) { h.Domain = strings.Repeat("x", maxDomain+1) },
	} {
		h := want
		edit(&h)
		if _, err := parseHello(h.append(nil)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	reserved := bytes.Clone(b)
	reserved[6] = 9
	if got, err := parseHello(append(reserved, "of a later version"...)); err != nil || got != want {
		t.Error("reserved bits and what later versions append are not ignored:", err)
	}
	if _, err := parseHello(make([]byte, maxHello+1)); err == nil {
		t.Error("too long a hello is taken")
	}
}

// TestNegotiate holds what two agents make of each other's hello: the same on
// both sides.
func TestNegotiate(t *testing.T) {
	base := hello{Min: 2, Max: 4, Offered: 0b0111, Required: 0b0001, Domain: "d"}
	for name, c := range map[string]struct {
		edit func(*hello)
		want terms
		err  string
	}{
		"the same":                    {func(*hello) {}, terms{4, 0b0111, false}, ""},
		"older":                       {func(h *hello) { h.Min, h.Max, h.Offered = 1, 3, 0b0011 }, terms{3, 0b0011, false}, ""},
		"newer, unknown features":     {func(h *hello) { h.Min, h.Max, h.Offered = 3, 9, 0b110111 }, terms{4, 0b0111, false}, ""},
		"too old":                     {func(h *hello) { h.Min, h.Max = 1, 1 }, terms{}, "have a version in common"},
		"too new":                     {func(h *hello) { h.Min, h.Max = 5, 9 }, terms{}, "have a version in common"},
		"lacks what we require":       {func(h *hello) { h.Offered = 0b0110 }, terms{}, "features 0x1 are required"},
		"requires what we don't know": {func(h *hello) { h.Offered, h.Required = 0b10111, 0b10000 }, terms{}, "features 0x10 are required"},
		"many tenants there":          {func(h *hello) { h.Tenants = true }, terms{4, 0b0111, true}, ""},
		"another domain":              {func(h *hello) { h.Domain = "e" }, terms{}, "domain"},
	} {
		peer := base
		c.edit(&peer)
		for _, pair := range [][2]hello{{base, peer}, {peer, base}} {
			got, err := negotiate(pair[0], pair[1])
			if got != c.want || (err != nil) != (c.err != "") || err != nil && (!strings.Contains(err.Error(), c.err) || !errors.Is(err, errTerms)) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
	}
}

func TestReject(t *testing.T) {
	token, other, dialler := [32]byte{1}, [32]byte{2}, []byte("hello")
	body := appendReject(nil, &token, dialler, errors.New(strings.Repeat("why ", 100)))
	if len(body) != macLen+maxReason {
		t.Errorf("%d bytes", len(body))
	}
	if err := parseReject(body, &token, dialler); !errors.Is(err, errTerms) || !strings.Contains(err.Error(), "why why") {
		t.Error(err)
	}
	if err := parseReject(body, &other, dialler); !errors.Is(err, errAuth) {
		t.Error("a reason of somebody else is believed:", err)
	}
	if err := parseReject(body[:macLen-1], &token, dialler); !errors.Is(err, errAuth) {
		t.Error(err)
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

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, frameHello, testHello().append(nil)))
	f.Add(appendFrame(nil, frameOpen, openRequest{Window: 1, Src: testTuple(true).src, Dst: testTuple(true).dst}.append(nil)))
	f.Add(appendFrame(nil, frameOpen, openRequest{Window: 1, Src: testTuple(true).src, Dst: testTuple(true).dst, Segment: 100, SrcMAC: config.MAC{2}}.append(nil)))
	f.Add(appendCount(nil, frameCredit, 99))
	f.Add(appendFrame(nil, frameData, bytes.Repeat([]byte{7}, 100)))
	f.Add(appendFrame(nil, framePlant, testPlanting().append(nil)))
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
		if p, err := parsePlanting(body); typ == framePlant && err == nil {
			if again, err := parsePlanting(p.append(nil)); err != nil || !reflect.DeepEqual(again, p) {
				t.Fatalf("plant %x became %+v", body, again)
			}
		}
		if h, err := parseHello(body); typ == frameHello && err == nil {
			if again, err := parseHello(h.append(nil)); err != nil || again != h {
				t.Fatalf("hello %x became %+v", body, again)
			}
		}
	})
}

// TestBenchRequest: a request for a service that does not exist is no frame, and a
// peer that did not offer to be measured is not asked.
func TestBenchRequest(t *testing.T) {
	for s := range 256 {
		r := benchRequest{Window: 1 << 20, Service: far.Service(s)}
		got, err := parseBench(r.append(nil))
		if known := far.Service(s).String() != ""; known != (err == nil) || known && got != r {
			t.Errorf("service %d: %+v, %v", s, got, err)
		}
	}
	if _, err := parseBench([]byte{0, 0, 0, 1}); !errors.Is(err, errFrame) {
		t.Errorf("too short: %v", err)
	}
	old := &peerConn{domain: &domain{q: &peer{link: Link{Peer: "dc2"}}}, terms: terms{Features: ourFeatures &^ featureBench}}
	if _, err := old.requestBench(far.Sink); !errors.Is(err, ErrBench) || !strings.Contains(err.Error(), "release of dc2") {
		t.Errorf("an older peer: %v", err)
	}
}

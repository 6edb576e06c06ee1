package stream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/field"
)

// bump writes a value with one of its numbers greater by one, or one of its lists
// shorter by one.
type bump struct {
	field.Writer
	number, list   int // which; -1: none
	numbers, lists int // so far
}

func (b *bump) Number(v *uint64, most uint64) {
	n := *v
	if b.numbers == b.number {
		n++
	}
	b.numbers++
	b.Writer.Number(&n, most)
}

func (b *bump) Count(n int) int {
	if b.lists == b.list && n > 0 {
		n--
	}
	b.lists++
	return b.Writer.Count(n)
}

// sealed gives fields the frame of an encoded state.
func sealed(fields []byte) []byte {
	b := append(append([]byte(stateMagic), stateVersion), fields...)
	return binary.LittleEndian.AppendUint64(b, xxh3.Hash(b))
}

// altered encodes a state with one number, or one list, altered.
func altered(s *State, number, list int) (state []byte, numbers, lists int) {
	b := &bump{number: number, list: list}
	s.fields(b)
	return sealed(b.Out), b.numbers, b.lists
}

// outcome is what an altered state led to.
type outcome uint8

const (
	harmless outcome = iota // every byte arrived, and the ends
	noStreams
	wasReset
	stalled
)

// goOn resumes side 0 of a stream with blocks unacknowledged and bytes for its host,
// its state altered, and lets it end.
func goOn(t *testing.T, alter func(*State) []byte) outcome {
	d := newDuo(t, false)
	j := d.open(modeFull)
	d.ask(j, 0, 1, 0, 1000)
	d.ask(j, 1, 2, 0, 1000)
	d.ask(j, 0, 1, 1000, 2000)
	j.gates[0].Lock()
	d.must(say(j.hosts[0], 1, 2000, 4000))
	r := d.agents[0].p.relays()[0]
	d.await("it is sent", func() bool { return r.sent.Load() == 4000 })
	var state []byte
	streams := d.pack(d.agents[0], func(s *State) { state = alter(s) })
	d.renew(d.agents[0])
	s := streams[0]
	err := d.agents[0].unpack(state, s.local, s.peer)
	j.gates[0].Unlock()
	if errors.Is(err, ErrState) {
		return noStreams
	}
	d.must(err)
	ends := make(chan error, 4)
	var wrote [2]error
	said := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	for i, from := range [2]uint64{4000, 1000} {
		id := uint64(1 + i)
		go func() {
			wrote[i] = cmpErr(say(j.hosts[i], id, from, from+5000), j.hosts[i].CloseWrite())
			close(said[i])
			ends <- wrote[i]
		}()
		go func() {
			at := uint64(1000) // direction 1
			if i == 0 {
				at = 2000
			}
			j.hosts[1-i].SetReadDeadline(time.Now().Add(3 * time.Second))
			got, err := hearAsIs(j, 1-i, id, at)
			if err == nil && got != from+5000 {
				// When a write has taken a reset's error, a read says "end of stream".
				if <-said[1-i]; wrote[1-i] != nil {
					ends <- wrote[1-i]
					return
				}
				err = fmt.Errorf("%w: direction %d ends at %d", errWrong, i, got)
			}
			ends <- err
		}()
	}
	result := harmless
	for range cap(ends) {
		switch err := <-ends; {
		case errors.Is(err, errWrong):
			t.Error(err)
		case errors.Is(err, os.ErrDeadlineExceeded):
			result = stalled
		case err != nil && result == harmless:
			result = wasReset
		}
	}
	return result
}

// hearAsIs is hear to the end, with the deadline there is.
func hearAsIs(j *splice, host int, id, from uint64) (uint64, error) {
	buf := make([]byte, 16<<10)
	for {
		n, err := j.hosts[host].Read(buf)
		for _, b := range buf[:n] {
			if b != content(id, from) {
				return from, fmt.Errorf("%w at %d of %d", errWrong, from, id)
			}
			from++
		}
		if err != nil {
			if err == io.EOF {
				return from, nil
			}
			return from, err
		}
	}
}

// TestStateAltered: a state that is wrong by one in any number, or that lacks an
// element of any list, is refused, or the stream is reset or goes on as it should:
// never is a byte wrong, or an end too early. The control is the state as it is.
func TestStateAltered(t *testing.T) {
	var numbers, lists int
	as := func(number, list int) func(*State) []byte {
		return func(s *State) (b []byte) {
			b, numbers, lists = altered(s, number, list)
			return b
		}
	}
	if got := goOn(t, as(-1, -1)); got != harmless {
		t.Fatalf("control: outcome %d", got)
	}
	var count [stalled + 1]int
	step := 1
	if os.Getenv("STITCH_LONG") == "" {
		step = 3
		t.Log("every third number only: all with STITCH_LONG=1")
	}
	for i, all := 0, numbers+lists; i < all; i += step {
		number, list := i, -1
		if i >= numbers {
			number, list = -1, i-numbers
		}
		t.Run(fmt.Sprintf("number %d list %d", number, list), func(t *testing.T) {
			n := goOn(t, as(number, list))
			if count[n]++; n != noStreams {
				t.Logf("outcome %d", n)
			}
		})
	}
	t.Logf("%d harmless, %d refused, %d reset, %d stalled", count[harmless], count[noStreams], count[wasReset], count[stalled])
}

// TestStateMatters: what says how far a stream has come cannot be wrong unnoticed.
func TestStateMatters(t *testing.T) {
	for name, alter := range map[string]func(*State){
		"bytes sent":              func(s *State) { s.sent++ },
		"bytes received":          func(s *State) { s.received++ },
		"bytes written":           func(s *State) { s.written++ },
		"a byte for the host":     func(s *State) { s.queue = append(s.queue, 'x') },
		"the connection's number": func(s *State) { s.connID++ },
		"an end that was not":     func(s *State) { s.finSeen, s.finTotal = true, s.received },
		"a frame that waits":      func(s *State) { s.unsent = append(s.unsent, 255) },
		"a frame that is read":    func(s *State) { s.unread = append(s.unread, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			got := goOn(t, func(s *State) []byte {
				alter(s)
				return s.Append(nil)
			})
			if got == harmless {
				t.Error("nobody noticed")
			}
		})
	}
}

// goldenState is a state with everything in it: a stream under repair at this end.
func goldenState(t testing.TB) *State {
	at := block.Options{Lines: true}
	ha, hb := dedupe.NewHistory(1<<20), dedupe.NewHistory(1<<20)
	known := make([]byte, 1160)
	for i := range known {
		known[i] = content(1, uint64(i))
	}
	enc, dec := block.NewEncoder(ha, 6, at), block.NewDecoder(hb, 6, nil)
	out := uint64(0)
	take := func(body []byte) {
		got, err := dec.Decode(nil, body)
		if err != nil && !errors.Is(err, block.ErrMiss) {
			t.Fatal(err)
		}
		out += uint64(len(got))
	}
	take(enc.Append(nil, known))
	dedupeForget(hb)
	take(enc.Append(nil, known)) // missed
	take(enc.Append(nil, append(known[:500:500], "new"...)))
	back := block.NewEncoder(hb, 6, at)
	back.Append(nil, []byte("an answer of this side"))
	e, err := back.State()
	if err != nil {
		t.Fatal(err)
	}
	dst, err := dec.State()
	if err != nil {
		t.Fatal(err)
	}
	s := &State{
		Peer: "dc1", Domain: "lab", Src: netip.MustParseAddrPort("10.1.0.10:40000"), Dst: netip.MustParseAddrPort("10.2.0.10:80"),
		Segment: 100, SrcMAC: [6]byte{2, 0, 0, 0, 0, 1}, DstMAC: [6]byte{2, 0, 0, 0, 0, 2}, Age: time.Minute,
		terms: terms{Version: maxVersion, Features: ourFeatures, Tenants: true}, connID: 6, epochs: epochs{11, 12}, heads: [2]uint64{4096, 8192},
		progress: progress{
			sendMax: startWindow, grant: *newCredit(time.Time{}), marks: []uint64{out + 7}, written: out - 5, acked: out - 9,
			finSeen: true, finTotal: out + uint64(len(known)) + 503, missing: true, misses: 1,
		},
		round: time.Second, sent: 22, received: out, wireIn: 1000, wireOut: 500, seen: 22, head: []byte("SSH"), rate: 1e6,
		queue: []byte("hello"), unsent: appendCount(nil, frameCredit, 2<<20), unread: []byte{byte(frameData), 0},
		enc: e, dec: dst,
	}
	named, err := hb.NewWriter(dedupe.WriterOptions{}).State()
	if err != nil {
		t.Fatal(err)
	}
	w := &fixed{number: named.Instance}
	s.fields(w)
	if s, err = ParseState(sealed(w.Out)); err != nil {
		t.Fatal(err)
	}
	return s
}

// fixed writes a value with 77 in the place of a number that is random.
type fixed struct {
	field.Writer
	number uint64
}

func (f *fixed) Number(v *uint64, most uint64) {
	n := *v
	if n == f.number {
		n = 77
	}
	f.Writer.Number(&n, most)
}

// stateFile has a recorded state, in hex.
var stateFile = filepath.Join("..", "..", "testdata", "wire", "stream-state.hex")

// TestStateGolden: a state that this release has written can be read by the next, and
// is written as it was.
func TestStateGolden(t *testing.T) {
	if *update {
		text := hex.EncodeToString(goldenState(t).Append(nil))
		if err := os.WriteFile(stateFile, []byte(strings.Join(slices.Collect(lined(text)), "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(stateFile)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseState(encoded)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Append(nil), encoded) {
		t.Error("encoded again it is another one")
	}
	want := goldenState(t)
	if s.Src != want.Src || s.SrcMAC != want.SrcMAC || s.Age != want.Age || string(s.queue) != "hello" || !s.dec.Missing() || s.enc.Kept() != 1 {
		t.Errorf("%+v", s)
	}
	for n := range encoded {
		if _, err := ParseState(encoded[:n]); !errors.Is(err, ErrState) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
		bad := bytes.Clone(encoded)
		bad[n] ^= 1
		if _, err := ParseState(bad); !errors.Is(err, ErrState) {
			t.Fatalf("byte %d altered: %v", n, err)
		}
	}
}

// lined cuts text into lines.
func lined(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for len(text) > 0 {
			n := min(len(text), 96)
			if !yield(text[:n] + "\n") {
				return
			}
			text = text[n:]
		}
	}
}

// TestStateMemory: what is said to be long takes no memory unless it is there.
func TestStateMemory(t *testing.T) {
	plain := goldenState(t).Append(nil)
	fields := plain[len(stateMagic)+1 : len(plain)-8]
	big := binary.AppendUvarint(nil, 1<<40)
	var before, after runtime.MemStats
	for n := range fields {
		b := sealed(append(append(bytes.Clone(fields[:n]), big...), fields[n:]...))
		runtime.ReadMemStats(&before)
		_, err := ParseState(b)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 512<<10 {
			t.Errorf("a great number at %d: %d bytes taken (%v)", n, got, err)
		}
	}
}

// FuzzState gives ParseState any fields: no panic, and what is a state encodes to
// itself, and its codec can be resumed and used.
func FuzzState(f *testing.F) {
	plain := goldenState(f).Append(nil)
	f.Add(plain[len(stateMagic)+1 : len(plain)-8])
	f.Fuzz(func(t *testing.T, fields []byte) {
		s, err := ParseState(sealed(fields))
		if err != nil {
			return
		}
		again, err := ParseState(s.Append(nil))
		if err != nil || !bytes.Equal(again.Append(nil), s.Append(nil)) {
			t.Fatalf("it does not encode to itself: %v", err)
		}
		h := dedupe.NewHistory(1 << 20)
		if err := h.Continue(s.heads[0], s.heads[1]); err != nil {
			return
		}
		o := block.Options{}
		enc, err := block.ResumeEncoder(h, s.connID, o, s.enc)
		if err != nil {
			return
		}
		defer enc.Close()
		dec := block.ResumeDecoder(h, s.connID, nil, s.dec)
		defer dec.Close()
		enc.Ack(enc.Append(nil, []byte("hello"))[:1])
		enc.Resend(nil, []byte{1, 0})
		dec.AppendNack(nil)
		dec.Decode(nil, enc.Append(nil, []byte("hello")))
	})
}

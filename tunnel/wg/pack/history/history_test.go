package history

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files; look at the difference before committing it")

// TestVectors holds the messages to the bytes in testdata/wire.
func TestVectors(t *testing.T) {
	const file = "../../../../testdata/wire/packet-history.txt"
	note := Note{Record: Record{0x01020304, 7}, TCP: 0xfffffff0, Len: MinRecord + 1, Flow: 0x1112131415161718}
	report := Report{Size: 64, Instance: 0x21222324, Epoch: 0x01020304, Top: 9, Missed: []uint32{3, 7}}
	report.Held[0], report.Held[63] = 0x85, 0x80
	tokens := []Token{{Lit: 300, Len: 256, Seq: 7, At: 64}, {Len: 65472, Seq: 9}}
	got := "# Messages of the history of packets (package tunnel/wg/pack/history): name, bytes. The\n" +
		"# references are one of 256 bytes from 64 of record 7, behind 300 literals, and\n" +
		"# one of 65472 from 0 of record 9, both counted back from 9.\n" +
		fmt.Sprintf("note %x\nreport %x\nreferences %x\n", note.Append(nil), report.Append(nil), AppendTokens(nil, tokens, 9))
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != got {
		t.Errorf("%v\n%swant\n%s", err, got, want)
	}
	if back, ok := ParseNote(note.Append(nil)); !ok || back != note {
		t.Errorf("%+v is read as %+v", note, back)
	}
	back, ok := ParseReport(report.Append(nil))
	if !ok || back.Held != report.Held || back.Size != 64 || back.Instance != report.Instance || back.Epoch != report.Epoch || back.Top != 9 || len(back.Missed) != 2 || back.Missed[1] != 7 {
		t.Errorf("%+v is read as %+v", report, back)
	}
	rest := AppendTokens(nil, tokens, 9)
	for _, want := range tokens {
		var k Token
		if k, rest, ok = next(rest, 9); !ok || k != want {
			t.Errorf("%+v is read as %+v", want, k)
		}
	}
	for name, b := range map[string][]byte{
		"a short note":               note.Append(nil)[:NoteLen-1],
		"a record that is too short": (&Note{Len: MinRecord - 1}).Append(nil),
		"a record that is too long":  (&Note{Len: MaxRecord + 1}).Append(nil),
	} {
		if _, ok := ParseNote(b); ok {
			t.Errorf("%s is taken", name)
		}
	}
	for _, b := range [][]byte{nil, {0}, {0, 0, 0, 0}, bytes.Repeat([]byte{255}, 40), AppendTokens(nil, []Token{{Len: 1}, {Len: MaxRecord}}, 0)} {
		if n, ok := Covered(b, 1000); ok && n > 0 {
			t.Errorf("%x covers %d bytes", b, n)
		}
	}
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// ends are a sender and its receiver.
type ends struct {
	s *Sender
	r *Receiver
}

func newEnds(rng *rand.Rand) *ends {
	return &ends{NewSender(MinSize, rng.Uint32()), NewReceiver(MinSize, rng.Uint32())}
}

// cross makes b a record that both have and the sender knows of.
func (e *ends) cross(b []byte, group uint64) {
	rec := e.s.Open(len(b), group)
	if e.s.Append(rec, b) != len(b) {
		panic("no room in a new record")
	}
	e.r.Watch(Note{Record: rec, Len: len(b), Flow: 1})
	e.r.Saw(1, 0, b)
	e.s.Reported(e.r.Report())
}

// size is what a payload takes: its tokens and literals.
func (e *ends) size(p []byte, group uint64) int {
	var last Source
	_, base := e.s.Base()
	tokens := e.s.Match(p, group, &last)
	n, _ := e.s.Found()
	return len(AppendTokens(nil, tokens, base)) + len(p) - n
}

// naive is how many bytes of p lie in runs of whole lines of records of the group,
// minMatch bytes at least.
func naive(s *Sender, records []uint32, p []byte, group uint64) (n int) {
	covered := make([]bool, len(p))
	for _, seq := range records {
		rec := s.ring.get(seq)
		if rec == nil || rec.state != held || rec.group != group || s.ring.age(rec) > s.most {
			continue
		}
		src := s.ring.bytes(rec)
		for at := range p {
			for from := int(rec.phase); from+minMatch <= len(src); from += line {
				if at+minMatch <= len(p) && bytes.Equal(p[at:at+minMatch], src[from:from+minMatch]) {
					for i := range minMatch {
						covered[at+i] = true
					}
				}
			}
		}
	}
	for _, c := range covered {
		if c {
			n++
		}
	}
	return n
}

// TestMatchTwin holds the matcher against one that compares everything: what it
// finds is legal and equal, and it finds most of what there is. Each payload comes
// out of the receiver as it was.
func TestMatchTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	found, there := 0, 0
	for range 30 {
		e := newEnds(rng)
		var pool []byte
		var records []uint32
		for i := range 4 {
			b := random(rng, MinRecord+rng.IntN(4000))
			e.cross(b, uint64(i%2))
			records = append(records, e.s.seq)
			pool = append(pool, b...)
		}
		for range 3 {
			var p []byte
			for range 3 {
				p = append(p, random(rng, rng.IntN(700))...)
				at := rng.IntN(len(pool) - 3000)
				p = append(p, pool[at:at+rng.IntN(3000)]...)
			}
			var last Source
			_, base := e.s.Base()
			tokens := e.s.Match(p, 1, &last)
			n, _ := e.s.Found()
			var literals []byte
			at, sum := 0, 0
			for _, k := range tokens {
				rec := e.s.ring.get(k.Seq)
				if rec == nil || rec.group != 1 || k.Len < minMatch || k.Len%line != 0 || (k.At-int(rec.phase))%line != 0 {
					t.Fatalf("%+v is not legal", k)
				}
				literals = append(literals, p[at:at+k.Lit]...)
				at += k.Lit + k.Len
				sum += k.Len
			}
			literals = append(literals, p[at:]...)
			b := AppendTokens(nil, tokens, base)
			if c, ok := Covered(b, len(p)); !ok || c != n || sum != n {
				t.Fatalf("%d bytes found, %d in tokens, %d covered (%v)", n, sum, c, ok)
			}
			if got, ok := e.r.Expand([]byte("head"), b, literals, base); !ok || !bytes.Equal(got[4:], p) {
				t.Fatal("what comes out is not what went in")
			}
			found, there = found+n, there+naive(e.s, records, p, 1)
		}
	}
	t.Logf("%d of %d bytes", found, there)
	if found > there || found < there*8/10 {
		t.Errorf("%d of %d bytes found", found, there)
	}
}

// TestSizeOracle is S-G9 for what crosses as packets. A secret is in a record, with
// text around it that the attacker knows. He has each value of its next byte sent
// behind that text and looks at the sizes. From another host all are the same. From
// the same one the right value shows only if a line happens to end behind it, once
// in 64 records. In the control any byte may end a match, and it always shows.
func TestSizeOracle(t *testing.T) {
	const tries = 300
	rng := rand.New(rand.NewPCG(2, 2))
	shows := func(group uint64, step int, crafted bool) (n int) {
		for range tries {
			e := newEnds(rng)
			e.s.line = step
			page := random(rng, MinRecord)
			from, at := 0, 4096+rng.IntN(1000)
			if end, ok := lonely(page); crafted && ok {
				from, at = end-700, end-1
			}
			e.cross(page, 1)
			sizes := make([]int, 0, 8)
			for i := range 8 { // 0 is right
				guess := append(bytes.Clone(page[:at]), page[at]+byte(i), '~', '~')
				clear(guess[:from])
				guess[at+1], guess[at+2] = page[at+1]+1, page[at+2]+1
				sizes = append(sizes, e.size(guess, group))
			}
			for _, s := range sizes[1:] {
				if s != sizes[0] {
					n++
					break
				}
			}
		}
		return n
	}
	for _, crafted := range []bool{false, true} {
		if n := shows(2, line, crafted); n > 0 {
			t.Errorf("crafted %v: another host learns %d of %d", crafted, n, tries)
		}
		if n := shows(1, line, crafted); n > tries/64*5 {
			t.Errorf("crafted %v: the same host learns %d of %d", crafted, n, tries)
		}
		if n := shows(1, 1, crafted); n < tries/2 {
			t.Errorf("crafted %v: the control shows only %d of %d", crafted, n, tries)
		}
	}
}

// lonely returns where the window of an anchor ends before which is none for long.
func lonely(page []byte) (end int, ok bool) {
	before := 0
	for _, a := range scan(nil, page, 0, len(page)) {
		end = int(a.at) + 1
		if end-before > 600 && end > 1000 && end < len(page)-64 {
			return end, true
		}
		before = end
	}
	return 0, false
}

// TestForgottenIsNotReferredTo: what the receiver may have let go of is not
// referred to, whichever of the two histories is smaller.
func TestForgottenIsNotReferredTo(t *testing.T) {
	for _, size := range []int{MinSize, 4 * MinSize} {
		rng := rand.New(rand.NewPCG(3, 3))
		e := &ends{NewSender(4*MinSize/size*MinSize, 7), NewReceiver(size, 8)}
		var all [][]byte
		misses, found := 0, 0
		for i := range 400 {
			b := random(rng, MinRecord+rng.IntN(MaxRecord-MinRecord))
			all = append(all, b)
			e.cross(b, 1)
			for range 3 {
				p := all[rng.IntN(len(all))][:MinRecord]
				var last Source
				_, base := e.s.Base()
				tokens := AppendTokens(nil, e.s.Match(p, 1, &last), base)
				n, _ := e.s.Found()
				found += n
				if _, ok := e.r.Expand(nil, tokens, p[:len(p)-n], base); !ok {
					misses++
				}
			}
			if len(all) > 100 {
				all = all[1:]
			}
			if i == 0 && found == 0 {
				t.Error("nothing is found")
			}
		}
		if misses > 0 || found == 0 {
			t.Errorf("receiver of %d bytes: %d misses, %d bytes found", size, misses, found)
		}
	}
}

// TestPieces: a record is whole when all of it came, in any order, more than once,
// over the end of TCP's sequence numbers; and never before.
func TestPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	whole := 0
	for round := range 300 {
		r := NewReceiver(MinSize, 1)
		b := random(rng, MinRecord+rng.IntN(20000))
		tcp := -uint32(rng.IntN(2 * len(b)))
		r.Watch(Note{Record: Record{5, 1}, TCP: tcp, Len: len(b), Flow: 9})
		var order []int
		step := 1000 + rng.IntN(3000)
		for at := 0; at < len(b); at += step {
			order = append(order, at)
		}
		missing := -1
		if round%3 == 0 {
			missing = order[rng.IntN(len(order))]
		}
		for range rng.IntN(6) { // a few change places
			i, j := rng.IntN(len(order)), rng.IntN(len(order))
			order[i], order[j] = order[j], order[i]
		}
		for _, at := range order {
			if at == missing {
				continue
			}
			r.Saw(8, tcp+uint32(at), random(rng, 100)) // another flow's
			r.Saw(9, tcp+uint32(at), b[at:min(at+step, len(b))])
		}
		got, ok := r.Get(1, 0, len(b))
		if ok && (missing >= 0 || !bytes.Equal(got, b)) {
			t.Fatalf("round %d: %d bytes of which %d are missing", round, len(b), missing)
		}
		if ok {
			whole++
		}
	}
	if whole < 150 {
		t.Errorf("only %d of 200 were put together", whole)
	}
}

// TestEpochs: an epoch that is over does not come again, and a restart of either
// end makes the other one forget.
func TestEpochs(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	e := newEnds(rng)
	b := random(rng, MinRecord)
	e.cross(b, 1)
	full := e.size(random(rng, MinRecord), 1)
	if e.size(b, 1) > full/10 {
		t.Fatal("nothing is found")
	}
	late := e.r.Report()
	old := e.s.epoch
	e.r = NewReceiver(MinSize, rng.Uint32())
	e.r.Enter(old)
	e.s.Reported(e.r.Report())
	if e.s.epoch == old || e.size(b, 1) != full {
		t.Error("the sender refers to what a receiver that began anew had")
	}
	e.s.Reported(late)
	if e.size(b, 1) != full {
		t.Error("a late report of another epoch counts")
	}
	e.cross(b, 1)
	if e.size(b, 1) > full/10 {
		t.Error("nothing is found afterwards")
	}
	if e.r.Enter(old) {
		t.Error("an epoch comes again")
	}
}

// TestSourceFar: a flow in which nothing is found for gigabytes, over a new epoch,
// in which numbers of records are used again.
func TestSourceFar(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	e := newEnds(rng)
	e.cross(random(rng, MaxRecord), 1)
	fresh := random(rng, 60_000)
	last := Source{1, 1<<31 - 1 - 60_000}
	for range 2 {
		e.s.Match(fresh, 1, &last)
	}
	e.s.Restart()
	e.r = NewReceiver(MinSize, rng.Uint32())
	e.cross(random(rng, MaxRecord), 1)
	for range 2 {
		e.s.Match(fresh, 1, &last)
		if last.at < 0 || last.at >= 2*MaxRecord {
			t.Errorf("a source at %d", last.at)
		}
	}
}

// FuzzReceiver takes what a hostile peer sends: notes, bytes and references in any
// order. It stays within its memory and hands out nothing it does not have.
func FuzzReceiver(f *testing.F) {
	note := Note{Record: Record{1, 1}, TCP: 5, Len: MinRecord, Flow: 3}
	f.Add(append([]byte{0, NoteLen}, note.Append(nil)...))
	f.Add(append([]byte{2, 8}, AppendTokens(nil, []Token{{Lit: 1, Len: 256, Seq: 1, At: 9}}, 3)...))
	f.Add([]byte{1, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReceiver(MinSize, 1)
		payload := bytes.Repeat([]byte("payload"), 2000)
		for len(in) >= 2 {
			op, n := in[0]%4, min(int(in[1]), len(in)-2)
			arg := in[2 : 2+n]
			in = in[2+n:]
			switch op {
			case 0:
				if m, ok := ParseNote(arg); ok {
					r.Watch(m)
				}
			case 1:
				if len(arg) >= 12 {
					r.Saw(binary.BigEndian.Uint64(arg), binary.BigEndian.Uint32(arg[8:]), payload)
				}
			case 2:
				covered, ok := Covered(arg, len(payload))
				if !ok {
					continue
				}
				out, ok := r.Expand(nil, arg, payload[:len(payload)-covered], 3)
				if ok && len(out) != len(payload) || len(out) > len(payload) {
					t.Fatalf("%d bytes, want %d", len(out), len(payload))
				}
				r.Doubt(arg, 3)
			case 3:
				m := r.Report()
				if back, ok := ParseReport(m.Append(nil)); !ok || back.Top != m.Top || len(back.Missed) != len(m.Missed) {
					t.Fatal("a report is not read as it was written")
				}
			}
			if len(r.ring.buf) > MinSize || len(r.open) > openRecords || len(r.missed) > maxMissed || len(r.left) > oldEpochs {
				t.Fatal("a bound is broken")
			}
		}
	})
}

// FuzzReport takes any bytes as a report.
func FuzzReport(f *testing.F) {
	f.Add((&Report{Size: 1, Instance: 2, Epoch: 3, Top: 4, Missed: []uint32{1}}).Append(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := NewSender(MinSize, 3)
		b := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, MinRecord/7+1)[:MinRecord]
		for range 3 {
			s.Append(s.Open(len(b), 1), b)
		}
		m, ok := ParseReport(in)
		if !ok {
			return
		}
		s.Reported(m)
		var last Source
		for _, k := range s.Match(b, 1, &last) {
			if k.Seq == 0 || k.Seq > 3 || k.At+k.Len > len(b) {
				t.Fatalf("%+v", k)
			}
		}
	})
}

// BenchmarkMatch matches a payload of 60,000 bytes, known or new.
func BenchmarkMatch(b *testing.B) {
	rng := rand.New(rand.NewPCG(6, 6))
	e := newEnds(rng)
	known, fresh := random(rng, 60_000), random(rng, 60_000)
	e.cross(known, 1)
	for name, p := range map[string][]byte{"known": known, "new": fresh} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				var last Source
				e.s.Match(p, 1, &last)
			}
		})
	}
}

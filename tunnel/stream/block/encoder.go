package block

import (
	"cmp"
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"stitch/compress"
	"stitch/dedupe"
)

const (
	// minPacked is the least literals worth a compressor.
	minPacked = 32
	// bulkSize is how many bytes a stream has sent before it takes a context:
	// there are few, and a stream of few bytes has no use for one.
	bulkSize = 256 << 10
)

// Encoder encodes the sending direction of one connection. Match and Finish
// are for one goroutine each, Append for one instead of both; Ack, Resend and
// ResendBehind are for another one; SetLink, Stats and Close may run beside them.
type Encoder struct {
	w      *dedupe.Writer // nil without a history
	shop   *Shop
	connID uint64
	slack  uint64               // how far a block's heads may lag
	clock  func() time.Duration // nil: nothing is measured
	level  compress.Level       // without a choice
	closed atomic.Bool
	opaque atomic.Uint64 // 1 + the number of blocks before Opaque; 0: not called
	count  counters

	link  atomic.Uint64 // bytes per second, as a float64
	blind atomic.Bool   // matching does not pay
	renew atomic.Bool   // begin a new context: what the peer has may be wrong
	doubt doubt
	// sparse tells Match how seldom to refer to the history: see doubt.sparse.
	sparse atomic.Uint32

	// Of Match.
	state   state
	framing framing
	exact   bool   // no differences from bytes that were not matched
	model   *model // nil before the first tokens

	// Of Finish.
	chooser *compress.Chooser // nil: no choice
	gate    compress.Gate
	context *compress.Encoder // nil if the stream has none
	barred  atomic.Bool       // none is to be had
	tables  bool              // may be shuffled among its literals
	bulk    int               // bytes since the stream began or was idle
}

// NewEncoder returns an encoder; the peer's decoder must get the same connID.
// Without a history (h is nil, or the mode does not use it) nothing is kept
// and there is nothing to acknowledge. Close it.
func NewEncoder(h *dedupe.History, connID uint64, o Options) *Encoder {
	e := newEncoder(connID, o)
	if h != nil && o.Mode == Full {
		e.attach(h, h.NewWriter(o.writer()))
	}
	return e
}

// newEncoder returns an encoder without a history.
func newEncoder(connID uint64, o Options) *Encoder {
	e := &Encoder{connID: connID, shop: o.Shop.orOwn(), level: compress.Strong}
	switch {
	case o.Mode == Store:
		e.level = compress.Store
	case o.Clock != nil:
		e.clock = o.Clock
		e.chooser = compress.NewChooser(cmp.Or(o.Floor, 100e6), runtime.GOMAXPROCS(0))
	}
	e.exact, e.tables, e.doubt.repairs = o.Lines, o.Tables, o.Repairs
	return e
}

// attach gives the encoder its history.
func (e *Encoder) attach(h *dedupe.History, w *dedupe.Writer) {
	e.w, e.slack = w, uint64(h.Size())/64
}

// SetLink tells how many bytes a second the connection to the peer takes now;
// 0 if unknown.
func (e *Encoder) SetLink(bytesPerSecond float64) {
	e.link.Store(math.Float64bits(max(bytesPerSecond, 0)))
}

// now is the time of the clock; without one it stands still.
func (e *Encoder) now() time.Duration {
	if e.clock == nil {
		return 0
	}
	return e.clock()
}

// Opaque says that what follows is encrypted: from the next block on the bytes
// are framed and checked only. Call it where Match may be called.
func (e *Encoder) Opaque() { e.opaque.CompareAndSwap(0, e.state.seq+1) }

// Append encodes src (1 to MaxBlock bytes, borrowed) and appends the body, at
// most len(src) + len(src)/1024 + MaxHeader bytes, to dst. It keeps what
// Resend needs until Ack: how many bytes may be unacknowledged is the caller's
// credit to bound. When the history has been emptied, the block is sent
// without it. It panics if src is empty or too long.
func (e *Encoder) Append(dst, src []byte) []byte { return e.Finish(dst, e.Match(src)) }

// Work is a block between Match and Finish.
type Work struct {
	src         []byte // borrowed
	h           header
	lits        []byte // literals, unless they are src itself
	own         bool   // they are not
	differences int    // how many of lits are, at their beginning
	tokens      []byte // the token section
	patched     []bool // by token
	heads       []byte // headers among the literals
	gap         [maxPatch]byte
	coder       rangeEncoder
	before      model // of the model, in case the tokens are not worth it
	opaque      bool
	sample      compress.Sample
}

// probeBlind is how seldom a block is matched when that does not pay, to see
// whether it does again.
const probeBlind = 64

// Match does the first half of Append: it finds src in the history and puts it
// there. src stays borrowed until Finish. The caller bounds how many Works
// wait: each holds up to MaxBlock bytes.
func (e *Encoder) Match(src []byte) *Work {
	if len(src) == 0 || len(src) > MaxBlock {
		panic("block: Append of no bytes or more than MaxBlock")
	}
	w := e.shop.works.Get().(*Work)
	w.src, w.h, w.own, w.differences = src, header{n: len(src), off: e.state.off}, false, 0
	w.lits, w.tokens, w.patched = w.lits[:0], w.tokens[:0], w.patched[:0]
	h := &w.h
	w.opaque = e.opaque.Load() > 0
	w.sample = compress.Sample{In: len(src), Blind: e.blind.Load() && e.state.seq%probeBlind != 0}
	began := e.now()
	if e.w != nil && !w.opaque {
		put := e.w.Put
		switch {
		case w.sample.Blind:
			put = e.w.Skim
		case e.state.seq&(1<<e.sparse.Load()-1) != 0:
			put = e.w.Plant
		}
		var err error
		if h.block, err = put(src); err == nil {
			h.setPlace(&e.state, e.slack)
		}
	}
	h.block.Seq = e.state.seq
	e.frame(w, e.tokens(w))
	e.state.advance(h)
	w.sample.Match = e.now() - began
	return w
}

// tokens makes the token section and the literals, and returns the tokens.
// Tokens that take more bytes than they save are not used.
func (e *Encoder) tokens(w *Work) []dedupe.Token {
	h := &w.h
	tokens := h.block.Tokens
	h.block.Tokens = nil // lent until the next Put
	if len(tokens) == 0 {
		return nil
	}
	if e.model == nil {
		e.model = newModel()
	}
	if e.model.isRun(tokens, h.n, h.off) {
		h.form, w.own = formRun, true
		w.patched = append(w.patched, false)
		return tokens
	}
	e.patches(w, tokens)
	w.before = *e.model
	w.coder.begin(w.tokens)
	e.model.append(&w.coder, tokens, w.patched, h.n, h.off)
	w.tokens = w.coder.finish()
	if len(w.tokens) >= h.block.Matched+h.block.ZeroRuns {
		w.tokens, h.block.Matched, h.block.ZeroRuns = w.tokens[:0], 0, 0
		*e.model = w.before
		w.lits = w.lits[:0]
		return nil
	}
	w.differences = len(w.lits)
	h.form, h.section = formCoded, len(w.tokens)
	w.gather(tokens)
	return tokens
}

// patches finds the edits in place and puts their differences into the
// literals.
func (e *Encoder) patches(w *Work, tokens []dedupe.Token) {
	at := 0
	for i := range tokens {
		t := &tokens[i]
		edited := w.src[at : at+t.Lit]
		at += t.Lit + t.Len
		old := w.gap[:min(t.Lit, maxPatch)]
		can := !e.exact && i > 0 && follows(t, &tokens[i-1]) && t.Lit > 0 && t.Lit <= maxPatch
		can = can && e.w.Peek(old, t.Ring, t.Pos-uint64(t.Lit)) && alike(edited, old)
		w.patched = append(w.patched, can)
		if can {
			for k := range edited {
				w.lits = append(w.lits, edited[k]-old[k])
			}
		}
	}
}

// follows says whether t goes on where last left off, behind an edit in place.
func follows(t, last *dedupe.Token) bool {
	return t.Ring == last.Ring && t.Ring != dedupe.Zeros && t.Pos == last.Pos+uint64(last.Len+t.Lit)
}

// gather adds the other literals behind the differences.
func (w *Work) gather(tokens []dedupe.Token) {
	w.own = true
	src := w.src
	for i := range tokens {
		t := &tokens[i]
		if !w.patched[i] {
			w.lits = append(w.lits, src[:t.Lit]...)
		}
		src = src[t.Lit+t.Len:]
	}
	w.lits = append(w.lits, src...)
}

// frame takes the page headers out of the other literals.
func (e *Encoder) frame(w *Work, tokens []dedupe.Token) {
	if !e.framing.known {
		e.framing.follow(w.src)
		return
	}
	if !w.own {
		w.own, w.lits = true, append(w.lits[:0], w.src...)
	}
	w.heads = e.framing.split(w.src, w.lits, w.heads, literals{tokens: tokens, patched: w.patched, index: w.differences})
}

// Finish does the second half of Append, in the order of Match; w must not be
// used again.
func (e *Encoder) Finish(dst []byte, w *Work) []byte {
	h, b, start := &w.h, &w.h.block, len(dst)
	if e.chooser != nil {
		e.chooser.SetLink(math.Float64frombits(e.link.Load()))
		e.level = e.chooser.Level()
	}
	dst = e.body(dst, w)
	if e.chooser != nil && !w.opaque {
		w.sample.Rest = len(dst) - start - w.sample.Out
		e.chooser.Add(w.sample)
		e.blind.Store(!e.chooser.Matching())
	}
	e.count.add(h.n, len(dst)-start, b.Matched, b.ZeroRuns, h.n-b.Matched-b.ZeroRuns)
	w.src = nil
	e.shop.works.Put(w)
	return dst
}

// body appends a whole body.
func (e *Encoder) body(dst []byte, w *Work) []byte {
	h, lits := &w.h, w.src
	if w.own {
		lits = w.lits
	}
	start := len(dst)
	dst = slices.Grow(dst, MaxHeader+len(w.tokens)+compress.ScratchLen(len(lits)))
	dst = h.append(dst)
	at := len(dst)
	dst = append(dst, make([]byte, sumLen)...)
	dst = append(dst, w.tokens...)
	dst = e.literals(dst, lits, w)
	dst[start] = h.flags()
	binary.LittleEndian.PutUint64(dst[at:], h.sum(w.src, e.connID))
	return dst
}

// literals appends the literals, compressed if that is worth trying.
func (e *Encoder) literals(dst, lits []byte, w *Work) []byte {
	start := len(dst)
	e.bulk += w.h.n
	if len(lits) < minPacked || w.opaque || e.level != compress.Store && !e.gate.Try(lits) {
		dst = append(dst, lits...)
	} else {
		began := e.now()
		dst = e.pack(dst, lits, w)
		s := &w.sample
		s.Lits, s.Level, s.Out, s.Pack = len(lits), e.level, len(dst)-start, e.now()-began
		if e.level != compress.Store && len(lits) >= 1024 {
			e.gate.Report(len(lits), s.Out)
		}
	}
	e.count.used(w.h.lits, len(lits), len(dst)-start)
	return dst
}

// pack appends the literals at the present level, in the context if there is
// one.
func (e *Encoder) pack(dst, lits []byte, w *Work) []byte {
	if e.carry() {
		w.h.lits = compress.Carried
		if e.tables {
			return e.context.AppendShuffled(dst, lits)
		}
		return e.context.Append(dst, lits)
	}
	dst, w.h.lits = e.shop.codecs.Encode(dst, lits, e.level)
	return dst
}

// carry says whether the literals go on in a context, and takes or changes it.
func (e *Encoder) carry() bool {
	if e.level < compress.Balanced || e.barred.Load() {
		return false // a context there is waits for the level to come back, or for Leave
	}
	if e.context != nil && (e.renew.Swap(false) || e.context.Level() != e.level) {
		e.context = e.shop.codecs.Renew(e.context, e.level)
	}
	if e.context == nil && e.bulk >= bulkSize {
		e.context = e.shop.codecs.Encoder(e.level)
	}
	return e.context != nil
}

// Idle is for a stream that has sent nothing for a while, a second or more: it
// gives up the compressor's context, if the stream has one, and appends a body
// that tells the peer to do so too. Nothing is appended if there is none. Call
// it where Finish may be called.
func (e *Encoder) Idle(dst []byte) []byte {
	e.bulk = 0
	return e.Leave(dst)
}

// Bar says whether the stream must do without a compressor's context: the peer asks
// for it when it cannot keep its end of one. The one there is goes with the next
// Leave.
func (e *Encoder) Bar(on bool) { e.barred.Store(on) }

// Barred says what Bar was told.
func (e *Encoder) Barred() bool { return e.barred.Load() }

// Leave gives up the compressor's context as Idle does, in a stream that goes on.
func (e *Encoder) Leave(dst []byte) []byte {
	if e.context == nil {
		return dst
	}
	e.shop.codecs.Release(e.context)
	e.context = nil
	return append(dst, byte(compress.Carried), 0)
}

// plain appends src as raw literals under h.
func (e *Encoder) plain(dst, src []byte, h *header) []byte {
	dst = h.append(dst)
	dst = binary.LittleEndian.AppendUint64(dst, h.sum(src, e.connID))
	return append(dst, src...)
}

// Close releases what is kept. Idempotent. Finish must have returned.
func (e *Encoder) Close() {
	e.shop.codecs.Release(e.context)
	e.context = nil
	if e.w != nil && !e.closed.Swap(true) {
		e.w.Close()
	}
	e.closed.Store(true)
}

// Stats returns the counters.
func (e *Encoder) Stats() Stats { return e.count.load() }

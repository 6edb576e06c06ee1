package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"stitch/dedupe"
)

const (
	// offerSize is how many digests an OFFER has at most.
	offerSize = 512
	// plantWindow is how many plantings may be without answer.
	plantWindow = 16
)

// SeedProgress says how far a Seed is. Sizes are in bytes; pieces are of 1 MiB.
type SeedProgress struct {
	// Total is the size of the files, Hashed how much of it has been read.
	Total  int64 `json:"total"`
	Hashed int64 `json:"hashed"`
	// Pieces are the different ones that are not all zeros, Offered those the
	// peer has been asked about, Common those it has too, Planted those that are
	// now in both histories.
	Pieces  int `json:"pieces"`
	Offered int `json:"offered"`
	Common  int `json:"common"`
	Planted int `json:"planted"`
	// History is the size of the history: no more than that can be planted.
	History int64 `json:"history"`
	// Unsaved says why the files are forgotten when the process ends though the
	// history has a directory; "" if they are not.
	Unsaved string `json:"unsaved,omitempty"`
	// Peer and Domain say what was seeded.
	Peer   string `json:"peer"`
	Domain string `json:"domain"`
}

// errSeeding is returned when a domain is being seeded from here already.
var errSeeding = errors.New("a seed of this domain is running: wait for it")

// Seed puts what the named files (absolute paths of regular files) have in
// common with files that were named at the peer into the history that both
// share, without sending it: digests of pieces of 1 MiB cross. The files are
// remembered, by digests, so it is the second of the two sites to call Seed that
// finds common pieces: until the process ends, and for longer if the history has a
// directory. peer and domain may be empty when there is only one. report is called
// at intervals, never concurrently.
//
// An error after hashing leaves the files remembered; wrong arguments are
// ErrSeed.
func (p *Proxy) Seed(ctx context.Context, peer, domain string, files []string, report func(SeedProgress)) error {
	d, err := p.seedDomain(peer, domain)
	if err != nil {
		return err
	}
	s := seeder{d: d, report: report, SeedProgress: SeedProgress{Peer: d.q.link.Peer, Domain: d.name, History: d.history.Size()}}
	for _, f := range files {
		if err := s.measure(f); err != nil {
			return err
		}
	}
	select {
	case d.seeding <- struct{}{}:
		defer func() { <-d.seeding }()
	default:
		return fmt.Errorf("%w: %w", ErrSeed, errSeeding)
	}
	for _, f := range files {
		if err = cut(ctx, f, s.add); err != nil {
			break
		}
	}
	if failed := d.saveSeeds(); failed != nil {
		s.Unsaved = failed.Error()
		d.log.Warn("seeded files will be forgotten when the process ends", "err", failed)
	}
	if err != nil {
		return err
	}
	return s.offer(ctx)
}

// ErrSeed is wrapped by errors of Seed about its arguments.
var ErrSeed = errors.New("seed")

// seedDomain finds the domain that the arguments of Seed mean.
func (p *Proxy) seedDomain(peer, name string) (*domain, error) {
	var found []*domain
	var names []string
	for _, q := range p.peers {
		for _, d := range q.domains {
			if d.name == "" {
				continue
			}
			names = append(names, d.name+" with "+q.link.Peer)
			if (peer == "" || peer == q.link.Peer) && (name == "" || name == d.name) {
				found = append(found, d)
			}
		}
	}
	switch {
	case len(names) == 0:
		return nil, fmt.Errorf("%w: no rule names a domain: only a domain has a history that files can be put into", ErrSeed)
	case len(found) == 0:
		return nil, fmt.Errorf("%w: there is no such domain: there are %s", ErrSeed, strings.Join(names, ", "))
	case len(found) > 1:
		return nil, fmt.Errorf("%w: choose a peer and a domain: there are %s", ErrSeed, strings.Join(names, ", "))
	}
	return found[0], nil
}

// loadSeeds remembers what an earlier process was told of.
func (d *domain) loadSeeds() {
	c := d.store()
	if c.Dir == "" {
		return
	}
	known, err := readSeeds(c.Dir, c.Key)
	if err != nil {
		d.log.Warn("seeded files are not remembered", "err", err)
		d.sealed = errors.Is(err, errSeedNewer)
		return
	}
	d.pieces.set(known)
	forgotten := d.pieces.prune()
	if len(known)+forgotten > 0 {
		d.log.Info("seeded files are remembered", "pieces", len(known), "forgotten", forgotten)
	}
}

// saveSeeds writes down what there is to remember, if the history has a directory.
func (d *domain) saveSeeds() error {
	c := d.store()
	switch {
	case c.Dir == "":
		return nil
	case d.sealed:
		return errSeedNewer
	}
	var salt [16]byte
	if _, err := io.ReadFull(d.q.p.cfg.Rand, salt[:]); err != nil {
		return err
	}
	b, err := appendSeeds(nil, d.pieces.all(), salt, c.Key)
	if err != nil {
		return err
	}
	return writeSeeds(c.Dir, b)
}

// store is where the history is kept; without a directory if it has none that it
// can use.
func (d *domain) store() dedupe.Config {
	c := historyConfig(d.q.p.cfg.Cfg.History, d.q.link.Peer, d.name)
	if d.history.Stats().Store.State == "memory" {
		c.Dir = ""
	}
	return c
}

// seeder is one call of Seed.
type seeder struct {
	SeedProgress
	d      *domain
	report func(SeedProgress)
	order  []digest
	seen   map[digest]bool
}

// measure adds the size of a file.
func (s *seeder) measure(name string) error {
	if !filepath.IsAbs(name) {
		return fmt.Errorf("%w: %q is not an absolute path", ErrSeed, name)
	}
	f, err := openRegular(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSeed, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	s.Total += fi.Size()
	return nil
}

// add takes one piece of a file.
func (s *seeder) add(d digest, at place, ok bool) error {
	s.Hashed += int64(at.size)
	if s.seen == nil {
		s.seen = make(map[digest]bool)
	}
	if ok && !s.seen[d] {
		if !s.d.pieces.add(d, at) && (s.d.pieces.prune() == 0 || !s.d.pieces.add(d, at)) {
			return fmt.Errorf("more than %d GiB of files are remembered for this domain: seed less, or delete the file %q in the history's directory and restart the agent", maxPieces*pieceSize>>30, seedFile)
		}
		s.seen[d] = true
		s.order = append(s.order, d)
		s.Pieces++
	}
	s.report(s.SeedProgress)
	return nil
}

// offer asks the peer for each piece whether it has it too, and plants those.
// The leading side begins at the front and the other one at the end, so that two
// sides which do it at the same time share the work.
func (s *seeder) offer(ctx context.Context) error {
	if !s.d.leads() {
		slices.Reverse(s.order)
	}
	pc, err := s.d.dial(ctx)
	if err != nil {
		return fmt.Errorf("the files are remembered, but the peer's agent cannot be asked: %w", err)
	}
	defer s.d.forget(pc)
	defer pc.conn.Close()
	stop := context.AfterFunc(ctx, func() { pc.conn.Close() })
	defer stop()
	if pc.terms.Features&featureSeed == 0 {
		return errors.New("the peer's release cannot seed: run the same release at both sites")
	}
	if !s.d.use(pc) {
		return errRestarted
	}
	defer s.d.unuse()
	g := gardener{seeder: s, pc: pc, w: pc.history.NewWriter(dedupe.WriterOptions{}), buf: make([]byte, pieceSize)}
	defer g.w.Close()
	for batch := range slices.Chunk(s.order, offerSize) {
		if err := g.batch(batch); err != nil {
			return cmpErr(ctx.Err(), fmt.Errorf("ended in the middle, run it again: %w", err))
		}
	}
	return nil
}

// gardener plants pieces over one connection.
type gardener struct {
	*seeder
	pc     *peerConn
	w      *dedupe.Writer
	buf    []byte
	blocks uint64   // put into the history
	open   []sprout // without answer, in order
}

// sprout is a planting without answer.
type sprout struct {
	d      digest
	blocks uint64 // how many there are with it
	spans  []dedupe.Span
}

// batch offers some pieces and plants those that both sides have.
func (g *gardener) batch(pieces []digest) error {
	body := make([]byte, 0, len(pieces)*len(digest{}))
	for _, d := range pieces {
		body = append(body, d[:]...)
	}
	if err := g.pc.send(frameOffer, body); err != nil {
		return err
	}
	_, have, err := g.pc.expect(seedTimeout, frameHave)
	if err != nil {
		return err
	}
	if len(have) != len(pieces) {
		return fmt.Errorf("%w: %d answers to %d pieces", errFrame, len(have), len(pieces))
	}
	g.Offered += len(pieces)
	for i, d := range pieces {
		if err := g.piece(i, d, pieceState(have[i])); err != nil {
			return err
		}
	}
	err = g.harvest(0)
	g.report(g.SeedProgress)
	return err
}

// piece plants one piece, if the peer has it and nobody has planted it.
func (g *gardener) piece(i int, d digest, theirs pieceState) error {
	ours, at := g.d.pieces.state(d, g.pc.gen)
	if theirs != pieceUnknown {
		g.Common++
	}
	switch {
	case theirs == piecePlanted, theirs == pieceKnown && ours == piecePlanted:
		g.Planted++
		return nil
	case theirs != pieceKnown || ours != pieceKnown:
		return nil
	}
	data, err := at.read(d, g.buf)
	if err != nil {
		return fmt.Errorf("%s: %w", at.file, err)
	}
	p := planting{Index: i}
	for part := range slices.Chunk(data, dedupe.MaxBlock) {
		b, err := g.w.Plant(part)
		if err != nil {
			return err
		}
		p.add(&b)
		g.blocks++
	}
	if err := g.pc.send(framePlant, p.append(nil)); err != nil {
		return err
	}
	g.open = append(g.open, sprout{d, g.blocks, p.Spans})
	return g.harvest(plantWindow)
}

// harvest reads answers until at most so many plantings are without.
func (g *gardener) harvest(most int) error {
	for len(g.open) > most {
		_, body, err := g.pc.expect(seedTimeout, framePlanted)
		if err != nil {
			return err
		}
		s := g.open[0]
		g.open = g.open[1:]
		if body[0] == 1 {
			g.d.pieces.plant(s.d, g.pc.gen)
			g.Planted++
		} else { // its file has changed: our bytes must not be referred to
			for _, span := range s.spans {
				g.drop(span)
			}
		}
		if err := g.w.Acked(s.blocks); err != nil {
			return err
		}
		g.report(g.SeedProgress)
	}
	return nil
}

// drop takes a stretch out of use.
func (g *gardener) drop(s dedupe.Span) {
	for s.Len > 0 {
		n := min(s.Len, dedupe.MaxBlock)
		g.w.Drop(dedupe.Sent, dedupe.Span{Pos: s.Pos, Len: n}, 0)
		s = dedupe.Span{Pos: s.Pos + uint64(n), Len: s.Len - n}
	}
}

// serveSeed is the other side of a Seed: it begins with the body of the first
// OFFER and ends with the connection.
func (q *peer) serveSeed(pc *peerConn, offer []byte) error {
	d := pc.domain
	select {
	case d.serving <- struct{}{}:
		defer func() { <-d.serving }()
	default:
		return fmt.Errorf("%w: two seeds at a time", errFrame)
	}
	if !d.use(pc) {
		return errRestarted
	}
	defer d.unuse()
	bed := bed{pc: pc, r: pc.history.NewReader(), buf: make([]byte, pieceSize)}
	if err := bed.answer(offer); err != nil {
		return err
	}
	for {
		t, body, err := pc.expect(seedTimeout, frameOffer, framePlant)
		switch {
		case err != nil:
			return err
		case t == frameOffer:
			err = bed.answer(body)
		default:
			err = bed.take(body)
		}
		if err != nil {
			return err
		}
	}
}

// bed takes what the peer plants over one connection.
type bed struct {
	pc    *peerConn
	r     *dedupe.Reader
	buf   []byte
	offer []digest // the last one
}

// answer answers an OFFER.
func (b *bed) answer(body []byte) error {
	if len(body)%len(digest{}) != 0 {
		return fmt.Errorf("%w: OFFER of %d bytes", errFrame, len(body))
	}
	b.offer = b.offer[:0]
	var have []byte
	for d := range slices.Chunk(body, len(digest{})) {
		b.offer = append(b.offer, digest(d))
		s, _ := b.pc.domain.pieces.state(digest(d), b.pc.gen)
		have = append(have, byte(s))
	}
	return b.pc.send(frameHave, have)
}

// take plants a piece from our own file, where the peer has planted it. A file
// that has changed is answered with 0.
func (b *bed) take(body []byte) error {
	p, err := parsePlanting(body)
	if err != nil {
		return err
	}
	if p.Index >= len(b.offer) {
		return fmt.Errorf("%w: PLANT of piece %d of %d", errFrame, p.Index, len(b.offer))
	}
	d := b.offer[p.Index]
	state, at := b.pc.domain.pieces.state(d, b.pc.gen)
	if state == pieceUnknown {
		return b.pc.send(framePlanted, []byte{0})
	}
	piece, err := at.read(d, b.buf)
	if err != nil {
		return b.pc.send(framePlanted, []byte{0})
	}
	if err := p.blocks(piece, b.r.Put); err != nil {
		return err
	}
	b.pc.domain.pieces.plant(d, b.pc.gen)
	return b.pc.send(framePlanted, []byte{1})
}

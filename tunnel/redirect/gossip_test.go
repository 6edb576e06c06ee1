package redirect

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/config"
)

// wireVectors are the messages that two versions must agree on.
var wireVectors = []struct {
	name string
	m    message
}{
	{"echo", message{own: stamp{0x01020304, 7}, seen: stamp{0xa0b0c0d0, 9}}},
	{"one-owner", message{chunks: 1, own: stamp{1, 1}, owners: []Owner{{Workload: "app", Site: "dc1"}}}},
	{"moved", message{chunk: 1, chunks: 2, own: stamp{0xffffffff, 3}, seen: stamp{5, 6}, owners: []Owner{
		{Workload: "app", Site: "dc2", Previous: "dc1", Seq: 1},
		{Workload: "db-0", Site: "dc1", Previous: "dc2", Seq: 0x0102030405060708 >> 3}}}},
}

func TestGossipVectors(t *testing.T) {
	for _, v := range wireVectors {
		t.Run(v.name, func(t *testing.T) {
			name := filepath.Join("..", "..", "testdata", "wire", "gossip-"+v.name+".hex")
			got := hex.Dump(v.m.append(nil))
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the wire format changed:\n%s", got)
			}
			back, err := parseMessage(v.m.append(nil))
			if err != nil || !reflect.DeepEqual(back, v.m) {
				t.Errorf("parsed back: %+v, %v", back, err)
			}
		})
	}
}

// Every truncation is an error, every extension is ignored.
func TestGossipLengths(t *testing.T) {
	m := wireVectors[2].m
	b := m.append(nil)
	for n := range b {
		if _, err := parseMessage(b[:n]); err == nil {
			t.Errorf("%d of %d bytes parsed", n, len(b))
		}
	}
	if got, err := parseMessage(append(b, 1, 2, 3)); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("with later bytes: %+v, %v", got, err)
	}
	if _, err := parseMessage(append(b, make([]byte, maxReceived)...)); err == nil {
		t.Error("a message longer than a datagram parsed")
	}
}

func FuzzParseMessage(f *testing.F) {
	for _, v := range wireVectors {
		f.Add(v.m.append(nil))
	}
	f.Add([]byte{})
	f.Add(append([]byte{gossipType, gossipVersion}, bytes.Repeat([]byte{255}, 40)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		again := m.append(nil)
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("parse and append differ:\n%x\n%x", b, again)
		}
		g := NewGossip(NewTable("dc1", testWorkloads(), nil), 1, []string{"dc2"})
		if _, err := g.Receive("dc2", b, t0); err != nil {
			t.Fatalf("parses but is not received: %v", err)
		}
	})
}

func TestSplitFitsMessages(t *testing.T) {
	long := strings.Repeat("x", maxName-4)
	for _, n := range []int{0, 1, 10, 11, 254, 255, 256, MaxWorkloads} {
		var os []Owner
		for i := range n {
			os = append(os, Owner{Workload: fmt.Sprintf("%s%04d", long, i), Site: long + "aaaa", Previous: long + "bbbb", Seq: maxSeq})
		}
		chunks := split(os)
		if len(chunks) < 1 || len(chunks) > maxChunks {
			t.Errorf("%d owners: %d chunks", n, len(chunks))
		}
		if got := slices.Concat(chunks...); !slices.Equal(got, os) {
			t.Errorf("%d owners: chunks hold %d", n, len(got))
		}
		for _, c := range chunks {
			if size := len(message{owners: c}.append(nil)); size > MaxMessage {
				t.Errorf("%d owners: a chunk of %d bytes", n, size)
			}
		}
	}
}

// sim is a set of sites whose datagrams are lost, repeated, delayed and
// reordered; time is a number.
type sim struct {
	r      *rand.Rand
	now    time.Time
	sites  map[string]*simSite
	flight []simPacket
	cut    bool // everything is lost
}

type simSite struct {
	name   string
	ws     []config.Workload
	table  *Table
	gossip *Gossip
	peers  []string
}

type simPacket struct {
	from, to string
	msg      []byte
	at       time.Time
}

func newSim(seed uint64, names []string, workloads int) *sim {
	s := &sim{r: rand.New(rand.NewPCG(seed, 2)), now: t0, sites: make(map[string]*simSite)}
	var ws []config.Workload
	for i := range workloads {
		ws = append(ws, config.Workload{Name: fmt.Sprint("w", i), MAC: config.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)},
			IP: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Site: names[i%len(names)]})
	}
	for _, n := range names {
		site := &simSite{name: n, ws: ws}
		for _, p := range names {
			if p != n {
				site.peers = append(site.peers, p)
			}
		}
		s.sites[n] = site
		s.restart(n)
	}
	return s
}

// restart makes a site forget everything.
func (s *sim) restart(name string) {
	site := s.sites[name]
	site.table = NewTable(name, site.ws, nil)
	site.gossip = NewGossip(site.table, s.r.Uint32(), site.peers)
}

// step lets 20 ms pass: sites send, the network delivers what is due.
func (s *sim) step() {
	s.now = s.now.Add(20 * time.Millisecond)
	for _, name := range slices.Sorted(maps.Keys(s.sites)) {
		out, _ := s.sites[name].gossip.Poll(s.now)
		for _, o := range out {
			s.post(simPacket{name, o.Peer, o.Data, s.now})
		}
	}
	due := s.flight
	s.flight = nil
	s.r.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	for _, p := range due {
		if p.at.After(s.now) {
			s.flight = append(s.flight, p)
		} else {
			s.sites[p.to].gossip.Receive(p.from, p.msg, s.now)
		}
	}
}

func (s *sim) post(p simPacket) {
	if s.cut || s.r.IntN(100) < 30 {
		return
	}
	for range 1 + s.r.IntN(2) {
		p.at = s.now.Add(time.Duration(s.r.IntN(300)) * time.Millisecond)
		s.flight = append(s.flight, p)
	}
}

func (s *sim) announce(name string, w int) {
	site := s.sites[name]
	if len(site.table.Announce(site.ws[w].MAC, netip.Addr{}, s.now)) > 0 {
		site.gossip.Changed()
	}
}

// settled reports whether all tables are equal.
func (s *sim) settled() bool {
	var first []Owner
	for _, name := range slices.Sorted(maps.Keys(s.sites)) {
		os := s.sites[name].table.Owners()
		if first == nil {
			first = os
		}
		if !slices.Equal(os, first) {
			return false
		}
	}
	return true
}

// Machines move, sites are cut off and restart, datagrams are lost (30 %),
// doubled, delayed up to 300 ms and reordered: when things calm down all sites
// agree within 15 s (refreshes every 5 s, some of them lost). And as long as
// nobody forgets, no two sites ever each believe the other to be the owner:
// packets between them would never arrive.
func TestGossipConverges(t *testing.T) {
	for seed := range uint64(150) {
		names := []string{"dc1", "dc2", "dc3"}[:2+seed%2]
		restarts := seed%3 == 0
		s := newSim(seed, names, 1+int(seed%7)*20)
		for range 200 {
			switch s.r.IntN(40) {
			case 0, 1, 2, 3:
				s.announce(names[s.r.IntN(len(names))], s.r.IntN(len(s.sites["dc1"].ws)))
			case 4:
				s.cut = !s.cut
			case 5:
				if name := names[s.r.IntN(len(names))]; restarts {
					s.restart(name)
				}
			}
			s.step()
			if w := s.disowned(); w != "" && !restarts {
				t.Fatalf("seed %d: dc1 and dc2 each say that %s is at the other", seed, w)
			}
		}
		s.cut = false
		steps := 0
		for ; steps < 15*50 && !s.settled(); steps++ {
			s.step()
		}
		if !s.settled() {
			t.Fatalf("seed %d: sites still differ after %v", seed, time.Duration(steps)*20*time.Millisecond)
		}
	}
}

// disowned returns a workload that each of the first two sites believes to be
// at the other.
func (s *sim) disowned() string {
	a, b := s.sites["dc1"].table.Owners(), s.sites["dc2"].table.Owners()
	for i := range a {
		if a[i].Site == "dc2" && b[i].Site == "dc1" {
			return a[i].Workload
		}
	}
	return ""
}

// When all is echoed, only the refresh is sent.
func TestGossipIsQuietWhenEchoed(t *testing.T) {
	s := newSim(1, []string{"dc1", "dc2"}, 3)
	a, b := s.sites["dc1"].gossip, s.sites["dc2"].gossip
	deliver := func(from *Gossip, name string, to *Gossip) (n int) {
		out, _ := from.Poll(s.now)
		for _, o := range out {
			if _, err := to.Receive(name, o.Data, s.now); err != nil {
				t.Fatal(err)
			}
		}
		return len(out)
	}
	sent := 0
	for range 500 { // 10 s
		s.now = s.now.Add(20 * time.Millisecond)
		sent += deliver(a, "dc1", b) + deliver(b, "dc2", a)
	}
	if sent > 12 {
		t.Errorf("%d datagrams in 10 quiet seconds", sent)
	}
}

// A change is on its way at the next Poll, without waiting for a timer.
func TestGossipSendsChangeAtOnce(t *testing.T) {
	s := newSim(1, []string{"dc1", "dc2"}, 1)
	g := s.sites["dc2"].gossip
	g.Poll(s.now)
	if out, _ := g.Poll(s.now); len(out) != 0 {
		t.Fatalf("sent %d datagrams twice", len(out))
	}
	s.announce("dc2", 0)
	out, _ := g.Poll(s.now)
	if len(out) != 1 {
		t.Fatalf("sent %d datagrams after a change", len(out))
	}
	if got, err := s.sites["dc1"].gossip.Receive("dc2", out[0].Data, s.now); err != nil || len(got) != 1 || got[0].Site != "dc2" {
		t.Errorf("the peer heard %+v, %v", got, err)
	}
}

func TestGossipRefusesStrangers(t *testing.T) {
	g := NewGossip(NewTable("dc1", testWorkloads(), nil), 1, []string{"dc2"})
	if _, err := g.Receive("dc9", wireVectors[1].m.append(nil), t0); err == nil {
		t.Error("a datagram of an unknown peer was used")
	}
	if _, err := g.Receive("dc2", []byte("nonsense"), t0); err == nil || g.Malformed != 1 {
		t.Errorf("nonsense: %v, counted %d", err, g.Malformed)
	}
}

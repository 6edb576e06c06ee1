package redirect

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"stitch/tunnel/config"
)

// Owner says at which site a workload is.
type Owner struct {
	// Workload is the configured name.
	Workload string `json:"workload"`
	// Site is where it is now.
	Site string `json:"site"`
	// Previous is the site it was at before, "" when it has not moved.
	Previous string `json:"previous,omitempty"`
	// Seq orders claims: higher wins. 0 is the configuration's default.
	Seq uint64 `json:"seq"`
	// Fresh says that it moved less than AnchorTime ago, so new UDP tuples
	// still go by way of Previous. It is this site's view and not gossiped.
	Fresh bool `json:"fresh,omitempty"`
}

// Limits of the ownership table.
const (
	// AnchorTime is how long new UDP tuples of a moved workload keep going by
	// way of its previous site.
	AnchorTime = 180 * time.Second
	// Of the moves within MoveWindow as many are believed as its segment's
	// MoveLimit says; a further announcement on our LAN freezes the workload for
	// FreezeTime (RFC 7432, section 15.1: two machines with one address look like
	// this).
	MoveWindow = 180 * time.Second
	FreezeTime = 180 * time.Second
	// maxSeq bounds what a peer may claim, so that adding one never wraps.
	maxSeq = 1 << 62
)

// Table is the ownership table of one site, after the MAC mobility rules of
// RFC 7432 section 7.7. It is pure and not safe for concurrent use: its owner
// is the Manager's run loop.
type Table struct {
	site    string
	entries map[string]*entry
	byMAC   map[config.MAC][]*entry // a machine with two addresses is two workloads
	byIP    map[netip.Addr]*entry
	counts  TableCounts
}

// TableCounts count what a Table decided.
type TableCounts struct {
	// Moves are changes of site, ours or claimed.
	Moves uint64 `json:"moves"`
	// Refused are announcements that did not fit a workload: an address with
	// somebody else's MAC.
	Refused uint64 `json:"refused"`
	// Damped are announcements ignored because the workload is frozen.
	Damped uint64 `json:"damped"`
	// Conflicts are claims of two sites with one sequence number: a healed
	// split brain.
	Conflicts uint64 `json:"conflicts"`
	// Invalid are claims that break the grammar or the bounds.
	Invalid uint64 `json:"invalid"`
}

type entry struct {
	owner  Owner
	mac    config.MAC
	limit  int         // moves that are believed
	moves  []time.Time // at most limit, oldest first
	moved  time.Time   // zero: never in this process
	frozen time.Time   // until; zero: not frozen
}

// NewTable returns the table of a site in which each workload is where the
// configuration says; segments give the limits of their moves.
func NewTable(site string, ws []config.Workload, segments []config.Segment) *Table {
	limits := map[uint16]int{}
	for _, s := range segments {
		limits[s.ID] = s.MoveLimit
	}
	t := &Table{
		site:    site,
		entries: make(map[string]*entry, len(ws)),
		byMAC:   make(map[config.MAC][]*entry, len(ws)),
		byIP:    make(map[netip.Addr]*entry, len(ws)),
	}
	for _, w := range ws {
		e := &entry{owner: Owner{Workload: w.Name, Site: w.Site}, mac: w.MAC, limit: cmp.Or(limits[w.Segment], config.DefaultMoveLimit)}
		t.entries[w.Name] = e
		t.byIP[w.IP] = e
		if w.MAC != (config.MAC{}) {
			t.byMAC[w.MAC] = append(t.byMAC[w.MAC], e)
		}
	}
	return t
}

// Announce notes that a workload was seen on our own LAN: it acts at once,
// with the next sequence number. ip may be invalid (RARP). An announcement of
// what is known already changes and counts nothing; one that gives a workload's
// address another machine's MAC is refused.
func (t *Table) Announce(mac config.MAC, ip netip.Addr, now time.Time) (changed []Owner) {
	for _, e := range t.match(mac, ip) {
		if e.owner.Site == t.site {
			continue
		}
		if e.damped(now) {
			t.counts.Damped++
			continue
		}
		next := Owner{Workload: e.owner.Workload, Site: t.site, Previous: e.owner.Site, Seq: e.owner.Seq + 1}
		changed = append(changed, t.move(e, next, now))
	}
	return changed
}

// match finds the workloads that an announcement speaks of: all of the machine
// with that MAC.
func (t *Table) match(mac config.MAC, ip netip.Addr) []*entry {
	machine, byIP := t.byMAC[mac], t.byIP[ip.Unmap()]
	switch {
	case byIP == nil || slices.Contains(machine, byIP):
		return machine
	case len(machine) == 0 && byIP.mac == (config.MAC{}):
		return []*entry{byIP}
	}
	t.counts.Refused++
	return nil
}

// Claim merges what the peer called from says of any workloads: the higher
// sequence number wins, between equals the site whose name sorts first. Since
// that is a total order, tables that have heard the same claims are equal,
// whatever the order and however often they heard them. Claims of unknown
// workloads are ignored.
func (t *Table) Claim(from string, os []Owner, now time.Time) (changed []Owner) {
	for _, o := range os {
		if !validName(o.Site) || (o.Previous != "" && !validName(o.Previous)) || o.Seq > maxSeq {
			t.counts.Invalid++
			continue
		}
		e, ok := t.entries[o.Workload]
		if !ok || !wins(o, e.owner) {
			continue
		}
		if e.owner.Site == t.site && o.Site != t.site && o.Seq == e.owner.Seq && o.Seq > 0 {
			t.counts.Conflicts++
			e.frozen = now.Add(FreezeTime)
		}
		o.Fresh = false
		changed = append(changed, t.move(e, o, now))
	}
	return changed
}

// wins reports whether claim a replaces b. It is a strict total order over
// everything but Fresh.
func wins(a, b Owner) bool {
	return cmp.Or(
		cmp.Compare(a.Seq, b.Seq),
		cmp.Compare(b.Site, a.Site),
		cmp.Compare(b.Previous, a.Previous)) > 0
}

// move makes o the owner and returns it as seen from here.
func (t *Table) move(e *entry, o Owner, now time.Time) Owner {
	if o.Site != e.owner.Site {
		t.counts.Moves++
		e.moved = now
		if len(e.moves) == e.limit {
			e.moves = slices.Delete(e.moves, 0, 1)
		}
		e.moves = append(e.moves, now)
	}
	e.owner = o
	return e.view(now)
}

// damped reports whether a local announcement has to be ignored, and freezes
// the entry when it has moved too often.
func (e *entry) damped(now time.Time) bool {
	if now.Before(e.frozen) {
		return true
	}
	if len(e.moves) == e.limit && now.Sub(e.moves[0]) < MoveWindow {
		e.frozen = now.Add(FreezeTime)
		e.moves = e.moves[:0]
		return true
	}
	return false
}

func (e *entry) view(now time.Time) Owner {
	o := e.owner
	o.Fresh = o.Previous != "" && !e.moved.IsZero() && now.Sub(e.moved) < AnchorTime
	return o
}

// Owners returns all owners sorted by workload, as they are gossiped (Fresh is
// false).
func (t *Table) Owners() []Owner {
	os := make([]Owner, 0, len(t.entries))
	for _, e := range t.entries {
		os = append(os, e.owner)
	}
	slices.SortFunc(os, func(a, b Owner) int { return cmp.Compare(a.Workload, b.Workload) })
	return os
}

// View returns all owners sorted by workload as they are planned, and when the
// view changes by time alone (zero: it does not).
func (t *Table) View(now time.Time) (os []Owner, next time.Time) {
	os = t.Owners()
	for i := range os {
		e := t.entries[os[i].Workload]
		os[i] = e.view(now)
		if end := e.moved.Add(AnchorTime); os[i].Fresh && (next.IsZero() || end.Before(next)) {
			next = end
		}
	}
	return os, next
}

// Frozen returns the workloads whose announcements are ignored at now, sorted.
func (t *Table) Frozen(now time.Time) (names []string) {
	for name, e := range t.entries {
		if now.Before(e.frozen) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Counts returns the counters.
func (t *Table) Counts() TableCounts { return t.counts }

// maxName is the longest name of a site or workload.
const maxName = 32

// validName reports whether s is a name, [a-z0-9-]{1,32}.
func validName(s string) bool {
	if len(s) == 0 || len(s) > maxName {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"stitch/tunnel/lab"
)

// edge is where connections enter a site.
type edge struct{ host, site, address string }

var edges = []edge{{"e1", "dc1", "203.0.113.10"}, {"e2", "dc2", "198.51.100.20"}}

const dnsWait = 15 * time.Second

// entries returns the destination addresses of the client's connections that an
// edge's connection tracking has, by the client's port.
func entries(ctx context.Context, l *lab.Lab, e edge) (map[uint16][]netip.Addr, error) {
	out, err := l.CommandContext(ctx, e.host, "conntrack", "-L", "-p", "tcp", "--orig-src", "192.0.2.7").Output()
	if err != nil {
		return nil, fmt.Errorf("conntrack on %s: %w", e.host, err)
	}
	return parseConntrack(string(out)), nil
}

// parseConntrack reads the original direction of conntrack's lines.
func parseConntrack(out string) map[uint16][]netip.Addr {
	found := map[uint16][]netip.Addr{}
	for line := range strings.Lines(out) {
		var dst netip.Addr
		var port uint64
		for _, field := range strings.Fields(line) { // the first of each name counts
			key, value, _ := strings.Cut(field, "=")
			switch {
			case key == "dst" && !dst.IsValid():
				dst, _ = netip.ParseAddr(value)
			case key == "sport" && port == 0:
				port, _ = strconv.ParseUint(value, 10, 16)
			}
		}
		if dst.IsValid() && port != 0 {
			found[uint16(port)] = append(found[uint16(port)], dst)
		}
	}
	return found
}

// via names the site each connection entered by: that whose edge tracks it with
// the edge's own address as destination. "?" if none does.
func via(ctx context.Context, l *lab.Lab, conns []*connection) (map[string]int, error) {
	count := map[string]int{"?": len(conns)}
	for _, e := range edges {
		tracked, err := entries(ctx, l, e)
		if err != nil {
			return nil, err
		}
		for _, c := range conns {
			if slices.Contains(tracked[c.local.Port()], netip.MustParseAddr(e.address)) {
				count[e.site]++
				count["?"]--
			}
		}
	}
	if count["?"] == 0 {
		delete(count, "?")
	}
	return count, nil
}

// Paths are bytes between hosts of the WAN in one stretch of time.
type Paths struct {
	// What says what went on meanwhile.
	What string `json:"what"`
	// ClientE1 and ClientE2 are bytes from each edge to the client, Link those
	// between the edges, both ways.
	ClientE1 int64 `json:"e1_to_client_bytes"`
	ClientE2 int64 `json:"e2_to_client_bytes"`
	Link     int64 `json:"between_edges_bytes"`
}

// paths reads the WAN's counters.
func paths(ctx context.Context, l *lab.Lab) (Paths, error) {
	r, err := l.WAN().Report(ctx)
	bytes := func(from, to string) int64 { return int64(r.Find(from, to).Counters.Bytes) }
	return Paths{
		ClientE1: bytes("e1", "c1"), ClientE2: bytes("e2", "c1"), Link: bytes("e1", "e2") + bytes("e2", "e1"),
	}, err
}

// since is what passed from before to p.
func (p Paths) since(before Paths, what string) Paths {
	return Paths{What: what, ClientE1: p.ClientE1 - before.ClientE1, ClientE2: p.ClientE2 - before.ClientE2, Link: p.Link - before.Link}
}

// resolve asks the DNS server of an edge for the service, from the client's
// host, with Go's resolver.
func resolve(ctx context.Context, l *lab.Lab, e edge) (netip.Addr, error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dial(ctx, l, "c1", network, e.address+":53")
	}}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	addrs, err := r.LookupNetIP(ctx, "ip4", serviceName+".")
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s: %w", e.host, err)
	}
	return addrs[0].Unmap(), nil
}

// dig asks the same with dig.
func dig(ctx context.Context, l *lab.Lab, e edge) (string, error) {
	out, err := l.CommandContext(ctx, "c1", "dig", "+short", "+time=2", "+tries=2", "@"+e.address, serviceName, "A").Output()
	if err != nil {
		return "", fmt.Errorf("dig @%s: %w", e.address, err)
	}
	in := bufio.NewScanner(strings.NewReader(string(out)))
	in.Scan()
	return in.Text(), nil
}

// answersFrom waits until the DNS servers of both edges answer with want, asked
// with both clients.
func answersFrom(ctx context.Context, l *lab.Lab, want string) error {
	ctx, cancel := context.WithTimeout(ctx, dnsWait)
	defer cancel()
	for _, e := range edges {
		for {
			got, err := resolve(ctx, l, e)
			if err == nil && got.String() == want {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("DNS at %s says %v (%v), not %s", e.site, got, err, want)
			case <-time.After(50 * time.Millisecond):
			}
		}
		if got, err := dig(ctx, l, e); err != nil || got != want {
			return fmt.Errorf("dig at %s says %q (%v), not %s", e.site, got, err, want)
		}
	}
	return nil
}

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	nameForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	deviceForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}$`)
	hostForm   = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)
	rateForm   = regexp.MustCompile(`^([1-9][0-9]{0,6})(kbit|mbit|gbit)$`)
	sizeForm   = regexp.MustCompile(`^([1-9][0-9]{0,12})(B|KiB|MiB|GiB|TiB)$`)
)

// maxHost is the longest host name DNS allows.
const maxHost = 253

// quote quotes what the file says, cut short when it is long.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// suggest says what an unknown word may have meant, or what is known.
func suggest(word string, known []string, where string) string {
	best, distance := "", 3
	for _, k := range known {
		if d := editDistance(word, k); d < distance && d < len(k) {
			best, distance = k, d
		}
	}
	if best != "" {
		return "did you mean " + quote(best) + "?"
	}
	return "known " + where + ": " + strings.Join(known, ", ")
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours between two words. Long words count as very different.
func editDistance(a, b string) int {
	const most = 40
	if len(a) > most || len(b) > most {
		return most
	}
	a, b = strings.ToLower(a), strings.ToLower(b)
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d[i][j] = min(change, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// parseName checks the name of a site, peer or workload.
func parseName(s string) error {
	if !nameForm.MatchString(s) {
		return fmt.Errorf("%s is not a name: use 1 to 32 of a-z, 0-9 and -, not beginning with -", quote(s))
	}
	return nil
}

// parseHost checks a DNS name.
func parseHost(s string) error {
	if len(s) > maxHost || !hostForm.MatchString(s) {
		return fmt.Errorf("%s is not a host name: use letters, digits, - and dots", quote(s))
	}
	return nil
}

// ParseSize reads a number of bytes written like 512MiB.
func ParseSize(s string) (int64, error) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%s is not a size: write a whole number and a unit, such as \"512MiB\" or \"1GiB\"", quote(s))
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // at most 13 digits
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if unit == m[2] {
			return n, nil
		}
		if n > maxHistory {
			return n, nil // out of every bound already; larger would overflow
		}
		n *= 1024
	}
	return n, nil
}

// Rates within which a link can be run.
const (
	minRate = 128e3
	maxRate = 100e9
)

// The words that are written for a rate: LearnRate, which is the default too, and
// none.
const (
	learnRate = "learn"
	noRate    = "off"
)

// parseRate reads bits a second written like 100mbit.
func parseRate(s string) (int64, error) {
	m := rateForm.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%s is not a rate: write a whole number and a unit, such as \"100mbit\" or \"10gbit\"", quote(s))
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // at most 7 digits
	n *= map[string]int64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}[m[2]]
	if n < minRate || n > maxRate {
		return 0, fmt.Errorf("%s is out of range: use \"128kbit\" to \"100gbit\"", quote(s))
	}
	return n, nil
}

// parseDuration reads a time such as 5s between least and most.
func parseDuration(s string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%s is not a duration: write a number and a unit, such as \"5s\"", quote(s))
	}
	if d < least || d > most {
		return 0, fmt.Errorf("%s is out of range: use %v to %v", quote(s), least, most)
	}
	return d, nil
}

// parsePrefix reads a prefix that may be carried through a tunnel.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Errorf("%s is not a prefix: write an address and a length, such as 10.1.0.0/24", quote(s))
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%s is an IPv4 address in IPv6 clothes: write it as IPv4", quote(s))
	case p.Bits() == 0:
		return p, fmt.Errorf("%s is the default route: list the site's own prefixes instead", quote(s))
	case p.Bits() < 8:
		return p, fmt.Errorf("%s is nearly the default route: list prefixes of /8 or longer", quote(s))
	case p != p.Masked():
		return p, fmt.Errorf("%s has bits set behind its length: write %v", quote(s), p.Masked())
	}
	if why := special(p.Addr()); why != "" {
		return p, fmt.Errorf("%s is %s: it cannot be carried, use the prefix of a network", quote(s), why)
	}
	return p, nil
}

// special says why an address can never be a host's on a routed network, or "".
func special(a netip.Addr) string {
	switch {
	case a.IsUnspecified(), a.Is4() && a.As4()[0] == 0:
		return "unspecified"
	case a.IsLoopback():
		return "loopback"
	case a.IsMulticast(), a.Is4() && a.As4()[0] >= 240:
		return "multicast or reserved"
	case a.IsLinkLocalUnicast():
		return "link-local"
	}
	return ""
}

// parseHostAddr reads the IPv4 address of a host.
func parseHostAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return a, fmt.Errorf("%s is not an IPv4 address such as 10.1.0.50", quote(s))
	}
	if why := special(a); why != "" {
		return a, fmt.Errorf("%s is %s: use the address of a host", quote(s), why)
	}
	return a, nil
}

// parseAddrPort reads the address and port of a socket of ours.
func parseAddrPort(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	switch {
	case err != nil:
		return a, fmt.Errorf("%s is not an address and port such as 203.0.113.10:443", quote(s))
	case a.Port() == 0:
		return a, fmt.Errorf("%s has port 0: use 1 to 65535", quote(s))
	case a.Addr().Is4In6(), a.Addr().Zone() != "":
		return a, fmt.Errorf("%s: write a plain IPv4 or IPv6 address, without zone", quote(s))
	}
	return a, nil
}

// parsePort reads 22 or "4000-5999".
func parsePort(v any) (PortRange, error) {
	text := fmt.Sprint(v)
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || b == 0 {
		return PortRange{}, fmt.Errorf("%s is not a port or range of 1 to 65535, such as 22 or \"4000-5999\"", quote(text))
	}
	if a > b {
		return PortRange{}, fmt.Errorf("%s runs backwards: write \"%d-%d\"", quote(text), b, a)
	}
	return PortRange{First: uint16(a), Last: uint16(b)}, nil
}

// parseVLANs reads 10 or "20-29".
func parseVLANs(v any) (first, last uint16, err error) {
	const most = 4094
	r, err := parsePort(v)
	if err != nil || r.Last > most {
		return 0, 0, fmt.Errorf("%s is not a VLAN or range of 1 to %d, such as 10 or \"20-29\"", quote(fmt.Sprint(v)), most)
	}
	return r.First, r.Last, nil
}

// parseEtherType reads 0x88f7 or llc.
func parseEtherType(s string) (uint16, error) {
	if s == "llc" {
		return LLC, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 16)
	if err != nil || !strings.HasPrefix(s, "0x") || n < 0x600 {
		return 0, fmt.Errorf("%s is not an EtherType: write one from \"0x0600\" to \"0xffff\", or \"llc\"", quote(s))
	}
	return uint16(n), nil
}

// parseUnicastMAC reads the MAC of a host.
func parseUnicastMAC(s string) (MAC, error) {
	m, err := ParseMAC(s)
	if err != nil {
		return m, fmt.Errorf("%s is not a MAC address such as 52:54:00:12:34:56", quote(s))
	}
	if m == (MAC{}) || m[0]&1 != 0 {
		return m, fmt.Errorf("%s is not the address of one host: its first byte must be even, and not all bytes zero", quote(s))
	}
	return m, nil
}

// parseKeyFile reads the content of a key file: one key, and lines that are
// empty or begin with #.
func parseKeyFile(data []byte) (Key, error) {
	var found []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			found = append(found, line)
		}
	}
	if len(found) != 1 {
		return Key{}, fmt.Errorf("must hold exactly one key, has %d lines", len(found))
	}
	k, err := ParseKey(found[0])
	if err == nil && k.IsZero() {
		err = errors.New("the key is all zeros: make one with `stitch keygen`")
	}
	return k, err
}

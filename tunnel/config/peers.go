package config

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// maxPeerName is what is left of an interface name behind "st-".
const maxPeerName = 12

// linkRange is where link addresses come from; see LinkAddresses.
var linkRange = netip.MustParsePrefix("169.254.0.0/16")

// publicOf derives the public key; zero for a key that is none.
func publicOf(private Key) Key {
	if private.IsZero() {
		return Key{}
	}
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return Key{}
	}
	return Key(k.PublicKey().Bytes())
}

// checkPublic refuses the keys with which every secret would be known.
func checkPublic(k Key) error {
	if k.IsZero() {
		return errors.New("the key is all zeros: paste what `stitch keygen` printed at the peer")
	}
	pub, err := ecdh.X25519().NewPublicKey(k[:])
	if err != nil {
		return err
	}
	probe, err := ecdh.X25519().NewPrivateKey(slices.Repeat([]byte{0x55}, len(k)))
	if err != nil {
		return err
	}
	if _, err := probe.ECDH(pub); err != nil {
		return errors.New("this is a low-order point, not a key: paste what `stitch keygen` printed at the peer")
	}
	return nil
}

// peers checks every [[peer]].
func (l *loader) peers() {
	if len(l.raw.Peer) == 0 {
		l.problem("peer", "missing: add a [[peer]] table for the other site")
	}
	if l.tooMany("peer", len(l.raw.Peer), MaxPeers) {
		return
	}
	u := uses{l, map[string]string{"name " + l.cfg.Site: "this site's"}}
	for i, r := range l.raw.Peer {
		path := at("peer", i)
		p := Peer{Name: r.Name, Endpoint: r.Endpoint, Stock: r.Stock}
		if l.peerName(path+".name", r.Name) {
			u.once(path+".name", "name "+r.Name, "sites need different names")
		}
		p.PublicKey = l.publicKey(path+".public_key", r.PublicKey, u)
		if r.PresharedKeyFile != "" {
			p.PresharedKey = l.keyFile(path+".preshared_key_file", r.PresharedKeyFile)
		}
		if r.Endpoint != "" {
			l.check(path+".endpoint", checkEndpoint(r.Endpoint))
		}
		p.ListenPort = uint16(l.number(path+".listen_port", r.ListenPort, int64(defaultPort+i), 1, 65535))
		u.once(path+".listen_port", fmt.Sprintf("port %d", p.ListenPort), "every peer has a UDP port of its own: set listen_port")
		p.UnderlayMTU = int(l.number(path+".underlay_mtu", r.UnderlayMTU, defaultUnderlay, MinUnderlayMTU, maxUnderlay))
		switch r.Rate {
		case noRate:
		case "", learnRate:
			if !r.Stock {
				p.Rate = LearnRate
			}
		default:
			n, err := parseRate(r.Rate)
			if err != nil {
				l.problem(path+".rate", "%v, or \"learn\" or \"off\"", err)
			}
			p.Rate = n
		}
		l.packetHistory(path, &r, &p)
		p.Subnets = l.prefixes(path+".subnets", r.Subnets)
		l.narrow(path+".underlay_mtu", &p)
		p.LinkAddresses = l.linkAddresses(path+".link_addresses", r.LinkAddresses, u)
		l.cfg.Peers = append(l.cfg.Peers, p)
	}
}

// packetHistory checks what of a link's packets is kept.
func (l *loader) packetHistory(path string, r *rawPeer, p *Peer) {
	p.PacketHistoryFrom = l.prefixes(path+".packet_history_from", r.HistoryFrom)
	if r.PacketHistory == "" {
		if r.HistoryFrom != nil {
			l.problem(path+".packet_history_from", "says whose packets are kept, and none are: add %s", example(place{key: "peer.packet_history"}))
		}
		return
	}
	n, err := ParseSize(r.PacketHistory)
	switch {
	case !l.check(path+".packet_history", err):
	case n < minHistory || n > maxPacketHistory:
		l.problem(path+".packet_history", "%s is out of range: use \"1MiB\" to \"1GiB\"", quote(r.PacketHistory))
	case r.Stock:
		l.problem(path+".packet_history", "a stock peer keeps no history: remove one of the two")
	}
	p.PacketHistory = int(n)
}

// narrow refuses IPv6 subnets behind a link that does not carry IPv6.
func (l *loader) narrow(path string, p *Peer) {
	mtu := TUNMTU(p.InnerMTU(), p.Stock)
	if mtu < MinIPv6MTU && slices.ContainsFunc(p.Subnets, func(n netip.Prefix) bool { return n.Addr().Is6() }) {
		l.problem(path, "the link would carry packets of at most %d bytes, and IPv6 needs %d: set it to %d or more, if that is what the path carries, or leave out the IPv6 subnets",
			mtu, MinIPv6MTU, p.UnderlayMTU+MinIPv6MTU-mtu)
	}
}

// uses remembers what may be used only once, and by whom it is.
type uses struct {
	*loader
	by map[string]string
}

// once records that path uses what ("port 51820"); a second use is a problem.
func (u uses) once(path, what, remedy string) {
	if first, taken := u.by[what]; taken {
		u.problem(path, "%s is already %s: %s", what, first, remedy)
		return
	}
	u.by[what] = fmt.Sprintf("in line %d", u.lineOf(path))
}

// peerName checks the name of a peer, which is also that of a device.
func (l *loader) peerName(path, name string) bool {
	switch {
	case name == "":
		l.missing(path)
	case parseName(name) != nil:
		l.problem(path, "%v", parseName(name))
	case len(name) > maxPeerName:
		l.problem(path, "%s has %d characters: the device st-%s would be too long, use at most %d", quote(name), len(name), name, maxPeerName)
	case "st-"+name == HoldDevice:
		l.problem(path, "%s is taken: the agent has a device %s of its own, use another name", quote(name), HoldDevice)
	default:
		return true
	}
	return false
}

// publicKey checks the key of a peer.
func (l *loader) publicKey(path, text string, u uses) Key {
	if text == "" {
		l.missing(path)
		return Key{}
	}
	k, err := ParseKey(text)
	if err == nil {
		err = checkPublic(k)
	}
	if err == nil && k == l.public {
		err = errors.New("this is our own public key: paste the peer's")
	}
	if l.check(path, err) {
		u.once(path, "key "+quote(text), "every peer has a key of its own")
	}
	return k
}

// checkEndpoint checks host:port without resolving anything.
func checkEndpoint(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%s is not host:port such as 198.51.100.20:51820", quote(s))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%s has no port of 1 to 65535", quote(s))
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return parseHost(host)
	}
	if a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is4In6() {
		return fmt.Errorf("%s is not the address of a host: use the peer's public address", quote(s))
	}
	return nil
}

// linkAddresses checks the override of the addresses inside the link.
func (l *loader) linkAddresses(path string, text []string, u uses) (pair [2]netip.Addr) {
	if text == nil {
		return pair
	}
	if len(text) != 2 {
		l.problem(path, "needs two addresses, ours and the peer's: write %s", example(place{key: dotted(path)}))
		return pair
	}
	for i, s := range text {
		a, err := netip.ParseAddr(s)
		third := byte(0)
		if err == nil && a.Is4() {
			third = a.As4()[2]
		}
		switch {
		case err != nil, !linkRange.Contains(a), third == 0, third == 255:
			l.problem(at(path, i), "%s is not within 169.254.1.0 to 169.254.254.255", quote(s))
		case third == 169:
			l.problem(at(path, i), "%s is where clouds keep their metadata service: use another third byte", quote(s))
		default:
			u.once(at(path, i), "link address "+s, "use another one")
			pair[i] = a
		}
	}
	return pair
}

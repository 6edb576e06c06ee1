package tunnel

import (
	"fmt"
	"net/netip"
	"strconv"

	"stitch/tunnel/config"
	"stitch/tunnel/redirect"
	"stitch/tunnel/wg"
)

// maxIfName is the longest name of a network interface (IFNAMSIZ less the NUL).
const maxIfName = 15

// TUNName is the device of the link to a peer: "st-" and the peer's name, cut
// to what the kernel takes.
func TUNName(peer string) string {
	name := "st-" + peer
	return name[:min(len(name), maxIfName)]
}

// TAPName is the device of a segment.
func TAPName(id uint16) string { return "sg-" + strconv.Itoa(int(id)) }

// Links returns what the configuration says of the links, by peer name. Link
// addresses that two links would share, and device names that two peers would
// share once cut, are errors.
func Links(cfg *config.Config) (redirect.Links, error) {
	links := redirect.Links{}
	users, devices := map[netip.Addr]string{}, map[string]string{}
	own := wg.PublicKey(cfg.PrivateKey)
	for i, p := range cfg.Peers {
		local, remote := wg.LinkAddrs(own, p.PublicKey)
		if p.LinkAddresses[0].IsValid() {
			local, remote = p.LinkAddresses[0], p.LinkAddresses[1]
		}
		for _, a := range [...]netip.Addr{local, remote} {
			if other, taken := users[a]; taken {
				return nil, fmt.Errorf("peers %s and %s would both use link address %s: set link_addresses for one of them, at both of its ends", other, p.Name, a)
			}
			users[a] = p.Name
		}
		dev := TUNName(p.Name)
		if other, taken := devices[dev]; taken {
			return nil, fmt.Errorf("peers %s and %s would both use device %s: make their names differ in the first %d characters", other, p.Name, dev, maxIfName-len("st-"))
		}
		devices[dev] = p.Name
		links[p.Name] = redirect.LinkInfo{Number: i + 1, Device: dev, Local: local, Remote: remote, InnerMTU: p.InnerMTU(), Stock: p.Stock}
	}
	return links, nil
}

package tunnel_test

import (
	"net/netip"
	"strings"
	"testing"

	"stitch/tunnel"
	"stitch/tunnel/config"
	"stitch/tunnel/wg"
)

// A link too narrow for IPv6 is refused when IPv6 is to be routed into it, with
// the figure that would do; an agent's takes larger packets in parts.
func TestLinkTooNarrowForIPv6(t *testing.T) {
	for _, c := range []struct {
		underlay int
		stock    bool
		subnet   string
		refused  string
	}{
		{1340, true, "fd00:2::/64", ""},
		{1339, true, "fd00:2::/64", "set underlay_mtu to 1340 or more"},
		{1339, true, "10.2.0.0/24", ""},
		{1339, false, "fd00:2::/64", ""},
	} {
		cfg := &config.Config{PrivateKey: config.Key{1}, Peers: []config.Peer{{
			Name: "dc2", PublicKey: wg.PublicKey(config.Key{2}), Endpoint: "198.51.100.20:51820", UnderlayMTU: c.underlay, Stock: c.stock,
			Subnets: []netip.Prefix{netip.MustParsePrefix(c.subnet)},
		}}}
		_, err := tunnel.Links(cfg)
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("underlay %d, stock %v, %s: %v", c.underlay, c.stock, c.subnet, err)
		}
	}
}

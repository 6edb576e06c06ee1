package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/wg"
)

// plainScript runs userspace WireGuard in the foreground with its control
// directory in the lab's own ($1), so that two of them can be called wg0.
const plainScript = `set -e; mkdir -p /run/wireguard "$1"; mount --bind "$1" /run/wireguard; exec "$0" -f wg0`

// startPlain runs userspace WireGuard as wg0 on both edges, MTU 1420, with
// routes to each other's subnets.
func (l *Lab) startPlain(ctx context.Context) error {
	keys, err := newKeys()
	if err != nil {
		return err
	}
	for _, e := range edges {
		dir := filepath.Join(l.opts.Dir, e.host)
		if err := l.launch(e.host, e.host, "sh", "-c", plainScript, l.opts.WireGuard, dir); err != nil {
			return err
		}
	}
	for i, e := range slices.Backward(edges[:]) { // the first edge calls, so it is last
		if err := l.configurePlain(ctx, i, keys[e.host], wg.PublicKey(keys[e.other])); err != nil {
			return fmt.Errorf("%s: %w; the last lines of its log:\n%s", e.host, err, l.tail(e.host))
		}
	}
	if !waitFor(ctx, linkWait, func() bool { return l.handshaken("e1") && l.handshaken("e2") }) {
		return errors.Join(fmt.Errorf("no WireGuard handshake after %v", linkWait), ctx.Err())
	}
	return nil
}

// configurePlain sets keys, peer, addresses and routes of edge i. Only the
// first edge keeps alive: two ends that start their handshakes together over
// equal delays can invalidate each other's for ever.
func (l *Lab) configurePlain(ctx context.Context, i int, private, peerKey config.Key) error {
	e, other := edges[i], edges[1-i]
	request := fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\nreplace_allowed_ips=true\n"+
		"allowed_ip=0.0.0.0/0\nallowed_ip=::/0\n", private[:], listenPort, peerKey[:])
	if i == 0 {
		request += fmt.Sprintf("endpoint=%s:%d\npersistent_keepalive_interval=25\n", other.addr, listenPort)
	}
	var err error
	ready := func() bool { _, err = l.uapi(e.host, request); return err == nil }
	if !waitFor(ctx, 5*time.Second, ready) {
		return err
	}
	lines := address("wg0", fmt.Sprintf("169.254.77.%d/30", i+1)) + "link set wg0 mtu 1420\n"
	for _, s := range other.subnets {
		lines += "route add " + s + " dev wg0\n"
	}
	return ipBatch(ctx, l.ns(e.host), lines)
}

// Stretch joins the two bridges of the segment by hand, as one does without an
// agent: a VXLAN device over wg0 in each, and the MTU of the hosts there (s1 and
// s2) lowered to what it leaves, 1370. The lab must be a Plain one, and new.
func (l *Lab) Stretch(ctx context.Context) error {
	for i, e := range edges {
		lines := fmt.Sprintf("link add vx0 type vxlan id 100 local 169.254.77.%d remote 169.254.77.%d dstport 4789 dev wg0\n"+
			"link set vx0 mtu 1370 master %s up\n", i+1, 2-i, e.bridge)
		if err := ipBatch(ctx, l.ns(e.host), lines); err != nil {
			return err
		}
		if err := ipBatch(ctx, l.ns(fmt.Sprintf("s%d", i+1)), "link set eth0 mtu 1370\n"); err != nil {
			return err
		}
	}
	return nil
}

// Publish makes a TCP port of h2 answer at e2's address on the WAN, 198.51.100.20:
// the direct path from h1, with no tunnel. The edges only translate addresses. The
// lab should be one with NoAgents.
func (l *Lab) Publish(ctx context.Context, port int) error {
	e := edges[1]
	table := fmt.Sprintf(`table ip stitch_lab_published {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "wan0" ip daddr %s tcp dport %d dnat to 10.2.0.10
	}
}
`, e.addr, port)
	return feed(l.ns(e.host).Command(ctx, "nft", "-f", "-"), table)
}

// handshaken reports whether a host's only peer has completed a handshake.
func (l *Lab) handshaken(host string) bool {
	answer, err := l.uapi(host, "get=1\n")
	return err == nil && answer["last_handshake_time_sec"] != "" && answer["last_handshake_time_sec"] != "0"
}

// uapi sends one request of WireGuard's control protocol and returns the
// answer's fields; of repeated ones the last.
func (l *Lab) uapi(host, request string) (map[string]string, error) {
	conn, err := net.Dial("unix", filepath.Join(l.opts.Dir, host, "wg0.sock"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte(request + "\n")); err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for in := bufio.NewScanner(conn); in.Scan() && in.Text() != ""; {
		k, v, _ := strings.Cut(in.Text(), "=")
		fields[k] = v
	}
	if fields["errno"] != "0" {
		return nil, fmt.Errorf("wireguard control: errno %q", fields["errno"])
	}
	return fields, nil
}

// removePlain removes the directory userspace WireGuard wants, if it is empty.
func removePlain() { _ = os.Remove("/run/wireguard") }

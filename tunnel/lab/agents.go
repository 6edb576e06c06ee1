package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/control"
	"stitch/tunnel/wg"
)

// newKeys returns a private key for each edge.
func newKeys() (map[string]config.Key, error) {
	keys := map[string]config.Key{}
	for _, e := range edges {
		k, err := wg.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		keys[e.host] = k
	}
	return keys, nil
}

// listenPort is the edges' WireGuard port.
const listenPort = 51820

// agentConfig returns the configuration of e's agent.
func (e edge) agentConfig(dir, history string, peer edge, peerKey config.Key) string {
	quote := func(s []string) string { return `["` + strings.Join(s, `", "`) + `"]` }
	var b strings.Builder
	fmt.Fprintf(&b, "site = %q\nrun_dir = %q\nprivate_key_file = %q\nsubnets = %s\n\n",
		e.site, filepath.Join(dir, e.host), filepath.Join(dir, e.host+".key"), quote(e.subnets))
	fmt.Fprintf(&b, "[[peer]]\nname = %q\npublic_key = %q\nendpoint = \"%s:%d\"\nlisten_port = %d\nsubnets = %s\n\n",
		peer.site, peerKey.Base64(), peer.addr, listenPort, listenPort, quote(peer.subnets))
	fmt.Fprintf(&b, "[[segment]]\nid = 100\nbridge = %q\nsubnet = \"10.1.0.0/24\"\ngateway = \"10.1.0.1\"\n"+
		"gateway_mac = %q\nhome = \"dc1\"\npeers = [%q]\n\n", e.bridge, gatewayMAC, peer.site)
	b.WriteString("[[domain]]\nname = \"migration\"\n\n")
	fmt.Fprintf(&b, "[[stream]]\npeer = %q\nto = %s\nports = [\"4000-5999\"]\ndomain = \"migration\"\n\n", peer.site, quote(peer.fixed))
	fmt.Fprintf(&b, "[[dial]]\npeer = %q\nto = %s\nports = [\"4000-5999\"]\ndomain = \"migration\"\n\n", peer.site, quote(e.fixed))
	fmt.Fprintf(&b, "[history]\nsize = %q\n\n", history)
	b.WriteString(workloads)
	fmt.Fprintf(&b, "[dns]\nlisten = [\"%s:53\"]\nttl = \"5s\"\n", e.addr)
	return b.String()
}

// workloads and services are the same at both sites.
var workloads = func() string {
	s := `[[workload]]
name = "app"
mac = "52:54:00:00:00:50"
ip = "10.1.0.50"
site = "dc1"
segment = 100

[[workload]]
name = "s2"
mac = "02:53:54:01:00:12"
ip = "10.1.0.12"
site = "dc2"
segment = 100

`
	for _, port := range []int{80, 443, 8080} {
		s += fmt.Sprintf("[[service]]\nname = \"www.app.example\"\nworkload = \"app\"\nport = %d\n"+
			"[service.at]\ndc1 = \"%s:%d\"\ndc2 = \"%s:%d\"\n\n", port, edges[0].addr, port, edges[1].addr, port)
	}
	return s
}()

// startAgents writes keys and configurations, starts both agents and waits
// until each says that all its links are up.
func (l *Lab) startAgents(ctx context.Context) error {
	keys, err := newKeys()
	if err != nil {
		return err
	}
	for i, e := range edges {
		text := e.agentConfig(l.opts.Dir, l.opts.History, edges[1-i], wg.PublicKey(keys[e.other]))
		if l.opts.Edit != nil {
			text = l.opts.Edit(e.host, text)
		}
		key := keys[e.host].Base64() + "\n"
		if err := writeFiles(l.opts.Dir, map[string]string{e.host + ".key": key, e.host + ".toml": text}); err != nil {
			return err
		}
		args := []string{"up"}
		if !l.opts.Streams {
			args = append(args, "--streams=false")
		}
		args = append(args, filepath.Join(l.opts.Dir, e.host+".toml"))
		if err := l.launch(e.host, e.host, l.opts.Stitch, args...); err != nil {
			return err
		}
	}
	return l.waitLinks(ctx)
}

// linkWait bounds the wait for the links.
const linkWait = 15 * time.Second

// waitLinks waits until both agents report all links up.
func (l *Lab) waitLinks(ctx context.Context) error {
	why := map[string]string{}
	up := func() bool {
		for _, e := range edges {
			why[e.host] = linkTrouble(ctx, l.socket(e.host))
		}
		return why["e1"] == "" && why["e2"] == "" || l.dead() != ""
	}
	if waitFor(ctx, linkWait, up) && l.dead() == "" {
		return nil
	}
	if host := l.dead(); host != "" {
		return fmt.Errorf("the process of %s ended; the last lines of its log:\n%s", host, l.tail(host))
	}
	msg := fmt.Sprintf("the links are not up after %v", linkWait)
	for _, host := range []string{"e1", "e2"} {
		if why[host] != "" {
			msg += fmt.Sprintf("\n%s: %s; the last lines of its log:\n%s", host, why[host], l.tail(host))
		}
	}
	return errors.New(msg)
}

// linkTrouble says why not all links of an agent are up, or "".
func linkTrouble(ctx context.Context, socket string) string {
	s, err := agentStatus(ctx, socket)
	if err != nil {
		return err.Error()
	}
	for _, k := range s.Links {
		if k.State != "up" {
			return fmt.Sprintf("the link to %s is %s", k.Peer, k.State)
		}
	}
	if len(s.Links) == 0 {
		return "it has no links"
	}
	return ""
}

// agentStatus asks an agent's control socket for its status.
func agentStatus(ctx context.Context, socket string) (*control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return control.NewClient(socket).Status(ctx)
}

// socket is the control socket of an agent.
func (l *Lab) socket(host string) string { return filepath.Join(l.opts.Dir, host, control.Socket) }

// writeFiles writes files that only root may read.
func writeFiles(dir string, files map[string]string) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

package tunnel_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
	"stitch/tunnel/control"
	"stitch/tunnel/ether"
	"stitch/tunnel/lab"
	"stitch/tunnel/wg"
)

// three is a network of three edges (e1 to e3) on one underlay. Each has a host
// hN in segment 100; e1 and e3 have hosts g1 and g3 in segment 200.
type three struct {
	t      *testing.T
	dir    string
	agents [3]*exec.Cmd
}

func (w *three) ns(host string) lab.Namespace { return lab.Namespace("e2e3-" + host) }

// ip runs the ip command once for each line.
func (w *three) ip(lines string) {
	w.t.Helper()
	for line := range strings.SplitSeq(lines, "\n") {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			w.t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
}

// in runs a command on a host.
func (w *three) in(host string, args ...string) error {
	out, err := w.ns(host).Command(context.Background(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %s: %w: %s", host, strings.Join(args, " "), err, out)
	}
	return nil
}

// newThree builds the network and starts the agents.
func newThree(t *testing.T) *three {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	w := &three{t: t, dir: t.TempDir()}
	w.lock()
	hosts := []string{"u", "e1", "e2", "e3", "h1", "h2", "h3", "g1", "g3"}
	remove := func() {
		for _, h := range hosts {
			_ = exec.Command("ip", "netns", "del", string(w.ns(h))).Run()
		}
	}
	remove() // of a run that was killed
	t.Cleanup(remove)
	for _, h := range hosts {
		w.ip("netns add " + string(w.ns(h)))
	}
	for _, key := range []string{"net.ipv6.conf.default.accept_dad=0", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"} {
		for _, h := range hosts {
			if err := w.in(h, "sysctl", "-qw", key); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.ip("-n e2e3-u link add br0 type bridge\n-n e2e3-u link set br0 up")
	for i := 1; i <= 3; i++ {
		e := fmt.Sprintf("e2e3-e%d", i)
		w.ip(fmt.Sprintf("link add wan0 netns %s type veth peer name e%d netns e2e3-u\n-n e2e3-u link set e%d master br0 up\n"+
			"-n %s link set wan0 up\n-n %s address add 203.0.113.%d/24 dev wan0", e, i, i, e, e, i))
		w.host(i, "h", "br-a", "10.1.0")
		if i != 2 {
			w.host(i, "g", "br-b", "10.2.0")
		}
	}
	w.start()
	return w
}

// lock keeps another run on this machine waiting: it would use the same names.
func (w *three) lock() {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "stitch-e2e3.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { f.Close() })
}

// host plugs a host into a bridge of an edge.
func (w *three) host(i int, name, bridge, net string) {
	e, h := fmt.Sprintf("e2e3-e%d", i), fmt.Sprintf("e2e3-%s%d", name, i)
	w.ip(fmt.Sprintf("-n %s link add %s type bridge mcast_snooping 0 forward_delay 0\n-n %s link set %s up\n"+
		"link add eth0 netns %s type veth peer name lan-%s netns %s\n-n %s link set lan-%s master %s up\n"+
		"-n %s link set eth0 up\n-n %s address add %s.1%d/24 dev eth0",
		e, bridge, e, bridge, h, name, e, e, name, bridge, h, h, net, i))
}

// start writes configurations and starts the agents.
func (w *three) start() {
	w.t.Helper()
	bin, err := program()
	if err != nil {
		w.t.Fatal(err)
	}
	var keys [3]config.Key
	for i := range keys {
		if keys[i], err = wg.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{byte(i + 1)}, 32))); err != nil {
			w.t.Fatal(err)
		}
	}
	for i := range keys {
		site := fmt.Sprintf("dc%d", i+1)
		base := filepath.Join(w.dir, site)
		for name, text := range map[string]string{base + ".toml": w.config(i, keys), base + ".key": keys[i].Base64() + "\n"} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				w.t.Fatal(err)
			}
		}
		w.launch(i, bin)
	}
}

func (w *three) launch(i int, bin string) {
	w.t.Helper()
	log, err := os.OpenFile(filepath.Join(w.dir, fmt.Sprintf("dc%d.log", i+1)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	cmd := w.ns(fmt.Sprintf("e%d", i+1)).Command(context.Background(), bin, "up", "--streams=false", filepath.Join(w.dir, fmt.Sprintf("dc%d.toml", i+1)))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.agents[i] = cmd
	w.t.Cleanup(func() { w.stop(cmd) })
}

// stop ends an agent and waits for it.
func (w *three) stop(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
}

// config is the file of one site.
func (w *three) config(i int, keys [3]config.Key) string {
	var b strings.Builder
	fmt.Fprintf(&b, "site = \"dc%d\"\nrun_dir = %q\nprivate_key_file = \"dc%d.key\"\n", i+1, w.runDir(i), i+1)
	var peers []string
	for j := range keys {
		if j == i {
			continue
		}
		peers = append(peers, fmt.Sprintf("\"dc%d\"", j+1))
		fmt.Fprintf(&b, "[[peer]]\nname = \"dc%d\"\npublic_key = %q\nendpoint = \"203.0.113.%d:%d\"\nlisten_port = %d\n",
			j+1, wg.PublicKey(keys[j]).Base64(), j+1, 50001+i, 50001+j)
	}
	segment := "[[segment]]\nid = %d\nbridge = %q\nsubnet = \"%s.0/24\"\ngateway = \"%s.1\"\ngateway_mac = \"02:53:54:00:01:0%d\"\nhome = \"dc1\"\npeers = [%s]\n"
	fmt.Fprintf(&b, segment, 100, "br-a", "10.1.0", "10.1.0", 0, strings.Join(peers, ", "))
	if i != 1 {
		fmt.Fprintf(&b, segment, 200, "br-b", "10.2.0", "10.2.0", 1, map[int]string{0: `"dc3"`, 2: `"dc1"`}[i])
	}
	return b.String()
}

func (w *three) runDir(i int) string { return filepath.Join(w.dir, fmt.Sprintf("run%d", i+1)) }

// status asks the agent of a site.
func (w *three) status(i int) (control.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := control.NewClient(filepath.Join(w.runDir(i), control.Socket)).Status(ctx)
	if err != nil {
		return control.Status{}, err
	}
	return *s, nil
}

// up waits until every link of every site is up.
func (w *three) up() {
	w.t.Helper()
	eventually(w.t, 20*time.Second, "all links are up", func() bool {
		for i := range w.agents {
			s, err := w.status(i)
			if err != nil || len(s.Links) != 2 || s.Links[0].State != "up" || s.Links[1].State != "up" {
				return false
			}
		}
		return true
	})
}

// TestE2EThreeSites stretches two segments over three real agents: every host
// reaches every other one of its segment and none of the other, a flood ping to
// all is answered once by each, and the loss of one edge hurts nobody else.
func TestE2EThreeSites(t *testing.T) {
	w := newThree(t)
	defer func() {
		if t.Failed() {
			for i := range w.agents {
				text, _ := os.ReadFile(filepath.Join(w.dir, fmt.Sprintf("dc%d.log", i+1)))
				t.Logf("dc%d.log:\n%s", i+1, text[max(0, len(text)-2000):])
			}
		}
	}()
	w.up()
	reach := func(from, addr string) error { return w.in(from, "ping", "-c1", "-W2", "-s1472", "-Mdo", addr) }
	for i := 1; i <= 3; i++ {
		for j := 1; j <= 3; j++ {
			if i != j {
				if err := reach(fmt.Sprintf("h%d", i), fmt.Sprintf("10.1.0.1%d", j)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	for _, p := range [][2]string{{"g1", "10.2.0.13"}, {"g3", "10.2.0.11"}} {
		if err := reach(p[0], p[1]); err != nil {
			t.Error(err)
		}
	}
	w.onceEach()
	// A broadcast of segment 100 never shows in segment 200.
	if err := w.in("g1", "ip", "address", "add", "10.1.0.99/24", "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	if reach("h3", "10.1.0.99") == nil {
		t.Error("a host of segment 200 was reached in segment 100")
	}
	w.stop(w.agents[1])
	if err := reach("h1", "10.1.0.13"); err != nil {
		t.Errorf("after the loss of dc2: %v", err)
	}
	bin, _ := program()
	w.launch(1, bin)
	w.up()
	eventually(t, 5*time.Second, "h2 reaches h3 after its edge is back", func() bool { return reach("h2", "10.1.0.13") == nil })
}

// onceEach pings the broadcast address and wants one answer of every host.
func (w *three) onceEach() {
	w.t.Helper()
	for _, h := range []string{"h1", "h2", "h3"} {
		if err := w.in(h, "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_broadcasts=0"); err != nil {
			w.t.Fatal(err)
		}
	}
	out, _ := w.ns("h1").Command(context.Background(), "ping", "-b", "-i3", "-w2", "10.1.0.255").CombinedOutput()
	for _, from := range []string{"10.1.0.12", "10.1.0.13"} {
		if n := strings.Count(string(out), "from "+from+": icmp_seq=1 "); n != 1 {
			w.t.Errorf("%d answers of %s to one broadcast, want 1:\n%s", n, from, out)
		}
	}
	s, err := w.status(0)
	if err != nil {
		w.t.Fatal(err)
	}
	var st ether.Stats
	if err := json.Unmarshal(s.Segments[0], &st); err != nil || st.MACs["dc2"] == 0 || st.MACs["dc3"] == 0 || st.Loops != 0 {
		w.t.Errorf("dc1 says %+v, %v", st, err)
	}
}

package tunnel_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"stitch/tunnel/control"
	"stitch/tunnel/lab"
)

// TestE2EUpDown starts an agent with everything in it again and again, and ends it by a
// signal or by killing all of its processes at once: the next one always starts, and
// after one that was told to stop the kernel has what it had after the first, no more.
// The control is the agent while it runs, which has much more.
func TestE2EUpDown(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	n := 6
	if os.Getenv("STITCH_LONG") != "" {
		n = 1000
	}
	a := newLoneAgent(t)
	a.up()
	during := a.objects()
	a.stop()
	before := a.objects()
	if len(during) <= len(before) {
		t.Fatalf("an agent that runs has no more objects in the kernel than one that has stopped:\n%s", during)
	}
	for i := range n {
		a.up()
		if i%2 == 1 {
			a.kill()
			a.up()
		}
		a.stop()
		if now := a.objects(); now != before {
			t.Fatalf("after cycle %d there are\n%s\nafter the first there were\n%s", i, now, before)
		}
	}
}

// loneAgent is an agent in a namespace of its own, whose peer is not there.
type loneAgent struct {
	t         *testing.T
	ns        lab.Namespace
	dir, file string
	cmd       *exec.Cmd
	log       *os.File
}

func newLoneAgent(t *testing.T) *loneAgent {
	a := &loneAgent{t: t, ns: lab.Namespace(fmt.Sprintf("e2eud%d", os.Getpid())), dir: t.TempDir()}
	a.file = filepath.Join(a.dir, "dc1.toml")
	var err error
	if a.log, err = os.Create(filepath.Join(a.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.cmd != nil {
			a.kill()
		}
		if text, err := os.ReadFile(a.log.Name()); err == nil && t.Failed() {
			t.Logf("%s", text[max(0, len(text)-3000):])
		}
		a.log.Close()
		_ = exec.Command("ip", "netns", "del", string(a.ns)).Run()
	})
	if out, err := exec.Command("ip", "netns", "add", string(a.ns)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The bridge has the gateway's MAC: an agent that is killed leaves it there, and the next
	// one does not know what it was.
	a.run("sh", "-ec", "ip link set lo up; sysctl -qw net.ipv6.conf.default.addr_gen_mode=1; ip link add br-lan address 02:53:54:00:01:00 type bridge; ip link add lan0 type veth peer name lan1; ip link set lan0 master br-lan up; ip link set lan1 up; ip link set br-lan up; ip addr add 10.1.0.2/24 dev br-lan; sysctl -qw net.ipv4.ip_forward=1")
	if out, err := exec.Command(programPath(t), "keygen", filepath.Join(a.dir, "dc1.key")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text := fmt.Sprintf(`site = "dc1"
run_dir = %q
private_key_file = "dc1.key"
subnets = ["10.1.0.0/24"]
[[peer]]
name = "dc2"
public_key = "L+dgrlz6Kx0HFBeH1GNZlskq+6O5Kwe6eHGm1qhybRA="
endpoint = "198.51.100.20:51820"
listen_port = 51820
subnets = ["10.2.0.0/24"]
[[domain]]
name = "migration"
[[stream]]
peer = "dc2"
to = ["10.2.0.0/24"]
ports = ["4000"]
domain = "migration"
[[stream]]
peer = "dc2"
segment = 100
ports = ["4000"]
domain = "migration"
[history]
size = "16MiB"
dir = %q
[[segment]]
id = 100
bridge = "br-lan"
subnet = "10.1.0.0/24"
gateway = "10.1.0.1"
gateway_mac = "02:53:54:00:01:00"
home = "dc1"
peers = ["dc2"]
[[workload]]
name = "app"
mac = "52:54:00:00:00:50"
ip = "10.1.0.50"
site = "dc1"
segment = 100
[[service]]
name = "www.app.example"
workload = "app"
port = 443
at = { dc1 = "203.0.113.10:443", dc2 = "198.51.100.20:443" }
[dns]
listen = ["127.0.0.1:5353"]
ttl = "5s"
`, filepath.Join(a.dir, "run"), filepath.Join(a.dir, "history"))
	if err := os.WriteFile(a.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// run runs a command in the namespace.
func (a *loneAgent) run(name string, args ...string) string {
	a.t.Helper()
	out, err := a.ns.Command(a.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		a.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// up starts it, and waits until both processes serve and the segment's connections
// could be split.
func (a *loneAgent) up() {
	a.t.Helper()
	a.cmd = a.ns.Command(context.Background(), programPath(a.t), "up", a.file)
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	eventually(a.t, 20*time.Second, "it serves", func() bool {
		st, err := a.client().Status(a.t.Context())
		return err == nil && st.Streams != nil && st.Redirect != nil && strings.Contains(string(st.Divert), `"connected":true`)
	})
}

// stop tells it to.
func (a *loneAgent) stop() {
	a.t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
	if err := a.cmd.Wait(); err != nil {
		a.t.Fatal(err)
	}
	a.cmd = nil
}

// kill ends the supervisor and its children at once, without a word.
func (a *loneAgent) kill() {
	a.t.Helper()
	st, err := a.client().Status(context.Background())
	if err != nil {
		st = new(control.Status) // it does not even answer
	}
	killAll(a.t, st, a.cmd.Process.Pid)
	_ = a.cmd.Wait() // killed
	a.cmd = nil
}

// client asks it.
func (a *loneAgent) client() *control.Client {
	return control.NewClient(filepath.Join(a.dir, "run", control.Socket))
}

// objects lists what there is of the agent's in the kernel, without numbers that only
// count.
func (a *loneAgent) objects() string {
	a.t.Helper()
	return a.run("sh", "-ec", "ip -o link | sed 's/^[0-9]*: //'; ip -o addr | sed 's/^[0-9]*: //'; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; "+
		"ip neigh show nud permanent; bridge fdb show br br-lan; nft -s list ruleset; ss -Htuln")
}

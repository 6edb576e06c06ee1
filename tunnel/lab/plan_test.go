package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/wan"
)

// TestPlan checks what the kernel would only tell by a half-built lab: device
// names that are too long or given twice, MACs and addresses given twice.
func TestPlan(t *testing.T) {
	for _, emulator := range []bool{true, false} {
		p := newPlan(emulator, "cubic")
		devices, macs, addrs := map[string]bool{}, map[string]bool{}, map[string]string{}
		once := func(set map[string]bool, key string) {
			if set[key] {
				t.Errorf("emulator %v: %s is there twice", emulator, key)
			}
			set[key] = true
		}
		for _, c := range p.cables {
			once(macs, c.mac)
			once(macs, c.peerMAC)
			for _, d := range []string{c.host + " " + c.dev, c.peer + " " + c.peerDev} {
				once(devices, d)
				if _, dev, _ := strings.Cut(d, " "); len(dev) > 15 {
					t.Errorf("device name %s is too long", dev)
				}
			}
		}
		for h, lines := range p.ip {
			for line := range strings.Lines(lines) {
				f := strings.Fields(line)
				if f[0] != "address" {
					continue
				}
				a := netip.MustParsePrefix(f[2]).Addr().String()
				if other, taken := addrs[a]; taken && other != h {
					t.Errorf("%s is at %s and %s", a, other, h)
				}
				addrs[a] = h
			}
		}
		for a, h := range map[string]string{"203.0.113.10": "e1", "198.51.100.20": "e2", "10.1.0.1": "e1", "10.2.0.1": "e2", "10.1.1.1": "e1",
			"10.1.0.10": "h1", "10.2.0.10": "h2", "10.1.0.11": "s1", "10.1.0.12": "s2", "10.1.1.20": "d1", "192.0.2.7": "c1"} {
			if addrs[a] != h {
				t.Errorf("%s is at %q, want %s", a, addrs[a], h)
			}
		}
	}
}

func TestCongestion(t *testing.T) {
	for h, lines := range newPlan(true, "bbr").ip {
		if strings.Contains(lines, "cubic") || strings.Contains(lines, "eth0") != strings.Contains(lines, "congctl bbr") {
			t.Errorf("%s: %s", h, lines)
		}
	}
	if _, err := (Options{Congestion: "b b r", NoAgents: true}).withDefaults(); err == nil {
		t.Error("no error of a name with blanks")
	}
}

func TestEmulatorConfig(t *testing.T) {
	cfg := emulatorConfig(wan.Params{Rate: 7, Delay: time.Second}, "/x")
	got := map[string]wan.Params{}
	for _, p := range cfg.Paths {
		got[p.From+p.To] = p.Params
	}
	if len(got) != 6 || got["e1e2"].Rate != 7 || got["e2e1"].Delay != time.Second || got["e1e2"].Seed == got["e2e1"].Seed {
		t.Errorf("between the edges: %+v", got)
	}
	for _, p := range []string{"c1e1", "e1c1", "c1e2", "e2c1"} {
		if got[p].Rate != 1e9 || got[p].Delay != 10*time.Millisecond {
			t.Errorf("%s: %+v", p, got[p])
		}
	}
}

// TestProcessor: a process that works is seen on its host only.
func TestProcessor(t *testing.T) {
	needRoot(t)
	l := Start(t, network(0, 0))
	if got := l.Processor("c1", "h1"); got != 0 {
		t.Errorf("nothing runs: %v", got)
	}
	busy := l.Command("c1", "sh", "-c", "while :; do :; done")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Process.Kill(); _ = busy.Wait() }()
	for end := time.Now().Add(20 * time.Second); l.Processor("c1") < 100*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 20 s: %v", l.Processor("c1"))
		}
	}
	if got := l.Processor("h1"); got != 0 {
		t.Errorf("the other host: %v", got)
	}
}

// TestDo runs code in two namespaces many times and never leaves a thread of
// the test there.
func TestDo(t *testing.T) {
	needRoot(t)
	l := Start(t, network(0, 0))
	home, err := statNS("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		host := []string{"h1", "c1"}[i%2]
		if err := l.ns(host).Do(func() error { return inside("eth0") }); err != nil {
			t.Fatalf("%s: %v", host, err)
		}
	}
	want := errors.New("mine")
	if err := l.ns("d1").Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error of fn: %v", err)
	}
	if err := Namespace("no-such").Do(func() error { t.Error("ran"); return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing namespace: %v", err)
	}
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		if id, err := statNS("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && id != home {
			t.Errorf("thread %s is still in a namespace", task.Name())
		}
	}
}

// inside checks that the thread's namespace has the device and is not the
// process's.
func inside(dev string) error {
	if _, err := net.InterfaceByName(dev); err != nil {
		return err
	}
	if id, err := statNS("/proc/thread-self/ns/net"); err != nil {
		return err
	} else if main, err := statNS("/proc/self/ns/net"); err != nil || id == main {
		return errors.New("fn runs in the process's own namespace")
	}
	return nil
}

package stream_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"stitch/tunnel/stream"
)

// leftovers is what a stream process and its namespace hold.
type leftovers struct {
	goroutines, descriptors int
	sockets                 int    // that are open; TIME-WAIT has no process
	objects                 string // devices, addresses, rules, routes, nftables
}

// held counts it.
func (r *rig) held(site string) leftovers {
	r.t.Helper()
	e := r.edges[site]
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.cmd.Process.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	read := func(command string) string {
		out, err := exec.Command("ip", "netns", "exec", r.prefix+"e"+site[2:], "sh", "-ec", command).CombinedOutput()
		if err != nil {
			r.t.Fatalf("%s: %v: %s", command, err, out)
		}
		return string(out)
	}
	sockets := strings.Count(read("ss -Htan | grep -v TIME-WAIT || true"), "\n")
	// Without link-local addresses, which the kernel still tries out at first.
	objects := read("ip -o link; ip -o addr | grep -v fe80:; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | grep -v fe80:; nft -s list ruleset")
	return leftovers{r.report(site).Goroutines, len(files), sockets, objects}
}

// cycle makes a connection of each kind, and ends each in its way.
func (r *rig) cycle(i int) {
	r.t.Helper()
	for _, addr := range []string{"10.2.0.10:4000", "[fd00:2::10]:5000", "10.2.0.10:7000"} { // faithful, early, passed
		c, s := r.pair(addr)
		io.WriteString(c, "question")
		c.CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "question" {
			r.t.Fatalf("cycle %d, %s: %q, %v", i, addr, got, err)
		}
		s.Close()
		if _, err := io.ReadAll(c); err != nil {
			r.t.Fatalf("cycle %d, %s: %v", i, addr, err)
		}
		c.Close()
	}
	c, s := r.pair("10.2.0.10:4001")
	c.SetLinger(0)
	c.Close()
	if _, err := io.ReadAll(s); !errors.Is(err, syscall.ECONNRESET) {
		r.t.Fatalf("cycle %d: %v, want a reset", i, err)
	}
	s.Close()
	if _, err := r.dial("h1", "10.2.0.10:4002"); !errors.Is(err, syscall.ECONNREFUSED) {
		r.t.Fatalf("cycle %d: %v", i, err)
	}
}

// TestKernelCycles: connections that end cleanly, by reset, are refused or passed leave no
// goroutine, descriptor, socket or object of the kernel behind.
func TestKernelCycles(t *testing.T) {
	n := 200
	if os.Getenv("STITCH_LONG") != "" {
		n = 1000
	}
	r := newRig(t)
	for i := range 3 { // what is made on demand is there after these
		r.cycle(i)
	}
	const warm = 4 // connections that each domain keeps
	idle := func() bool {
		for site := range r.edges {
			s := r.stats(site)
			if s.Admitted > 0 || slices.ContainsFunc(s.Peers[0].Domains, func(d stream.DomainStats) bool { return d.Ready != warm }) {
				return false
			}
		}
		return true
	}
	r.until("nothing is open", idle)
	before := map[string]leftovers{"dc1": r.held("dc1"), "dc2": r.held("dc2")}
	for i := range n {
		r.cycle(i)
	}
	const spare = 2 // what the runtime makes for itself
	for site, b := range before {
		var now leftovers
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s: now %+v, before %+v", site, now, b)
			}
		})
		r.until("what was there before is all there is at "+site, func() bool {
			now = r.held(site)
			return idle() && now.goroutines <= b.goroutines+spare && now.descriptors <= b.descriptors+spare && now.sockets <= b.sockets+spare && now.objects == b.objects
		})
		t.Logf("%s after %d cycles: %d goroutines, %d descriptors, %d sockets; before %d, %d, %d", site, n, now.goroutines, now.descriptors, now.sockets, b.goroutines, b.descriptors, b.sockets)
	}
	open, _ := r.pair("10.2.0.10:4003") // the control: one that is open is seen
	defer open.Close()
	if now := r.held("dc1"); now.goroutines <= before["dc1"].goroutines || now.sockets <= before["dc1"].sockets {
		t.Errorf("with an open stream there are %d goroutines and %d sockets: this test sees nothing", now.goroutines, now.sockets)
	}
}

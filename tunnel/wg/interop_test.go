package wg

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/netdevtest"
)

// twoSpaces are two network namespaces joined by a veth pair, 192.0.2.1 and
// 192.0.2.2, that vanish with the test.
type twoSpaces struct {
	names [2]string
}

func newTwoSpaces(t *testing.T) *twoSpaces {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces and TUN devices")
	}
	for _, tool := range []string{"ip", "wg", "wireguard-go"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs the program %s (packages iproute2, wireguard-tools, wireguard-go)", tool)
		}
	}
	s := &twoSpaces{}
	for i := range s.names {
		s.names[i] = fmt.Sprintf("swg%d-%d", os.Getpid(), i)
		must(t, "ip", "netns", "add", s.names[i])
		t.Cleanup(func() { exec.Command("ip", "netns", "del", s.names[i]).Run() })
	}
	must(t, "ip", "link", "add", "veth0", "netns", s.names[0], "type", "veth", "peer", "name", "veth0", "netns", s.names[1])
	for i, ns := range s.names {
		must(t, "ip", "-n", ns, "addr", "add", fmt.Sprintf("192.0.2.%d/24", i+1), "dev", "veth0")
		must(t, "ip", "-n", ns, "link", "set", "lo", "up")
		must(t, "ip", "-n", ns, "link", "set", "veth0", "up")
	}
	return s
}

func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// inside runs f in namespace i on a thread of its own.
func (s *twoSpaces) inside(t testing.TB, i int, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := netns.GetFromName(s.names[i])
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// openLink opens a TUN st-test and a link over it in namespace i.
func (s *twoSpaces) openLink(t testing.TB, i int, cfg Config, mtu int) *Link {
	t.Helper()
	var l *Link
	s.inside(t, i, func() error {
		dev, err := netdev.Linux{}.OpenTUN("st-test", mtu)
		if err != nil {
			return err
		}
		t.Cleanup(func() { dev.Close() })
		cfg.TUN = dev
		if l, err = Open(cfg); err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		link, err := netlink.LinkByName("st-test")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(fmt.Sprintf("10.77.0.%d/24", i+1))
		if err != nil {
			return err
		}
		return netlink.AddrReplace(link, addr) // the device outlives its descriptor
	})
	return l
}

// startStock runs wireguard-go in namespace i, without endpoint. The device's
// name must be unique on the host: its control socket is, whatever the
// namespace, a file of that name in /var/run/wireguard.
func (s *twoSpaces) startStock(t *testing.T, i int, private, peer config.Key) {
	t.Helper()
	name := fmt.Sprintf("swg%d", os.Getpid())
	cmd := exec.Command("ip", "netns", "exec", s.names[i], "wireguard-go", "-f", name)
	cmd.Env = append(os.Environ(), "WG_PROCESS_FOREGROUND=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(private.Base64()), 0o600); err != nil {
		t.Fatal(err)
	}
	wgSet := func() error {
		return exec.Command("ip", "netns", "exec", s.names[i], "wg", "set", name, "private-key", file, "listen-port", "51820",
			"peer", base64.StdEncoding.EncodeToString(peer[:]), "allowed-ips", "10.77.0.0/24").Run()
	}
	waitFor(t, "wireguard-go to listen on its control socket", func() bool { return wgSet() == nil })
	must(t, "ip", "-n", s.names[i], "addr", "add", fmt.Sprintf("10.77.0.%d/24", i+1), "dev", name)
	must(t, "ip", "-n", s.names[i], "link", "set", name, "mtu", "1420", "up")
}

// waitFor polls until ok; the kernel gives no event for what it waits for.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatalf("waited 20 s for %s", what)
}

// nothingDropped waits until nothing counts as dropped: datagrams that are being
// decrypted do (Drops.Rejected).
func nothingDropped(t testing.TB, l *Link) {
	t.Helper()
	waitFor(t, fmt.Sprintf("no drops; at first %+v", l.Stats().Drops), func() bool { return l.Stats().Drops == (Drops{}) })
}

// transfer sends n random bytes over TCP from one namespace to the other and
// compares them.
func (s *twoSpaces) transfer(t *testing.T, from, to int, n int) {
	t.Helper()
	var ln net.Listener
	s.inside(t, to, func() (err error) {
		ln, err = net.Listen("tcp", fmt.Sprintf("10.77.0.%d:0", to+1))
		return err
	})
	defer ln.Close()
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second))
	var c net.Conn
	var wg sync.WaitGroup
	defer wg.Wait()
	s.inside(t, from, func() (err error) {
		c, err = net.DialTimeout("tcp", ln.Addr().String(), 20*time.Second)
		return err
	})
	c.SetDeadline(time.Now().Add(60 * time.Second)) // else a dead path would block the writer for a quarter of an hour
	seed := [32]byte{byte(n)}
	wg.Go(func() {
		defer c.Close()
		io.CopyN(c, rand.NewChaCha8(seed), int64(n))
	})
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	in.SetDeadline(time.Now().Add(60 * time.Second))
	want := rand.NewChaCha8(seed)
	buf, expect := make([]byte, 1<<16), make([]byte, 1<<16)
	for got := 0; got < n; {
		k, err := in.Read(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		want.Read(expect[:k])
		if string(buf[:k]) != string(expect[:k]) {
			t.Fatalf("wrong bytes after %d", got)
		}
		got += k
	}
}

// Debian's wireguard-go of 2022 as the other end of a Stock link.
func TestInteropStock(t *testing.T) {
	s := newTwoSpaces(t)
	low, high := testKeys(9)
	for i, ours := range []config.Key{low, high} {
		theirs := []config.Key{high, low}[i]
		t.Run(fmt.Sprintf("our key is lower=%v", i == 0), func(t *testing.T) {
			s.startStock(t, 1, theirs, PublicKey(ours))
			cfg := Config{Name: "stock", PrivateKey: ours, PublicKey: PublicKey(theirs), Endpoint: "192.0.2.2:51820", InnerMTU: 1420, Stock: true}
			cfg.Local, cfg.Remote = LinkAddrs(PublicKey(ours), PublicKey(theirs))
			l := s.openLink(t, 0, cfg, 1420)
			waitFor(t, "the link to come up", func() bool { return l.Stats().State == Up })
			for i := range s.names {
				must(t, "ip", "netns", "exec", s.names[i], "ping", "-c", "3", "-i", "0.05", "-W", "5", fmt.Sprintf("10.77.0.%d", 2-i))
			}
			s.transfer(t, 0, 1, 8<<20)
			s.transfer(t, 1, 0, 8<<20)
			nothingDropped(t, l)
			st := l.Stats()
			if st.Rx.Packets == 0 || st.LastHandshake.IsZero() || st.Errors != (Errors{}) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Two links over real sockets and devices: 1500-byte packets cross whole, and
// both ends may restart.
func TestTwoLinksInNamespaces(t *testing.T) {
	s := newTwoSpaces(t)
	low, high := testKeys(9)
	keys := [2]config.Key{low, high}
	open := func(i int) *Link {
		cfg := Config{
			Name: "peer", PrivateKey: keys[i], PublicKey: PublicKey(keys[1-i]), ListenPort: 51820,
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(2 - i)}), 51820).String(), InnerMTU: 1440,
		}
		cfg.Local, cfg.Remote = LinkAddrs(PublicKey(keys[i]), PublicKey(keys[1-i]))
		return s.openLink(t, i, cfg, 1500)
	}
	a, b := open(0), open(1)
	waitFor(t, "both ends to come up", func() bool { return a.Stats().State == Up && b.Stats().State == Up })
	must(t, "ip", "netns", "exec", s.names[0], "ping", "-c", "3", "-i", "0.05", "-W", "5", "-M", "do", "-s", "1472", "10.77.0.2")
	s.transfer(t, 0, 1, 8<<20)
	s.transfer(t, 1, 0, 8<<20)
	nothingDropped(t, b)
	if st := b.Stats(); st.Reassembly.Joined == 0 {
		t.Errorf("%+v", st)
	}
	s.inside(t, 0, func() error {
		cfg := a.cfg
		cfg.Bind, cfg.TUN = nil, netdevtest.NewFake("second", 128) // a device is one link's
		if _, err := Open(cfg); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a second link on one port: %v", err)
		}
		return nil
	})
}

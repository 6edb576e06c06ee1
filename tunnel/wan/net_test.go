package wan

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// TestMain turns the collector off: wireguard-go's finalizers must not run
// outside the bubble that made their channels.
func TestMain(m *testing.M) {
	debug.SetGCPercent(-1)
	m.Run()
}

// TestNetWireGuard lets two wireguard-go devices talk over a bad WAN: a packet
// written into one TUN comes out of the other.
func TestNetWireGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b, err := Pipe(Params{Delay: 100 * time.Millisecond, Rate: 1e6, Loss: 0.1, Seed: 4})
		if err != nil {
			t.Fatal(err)
		}
		tunA, tunB := tuntest.NewChannelTUN(), tuntest.NewChannelTUN()
		quiet := device.NewLogger(device.LogLevelSilent, "")
		devA, devB := device.NewDevice(tunA.TUN(), a, quiet), device.NewDevice(tunB.TUN(), b, quiet)
		defer devA.Close()
		defer devB.Close()
		privA, pubA := wgKeys(t)
		privB, pubB := wgKeys(t)
		conf := "private_key=%x\nlisten_port=51820\npublic_key=%x\nallowed_ip=0.0.0.0/0\nendpoint=%v:51820\n"
		err = errors.Join(devA.IpcSet(fmt.Sprintf(conf, privA, pubB, b.Addr())), devB.IpcSet(fmt.Sprintf(conf, privB, pubA, a.Addr())),
			devA.Up(), devB.Up())
		if err != nil {
			t.Fatal(err)
		}
		ping := tuntest.Ping(netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("10.1.0.1"))
		start := time.Now()
		tunA.Outbound <- ping
		if got := <-tunB.Inbound; !bytes.Equal(got, ping) {
			t.Errorf("got %x, want %x", got, ping)
		}
		if took := time.Since(start); took < 300*time.Millisecond {
			t.Errorf("handshake and packet took %v over 100 ms each way", took)
		}
	})
}

// wgKeys returns a key pair.
func wgKeys(t *testing.T) (private, public []byte) {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k.Bytes(), k.PublicKey().Bytes()
}

// receiveOne reads exactly one datagram.
func receiveOne(t *testing.T, fn conn.ReceiveFunc) ([]byte, conn.Endpoint, error) {
	t.Helper()
	bufs, sizes, eps := [][]byte{make([]byte, 2000)}, make([]int, 1), make([]conn.Endpoint, 1)
	if _, err := fn(bufs, sizes, eps); err != nil {
		return nil, nil, err
	}
	return bufs[0][:sizes[0]], eps[0], nil
}

// openPipe opens both ends of a Pipe at port 51820.
func openPipe(t *testing.T, p Params) (n *Net, a, b *Bind, atA, atB conn.ReceiveFunc) {
	t.Helper()
	n, a, b, err := Pipe(p)
	if err != nil {
		t.Fatal(err)
	}
	fa, _, errA := a.Open(51820)
	fb, _, errB := b.Open(51820)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	return n, a, b, fa[0], fb[0]
}

func TestNetDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b, atA, atB := openPipe(t, Params{Delay: 20 * time.Millisecond})
		to, _ := a.ParseEndpoint("192.0.2.2:51820")
		start := time.Now()
		if err := a.Send([][]byte{[]byte("ping")}, to); err != nil {
			t.Fatal(err)
		}
		got, from, err := receiveOne(t, atB)
		if err != nil || string(got) != "ping" || from.DstToString() != "192.0.2.1:51820" {
			t.Fatalf("%q from %v: %v", got, from, err)
		}
		if err := b.Send([][]byte{[]byte("pong")}, from); err != nil {
			t.Fatal(err)
		}
		if got, _, err := receiveOne(t, atA); err != nil || string(got) != "pong" {
			t.Fatalf("%q: %v", got, err)
		}
		if rtt := time.Since(start); rtt != 40*time.Millisecond {
			t.Errorf("round trip %v, want exactly 40ms", rtt)
		}
	})
}

func TestNetOrderAndCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, _, atB := openPipe(t, Params{Delay: time.Millisecond, Rate: 10e6})
		to, _ := a.ParseEndpoint("192.0.2.2:51820")
		for i := range 100 {
			if err := a.Send([][]byte{{byte(i)}}, to); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 100 {
			if got, _, err := receiveOne(t, atB); err != nil || !bytes.Equal(got, []byte{byte(i)}) {
				t.Fatalf("datagram %d: %v, %v", i, got, err)
			}
		}
		n.Cut(a.Addr(), b.Addr(), true)
		_ = a.Send([][]byte{{1}}, to)
		n.Cut(a.Addr(), b.Addr(), false)
		_ = a.Send([][]byte{{2}}, to)
		if got, _, _ := receiveOne(t, atB); !bytes.Equal(got, []byte{2}) {
			t.Errorf("got %v through a path that was down", got)
		}
		c := n.Counters(a.Addr(), b.Addr())
		conserved(t, c)
		if c.Packets != 102 || c.DownDrops != 1 || c.Bytes != 102*29 {
			t.Errorf("counters %+v", c)
		}
	})
}

func TestNetClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, _, atB := openPipe(t, Params{})
		done := make(chan error, 1)
		go func() { _, _, err := receiveOne(t, atB); done <- err }()
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("receive after close: %v", err)
		}
		to, _ := a.ParseEndpoint("192.0.2.2:51820")
		if err := b.Send([][]byte{{1}}, to); !errors.Is(err, net.ErrClosed) {
			t.Errorf("send after close: %v", err)
		}
		if err := a.Send([][]byte{{1}}, to); err != nil || n.Overflow() != 1 {
			t.Errorf("send to nobody: %v, overflow %d", err, n.Overflow())
		}
		if _, port, err := b.Open(0); err != nil || port == 0 {
			t.Errorf("reopen: port %d, %v", port, err)
		}
		if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
			t.Errorf("double open: %v", err)
		}
		other := n.Bind(netip.MustParseAddr("192.0.2.1"))
		if _, _, err := other.Open(51820); err == nil {
			t.Error("port given out twice")
		}
	})
}

package wg

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

var (
	gridRTT  = []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 150 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond}
	gridSkew = []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 140 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, 740 * time.Millisecond, 760 * time.Millisecond, time.Second, 1300 * time.Millisecond, 1490 * time.Millisecond, 1510 * time.Millisecond, 2 * time.Second}
)

// startTogether opens both ends with a skew and returns how long after the
// second start both were up.
func startTogether(t *testing.T, n *simNet, first int, skew, limit time.Duration) time.Duration {
	t.Helper()
	a := n.open(t, first)
	defer a.close(t)
	time.Sleep(skew)
	b := n.open(t, 1-first)
	defer b.close(t)
	took := a.until(t, Up, limit)
	return took + b.until(t, Up, limit-took)
}

// Both ends connect within 3 s whenever they start.
func TestConnectGrid(t *testing.T) {
	var worst time.Duration
	for _, rtt := range gridRTT {
		for _, skew := range gridSkew {
			for first := range 2 {
				t.Run(fmt.Sprintf("rtt=%v,skew=%v,first=%d", rtt, skew, first), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := newSimNet(rtt/2, 0, 1)
						defer n.close()
						worst = max(worst, startTogether(t, n, first, skew, 3*time.Second))
					})
				})
			}
		}
	}
	t.Logf("worst %v", worst)
}

// Stock wireguard-go without our rule does not connect at least once in the
// same grid: the control that the grid can fail.
func TestStockNeedsRule(t *testing.T) {
	stuck := 0
	for _, rtt := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			n := newSimNet(rtt/2, 0, 1)
			defer n.close()
			low, high := testKeys(7)
			cfgs := []Config{{PrivateKey: low, PublicKey: PublicKey(high)}, {PrivateKey: high, PublicKey: PublicKey(low)}}
			var devs []*device.Device
			for i, c := range cfgs {
				d := device.NewDevice(tuntest.NewChannelTUN().TUN(), conn.Bind(n.ends[i]), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
				if err := d.IpcSet(uapi(&c, "192.0.2.1:1") + "persistent_keepalive_interval=5\n"); err != nil {
					t.Fatal(err)
				}
				if err := d.Up(); err != nil {
					t.Fatal(err)
				}
				devs = append(devs, d)
			}
			time.Sleep(20 * time.Second)
			for _, d := range devs {
				text, err := d.IpcGet()
				if err != nil {
					t.Fatal(err)
				}
				if parseInfo(text).handshake.IsZero() {
					stuck++
				}
			}
			for _, d := range devs {
				d.Close()
			}
		})
	}
	if stuck == 0 {
		t.Error("two stock ends that start together connect: the grid proves nothing")
	}
	t.Logf("%d of 6 stock ends had no session after 20 s", stuck)
}

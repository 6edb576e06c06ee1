package config

import "testing"

func TestMTU(t *testing.T) {
	for _, c := range []struct {
		underlay             int
		ipv6                 bool
		inner, frame         int
		mss4, mss6           int
		parts1514, parts9014 int
	}{
		{1500, false, 1440, 1412, 1400, 1380, 2, 7},
		{1500, true, 1420, 1392, 1380, 1360, 2, 7},
		{1492, false, 1432, 1404, 1392, 1372, 2, 7}, // PPPoE
		{1400, false, 1340, 1312, 1300, 1280, 2, 7},
		{1280, true, 1200, 1172, 1160, 1140, 2, 8},
		{1600, false, 1540, 1512, 1500, 1480, 2, 6}, // 2 bytes short of an untagged frame
		{1602, false, 1542, 1514, 1502, 1482, 1, 6},
		{1610, false, 1550, 1522, 1510, 1490, 1, 6}, // QinQ too
		{9000, false, 8940, 8912, 8900, 8880, 1, 2},
		{9216, false, 9156, 9128, 9116, 9096, 1, 1},
	} {
		inner := InnerMTU(c.underlay, c.ipv6)
		frame := MaxFrame(inner)
		parts := func(n int) int { return (n + frame - 1) / frame }
		if inner != c.inner || frame != c.frame || MSS(inner, false) != c.mss4 || MSS(inner, true) != c.mss6 ||
			parts(1514) != c.parts1514 || parts(9014) != c.parts9014 {
			t.Errorf("%d, IPv6 %v: inner %d, frame %d, MSS %d and %d, %d parts of 1514, %d of 9014", c.underlay, c.ipv6,
				inner, frame, MSS(inner, false), MSS(inner, true), parts(1514), parts(9014))
		}
	}
}

// What fits over the narrowest path a file may name is what links, control
// datagrams and, with parts, IPv6 need.
func TestNarrowest(t *testing.T) {
	for endpoint, inner := range map[string]int{
		"198.51.100.20:51820": MinInnerMTU + 20, "[2001:db8::1]:51820": MinInnerMTU, "edge.example:51820": MinInnerMTU, "": MinInnerMTU,
	} {
		p := Peer{Endpoint: endpoint, UnderlayMTU: MinUnderlayMTU}
		if p.InnerMTU() != inner || MaxControl+CarrierHeader > inner || TUNMTU(inner, false) < MinIPv6MTU {
			t.Errorf("endpoint %q: inner %d, want %d", endpoint, p.InnerMTU(), inner)
		}
	}
}

func TestTUNMTU(t *testing.T) {
	for _, c := range []struct{ inner, agent, stock int }{
		{1232, 1500, 1232}, {1440, 1500, 1440}, {1500, 1500, 1500}, {1501, 1501, 1501}, {8940, 8940, 8940},
	} {
		if agent, stock := TUNMTU(c.inner, false), TUNMTU(c.inner, true); agent != c.agent || stock != c.stock {
			t.Errorf("inner %d: %d to an agent, %d to a stock peer", c.inner, agent, stock)
		}
	}
}

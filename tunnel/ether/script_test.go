package ether

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"stitch/tunnel/config"
)

var update = flag.Bool("update", false, "rewrite the scripts in testdata; read the difference")

// TestScripts runs testdata/*.txt. A script is commands, each followed by what
// it answered, on lines that begin with "->":
//
//	segment peers=dc2,dc3 limit=500     a new switch; gateway 10.1.0.1, MAC gw;
//	                                    vlans=10 is what it carries tagged
//	workload mac=50 ip=10.1.0.50 at=dc2 before the first frame; at=here: local
//	at 1.5s                             sets the time
//	frame port=lan src=aa dst=bb [type=...] [ip=] [for=] [vlan=] [outer=] [times=]
//	claim mac=50 at=dc2
//	tick
//	table                               prints where each MAC is
//
// Types of frame: data, ip (a packet from ip=), arp (request of ip= for for=),
// probe (the same, of no address), reply, garp, rarp, ns (IPv6: request), dad,
// na (IPv6: advertisement of ip=), sna (solicited). An answer made here is
// checked and printed. A MAC is its last byte, ff (broadcast), gw or written out.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := new(script).run(t, want)
			if *update {
				err = os.WriteFile(file, got, 0o644)
			} else if !bytes.Equal(got, want) {
				t.Errorf("%s: got\n%s", file, got)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

type script struct {
	sw        *Switch
	now       time.Duration
	seg       config.Segment
	peers     []string
	workloads []Workload
}

// run returns text with the answers that the switch gives now.
func (s *script) run(t *testing.T, text []byte) []byte {
	var out bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if strings.HasPrefix(line, "->") {
			continue
		}
		fmt.Fprintln(&out, line)
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		answer, err := s.command(words[0], words[1:])
		if err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
		for _, a := range answer {
			fmt.Fprintln(&out, "->", a)
		}
	}
	return out.Bytes()
}

func (s *script) command(name string, words []string) (answer []string, err error) {
	args := map[string]string{}
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		args[key] = value
	}
	if name != "segment" && name != "workload" && s.sw == nil {
		s.sw = NewSwitch(s.seg, len(s.peers), nil, s.workloads)
	}
	switch name {
	case "segment":
		s.seg, s.peers = testBasic, strings.Split(args["peers"], ",")
		s.seg.BroadcastLimit, err = strconv.Atoi(cmp.Or(args["limit"], "500"))
		for v := range strings.SplitSeq(args["vlans"], ",") {
			if id, err := strconv.ParseUint(v, 10, 16); err == nil {
				s.seg.VLANs = append(s.seg.VLANs, uint16(id))
			}
		}
	case "workload":
		s.workloads = append(s.workloads, Workload{MAC: testMAC(args["mac"]), IP: netip.MustParseAddr(args["ip"]), At: s.place(args["at"])})
	case "at":
		s.now, err = time.ParseDuration(words[0])
	case "frame":
		answer, err = s.frame(args)
	case "claim":
		relearn, froze := s.sw.Claim(s.now, testMAC(args["mac"]), s.place(args["at"]))
		answer = []string{fmt.Sprintf("relearn %v froze %v", relearn, froze)}
	case "tick":
		s.sw.Tick(s.now)
	case "table":
		answer = s.table()
	default:
		err = fmt.Errorf("unknown command %q", name)
	}
	return answer, err
}

// place returns the place called name: here, lan or a peer.
func (s *script) place(name string) Place { return Place(slices.Index(s.peers, name) + 1) }

func (s *script) name(p Place) string {
	switch p {
	case Local:
		return "here"
	case All:
		return "all"
	}
	return s.peers[p-1]
}

// frame sends a frame once or more and returns the verdicts, equal ones counted.
func (s *script) frame(args map[string]string) ([]string, error) {
	times, err := strconv.Atoi(cmp.Or(args["times"], "1"))
	if err != nil {
		return nil, err
	}
	b := scriptFrame(args)
	var order []string
	counts := map[string]int{}
	for range times {
		verdict := s.verdict(args["port"], b)
		if counts[verdict]++; counts[verdict] == 1 {
			order = append(order, verdict)
		}
	}
	for i, verdict := range order {
		if times > 1 {
			order[i] = fmt.Sprintf("%d x %s", counts[verdict], verdict)
		}
	}
	return order, nil
}

func scriptFrame(args map[string]string) []byte {
	src, dst := testMAC(args["src"]), testMAC(cmp.Or(args["dst"], "ff"))
	ip := netip.MustParseAddr(cmp.Or(args["ip"], "10.1.0.99"))
	want, _ := netip.ParseAddr(args["for"])
	frame := data(dst, src)
	switch args["type"] {
	case "ip":
		frame = from4(src, ip)
		copy(frame, dst[:])
		if ip.Is6() {
			frame = eth(dst, src, typeIPv6, ipv6Packet(args["ip"], allHost, 6, 1)...)
		}
	case "arp":
		frame = arpFrame(dst, src, arpRequest, src, ip, config.MAC{}, want)
	case "probe":
		frame = arpFrame(dst, src, arpRequest, src, noIP, config.MAC{}, want)
	case "reply":
		frame = arpFrame(dst, src, arpReply, src, ip, dst, want)
	case "garp":
		frame = garp(src, ip)
	case "rarp":
		frame = rarp(src)
	case "na":
		frame = eth(v6Group, src, typeIPv6, ipv6Packet(hostLL, allHost, protoICMP6, nd(ndAdvertise, 0x20, args["ip"], src)...)...)
	case "sna":
		frame = eth(dst, src, typeIPv6, ipv6Packet(args["ip"], args["for"], protoICMP6, nd(ndAdvertise, 0x60, args["ip"], src)...)...)
	case "ns":
		frame = eth(v6Group, src, typeIPv6, ipv6Packet(args["ip"], "ff02::1:ff00:0", protoICMP6, nd(ndSolicit, 0, args["for"], src)...)...)
	case "dad":
		frame = eth(v6Group, src, typeIPv6, ipv6Packet("::", "ff02::1:ff00:0", protoICMP6, nd(ndSolicit, 0, args["for"], config.MAC{})...)...)
	}
	if id, err := strconv.ParseUint(args["vlan"], 10, 16); err == nil {
		frame = tagged(frame, 0x8100, uint16(id))
	}
	if id, err := strconv.ParseUint(args["outer"], 10, 16); err == nil {
		frame = tagged(frame, 0x88a8, uint16(id))
	}
	return frame
}

func (s *script) verdict(port string, frame []byte) string {
	var v Verdict
	way := "lan"
	if port == "lan" {
		v = s.sw.FromLAN(s.now, frame)
		way = "peers " + s.name(v.To)
	} else {
		v = s.sw.FromPeer(s.now, s.place(port), frame)
	}
	if v.Drop != Carried {
		way = "drop " + v.Drop.String()
	}
	if a := v.Announce; a.Kind != "" {
		way += fmt.Sprintf(", announce %s %v %v", a.Kind, a.MAC, a.IP)
	}
	if v.Froze {
		way += ", froze " + v.Source.String()
	}
	if v.Disputed.IsValid() {
		way += ", disputed " + v.Disputed.String()
	}
	if v.Drop == Answered {
		way += ": " + describeAnswer(v.Reply)
	}
	return way
}

// describeAnswer reads an answer with gopacket; a wrong checksum is said.
func describeAnswer(frame []byte) string {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	eth, _ := p.LinkLayer().(*layers.Ethernet)
	text := ""
	if tag, ok := p.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q); ok {
		text = fmt.Sprintf("VLAN %d ", tag.VLANIdentifier)
	}
	text += fmt.Sprintf("to %v from %v: ", eth.DstMAC, eth.SrcMAC)
	if arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		return text + fmt.Sprintf("ARP op %d, %v is at %v, to %v %v", arp.Operation, net.IP(arp.SourceProtAddress),
			net.HardwareAddr(arp.SourceHwAddress), net.IP(arp.DstProtAddress), net.HardwareAddr(arp.DstHwAddress))
	}
	ip, _ := p.NetworkLayer().(*layers.IPv6)
	icmp, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if !ok {
		return fmt.Sprintf("%x", frame)
	}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	again := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(again, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, na); err != nil {
		return err.Error()
	}
	if got := again.Bytes()[2:4]; binary.BigEndian.Uint16(got) != icmp.Checksum {
		text += "WRONG CHECKSUM "
	}
	return text + fmt.Sprintf("NA hops %d flags %#x, %v is at %v, to %v", ip.HopLimit, na.Flags, na.TargetAddress, net.HardwareAddr(na.Options[0].Data), ip.DstIP)
}

func (s *script) table() (lines []string) {
	byMAC := s.sw.table.byMAC
	for _, k := range slices.Sorted(maps.Keys(byMAC)) {
		if e := byMAC[k]; !e.expired(s.now) {
			line := k.mac().String() + " " + s.name(e.place)
			if k.vlan() != 0 {
				line += fmt.Sprintf(" VLAN %d", k.vlan())
			}
			for _, n := range e.ips {
				line += " " + n.ip.String()
			}
			if e.workload {
				line += " workload"
			}
			if e.flaps.frozen(s.now) {
				line += " frozen"
			}
			lines = append(lines, line)
		}
	}
	return lines
}

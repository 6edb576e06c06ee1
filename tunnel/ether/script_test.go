package ether

import (
	"bufio"
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/config"
)

var update = flag.Bool("update", false, "rewrite the scripts in testdata; read the difference")

// TestScripts runs testdata/*.txt. A script is commands, each followed by what
// it answered, on lines that begin with "->":
//
//	segment peers=dc2,dc3 limit=500     a new switch; gateway 10.1.0.1, MAC gw
//	workload mac=50 ip=10.1.0.50 at=dc2 before the first frame; at=here: local
//	at 1.5s                             sets the time
//	frame port=lan src=aa dst=bb [type=data|arp|garp|rarp|na] [ip=] [for=] [times=]
//	claim mac=50 at=dc2
//	tick
//	table                               prints where each MAC is
//
// A MAC is its last byte, ff (broadcast), gw or written out.
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
	switch args["type"] {
	case "arp":
		return arpFrame(dst, src, arpRequest, src, ip, config.MAC{}, netip.MustParseAddr(args["for"]))
	case "garp":
		return garp(src, ip)
	case "rarp":
		return rarp(src)
	case "na":
		return eth(v6Group, src, typeIPv6, ipv6Packet(hostLL, allHost, protoICMP6, nd(ndAdvertise, 0x20, args["ip"], src)...)...)
	}
	return data(dst, src)
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
	return way
}

func (s *script) table() (lines []string) {
	byMAC := s.sw.table.byMAC
	for _, mac := range slices.SortedFunc(maps.Keys(byMAC), func(a, b config.MAC) int { return bytes.Compare(a[:], b[:]) }) {
		if e := byMAC[mac]; !e.expired(s.now) {
			line := mac.String() + " " + s.name(e.place)
			if e.workload {
				line += " workload"
			}
			if e.isFrozen(s.now) {
				line += " frozen"
			}
			lines = append(lines, line)
		}
	}
	return lines
}

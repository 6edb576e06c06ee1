package config

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the expected messages of testdata/bad")

// testKey returns the private key made of one byte repeated.
func testKey(b byte) (k Key) {
	for i := range k {
		k[i] = b
	}
	return k
}

// testFiles are the key files that the test configurations name.
func testFiles(name string) ([]byte, error) {
	switch filepath.Base(name) {
	case "e1.key":
		return []byte("# private key of e1\n" + testKey(1).Base64() + "\n"), nil
	case "psk.key":
		return []byte(testKey(9).Base64()), nil
	case "two.key":
		return []byte(testKey(1).Base64() + "\n" + testKey(2).Base64()), nil
	case "zero.key":
		return []byte(Key{}.Base64()), nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// expand puts real keys where the test files say OWN, PEER, PEER2 and LOW.
func expand(data []byte) []byte {
	low := Key{1} // the point of order one
	return []byte(strings.NewReplacer(
		`"OWN"`, `"`+publicOf(testKey(1)).Base64()+`"`,
		`"PEER"`, `"`+publicOf(testKey(2)).Base64()+`"`,
		`"PEER2"`, `"`+publicOf(testKey(3)).Base64()+`"`,
		`"LOW"`, `"`+low.Base64()+`"`,
		`"ZERO"`, `"`+Key{}.Base64()+`"`,
	).Replace(string(data)))
}

func loadTest(t testing.TB, file string) (*Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return Load(filepath.Base(file), expand(data), testFiles)
}

func TestLoadEverything(t *testing.T) {
	got, err := loadTest(t, "testdata/good/e1.toml")
	if err != nil {
		t.Fatal(err)
	}
	pfx, addr, ap := netip.MustParsePrefix, netip.MustParseAddr, netip.MustParseAddrPort
	want := &Config{
		Site: "dc1", RunDir: "/run/stitch-lab/e1", PrivateKey: testKey(1),
		Subnets: []netip.Prefix{pfx("10.1.0.0/24"), pfx("10.1.1.0/24"), pfx("fd00:1::/64")},
		Offload: Offload{NoJoin: true, NoTrain: true, NoPack: true},
		Peers: []Peer{
			{
				Name: "dc2", PublicKey: publicOf(testKey(2)), PresharedKey: testKey(9), Endpoint: "198.51.100.20:51820", ListenPort: 51820,
				Subnets: []netip.Prefix{pfx("10.2.0.0/24"), pfx("fd00:2::/64")}, UnderlayMTU: 1500, Rate: 900e6,
				PacketHistory: 64 << 20, PacketHistoryFrom: []netip.Prefix{pfx("10.1.0.80/32")},
				LinkAddresses: [2]netip.Addr{addr("169.254.7.1"), addr("169.254.7.2")},
			},
			{Name: "branch", PublicKey: publicOf(testKey(3)), ListenPort: 51821, Subnets: []netip.Prefix{pfx("10.9.0.0/24")}, UnderlayMTU: 1500, Stock: true},
		},
		Segments: []Segment{{
			ID: 100, Bridge: "br-lan", Subnet: pfx("10.1.0.0/24"), Gateway: addr("10.1.0.1"), GatewayMAC: MAC{2, 0x53, 0x54, 0, 1, 0},
			Home: "dc1", Peers: []string{"dc2"}, BroadcastLimit: 1000, MoveLimit: 9,
			VLANs: []uint16{10, 11, 12, 20}, EtherTypes: []uint16{LLC, 0x88f7}, Pass: Pass{DHCP: true, RouterAdverts: true, SpanningTree: true},
		}},
		Domains: []Domain{{Name: "migration"}, {Name: "customers", ManyTenants: true}},
		Classes: []Class{{Percent: 15}, {Name: "migration", Percent: 60, Limit: 800e6}, {Name: "backup", Percent: 25}},
		Marks:   []Mark{{0, 1}, {2, 1}, {1, 4}},
		Streams: []StreamRule{
			{Peer: "dc2", To: []netip.Prefix{pfx("10.2.0.7/32")}, Ports: []PortRange{{1, 65535}}, Handshake: Faithful, Optimize: Off, Class: 2, Share: 1, Mark: 1},
			{Peer: "dc2", To: []netip.Prefix{pfx("10.2.0.0/24")}, Ports: []PortRange{{4000, 5999}, {22, 22}}, Handshake: Early, Optimize: Full, Domain: "migration", Class: 1, Share: 4, Mark: 2},
			{Peer: "dc2", Segment: 100, To: []netip.Prefix{pfx("10.1.0.0/24")}, Ports: []PortRange{{49152, 49152}}, Handshake: Faithful, Optimize: Full, Share: 1},
		},
		Dials: []DialRule{
			{Peer: "dc2", To: []netip.Prefix{pfx("10.1.1.0/24")}, Ports: []PortRange{{4000, 5999}}, Domain: "migration", Share: 1},
			{Peer: "dc2", Segment: 100, To: []netip.Prefix{pfx("10.1.0.64/26"), pfx("fd00:1::/64")}, Ports: []PortRange{{49152, 49152}}, Share: 1},
		},
		History:   History{Size: 64 << 30, Memory: 4 << 30, Dir: "/var/lib/stitch/dc1", Key: testKey(9)},
		Workloads: []Workload{{Name: "app", MAC: MAC{0x52, 0x54, 0, 0, 0, 0x50}, IP: addr("10.1.0.50"), Site: "dc1", Segment: 100}},
		Services: []Service{
			{Name: "www.app.example", Workload: "app", Port: 443, At: map[string]netip.AddrPort{"dc1": ap("203.0.113.10:443"), "dc2": ap("198.51.100.20:443")}},
			{Name: "www.app.example", Workload: "app", Port: 80, At: map[string]netip.AddrPort{"dc1": ap("203.0.113.10:80"), "dc2": ap("198.51.100.20:80")}},
		},
		DNS: &DNS{Listen: []netip.AddrPort{ap("203.0.113.10:53")}, TTL: 2 * time.Second},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if ids := got.SplitSegments(); !reflect.DeepEqual(ids, []uint16{100}) {
		t.Errorf("connections are split in segments %v", ids)
	}
}

func TestLoadDefaults(t *testing.T) {
	cfg, err := Load("c.toml", expand([]byte("site = \"a\"\nprivate_key_file = \"e1.key\"\n[[peer]]\nname = \"b\"\npublic_key = \"PEER\"\n[dns]\nlisten = [\"10.0.0.1:53\"]\n")), testFiles)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.RunDir != "/run/stitch/a" || cfg.History.Size != 256<<20 || cfg.Peers[0].ListenPort != 51820 || cfg.Peers[0].UnderlayMTU != 1500 || cfg.Peers[0].Rate != LearnRate || cfg.DNS.TTL != 5*time.Second {
		t.Errorf("defaults: %+v", cfg)
	}
}

// TestRate: a rate is found out unless the file says otherwise or the peer cannot
// answer.
func TestRate(t *testing.T) {
	for text, want := range map[string]int64{
		"": LearnRate, "rate = 'learn'": LearnRate, "rate = 'off'": 0, "rate = '98mbit'": 98e6, "stock = true": 0,
	} {
		cfg, err := Load("c.toml", expand([]byte("site = \"a\"\nprivate_key_file = \"e1.key\"\n[[peer]]\nname = \"b\"\npublic_key = \"PEER\"\n"+text+"\n")), testFiles)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := cfg.Peers[0].Rate; got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

// TestHistoryMemory holds how much of a history lies in memory when the file
// does not say it.
func TestHistoryMemory(t *testing.T) {
	for text, want := range map[string]History{
		"":                                 {Size: 256 << 20, Memory: 256 << 20},
		"size = '8GiB'":                    {Size: 8 << 30, Memory: 8 << 30},
		"size = '8GiB'\ndir = '/d'":        {Size: 8 << 30, Memory: 1 << 30, Dir: "/d"},
		"size = '512MiB'\ndir = '/d'":      {Size: 512 << 20, Memory: 512 << 20, Dir: "/d"},
		"size = '8GiB'\nmemory = '8GiB'":   {Size: 8 << 30, Memory: 8 << 30},
		"dir = '/d'\nkey_file = 'psk.key'": {Size: 256 << 20, Memory: 256 << 20, Dir: "/d", Key: testKey(9)},
		"size = '64MiB'\ndir = '/d'\nmemory = '1MiB'": {Size: 64 << 20, Memory: 1 << 20, Dir: "/d"},
	} {
		cfg, err := Load("c.toml", expand([]byte("site = \"a\"\nprivate_key_file = \"e1.key\"\n[[peer]]\nname = \"b\"\npublic_key = \"PEER\"\n[history]\n"+text+"\n")), testFiles)
		if err != nil || cfg.History != want {
			t.Errorf("%q: %v, %+v, want %+v", text, err, cfg, want)
		}
	}
}

// TestBad loads every file of testdata/bad. Its last lines are comments that
// begin with #! and hold the messages expected, in order. With -update they
// are rewritten: read the difference.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for line := range strings.Lines(string(data)) {
				if msg, ok := strings.CutPrefix(line, "#! "); ok {
					want = append(want, strings.TrimSpace(msg))
				}
			}
			cfg, err := loadTest(t, file)
			if err == nil || cfg != nil {
				t.Fatalf("accepted: %+v", cfg)
			}
			if *update {
				rewrite(t, file, data, err)
				return
			}
			if got := err.Error(); got != strings.Join(want, "\n") {
				t.Errorf("got:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
			}
		})
	}
}

// rewrite replaces the expected messages of a file, keeping its line numbers:
// they follow the text.
func rewrite(t *testing.T, file string, data []byte, err error) {
	text := string(data)
	if i := strings.Index(text, "#! "); i >= 0 {
		text = text[:i]
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		text += "#! " + line + "\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestExamples holds every example of the schema against the schema itself.
func TestExamples(t *testing.T) {
	var walk func(typ reflect.Type, key string)
	walk = func(typ reflect.Type, key string) {
		for f := range typ.Fields() {
			k := join(key, f.Tag.Get("toml"))
			elem := f.Type
			for elem.Kind() == reflect.Pointer || elem.Kind() == reflect.Slice {
				elem = elem.Elem()
			}
			if elem.Kind() == reflect.Struct {
				walk(elem, k)
				continue
			}
			header := ""
			if key != "" {
				header = "[" + key + "]\n"
				if field, _ := field(reflect.TypeFor[rawConfig](), key); field.Type.Kind() == reflect.Slice {
					header = "[[" + key + "]]\n"
				}
			}
			p := &problems{file: "x"}
			l := &loader{scan: newScan(p, []byte(header+example(place{key: k})))}
			if !l.decode([]byte(header + example(place{key: k}))) {
				t.Errorf("%s: example %s: %v", k, example(place{key: k}), l.err())
			}
		}
	}
	walk(reflect.TypeFor[rawConfig](), "")
}

func TestManyProblemsAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, "wrong%d = 1\n", i)
	}
	_, err := Load("c.toml", []byte(b.String()), testFiles)
	if n := strings.Count(err.Error(), "\n") + 1; n != maxProblems+1 || !strings.HasSuffix(err.Error(), "c.toml: 990 more problems: mend these first") {
		t.Errorf("%d lines: %v", n, err)
	}
	if e, ok := errors.AsType[*Error](err); !ok || e.Line != 1 || e.File != "c.toml" {
		t.Errorf("first problem: %+v", e)
	}
}

func TestKeysAreNeverPrinted(t *testing.T) {
	cfg, err := loadTest(t, "testdata/good/e1.toml")
	if err != nil {
		t.Fatal(err)
	}
	js, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(js)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q"} {
		texts = append(texts, fmt.Sprintf(verb, cfg), fmt.Sprintf(verb, cfg.PrivateKey))
	}
	for _, secret := range []Key{testKey(1), testKey(9)} {
		for _, text := range texts {
			if strings.Contains(text, secret.Base64()) || strings.Contains(text, fmt.Sprintf("%x", secret[:])) || strings.Contains(text, fmt.Sprintf("%d %d %d", secret[0], secret[1], secret[2])) {
				t.Errorf("a key is in %s", text)
			}
		}
	}
}

package tunnel_test

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// imports is the direction data and decisions flow in: what each package of
// ours may import of ours. A package that is not listed fails the test, so a
// new one needs a decision here.
var imports = map[string][]string{
	"stitch/compress":                      {},
	"stitch/dedupe":                        {"stitch/dedupe/accord", "stitch/dedupe/match", "stitch/dedupe/store"},
	"stitch/dedupe/accord":                 {},
	"stitch/dedupe/match":                  {},
	"stitch/dedupe/store":                  {"stitch/dedupe/accord"},
	"stitch/dedupe/store/storetest":        {"stitch/dedupe/store"},
	"stitch/tunnel/config":                 {},
	"stitch/tunnel/netdev/super":           {},
	"stitch/tunnel/netdev":                 {"stitch/tunnel/netdev/super"},
	"stitch/tunnel/netdev/netdevtest":      {"stitch/tunnel/netdev"},
	"stitch/tunnel/wan":                    {},
	"stitch/tunnel/hypervisor":             {},
	"stitch/tunnel/dns":                    {"stitch/tunnel/config"},
	"stitch/tunnel/control":                {"stitch/tunnel/config"},
	"stitch/tunnel/wg/carrier":             {},
	"stitch/tunnel/wg/quality":             {},
	"stitch/tunnel/wg/shape":               {},
	"stitch/tunnel/wg/govern":              {},
	"stitch/tunnel/wg/pack":                {"stitch/compress", "stitch/tunnel/netdev/super", "stitch/tunnel/wg/pack/history"},
	"stitch/tunnel/wg/pack/history":        {"stitch/dedupe/match"},
	"stitch/tunnel/wg":                     {"stitch/compress", "stitch/tunnel/wg/pack", "stitch/tunnel/wg/pack/history", "stitch/tunnel/config", "stitch/tunnel/netdev", "stitch/tunnel/netdev/super", "stitch/tunnel/wg/carrier", "stitch/tunnel/wg/govern", "stitch/tunnel/wg/quality", "stitch/tunnel/wg/shape"},
	"stitch/tunnel/ether":                  {"stitch/tunnel/config", "stitch/tunnel/netdev", "stitch/tunnel/netdev/super"},
	"stitch/tunnel/divert":                 {"stitch/tunnel/config", "stitch/tunnel/netdev", "stitch/tunnel/netdev/super"},
	"stitch/tunnel/redirect":               {"stitch/tunnel/config"},
	"stitch/tunnel/redirect/redirecttest":  {"stitch/tunnel/redirect"},
	"stitch/tunnel/stream/field":           {},
	"stitch/tunnel/stream/block":           {"stitch/compress", "stitch/dedupe", "stitch/tunnel/stream/field"},
	"stitch/tunnel/stream/block/blocktest": {"stitch/dedupe", "stitch/tunnel/stream/block"},
	"stitch/tunnel/estimate":               {"stitch/dedupe", "stitch/tunnel/stream/block"},
	"stitch/tunnel/stream":                 {"stitch/dedupe", "stitch/tunnel/bench/far", "stitch/tunnel/config", "stitch/tunnel/divert", "stitch/tunnel/netdev", "stitch/tunnel/stream/block", "stitch/tunnel/stream/field"},
	"stitch/tunnel/stream/streamtest":      {"stitch/tunnel/config", "stitch/tunnel/netdev", "stitch/tunnel/netdev/netdevtest", "stitch/tunnel/stream"},
	"stitch/tunnel/lab":                    {"stitch/tunnel/config", "stitch/tunnel/control", "stitch/tunnel/wan", "stitch/tunnel/wg"},
	"stitch/tunnel/bench/far":              {},
	"stitch/tunnel/bench":                  {"stitch/tunnel/bench/far", "stitch/tunnel/control", "stitch/tunnel/lab", "stitch/tunnel/wan"},
	"stitch/tunnel": {
		"stitch/tunnel/bench/far", "stitch/tunnel/config", "stitch/tunnel/control", "stitch/tunnel/divert", "stitch/tunnel/dns", "stitch/tunnel/ether", "stitch/tunnel/netdev", "stitch/tunnel/netdev/super",
		"stitch/tunnel/redirect", "stitch/tunnel/stream", "stitch/tunnel/wg",
	},
	"stitch/cmd/stitch": {
		"stitch/tunnel", "stitch/tunnel/bench", "stitch/tunnel/config", "stitch/tunnel/control", "stitch/tunnel/estimate", "stitch/tunnel/lab",
		"stitch/tunnel/wan", "stitch/tunnel/wg",
	},
}

// TestImports holds the layering: decisions below, wiring above.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "stitch/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for dec.More() {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(p.ImportPath, "stitch/scripts/") {
			continue // programs of the demo and the benchmarks may use anything
		}
		allowed, known := imports[p.ImportPath]
		if !known {
			t.Errorf("%s is not in the import table", p.ImportPath)
			continue
		}
		for _, i := range p.Imports {
			if strings.HasPrefix(i, "stitch/") && !slices.Contains(allowed, i) {
				t.Errorf("%s must not import %s", p.ImportPath, i)
			}
		}
	}
}

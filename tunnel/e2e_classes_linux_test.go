package tunnel_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/control"
	"stitch/tunnel/lab"
	"stitch/tunnel/stream"
	"stitch/tunnel/wg"
)

// classesRate is that of both edges.
const classesRate = 16e6

// TestE2EClasses: one stream of a class of 75 % has three quarters of the rate of e1
// beside eight connections of a class of 25 %, of which one crosses as packets; beside
// eight at e2, which has the same rate without classes, the control case, it has a
// ninth. Every byte arrives, and who asks is told of the classes.
func TestE2EClasses(t *testing.T) {
	l := world(t, lab.Options{Rate: 1e9, RTT: 20 * time.Millisecond, Streams: true, Edit: classed})
	for _, c := range []struct {
		name, from, to, addr string
		n                    int
		least, most          float64 // part of what arrived meanwhile
	}{
		{"75 %", "h1", "h2", "10.2.0.10", 8 << 20, 0.62, 0.88},
		{"control: no classes", "h2", "h1", "10.1.0.10", 1 << 20, 0.04, 0.30},
	} {
		var others []*upload
		for _, port := range []string{":3900", ":4000", ":4001", ":4002", ":4003", ":4004", ":4005", ":4006"} {
			others = append(others, beginUpload(t, l, c.from, c.to, c.addr+port, 5<<18))
		}
		one := beginUpload(t, l, c.from, c.to, c.addr+":5000", c.n)
		for one.received() < c.n/4 { // what begins needs a while
			time.Sleep(10 * time.Millisecond)
		}
		mine, theirs := one.received(), receivedBy(others)
		for c.from == "h1" && one.received() < c.n/2 {
			time.Sleep(10 * time.Millisecond)
		}
		if c.from == "h1" {
			checkClasses(t, l)
		}
		one.wait(t)
		mine, theirs = c.n-mine, receivedBy(others)-theirs
		part := float64(mine) / float64(mine+theirs)
		t.Logf("%s: one stream had %d bytes, %.2f of what arrived, beside eight that had %d", c.name, mine, part, theirs)
		if part < c.least || part > c.most {
			t.Errorf("%s: one stream had %.2f of what arrived, want %.2f to %.2f", c.name, part, c.least, c.most)
		}
		for _, o := range others {
			o.wait(t)
		}
	}
}

func receivedBy(uploads []*upload) (n int) {
	for _, u := range uploads {
		n += u.received()
	}
	return n
}

// checkClasses asks e1 for its classes while they send.
func checkClasses(t *testing.T, l *lab.Lab) {
	t.Helper()
	var link wg.Stats
	s := status(t, l, "e1")
	if err := json.Unmarshal(s.Links[0].Detail, &link); err != nil {
		t.Fatal(err)
	}
	sent := map[string]int64{}
	for _, c := range link.Classes {
		t.Logf("class %q: %+v", c.Name, c)
		sent[c.Name] = c.Rate
	}
	if len(link.Classes) != 3 || sent["move"] < classesRate/2 || sent["rest"] == 0 || sent["rest"] > sent["move"] {
		t.Errorf("classes send %v bit/s", sent)
	}
	doc, err := control.NewClient(filepath.Join(l.Options().Dir, "e1", control.StreamSocket)).Flows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list stream.FlowList
	if err := json.Unmarshal(doc, &list); err != nil {
		t.Fatal(err)
	}
	want := map[uint16]string{5000: "move", 4000: "rest", 3900: "rest"}
	for _, f := range list.Flows {
		if class, ok := want[f.Dst.Port()]; ok && f.Class == class {
			delete(want, f.Dst.Port())
		}
	}
	if len(want) > 0 {
		t.Errorf("not listed with their class: %v of %+v", want, list.Flows)
	}
}

// classed gives both edges a rate, and e1 two classes besides: port 5000, and the
// others, of which 3900 is not split.
func classed(host, toml string) string {
	toml = strings.Replace(toml, "listen_port =", "rate = \"16mbit\"\nlisten_port =", 1)
	if host != "e1" {
		return toml
	}
	at := strings.Index(toml, "[[stream]]")
	rule := toml[at:strings.Index(toml, "[[dial]]")]
	return toml[:at] + "[[class]]\nname = \"move\"\npercent = 75\n\n[[class]]\nname = \"rest\"\npercent = 25\n\n" +
		strings.Replace(rule, `"4000-5999"`, "5000", 1) + "class = \"move\"\n\n" +
		strings.NewReplacer(`"4000-5999"`, "3900", "domain = \"migration\"\n", "").Replace(rule) + "class = \"rest\"\noptimize = \"off\"\n\n" +
		strings.Replace(rule, `"4000-5999"`, `"4000-4999"`, 1) + "class = \"rest\"\n\n" +
		strings.Replace(toml[at:], rule, "", 1)
}

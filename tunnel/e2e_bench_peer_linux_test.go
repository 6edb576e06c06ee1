package tunnel_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/bench"
	"stitch/tunnel/control"
	"stitch/tunnel/lab"
)

// TestE2EBenchPeer measures the path between two live agents, and is interrupted.
func TestE2EBenchPeer(t *testing.T) {
	l := world(t, lab.Options{Rate: benchRate, RTT: 20 * time.Millisecond, Loss: benchLoss, Streams: true, History: "8MiB"})
	t.Run("measured", func(t *testing.T) { benchMeasured(t, l) })
	t.Run("refused", func(t *testing.T) { benchRefused(t, l) })
	t.Run("interrupted", func(t *testing.T) { benchInterrupted(t, l) })
}

// benchRate and benchLoss are the path's.
const benchRate, benchLoss = 30e6, 0.02

// benchMeasured holds what is said of the path against what the emulator counted.
func benchMeasured(t *testing.T, l *lab.Lab) {
	const rate, loss = benchRate, benchLoss
	before := wanCounters(t, l)
	page := filepath.Join(t.TempDir(), "page.html")
	cmd := l.Command("e1", programPath(t), "bench", "--length", "1s", "--json", "--html", page,
		"--run-dir", filepath.Join(l.Options().Dir, "e1"), "dc2")
	var out bytes.Buffer
	cmd.Stdout = &out
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	marks := map[string]lab.Traffic{} // when a step began
	for lines := bufio.NewScanner(said); lines.Scan(); {
		t.Log(lines.Text())
		marks[lines.Text()] = wanCounters(t, l)
	}
	var r bench.Report
	if err := errors.Join(cmd.Wait(), json.Unmarshal(out.Bytes(), &r)); err != nil {
		t.Fatal(err)
	}
	after := wanCounters(t, l)
	if len(r.Left) > 0 || len(r.Packets) != 2 || len(r.Transfers) != 3 || len(r.Latencies) != 2 || len(r.Forecasts) != 2 {
		t.Fatalf("left out %v, %d packet rates, %d transfers, %d latencies, %d forecasts", r.Left, len(r.Packets), len(r.Transfers), len(r.Latencies), len(r.Forecasts))
	}
	// What the train lost is what the path loses, within four standard deviations.
	p := r.Path
	if sigma := math.Sqrt(loss * (1 - loss) / float64(p.Sent)); p.Sent < 200 || math.Abs(p.Loss()-loss) > 4*sigma {
		t.Errorf("%d of %d lost, the path loses %g", p.Sent-p.Received, p.Sent, loss)
	}
	if p.Rate > rate*1.05 || p.Rate <= 0 || p.Idle.N == 0 || p.Idle.Min < 18*time.Millisecond {
		t.Errorf("path: %+v", p)
	}
	for _, x := range r.Packets {
		if x.Rate <= 0 || x.Rate > rate*1.05/8/512 {
			t.Errorf("%g packets of %d bytes a second of layer %d on %g bit/s", x.Rate, x.Size, x.Layer, rate)
		}
	}
	wan := map[string]uint64{}
	for i, x := range r.Transfers {
		if !x.Finished || x.Bytes == 0 {
			t.Errorf("%+v", x)
		}
		// The link's own count of a phase is the emulator's, but for what is
		// still under way and what the path has dropped (counted by one edge).
		from := marks["stitch: "+x.Data+" data"]
		to := after
		if i+1 < len(r.Transfers) {
			to = marks["stitch: "+r.Transfers[i+1].Data+" data"]
		}
		counted := to.E1toE2.Counters.Bytes - from.E1toE2.Counters.Bytes
		wan[x.Data] = counted
		t.Logf("%s: %d bytes as %d on the WAN there", x.Data, x.Bytes, counted)
	}
	random, typical := r.Transfers[0], r.Transfers[1]
	if wan[bench.Random] < uint64(random.Bytes) || wan[bench.Typical] > uint64(typical.Bytes)*3/4 || wan[bench.Repeated] > wan[bench.Typical]/2 {
		t.Errorf("on the WAN: %v of %d bytes each", wan, random.Bytes)
	}
	// The near edge counts what it sent and what it received, so all but what the
	// path dropped on the way back.
	total, claimed := after.Bytes()-before.Bytes(), p.WAN
	for _, x := range r.Transfers {
		claimed += x.WAN
	}
	if claimed > total || claimed < total/3 {
		t.Errorf("it says %d bytes in its main parts, the emulator counted %d in all", claimed, total)
	}
	// Nothing of it is in the histories or still there.
	for _, e := range []string{"e1", "e2"} {
		st := streamStats(t, l, e).Peers[0]
		if st.Total != 0 || st.Domains[0].History.Sent+st.Domains[0].History.Received != 0 {
			t.Errorf("%s: %d streams, history %+v", e, st.Total, st.Domains[0].History)
		}
	}
	benchGone(t, l)
	if text, err := os.ReadFile(page); err != nil || !bytes.Contains(text, []byte("<svg")) {
		t.Errorf("the page: %v", err)
	}
}

// benchGone waits until no edge has a stream, and the WAN is quiet but for the
// agents' own words.
func benchGone(t *testing.T, l *lab.Lab) {
	t.Helper()
	eventually(t, 10*time.Second, "no stream is left", func() bool {
		return streamStats(t, l, "e1").Admitted == 0 && streamStats(t, l, "e2").Admitted == 0
	})
	eventually(t, 15*time.Second, "the WAN is quiet", func() bool {
		a := wanCounters(t, l)
		time.Sleep(500 * time.Millisecond)
		return wanCounters(t, l).Bytes()-a.Bytes() < 50_000
	})
}

// benchRefused: of two that take data only one is served, and what does not exist
// is not.
func benchRefused(t *testing.T, l *lab.Lab) {
	c := control.NewClient(filepath.Join(l.Options().Dir, "e1", control.StreamSocket))
	held, _, err := c.Bench(t.Context(), "dc2", "sink")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Bench(t.Context(), "dc2", "sink"); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second sink: %v", err)
	}
	if n := streamStats(t, l, "e2").Admitted; n == 0 {
		t.Error("control case: an open bench stream is not counted")
	}
	_ = held.Close()
	benchGone(t, l)
	for _, bad := range [][2]string{{"dc9", "sink"}, {"dc2", "shell"}} {
		if _, _, err := c.Bench(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("%v was served", bad)
		}
	}
}

// benchInterrupted interrupts the command, and a stream that is full: nothing goes
// on at either side, and the next one is served.
func benchInterrupted(t *testing.T, l *lab.Lab) {
	dir := filepath.Join(l.Options().Dir, "e1")
	c := control.NewClient(filepath.Join(dir, control.StreamSocket))
	cmd := l.Command("e1", programPath(t), "bench", "--length", "30s", "--run-dir", dir, "dc2")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 40*time.Second, "it has begun", func() bool {
		a := wanCounters(t, l)
		time.Sleep(200 * time.Millisecond)
		return wanCounters(t, l).Bytes()-a.Bytes() > 400_000
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "interrupted") {
		t.Errorf("%v, %s", err, said.String())
	}
	benchGone(t, l)
	r, err := control.NewClient(filepath.Join(dir, control.LinkSocket)).Train(t.Context(), control.Train{Peer: "dc2", Length: 200 * time.Millisecond})
	if err != nil || r.Answered == 0 {
		t.Errorf("control case: the link can be measured after it: %+v, %v", r, err)
	}
	// One that is interrupted while a stream is full.
	ctx, cancel := context.WithCancel(t.Context())
	full, _, err := c.Bench(ctx, "dc2", "sink")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = pump(full, mix(1<<20, 9)) }()
	eventually(t, 10*time.Second, "the stream is full", func() bool {
		var peers int64
		for _, p := range []string{"e1", "e2"} {
			peers += int64(streamStats(t, l, p).Admitted)
		}
		return peers == 2
	})
	cancel()
	_ = full.Close()
	benchGone(t, l)
}

// TestE2EBenchNoStreams: without stream processes the command measures what there
// is, and says what is missing.
func TestE2EBenchNoStreams(t *testing.T) {
	l := world(t, lab.Options{Rate: 50e6, RTT: 10 * time.Millisecond})
	dir := filepath.Join(l.Options().Dir, "e1")
	out, err := l.Command("e1", programPath(t), "bench", "--length", "1s", "--json", "--run-dir", dir, "dc2").Output()
	if err != nil {
		t.Fatal(err)
	}
	var r bench.Report
	if err := json.Unmarshal(out, &r); err != nil || r.Path == nil || r.Path.Rate <= 0 || len(r.Transfers) != 0 || r.Left["streams"] == "" {
		t.Errorf("%v, %s", err, out)
	}
}

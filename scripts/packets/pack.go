package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
)

// path is one that packing is measured on.
type path struct {
	name string
	rate int64
	rtt  time.Duration
	loss float64
}

// packPaths are the paths of -pack, by name.
var packPaths = []path{
	{"wan", 100e6, 40 * time.Millisecond, 0},
	{"wan0.1", 100e6, 40 * time.Millisecond, 0.001},
	{"wan1", 100e6, 40 * time.Millisecond, 0.01},
	{"local", 0, 0, 0},
}

// packLearns is how long a link measures its loss before anything is counted.
const packLearns = 12 * time.Second

// measurePack compares two agents that compress packets with two that do not,
// side by side, for data that compresses and data that does not.
func measurePack(ctx context.Context, o options, w io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "stitch-packets")
	f := &fleet{dir: dir}
	defer func() { err = errors.Join(err, f.close()) }()
	if err != nil {
		return err
	}
	stitch := filepath.Join(dir, "stitch")
	if err := command(exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", stitch, "./cmd/stitch")); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "path\tdata\tpack\tMbit/s\tbytes on the link for one sent\tCPU s/GB of the agents")
	for _, p := range packPaths {
		if !o.only.MatchString(p.name) {
			continue
		}
		if err := f.pack(ctx, o, p, stitch, t); err != nil {
			return err
		}
	}
	return t.Flush()
}

// pack measures one path.
func (f *fleet) pack(ctx context.Context, o options, p path, stitch string, w io.Writer) error {
	f.tunnels = nil
	first := len(f.labs)
	for _, off := range []bool{false, true} {
		opts := lab.Options{Name: "packpack", Stitch: stitch, History: "64MiB", Rate: p.rate, RTT: p.rtt, Loss: p.loss}
		name := "on"
		if off {
			name, opts.Name = "off", "packplain"
			opts.Edit = func(_, toml string) string { return "offload_off = [\"pack\"]\n" + toml }
		}
		l, err := f.up(ctx, opts)
		if err != nil {
			return err
		}
		f.add(name, l, "h1", "h2", "10.2.0.10")
	}
	if err := f.ready(ctx); err != nil {
		return err
	}
	time.Sleep(packLearns)
	for _, data := range []struct {
		name  string
		bytes []byte
	}{{"text", traffic.Log(8 << 20)}, {"random", traffic.Noise(8 << 20)}} {
		figures := map[string][3][]float64{}
		for range o.rounds {
			for _, t := range f.tunnels {
				before, cpu := t.wire(), t.processor()
				s, err := t.tcp(1, o.length, data.bytes)
				if err != nil {
					return err
				}
				got := figures[t.name]
				share := 1 / float64(s.whole)
				got[0] = append(got[0], float64(s.bytes)*8/1e6/s.took.Seconds())
				got[1] = append(got[1], float64(t.wire()-before)*share)
				got[2] = append(got[2], (t.processor()-cpu).Seconds()*share*1e9)
				figures[t.name] = got
			}
		}
		for _, t := range f.tunnels {
			v := figures[t.name]
			fmt.Fprintf(w, "%s\t%s\t%s\t%.1f\t%.3f\t%.2f\n", p.name, data.name, t.name, median(v[0]), median(v[1]), median(v[2]))
		}
	}
	for ; len(f.labs) > first; f.labs = f.labs[:len(f.labs)-1] {
		if err := f.labs[len(f.labs)-1].Down(ctx); err != nil {
			return err
		}
	}
	return nil
}

// wire is how many bytes left the first edge for the second so far.
func (t *tunnel) wire() (n int64) {
	ns, err := t.lab.Namespace("e1")
	if err == nil {
		_ = ns.Do(func() error {
			data, err := os.ReadFile("/proc/thread-self/net/dev")
			n = sentBytes(string(data), "wan0")
			return err
		})
	}
	return n
}

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"maps"
	"os"

	"stitch/tunnel/bench"
)

// steps is what is said while something is measured: a line with a bar on a
// terminal, else a line for each step.
type steps struct {
	w        io.Writer
	bar      bool
	began    time.Time
	expected time.Duration
	stop     chan struct{}
	tasks    sync.WaitGroup

	mu   sync.Mutex
	name string
}

// newSteps returns the line for what is expected to take so long.
func newSteps(w io.Writer, expected time.Duration) *steps {
	s := &steps{w: w, bar: newProgress(w, 0).w != nil, began: time.Now(), expected: expected, stop: make(chan struct{})}
	if !s.bar {
		return s
	}
	s.tasks.Go(func() {
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		for {
			select {
			case <-s.stop:
				fmt.Fprint(s.w, "\r\x1b[K")
				return
			case <-t.C:
				fmt.Fprint(s.w, "\r\x1b[K"+s.line(time.Since(s.began)))
			}
		}
	})
	return s
}

// step says what is done now.
func (s *steps) step(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name = name
	if !s.bar {
		fmt.Fprintln(s.w, printable(name))
	}
}

// line is the bar after some time.
func (s *steps) line(after time.Duration) string {
	const width = 30
	s.mu.Lock()
	defer s.mu.Unlock()
	share := min(float64(after)/float64(s.expected), 0.99)
	return fmt.Sprintf("[%-*s] %2.0f%%  %s", width, strings.Repeat("=", int(share*width)), share*100, printable(s.name))
}

// end removes the line.
func (s *steps) end() {
	close(s.stop)
	s.tasks.Wait()
}

// writeBenchPage writes the report as a page.
func writeBenchPage(name string, r *bench.Report) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := r.HTML(f); err != nil {
		_ = f.Close()
		return fmt.Errorf("%s: %w", name, err)
	}
	return f.Close()
}

// printBench writes a report for people.
func printBench(w io.Writer, r *bench.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
	if r.Peer == "" {
		fmt.Fprintf(t, "%.0f Mbit/s, %v, %.2g %% lost each way; all on one machine\n\n", float64(r.Rate)/1e6, r.RTT, r.Loss*100)
	} else {
		fmt.Fprintf(t, "the path to %s, from here to there\n\n", printable(r.Peer))
	}
	printPath(row, r)
	row("DATA", "THROUGH", "MB/S", "OF THE LINE", "TIME", "ON THE WAN", "")
	base := map[string]float64{}
	for _, x := range r.Transfers {
		if x.Carrier == bench.PlainCubic {
			base[x.Data] = x.Rate()
		}
		if x.Data == bench.Repeated {
			base[x.Data] = base[bench.Typical]
		}
		note := ""
		if b := base[x.Data]; b > 0 && x.Carrier != bench.PlainCubic {
			note = fmt.Sprintf("%.1fx plain CUBIC", x.Rate()/b)
		}
		if !x.Finished {
			note = strings.TrimSpace(note + " (cut off)")
		}
		row(x.Data, x.Carrier, fmt.Sprintf("%.2f", x.Rate()/1e6), fmt.Sprintf("%.0f %%", x.Rate()*800/float64(r.Rate)),
			fmt.Sprintf("%.1f s", x.Seconds), size(int64(x.WAN)), note)
	}
	row("\nROUND TRIPS", "THROUGH", "P50", "P99", "MAX", "JITTER", "OF")
	for _, l := range r.Latencies {
		row(map[bool]string{false: "idle", true: "full"}[l.Busy], l.Carrier, ms(l.P50), ms(l.P99), ms(l.Max), ms(l.Jitter), fmt.Sprint(l.N))
	}
	fmt.Fprintf(t, "\nMigration of a machine with %s that writes %s a second, if its memory is like the data:\n", size(r.VM.Memory), size(r.VM.Dirty))
	for _, f := range r.Forecasts {
		row(f.Data, f.Carrier, f.String())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, what := range slices.Sorted(maps.Keys(r.Left)) {
		fmt.Fprintf(w, "left out: %s: %s\n", what, printable(r.Left[what]))
	}
	return nil
}

// printPath writes what packets show.
func printPath(row func(...string), r *bench.Report) {
	if p := r.Path; p != nil {
		row("PATH", "RATE", "LOST", "JITTER", "ROUND TRIP P50", "P99", "AT 9/10 P50", "P99")
		row("datagrams", fmt.Sprintf("%.1f Mbit/s", p.Rate/1e6), fmt.Sprintf("%.2f %%", p.Loss()*100), ms(p.Jitter),
			ms(p.Idle.P50), ms(p.Idle.P99), ms(p.Loaded.P50), ms(p.Loaded.P99))
		row()
	}
	if len(r.Packets) > 0 {
		row("PACKETS", "THROUGH", "A SECOND")
		for _, p := range r.Packets {
			row(fmt.Sprintf("layer %d, %d bytes", p.Layer, p.Size), p.Carrier, fmt.Sprintf("%.0f", p.Rate))
		}
		row()
	}
}

// ms writes a short time in milliseconds.
func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }

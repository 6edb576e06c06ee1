package main

import (
	"fmt"
	"time"

	"stitch/tunnel/wan"
)

// link is an emulated WAN.
type link struct {
	name string
	rate int64 // bit/s of IP packets, each way
	rtt  time.Duration
	loss float64 // share of the packets, each way
	// burst is how many are lost at a time, on average; 0: each by itself.
	burst float64
}

// links are those of the table.
var links = []link{
	{"T3", 45e6, 100 * time.Millisecond, 0, 0},
	{"100/80", 100e6, 80 * time.Millisecond, 0, 0},
	{"100/80 0.1%", 100e6, 80 * time.Millisecond, 0.001, 0},
	{"100/80 1%", 100e6, 80 * time.Millisecond, 0.01, 0},
	{"100/80 3%", 100e6, 80 * time.Millisecond, 0.03, 0},
	{"100/80 0.1% burst", 100e6, 80 * time.Millisecond, 0.001, meanBurst},
	{"100/80 1% burst", 100e6, 80 * time.Millisecond, 0.01, meanBurst},
	{"100/80 3% burst", 100e6, 80 * time.Millisecond, 0.03, meanBurst},
	{"50/150 1%", 50e6, 150 * time.Millisecond, 0.01, 0},
	{fast, 900e6, 20 * time.Millisecond, 0, 0},
}

// fast is the link that the machine's processors may not fill.
const fast = "900/20"

// meanBurst is the mean length of a run of lost packets.
const meanBurst = 5

func (l link) String() string {
	s := fmt.Sprintf("%s: %d Mbit/s, %v", l.name, l.rate/1e6, l.rtt)
	if l.loss > 0 {
		s += fmt.Sprintf(", %.1f %% lost", 100*l.loss)
	}
	if l.burst > 0 {
		s += fmt.Sprintf(" in runs of %.0f", l.burst)
	}
	return s
}

// change makes the emulator lose packets in runs.
func (l link) change(p *wan.Params) {
	if l.burst > 0 {
		p.Loss, p.Burst = 0, wan.BurstLoss(l.loss, l.burst)
	}
}

// ceiling is what goodput the link could have at most, in bytes a second: 1368
// bytes of data in a packet of 1480.
func (l link) ceiling() float64 { return float64(l.rate) / 8 * (1 - l.loss) * 1368 / 1480 }

// The kinds of data, by their names in the table.
const (
	first          = "first migration"
	sibling        = "sibling"
	back           = "return"
	gentle         = "return, light load"
	again          = "exact repeat"
	seeded         = "seeded first"
	incompressible = "incompressible"
	// between is sent before a return with a light load, and is no row.
	between = "before the light load"
)

// kinds are the rows of a link, in order; files the captured streams that they
// are.
var (
	kinds = []string{first, seeded, back, gentle, sibling, again, incompressible}
	files = map[string]string{first: "a1", seeded: "a1", sibling: "s", back: "a2", again: "a1", between: "light1", gentle: "light2"}
)

// image is the file that is seeded.
const image = "disk.img"

// The carriers, by their names in the table.
const (
	cubic  = "plain CUBIC"
	bbr    = "plain BBR"
	stitch = "stitch"
)

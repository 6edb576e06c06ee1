package main

import (
	"fmt"
	"path/filepath"
	"runtime"
)

// linkRates are the links, in Mbit/s, that a cold stream is sent over.
var linkRates = []float64{45, 1000, 10_000}

// Link is a stream over a link of a known rate: the codec shall fill it.
type Link struct {
	Mbit   float64 `json:"mbit_s"`
	Bytes  int64   `json:"bytes"`
	Ours   Side    `json:"ours"`
	Plain  float64 `json:"plain_seconds"`
	Stitch float64 `json:"stitch_seconds"` // of the slowest of link, encoder and decoder, each with one core
}

// links measures the first stream over each link.
func (b *bench) links() error {
	c := cases(b.corpus)[0]
	if err := c.missing(); err != nil || !b.only.MatchString("links") {
		return nil // it was said before
	}
	in, err := sizes(c.files)
	if err != nil {
		return err
	}
	for _, mbit := range linkRates {
		b.Say("links %.0f Mbit/s", mbit)
		c.link = mbit * 1e6 / 8
		var sides []Side
		for range b.runs {
			s, _, err := ours(&c)
			if err != nil {
				return fmt.Errorf("%s at %.0f Mbit/s: %w", filepath.Base(c.files[0]), mbit, err)
			}
			sides = append(sides, s)
			runtime.GC()
		}
		l := newLink(mbit, in, median(sides))
		b.report.Links = append(b.report.Links, l)
		b.report.Aims = append(b.report.Aims, atLeast(fmt.Sprintf("at %.0f Mbit/s: times as fast as nothing", mbit), l.Plain/l.Stitch, 1))
	}
	return nil
}

func newLink(mbit float64, in int64, s Side) Link {
	over := func(n int64) float64 { return float64(n) * 8 / 1e6 / mbit }
	return Link{Mbit: mbit, Bytes: in, Ours: s, Plain: over(in), Stitch: max(over(s.Bytes), s.Encode, s.Decode)}
}

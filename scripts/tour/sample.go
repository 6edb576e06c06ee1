package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	"stitch/tunnel/control"
	"stitch/tunnel/lab"
)

// sampleEvery is the resolution of the timeline.
const sampleEvery = 200 * time.Millisecond

// Sample is one point of the timeline: bytes since the lab came up.
type Sample struct {
	At time.Time `json:"at"`
	// WAN is what both edges put on the wire between them.
	WAN int64 `json:"wan_bytes"`
	// Raw is what the agents took from hosts into streams, before the codec.
	Raw int64 `json:"raw_bytes"`
}

// sampler records the timeline.
type sampler struct {
	lab     *lab.Lab
	samples []Sample // run's, until it has returned
}

func newSampler(l *lab.Lab) *sampler { return &sampler{lab: l} }

// run samples until ctx ends. A moment at which somebody does not answer is
// left out.
func (s *sampler) run(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			t, err := s.lab.WAN().Counters(ctx)
			if err != nil {
				continue
			}
			raw, err := s.raw(ctx)
			if err != nil {
				continue
			}
			s.samples = append(s.samples, Sample{At: now, WAN: int64(t.Bytes()), Raw: raw})
		}
	}
}

// raw adds up what the two agents read from hosts into streams.
func (s *sampler) raw(ctx context.Context) (total int64, err error) {
	for _, e := range []string{"e1", "e2"} {
		st, err := control.NewClient(filepath.Join(s.lab.Options().Dir, e, control.Socket)).Status(ctx)
		if err != nil {
			return 0, err
		}
		var streams struct {
			Peers []struct {
				BytesOut int64 `json:"bytes_out"`
			} `json:"peers"`
		}
		if err := json.Unmarshal(st.Streams, &streams); err != nil {
			return 0, err
		}
		for _, p := range streams.Peers {
			total += p.BytesOut
		}
	}
	return total, nil
}

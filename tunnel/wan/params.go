package wan

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Limits of Params, so that no number from outside overflows the model.
const (
	maxRate  = 1e12 // bit/s
	maxDelay = time.Minute
	maxQueue = 1 << 30
)

// Params describe one direction of a path. The zero value is a perfect path:
// no delay, no limit, no loss.
type Params struct {
	// Rate in bits of IP packets per second; zero: unlimited, nothing queues.
	Rate int64 `json:"rate"`
	// Delay is the constant one-way delay, at most a minute.
	Delay time.Duration `json:"delay_ns"`
	// Jitter adds an evenly distributed delay of 0 to Jitter. It never
	// reorders: a packet that would overtake waits for the one in front.
	Jitter time.Duration `json:"jitter_ns"`
	// Loss is the probability, 0 to 1, of losing a packet independently.
	Loss float64 `json:"loss"`
	// Burst is loss that comes in runs, in addition to Loss.
	Burst Burst `json:"burst"`
	// Queue is the most bytes waiting for (and in) the transmitter. Zero: the
	// larger of 2 x Delay and 50 ms worth of Rate (100 Mb/s, 20 ms each way:
	// 625,000), at least 16 full packets. An idle transmitter takes a packet of
	// any size. Without a Rate there is no queue.
	Queue int64 `json:"queue"`
	// Duplicate is the probability that a delivered packet arrives twice.
	Duplicate float64 `json:"duplicate"`
	// Reorder is the probability that a packet is held back by ReorderBy, so
	// that those behind overtake it.
	Reorder float64 `json:"reorder"`
	// ReorderBy is the extra delay of a reordered packet; zero: 1 ms.
	ReorderBy time.Duration `json:"reorder_by_ns"`
	// Down drops every packet offered.
	Down bool `json:"down"`
	// Seed of the random decisions: the same seed and the same packets give
	// the same decisions.
	Seed uint64 `json:"seed"`
}

// Burst is the Gilbert-Elliott loss model: a good state without loss and a bad
// one with it, changed with the given probabilities at every packet. The mean
// length of a bad run is 1/Leave packets, its share Enter/(Enter+Leave).
type Burst struct {
	// Enter is the probability of going from good to bad; zero: never.
	Enter float64 `json:"enter"`
	// Leave is the probability of going back.
	Leave float64 `json:"leave"`
	// Loss is the probability of losing a packet in the bad state; zero: 1.
	Loss float64 `json:"loss"`
}

// BurstLoss returns the Burst that loses the given share (below 1) of all
// packets in runs of the given mean length (at least 1).
func BurstLoss(share, mean float64) Burst {
	leave := 1 / max(mean, 1)
	return Burst{Enter: min(1, leave*share/(1-share)), Leave: leave, Loss: 1}
}

// Validate reports the first field of p that is out of range.
func (p Params) Validate() error {
	switch {
	case p.Rate < 0 || p.Rate > maxRate:
		return fmt.Errorf("rate %d: use 0 (no limit) to %.0f bit/s", p.Rate, float64(maxRate))
	case p.Queue < 0 || p.Queue > maxQueue:
		return fmt.Errorf("queue %d: use 0 (default) to %d bytes", p.Queue, maxQueue)
	}
	for _, d := range []time.Duration{p.Delay, p.Jitter, p.ReorderBy} {
		if d < 0 || d > maxDelay {
			return fmt.Errorf("delay %v: use 0 to %v", d, maxDelay)
		}
	}
	for _, v := range []float64{p.Loss, p.Burst.Enter, p.Burst.Leave, p.Burst.Loss, p.Duplicate, p.Reorder} {
		if !(v >= 0 && v <= 1) {
			return fmt.Errorf("probability %v: use 0 to 1", v)
		}
	}
	return nil
}

// QueueBytes is the queue in effect: Queue or its default; zero when there is
// no rate and so no queue.
func (p Params) QueueBytes() int64 {
	if p.Rate == 0 {
		return 0
	}
	if p.Queue > 0 {
		return p.Queue
	}
	hold := max(2*p.Delay, 50*time.Millisecond)
	return min(max(int64(float64(p.Rate)/8*hold.Seconds()), 16*1500), maxQueue)
}

// ParseRate reads "100mbit", "1.5gbit", "64kbit", "8000bit" or "0" as bits
// per second; k, m and g are powers of 1000.
func ParseRate(s string) (int64, error) {
	bad := fmt.Errorf("rate %q: write it like 100mbit, 1.5gbit, 64kbit or 0", s)
	num, scale := strings.ToLower(s), 1.0
	if num == "0" {
		return 0, nil
	}
	num, ok := strings.CutSuffix(num, "bit")
	if !ok || num == "" {
		return 0, bad
	}
	if i := strings.IndexByte("kmg", num[len(num)-1]); i >= 0 {
		scale, num = math.Pow10(3*(i+1)), num[:len(num)-1]
	}
	v, err := strconv.ParseFloat(num, 64)
	if err != nil || !(v >= 0 && v*scale <= maxRate) {
		return 0, bad
	}
	return int64(math.Round(v * scale)), nil
}

// ParseLoss reads "0.1%" or "0.001" as a probability.
func ParseLoss(s string) (float64, error) {
	num, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(num, 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v <= 1) {
		return 0, errors.New("loss " + strconv.Quote(s) + ": write it like 0.1% or 0.001")
	}
	return v, nil
}

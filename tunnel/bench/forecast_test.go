package bench

import (
	"testing"
	"time"
)

// TestForecast holds the simulation against figures made by hand.
func TestForecast(t *testing.T) {
	vm := VM{Memory: 1000, Dirty: 50, Downtime: 300 * time.Millisecond}
	for _, c := range []struct {
		rate float64
		want Forecast
	}{
		// 1000 in 10 s, 500 in 5 s, 250, 125, 62.5, 31.25 in 0.3125 s, 15.6 in 0.156 s
		{100, Forecast{true, 19_843_750 * time.Microsecond, 7}},
		{50, Forecast{Rounds: maxRounds}}, // it writes as fast as it is sent
		{10, Forecast{Rounds: maxRounds}},
		{0, Forecast{Rounds: maxRounds}},
		{10_000, Forecast{true, 100 * time.Millisecond, 1}}, // all of it fits into the downtime
	} {
		if got := vm.Forecast(c.rate); got != c.want {
			t.Errorf("at %g: %+v, want %+v", c.rate, got, c.want)
		}
	}
}

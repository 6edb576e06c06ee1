package main

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
	"stitch/tunnel/lab"
)

// sampleEvery is how often the sockets are looked at.
const sampleEvery = 10 * time.Millisecond

// sample is what a host's sockets held at one moment.
type sample struct {
	at time.Time
	// written is what the hypervisor here has written to the move's connection
	// so far, read what it has read.
	written, read uint64
	// in waits to be read from it, out to be acknowledged: of the move's
	// connection, and of those between the agents.
	in, out         int64
	peerIn, peerOut int64
}

// sampler looks at the sockets of the hosts that a move passes.
type sampler struct {
	stop chan struct{}
	done sync.WaitGroup

	mu   sync.Mutex
	seen map[string][]sample // by host, in order
	err  error
}

// watch begins to look at the sockets of these hosts, until end.
func watch(l *lab.Lab, hosts ...string) *sampler {
	s := &sampler{stop: make(chan struct{}), seen: map[string][]sample{}}
	for _, host := range hosts {
		s.done.Go(func() {
			ns, err := l.Namespace(host)
			if err == nil {
				err = ns.Do(func() error { return s.follow(host) })
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.err = errors.Join(s.err, err)
		})
	}
	return s
}

// end ends it and returns what was seen, by host.
func (s *sampler) end() (map[string][]sample, error) {
	close(s.stop)
	s.done.Wait()
	return s.seen, s.err
}

// follow looks at the sockets of the namespace it is in.
func (s *sampler) follow(host string) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return nil
		case <-tick.C:
		}
		at := time.Now()
		sockets, err := netlink.SocketDiagTCPInfo(unix.AF_INET)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.seen[host] = append(s.seen[host], look(at, sockets))
		s.mu.Unlock()
	}
}

// look makes a sample of a host's sockets.
func look(at time.Time, sockets []*netlink.InetDiagTCPInfoResp) sample {
	n := sample{at: at}
	for _, s := range sockets {
		d := s.InetDiagMsg
		if s.TCPInfo == nil || d.State == netlink.TCP_LISTEN {
			continue
		}
		ports := []uint16{d.ID.SourcePort, d.ID.DestinationPort}
		switch {
		case slices.Contains(ports, migrationPort):
			n.written = max(n.written, s.TCPInfo.Bytes_acked+uint64(d.WQueue))
			n.read = max(n.read, s.TCPInfo.Bytes_received-min(s.TCPInfo.Bytes_received, uint64(d.RQueue)))
			n.in, n.out = n.in+int64(d.RQueue), n.out+int64(d.WQueue)
		case slices.Contains(ports, config.StreamPort):
			n.peerIn, n.peerOut = n.peerIn+int64(d.RQueue), n.peerOut+int64(d.WQueue)
		}
	}
	return n
}

// at returns the last sample before a moment; the first if there is none.
func at(samples []sample, t time.Time) sample {
	i, _ := slices.BinarySearchFunc(samples, t, func(s sample, t time.Time) int { return s.at.Compare(t) })
	switch {
	case len(samples) == 0:
		return sample{}
	case i == 0:
		return samples[0]
	}
	return samples[i-1]
}

// Stop is how a guest came to be stopped, at the end of its move.
type Stop struct {
	// Load says what the guest did meanwhile, Carrier what carried it.
	Load    string `json:"load"`
	Carrier string `json:"carrier"`
	// Rate is the line's, in bit/s.
	Rate    int64   `json:"bit_per_s"`
	Seconds float64 `json:"seconds"`
	// GivenUp: it was not stopped within Seconds; what follows is missing then.
	GivenUp    bool    `json:"given_up,omitempty"`
	DowntimeMS float64 `json:"downtime_ms"`
	// ExpectedMS, Believed (bytes/s), Remaining (bytes) and DirtyRate (pages/s)
	// are what the hypervisor said last before it stopped the guest.
	ExpectedMS int64   `json:"expected_ms"`
	Believed   float64 `json:"believed_bytes_per_s"`
	Remaining  int64   `json:"remaining_bytes"`
	DirtyRate  int64   `json:"dirty_pages_per_s"`
	Rounds     int64   `json:"rounds"`
	// Mean (bytes/s) is what it had sent by then, by the time it took.
	Mean float64 `json:"mean_bytes_per_s"`
	// Before and Drained (bytes/s) are how fast its other end read in the second
	// before, and from then until the guest ran.
	Before  float64 `json:"before_bytes_per_s"`
	Drained float64 `json:"drained_bytes_per_s"`
	// Left is what the other end had still to read when the guest was stopped, in
	// bytes; Waiting is the part of it that had been written already.
	Left    int64 `json:"left_bytes"`
	Waiting int64 `json:"waiting_bytes"`
	// Places are the bytes in sockets at that moment, by host: those of the move's
	// connection as they are, of the agents' (peer) compressed.
	Places map[string]int64 `json:"places"`
}

// fill works out what the sockets tell. Pure.
func (s *Stop) fill(seen map[string][]sample, from, to string, stopped, resumed time.Time) {
	target := seen[to]
	read := at(target, stopped).read
	total := max(at(target, resumed).read, at(seen[from], resumed).written)
	s.Left = int64(total - min(total, read))
	s.Waiting = int64(at(seen[from], stopped).written) - int64(read)
	s.Drained = float64(s.Left) / resumed.Sub(stopped).Seconds()
	s.Before = float64(read - min(read, at(target, stopped.Add(-time.Second)).read))
	s.Places = map[string]int64{}
	for host, samples := range seen {
		n := at(samples, stopped)
		for place, bytes := range map[string]int64{" in": n.in, " out": n.out, " peer in": n.peerIn, " peer out": n.peerOut} {
			if bytes > 0 {
				s.Places[host+place] = bytes
			}
		}
	}
}

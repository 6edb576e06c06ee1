package lab

import (
	"cmp"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"time"

	"stitch/tunnel/wan"
)

// Options of one lab. The zero value of each field has a meaning.
type Options struct {
	// Name is the prefix of the namespaces and of the directory, for more than
	// one lab on a machine; at most 20 of [a-z0-9]. Default "stitch".
	Name string `json:"name"`
	// Dir is the lab's directory; default /run/<Name>-lab. It must be empty,
	// missing, or an earlier lab's: Down deletes it.
	Dir string `json:"dir"`
	// Rate of the WAN between the edges in bit/s of IP packets, each way.
	// Zero: no emulator; the edges are joined by a plain veth with its
	// offloads on, and RTT, Loss and Queue are ignored.
	Rate int64 `json:"rate"`
	// RTT is the round-trip time between the edges; half each way.
	RTT time.Duration `json:"rtt_ns"`
	// Loss is the probability of losing a packet, each way.
	Loss float64 `json:"loss"`
	// Queue is the bottleneck's buffer in bytes; zero: see wan.Params.Queue.
	Queue int64 `json:"queue"`
	// Streams lets the agents start their stream processes.
	Streams bool `json:"streams"`
	// Plain runs userspace WireGuard (WireGuard) on the edges instead of agents.
	Plain bool `json:"plain"`
	// NoAgents runs neither: only the network.
	NoAgents bool `json:"no_agents"`
	// Stitch is the path of the stitch program; needed unless Plain or
	// NoAgents is set and WANDaemon too.
	Stitch string `json:"stitch"`
	// WANDaemon is the command of the emulator's process, to which its
	// configuration file is appended. Default: Stitch lab wan-daemon. Whatever
	// it is must call RunWAN.
	WANDaemon []string `json:"wan_daemon"`
	// WireGuard is the program used by Plain; default "wireguard-go".
	WireGuard string `json:"wireguard"`
	// History is the agents' history.size, as in their file; default "1GiB".
	History string `json:"history"`
	// Congestion is the hosts' congestion control; default "cubic". The edges
	// keep the machine's.
	Congestion string `json:"congestion"`
	// Edit, if not nil, may change the text of an agent's configuration (host
	// is e1 or e2) before it is written.
	Edit func(host, toml string) string `json:"-"`
	// Log tells what is done; nil: discard.
	Log *slog.Logger `json:"-"`
}

var (
	nameRule    = regexp.MustCompile(`^[a-z0-9]{1,20}$`)
	controlRule = regexp.MustCompile(`^[a-z0-9_]{1,15}$`)
)

// withDefaults fills in defaults and checks what can be checked without the
// machine.
func (o Options) withDefaults() (Options, error) {
	o.Name = cmp.Or(o.Name, "stitch")
	o.Dir = cmp.Or(o.Dir, "/run/"+o.Name+"-lab")
	o.WireGuard = cmp.Or(o.WireGuard, "wireguard-go")
	o.History = cmp.Or(o.History, "1GiB")
	o.Congestion = cmp.Or(o.Congestion, "cubic")
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if !nameRule.MatchString(o.Name) {
		return o, fmt.Errorf("lab name %q: use 1 to 20 of a-z and 0-9", o.Name)
	}
	if !controlRule.MatchString(o.Congestion) {
		return o, fmt.Errorf("congestion control %q: use a name the kernel knows", o.Congestion)
	}
	if !filepath.IsAbs(o.Dir) {
		return o, fmt.Errorf("lab directory %q: give an absolute path", o.Dir)
	}
	if o.Plain && o.NoAgents {
		return o, fmt.Errorf("plain and no agents exclude each other: choose one")
	}
	if err := o.path().Validate(); err != nil {
		return o, fmt.Errorf("lab: %w", err)
	}
	if o.WANDaemon == nil {
		o.WANDaemon = []string{o.Stitch, "lab", "wan-daemon"}
	}
	needs := !o.Plain && !o.NoAgents || o.Rate > 0 && o.WANDaemon[0] == ""
	if needs && o.Stitch == "" {
		return o, fmt.Errorf("lab: the path of the stitch program is needed")
	}
	return o, nil
}

// path is one direction between the edges.
func (o Options) path() wan.Params {
	return wan.Params{Rate: o.Rate, Delay: o.RTT / 2, Loss: o.Loss, Queue: o.Queue, Seed: 1}
}

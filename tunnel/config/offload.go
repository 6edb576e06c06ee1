package config

import "slices"

// Offload says which of the kernel's offloads are left alone: the way out on a
// host where one of them harms. What it finds harmful the agent switches off
// by itself.
type Offload struct {
	// NoCut: TUN and TAP devices hand over no super-packets.
	NoCut bool
	// NoJoin: packets are written to TUN and TAP devices one by one.
	NoJoin bool
	// NoTrain: datagrams of the links leave and come one at a time.
	NoTrain bool
	// NoPack: TCP super-packets are not compressed, nor taken compressed.
	NoPack bool
}

// offloads are the words of offload_off.
var offloads = []string{"cut", "join", "train", "pack"}

// offload reads offload_off.
func (l *loader) offload() {
	for i, word := range l.raw.OffloadOff {
		path := at("offload_off", i)
		switch {
		case slices.Contains(l.raw.OffloadOff[:i], word):
			l.problem(path, "%s is there twice: remove one", quote(word))
		case word == "cut":
			l.cfg.Offload.NoCut = true
		case word == "join":
			l.cfg.Offload.NoJoin = true
		case word == "train":
			l.cfg.Offload.NoTrain = true
		case word == "pack":
			l.cfg.Offload.NoPack = true
		default:
			l.problem(path, "no offload is called %s: %s", quote(word), suggest(word, offloads, "offloads"))
		}
	}
}

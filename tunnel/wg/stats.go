package wg

import (
	"sync/atomic"
	"time"

	"stitch/tunnel/wg/carrier"
	"stitch/tunnel/wg/pack"
	"stitch/tunnel/wg/quality"
)

// Stats are the state and counters of a link since Open. Packets are IP
// packets of the TUN device, datagrams what crosses the WAN.
type Stats struct {
	State State `json:"state"`
	// Since is when the state began.
	Since time.Time `json:"since"`
	// Obstacle is what hinders a session while the link is not up; "": not known.
	Obstacle Obstacle `json:"obstacle,omitempty"`
	// PeerDeaf says that the peer's probes arrive here and ours do not there.
	PeerDeaf bool `json:"peer_deaf"`
	// RTT and RTTVar are the smoothed round-trip time inside the link and its
	// mean deviation, in nanoseconds; 0: not measured. Loss is the share of
	// the last 25 s' probes without an echo, 0 to 1.
	RTT    time.Duration `json:"rtt_ns"`
	RTTVar time.Duration `json:"rtt_var_ns"`
	Loss   float64       `json:"loss"`
	// Quality is the judgement on the link, and what it rests on besides; zero
	// for a stock peer.
	Quality quality.Report `json:"quality"`
	// LastHandshake is zero if there was none.
	LastHandshake time.Time `json:"last_handshake"`
	// Endpoint is where the peer was last heard from, or the configured one.
	Endpoint string `json:"endpoint"`

	Rx Traffic `json:"rx"`
	Tx Traffic `json:"tx"`
	// HandshakeResent counts copies of handshake messages, HandshakeDropped
	// initiations of the peer that had to give way to ours.
	HandshakeResent  uint64 `json:"handshake_resent"`
	HandshakeDropped uint64 `json:"handshake_dropped"`
	// Released counts held packets and frames sent when the link came up.
	Released uint64 `json:"released"`
	Held     int    `json:"held"`
	// Rate is the most that leaves, configured or learned, in bits of IP packets a
	// second; 0: no bound.
	Rate int64 `json:"rate"`
	// Classes divide the rate; absent without any.
	Classes []ClassStats `json:"classes,omitempty"`
	// InnerMTU is the largest packet sent in one datagram now.
	InnerMTU int `json:"inner_mtu"`
	// Apart says that datagrams leave one at a time: configured, or because
	// trains of them got lost.
	Apart bool `json:"apart"`
	// Unmerged says that they are received one at a time: configured, or because
	// trains of the peer got lost.
	Unmerged bool `json:"unmerged"`

	Pack       Pack          `json:"pack"`
	Drops      Drops         `json:"drops"`
	Errors     Errors        `json:"errors"`
	Reassembly carrier.Drops `json:"reassembly"`
}

// Traffic counts one direction.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Frames  uint64 `json:"frames"`
	// Parts counts the carrier packets of messages that were cut.
	Parts     uint64 `json:"parts"`
	Control   uint64 `json:"control"`
	Datagrams uint64 `json:"datagrams"`
	// WireBytes are UDP payload bytes.
	WireBytes uint64 `json:"wire_bytes"`
}

// Pack counts the TCP super-packets that are compressed, and why others are not;
// see package pack for the rule.
type Pack struct {
	// Peer says that the peer takes units and this end may send them.
	Peer bool `json:"peer"`
	// Units were sent: Bytes of super-packets became UnitBytes, and Datagrams
	// fewer left. Received units came in.
	Units     uint64 `json:"units"`
	Bytes     uint64 `json:"bytes"`
	UnitBytes uint64 `json:"unit_bytes"`
	Datagrams uint64 `json:"datagrams_saved"`
	Received  uint64 `json:"received"`
	// History says that both ends keep one, and RepeatBytes are those of Bytes that
	// were found in it.
	History     bool   `json:"history"`
	RepeatBytes uint64 `json:"repeat_bytes"`
	// Not compressed were, of those offered since the peer takes units: flows
	// passed over for what was seen before, that look encrypted, where too
	// little was saved, or too little for the link's loss, because compressing
	// takes too much time, and those a unit is not made of.
	Passed    uint64 `json:"passed"`
	Encrypted uint64 `json:"encrypted"`
	Small     uint64 `json:"small"`
	Lossy     uint64 `json:"lossy"`
	Busy      uint64 `json:"busy"`
	Odd       uint64 `json:"odd"`
}

// Drops counts what the link dropped, by cause.
type Drops struct {
	// FrameQueue: the queue of frames was full. FrameInvalid: no segment,
	// empty, too long, or the peer is a stock one.
	FrameQueue   uint64 `json:"frame_queue"`
	FrameInvalid uint64 `json:"frame_invalid"`
	// ControlQueue, ControlDown, ControlInvalid: queue full, link not up, too
	// long.
	ControlQueue   uint64 `json:"control_queue"`
	ControlDown    uint64 `json:"control_down"`
	ControlInvalid uint64 `json:"control_invalid"`
	// HoldFull: link down and no room for one more flow. HoldOlder: link down
	// and a newer packet of the flow came.
	HoldFull  uint64 `json:"hold_full"`
	HoldOlder uint64 `json:"hold_older"`
	// NotIP, TooBig, Forged: packets of the TUN device that are no IP, cannot
	// be carried, or pretend to be the link's own.
	NotIP  uint64 `json:"not_ip"`
	TooBig uint64 `json:"too_big"`
	Forged uint64 `json:"forged"`
	// Foreign and Version: packets of the peer between link addresses that
	// break the carrier format, or are of another version of it.
	Foreign uint64 `json:"foreign"`
	Version uint64 `json:"version"`
	// Rate: too much waited for the link's rate.
	Rate uint64 `json:"rate"`
	// Unit: units of the peer that break the format. UnitMissing: that refer to
	// what is not in the history, any more or after a restart. Part: parts of our units
	// that were not sent before the link went down.
	Unit        uint64 `json:"unit"`
	UnitMissing uint64 `json:"unit_missing"`
	Part        uint64 `json:"part"`
	// Unclaimed: frames and control datagrams nobody takes.
	Unclaimed uint64 `json:"unclaimed"`
	// Rejected: datagrams with data that gave no packet, since they were
	// damaged, there already, too old, or not the peer's; and the few that are
	// being decrypted this moment.
	Rejected uint64 `json:"rejected"`
}

// Errors counts failed system calls; all of them are survived.
type Errors struct {
	TUNRead  uint64 `json:"tun_read"`
	TUNWrite uint64 `json:"tun_write"`
	Send     uint64 `json:"send"`
	Receive  uint64 `json:"receive"`
	// Rebinds counts how often the UDP socket was opened anew.
	Rebinds uint64 `json:"rebinds"`
}

// counters are the counters behind Stats.
type counters struct {
	txPackets, txBytes, txFrames, txParts, txControl, txDatagrams, txWire atomic.Uint64
	rxPackets, rxBytes, rxFrames, rxParts, rxControl, rxDatagrams, rxWire atomic.Uint64

	handshakeResent, handshakeDropped, released atomic.Uint64

	pack                                     [pack.Verdicts]atomic.Uint64
	packBytes, unitBytes, packSaved, rxUnits atomic.Uint64
	repeats                                  atomic.Uint64

	dropFrameQueue, dropFrameInvalid                      atomic.Uint64
	dropControlQueue, dropControlDown, dropControlInvalid atomic.Uint64
	dropHoldFull, dropHoldOlder                           atomic.Uint64
	dropNotIP, dropTooBig, dropForged, dropRate           atomic.Uint64
	dropForeign, dropVersion, dropUnclaimed               atomic.Uint64
	rxData, rxOpened                                      atomic.Uint64 // datagrams with data, and packets of them
	dropUnit, dropMissing, dropPart                       atomic.Uint64
	tunReadErrors, tunWriteErrors                         atomic.Uint64
	sendErrors, receiveErrors, rebinds                    atomic.Uint64
}

// fill copies the counters to s.
func (c *counters) fill(s *Stats) {
	opened := c.rxOpened.Load() // first, so that it is the smaller one
	s.Tx = Traffic{
		Packets: c.txPackets.Load(), Bytes: c.txBytes.Load(), Frames: c.txFrames.Load(), Parts: c.txParts.Load(),
		Control: c.txControl.Load(), Datagrams: c.txDatagrams.Load(), WireBytes: c.txWire.Load(),
	}
	s.Rx = Traffic{
		Packets: c.rxPackets.Load(), Bytes: c.rxBytes.Load(), Frames: c.rxFrames.Load(), Parts: c.rxParts.Load(),
		Control: c.rxControl.Load(), Datagrams: c.rxDatagrams.Load(), WireBytes: c.rxWire.Load(),
	}
	s.HandshakeResent, s.HandshakeDropped, s.Released = c.handshakeResent.Load(), c.handshakeDropped.Load(), c.released.Load()
	s.Drops = Drops{
		FrameQueue: c.dropFrameQueue.Load(), FrameInvalid: c.dropFrameInvalid.Load(),
		ControlQueue: c.dropControlQueue.Load(), ControlDown: c.dropControlDown.Load(), ControlInvalid: c.dropControlInvalid.Load(),
		HoldFull: c.dropHoldFull.Load(), HoldOlder: c.dropHoldOlder.Load(),
		NotIP: c.dropNotIP.Load(), TooBig: c.dropTooBig.Load(), Forged: c.dropForged.Load(), Rate: c.dropRate.Load(),
		Foreign: c.dropForeign.Load(), Version: c.dropVersion.Load(), Unclaimed: c.dropUnclaimed.Load(),
		Rejected: c.rxData.Load() - opened,
		Unit:     c.dropUnit.Load(), UnitMissing: c.dropMissing.Load(), Part: c.dropPart.Load(),
	}
	s.Pack = Pack{
		Units: c.pack[pack.Packed].Load(), Bytes: c.packBytes.Load(), UnitBytes: c.unitBytes.Load(), Datagrams: c.packSaved.Load(),
		Received: c.rxUnits.Load(), RepeatBytes: c.repeats.Load(), Passed: c.pack[pack.Passed].Load(), Encrypted: c.pack[pack.Encrypted].Load(),
		Small: c.pack[pack.Small].Load(), Lossy: c.pack[pack.Lossy].Load(), Busy: c.pack[pack.Busy].Load(), Odd: c.pack[pack.Odd].Load(),
	}
	s.Errors = Errors{
		TUNRead: c.tunReadErrors.Load(), TUNWrite: c.tunWriteErrors.Load(),
		Send: c.sendErrors.Load(), Receive: c.receiveErrors.Load(), Rebinds: c.rebinds.Load(),
	}
}

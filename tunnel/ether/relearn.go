package ether

import (
	"slices"
	"time"

	"stitch/tunnel/config"
)

// maxRelearn bounds the workloads that are being announced at a time.
const maxRelearn = 1024

// relearnAt are the times after a claim at which the LAN is told that the
// workload is now behind the TAP: more than once, since a bridge may be busy
// and a late frame of the machine itself may undo the first.
var relearnAt = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, time.Second}

// relearner is the schedule of announcements put into the LAN for workloads
// that went to a peer. It has no clock and is not safe for concurrent use.
type relearner struct{ jobs []relearnJob }

type relearnJob struct {
	mac   config.MAC
	start time.Duration
	done  int // announcements made
}

func (j *relearnJob) due() time.Duration { return j.start + relearnAt[j.done] }

// start begins announcing mac, again if it already is; false when there are
// too many: the bridge then relearns from the workload's own frames.
func (r *relearner) start(now time.Duration, mac config.MAC) bool {
	r.stop(mac)
	if len(r.jobs) == maxRelearn {
		return false
	}
	r.jobs = append(r.jobs, relearnJob{mac: mac, start: now})
	return true
}

// stop ends announcing mac: it is here.
func (r *relearner) stop(mac config.MAC) {
	r.jobs = slices.DeleteFunc(r.jobs, func(j relearnJob) bool { return j.mac == mac })
}

// next appends to dst the addresses that are due, at most room of them, and
// returns with them the time until the next is; wait if that is sooner.
func (r *relearner) next(now time.Duration, dst []config.MAC, room int, wait time.Duration) ([]config.MAC, time.Duration) {
	for i := range r.jobs {
		j := &r.jobs[i]
		if room > 0 && j.due() <= now {
			dst = append(dst, j.mac)
			room--
			j.done++
		}
		if j.done < len(relearnAt) {
			wait = min(wait, max(j.due()-now, 0))
		}
	}
	r.jobs = slices.DeleteFunc(r.jobs, func(j relearnJob) bool { return j.done == len(relearnAt) })
	return dst, wait
}

// rarpLen is the length of a RARP frame, padded.
const rarpLen = 60

// appendRARP appends the broadcast RARP request with which mac announces itself,
// as a hypervisor sends it after a move; in a VLAN unless that is 0.
func appendRARP(dst []byte, mac config.MAC, vlan uint16) []byte {
	n := len(dst)
	dst = append(dst, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	dst = append(dst, mac[:]...)
	dst = append(appendTag(dst, vlan), 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, rarpRequest)
	dst = append(dst, mac[:]...)
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, mac[:]...)
	for len(dst) < n+rarpLen {
		dst = append(dst, 0)
	}
	return dst
}

package stream

import (
	"bytes"
	"context"
	"math"
	"os"
	"path"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
)

const (
	// memoryEvery is how often memory is looked at.
	memoryEvery = 200 * time.Millisecond
	// memoryShare of a place's memory, but at most maxReserve, is left to the
	// streams that are open: below that no other is begun, until there is twice as
	// much again.
	memoryShare = 16
	maxReserve  = 512 << 20
	// streamTakes is what a stream may soon take that has just begun: its first
	// window, and as much as the kernel keeps for its host.
	streamTakes = startWindow + localReceive
)

// Memory is a place that bounds how much memory this process may have.
type Memory struct {
	// Place is "host", or a control group as a path.
	Place string
	// Free bytes of Total can still be had; what the kernel would give back first
	// counts as free.
	Free, Total uint64
}

// MemoryStats says how memory is in the place with the least left above its mark.
type MemoryStats struct {
	// Short: new connections pass as packets. They do below Mark, until twice as
	// much is free. All zero: not known.
	Short bool   `json:"short"`
	Place string `json:"place"`
	Free  uint64 `json:"free"`
	Total uint64 `json:"total"`
	Mark  uint64 `json:"mark"`
	// Turned counts the connections that passed because of it, also those for which
	// there would have been no room above Mark. Lately: one did within the last
	// minute.
	Turned uint64 `json:"turned"`
	Lately bool   `json:"lately"`
	// room is for how many streams that begin now there is room above Mark.
	room int
}

// judge says how memory is; short: it was the last time.
func judge(places []Memory, short bool) (out MemoryStats) {
	least := int64(math.MaxInt64)
	out.room = math.MaxInt
	for _, m := range places {
		mark := min(m.Total/memoryShare, maxReserve)
		over := int64(m.Free) - int64(mark)
		if over < least {
			least = over
			out = MemoryStats{Place: m.Place, Free: m.Free, Total: m.Total, Mark: mark, room: int(max(over, 0) / streamTakes), Short: out.Short}
		}
		out.Short = out.Short || over < 0 || short && over < int64(mark)
	}
	return out
}

// heapLimit is what this process's collector should keep its memory below, so that
// garbage is no reason to be short: what the process has and what is free above twice
// the mark. Half of the place is its own in any case: what others take there is not to be
// made up for by collecting without end.
func (m MemoryStats) heapLimit(own uint64) uint64 {
	return max(m.Total/2, own+m.Free-min(own+m.Free, 2*m.Mark))
}

// watchMemory looks at memory until ctx is done.
func (p *Proxy) watchMemory(ctx context.Context) {
	short := false
	for ctx.Err() == nil {
		m := judge(p.cfg.Net.Memory(), short)
		short = m.Short
		if p.gate.remember(m) {
			p.log.Warn("memory", "short", m.Short, "place", m.Place, "free", m.Free, "mark", m.Mark)
		}
		p.cfg.Net.Collect(m)
		sleep(ctx, memoryEvery)
	}
}

// Collect implements Net.
func (Linux) Collect(m MemoryStats) {
	if m.Total == 0 {
		return
	}
	own := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(own)
	limit := int64(m.heapLimit(own[0].Value.Uint64() - own[1].Value.Uint64()))
	if now := debug.SetMemoryLimit(-1); limit < now-now/memoryShare || limit > now+now/memoryShare { // each change stops the world
		debug.SetMemoryLimit(limit)
	}
}

// Memory implements Net: the host's, and that of each control group with a limit
// that this process is in, of either version.
func (Linux) Memory() []Memory { return memoryAt("/") }

// memoryAt reads it below a root directory. What cannot be read bounds nothing.
func memoryAt(root string) (out []Memory) {
	info := fields(root + "proc/meminfo")
	if total := info["MemTotal:"]; total > 0 {
		out = append(out, Memory{"host", info["MemAvailable:"] << 10, total << 10})
	}
	list, _ := os.ReadFile(root + "proc/self/cgroup")
	for line := range strings.Lines(string(list)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) < 3:
		case f[0] == "0" && f[1] == "":
			out = append(out, groups(root+"sys/fs/cgroup", f[2], "memory.max", "memory.current", "")...)
		case f[1] == "memory":
			out = append(out, groups(root+"sys/fs/cgroup/memory", f[2], "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")...)
		}
	}
	return out
}

// groups reads a control group and those it is in. In a container the path may be
// another than what is mounted there: then only the last one is.
func groups(mount, group, limit, use, prefix string) (out []Memory) {
	for group = path.Clean("/" + group); ; group = path.Dir(group) {
		dir := mount + group + "/"
		most, known := number(dir + limit)
		used, _ := number(dir + use)
		if known && most < 1<<50 { // else it is not limited
			stat := fields(dir + "memory.stat")
			held := used - min(used, stat[prefix+"inactive_file"]+stat[prefix+"active_file"])
			out = append(out, Memory{"cgroup " + group, most - min(most, held), most})
		}
		if group == "/" {
			return out
		}
	}
}

// number reads a file with a number; false: there is none.
func number(file string) (uint64, bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	return n, err == nil
}

// fields reads a file of lines with a name and a number.
func fields(file string) map[string]uint64 {
	text, _ := os.ReadFile(file)
	out := make(map[string]uint64)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 {
			out[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	return out
}

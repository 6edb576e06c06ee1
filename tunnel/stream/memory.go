package stream

import (
	"bytes"
	"context"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

const (
	// memoryEvery is how often memory is looked at: at 500 new connections a second
	// far less than the mark is taken meanwhile.
	memoryEvery = 500 * time.Millisecond
	// memoryShare of a place's memory, but at most maxReserve, is left to the
	// streams that are open: below that no other is begun, until there is twice as
	// much again.
	memoryShare = 16
	maxReserve  = 512 << 20
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
}

// judge says how memory is; short: it was the last time.
func judge(places []Memory, short bool) (out MemoryStats) {
	least := int64(math.MaxInt64)
	for _, m := range places {
		mark := min(m.Total/memoryShare, maxReserve)
		if short {
			mark *= 2
		}
		if over := int64(m.Free) - int64(mark); over < least {
			least = over
			out = MemoryStats{Short: over < 0, Place: m.Place, Free: m.Free, Total: m.Total, Mark: min(m.Total/memoryShare, maxReserve)}
		}
	}
	return out
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
		sleep(ctx, memoryEvery)
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

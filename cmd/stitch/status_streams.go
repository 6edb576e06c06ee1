package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"stitch/tunnel/control"
)

// streamsView is what is printed of a stream.Stats.
type streamsView struct {
	Peers []struct {
		Peer    string       `json:"peer"`
		Domains []domainView `json:"domains"`
	} `json:"peers"`
}

// domainView is what is printed of a stream.DomainStats.
type domainView struct {
	Domain  string `json:"domain"`
	Alive   bool   `json:"alive"`
	InStep  bool   `json:"in_step"`
	Error   string `json:"last_error"`
	Open    int    `json:"open"`
	Total   int    `json:"total"`
	Passed  int    `json:"passed"`
	Reset   int    `json:"reset"`
	Out     int64  `json:"bytes_out"`
	In      int64  `json:"bytes_in"`
	WireOut int64  `json:"wire_out"`
	WireIn  int64  `json:"wire_in"`
	Matched int64  `json:"matched"`
	Zero    int64  `json:"zero"`
	Mix     struct {
		Raw     shareView `json:"raw"`
		S2      shareView `json:"s2"`
		Zstd    shareView `json:"zstd"`
		Carried shareView `json:"zstd_carried"`
	} `json:"mix"`
	History struct {
		Size   int64 `json:"size"`
		Memory int64 `json:"memory"`
		Index  int64 `json:"index"`
		Store  struct {
			State       string  `json:"state"`
			Disk        int64   `json:"disk"`
			Loading     int64   `json:"loading"`
			Loaded      int64   `json:"loaded"`
			Found       int64   `json:"found"`
			LoadSeconds float64 `json:"load_seconds"`
			LoadLeft    float64 `json:"load_left"`
		} `json:"store"`
	} `json:"history"`
}

// shareView is what a codec was given.
type shareView struct {
	In int64 `json:"in"`
}

// printStreams adds the tables about streams and histories.
func printStreams(row func(...any), st *control.Status) {
	var v streamsView
	if json.Unmarshal(st.Streams, &v) != nil {
		return // the stream process does not run, or is silent
	}
	row("\nSTREAMS", "DOMAIN", "STATE", "OPEN", "TOTAL", "PASSED", "RESET", "CARRIED", "ON THE LINK", "RATIO")
	for _, p := range v.Peers {
		for _, d := range p.Domains {
			row(p.Peer, d.name(), d.state(), d.Open, d.Total, d.Passed, d.Reset, size(d.Out+d.In), size(d.WireOut+d.WireIn), ratio(d.Out+d.In, d.WireOut+d.WireIn))
		}
	}
	row("\nHISTORY", "DOMAIN", "KEEPS", "IN MEMORY", "ON DISK", "STORE", "REPEATS", "ZEROS", "CODECS")
	var memory int64
	for _, p := range v.Peers {
		for _, d := range p.Domains {
			h := &d.History
			in := 2*h.Memory + h.Index
			memory += in
			row(p.Peer, d.name(), "2 x "+size(h.Size), "at most "+size(in), size(h.Store.Disk), d.store(), percent(d.Matched, d.Out), percent(d.Zero, d.Out), d.codecs())
		}
	}
	row("all", "", "", "at most "+size(memory))
}

// name names the domain of streams that share nothing.
func (d *domainView) name() string {
	if d.Domain == "" {
		return "(none)"
	}
	return d.Domain
}

// state says whether streams are to be had.
func (d *domainView) state() string {
	switch {
	case d.Alive && d.InStep:
		return "ready"
	case d.InStep:
		return "listening"
	case d.Error != "":
		return d.Error
	}
	return "waiting for the peer"
}

// store says how the history on disk is.
func (d *domainView) store() string {
	s := &d.History.Store
	if s.State == "loading" && s.Loading+s.Loaded > 0 {
		all := s.Loading + s.Loaded
		text := fmt.Sprintf("loading, %s of %s in %s", size(s.Loaded), size(all), seconds(s.LoadSeconds))
		if s.LoadLeft > 0 {
			text += fmt.Sprintf(", %s left", seconds(max(s.LoadLeft, 1)))
		}
		return text + fmt.Sprintf(", %s searchable", percent(min(s.Found, all), all))
	}
	return s.State
}

// codecs says by which codecs the literals were carried.
func (d *domainView) codecs() string {
	m := &d.Mix
	zstd := m.Zstd.In + m.Carried.In
	all := m.Raw.In + m.S2.In + zstd
	if all == 0 {
		return "-"
	}
	var out []string
	for _, c := range []struct {
		name string
		in   int64
	}{{"zstd", zstd}, {"s2", m.S2.In}, {"raw", m.Raw.In}} {
		if c.in > 0 {
			out = append(out, c.name+" "+percent(c.in, all))
		}
	}
	return strings.Join(out, ", ")
}

// size writes a number of bytes with three digits.
func size(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for ; v >= 999.5 && i < len(units)-1; i++ {
		v /= 1000
	}
	digits := 0
	if v < 99.95 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %cB", digits, v, units[i])
}

// percent writes a share.
func percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}

// ratio writes how much smaller something has become.
func ratio(before, after int64) string {
	if before == 0 || after == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fx", float64(before)/float64(after))
}

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"stitch/tunnel/control"
)

// segmentView is what is printed of an ether.Stats.
type segmentView struct {
	Segment   int               `json:"segment"`
	ToPeers   uint64            `json:"to_peers"`
	ToLAN     uint64            `json:"to_lan"`
	FromLAN   map[string]uint64 `json:"dropped_from_lan"`
	FromLink  map[string]uint64 `json:"dropped_from_link"`
	MACs      map[string]int    `json:"macs"`
	Addresses int               `json:"addresses"`
	Frozen    int               `json:"frozen"`
	Loop      *struct{}         `json:"loop"`
}

// printSegments adds the table of segments, and what they dropped.
func printSegments(row func(...any), st *control.Status) {
	row("\nSEGMENT", "STATE", "HOSTS", "ADDRESSES", "TO PEERS", "TO LAN", "DROPPED FROM LAN", "DROPPED FROM PEERS")
	for _, doc := range st.Segments {
		var v segmentView
		if json.Unmarshal(doc, &v) != nil {
			continue
		}
		row(v.Segment, v.state(), v.hosts(), v.Addresses, v.ToPeers, v.ToLAN, mostOf(v.FromLAN), mostOf(v.FromLink))
	}
}

// state says whether the segment carries.
func (v *segmentView) state() string {
	switch {
	case v.Loop != nil:
		return "blocked: loop"
	case v.Frozen > 0:
		return fmt.Sprintf("%d frozen", v.Frozen)
	}
	return "carries"
}

// hosts counts the hosts of each site.
func (v *segmentView) hosts() string {
	text := fmt.Sprintf("%d here", v.MACs[""])
	for _, site := range slices.Sorted(maps.Keys(v.MACs)) {
		if site != "" {
			text += fmt.Sprintf(", %d %s", v.MACs[site], site)
		}
	}
	return text
}

// mostOf names the three most frequent reasons.
func mostOf(dropped map[string]uint64) string {
	reasons := slices.SortedFunc(maps.Keys(dropped), func(a, b string) int {
		return cmp.Or(cmp.Compare(dropped[b], dropped[a]), cmp.Compare(a, b))
	})
	var list []string
	for i, r := range reasons {
		if i == 3 {
			list = append(list, "...")
			break
		}
		list = append(list, fmt.Sprintf("%s %d", r, dropped[r]))
	}
	return cmp.Or(strings.Join(list, ", "), "-")
}

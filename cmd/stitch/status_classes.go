package main

import (
	"cmp"
	"encoding/json"
	"fmt"

	"stitch/tunnel/control"
)

// classesView is what is printed of a wg.Stats about classes.
type classesView struct {
	Rate    int64 `json:"rate"`
	Classes []struct {
		Name    string `json:"name"`
		Percent int    `json:"percent"`
		Limit   int64  `json:"limit"`
		Rate    int64  `json:"rate"`
		Bytes   uint64 `json:"bytes"`
		Dropped uint64 `json:"dropped"`
		Waiting int64  `json:"waiting"`
	} `json:"classes"`
}

// printClasses adds the table about the classes that divide the links' rates.
func printClasses(row func(...any), st *control.Status) {
	head := true
	for _, l := range st.Links {
		var v classesView
		if json.Unmarshal(l.Detail, &v) != nil || len(v.Classes) == 0 {
			continue
		}
		if head {
			row("\nCLASS", "LINK", "PERCENT", "LIMIT", "SENDS", "SENT", "WAITING", "DROPPED")
			head = false
		}
		for _, c := range v.Classes {
			row(cmp.Or(c.Name, "(none)"), l.Peer, c.Percent, bitRate(c.Limit), bitRate(c.Rate), size(int64(c.Bytes)), size(c.Waiting), c.Dropped)
		}
		row("all", l.Peer, 100, bitRate(v.Rate))
	}
}

// bitRate writes bits a second; "-" for none.
func bitRate(n int64) string {
	switch {
	case n == 0:
		return "-"
	case n < 1e6:
		return fmt.Sprintf("%.1f kbit/s", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f Mbit/s", float64(n)/1e6)
}

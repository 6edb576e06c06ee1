package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"stitch/tunnel/control"
)

func flowsCommand() *cli.Command {
	return &cli.Command{
		Name:      "flows",
		Usage:     "list the connections that cross the links, and why some are not optimised",
		ArgsUsage: "[CONFIG]",
		Description: "A connection is carried as a stream (full: matched and compressed, compress,\n" +
			"accelerate: as it is), or as packets. What is not optimised has a number that says\n" +
			"why; below the table stands what the numbers mean and what can be done. Of what\n" +
			"hosts of a stretched segment send each other only what a rule with the segment is\n" +
			"about is listed, as packets for ten minutes from its begin. CLASS is the [[class]] of\n" +
			"what is sent from here; `stitch status` shows what each class sends. Bytes of\n" +
			"packets are shown if the kernel counts them (sysctl\n" +
			"net.netfilter.nf_conntrack_acct=1).\n\n" +
			"Examples:\n" +
			"  sudo stitch flows\n" +
			"  sudo stitch flows --json --site dc1",
		Flags: append(whichAgent(), &cli.BoolFlag{Name: "json", Usage: "print the list as JSON"}),
		Action: func(c *cli.Context) error {
			dir, err := statusDir(c)
			if err != nil {
				return err
			}
			answer, err := control.NewClient(filepath.Join(dir, control.StreamSocket)).Flows(c.Context)
			if errors.Is(err, control.ErrNotRunning) {
				return hint{err, "start it with `stitch up CONFIG`; `stitch status` shows whether its stream process runs"}
			}
			if err != nil {
				return err
			}
			var list flowList
			if err := json.Unmarshal(answer, &list); err != nil {
				return fmt.Errorf("not a list of connections: %w", err)
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, answer)
			}
			return printFlows(c.App.Writer, &list)
		},
	}
}

// flowList is what is printed of a stream.FlowList.
type flowList struct {
	Flows      []flowView `json:"flows"`
	Omitted    int        `json:"omitted"`
	Incomplete string     `json:"incomplete"`
	Reasons    []struct {
		Reason int    `json:"reason"`
		Why    string `json:"why"`
		Advice string `json:"advice"`
	} `json:"reasons"`
}

// flowView is what is printed of a stream.Flow.
type flowView struct {
	Peer      string  `json:"peer"`
	Segment   int     `json:"segment"`
	Proto     int     `json:"proto"`
	Src       string  `json:"src"`
	Dst       string  `json:"dst"`
	Side      string  `json:"side"`
	Carried   string  `json:"carried"`
	Reason    int     `json:"reason"`
	Out       int64   `json:"bytes_out"`
	In        int64   `json:"bytes_in"`
	WireOut   int64   `json:"wire_out"`
	WireIn    int64   `json:"wire_in"`
	Domain    string  `json:"domain"`
	Class     string  `json:"class"`
	Handshake string  `json:"handshake"`
	State     string  `json:"state"`
	Age       float64 `json:"age_s"`
}

// printFlows writes a list for people.
func printFlows(w io.Writer, list *flowList) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		for i, c := range cells {
			cells[i] = printable(c)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	used := make(map[int]int)
	row("PEER", "PROTO", "FROM", "TO", "BEGUN", "CARRIED AS", "BYTES", "ON THE LINK", "REASON", "DOMAIN", "CLASS", "HANDSHAKE", "STATE", "AGE")
	streams := 0
	for _, f := range list.Flows {
		bytes, wire, reason, age := "-", "-", "-", "-"
		if f.Out+f.In > 0 {
			bytes = size(f.Out + f.In)
		}
		if f.Carried != "packets" {
			wire = size(f.WireOut + f.WireIn)
			streams++
			age = seconds(f.Age)
		}
		if f.Reason != 0 {
			reason = fmt.Sprint(f.Reason)
		}
		used[f.Reason]++
		if f.Segment != 0 {
			f.Peer += fmt.Sprintf(" segment %d", f.Segment)
		}
		row(f.Peer, protocol(f.Proto), f.Src, f.Dst, map[string]string{"near": "here", "far": "there"}[f.Side], f.Carried, bytes, wire, reason, cmp.Or(f.Domain, "-"), cmp.Or(f.Class, "-"), cmp.Or(f.Handshake, "-"), cmp.Or(f.State, "-"), age)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%d connections as streams, %d as packets", streams, len(list.Flows)-streams)
	if list.Omitted > 0 {
		fmt.Fprintf(w, ", %d not shown", list.Omitted)
	}
	fmt.Fprintln(w)
	if list.Incomplete != "" {
		fmt.Fprintln(w, "connections carried as packets may be missing:", printable(list.Incomplete))
	}
	for _, r := range list.Reasons {
		if used[r.Reason] > 0 {
			fmt.Fprintf(w, "reason %d (%d): %s. To do: %s\n", r.Reason, used[r.Reason], printable(r.Why), printable(r.Advice))
		}
	}
	return nil
}

// protocol names an IP protocol.
func protocol(n int) string {
	if name, ok := map[int]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}[n]; ok {
		return name
	}
	return fmt.Sprint(n)
}

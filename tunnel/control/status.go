// Package control is how one looks into a running agent: HTTP and JSON on unix
// sockets in the run directory.
//
//	control.sock  the supervisor; what users and tools talk to
//	link.sock     the link process, asked by the supervisor
//	stream.sock   the stream process, asked by the supervisor and by stitch seed
//
// Each answers GET /v1/status with a Status; a child fills in only what it
// knows and the supervisor merges the parts. Keys are only ever added. The
// stream process also answers POST /v1/seed, a SeedRequest, with a line of JSON
// for every step, and POST /v1/bench, whose connection becomes a stream to a service
// in the peer's agent. The link process answers POST /v1/train, a Train, with a
// TrainResult.
//
// A socket has mode 0660. Root, the agent's own user and members of the
// socket's group (as primary group) are served, everybody else gets 403 and a
// line in the log. Requests must name the host stitch, agent or localhost and
// carry no Origin, so that no web page can make a browser speak for its user.
package control

import "encoding/json"

// File names of the sockets inside the run directory.
const (
	Socket       = "control.sock"
	LinkSocket   = "link.sock"
	StreamSocket = "stream.sock"
)

// Status is everything an agent says about itself. Sub-documents that another
// package defines (wg.Stats, ether.Stats, divert.Stats, redirect.Stats, stream.Stats) stay
// JSON here.
type Status struct {
	// Site is the name of this site, Version that of the program.
	Site    string `json:"site"`
	Version string `json:"version"`
	// Uptime is the age of the supervisor in seconds.
	Uptime float64 `json:"uptime_s"`
	// Processes are the children, present in every answer of the supervisor.
	Processes []Process `json:"processes"`
	// Links has one entry per peer in the order of the configuration.
	Links []LinkStatus `json:"links"`
	// Segments holds one ether.Stats per segment.
	Segments []json.RawMessage `json:"segments"`
	// Divert is a divert.Stats; absent when no segment's connections are split.
	Divert json.RawMessage `json:"divert,omitempty"`
	// Workloads says where every workload is.
	Workloads []Workload `json:"workloads"`
	// Services says where every service's name points.
	Services []Service `json:"services"`
	// Redirect is a redirect.Stats; absent when the link process is silent.
	Redirect json.RawMessage `json:"redirect,omitempty"`
	// Streams is a stream.Stats; absent when the stream process is silent.
	Streams json.RawMessage `json:"streams,omitempty"`
	// Alarms are sentences about what needs a person; empty when all is well.
	Alarms []string `json:"alarms"`
}

// Process is one child of the supervisor.
type Process struct {
	// Name is "link" or "stream".
	Name string `json:"name"`
	// Pid is 0 when it does not run.
	Pid int `json:"pid"`
	// State is starting, running, waiting (for its next start), stopped or failed
	// (given up).
	State string `json:"state"`
	// Restarts counts the starts after the first.
	Restarts int `json:"restarts"`
	// LastExit says how the process last ended, with its last line of
	// complaint; empty when it never did.
	LastExit string `json:"last_exit,omitempty"`
}

// LinkStatus is one link.
type LinkStatus struct {
	// Peer is the name of the other site.
	Peer string `json:"peer"`
	// State is connecting, up or down.
	State string `json:"state"`
	// Device is the link's TUN, Endpoint the peer's present UDP address.
	Device   string `json:"device"`
	Endpoint string `json:"endpoint,omitempty"`
	// RTTms is the smoothed round-trip time in milliseconds, 0 when unknown.
	RTTms float64 `json:"rtt_ms"`
	// Loss is the share of probes lost lately, 0 to 1.
	Loss float64 `json:"loss"`
	// Obstacle is what hinders a session of a link that is not up, as far as it
	// is known: a wg.Obstacle.
	Obstacle string `json:"obstacle,omitempty"`
	// Quality says what is wrong with a link that is degraded or one-way, and
	// why; empty: nothing.
	Quality string `json:"quality,omitempty"`
	// LastHandshake is the age of the session in seconds, -1 without one.
	LastHandshake float64 `json:"last_handshake_s"`
	// UnknownSegment counts frames that came for a segment this site does not
	// have.
	UnknownSegment uint64 `json:"unknown_segment,omitempty"`
	// Detail is a wg.Stats.
	Detail json.RawMessage `json:"detail,omitempty"`
}

// Workload is where one machine is.
type Workload struct {
	Name string `json:"name"`
	// Site is its owner, Seq the number of the claim.
	Site string `json:"site"`
	Seq  uint64 `json:"seq"`
	// Here says that Site is this site.
	Here bool `json:"here"`
}

// Service is where one service's name points.
type Service struct {
	Name     string `json:"name"`
	Workload string `json:"workload"`
	// Address is the virtual address answered now, "ip:port".
	Address string `json:"address"`
}

// Merge adds what a child reported to s. What identifies the agent (site,
// version, uptime, processes) stays that of s.
func (s *Status) Merge(child *Status) {
	s.Links = append(s.Links, child.Links...)
	s.Segments = append(s.Segments, child.Segments...)
	s.Workloads = append(s.Workloads, child.Workloads...)
	s.Services = append(s.Services, child.Services...)
	s.Alarms = append(s.Alarms, child.Alarms...)
	if child.Redirect != nil {
		s.Redirect = child.Redirect
	}
	if child.Divert != nil {
		s.Divert = child.Divert
	}
	if child.Streams != nil {
		s.Streams = child.Streams
	}
}

// full returns s with empty lists instead of missing ones, so that a reader of
// the JSON never meets null.
func (s Status) full() Status {
	s.Processes = notNil(s.Processes)
	s.Links = notNil(s.Links)
	s.Segments = notNil(s.Segments)
	s.Workloads = notNil(s.Workloads)
	s.Services = notNil(s.Services)
	s.Alarms = notNil(s.Alarms)
	return s
}

// notNil turns a nil slice into an empty one.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Raw returns the JSON of one of the sub-documents, or null if it has none.
func Raw(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage("null")
	}
	return data
}

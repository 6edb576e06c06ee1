package wan

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// MAC is an Ethernet address; in JSON it is text.
type MAC [6]byte

// MustMAC parses a constant like "02:53:54:00:00:01"; it panics on anything else.
func MustMAC(s string) MAC {
	var m MAC
	if err := m.UnmarshalText([]byte(s)); err != nil {
		panic(err)
	}
	return m
}

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(net.HardwareAddr(m[:]).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(string(text))
	if err != nil || len(hw) != len(m) {
		return fmt.Errorf("%q is not a MAC address like 02:53:54:00:00:01", text)
	}
	copy(m[:], hw)
	return nil
}

// Port is one interface of an Emulator and the single host behind it.
type Port struct {
	// Name names the port in paths and in the control API.
	Name string `json:"name"`
	// Interface is the device, in the network namespace Open is called in.
	Interface string `json:"interface"`
	// MAC is our address towards the host. It need not be the interface's own.
	MAC MAC `json:"mac"`
	// Host is the host's address: everything for this port is sent to it.
	Host MAC `json:"host"`
	// Prefixes are the destinations behind this port, IPv4 or IPv6.
	Prefixes []netip.Prefix `json:"prefixes"`
}

// action is what to do with a received frame.
type action uint8

const (
	stray   action = iota // not for us, or leads nowhere: drop
	forward               // rewritten for another port
	answer                // turned into an answer for the port it came from
)

// Sizes and numbers of the frames the router reads.
const (
	ethHeader  = 14
	arpFrame   = ethHeader + 28
	ip6Header  = 40
	naFrame    = ethHeader + ip6Header + 32
	etherIP4   = 0x0800
	etherARP   = 0x0806
	etherIP6   = 0x86dd
	icmp6      = 58
	ndSolicit  = 135
	ndAdvert   = 136
	naFlags    = 0x60000000 // solicited, override
	arpRequest = 1
	arpReply   = 2
)

// router is the static forwarding table. It is immutable, keeps no state and
// never changes a TTL: it is a wire with addresses.
type router struct{ ports []Port }

// newRouter checks the table.
func newRouter(ports []Port) (router, error) {
	seen := map[string]bool{}
	for _, p := range ports {
		if p.Name == "" || p.Interface == "" || seen[p.Name] {
			return router{}, fmt.Errorf("port %q: give every port a name of its own and an interface", p.Name)
		}
		seen[p.Name] = true
		if p.MAC == (MAC{}) || p.Host == (MAC{}) {
			return router{}, fmt.Errorf("port %q: mac and host are needed", p.Name)
		}
		for _, prefix := range p.Prefixes {
			if !prefix.IsValid() {
				return router{}, fmt.Errorf("port %q: bad prefix", p.Name)
			}
		}
	}
	return router{ports}, nil
}

// route decides about one frame received at port in, and rewrites it in place
// for its way out. It returns the frame to send (it may have grown into
// frame's capacity), the port it leaves by, and its IP bytes.
func (r router) route(in int, frame []byte) (act action, out int, sent []byte, size int) {
	if len(frame) < ethHeader {
		return stray, 0, nil, 0
	}
	p := &r.ports[in]
	toUs := MAC(frame[:6]) == p.MAC
	var dst netip.Addr
	switch body := frame[ethHeader:]; binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		sent, ok := answerARP(p, frame)
		return pick(ok), in, sent, 0
	case etherIP4:
		if len(body) < 20 || body[0]>>4 != 4 {
			return stray, 0, nil, 0
		}
		size = int(binary.BigEndian.Uint16(body[2:]))
		dst = netip.AddrFrom4([4]byte(body[16:20]))
	case etherIP6:
		if len(body) < ip6Header || body[0]>>4 != 6 {
			return stray, 0, nil, 0
		}
		if sent, ok := answerND(p, frame); ok {
			return answer, in, sent, 0
		}
		size = ip6Header + int(binary.BigEndian.Uint16(body[4:]))
		dst = netip.AddrFrom16([16]byte(body[24:40]))
	}
	out = r.lookup(dst)
	if !toUs || out < 0 || out == in || size < 20 || size > len(frame)-ethHeader {
		return stray, 0, nil, 0
	}
	copy(frame[:6], r.ports[out].Host[:])
	copy(frame[6:12], r.ports[out].MAC[:])
	return forward, out, frame[:ethHeader+size], size
}

// pick turns "there is an answer" into an action.
func pick(ok bool) action {
	if ok {
		return answer
	}
	return stray
}

// lookup returns the port with the longest prefix that holds dst, or -1.
func (r router) lookup(dst netip.Addr) int {
	best, bits := -1, -1
	for i := range r.ports {
		for _, p := range r.ports[i].Prefixes {
			if p.Bits() > bits && p.Contains(dst) {
				best, bits = i, p.Bits()
			}
		}
	}
	return best
}

// answerARP turns an ARP request for any address but the asker's own into the
// answer that we have it.
func answerARP(p *Port, frame []byte) ([]byte, bool) {
	if len(frame) < arpFrame || binary.BigEndian.Uint64(frame[ethHeader:]) != 0x0001080006040000|arpRequest {
		return nil, false
	}
	a := frame[ethHeader:arpFrame]
	asker, target := [4]byte(a[14:18]), [4]byte(a[24:28])
	if asker == target || asker == [4]byte{} {
		return nil, false
	}
	copy(frame[:6], frame[6:12])
	copy(frame[6:12], p.MAC[:])
	a[7] = arpReply
	copy(a[18:24], a[8:14])
	copy(a[24:28], asker[:])
	copy(a[8:14], p.MAC[:])
	copy(a[14:18], target[:])
	return frame[:arpFrame], true
}

// answerND turns a neighbour solicitation for any address but the asker's own
// into our advertisement. Duplicate address detection gets no answer.
func answerND(p *Port, frame []byte) ([]byte, bool) {
	ip := frame[ethHeader:]
	if len(ip) < ip6Header+24 || ip[6] != icmp6 || ip[ip6Header] != ndSolicit || cap(frame) < naFrame {
		return nil, false
	}
	asker, target := [16]byte(ip[8:24]), [16]byte(ip[ip6Header+8:ip6Header+24])
	if asker == [16]byte{} || asker == target {
		return nil, false
	}
	frame = frame[:naFrame]
	ip = frame[ethHeader:]
	copy(frame[:6], frame[6:12])
	copy(frame[6:12], p.MAC[:])
	binary.BigEndian.PutUint16(ip[4:], naFrame-ethHeader-ip6Header)
	ip[7] = 255
	copy(ip[8:], target[:])
	copy(ip[24:], asker[:])
	na := ip[ip6Header:]
	na[0], na[1], na[2], na[3] = ndAdvert, 0, 0, 0
	binary.BigEndian.PutUint32(na[4:], naFlags)
	copy(na[8:], target[:])
	na[24], na[25] = 2, 1 // option: target link-layer address, 8 bytes
	copy(na[26:], p.MAC[:])
	binary.BigEndian.PutUint16(na[2:], icmp6Sum(ip))
	return frame, true
}

// icmp6Sum is the ICMPv6 checksum of an IPv6 packet of even length whose
// checksum field is zero.
func icmp6Sum(ip []byte) uint16 {
	sum := uint32(len(ip)-ip6Header) + icmp6
	for b := ip[8:]; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

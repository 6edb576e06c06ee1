package stream

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// nlaTypeMask takes the flags off an attribute's type.
	nlaTypeMask = 0x3fff
	// ctLastACK is the first of conntrack's TCP states in which a connection has
	// ended (TCP_CONNTRACK_LAST_ACK).
	ctLastACK = 6
)

// Tracked implements Net. Entries are given away while they are read: the
// kernel's table may be larger than what this process should ever hold.
func (Linux) Tracked(f func(Tracked) bool) error {
	more := true
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(int(netlink.ConntrackTable)<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
			if t, ok := parseConntrack(msg); ok {
				more = f(t)
			}
			return more
		})
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // it changes all the time
			return err
		}
		if !more {
			break
		}
	}
	return nil
}

// Via implements Net.
func (Linux) Via(a netip.Addr) string {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return ""
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}

// parseConntrack reads one message of the kernel: a header of four bytes and
// attributes; false: it is broken, or the connection has ended.
func parseConntrack(msg []byte) (e Tracked, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return e, false
	}
	ended := false
	for t, v := range attributes(msg[nl.SizeofNfgenmsg:]) {
		switch t {
		case nl.CTA_TUPLE_ORIG:
			e.Src, e.Dst, e.Proto = parseTuple(v)
		case nl.CTA_TUPLE_REPLY:
			e.At, _, _ = parseTuple(v)
		case nl.CTA_MARK:
			if len(v) == 4 {
				e.Mark = binary.BigEndian.Uint32(v)
			}
		case nl.CTA_PROTOINFO:
			state := attributes(attributes(v)[nl.CTA_PROTOINFO_TCP])[nl.CTA_PROTOINFO_TCP_STATE]
			ended = len(state) == 1 && state[0] >= ctLastACK
		case nl.CTA_COUNTERS_ORIG:
			e.BytesOut = parseBytes(v)
		case nl.CTA_COUNTERS_REPLY:
			e.BytesIn = parseBytes(v)
		}
	}
	return e, !ended && e.Src.IsValid() && e.Dst.IsValid() && e.At.IsValid()
}

// parseTuple reads one direction's addresses.
func parseTuple(b []byte) (src, dst netip.AddrPort, proto uint8) {
	attrs := attributes(b)
	ip, p := attributes(attrs[nl.CTA_TUPLE_IP]), attributes(attrs[nl.CTA_TUPLE_PROTO])
	if v := p[nl.CTA_PROTO_NUM]; len(v) > 0 {
		proto = v[0]
	}
	end := func(v4, v6, port uint16) netip.AddrPort {
		a, ok := netip.AddrFromSlice(ip[v4])
		if !ok {
			a, _ = netip.AddrFromSlice(ip[v6])
		}
		n := uint16(0)
		if v := p[port]; len(v) == 2 {
			n = binary.BigEndian.Uint16(v)
		}
		return netip.AddrPortFrom(a, n)
	}
	return end(nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC, nl.CTA_PROTO_SRC_PORT), end(nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST, nl.CTA_PROTO_DST_PORT), proto
}

// parseBytes reads a direction's counter of bytes.
func parseBytes(b []byte) uint64 {
	if v := attributes(b)[nl.CTA_COUNTERS_BYTES]; len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// attributes reads netlink attributes up to the first that is broken.
func attributes(b []byte) map[uint16][]byte {
	out := map[uint16][]byte{}
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			break
		}
		out[binary.NativeEndian.Uint16(b[2:])&nlaTypeMask] = b[unix.SizeofNlAttr:n]
		b = b[min((n+3)&^3, len(b)):]
	}
	return out
}

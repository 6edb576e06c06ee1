package super

import "encoding/binary"

// ClampMSS lowers the maximum segment size that a TCP SYN announces to what
// fits into packets of max bytes, those of the link included, and reports
// whether it had to. It writes to p, where it keeps the checksum right unless
// that is partial. A SYN without the option means 536 bytes (IPv6: 1220) and
// stays as it is, and so do headers that do not parse.
func ClampMSS(p []byte, link Link, max int, partial bool) bool {
	ip, v6, ok := network(p, link)
	if !ok || len(p) < ip+ip4Len+tcpLen {
		return false
	}
	l4, proto := ip+int(p[ip]&15)*4, p[ip+9]
	if v6 {
		l4, proto = ip+ip6Len, p[ip+6]
	}
	if proto != protoTCP || len(p) < l4+tcpLen || p[l4+tcpFlagsAt]&synFlag == 0 {
		return false // nearly every packet ends here
	}
	l, ok := locate(p, link)
	limit := max - l.l4 - tcpLen // options of IP are rare, and counted
	if !ok || limit <= 0 {
		return false
	}
	at := mssOption(p[l.l4+tcpLen : l.body])
	if at < 0 {
		return false
	}
	at += l.l4 + tcpLen
	old := binary.BigEndian.Uint16(p[at:])
	if int(old) <= limit {
		return false
	}
	binary.BigEndian.PutUint16(p[at:], uint16(limit))
	if !partial {
		adjust(p[l.l4+tcpSumOffset:], old, uint16(limit), (at-l.l4)%2 != 0)
	}
	return true
}

// mssOption returns the offset of the value of the option in TCP options, -1
// if it is not there.
func mssOption(options []byte) int {
	for i := 0; i < len(options); {
		switch kind := options[i]; {
		case kind == 0: // end of options
			return -1
		case kind == 1: // no operation
			i++
			continue
		case i+1 >= len(options) || options[i+1] < 2 || i+int(options[i+1]) > len(options):
			return -1
		case kind == 2 && options[i+1] == 4:
			return i + 2
		}
		i += int(options[i+1])
	}
	return -1
}

// adjust corrects a checksum for a 16-bit word that changed (RFC 1624). A word
// at an odd offset counts with its bytes swapped.
func adjust(field []byte, old, new uint16, odd bool) {
	if odd {
		old, new = old>>8|old<<8, new>>8|new<<8
	}
	sum := uint64(^binary.BigEndian.Uint16(field)) + uint64(^old) + uint64(new)
	binary.BigEndian.PutUint16(field, ^fold(sum))
}

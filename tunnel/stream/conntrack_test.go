package stream

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// attr is one netlink attribute.
func attr(t uint16, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	out := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(body)))
	out = append(binary.NativeEndian.AppendUint16(out, t), body...)
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	return out
}

func TestParseConntrack(t *testing.T) {
	const nested = 1 << 15
	way := func(t uint16, a, b byte, from, to uint16) []byte {
		return attr(t|nested,
			attr(1|nested, attr(1, []byte{10, 0, 0, a}), attr(2, []byte{10, 0, 0, b})),
			attr(2|nested, attr(1, []byte{6}), attr(2, binary.BigEndian.AppendUint16(nil, from)), attr(3, binary.BigEndian.AppendUint16(nil, to))))
	}
	msg := append([]byte{2, 0, 0, 0}, way(1, 1, 2, 40000, 80)...)
	msg = append(msg, way(2, 3, 1, 8080, 40000)...)
	msg = append(msg, attr(8, []byte{0, 4, 2, 0})...)
	msg = append(msg, attr(9|nested, attr(2, []byte{0, 0, 0, 0, 0, 0, 1, 0}))...)
	got, ok := parseConntrack(msg)
	want := Tracked{
		Proto: 6, Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("10.0.0.2:80"), At: netip.MustParseAddrPort("10.0.0.3:8080"),
		BytesOut: 256, Mark: 0x40200,
	}
	if !ok || got != want {
		t.Errorf("got %+v, %v", got, ok)
	}
	if _, ok := parseConntrack(append(msg[:len(msg):len(msg)], attr(4|nested, attr(1|nested, attr(1, []byte{ctLastACK})))...)); ok {
		t.Error("one that has ended is listed")
	}
	for n := range msg { // cut anywhere: no panic
		parseConntrack(msg[:n])
	}
}

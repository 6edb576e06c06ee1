package divert

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// TestReset holds the frame against a second opinion: ends and MACs swapped, the sequence
// number that the sender expects, right checksums.
func TestReset(t *testing.T) {
	for name, ends := range map[string][2]byte{"IPv4": {4, ip4Header}, "IPv6": {6, ip6Header}} {
		frame := tcpFrame(client, server, flagACK)
		if ends[0] == 6 {
			frame = tcpFrame(client6, server6, flagACK)
		}
		tcp := frame[etherHeader+int(ends[1]):]
		binary.BigEndian.PutUint32(tcp[4:], 1111)
		binary.BigEndian.PutUint32(tcp[8:], 0xfffffff0)
		got := resetFor(append(frame, "and some data"...))
		p := gopacket.NewPacket(got, layers.LayerTypeEthernet, gopacket.Default)
		e, ok1 := p.LinkLayer().(*layers.Ethernet)
		h, ok2 := p.TransportLayer().(*layers.TCP)
		if p.ErrorLayer() != nil || !ok1 || !ok2 {
			t.Fatalf("%s: %x is no TCP: %v", name, got, p)
		}
		if !bytes.Equal(e.DstMAC, clientMAC[:]) || !bytes.Equal(e.SrcMAC, serverMAC[:]) || p.NetworkLayer().NetworkFlow().Src().String() != parsed(t, frame).dst.Addr().String() {
			t.Errorf("%s: %v", name, p)
		}
		if h.SrcPort != 4000 || h.DstPort != 40000 || h.Seq != 0xfffffff0 || !h.RST || h.ACK || h.SYN || len(h.Payload) > 0 {
			t.Errorf("%s: %+v", name, h)
		}
		sums := gopacket.NewSerializeBuffer()
		if err := h.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
			t.Fatal(err)
		}
		if err := gopacket.SerializePacket(sums, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true}, p); err != nil || !bytes.HasPrefix(sums.Bytes(), got) { // which are filled up
			t.Errorf("%s: %x, with other checksums or lengths %x, %v", name, got, sums.Bytes(), err)
		}
	}
	for name, frame := range map[string][]byte{
		"a reset": tcpFrame(client, server, flagRST|flagACK), "no acknowledgement": tcpFrame(client, server, 0), "nothing": nil,
		"half a header": tcpFrame(client, server, flagACK)[:etherHeader+ip4Header+tcpHeader-1],
	} {
		if got := resetFor(frame); got != nil {
			t.Errorf("%s is answered by %x", name, got)
		}
	}
}

// parsed reads a frame that is TCP.
func parsed(t *testing.T, frame []byte) packet {
	t.Helper()
	p, ok := parseTCP(frame)
	if !ok {
		t.Fatalf("%x is no TCP", frame)
	}
	return p
}

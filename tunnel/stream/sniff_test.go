package stream

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// hellos are the first flights of real TLS of both sides.
func hellos(t *testing.T, version uint16) (client, server []byte) {
	t.Helper()
	c, s := net.Pipe()
	defer s.Close()
	go func() {
		defer c.Close()
		tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}).Handshake()
	}()
	client = make([]byte, 8)
	if _, err := io.ReadFull(s, client); err != nil {
		t.Fatal(err)
	}
	return client, append([]byte{22, 3, 3, 0, 122, 2}, 0, 0)
}

func TestSniffTLS(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		client, server := hellos(t, version)
		for name, hello := range map[string][]byte{"client": client, "server": server} {
			var at, split, late sniffer
			if !at.Opaque(hello) || !at.Opaque([]byte("anything")) {
				t.Errorf("version %x: a %s's hello is not seen", version, name)
			}
			for i := range hello {
				if got := split.Opaque(hello[i : i+1]); got != (i >= 5) {
					t.Errorf("version %x: %s byte by byte: %v after %d", version, name, got, i+1)
				}
			}
			if late.Opaque([]byte("220 mail.example ESMTP\r\n")) || late.Opaque([]byte("220 go ahead\r\n")) || !late.Opaque(hello) {
				t.Errorf("version %x: %s after STARTTLS is not seen", version, name)
			}
		}
	}
}

func TestSniffSSH(t *testing.T) {
	var s sniffer
	if s.Opaque([]byte("SS")) || !s.Opaque([]byte("H-2.0-OpenSSH_9.2\r\n")) || !s.Opaque([]byte{1}) {
		t.Error("SSH is not seen")
	}
}

// TestSniffPlain holds what must not be taken for encrypted: among it QEMU's
// migration stream, NBD, data that has a record's bytes in it, and a hello that
// comes too late.
func TestSniffPlain(t *testing.T) {
	hello := []byte{22, 3, 1, 2, 0, 1, 0, 1}
	for name, parts := range map[string][][]byte{
		"QEMU":             {[]byte("QEVM\x00\x00\x00\x03"), make([]byte, 4096)},
		"multifd":          {{0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1}},
		"NBD":              {[]byte("NBDMAGICIHAVEOPT")},
		"HTTP":             {[]byte("GET / HTTP/1.1\r\n\r\n")},
		"inside":           {append([]byte("x"), hello...)},
		"other record":     {{23, 3, 3, 0, 100, 1, 2, 3}},
		"other handshake":  {{22, 3, 3, 0, 100, 11, 2, 3}},
		"too long":         {{22, 3, 3, 0x41, 0, 1, 2, 3}},
		"version":          {{22, 3, 5, 0, 100, 1, 2, 3}},
		"nearly SSH":       {[]byte("SSHD")},
		"start, then else": {{22, 3}, []byte("no hello")},
		"late":             {bytes.Repeat([]byte("x"), sniffBytes), hello},
		"nothing":          {nil, {}},
	} {
		var s sniffer
		for _, p := range parts {
			if s.Opaque(p) {
				t.Errorf("%s is taken for encrypted", name)
			}
		}
	}
}

// FuzzSniff: how bytes are cut into reads changes nothing about a hello at the
// very beginning, and nothing panics.
func FuzzSniff(f *testing.F) {
	f.Add([]byte{22, 3, 1, 2, 0, 1, 0, 1}, uint8(2))
	f.Add([]byte("SSH-2.0-x"), uint8(1))
	f.Add([]byte("QEVM"), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		var whole, parts sniffer
		want := whole.Opaque(in)
		got := false
		for rest := in; len(rest) > 0; {
			n := min(len(rest), int(cut)%8+1)
			got = parts.Opaque(rest[:n])
			rest = rest[n:]
		}
		if want && !got {
			t.Fatalf("%x in pieces of %d is not seen", in, cut%8+1)
		}
	})
}

package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
)

// Key is a WireGuard key, private, public or preshared. The zero value means
// "none". String hides it: use Base64 where the text is really wanted.
type Key [32]byte

// ParseKey reads the base64 form of a key as printed by "stitch keygen".
func ParseKey(s string) (Key, error) {
	var k Key
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return k, errors.New("not base64: a key is 44 characters as printed by `stitch keygen`")
	}
	if len(b) != len(k) {
		return k, fmt.Errorf("a key is 32 bytes, this one has %d", len(b))
	}
	copy(k[:], b)
	return k, nil
}

// Base64 returns the text form of k.
func (k Key) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String returns a placeholder, so that a key never reaches a log by accident.
func (k Key) String() string { return "(key)" }

// GoString is String, for %#v.
func (k Key) GoString() string { return "(key)" }

// Format writes the placeholder for every verb of fmt.
func (k Key) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, k.String()) }

// MarshalText is String, for JSON and for structured logs.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// IsZero reports whether k is "none".
func (k Key) IsZero() bool { return k == Key{} }

// MAC is an Ethernet address.
type MAC [6]byte

// ParseMAC reads six hex bytes separated by colons.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("%q is not a MAC address like 52:54:00:12:34:56", s)
	}
	return MAC(hw), nil
}

// String returns the usual colon form.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

package wg

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"

	"stitch/tunnel/config"
)

// addrLabel separates the hash behind LinkAddrs from any other use of the keys.
const addrLabel = "stitch link addresses v1"

// LinkAddrs returns the addresses of the two ends of the link between the
// owners of two public keys, ours first. Both ends compute the same pair,
// swapped. The pair is an even address of 169.254.0.0/16 and the next one;
// 169.254.0.0/24 and 169.254.255.0/24 (reserved by RFC 3927) and
// 169.254.169.0/24 (metadata services of clouds) are never used. There are
// 32,384 pairs: the caller checks that no two of its links share one.
func LinkAddrs(ours, peers config.Key) (local, remote netip.Addr) {
	low, high := sorted(ours, peers)
	h := sha256.New()
	h.Write([]byte(addrLabel))
	h.Write(low[:])
	h.Write(high[:])
	n := binary.BigEndian.Uint64(h.Sum(nil)) % (253 * 128)
	third := byte(n/128) + 1
	if third >= 169 {
		third++
	}
	even := netip.AddrFrom4([4]byte{169, 254, third, byte(n%128) * 2})
	if ours == low {
		return even, even.Next()
	}
	return even.Next(), even
}

// PublicKey returns the public key that belongs to private.
func PublicKey(private config.Key) config.Key {
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		panic(err) // 32 bytes are always a key
	}
	return config.Key(k.PublicKey().Bytes())
}

// GenerateKey makes a private key of 32 bytes from r, which must be a source
// like crypto/rand.Reader.
func GenerateKey(r io.Reader) (config.Key, error) {
	var k config.Key
	if _, err := io.ReadFull(r, k[:]); err != nil {
		return config.Key{}, fmt.Errorf("generate key: %w", err)
	}
	// The clamping of RFC 7748, so that the text form is the canonical one.
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k, nil
}

// SharedSecret derives 32 bytes that only the owners of the two key pairs can
// compute: HKDF-SHA256 over the X25519 secret of our private and their public
// key, bound to both public keys and to label. Different labels give
// independent secrets. A public key of low order is an error.
func SharedSecret(private, public config.Key, label string) ([32]byte, error) {
	var secret [32]byte
	ours, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return secret, fmt.Errorf("shared secret: private key: %w", err)
	}
	theirs, err := ecdh.X25519().NewPublicKey(public[:])
	if err != nil {
		return secret, fmt.Errorf("shared secret: public key: %w", err)
	}
	dh, err := ours.ECDH(theirs)
	if err != nil {
		return secret, fmt.Errorf("shared secret: public key: %w", err)
	}
	low, high := sorted(PublicKey(private), public)
	out, err := hkdf.Key(sha256.New, dh, append(low[:], high[:]...), label, len(secret))
	if err != nil {
		return secret, fmt.Errorf("shared secret: %w", err)
	}
	copy(secret[:], out)
	return secret, nil
}

// sorted returns the two keys in the order of their bytes.
func sorted(a, b config.Key) (low, high config.Key) {
	if bytes.Compare(a[:], b[:]) < 0 {
		return a, b
	}
	return b, a
}

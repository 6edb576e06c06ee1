package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"stitch/dedupe/accord"
)

const (
	stateSize    = 512
	stateMagic   = "stitchst"
	stateVersion = 1
)

// ErrNewer is returned for a store of a newer version.
var ErrNewer = errors.New("store: written by a newer release; it is left alone")

// State is who a store is and whom it knows.
type State struct {
	ID         [16]byte
	Salt       [16]byte // of the derived key; stays when the ID changes
	Generation uint64
	Epochs     [2]uint64 // of the segments of both rings; 0: none
	Peer       accord.Identity
}

// secret is what binds a state to a machine and a key.
type secret struct {
	machine [16]byte
	key     []byte // nil without encryption
}

// derive returns the store's cipher (nil without encryption) and key check.
func (s *secret) derive(salt [16]byte) (cipher.AEAD, [16]byte, error) {
	if s.key == nil {
		return nil, [16]byte{}, nil
	}
	key, err := hkdf.Key(sha256.New, s.key, salt[:], "stitch history", 32)
	if err != nil {
		return nil, [16]byte{}, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, [16]byte{}, err
	}
	a, err := cipher.NewGCM(block)
	m := hmac.New(sha256.New, key)
	m.Write([]byte("stitch key check"))
	return a, [16]byte(m.Sum(nil)[:16]), err
}

// newState is that of a store that knows nobody.
func newState() State {
	var s State
	_, _ = rand.Read(s.ID[:]) // never fails
	_, _ = rand.Read(s.Salt[:])
	return s
}

// encode returns the slot for the state's sequence-th writing.
func (s *State) encode(sequence uint64, x *secret, check [16]byte) (b [stateSize]byte) {
	copy(b[:], stateMagic)
	binary.LittleEndian.PutUint32(b[8:], stateVersion)
	if x.key != nil {
		b[12] = flagEncrypted
	}
	binary.LittleEndian.PutUint64(b[16:], sequence)
	copy(b[24:], s.ID[:])
	copy(b[40:], x.machine[:])
	copy(b[56:], check[:])
	for i, v := range [...]uint64{s.Generation, s.Epochs[0], s.Epochs[1]} {
		binary.LittleEndian.PutUint64(b[72+8*i:], v)
	}
	copy(b[96:], s.Peer.Store[:])
	binary.LittleEndian.PutUint64(b[112:], s.Peer.Instance)
	binary.LittleEndian.PutUint64(b[120:], s.Peer.Generation)
	copy(b[128:], s.Salt[:])
	seal(b[:])
	return b
}

// Reasons to begin a new store in the old one's place.
var (
	errMachine = errors.New("it belongs to another machine")
	errKey     = errors.New("it was written with another key, or with none, or now has none")
)

// decode reads a slot: ErrCorrupt if it does not verify, ErrNewer, or a reason
// not to use it; else its cipher and key check.
func (s *State) decode(b []byte, x *secret) (a cipher.AEAD, check [16]byte, err error) {
	if len(b) != stateSize || string(b[:8]) != stateMagic || !sealed(b) {
		return nil, check, ErrCorrupt
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != stateVersion {
		return nil, check, fmt.Errorf("%w (version %d, this is %d)", ErrNewer, v, stateVersion)
	}
	copy(s.ID[:], b[24:])
	s.Generation = binary.LittleEndian.Uint64(b[72:])
	s.Epochs[0] = binary.LittleEndian.Uint64(b[80:])
	s.Epochs[1] = binary.LittleEndian.Uint64(b[88:])
	copy(s.Peer.Store[:], b[96:])
	s.Peer.Instance = binary.LittleEndian.Uint64(b[112:])
	s.Peer.Generation = binary.LittleEndian.Uint64(b[120:])
	copy(s.Salt[:], b[128:])
	if [16]byte(b[40:56]) != x.machine {
		return nil, check, errMachine
	}
	a, check, err = x.derive(s.Salt)
	if err == nil && (check != [16]byte(b[56:72]) || (b[12]&flagEncrypted != 0) != (x.key != nil)) {
		err = errKey
	}
	return a, check, err
}

func sequenceOf(slot []byte) uint64 { return binary.LittleEndian.Uint64(slot[16:]) }

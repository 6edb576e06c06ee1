package stream

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
)

// The file "seeds" beside a history's store is what `stitch seed` was told of, so
// that it outlives the process: names of files and digests of their pieces. It is
// written anew as a whole and then renamed, so it is the old one or the new one.
// What it says is a hint, as in memory: a piece is held against its digest before it
// is used. Integers are little-endian:
//
//	0   magic "stitchsd"; version 4, flags 4: bit 0: encrypted
//	16  salt 16, 0 if not encrypted
//	32  body
//	    tag 16, if encrypted
//	    checksum 16: SHA-256 of all bytes before it, first half
//
// The body is unsigned varints and bytes: how many files, and for each the length of
// its name, the name, and how many pieces; for each of these how many times 1 MiB it
// lies behind the one before (the first one behind the beginning), how many bytes
// less than 1 MiB it has, and its SHA-256. Files and their pieces are in order.
//
// An encrypted body is sealed by AES-256-GCM with the first 32 bytes as additional
// data and a nonce of zeros, under HKDF-SHA256 of the store's key with the salt,
// which is drawn for each writing, and "stitch seeds" as info: no key is used twice.
const (
	seedFile     = "seeds"
	seedMagic    = "stitchsd"
	seedVersion  = 1
	seedHead     = 32
	seedSumLen   = 16
	maxSeedNames = 8 << 20 // bytes of names
	maxSeedName  = 4096    // of one: what the kernel takes
	// maxSeedFile bounds what is read.
	maxSeedFile = seedHead + maxSeedNames + maxPieces*(sha256.Size+3*binary.MaxVarintLen64) + 64
)

var (
	// errSeedFile is returned for a file that does not verify.
	errSeedFile = errors.New("the list of seeded files is damaged, or was written with another key")
	// errSeedNewer is returned for one of a newer version, which is left alone.
	errSeedNewer = errors.New("the list of seeded files was written by a newer release; it is left alone")
	// errSeedNames is returned when the names are too long to be written.
	errSeedNames = fmt.Errorf("the names of the seeded files have more than %d MiB", maxSeedNames>>20)
)

// appendSeeds appends the file of known; salt is fresh, key nil for none.
func appendSeeds(b []byte, known map[digest]place, salt [16]byte, key []byte) ([]byte, error) {
	start := len(b)
	b = append(b, seedMagic...)
	b = binary.LittleEndian.AppendUint32(b, seedVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(min(len(key), 1)))
	if len(key) == 0 {
		salt = [16]byte{}
	}
	b = append(b, salt[:]...)
	at := len(b)
	b, err := appendSeedBody(b, known)
	if err != nil {
		return nil, err
	}
	if len(key) > 0 {
		a, err := seedCipher(key, salt)
		if err != nil {
			return nil, err
		}
		b = a.Seal(b[:at], make([]byte, a.NonceSize()), b[at:], b[start:at])
	}
	sum := sha256.Sum256(b[start:])
	return append(b, sum[:seedSumLen]...), nil
}

func seedCipher(key []byte, salt [16]byte) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, key, salt[:], "stitch seeds", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func appendSeedBody(b []byte, known map[digest]place) ([]byte, error) {
	files := make(map[string][]digest)
	names := 0
	for d, at := range known {
		if _, ok := files[at.file]; !ok {
			names += len(at.file)
		}
		files[at.file] = append(files[at.file], d)
	}
	if names > maxSeedNames {
		return nil, errSeedNames
	}
	b = binary.AppendUvarint(b, uint64(len(files)))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		ds := files[name]
		slices.SortFunc(ds, func(x, y digest) int { return cmp.Compare(known[x].offset, known[y].offset) })
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendUvarint(b, uint64(len(ds)))
		next := int64(0)
		for _, d := range ds {
			at := known[d]
			b = binary.AppendUvarint(b, uint64((at.offset-next)/pieceSize))
			b = binary.AppendUvarint(b, uint64(pieceSize-at.size))
			b = append(b, d[:]...)
			next = at.offset
		}
	}
	return b, nil
}

// parseSeeds reads a file. It borrows b and may spoil it.
func parseSeeds(b, key []byte) (map[digest]place, error) {
	end := len(b) - seedSumLen
	if end < seedHead || len(b) > maxSeedFile || string(b[:8]) != seedMagic {
		return nil, errSeedFile
	}
	if sum := sha256.Sum256(b[:end]); !bytes.Equal(sum[:seedSumLen], b[end:]) {
		return nil, errSeedFile
	}
	if binary.LittleEndian.Uint32(b[8:]) != seedVersion {
		return nil, errSeedNewer
	}
	body, encrypted := b[seedHead:end], b[12]&1 != 0
	if encrypted != (len(key) > 0) {
		return nil, errSeedFile
	}
	if encrypted {
		a, err := seedCipher(key, [16]byte(b[16:]))
		if err != nil {
			return nil, err
		}
		if body, err = a.Open(body[:0], make([]byte, a.NonceSize()), body, b[:seedHead]); err != nil {
			return nil, errSeedFile
		}
	}
	return parseSeedBody(body)
}

// parseSeedBody reads the body; every number is within its bounds afterwards.
func parseSeedBody(body []byte) (map[digest]place, error) {
	r := bytes.NewReader(body)
	bad := false
	number := func(most uint64) uint64 {
		v, err := binary.ReadUvarint(r)
		if err != nil || v > most {
			bad = true
			return 0
		}
		return v
	}
	known := make(map[digest]place)
	for range number(maxPieces) {
		name := make([]byte, number(min(maxSeedName, uint64(r.Len()))))
		if _, err := io.ReadFull(r, name); err != nil {
			bad = true
		}
		next := int64(0)
		for range number(uint64(r.Len()) / sha256.Size) {
			next += int64(number(1<<40)) * pieceSize
			at := place{file: string(name), offset: next, size: pieceSize - int(number(pieceSize-1))}
			var d digest
			if _, err := io.ReadFull(r, d[:]); err != nil || bad || len(known) == maxPieces || next < 0 || len(name) == 0 {
				return nil, errSeedFile
			}
			known[d] = at
		}
		if bad {
			break
		}
	}
	if bad || r.Len() > 0 {
		return nil, errSeedFile
	}
	return known, nil
}

// readSeeds reads the file in a history's directory; none is no pieces.
func readSeeds(dir string, key []byte) (map[digest]place, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(seedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSeedFile+1))
	if err != nil {
		return nil, err
	}
	return parseSeeds(b, key)
}

// writeSeeds puts b in the place of the file in a history's directory.
func writeSeeds(dir string, b []byte) error {
	const fresh = seedFile + ".new"
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	_ = root.Remove(fresh) // what a process that died has left
	f, err := root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, root.Remove(fresh))
	}
	if err := root.Rename(fresh, seedFile); err != nil {
		return err
	}
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Package field turns values into bytes and back. What a value consists of is said
// once, by a function that shows each of its fields to a Coder in a fixed order: a
// Writer appends them, a Reader sets them. So the two directions cannot differ.
//
// Numbers are unsigned varints, flags a byte, bytes and lists begin with their
// length. What comes from outside is bounded by its reader: a number has a
// greatest value, and a list no more elements than there are bytes left for them.
package field

import (
	"encoding/binary"
	"errors"
)

// ErrBad is the Reader's error: bytes are missing, or a field is out of its bounds.
var ErrBad = errors.New("field: bytes that no value has")

// Coder is shown the fields of a value. A Coder that writes leaves them as they are.
type Coder interface {
	// Number is a number that is at most most.
	Number(v *uint64, most uint64)
	// Flag is a truth.
	Flag(v *bool)
	// Bytes are at most most bytes; a Reader lends its own.
	Bytes(v *[]byte, most int)
	// Count is the number of elements that follow, each of them at least one byte.
	// It returns n, or the number there is in its place.
	Count(n int) int
	// Check takes what must hold for the fields shown so far, OK says whether all
	// did.
	Check(ok bool)
	OK() bool
}

// List shows the elements of a list, each by f. A Reader appends to s, and takes
// memory for no more than there are bytes for.
func List[T any](c Coder, s *[]T, f func(*T)) {
	n := c.Count(len(*s))
	for i := 0; i < n && c.OK(); i++ {
		if i == len(*s) {
			var fresh T
			*s = append(*s, fresh)
		}
		f(&(*s)[i])
	}
}

// Int shows a number of another type, at most most.
func Int[T ~int | ~int32 | ~int64 | ~uint8 | ~uint16 | ~uint32](c Coder, v *T, most uint64) {
	n := uint64(*v)
	c.Number(&n, most)
	*v = T(n)
}

// Array shows an array's bytes.
func Array(c Coder, v []byte) {
	b := v
	c.Bytes(&b, len(v))
	c.Check(len(b) == len(v))
	copy(v, b)
}

// Writer appends fields to Out. The zero value is ready.
type Writer struct{ Out []byte }

// Number implements Coder.
func (w *Writer) Number(v *uint64, _ uint64) { w.Out = binary.AppendUvarint(w.Out, *v) }

// Flag implements Coder.
func (w *Writer) Flag(v *bool) {
	var b byte
	if *v {
		b = 1
	}
	w.Out = append(w.Out, b)
}

// Bytes implements Coder.
func (w *Writer) Bytes(v *[]byte, _ int) {
	w.Out = append(binary.AppendUvarint(w.Out, uint64(len(*v))), *v...)
}

// Count implements Coder.
func (w *Writer) Count(n int) int {
	w.Out = binary.AppendUvarint(w.Out, uint64(n))
	return n
}

// Check implements Coder: what does not hold is the Reader's to say.
func (w *Writer) Check(bool) {}

// OK implements Coder.
func (w *Writer) OK() bool { return true }

// Reader takes fields from bytes, which it borrows and lends. After the first that
// is bad all are zero.
type Reader struct {
	rest []byte
	bad  bool
}

// NewReader returns the Reader of b.
func NewReader(b []byte) *Reader { return &Reader{rest: b} }

// Number implements Coder.
func (r *Reader) Number(v *uint64, most uint64) {
	n, size := binary.Uvarint(r.rest)
	if r.bad = r.bad || size <= 0 || n > most; r.bad {
		*v = 0
		return
	}
	*v, r.rest = n, r.rest[size:]
}

// Flag implements Coder.
func (r *Reader) Flag(v *bool) {
	var n uint64
	r.Number(&n, 1)
	*v = n == 1
}

// Bytes implements Coder.
func (r *Reader) Bytes(v *[]byte, most int) {
	var n uint64
	r.Number(&n, uint64(min(most, len(r.rest))))
	*v = nil
	if r.Check(n <= uint64(len(r.rest))); r.bad || n == 0 {
		return
	}
	*v, r.rest = r.rest[:n:n], r.rest[n:]
}

// Count implements Coder.
func (r *Reader) Count(int) int {
	var n uint64
	r.Number(&n, uint64(len(r.rest)))
	return int(n)
}

// Check implements Coder.
func (r *Reader) Check(ok bool) { r.bad = r.bad || !ok }

// OK implements Coder.
func (r *Reader) OK() bool { return !r.bad }

// End returns ErrBad unless all fields were good and nothing is left.
func (r *Reader) End() error {
	if r.bad || len(r.rest) > 0 {
		return ErrBad
	}
	return nil
}

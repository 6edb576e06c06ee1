// Package storetest is a disk in memory for tests: it can fail at any
// operation, be slow, lose power, and be copied.
package storetest

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"stitch/dedupe/store"
)

// Op is an operation that a fault may spoil.
type Op struct {
	N    int    // counted over all operations, from 1
	Kind string // "open", "read", "write", "sync", "truncate"
	File string
}

// Disk is a store.Disk in memory. It is safe for concurrent use.
type Disk struct {
	mu    sync.Mutex
	fault func(Op) error
	n     int
	files map[string]*content
	wrote []write // since the last sync of its file, in order
}

// content is a file as the next reader sees it, and as it was synced.
type content struct{ now, safe []byte }

type write struct {
	file string
	off  int64
	data []byte
}

// New returns an empty disk.
func New() *Disk { return &Disk{files: make(map[string]*content)} }

// SetFault has f asked before each operation from now on; it may return an error
// or wait. Nil ends that.
func (d *Disk) SetFault(f func(Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// Copy returns the disk as a backup program would find it, free for use.
func (d *Disk) Copy() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New()
	for name, f := range d.files {
		c.files[name] = &content{slices.Clone(f.now), slices.Clone(f.now)}
	}
	return c
}

// Crash returns what is left after the power failed: what was synced, and of
// the later writes any, in any order, some of them torn.
func (d *Disk) Crash(r *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New()
	for name, f := range d.files {
		c.files[name] = &content{now: slices.Clone(f.safe)}
	}
	for _, i := range r.Perm(len(d.wrote)) {
		w := d.wrote[i]
		switch r.IntN(4) {
		case 0: // lost
		case 1:
			const sector = 512
			w.data = w.data[:min(len(w.data), sector*r.IntN(len(w.data)/sector+1))]
			fallthrough
		default:
			f := c.files[w.file]
			f.now = put(f.now, w.data, w.off)
		}
	}
	for _, f := range c.files {
		f.safe = slices.Clone(f.now)
	}
	return c
}

// Names are the names of the files.
func (d *Disk) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.files))
}

// Bytes lends a file's content, to be read or damaged while the disk is not in
// use.
func (d *Disk) Bytes(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files[name].now
}

// Set replaces a file.
func (d *Disk) Set(name string, b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[name] = &content{b, slices.Clone(b)}
}

// Remove removes a file.
func (d *Disk) Remove(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
}

func (d *Disk) begin(kind, file string) error {
	d.mu.Lock()
	d.n++
	op, fault := Op{d.n, kind, file}, d.fault
	d.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(op)
}

// Ops is how many operations there were.
func (d *Disk) Ops() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

// Open implements store.Disk.
func (d *Disk) Open(name string) (store.File, error) {
	if err := d.begin("open", name); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[name] == nil {
		d.files[name] = new(content)
	}
	return &file{d: d, name: name, c: d.files[name]}, nil
}

// Close implements store.Disk.
func (d *Disk) Close() error { return nil }

type file struct {
	d    *Disk
	name string
	c    *content
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.d.begin("read", f.name); err != nil {
		return 0, err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.c.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.c.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// put writes p at off of b, which grows.
func put(b, p []byte, off int64) []byte {
	if end := int(off) + len(p); end > len(b) {
		b = append(b, make([]byte, end-len(b))...)
	}
	copy(b[off:], p)
	return b
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.begin("write", f.name); err != nil {
		return 0, err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.c.now = put(f.c.now, p, off)
	f.d.wrote = append(f.d.wrote, write{f.name, off, slices.Clone(p)})
	return len(p), nil
}

func (f *file) Truncate(size int64) error {
	if err := f.d.begin("truncate", f.name); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if size < 0 {
		return errors.New("storetest: negative size")
	}
	f.c.now = append(f.c.now[:min(size, int64(len(f.c.now)))], make([]byte, max(0, size-int64(len(f.c.now))))...)
	return nil
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.c.now)), nil
}

func (f *file) Sync() error {
	if err := f.d.begin("sync", f.name); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.c.safe = f.c.safe[:min(len(f.c.safe), len(f.c.now))]
	f.d.wrote = slices.DeleteFunc(f.d.wrote, func(w write) bool {
		if w.file == f.name {
			f.c.safe = put(f.c.safe, w.data, w.off)
		}
		return w.file == f.name
	})
	return nil
}

func (f *file) Close() error { return nil }

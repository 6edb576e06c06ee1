package tunnel_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	vm "stitch/scripts/machine"
	"stitch/tunnel/hypervisor"
	"stitch/tunnel/lab"
	"stitch/tunnel/stream"
)

// Memory of the guest of these tests, see busyGuest: 64 MiB and 8 KiB (why:
// scripts/machine.RAM), of which it uses 32 MiB.
const (
	guestMemory = 64<<20 + 8<<10
	usedFrom    = 1 << 20
	usedTo      = 33 << 20
)

// busyGuest is the code of a firmware that needs no other: it fills memory from
// usedFrom to usedTo with random numbers (xorshift), says R on the serial port,
// and then for ever adds one to the first four bytes of each page, with a pause
// after each.
//
//	        cli; lgdtl %cs:gdtr; movl %cr0, %eax; orb $1, %al; movl %eax, %cr0; ljmpl $8, $protected
//	gdt:    null, code and data of 4 GiB; gdtr: .word 23; .long gdt
//	protected:
//	        movw $16, %ax; movw %ax, %ds; movl $0x9e3779b9, %eax; movl $0x100000, %edi
//	fill:   movl %eax, %ebx; shll $13, %ebx; xorl %ebx, %eax; movl %eax, %ebx; shrl $17, %ebx; xorl %ebx, %eax
//	        movl %eax, %ebx; shll $5, %ebx; xorl %ebx, %eax
//	        movl %eax, (%edi); addl $4, %edi; cmpl $0x2100000, %edi; jb fill
//	        movw $0x3f8, %dx; movb $'R', %al; outb %al, %dx; movb $'\n', %al; outb %al, %dx
//	again:  movl $0x100000, %edi
//	next:   incl (%edi); movl $1000000, %ecx
//	wait:   loop wait; addl $4096, %edi; cmpl $0x2100000, %edi; jb next; jmp again
const busyGuest = "fa2e660f011630000f20c00c010f22c066ea36000f00080000000000000" +
	"00000ffff0000009acf00ffff00000092cf00170018000f0066b810008ed8" +
	"b8b979379ebf0000100089c3c1e30d31d889c3c1eb1131d889c3c1e30531" +
	"d8890783c70481ff0000100272de66baf803b052eeb00aeebf00001000ff" +
	"07b940420f00e2fe81c70010000081ff0000100272e9ebe2"

// firmware writes busyGuest as QEMU wants it: 64 KiB that end at 1 MiB, where
// the processor begins 16 bytes before the end with a jump to the beginning.
func firmware(t *testing.T) string {
	t.Helper()
	code, err := hex.DecodeString(busyGuest)
	if err != nil {
		t.Fatal(err)
	}
	rom := make([]byte, 64<<10)
	copy(rom, code)
	copy(rom[len(rom)-16:], []byte{0xea, 0x00, 0x00, 0x00, 0xf0})
	path := filepath.Join(t.TempDir(), "firmware")
	write(t, path, rom, 0o600)
	return path
}

// hosted is a QEMU on a host of the lab.
type hosted struct {
	*vm.Machine
	dir string
}

// qemu starts QEMU on a host, ends it with the test, and puts a guest that runs
// or a shell that waits into it.
func qemu(t *testing.T, l *lab.Lab, host string, waits bool, more ...string) *hosted {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm") // a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "qmp")
	args := []string{"-name", host, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-accel", "tcg", "-smp", "1",
		"-m", fmt.Sprintf("%dk", guestMemory>>10), "-bios", firmware(t), "-serial", "stdio", "-qmp", "unix:" + socket + ",server=on,wait=off"}
	if waits {
		args = append(args, "-incoming", "defer")
	}
	m, err := vm.Start(t.Context(), "QEMU on "+host, l.Command(host, vm.QEMU, append(args, more...)...), socket, "R")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Stop)
	if !waits && len(more) == 0 {
		if err := m.Booted(t.Context(), time.Minute, nil); err != nil {
			t.Fatal(err)
		}
	}
	return &hosted{m, dir}
}

// memory stops the guest and returns what it has in memory.
func (h *hosted) memory(t *testing.T) []byte {
	t.Helper()
	file := filepath.Join(h.dir, "memory")
	dump := map[string]any{"val": 0, "size": guestMemory, "filename": file}
	if err := errors.Join(h.QMP.Execute(t.Context(), "stop", nil, nil), h.QMP.Execute(t.Context(), "pmemsave", dump, nil)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sameMemory compares what the guest had at its source with what it has at its
// target, where it has gone on counting.
func sameMemory(source, target []byte) error {
	if len(source) != guestMemory || len(target) != guestMemory {
		return fmt.Errorf("%d bytes and %d", len(source), len(target))
	}
	var counted uint32
	for at := usedFrom; at < usedTo; at += 4096 {
		more := binary.LittleEndian.Uint32(target[at:]) - binary.LittleEndian.Uint32(source[at:])
		if counted += more; more > 10_000 {
			return fmt.Errorf("page %x: the counter went from % x to % x", at, source[at:at+4], target[at:at+4])
		}
		if !bytes.Equal(source[at+4:at+4096], target[at+4:at+4096]) {
			return fmt.Errorf("page %x differs", at)
		}
	}
	if counted == 0 {
		return errStill
	}
	return nil
}

var errStill = errors.New("the guest has not run at the target")

// goesOn wants what the source had at the target, and that the guest goes on
// there.
func goesOn(t *testing.T, from, to *hosted) {
	t.Helper()
	before := from.memory(t)
	eventually(t, time.Minute, "the guest counts at the target", func() bool {
		err := sameMemory(before, to.memory(t))
		if err == nil || !errors.Is(err, errStill) {
			if err != nil {
				t.Error(err)
			}
			return true
		}
		if err := to.QMP.Execute(t.Context(), "cont", nil, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		return false
	})
}

// TestSameMemory shows that sameMemory finds what is wrong.
func TestSameMemory(t *testing.T) {
	source := mix(guestMemory, 1)
	target := bytes.Clone(source)
	if !errors.Is(sameMemory(source, target), errStill) {
		t.Error("no error of a guest that stands still")
	}
	target[usedFrom+8192]++
	if err := sameMemory(source, target); err != nil {
		t.Error(err)
	}
	for _, at := range []int{usedFrom + 7, usedTo - 1, usedFrom + 3} {
		target[at]++
		if sameMemory(source, target) == nil {
			t.Errorf("no error of a byte that differs at %x", at)
		}
		target[at]--
	}
}

// TestE2EQEMU moves a guest that writes all the time from h1 to h2 in the ways
// QEMU has, and a disk. What arrives is what was sent; all connections must have
// been carried as streams. Control: by a port without a rule, as packets.
func TestE2EQEMU(t *testing.T) {
	need(t, vm.QEMU)
	l := world(t, lab.Options{Rate: 200e6, RTT: 20 * time.Millisecond, Streams: true, Edit: func(host, toml string) string {
		early := strings.Replace(toml[strings.Index(toml, "[[stream]]"):strings.Index(toml, "[[dial]]")], "4000-5999", "4650-4659", 1)
		return strings.Replace(toml, "[[stream]]", early+"handshake = \"early\"\n\n[[stream]]", 1)
	}})
	packets := fmt.Sprintf("packets %d", stream.NoStreamRule)
	for _, c := range []struct {
		name        string
		port        int
		connections uint64 // as streams
		carried     string
		run         func(t *testing.T, l *lab.Lab, port int)
	}{
		{"precopy", 4611, 1, "full", precopy(vm.Method{})},
		{"multifd", 4612, 7, "full", precopy(vm.Method{Channels: 6})},
		{"multifd zstd", 4613, 5, "full", precopy(vm.Method{Channels: 4, Compression: "zstd"})},
		{"multifd early", 4650, 9, "full", precopy(vm.Method{Channels: 8})},
		{"postcopy", 4615, 1, "full", postcopy},
		{"mirror", 4616, 1, "full", mirrorDisk},
		{"control", 6611, 0, packets, precopy(vm.Method{Channels: 4})},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := carried(t, l, "e1", "e2", fmt.Sprintf("10.2.0.10:%d", c.port), c.carried)
			before := streamsTotal(t, l, "e1")
			c.run(t, l, c.port)
			check()
			if n := streamsTotal(t, l, "e1") - before; n != c.connections {
				t.Errorf("%d streams, want %d", n, c.connections)
			}
		})
	}
}

// uri is where QEMU on h2 waits.
func uri(port int) string { return fmt.Sprintf("tcp:10.2.0.10:%d", port) }

// precopy moves a guest by a method and compares its memory.
func precopy(by vm.Method) func(*testing.T, *lab.Lab, int) {
	return func(t *testing.T, l *lab.Lab, port int) {
		from, to := qemu(t, l, "h1", false), qemu(t, l, "h2", true)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := errors.Join(from.Set(ctx, by), to.Set(ctx, by), to.Await(ctx, uri(port))); err != nil {
			t.Fatal(err)
		}
		moved, err := from.Move(ctx, to.Machine, uri(port), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%.1f s, %v down, %d rounds, %d bytes", moved.Total().Seconds(), moved.Downtime().Round(time.Millisecond), moved.RAM.Rounds, moved.RAM.Transferred)
		goesOn(t, from, to)
	}
}

// postcopy lets the guest run at its target as soon as it may, which then asks
// for the pages that it needs.
func postcopy(t *testing.T, l *lab.Lab, port int) {
	from, to := qemu(t, l, "h1", false), qemu(t, l, "h2", true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := to.QMP.SetCapability(ctx, "postcopy-ram", true); err != nil {
		t.Skip("QEMU cannot do it on this machine (it needs userfaultfd):", err)
	}
	if err := errors.Join(from.Set(ctx, vm.Method{}), from.QMP.SetCapability(ctx, "postcopy-ram", true), to.Await(ctx, uri(port))); err != nil {
		t.Fatal(err)
	}
	slowly := map[string]int{"max-bandwidth": 1 << 20} // until then: most is still to come
	if err := from.QMP.Execute(ctx, "migrate-set-parameters", slowly, nil); err != nil {
		t.Fatal(err)
	}
	started, refused := false, error(nil)
	_, err := from.QMP.Migrate(ctx, uri(port), func(p hypervisor.Progress) {
		if p.Status == "active" && !started {
			started = true
			refused = from.QMP.Execute(ctx, "migrate-start-postcopy", nil, nil)
		}
	})
	if err := errors.Join(err, refused, to.Running(ctx, time.Minute)); err != nil || !started {
		t.Fatal(started, err)
	}
	var end struct {
		RAM struct {
			Requests int64 `json:"postcopy-requests"`
		}
	}
	if err := from.QMP.Execute(ctx, "query-migrate", nil, &end); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pages were asked for", end.RAM.Requests)
	if end.RAM.Requests == 0 {
		t.Error("no page was asked for")
	}
	eventually(t, time.Minute, "all memory is there", func() bool {
		var in struct{ Status string }
		return to.QMP.Execute(ctx, "query-migrate", nil, &in) == nil && in.Status == "completed"
	})
	goesOn(t, from, to)
}

// mirrorDisk copies a disk of which a part is written; with STITCH_LONG=1 one of
// 2 GiB, all written.
func mirrorDisk(t *testing.T, l *lab.Lab, port int) {
	size, written := int64(256<<20), int64(48<<20)
	if os.Getenv("STITCH_LONG") != "" {
		size, written = 2<<30, 2<<30
	}
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	disk := func(file string) string { return "raw,node-name=disk,file.driver=file,file.filename=" + file }
	f, err := os.Create(source)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); at < written; at += 16 << 20 {
		if _, err := f.WriteAt(mix(16<<20, uint64(at)+9), size-written+at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close(), vm.EmptyLike(source, target)); err != nil {
		t.Fatal(err)
	}
	from, to := qemu(t, l, "h1", false, "-blockdev", disk(source), "-device", "virtio-blk-pci,drive=disk", "-S"),
		qemu(t, l, "h2", true, "-blockdev", disk(target), "-device", "virtio-blk-pci,drive=disk")
	at := vm.Inet("10.2.0.10", port)
	if err := errors.Join(to.Export(t.Context(), at), from.Mirror(t.Context(), at)); err != nil {
		t.Fatal(err)
	}
	to.Stop()
	if a, b := digest(t, source), digest(t, target); a != b {
		t.Errorf("the disks differ: %x, %x", a, b)
	}
}

// digest is the SHA-256 of a file.
func digest(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

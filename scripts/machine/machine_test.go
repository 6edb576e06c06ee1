package machine

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnframe(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want string
		err  error
	}{
		"two frames":     {"\x00\x00\x00\x02ab\x00\x00\x00\x01c\x00\x00\x00\x00", "abc", nil},
		"nothing":        {"\x00\x00\x00\x00", "", nil},
		"failed":         {"\x00\x00\x00\x01a\xff\xff\xff\xff", "a", errGuest},
		"over the limit": {"\x00\x00\x00\x05abcde\x00\x00\x00\x00", "", ErrTooLong},
		"cut off":        {"\x00\x00\x00\x04ab", "ab", io.EOF},
		"no end":         {"\x00\x00\x00\x01a", "a", io.EOF},
	} {
		var out bytes.Buffer
		err := unframe(&out, strings.NewReader(tt.in), 4)
		if !errors.Is(err, tt.err) || out.String() != tt.want {
			t.Errorf("%s: %q, %v; want %q, %v", name, out.String(), err, tt.want, tt.err)
		}
	}
	if err := unframe(io.Discard, strings.NewReader("\x00\x01\x00\x01"), 1<<30); err == nil {
		t.Error("no error of a frame over the bound")
	}
}

// The port's guest side is played by a listener.
func TestFetch(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		asked <- line
		_, _ = conn.Write([]byte("\x00\x00\x00\x04data\x00\x00\x00\x00"))
	}()
	file := filepath.Join(dir, "file")
	if err := Fetch(t.Context(), filepath.Join(dir, "port"), "dump", file); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" || <-asked != "dump\n" {
		t.Errorf("file %q, %v", b, err)
	}
}

// QEMU must get a memory whose size is no multiple of 256 KiB, see RAM.
func TestShopArguments(t *testing.T) {
	if RAM%(256<<10) == 0 || RAM%(8<<10) != 0 {
		t.Errorf("%d bytes", RAM)
	}
	s := Shop{Name: "m", Image: "/i", Disk: "d", Sockets: "/s", Seed: 7}
	boot := strings.Join(s.arguments(), " ")
	s.Seed = 0
	wait := strings.Join(s.arguments(), " ")
	if !strings.Contains(boot, "-m 1048584k ") || !strings.Contains(boot, "corpus.seed=7") || strings.Contains(boot, "-incoming") ||
		!strings.Contains(boot, "unix:/s/m.qmp,") || !strings.Contains(boot, "filename=d,") || !strings.Contains(boot, "-kernel /i/vmlinuz") {
		t.Errorf("boot: %s", boot)
	}
	if !strings.HasSuffix(wait, " -incoming defer") {
		t.Errorf("wait: %s", wait)
	}
	if shared := strings.Join(Arguments("m", "/q", true), " "); !strings.Contains(shared, RAMFile+",id=ram,size=1073750016,share=on") {
		t.Errorf("shared: %s", shared)
	}
}

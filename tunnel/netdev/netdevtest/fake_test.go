package netdevtest

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"

	"stitch/tunnel/netdev"
)

func TestFake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake("x", 2)
		for _, p := range []string{"a", "bb", "ccc"} {
			f.In <- []byte(p)
		}
		bufs, sizes := make([][]byte, 4), make([]int, 4)
		for i := range bufs {
			bufs[i] = make([]byte, 100)
		}
		if n, err := f.Read(bufs, sizes, 16); n != 2 || err != nil || sizes[1] != 2 || string(bufs[1][16:18]) != "bb" {
			t.Errorf("read %d, %v, sizes %v", n, err, sizes)
		}
		if n, err := f.Read(bufs, sizes, 16); n != 1 || err != nil || sizes[0] != 3 {
			t.Errorf("read %d, %v, sizes %v", n, err, sizes)
		}
		if n, err := f.Write([][]byte{append(make([]byte, 16), "out"...)}, 16); n != 1 || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
		if got := string(<-f.Out); got != "out" {
			t.Errorf("out %q", got)
		}
		ended := make(chan error)
		go func() {
			_, err := f.Read(bufs, sizes, 16)
			ended <- err
		}()
		synctest.Wait()
		f.Close()
		f.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read after Close: %v", err)
		}
		if _, err := f.Write(bufs, 16); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write after Close: %v", err)
		}
	})
}

func TestFakeOpener(t *testing.T) {
	var o FakeOpener
	var _ netdev.Opener = &o
	d, err := o.OpenTUN("st-a", 1500)
	if err != nil || o.Device("st-a") != d || d.Name() != "st-a" {
		t.Errorf("opened %v, %v", d, err)
	}
	if err := o.Remove("st-a"); err != nil || o.Device("st-a") != nil || len(o.Removed()) != 1 {
		t.Errorf("removed: %v, %v", err, o.Removed())
	}
	o.Err = errors.New("no")
	if _, err := o.OpenTAP("sg-1", 1500); !errors.Is(err, o.Err) {
		t.Errorf("error %v", err)
	}
}

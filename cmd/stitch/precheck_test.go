package main

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stitch/tunnel/config"
)

func TestLockRunDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	unlock, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRunDir(dir); err == nil || !strings.Contains(err.Error(), "an agent runs already with run_dir "+dir+" (process ") {
		t.Errorf("twice: %v", err)
	}
	unlock()
	again, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestLockRunDirFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := lockRunDir(dir); err == nil {
		t.Error("a symbolic link was followed")
	}
	if data, err := os.ReadFile(precious); err != nil || string(data) != "text" {
		t.Error("the file behind it was changed")
	}
}

func TestCheckPorts(t *testing.T) {
	taken, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	port := taken.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	cfg := &config.Config{
		Peers: []config.Peer{{Name: "dc2", ListenPort: port}},
		DNS: &config.DNS{Listen: []netip.AddrPort{
			netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port),
			netip.MustParseAddrPort("192.0.2.99:53"), // not there: may appear
		}},
	}
	err = checkPorts(cfg)
	if err == nil || strings.Count(err.Error(), "is in use: stop the program that has it") != 2 || !strings.Contains(err.Error(), "of peer dc2") {
		t.Errorf("a taken port: %v", err)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := checkPorts(cfg); err != nil {
		t.Errorf("a free port: %v", err)
	}
}

func TestCheckTUN(t *testing.T) {
	if err := checkTUN(filepath.Join(t.TempDir(), "tun")); err == nil || !strings.Contains(err.Error(), "is missing: run `modprobe tun`") {
		t.Errorf("missing: %v", err)
	}
	if err := checkTUN("/dev/null"); err != nil {
		t.Errorf("a device that opens: %v", err)
	}
}

func TestCheckNft(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := checkNft(); err == nil || !strings.Contains(err.Error(), "apt install nftables") {
		t.Error(err)
	}
}

func TestPermanent(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{errors.New("later perhaps"), false},
		{&os.PathError{Op: "open", Path: "/dev/net/tun", Err: os.ErrPermission}, true},
		{stubborn{}, true},
	} {
		if got := permanent(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

type stubborn struct{}

func (stubborn) Error() string   { return "never" }
func (stubborn) Permanent() bool { return true }

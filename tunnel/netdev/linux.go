package netdev

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stitch/tunnel/netdev/super"
)

const (
	clonePath = "/dev/net/tun"
	// queueLen bounds the kernel's queue in front of a device, in packets or
	// super-packets. It is the kernel's own default for a TUN: enough for a
	// burst while the agent is scheduled away (a few ms at 1 Gb/s), and short
	// enough that bulk traffic does not hide the loss it should react to.
	queueLen = 500
	// addrGenNone is IN6_ADDR_GEN_MODE_NONE: no link-local address, so no
	// router solicitations and multicast reports of our own in the tunnel.
	addrGenNone = 1
)

// Linux opens devices through /dev/net/tun and rtnetlink, in the network
// namespace of the calling thread. It is safe for concurrent use.
type Linux struct {
	// NoCut switches off that the kernel hands over super-packets, NoJoin that
	// packets are joined when they are written: ways out on a host where one
	// of them harms.
	NoCut, NoJoin bool
}

var (
	_ Opener = Linux{}
	_ Cutter = (*device)(nil)
	_ Sizer  = (*device)(nil)
)

// OpenTUN creates or adopts the persistent TUN called name, sets its MTU and
// brings it up. It is a Cutter, to begin with to the MTU.
//
// A device that another process has open is an error, and so is an existing
// interface of that name that is not a TUN.
func (l Linux) OpenTUN(name string, mtu int) (Device, error) {
	return l.offloaded(name, mtu, super.IP, request{flags: unix.IFF_TUN | unix.IFF_VNET_HDR, persist: true, up: true})
}

// OpenTAP creates or adopts the persistent TAP called name and sets its MTU.
// A new one is down and has no addresses; an adopted one stays as it is, up
// and in its bridge.
func (l Linux) OpenTAP(name string, mtu int) (Device, error) {
	return l.offloaded(name, mtu, super.Ethernet, request{flags: unix.IFF_TAP | unix.IFF_VNET_HDR, persist: true})
}

// OpenPrivateTUN creates a TUN without offloads that vanishes with its last
// descriptor, sets its MTU and brings it up.
func (Linux) OpenPrivateTUN(name string, mtu int) (Device, error) {
	fd, err := open(name, mtu, request{flags: unix.IFF_TUN, up: true})
	if err != nil {
		return nil, err
	}
	return newDevice(name, fd, super.IP, false, super.JoinNothing, mtu)
}

// OpenLooseTAP creates a TAP with offloads, without address resolution, that
// vanishes with its last descriptor, which it returns: to be handed to another
// process. Its address is mac; it is up.
func (l Linux) OpenLooseTAP(name string, mtu int, mac net.HardwareAddr) (fd int, err error) {
	fd, err = open(name, mtu, request{flags: unix.IFF_TAP | unix.IFF_VNET_HDR})
	if err != nil {
		return -1, err
	}
	_, err = l.offer(fd)
	if err == nil {
		err = setLoose(name, mac)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("open device %s: %w", name, err), unix.Close(fd))
	}
	return fd, nil
}

// setLoose gives a device that is down its address and brings it up.
func setLoose(name string, mac net.HardwareAddr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find it: %w", err)
	}
	if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("set address %s: %w", mac, err)
	}
	if err := netlink.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("turn address resolution off: %w", err)
	}
	return netlink.LinkSetUp(link)
}

// Adopt makes a Device of the descriptor of a TAP with offloads, which it takes.
// The interface, called name, may be in another network namespace.
func (l Linux) Adopt(name string, fd int) (Device, error) {
	join := super.JoinTCP
	if l.NoJoin {
		join = super.JoinNothing
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt device %s: %w", name, err), unix.Close(fd))
	}
	return newDevice(name, fd, super.Ethernet, true, join, super.MaxPacket)
}

// offloaded opens a device with offloads.
func (l Linux) offloaded(name string, mtu int, link super.Link, r request) (Device, error) {
	fd, err := open(name, mtu, r)
	if err != nil {
		return nil, err
	}
	join, err := l.offer(fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open device %s: offloads: %w", name, err), unix.Close(fd))
	}
	return newDevice(name, fd, link, true, join, mtu)
}

// offer tells the kernel which super-packets it may hand over: of TCP, and of
// UDP where it knows those (Linux 6.2). None with ECN's CWR, which is on one
// packet only. It returns what to join for the kernel in turn.
func (l Linux) offer(fd int) (super.Join, error) {
	const tcp, udp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6, unix.TUN_F_USO4 | unix.TUN_F_USO6
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, super.HeaderLen); err != nil {
		return super.JoinNothing, err
	}
	join := super.JoinAll
	err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|udp)
	if err != nil {
		join, err = super.JoinTCP, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp)
	}
	if l.NoCut {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	}
	if l.NoJoin {
		join = super.JoinNothing
	}
	return join, err
}

// Remove deletes the persistent TUN or TAP called name, also when a process
// has it open (that one then reads net.ErrClosed). It is no error if there is
// none; it is one if the interface is of another kind.
func (Linux) Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	if link.Type() != "tuntap" {
		return fmt.Errorf("remove device %s: it is a %s, not a TUN or TAP of ours: remove or rename it yourself", name, link.Type())
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device %s: %w", name, explain(err, name))
	}
	return nil
}

// request says what kind of device open makes.
type request struct {
	flags       uint16 // IFF_*
	persist, up bool
}

// open opens the clone device, attaches it to the interface called name,
// which it creates if there is none, and sets that up. The descriptor is
// non-blocking.
func open(name string, mtu int, r request) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil || name == "" {
		return -1, fmt.Errorf("open device %q: the name must have 1 to %d bytes", name, unix.IFNAMSIZ-1)
	}
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open device %s: %w", name, explain(err, name))
	}
	ifr.SetUint16(r.flags | unix.IFF_NO_PI)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	if err == nil && r.persist {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	}
	if err == nil {
		err = setup(name, mtu, r.up)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("open device %s: %w", name, explain(err, name)), unix.Close(fd))
	}
	return fd, nil
}

// explain adds to an error of the kernel what the operator can do about it.
func explain(err error, name string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: this host has no %s: load the module with `modprobe tun`, or pass the device into the container", err, clonePath)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: needs root (CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: device %s is in use by another process: stop the other agent first", err, name)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: an interface called %s of another kind exists: remove it with `ip link del %s`", err, name, name)
	}
	return err
}

// SetMTU implements Sizer.
func (d *device) SetMTU(n int) error {
	link, err := netlink.LinkByName(d.name)
	if err == nil {
		err = netlink.LinkSetMTU(link, n)
	}
	if err != nil {
		return fmt.Errorf("set the mtu of device %s to %d: %w", d.name, n, explain(err, d.name))
	}
	return nil
}

// setup sets the MTU and queue length, and brings the device up if asked to.
func setup(name string, mtu int, up bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find it: %w", err)
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set mtu %d: %w", mtu, err)
	}
	if err := netlink.LinkSetTxQLen(link, queueLen); err != nil {
		return fmt.Errorf("set queue length: %w", err)
	}
	// A kernel without IPv6 has no such setting and needs none.
	if err := netlink.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("turn link-local address off: %w", err)
	}
	if !up {
		return nil
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	return nil
}

// isClosed reports whether err is that of a closed or deleted device.
func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EBADFD)
}

package ether

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
)

// Attachment is a TAP in the bridge of a LAN.
type Attachment struct {
	// Own are the MACs of the bridge and of the TAP, for Config.Own.
	Own []config.MAC
	// MTU is the bridge's.
	MTU  int
	undo []func() error
}

// Attach puts the TAP called tap into seg.Bridge, with the bridge's MTU, as a
// port that gets all multicast, and brings it up. The bridge keeps its address
// from now on (by default it would take over that of the TAP if that is lower),
// and where seg.GatewayMAC is set it gets that one: the edge is the gateway.
//
// It works in the network namespace of the calling thread. On an error nothing
// is left changed. Log may be nil.
func Attach(seg config.Segment, tap string, log *slog.Logger) (*Attachment, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &Attachment{}
	if err := a.attach(seg, tap, log.With("segment", seg.ID, "bridge", seg.Bridge)); err != nil {
		return nil, fmt.Errorf("segment %d: %w", seg.ID, errors.Join(err, a.Close()))
	}
	return a, nil
}

func (a *Attachment) attach(seg config.Segment, tap string, log *slog.Logger) error {
	bridge, err := findBridge(seg.Bridge)
	if err != nil {
		return err
	}
	port, err := netlink.LinkByName(tap)
	if err != nil {
		return fmt.Errorf("find TAP %s: %w", tap, err)
	}
	warn(bridge, log)
	mac, err := a.pinMAC(bridge, seg.GatewayMAC)
	if err != nil {
		return err
	}
	a.Own, a.MTU = []config.MAC{mac}, bridge.Attrs().MTU
	if hw := port.Attrs().HardwareAddr; len(hw) == len(mac) {
		a.Own = append(a.Own, config.MAC(hw))
	}
	return a.join(bridge, port)
}

// findBridge returns the bridge called name.
func findBridge(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, fmt.Errorf("bridge %s does not exist: create it or correct `bridge`", name)
	}
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("%s is a %s device, not a bridge: correct `bridge`", name, link.Type())
	}
	return link, nil
}

// warn logs what will keep frames from passing.
func warn(bridge netlink.Link, log *slog.Logger) {
	if bridge.Attrs().Flags&net.FlagUp == 0 {
		log.Warn("bridge is down: no frame passes until it is up")
	}
	switch on, err := stpOn(bridge.Attrs().Index); {
	case err != nil:
		log.Warn("cannot see whether the bridge runs spanning tree", "err", err)
	case on:
		log.Warn("bridge runs spanning tree: the segment waits for its forward delay, and its BPDUs do not cross")
	}
}

// pinMAC sets the bridge's address, to the gateway's if there is one.
func (a *Attachment) pinMAC(bridge netlink.Link, gateway config.MAC) (config.MAC, error) {
	old := bridge.Attrs().HardwareAddr
	mac := config.MAC(old)
	if gateway != (config.MAC{}) {
		mac = gateway
	}
	if err := netlink.LinkSetHardwareAddr(bridge, mac[:]); err != nil {
		return mac, fmt.Errorf("set address of bridge %s to %s: %w", bridge.Attrs().Name, mac, err)
	}
	if mac != config.MAC(old) {
		a.undo = append(a.undo, func() error { return netlink.LinkSetHardwareAddr(bridge, old) })
	}
	return mac, nil
}

// join makes port one of the bridge's.
func (a *Attachment) join(bridge, port netlink.Link) error {
	name := bridge.Attrs().Name
	if err := netlink.LinkSetMTU(port, bridge.Attrs().MTU); err != nil {
		return fmt.Errorf("set MTU %d like bridge %s: %w", bridge.Attrs().MTU, name, err)
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("join bridge %s: %w", name, err)
	}
	a.undo = append(a.undo, func() error {
		if err := netlink.LinkSetDown(port); err != nil {
			return err
		}
		return netlink.LinkSetNoMaster(port)
	})
	if err := allMulticast(port.Attrs().Index); err != nil {
		return fmt.Errorf("send all multicast of bridge %s to the segment: %w", name, err)
	}
	if err := netlink.LinkSetUp(port); err != nil {
		return fmt.Errorf("bring up %s: %w", port.Attrs().Name, err)
	}
	return nil
}

// Close undoes what Attach did, last first. A device that is gone is no error.
func (a *Attachment) Close() error {
	var errs []error
	for i := len(a.undo) - 1; i >= 0; i-- {
		if err := a.undo[i](); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	a.undo = nil
	return errors.Join(errs...)
}

// allMulticast makes a bridge port a multicast router port. With a snooping
// bridge and a querier that does not cross (the gateway's own), the far hosts'
// group memberships would time out here.
func allMulticast(index int) error {
	const always = 2 // MDB_RTR_TYPE_PERM
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_MULTICAST_ROUTER, []byte{always})
	req.AddData(port)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a kernel without snooping: it floods
	}
	return err
}

// stpOn reports whether the bridge runs spanning tree.
func stpOn(index int) (bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	answers, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil || len(answers) == 0 || len(answers[0]) < unix.SizeofIfInfomsg {
		return false, err
	}
	p := answers[0][unix.SizeofIfInfomsg:]
	for _, typ := range []uint16{unix.IFLA_LINKINFO, nl.IFLA_INFO_DATA, nl.IFLA_BR_STP_STATE} {
		if p, err = attribute(p, typ); err != nil || p == nil {
			return false, err
		}
	}
	return len(p) >= 4 && binary.NativeEndian.Uint32(p) != 0, nil
}

// attribute returns the value of one netlink attribute in p, nil if it is not
// there.
func attribute(p []byte, typ uint16) ([]byte, error) {
	attrs, err := nl.ParseRouteAttr(p)
	for _, a := range attrs {
		if a.Attr.Type&^unix.NLA_F_NESTED == typ {
			return a.Value, nil
		}
	}
	return nil, err
}

package redirect

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
)

const (
	// routeProtocol tags our routes and rules, so that only ours are ever
	// removed; "ip route show proto 153" lists them.
	routeProtocol = 153
	// addrLabel ends the label of an address that we put on a bridge.
	addrLabel = ":st"
)

// Linux is the Kernel of a real host. It works in the network namespace of the
// calling thread, all on the calling goroutine. It is not safe for concurrent
// use.
type Linux struct {
	log     *slog.Logger
	applied string   // nft text that was loaded
	table   nftState // what the kernel showed right after
}

// NewLinux returns the kernel of this host. A nil log is silent.
func NewLinux(log *slog.Logger) *Linux {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Linux{log: log}
}

// Apply implements Kernel. Devices and addresses go first, because routes need
// them.
func (k *Linux) Apply(d Desired) error {
	links, err := readLinks()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range d.MACs {
		errs = append(errs, links.setMAC(m))
	}
	errs = append(errs, links.applyAddrs(d.Addrs), links.steer(d), applyRules(d.Rules), k.applyNft(d.Nft))
	for _, s := range d.Sysctls {
		errs = append(errs, setSysctl(s))
	}
	return errors.Join(errs...)
}

// Steer implements Kernel.
func (k *Linux) Steer(d Desired) error {
	links, err := readLinks()
	if err != nil {
		return err
	}
	return links.steer(d)
}

func (ls linkSet) steer(d Desired) error {
	errs := []error{ls.applyRoutes(d.Routes, ls.ownSource(d))}
	for _, n := range d.Neighs {
		errs = append(errs, ls.applyNeigh(n))
	}
	return errors.Join(errs...)
}

// Guard implements Kernel.
func (k *Linux) Guard(d Desired) error {
	have, err := ourRoutes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range d.Routes {
		if !r.Guard {
			continue
		}
		if _, ok := have[keyOf(r)]; !ok {
			errs = append(errs, addRoute(r, 0, netip.Addr{}))
		}
	}
	return errors.Join(errs...)
}

// Clear implements Kernel.
func (k *Linux) Clear(keepGuards bool) error {
	links, err := readLinks()
	if err != nil {
		return err
	}
	errs := []error{k.deleteNft(), applyRules(nil), links.applyAddrs(nil)}
	have, err := ourRoutes()
	errs = append(errs, err)
	for _, r := range have {
		if keepGuards && r.Type == unix.RTN_UNREACHABLE && r.Priority == guardMetric {
			continue
		}
		errs = append(errs, ignoreGone(netlink.RouteDel(&r)))
	}
	return errors.Join(errs...)
}

// Intact implements Kernel: our nftables table is the one we loaded and no
// address, route or rule is missing.
func (k *Linux) Intact(d Desired) bool {
	return d.Nft == k.applied && k.table == readNft() && addrsIntact(d.Addrs) && routesIntact(d)
}

func addrsIntact(want []Addr) bool {
	links, err := readLinks()
	if err != nil {
		return false
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return false
	}
	have := make(map[Addr]bool, len(addrs))
	for _, a := range addrs {
		have[Addr{links.name(a.LinkIndex), prefixOf(a.IPNet)}] = true
	}
	return !slices.ContainsFunc(want, func(a Addr) bool { return !have[a] })
}

func routesIntact(d Desired) bool {
	routes, err := ourRoutes()
	if err != nil {
		return false
	}
	rules, err := ourRules()
	if err != nil {
		return false
	}
	for _, r := range d.Routes {
		if _, ok := routes[keyOf(r)]; !ok && !unsupported(r.Dst.Addr()) {
			return false
		}
	}
	for _, r := range d.Rules {
		f, supported := r.family()
		if _, ok := rules[r.key(f)]; !ok && supported {
			return false
		}
	}
	return true
}

// Warnings implements Kernel.
func (k *Linux) Warnings(d Desired) (ws []string) {
	if sysctl("net/ipv4/ip_forward") == "0" {
		ws = append(ws, "this host does not forward IPv4: sysctl net.ipv4.ip_forward=1")
	}
	if sysctl("net/bridge/bridge-nf-call-iptables") == "1" {
		ws = append(ws, "bridged frames pass this host's IP firewall: sysctl net.bridge.bridge-nf-call-iptables=0")
	}
	if sysctl("net/ipv4/conf/all/src_valid_mark") == "1" && len(d.Rules) > 0 {
		ws = append(ws, "net.ipv4.conf.all.src_valid_mark=1 makes the reverse path check look at packet marks: set it to 0 if intercepted connections hang")
	}
	return ws
}

// holdAddr is the hold device's address: the IPv4 dummy address of RFC 7600,
// which nobody else uses.
var holdAddr = netip.AddrFrom4([4]byte{192, 0, 0, 8})

// HoldRoute sends packets with config.MarkHold into device, which the stream
// process has just opened, and lets it send packets with anybody's source. The
// route vanishes with the device; without it SYNs go their way unoptimised.
func HoldRoute(device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("redirect: hold route: %s: %w", device, err)
	}
	var errs []error
	for _, dst := range []netip.Prefix{anyV4, anyV6} {
		if unsupported(dst.Addr()) {
			continue
		}
		r := netlinkRoute(Route{Table: config.TableHold, Dst: dst, Device: device}, link.Attrs().Index, netip.Addr{})
		errs = append(errs, netlink.RouteReplace(r))
	}
	// The reverse-path check, loose as it is, drops everything that comes in by
	// a device without any address.
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(holdAddr, 32)), Scope: unix.RT_SCOPE_HOST}
	errs = append(errs, netlink.AddrReplace(link, addr))
	conf := "net/ipv4/conf/" + device + "/"
	errs = append(errs, setSysctl(Sysctl{conf + "rp_filter", "2"}), setSysctl(Sysctl{conf + "forwarding", "1"}))
	return errors.Join(errs...)
}

// linkSet is a snapshot of the interfaces.
type linkSet map[string]netlink.Link

func readLinks() (linkSet, error) {
	ls, err := retry(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("redirect: list interfaces: %w", err)
	}
	set := make(linkSet, len(ls))
	for _, l := range ls {
		set[l.Attrs().Name] = l
	}
	return set, nil
}

func (ls linkSet) get(name string) (netlink.Link, error) {
	l, ok := ls[name]
	if !ok {
		return nil, fmt.Errorf("redirect: no device %s yet", name)
	}
	return l, nil
}

func (ls linkSet) setMAC(m DeviceMAC) error {
	l, err := ls.get(m.Device)
	if err != nil || bytes.Equal(l.Attrs().HardwareAddr, m.MAC[:]) {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(l, net.HardwareAddr(m.MAC[:])); err != nil {
		return fmt.Errorf("redirect: set the gateway's MAC on %s: %w", m.Device, err)
	}
	return nil
}

// applyAddrs makes ours exactly the addresses in want: those with our label,
// and all IPv4 addresses of the links themselves.
func (ls linkSet) applyAddrs(want []Addr) error {
	var errs []error
	missing := slices.Clone(want)
	addrs, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("redirect: list addresses: %w", err)
	}
	for _, a := range addrs {
		device := ls.name(a.LinkIndex)
		have := Addr{device, prefixOf(a.IPNet)}
		if i := slices.Index(missing, have); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		} else if a.Label == device+addrLabel && !slices.Contains(want, have) {
			errs = append(errs, netlink.AddrDel(ls[device], &a))
		}
	}
	for _, a := range missing {
		errs = append(errs, ls.addAddr(a))
	}
	return errors.Join(errs...)
}

func (ls linkSet) addAddr(a Addr) error {
	l, err := ls.get(a.Device)
	if err != nil {
		return err
	}
	na := &netlink.Addr{IPNet: ipNet(a.Prefix)}
	if label := a.Device + addrLabel; len(label) < unix.IFNAMSIZ {
		na.Label = label
	}
	if err := netlink.AddrReplace(l, na); err != nil {
		return fmt.Errorf("redirect: put %s on %s: %w", a.Prefix, a.Device, err)
	}
	return nil
}

func (ls linkSet) name(index int) string {
	for name, l := range ls {
		if l.Attrs().Index == index {
			return name
		}
	}
	return ""
}

// applyNeigh writes the neighbour entry of a workload that is here, so that no
// resolution delays its first packet, and removes that of one that is not.
func (ls linkSet) applyNeigh(n Neigh) error {
	l, err := ls.get(n.Device)
	if err != nil {
		return err
	}
	e := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: n.IP.AsSlice(), Family: familyOf(n.IP)}
	have, err := retry(func() ([]netlink.Neigh, error) { return netlink.NeighList(e.LinkIndex, e.Family) })
	if err != nil {
		return fmt.Errorf("redirect: list neighbours of %s: %w", n.Device, err)
	}
	i := slices.IndexFunc(have, func(h netlink.Neigh) bool { return h.IP.Equal(e.IP) })
	switch {
	case !n.Here && i < 0:
		return nil
	case !n.Here:
		return ignoreGone(netlink.NeighDel(e))
	case i >= 0 && bytes.Equal(have[i].HardwareAddr, n.MAC[:]) && have[i].State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE) == 0:
		return nil
	}
	e.State, e.HardwareAddr = unix.NUD_REACHABLE, net.HardwareAddr(n.MAC[:])
	if err := netlink.NeighSet(e); err != nil {
		return fmt.Errorf("redirect: neighbour %s on %s: %w", n.IP, n.Device, err)
	}
	return nil
}

// ownSource returns the lowest address of this host that routes with OwnSource
// may use; invalid when there is none.
func (ls linkSet) ownSource(d Desired) (src netip.Addr) {
	addrs, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return src
	}
	for _, a := range addrs {
		ip := prefixOf(a.IPNet).Addr()
		in := slices.ContainsFunc(d.SourceIn, func(p netip.Prefix) bool { return p.Contains(ip) })
		if in && !slices.Contains(d.SourceNot, ip) && (!src.IsValid() || ip.Less(src)) {
			src = ip
		}
	}
	return src
}

// setSysctl writes a value unless it is there already.
func setSysctl(s Sysctl) error {
	if sysctl(s.Path) == s.Value {
		return nil
	}
	err := os.WriteFile(filepath.Join("/proc/sys", s.Path), []byte(s.Value), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the device is not there yet; Apply says so elsewhere
	}
	if err != nil {
		return fmt.Errorf("redirect: set %s=%s (by hand where /proc/sys is read-only): %w", strings.ReplaceAll(s.Path, "/", "."), s.Value, err)
	}
	return nil
}

// sysctl returns a value, "" when there is none.
func sysctl(path string) string {
	b, err := os.ReadFile(filepath.Join("/proc/sys", path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// retry repeats a dump that the kernel says was interrupted by a change: a few
// times, since the next one may be whole.
func retry[T any](list func() (T, error)) (v T, err error) {
	for range 10 {
		if v, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return v, err
}

// ignoreGone makes success of "it is not there".
func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func prefixOf(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func familyOf(a netip.Addr) int {
	if a.Is6() {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// unsupported reports whether this host has not got the address's family.
func unsupported(a netip.Addr) bool {
	if a.Is4() {
		return false
	}
	return cmp.Or(sysctl("net/ipv6/conf/all/disable_ipv6"), "1") == "1"
}

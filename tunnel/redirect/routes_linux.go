package redirect

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
)

// routeKey is what the kernel tells routes of one protocol apart by.
type routeKey struct {
	table  int
	dst    netip.Prefix
	metric int
}

func keyOf(r Route) routeKey {
	k := routeKey{r.Table, r.Dst, r.Metric}
	if k.table == 0 {
		k.table = unix.RT_TABLE_MAIN
	}
	if k.metric == 0 && r.Dst.Addr().Is6() {
		k.metric = 1024 // what the kernel takes for 0
	}
	return k
}

// ourRoutes returns the routes with our protocol, but not those of the hold
// table, which belong to the stream process.
func ourRoutes() (map[routeKey]netlink.Route, error) {
	have := make(map[routeKey]netlink.Route)
	filter := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rs, err := retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(f, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("redirect: list routes: %w", err)
		}
		for _, r := range rs {
			dst := all(f == netlink.FAMILY_V6)
			if r.Dst != nil {
				dst = prefixOf(r.Dst)
			}
			if r.Table != config.TableHold {
				have[routeKey{r.Table, dst, r.Priority}] = r
			}
		}
	}
	return have, nil
}

// applyRoutes makes our routes exactly those in want. A route that changes is
// replaced in one step, so that a moving workload is never without one.
func (ls linkSet) applyRoutes(want []Route, src netip.Addr) error {
	have, err := ourRoutes()
	if err != nil {
		return err
	}
	var errs []error
	keep := make(map[routeKey]bool, len(want))
	for _, r := range want {
		keep[keyOf(r)] = true
		errs = append(errs, ls.applyRoute(r, have, src))
	}
	for k, r := range have {
		if !keep[k] {
			errs = append(errs, ignoreGone(netlink.RouteDel(&r)))
		}
	}
	return errors.Join(errs...)
}

func (ls linkSet) applyRoute(r Route, have map[routeKey]netlink.Route, src netip.Addr) error {
	if unsupported(r.Dst.Addr()) {
		return nil
	}
	index := 0
	if r.Device != "" {
		l, err := ls.get(r.Device)
		if err != nil {
			return err
		}
		index = l.Attrs().Index
	}
	old, exists := have[keyOf(r)]
	if !exists {
		return addRoute(r, index, src)
	}
	next := netlinkRoute(r, index, src)
	if sameRoute(old, *next) {
		return nil
	}
	if err := netlink.RouteReplace(next); err != nil {
		return fmt.Errorf("redirect: change the route to %s: %w", r.Dst, err)
	}
	return nil
}

// addRoute adds a route where none of ours is. It never replaces somebody
// else's.
func addRoute(r Route, index int, src netip.Addr) error {
	if unsupported(r.Dst.Addr()) {
		return nil
	}
	err := netlink.RouteAdd(netlinkRoute(r, index, src))
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("redirect: another program has a route to %s with metric %d: remove it", r.Dst, r.Metric)
	}
	if err != nil {
		return fmt.Errorf("redirect: add the route to %s: %w", r.Dst, err)
	}
	return nil
}

// netlinkRoute translates r. src is used for routes that ask for a source of
// our own and are of its family.
func netlinkRoute(r Route, index int, src netip.Addr) *netlink.Route {
	k := keyOf(r)
	n := &netlink.Route{
		Table: k.table, Dst: ipNet(r.Dst), Priority: k.metric, Protocol: routeProtocol,
		Type: unix.RTN_UNICAST, LinkIndex: index, Scope: netlink.SCOPE_LINK,
		MTU: r.MTU, MTULock: r.MTU > 0, InitCwnd: r.Window,
	}
	switch r.Kind {
	case RouteUnreachable:
		n.Type, n.Scope = unix.RTN_UNREACHABLE, netlink.SCOPE_UNIVERSE
	case RouteLocal:
		n.Type, n.Scope = unix.RTN_LOCAL, netlink.SCOPE_HOST
	}
	if r.Dst.Addr().Is6() {
		n.Scope = netlink.SCOPE_UNIVERSE
	}
	if r.OwnSource && src.IsValid() && src.Is4() == r.Dst.Addr().Is4() {
		n.Src = src.AsSlice()
	} else if r.Src.IsValid() {
		n.Src = r.Src.AsSlice()
	}
	return n
}

// sameRoute compares what a plan can change between two routes of one key.
func sameRoute(a, b netlink.Route) bool {
	if a.Type != b.Type || a.MTU != b.MTU || a.InitCwnd != b.InitCwnd || !a.Src.Equal(b.Src) {
		return false
	}
	return b.Type != unix.RTN_UNICAST || a.LinkIndex == b.LinkIndex
}

// ruleKey is what tells our rules apart.
type ruleKey struct {
	family, priority, table, dest int
	mark, mask                    uint32
	iif                           string
}

func (r Rule) key(family int) ruleKey {
	k := ruleKey{family: family, priority: r.Priority, table: r.Table, dest: -1, mark: r.Mark, mask: r.Mask, iif: r.Iif}
	if r.Kind == RuleGoto {
		k.dest = r.Goto
	}
	return k
}

// family returns the rule's family; false when this host has not got it.
func (r Rule) family() (int, bool) {
	if r.IPv6 {
		return netlink.FAMILY_V6, !unsupported(anyV6.Addr())
	}
	return netlink.FAMILY_V4, true
}

func ourRules() (map[ruleKey]netlink.Rule, error) {
	have := make(map[ruleKey]netlink.Rule)
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rs, err := retry(func() ([]netlink.Rule, error) { return netlink.RuleList(f) })
		if err != nil {
			return nil, fmt.Errorf("redirect: list ip rules: %w", err)
		}
		for _, r := range rs {
			if r.Protocol != routeProtocol {
				continue
			}
			k := ruleKey{family: f, priority: r.Priority, table: r.Table, dest: r.Goto, mark: r.Mark, iif: r.IifName}
			if r.Mask != nil {
				k.mask = *r.Mask
			}
			have[k] = r
		}
	}
	return have, nil
}

// applyRules makes our ip rules exactly those in want.
func applyRules(want []Rule) error {
	have, err := ourRules()
	if err != nil {
		return err
	}
	var errs []error
	keep := make(map[ruleKey]bool, len(want))
	for _, r := range want {
		f, supported := r.family()
		k := r.key(f)
		keep[k] = true
		if _, ok := have[k]; !ok && supported {
			errs = append(errs, addRule(r, f))
		}
	}
	for k, r := range have {
		if !keep[k] {
			errs = append(errs, ignoreGone(netlink.RuleDel(&r)))
		}
	}
	return errors.Join(errs...)
}

func addRule(r Rule, family int) error {
	n := netlink.NewRule()
	n.Family, n.Priority, n.Protocol = family, r.Priority, routeProtocol
	n.Mark, n.IifName, n.Table = r.Mark, r.Iif, r.Table
	if r.Mask != 0 {
		n.Mask = &r.Mask
	}
	switch r.Kind {
	case RuleGoto:
		n.Goto = r.Goto
	case RuleNop:
		n.Type = actionNop
	}
	if err := netlink.RuleAdd(n); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("redirect: add ip rule %d: %w", r.Priority, err)
	}
	return nil
}

// actionNop is FR_ACT_NOP of linux/fib_rules.h.
const actionNop = 3

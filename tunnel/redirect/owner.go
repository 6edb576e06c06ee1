package redirect

import (
	"net/netip"
	"time"

	"stitch/tunnel/config"
)

// Owner says at which site a workload is.
type Owner struct {
	// Workload is the configured name.
	Workload string
	// Site is where it is now.
	Site string
	// Previous is the site it was at before, "" when it has not moved.
	Previous string
	// Seq orders claims: higher wins. 0 is the configuration's default.
	Seq uint64
	// Fresh says that it came here less than AnchorTime ago, so new UDP tuples
	// still go by way of Previous. It is this site's view and not gossiped.
	Fresh bool
}

// Table is the ownership table of one site. It is pure and not safe for
// concurrent use: its owner is the Manager's run loop.
type Table struct{}

// NewTable returns the table of a site in which each workload is where the
// configuration says.
func NewTable(site string, ws []config.Workload) *Table { return &Table{} }

// Announce notes that a workload was seen on our own LAN.
func (t *Table) Announce(mac config.MAC, ip netip.Addr, now time.Time) (changed []Owner) { return nil }

// Claim merges what a peer says.
func (t *Table) Claim(from string, os []Owner, now time.Time) (changed []Owner) { return nil }

// Owners returns all owners, sorted by workload.
func (t *Table) Owners() []Owner { return nil }

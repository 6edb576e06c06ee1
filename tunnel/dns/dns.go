// Package dns is a small authoritative name server for the services' names.
//
// Each service name is its own zone: it has an SOA, an NS (itself) and one A or
// AAAA record, the virtual address at the site that has the workload now. The
// answer is computed per query, so a move is visible with the next one; the TTL
// says how long resolvers may keep the old one, which goes on working. A known
// name never gets an empty answer to a query of its family as long as the
// lookup knows any address.
//
// What is not ours is REFUSED, what cannot be parsed gets FORMERR (or silence,
// when it is a response or has no header), and no answer over UDP is longer
// than 512 bytes: an answer holds at most one address and one SOA, so a forged
// source gains nothing worth having.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Config is what a Server needs.
type Config struct {
	// Listen are the addresses served, UDP and TCP. Port 0 takes a free one.
	Listen []netip.AddrPort
	// Names are the names of the services, without trailing dot.
	Names []string
	// TTL of the answers; zero means 5 s. Rounded to seconds, at least 1.
	TTL time.Duration
	// Lookup returns the present address of a service; false means unknown
	// just now (SERVFAIL). It must not block and be safe for concurrent use.
	Lookup func(service string) (netip.Addr, bool)
	// Log hears of listeners that fail; nil is silent.
	Log *slog.Logger
}

const (
	defaultTTL = 5 * time.Second
	// negativeTTL is how long "there is no such record" may be kept.
	negativeTTL = 1
	// idleTimeout ends a TCP connection that says nothing.
	idleTimeout = 10 * time.Second
	// maxTCPQueries per TCP connection, then the client has to come back.
	maxTCPQueries = 128
	// shutdownTime is how long Close waits for answers under way.
	shutdownTime = time.Second
)

// Stats are a Server's counters.
type Stats struct {
	// Answered are queries with an address in the answer, Empty those for other
	// record types of our names or other names below them.
	Answered uint64 `json:"answered"`
	Empty    uint64 `json:"empty"`
	// Refused are queries for other names, Malformed messages that are not
	// queries, Failed queries whose service has no address just now.
	Refused   uint64 `json:"refused"`
	Malformed uint64 `json:"malformed"`
	Failed    uint64 `json:"failed"`
}

// Server answers queries.
type Server struct {
	cfg     Config
	ttl     uint32
	zones   map[string]string // lower case and with dot -> name in Config
	servers []*dns.Server
	addrs   []netip.AddrPort
	done    chan struct{}
	close   sync.Once

	answered, empty, refused, malformed, failed atomic.Uint64
}

// Listen binds all addresses; Run serves them. On error nothing stays bound.
func Listen(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	s := &Server{cfg: cfg, ttl: uint32(max(cfg.TTL.Round(time.Second)/time.Second, 1)), zones: make(map[string]string), done: make(chan struct{})}
	for _, n := range cfg.Names {
		s.zones[strings.ToLower(dns.Fqdn(n))] = n
	}
	for _, a := range cfg.Listen {
		if err := s.bind(a); err != nil {
			s.unbind()
			return nil, err
		}
	}
	return s, nil
}

// bind opens both sockets of one address.
func (s *Server) bind(a netip.AddrPort) error {
	pc, err := net.ListenPacket("udp", a.String())
	if err != nil {
		return fmt.Errorf("dns: %w: is another name server running there?", err)
	}
	bound := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	l, err := net.Listen("tcp", bound.String())
	if err != nil {
		pc.Close()
		return fmt.Errorf("dns: %w: is another name server running there?", err)
	}
	s.addrs = append(s.addrs, bound)
	for _, srv := range []*dns.Server{{PacketConn: pc}, {Listener: l, MaxTCPQueries: maxTCPQueries}} {
		srv.Handler, srv.MsgAcceptFunc, srv.MsgInvalidFunc = s, accept, func([]byte, error) { s.malformed.Add(1) }
		srv.ReadTimeout, srv.WriteTimeout = idleTimeout, idleTimeout
		srv.IdleTimeout = func() time.Duration { return idleTimeout }
		s.servers = append(s.servers, srv)
	}
	return nil
}

func (s *Server) unbind() {
	for _, srv := range s.servers {
		if srv.PacketConn != nil {
			srv.PacketConn.Close()
		} else {
			srv.Listener.Close()
		}
	}
}

// Addrs returns the bound addresses, in the order of Config.Listen.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// Run serves until ctx ends and returns its error, or net.ErrClosed after
// Close, or what a listener died of.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, len(s.servers))
	var serving sync.WaitGroup
	for _, srv := range s.servers {
		serving.Go(func() { failed <- srv.ActivateAndServe() })
	}
	defer serving.Wait()
	defer s.Close()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return net.ErrClosed
	case err := <-failed:
		select {
		case <-s.done:
			return net.ErrClosed
		default:
		}
		s.cfg.Log.Error("dns listener failed", "err", err)
		return fmt.Errorf("dns: listener: %w", reason(err))
	}
}

// reason gives a listener that ended without a reason one.
func reason(err error) error {
	if err == nil {
		return errors.New("ended")
	}
	return err
}

// Close stops the server; Run then returns net.ErrClosed. It may be called more
// than once and before Run.
func (s *Server) Close() error {
	s.close.Do(func() {
		close(s.done)
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		for _, srv := range s.servers {
			srv.ShutdownContext(ctx) // an error: not started, or still answering
		}
		s.unbind()
	})
	return nil
}

// Stats returns the counters. Safe for concurrent use.
func (s *Server) Stats() Stats {
	return Stats{s.answered.Load(), s.empty.Load(), s.refused.Load(), s.malformed.Load(), s.failed.Load()}
}

// accept sorts messages out by their header alone.
func accept(h dns.Header) dns.MsgAcceptAction {
	const response, opcode = 1 << 15, 0xf << 11
	switch {
	case h.Bits&response != 0:
		return dns.MsgIgnore
	case h.Bits&opcode != 0:
		return dns.MsgRejectNotImplemented
	case h.Qdcount != 1 || h.Ancount > 0 || h.Nscount > 0 || h.Arcount > 2:
		return dns.MsgReject
	}
	return dns.MsgAccept
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if err := w.WriteMsg(s.answer(q)); err != nil {
		s.cfg.Log.Debug("dns answer", "err", err)
	}
}

// answer computes the answer to one query. It is pure but for Lookup and the
// counters.
func (s *Server) answer(q *dns.Msg) *dns.Msg {
	a := new(dns.Msg)
	if len(q.Question) != 1 {
		s.malformed.Add(1)
		return a.SetRcode(q, dns.RcodeFormatError)
	}
	a.SetReply(q)
	a.Compress = true
	question := q.Question[0]
	zone, name, ok := s.zone(question.Name)
	if !ok || question.Qclass != dns.ClassINET {
		s.refused.Add(1)
		return a.SetRcode(q, dns.RcodeRefused)
	}
	a.Authoritative = true
	if !strings.EqualFold(question.Name, zone) {
		s.empty.Add(1)
		a.SetRcode(q, dns.RcodeNameError)
		a.Authoritative, a.Ns = true, []dns.RR{s.soa(zone)}
		return a
	}
	opt := q.IsEdns0()
	if opt != nil {
		a.SetEdns0(dns.MinMsgSize, false)
	}
	if opt != nil && opt.Version() != 0 {
		s.malformed.Add(1)
		a.Rcode = dns.RcodeBadVers
		return a
	}
	s.records(a, question, zone, name)
	return a
}

// zone returns the zone that holds a name: the name itself, or a service name
// that it is below.
func (s *Server) zone(qname string) (zone, name string, ok bool) {
	qname = strings.ToLower(qname)
	for off, end := 0, false; !end; off, end = dns.NextLabel(qname, off) {
		if name, ok = s.zones[qname[off:]]; ok {
			return qname[off:], name, true
		}
	}
	return "", "", false
}

// records fills in the answer for a service's own name.
func (s *Server) records(a *dns.Msg, question dns.Question, zone, name string) {
	head := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: s.ttl}
	switch question.Qtype {
	case dns.TypeSOA:
		a.Answer = []dns.RR{s.soa(question.Name)}
	case dns.TypeNS:
		a.Answer = []dns.RR{&dns.NS{Hdr: head, Ns: zone}}
	case dns.TypeA, dns.TypeAAAA:
		addr, ok := s.cfg.Lookup(name)
		switch {
		case !ok:
			s.failed.Add(1)
			a.Rcode = dns.RcodeServerFailure
			return
		case addr.Is4() && question.Qtype == dns.TypeA:
			a.Answer = []dns.RR{&dns.A{Hdr: head, A: addr.AsSlice()}}
		case addr.Is6() && question.Qtype == dns.TypeAAAA:
			a.Answer = []dns.RR{&dns.AAAA{Hdr: head, AAAA: addr.AsSlice()}}
		}
	}
	if len(a.Answer) > 0 {
		s.answered.Add(1)
		return
	}
	s.empty.Add(1)
	a.Ns = []dns.RR{s.soa(zone)}
}

// soa returns the minimal SOA of a zone. Its serial does not matter: nobody
// transfers the zone.
func (s *Server) soa(zone string) *dns.SOA {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns:  zone, Mbox: ".", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}
}

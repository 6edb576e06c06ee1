package stream

const (
	// sniffBytes is how far into a direction an encrypted part may begin: TLS
	// that is started inside another protocol (STARTTLS of mail, LDAP and
	// databases, NBD's and QEMU's own negotiation) begins within it.
	sniffBytes = 16 << 10
	// sniffNeed is how many bytes at the beginning of a part tell what it is.
	sniffNeed = 6
)

// sniffer finds out whether what one host sends is encrypted, from the bytes
// it begins with. Such a stream is only accelerated: it never repeats and does not
// compress, so the work would be wasted, its bytes would push useful ones out of
// the history, and the few sizes that do tell something (certificates, tickets)
// stay out of reach. It knows TLS (RFC 8446, and back to 1.0) in either
// direction, and SSH (RFC 4253), whose few plain bytes at the beginning are not
// worth a history either. Pure; the zero value is ready.
//
// A part begins where the host's application wrote: at the start, or at the
// start of a later read within sniffBytes. A direction that begins byte by byte
// is followed until it has said enough.
type sniffer struct {
	seen   int
	head   []byte // of a part that may yet be one
	array  [sniffNeed]byte
	opaque bool
}

// Opaque takes the next bytes, which it borrows, and reports whether they and
// what follows are encrypted.
func (s *sniffer) Opaque(b []byte) bool {
	if s.opaque || s.seen >= sniffBytes || len(b) == 0 {
		return s.opaque
	}
	s.seen += len(b)
	if len(s.head) > 0 { // goes on with a part of which too little was seen
		rest := append(s.array[:len(s.head)], b[:min(len(b), sniffNeed-len(s.head))]...)
		if s.judge(rest) {
			return s.opaque
		}
	}
	s.judge(b[:min(len(b), sniffNeed)])
	return s.opaque
}

// judge looks at the beginning of a part; true: it is one, or may be one.
func (s *sniffer) judge(b []byte) bool {
	switch whole, maybe := encrypted(b); {
	case whole:
		s.opaque = true
	case maybe:
		s.head = s.array[:copy(s.array[:], b)]
		return true
	default:
		s.head = nil
	}
	return s.opaque
}

// encrypted reports whether b, up to sniffNeed bytes, begins an encrypted
// part, or may once more of it is there.
func encrypted(b []byte) (is, maybe bool) {
	tls, ssh := true, true
	for i, c := range b {
		tls = tls && tlsByte(i, c)
		ssh = ssh && (i >= len(sshBanner) || c == sshBanner[i])
	}
	long := len(b) >= sniffNeed
	return long && tls || ssh && len(b) >= len(sshBanner), (tls || ssh) && len(b) > 0
}

// sshBanner begins the identification of both sides of SSH.
const sshBanner = "SSH-"

// tlsByte reports whether c may be byte i of a record with a ClientHello or a
// ServerHello: type 22, version 3.0 to 3.4, length, handshake type 1 or 2.
func tlsByte(i int, c byte) bool {
	switch i {
	case 0:
		return c == 22
	case 1:
		return c == 3
	case 2:
		return c <= 4
	case 3:
		return c <= 0x40 // 2^14 bytes
	case 5:
		return c == 1 || c == 2
	}
	return true
}

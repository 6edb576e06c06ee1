package wg

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"stitch/tunnel/config"
)

// stockKeepalive keeps the session with a stock peer alive, in seconds: the
// state of such a link is known from its handshakes only.
const stockKeepalive = 25

// uapi returns the configuration text of wireguard-go for a link. The peer may
// send from and receive at any address: what passes is decided by routing and
// filters, not here.
func uapi(cfg *Config, endpoint string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%s\nlisten_port=%d\nreplace_peers=true\n", hexKey(cfg.PrivateKey), cfg.ListenPort)
	fmt.Fprintf(&b, "public_key=%s\nprotocol_version=1\n", hexKey(cfg.PublicKey))
	if !cfg.PresharedKey.IsZero() {
		fmt.Fprintf(&b, "preshared_key=%s\n", hexKey(cfg.PresharedKey))
	}
	if endpoint != "" {
		fmt.Fprintf(&b, "endpoint=%s\n", endpoint)
	}
	if cfg.Stock {
		fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", stockKeepalive)
	}
	b.WriteString("replace_allowed_ips=true\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n")
	return b.String()
}

// uapiEndpoint returns the text that changes the peer's endpoint.
func uapiEndpoint(peer config.Key, endpoint string) string {
	return fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hexKey(peer), endpoint)
}

func hexKey(k config.Key) string { return hex.EncodeToString(k[:]) }

// peerInfo is what wireguard-go tells about the peer.
type peerInfo struct {
	endpoint  string
	handshake time.Time
}

// parseInfo reads the answer of IpcGet.
func parseInfo(text string) peerInfo {
	var info peerInfo
	var sec, nsec int64
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "endpoint":
			info.endpoint = value
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	if sec != 0 || nsec != 0 {
		info.handshake = time.Unix(sec, nsec)
	}
	return info
}

// deviceLogger passes wireguard-go's errors to the log, each kind at most once
// in ten seconds, and the rest at debug level.
func deviceLogger(log *slog.Logger) *device.Logger {
	var mu sync.Mutex
	last := make(map[string]time.Time) // by format, of which there are few
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			if log.Enabled(context.Background(), slog.LevelDebug) {
				log.Debug("wireguard: " + fmt.Sprintf(format, args...))
			}
		},
		Errorf: func(format string, args ...any) {
			now := time.Now()
			mu.Lock()
			quiet := now.Sub(last[format]) < 10*time.Second
			if !quiet {
				last[format] = now
			}
			mu.Unlock()
			if !quiet {
				log.Warn("wireguard: " + fmt.Sprintf(format, args...))
			}
		},
	}
}

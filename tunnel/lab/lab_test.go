package lab

import (
	"context"
	"os"
	"os/signal"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// daemonArg makes the test binary play the emulator's process.
const daemonArg = "lab-wan-daemon"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == daemonArg {
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		defer stop()
		if err := RunWAN(ctx, os.Args[2]); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// network returns options of a lab without agents.
func network(name string, rate int64, rtt time.Duration) Options {
	return Options{Name: name, Rate: rate, RTT: rtt, NoAgents: true, WANDaemon: []string{os.Args[0], daemonArg}}
}

func TestUpDown(t *testing.T) {
	l := Start(t, network("stlab", 100e6, 40*time.Millisecond))
	out, err := l.Command("e1", "ping", "-c3", "-i0.2", "198.51.100.20").CombinedOutput()
	t.Logf("%s %v", out, err)
	out, err = l.Command("h1", "ping", "-c3", "-i0.2", "192.0.2.7").CombinedOutput()
	t.Logf("%s %v", out, err)
	tr, err := l.WAN().Counters(t.Context())
	t.Logf("%+v %v", tr, err)
}

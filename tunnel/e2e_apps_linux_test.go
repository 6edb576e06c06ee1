package tunnel_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stitch/tunnel/control"
	"stitch/tunnel/lab"
	"stitch/tunnel/stream"
)

// need skips the test if a program is not installed; `make test` installs all.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("the program %s is not installed: sudo scripts/setup test", p)
		}
	}
}

// serve starts a server on a host, waits until it listens on a TCP port, and
// ends it with the test. Its output is in the log of a test that fails.
func serve(t *testing.T, l *lab.Lab, host, dir string, port int, args ...string) {
	t.Helper()
	cmd := l.Command(host, args[0], args[1:]...)
	out, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if text, _ := os.ReadFile(out.Name()); t.Failed() {
			t.Logf("%s: %s", strings.Join(args, " "), text)
		}
		out.Close()
	})
	eventually(t, 20*time.Second, fmt.Sprintf("%s listens on port %d", args[0], port), func() bool {
		return strings.TrimSpace(run(t, l, host, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port))) != ""
	})
}

// carriage asks an edge again and again how it carries the connections to addr,
// as `stitch flows` does. The answers so far, such as "full" or "packets 3", the
// kind and the number of the reason, are what the function returned returns. An
// answer counts that is given twice: between the kernel and the agent a
// connection's first packet is nobody's.
func carriage(t *testing.T, l *lab.Lab, edge, addr string) func() []string {
	client := control.NewClient(filepath.Join(l.Options().Dir, edge, control.StreamSocket))
	var mu sync.Mutex
	seen := map[string]bool{}
	ctx := t.Context()
	go func() {
		last := map[string]bool{}
		for ctx.Err() == nil {
			var list stream.FlowList
			if doc, err := client.Flows(ctx); err == nil && json.Unmarshal(doc, &list) == nil {
				now := map[string]bool{}
				mu.Lock()
				for _, f := range list.Flows {
					if f.Dst.String() == addr && f.Proto == syscall.IPPROTO_TCP {
						answer := strings.TrimSuffix(fmt.Sprintf("%s %d", f.Carried, f.Reason), " 0")
						now[answer+f.Src.String()] = true
						seen[answer] = seen[answer] || last[answer+f.Src.String()]
					}
				}
				mu.Unlock()
				last = now
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		maps.DeleteFunc(seen, func(_ string, twice bool) bool { return !twice })
		return slices.Sorted(maps.Keys(seen))
	}
}

// application is a real program on both sides of a WAN.
type application struct {
	name string
	// at is where its server listens, near the edge at its clients' site.
	near, far, at string
	port          int
	// carried is what `stitch flows` has to say at the near edge.
	carried string
	run     func(t *testing.T, l *lab.Lab, port int)
}

// TestE2EApplications: programs people have, unchanged, through the tunnel. What
// they received is compared with what was sent, and their connections must have
// been carried as streams. Control: the same on a port that no rule covers
// arrives too, and is seen as packets.
func TestE2EApplications(t *testing.T) {
	l := world(t, lab.Options{Rate: 200e6, RTT: 20 * time.Millisecond, Streams: true})
	const h2, d1 = "10.2.0.10", "10.1.1.20"
	encrypted := fmt.Sprintf("accelerate %d", stream.Encrypted)
	for _, a := range []application{
		{"SSH", "e1", "e2", h2, 4522, encrypted, overSSH},
		{"TLS", "e1", "e2", h2, 4443, encrypted, overTLS},
		{"HTTP", "e1", "e2", h2, 4480, "full", overHTTP},
		{"rsync", "e1", "e2", h2, 4873, "full", overRsync},
		{"iperf3", "e1", "e2", h2, 4520, "full", overIperf},
		{"PostgreSQL", "e2", "e1", d1, 4432, "full", overPostgres},
		{"control", "e1", "e2", h2, 8480, fmt.Sprintf("packets %d", stream.NoStreamRule), overHTTP},
	} {
		t.Run(a.name, func(t *testing.T) {
			check := carried(t, l, a.near, a.far, fmt.Sprintf("%s:%d", a.at, a.port), a.carried)
			a.run(t, l, a.port)
			check()
		})
	}
}

// carried watches how both edges carry the connections to addr from now on. The
// function returned wants the near one to have said so, and neither of them the
// contrary.
func carried(t *testing.T, l *lab.Lab, near, far, addr, want string) (check func()) {
	atNear, atFar := carriage(t, l, near, addr), carriage(t, l, far, addr)
	return func() {
		t.Helper()
		packets := isPackets(want)
		if got := atNear(); !slices.Contains(got, want) || slices.ContainsFunc(got, isPackets) != packets {
			t.Errorf("%s carried the connections as %v, want %s", near, got, want)
		}
		if got := atFar(); len(got) == 0 || slices.ContainsFunc(got, isPackets) != packets {
			t.Errorf("%s carried the connections as %v", far, got)
		}
	}
}

func isPackets(carried string) bool { return strings.HasPrefix(carried, "packets") }

// costs runs f and returns how many bytes crossed the WAN meanwhile.
func costs(t *testing.T, l *lab.Lab, f func()) uint64 {
	t.Helper()
	before := wanBytes(t, l)
	f()
	return wanBytes(t, l) - before
}

// write makes a file.
func write(t *testing.T, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// same fails the test unless the file has data in it.
func same(t *testing.T, path string, data []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%s: %d bytes, %v; want the %d that were sent", filepath.Base(path), len(got), err, len(data))
	}
}

// overSSH sends a file to a server and fetches it, with OpenSSH from Dropbear.
func overSSH(t *testing.T, l *lab.Lab, port int) {
	need(t, "ssh", "ssh-keygen", "dropbear", "dropbearkey")
	root, err := user.LookupId("0")
	if err != nil {
		t.Fatal(err)
	}
	dir, data := t.TempDir(), mix(6<<20, 51)
	path := func(name string) string { return filepath.Join(dir, name) }
	run(t, l, "h1", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path("key"))
	run(t, l, "h1", "dropbearkey", "-t", "ed25519", "-f", path("host"))
	for line := range strings.Lines(run(t, l, "h1", "dropbearkey", "-y", "-f", path("host"))) {
		if strings.HasPrefix(line, "ssh-ed25519") {
			write(t, path("known"), []byte(fmt.Sprintf("[10.2.0.10]:%d %s", port, line)), 0o600)
		}
	}
	public, err := os.ReadFile(path("key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, path("home/.ssh/authorized_keys"), public, 0o600)
	if err := os.Chmod(path("home/.ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	// The server's own view of the files has another home.
	const server = `mount --bind "$1" "$2" && exec dropbear -F -E -s -W 1048576 -r "$3" -p "$4" -P "$5"`
	serve(t, l, "h2", dir, port, "sh", "-c", server, "sh", path("home"), root.HomeDir, path("host"), fmt.Sprintf("10.2.0.10:%d", port), path("pid"))
	ssh := func(command string, in []byte) []byte {
		t.Helper()
		cmd := l.Command("h1", "ssh", "-F", "none", "-i", path("key"), "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile="+path("known"),
			"-o", "BatchMode=yes", "-p", strconv.Itoa(port), root.Username+"@10.2.0.10", command)
		cmd.Stdin = bytes.NewReader(in)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("ssh: %v: %s", err, err.(*exec.ExitError).Stderr)
		}
		return out
	}
	if sum := ssh("tee sent | sha256sum", data); !strings.HasPrefix(string(sum), fmt.Sprintf("%x ", sha256.Sum256(data))) {
		t.Errorf("the server got something else: %s", sum)
	}
	same(t, path("home/sent"), data)
	if back := ssh("cat sent", nil); !bytes.Equal(back, data) {
		t.Errorf("%d bytes came back, want the %d that were sent", len(back), len(data))
	}
}

// overTLS fetches a file with curl from openssl's server.
func overTLS(t *testing.T, l *lab.Lab, port int) {
	need(t, "openssl", "curl")
	dir, data := t.TempDir(), mix(8<<20, 52)
	write(t, filepath.Join(dir, "file"), data, 0o600)
	key, cert := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	run(t, l, "h2", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
		"-subj", "/CN=far", "-addext", "subjectAltName=IP:10.2.0.10", "-keyout", key, "-out", cert)
	serve(t, l, "h2", dir, port, "openssl", "s_server", "-quiet", "-accept", fmt.Sprintf("10.2.0.10:%d", port), "-cert", cert, "-key", key, "-WWW")
	got := filepath.Join(t.TempDir(), "got")
	run(t, l, "h1", "curl", "-sSf", "--cacert", cert, "-o", got, fmt.Sprintf("https://10.2.0.10:%d/file", port))
	same(t, got, data)
}

// overHTTP fetches a file twice with curl from Busybox's server. As a stream it
// costs next to nothing the second time.
func overHTTP(t *testing.T, l *lab.Lab, port int) {
	need(t, "busybox", "curl")
	dir, data := t.TempDir(), mix(8<<20, uint64(port))
	write(t, filepath.Join(dir, "file"), data, 0o644)
	serve(t, l, "h2", dir, port, "busybox", "httpd", "-f", "-p", fmt.Sprintf("10.2.0.10:%d", port), "-h", dir)
	got := filepath.Join(t.TempDir(), "got")
	fetch := func() {
		run(t, l, "h1", "curl", "-sSf", "-o", got, fmt.Sprintf("http://10.2.0.10:%d/file", port))
		same(t, got, data)
	}
	first, again := costs(t, l, fetch), costs(t, l, fetch)
	t.Logf("%d bytes took %d on the WAN, %d again", len(data), first, again)
	if stream := port < 6000; stream != (again < first/10) || stream && first >= uint64(len(data)) {
		t.Errorf("%d bytes took %d on the WAN, then %d", len(data), first, again)
	}
}

// overRsync fetches a tree, its next version over it, and that once more to an
// empty directory, from a daemon.
func overRsync(t *testing.T, l *lab.Lab, port int) {
	need(t, "rsync")
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	var conf strings.Builder
	conf.WriteString("reverse lookup = no\n")
	for version := range 2 {
		name := fmt.Sprintf("v%d", version)
		fmt.Fprintf(&conf, "[%s]\npath = %s\nuse chroot = no\nuid = 0\ngid = 0\n", name, path(name))
		for i := range 60 {
			data := mix(64<<10+i*1000, uint64(100+i))
			if version == 1 && i%3 == 0 {
				data = slices.Insert(data, len(data)/2, []byte("an edit in the middle of a file\n")...)
			}
			if i != 7*version+3 { // one comes, one goes
				write(t, path(fmt.Sprintf("%s/dir%d/file%02d", name, i%5, i)), data, 0o644)
			}
		}
	}
	write(t, path("rsyncd.conf"), []byte(conf.String()), 0o600)
	serve(t, l, "h2", dir, port, "rsync", "--daemon", "--no-detach", "--address=10.2.0.10", fmt.Sprintf("--port=%d", port), "--config="+path("rsyncd.conf"))
	fetch := func(version, to string) uint64 {
		return costs(t, l, func() {
			run(t, l, "h1", "rsync", "-a", "--delete", fmt.Sprintf("rsync://10.2.0.10:%d/%s/", port, version), path(to)+"/")
			if want, got := tree(t, path(version)), tree(t, path(to)); !maps.Equal(want, got) || len(got) != 59 {
				t.Errorf("%s: %d files here, %d there, or not the same in them", version, len(got), len(want))
			}
		})
	}
	first, next, whole := fetch("v0", "here"), fetch("v1", "here"), fetch("v1", "empty")
	t.Logf("on the WAN: first %d bytes, the next version %d, that whole %d", first, next, whole)
	if next*5 > first || whole*5 > first {
		t.Errorf("on the WAN: first %d bytes, the next version %d, that whole %d", first, next, whole)
	}
}

// tree is what files a directory has, by name.
func tree(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	files := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = sha256.Sum256(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// overIperf sends over four connections at once, there and back.
func overIperf(t *testing.T, l *lab.Lab, port int) {
	need(t, "iperf3")
	serve(t, l, "h2", t.TempDir(), port, "iperf3", "-s", "-B", "10.2.0.10", "-p", strconv.Itoa(port))
	for _, way := range [][]string{nil, {"-R"}} {
		before := streamsTotal(t, l, "e1")
		args := append([]string{"iperf3", "-c", "10.2.0.10", "-p", strconv.Itoa(port), "-n", "96M", "-P", "4", "-J"}, way...)
		var result struct {
			End struct {
				Sent     struct{ Bytes int64 } `json:"sum_sent"`
				Received struct{ Bytes int64 } `json:"sum_received"`
			}
		}
		if err := json.Unmarshal([]byte(run(t, l, "h1", args...)), &result); err != nil {
			t.Fatal(err)
		}
		sent, received := result.End.Sent.Bytes, result.End.Received.Bytes
		// The client says when it has sent enough, and the server stops counting.
		if sent < 96<<20 || received > sent || received < sent/2 {
			t.Errorf("%v: %d bytes sent, %d received", way, sent, received)
		}
		if n := streamsTotal(t, l, "e1") - before; n != 5 {
			t.Errorf("%v: %d streams, want four and one that controls them", way, n)
		}
	}
}

// overPostgres copies a database to a standby at the other site, streams what
// changes, and takes the base backup a second time.
func overPostgres(t *testing.T, l *lab.Lab, port int) {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	_, err := user.Lookup("postgres")
	if len(bins) == 0 || err != nil {
		t.Skip("the PostgreSQL server is not installed: sudo scripts/setup test")
	}
	dir, err := os.MkdirTemp("", "stitch-pg-") // a directory of T is root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	as := func(name string, args ...string) []string {
		user := []string{"setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", filepath.Join(bins[len(bins)-1], name)}
		return append(user, args...)
	}
	run(t, l, "d1", as("initdb", "-D", path("primary"), "-N", "-A", "trust", "-E", "UTF8", "--locale=C")...)
	write(t, path("primary/pg_hba.conf"), []byte("host all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n"), 0o644)
	server := func(host, data, addr string, port int) {
		t.Helper()
		serve(t, l, host, dir, port, as("postgres", "-D", path(data), "-c", "listen_addresses="+addr, "-c", fmt.Sprintf("port=%d", port),
			"-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "jit=off", "-c", "wal_level=replica")...)
	}
	server("d1", "primary", "10.1.1.20", port)
	query := func(host, addr string, port int, q string) string {
		t.Helper()
		args := as("psql", "-h", addr, "-p", strconv.Itoa(port), "-d", "postgres", "-XAtqc", q)
		out, err := l.Command(host, args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%v: %s", err, out) // a server that starts refuses
		}
		return strings.TrimSpace(string(out))
	}
	atPrimary := func(q string) string { return query("d1", "10.1.1.20", port, q) }
	eventually(t, 20*time.Second, "the primary answers", func() bool { return atPrimary("select 1") == "1" })
	atPrimary("create table t as select i, md5(i::text) a, random() b from generate_series(1, 40000) i")
	backup := func(to string) uint64 {
		return costs(t, l, func() {
			run(t, l, "h2", as("pg_basebackup", "-h", "10.1.1.20", "-p", strconv.Itoa(port), "-D", path(to), "-X", "stream", "-R", "-c", "fast", "-N")...)
		})
	}
	first, again := backup("standby"), backup("again")
	t.Logf("a base backup took %d bytes on the WAN, then %d", first, again)
	if again*10 > first {
		t.Errorf("a base backup took %d bytes on the WAN, then %d", first, again)
	}
	server("h2", "standby", "10.2.0.10", 7432)
	const digest = "select count(*) || md5(string_agg(a || b::text, '' order by i)) from t"
	inStep := func(what string) {
		t.Helper()
		want := atPrimary(digest)
		if len(want) < 33 || strings.Contains(want, "exit") {
			t.Fatal("the primary does not answer:", want)
		}
		eventually(t, 20*time.Second, what, func() bool { return query("h2", "10.2.0.10", 7432, digest) == want })
	}
	inStep("the standby has what was in the backup")
	atPrimary("insert into t select i, md5(i::text), random() from generate_series(40001, 60000) i; update t set b = -b where i % 7 = 0")
	inStep("the standby has what changed since")
}

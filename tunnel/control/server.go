package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of the server: a client that is slow, large or one of very many is
// cut off; none of them can hold memory or the data path.
const (
	maxBody        = 1 << 20
	maxHeader      = 16 << 10
	maxConns       = 1024
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
	idleTimeout    = 30 * time.Second

	// Host is the host name our own client asks for.
	Host = "stitch"
)

// hosts are the names served: no name that somebody could own in DNS.
var hosts = []string{Host, "agent", "localhost"}

// ErrInUse is returned by Listen when another process serves the socket.
var ErrInUse = errors.New("another agent is already running")

// Config is what a Server needs.
type Config struct {
	// Path of the socket; its directory must exist.
	Path string
	// Status answers GET /v1/status. It is called concurrently and must return
	// soon after its context is done.
	Status func(context.Context) Status
	// Flows answers GET /v1/flows with a stream.FlowList; nil: not found.
	Flows func() json.RawMessage
	// Seed answers POST /v1/seed; nil: not found.
	Seed SeedFunc
	// Bench answers POST /v1/bench, Train POST /v1/train; nil: not found.
	Bench BenchFunc
	Train TrainFunc
	// Log hears of refused clients; nil is silent.
	Log *slog.Logger
}

// Server answers on one socket. It is safe for concurrent use.
type Server struct {
	http     *http.Server
	listener net.Listener
	cancel   context.CancelFunc
}

// Listen makes the socket and returns a server that Run starts. A socket that
// a dead process left behind is replaced; one that is served gives ErrInUse,
// and then nothing was changed.
func Listen(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l, err := listenUnix(cfg.Path)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout/2)
		defer cancel()
		reply(w, cfg.Status(ctx).full())
	})
	if cfg.Flows != nil {
		mux.HandleFunc("GET /v1/flows", func(w http.ResponseWriter, _ *http.Request) { reply(w, cfg.Flows()) })
	}
	if cfg.Seed != nil {
		mux.HandleFunc("POST /v1/seed", serveSeed(cfg.Seed))
	}
	// Streams live on when their request has been answered, but not longer than
	// the server.
	ctx, cancel := context.WithCancel(context.Background())
	if cfg.Bench != nil {
		mux.HandleFunc("POST /v1/bench", serveBench(ctx, cfg.Bench))
	}
	if cfg.Train != nil {
		mux.HandleFunc("POST /v1/train", serveTrain(cfg.Train))
	}
	return &Server{
		cancel:   cancel,
		listener: limited{l, make(chan struct{}, maxConns)},
		http: &http.Server{
			Handler: guard{mux, cfg.Log},
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				return context.WithValue(ctx, peerKey{}, c.(*peerConn).cred)
			},
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       requestTimeout,
			WriteTimeout:      2 * requestTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		},
	}, nil
}

// Run serves until ctx is done or Close is called, then removes the socket and
// returns nil.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Close stops the server, cutting off requests under way, and removes the socket.
func (s *Server) Close() error {
	s.cancel()
	return errors.Join(s.http.Close(), ignoreClosed(s.listener.Close()))
}

// ignoreClosed drops the error of a listener that the server closed already.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// listenUnix makes the socket file.
func listenUnix(path string) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeStale removes a socket nobody serves.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is not a socket: remove it or choose another run_dir", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%s: %w: stop it first", path, ErrInUse)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s: %w: remove it if no agent runs", path, err)
	}
	return os.Remove(path)
}

// limited is a listener that notes who connects and serves at most maxConns at
// once; more are closed at once, the newest first.
type limited struct {
	*net.UnixListener
	slots chan struct{}
}

// Accept returns the next connection, a *peerConn.
func (l limited) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			cred, _ := credentials(c) // none: guard refuses
			return &peerConn{UnixConn: c, cred: cred, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_ = c.Close()
		}
	}
}

// peerConn is a connection and who opened it.
type peerConn struct {
	*net.UnixConn
	cred    *unix.Ucred // nil when the kernel did not say
	release func()
}

// Close closes the connection and gives its place to another.
func (c *peerConn) Close() error {
	defer c.release()
	return c.UnixConn.Close()
}

// peerKey is where the credentials are in a request's context.
type peerKey struct{}

// credentials asks the kernel who opened the other end of a socket.
func credentials(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	errCtl := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, errCtl)
}

// allowed reports whether a process may use an agent that runs as uid and gid.
func allowed(cred *unix.Ucred, uid, gid int) bool {
	return cred != nil && (cred.Uid == 0 || int(cred.Uid) == uid || int(cred.Gid) == gid)
}

// guard refuses what no client of ours sends before the handler sees it.
type guard struct {
	next http.Handler
	log  *slog.Logger
}

// ServeHTTP checks the caller, the host and the size of the body.
func (g guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	cred, _ := r.Context().Value(peerKey{}).(*unix.Ucred)
	switch {
	case !allowed(cred, os.Geteuid(), os.Getegid()):
		g.refuse(w, r, cred, "this user may not use the agent: run as root")
	case !slices.Contains(hosts, r.Host):
		g.refuse(w, r, cred, "unknown host: use http://"+Host+"/")
	case r.Header.Get("Origin") != "":
		g.refuse(w, r, cred, "requests of web pages are refused")
	default:
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		g.next.ServeHTTP(w, r)
	}
}

// refuse answers 403 and leaves a line for the audit.
func (g guard) refuse(w http.ResponseWriter, r *http.Request, cred *unix.Ucred, why string) {
	uid, pid := int64(-1), int32(-1)
	if cred != nil {
		uid, pid = int64(cred.Uid), cred.Pid
	}
	g.log.Warn("control request refused", "uid", uid, "pid", pid, "method", r.Method, "why", why)
	http.Error(w, why, http.StatusForbidden)
}

// reply writes v as JSON.
func reply(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "the status cannot be written as JSON: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, string(data)+"\n")
}

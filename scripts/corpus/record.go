package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sync/errgroup"

	"stitch/scripts/machine"
)

const (
	// maxConns bounds the connections of one recording.
	maxConns = 16
	// maxRecord bounds the file of each.
	maxRecord = 4 << 30
)

// recorder passes connections on to a Unix socket and keeps what their clients
// say, each in a file of its own. What servers answer is passed on, not kept.
type recorder struct {
	target string
	file   func(n int) string
	limit  int64

	listener net.Listener
	group    *errgroup.Group
	ctx      context.Context
	files    []string // of the goroutine that accepts, until the group has ended
}

// record listens on socket until close. The nth connection, from 0, goes to
// file(n). ctx ends the connections.
func record(ctx context.Context, socket, target string, limit int64, file func(n int) string) (*recorder, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	r := &recorder{target: target, file: file, limit: limit, listener: l}
	r.group, r.ctx = errgroup.WithContext(ctx)
	r.group.Go(r.accept)
	return r, nil
}

// close waits until the connections have ended and returns their files in the
// order of the connections.
func (r *recorder) close() ([]string, error) {
	_ = r.listener.Close()
	err := r.group.Wait()
	return r.files, err
}

// accept dials each server before it takes the next client: QEMU tells the
// connections of a migration apart by their order.
func (r *recorder) accept() error {
	for {
		client, err := r.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(r.files) == maxConns {
			client.Close()
			return fmt.Errorf("more than %d connections to record", maxConns)
		}
		var d net.Dialer
		server, err := d.DialContext(r.ctx, "unix", r.target)
		if err != nil {
			client.Close()
			return err
		}
		name := r.file(len(r.files))
		r.files = append(r.files, name)
		r.group.Go(func() error { return r.relay(client.(*net.UnixConn), server.(*net.UnixConn), name) })
	}
}

// relay carries one connection until both sides have ended it.
func (r *recorder) relay(client, server *net.UnixConn, name string) error {
	defer client.Close()
	defer server.Close()
	stop := context.AfterFunc(r.ctx, func() { client.Close(); server.Close() })
	defer stop()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()

	answers := make(chan struct{})
	go func() {
		defer close(answers)
		_, _ = io.Copy(client, server) // a client that has gone takes no more: no error
		_ = client.CloseWrite()
	}()
	n, err := io.Copy(io.MultiWriter(f, server), io.LimitReader(client, r.limit+1))
	if n > r.limit {
		err = machine.ErrTooLong
	}
	if err != nil {
		server.Close()
		<-answers
		return fmt.Errorf("record %s: %w", name, err)
	}
	_ = server.CloseWrite()
	<-answers
	return f.Close()
}

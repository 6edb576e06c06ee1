package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"stitch/scripts/machine"
	"stitch/scripts/source"
	"stitch/tunnel/lab"
)

const (
	rsyncPort    = 4873
	postgresPort = 4432
	serverWait   = 30 * time.Second
)

// server starts a program on a host and waits until it answers at addr. The
// function returned ends it; so does the end of ctx.
func server(ctx context.Context, l *lab.Lab, host, addr string, args ...string) (end func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := l.CommandContext(ctx, host, args[0], args[1:]...)
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	end = func() { cancel(); _ = cmd.Wait() }
	ns, err := l.Namespace(host)
	for limit := time.Now().Add(serverWait); err == nil; time.Sleep(50 * time.Millisecond) {
		failed := ns.Do(func() error {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
		if failed == nil {
			return end, nil
		}
		if time.Now().After(limit) || ctx.Err() != nil {
			err = fmt.Errorf("%s does not answer: %w", args[0], failed)
		}
	}
	end()
	return nil, err
}

// trees copies a source tree, and then its next version over it.
func (v *versus) trees(ctx context.Context) error {
	ways := v.wanted("rsync", way{stitch, "rsync", nil}, way{vxlan, "rsync", nil}, way{vxlan, "rsync -z (zstd)", []string{"-z", "--zc=zstd"}})
	if len(ways) == 0 {
		return nil
	}
	var trees [2]source.Tree
	for i, version := range source.Versions {
		v.Say("fetching %s %s", source.Module, version)
		var err error
		if trees[i], err = source.Download(ctx, filepath.Join(filepath.Dir(v.work), "source"), version); err != nil {
			return err
		}
	}
	for _, s := range ways {
		err := v.within(ctx, s.carrier, v.wan, func(l *lab.Lab) error {
			to := filepath.Join(v.work, "tree")
			defer os.RemoveAll(to)
			conf := filepath.Join(v.work, "rsyncd.conf")
			text := fmt.Sprintf("reverse lookup = no\n[tree]\npath = %s\nuse chroot = no\nread only = no\nuid = 0\ngid = 0\n", to)
			if err := errors.Join(os.MkdirAll(to, 0o755), os.WriteFile(conf, []byte(text), 0o600)); err != nil {
				return err
			}
			addr := fmt.Sprintf("%s:%d", s.to.addr, rsyncPort)
			end, err := server(ctx, l, s.to.host, addr, "rsync", "--daemon", "--no-detach",
				"--address="+s.to.addr, fmt.Sprintf("--port=%d", rsyncPort), "--config="+conf)
			if err != nil {
				return err
			}
			defer end()
			for i, name := range []string{"source tree", "its next version"} {
				args := append([]string{"-a", "--delete"}, s.flags...)
				args = append(args, trees[i].Dir+"/", fmt.Sprintf("rsync://%s/tree/", addr))
				if err := v.timed(ctx, l, s.carrier, name, s.by, func() error {
					return machine.Run(l.CommandContext(ctx, s.from.host, "rsync", args...))
				}); err != nil {
					return err
				}
				if err := machine.Run(exec.CommandContext(ctx, "diff", "-rq", trees[i].Dir, to)); err != nil {
					return fmt.Errorf("what arrived differs: %w", err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// postgres is a command of the database's user.
func postgres(name string, args ...string) ([]string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		return nil, fmt.Errorf("PostgreSQL's %s is missing: run `sudo scripts/setup versus`", name)
	}
	return append([]string{"setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", found[len(found)-1]}, args...), nil
}

// database makes a cluster with two databases in dir, at rest.
func (v *versus) database(ctx context.Context, dir string) (string, error) {
	v.Say("filling a database")
	data := filepath.Join(dir, "pristine")
	hba := "local all all trust\nhost all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n"
	options := fmt.Sprintf("-c listen_addresses= -c unix_socket_directories=%s -c fsync=off -c jit=off", dir)
	at := []string{"-h", dir}
	for _, step := range [][]string{
		{"initdb", "-D", data, "-N", "-A", "trust", "-E", "UTF8", "--locale=C"},
		{"pg_ctl", "-D", data, "-w", "-s", "-l", filepath.Join(dir, "log"), "-o", options, "start"},
		append([]string{"psql"}, append(at, "-qc", "create database shop", "postgres")...),
		append([]string{"psql"}, append(at, "-qv", "seed=1", "-v", "ON_ERROR_STOP=1", "-o", os.DevNull, "-f", "scripts/corpus/image/shop.sql", "shop")...),
		append([]string{"pgbench"}, append(at, "-q", "-i", "-s", "5", "postgres")...),
		{"pg_ctl", "-D", data, "-w", "-s", "-m", "fast", "stop"},
	} {
		argv, err := postgres(step[0], step[1:]...)
		if err != nil {
			return "", err
		}
		if err := machine.Run(exec.CommandContext(ctx, argv[0], argv[1:]...)); err != nil {
			return "", err
		}
		if step[0] == "initdb" {
			if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(hba), 0o644); err != nil {
				return "", err
			}
		}
	}
	return data, nil
}

// backups copies a database, lets it work a little, and copies it again.
func (v *versus) backups(ctx context.Context) error {
	ways := v.wanted("backup", way{stitch, "pg_basebackup", nil}, way{vxlan, "pg_basebackup", nil},
		way{vxlan, "pg_basebackup, zstd", []string{"--compress=server-zstd"}})
	if len(ways) == 0 {
		return nil
	}
	dir := filepath.Join(v.work, "postgres")
	if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil { // it is not root's
		return err
	}
	pristine, err := v.database(ctx, dir)
	if err != nil {
		return err
	}
	for _, s := range ways {
		data := filepath.Join(dir, "data")
		if err := machine.Run(exec.CommandContext(ctx, "cp", "-a", pristine, data)); err != nil {
			return err
		}
		err := v.within(ctx, s.carrier, v.wan, func(l *lab.Lab) error { return v.backup(ctx, l, s.carrier, dir, data, s.by, s.flags) })
		if err := errors.Join(err, os.RemoveAll(data)); err != nil {
			return err
		}
	}
	return nil
}

// backup copies the cluster data twice to the other end.
func (v *versus) backup(ctx context.Context, l *lab.Lab, c carrier, dir, data, by string, flags []string) error {
	port := fmt.Sprint(postgresPort)
	argv, err := postgres("postgres", "-D", data, "-c", "listen_addresses="+c.from.addr, "-c", "port="+port,
		"-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "jit=off")
	if err != nil {
		return err
	}
	end, err := server(ctx, l, c.from.host, c.from.addr+":"+port, argv...)
	if err != nil {
		return err
	}
	defer end()
	for _, name := range []string{"database backup", "the next backup"} {
		to := filepath.Join(dir, "backup")
		args := append([]string{"-h", c.from.addr, "-p", port, "-D", to, "-X", "stream", "-c", "fast", "-N"}, flags...)
		argv, err := postgres("pg_basebackup", args...)
		if err != nil {
			return err
		}
		if err := v.timed(ctx, l, c, name, by, func() error {
			return machine.Run(l.CommandContext(ctx, c.to.host, argv[0], argv[1:]...))
		}); err != nil {
			return err
		}
		verify, err := postgres("pg_verifybackup", "-q", to)
		if err != nil {
			return err
		}
		if err := errors.Join(machine.Run(exec.CommandContext(ctx, verify[0], verify[1:]...)), os.RemoveAll(to)); err != nil {
			return err
		}
		work, err := postgres("pgbench", "-h", c.from.addr, "-p", port, "-n", "-t", "2000", "postgres")
		if err != nil {
			return err
		}
		if err := machine.Run(l.CommandContext(ctx, c.from.host, work[0], work[1:]...)); err != nil {
			return err
		}
	}
	return nil
}

package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

const (
	// job is the name of the block job, mirrorNode that of its target.
	job        = "mirror"
	mirrorNode = "target"
	exportName = "disk"
	mirrorWait = 10 * time.Minute
)

type dict = map[string]any

// Address is where an NBD server listens.
type Address struct{ fields dict }

// Unix is a Unix socket.
func Unix(path string) Address { return Address{dict{"type": "unix", "path": path}} }

// Inet is an IP address and TCP port.
func Inet(host string, port int) Address {
	return Address{dict{"type": "inet", "host": host, "port": fmt.Sprint(port)}}
}

// legacy is the older form of an address, which nbd-server-start wants.
func (a Address) legacy() dict {
	data := dict{}
	for k, v := range a.fields {
		if k != "type" {
			data[k] = v
		}
	}
	return dict{"type": a.fields["type"], "data": data}
}

// EmptyLike makes a file of zeros of the size of another.
func EmptyLike(like, path string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, info.Size()))
}

// Export offers the disk of a machine that waits to an NBD client.
func (m *Machine) Export(ctx context.Context, at Address) error {
	if err := m.QMP.Execute(ctx, "nbd-server-start", dict{"addr": at.legacy()}, nil); err != nil {
		return err
	}
	export := dict{"type": "nbd", "id": "export", "node-name": diskNode, "name": exportName, "writable": true}
	return m.QMP.Execute(ctx, "block-export-add", export, nil)
}

// Mirror copies the disk to an NBD server, as a storage migration does, until the
// two are the same, while the guest writes, and lets go of it.
func (m *Machine) Mirror(ctx context.Context, to Address) error {
	add := dict{"driver": "nbd", "node-name": mirrorNode, "export": exportName, "server": to.fields}
	if err := m.QMP.Execute(ctx, "blockdev-add", add, nil); err != nil {
		return err
	}
	begin := dict{"job-id": job, "device": diskNode, "target": mirrorNode, "sync": "full"}
	if err := m.QMP.Execute(ctx, "blockdev-mirror", begin, nil); err != nil {
		return err
	}
	if err := m.jobUntil(ctx, "the mirror is complete", func(jobs []blockJob) (bool, error) {
		if len(jobs) == 0 {
			return false, errors.New("the block job failed")
		}
		return jobs[0].Ready, nil
	}); err != nil {
		return err
	}
	if err := m.QMP.Execute(ctx, "block-job-cancel", dict{"device": job}, nil); err != nil {
		return err
	}
	if err := m.jobUntil(ctx, "the mirror ends", func(jobs []blockJob) (bool, error) { return len(jobs) == 0, nil }); err != nil {
		return err
	}
	return m.QMP.Execute(ctx, "blockdev-del", dict{"node-name": mirrorNode}, nil)
}

type blockJob struct {
	Ready bool `json:"ready"`
}

// jobUntil waits until is says yes of the machine's block jobs.
func (m *Machine) jobUntil(ctx context.Context, what string, is func([]blockJob) (bool, error)) error {
	return m.Poll(ctx, mirrorWait, what, func() (bool, error) {
		var jobs []blockJob
		if err := m.QMP.Execute(ctx, "query-block-jobs", nil, &jobs); err != nil {
			return false, err
		}
		return is(jobs)
	})
}

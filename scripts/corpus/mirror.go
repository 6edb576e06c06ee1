package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// job is the name of the block job, mirrorNode that of its target.
const (
	job        = "mirror"
	mirrorNode = "target"
	exportName = "disk"
)

type dict = map[string]any

// mirror copies m's disk while the guest writes, over NBD to a QEMU that waits
// for the guest, as a storage migration does, and records what the server gets
// as name. The guest stays where it is.
func (c *corpus) mirror(ctx context.Context, m *machine, name, what string) error {
	target := filepath.Join(c.work, name+".img")
	if err := emptyLike(m.disk, target); err != nil {
		return err
	}
	defer os.Remove(target)
	to, err := c.launch(ctx, name, target, 0)
	if err != nil {
		return err
	}
	defer to.stop()
	if err := to.export(ctx); err != nil {
		return err
	}
	r, err := record(ctx, to.socket("rec"), to.socket("nbd"), maxRecord, func(int) string { return c.path(name) })
	if err != nil {
		return err
	}
	err = m.copyDisk(ctx, to.socket("rec"))
	to.stop()
	files, recordErr := r.close()
	if err = errors.Join(err, recordErr); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c.say("%s: disk mirrored", name)
	return c.list(what, files...)
}

// emptyLike makes a file of zeros of the size of another.
func emptyLike(like, path string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, info.Size()))
}

// export offers the disk to an NBD client.
func (m *machine) export(ctx context.Context) error {
	listen := dict{"addr": dict{"type": "unix", "data": dict{"path": m.socket("nbd")}}}
	if err := m.qmp.Execute(ctx, "nbd-server-start", listen, nil); err != nil {
		return err
	}
	export := dict{"type": "nbd", "id": "export", "node-name": "disk", "name": exportName, "writable": true}
	return m.qmp.Execute(ctx, "block-export-add", export, nil)
}

// copyDisk mirrors the disk to the NBD server at socket until the two are the
// same, and lets go of it.
func (m *machine) copyDisk(ctx context.Context, socket string) error {
	add := dict{"driver": "nbd", "node-name": mirrorNode, "export": exportName, "server": dict{"type": "unix", "path": socket}}
	if err := m.qmp.Execute(ctx, "blockdev-add", add, nil); err != nil {
		return err
	}
	begin := dict{"job-id": job, "device": "disk", "target": mirrorNode, "sync": "full"}
	if err := m.qmp.Execute(ctx, "blockdev-mirror", begin, nil); err != nil {
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
	if err := m.qmp.Execute(ctx, "block-job-cancel", dict{"device": job}, nil); err != nil {
		return err
	}
	if err := m.jobUntil(ctx, "the mirror ends", func(jobs []blockJob) (bool, error) { return len(jobs) == 0, nil }); err != nil {
		return err
	}
	return m.qmp.Execute(ctx, "blockdev-del", dict{"node-name": mirrorNode}, nil)
}

type blockJob struct {
	Ready bool `json:"ready"`
}

// jobUntil waits until is says yes of the machine's block jobs.
func (m *machine) jobUntil(ctx context.Context, what string, is func([]blockJob) (bool, error)) error {
	return m.poll(ctx, moveWait, what, func() (bool, error) {
		var jobs []blockJob
		if err := m.qmp.Execute(ctx, "query-block-jobs", nil, &jobs); err != nil {
			return false, err
		}
		return is(jobs)
	})
}

// Package source fetches releases of source trees, as data that changes a little
// from one version to the next.
package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Module is a big source tree, Versions two releases of it.
const Module = "k8s.io/kubernetes"

// Versions are in order.
var Versions = [2]string{"v1.31.0", "v1.32.0"}

// Tree is one release.
type Tree struct {
	Dir string // the tree, read-only by convention
	Zip string // the same as an archive
}

// Download gets a version of Module by Go's module proxy into cache, a directory
// of the caller's.
func Download(ctx context.Context, cache, version string) (Tree, error) {
	var at struct {
		Tree
		Error string
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return at.Tree, err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", Module+"@"+version)
	cmd.Dir = cache // no module
	cmd.Env = append(os.Environ(), "GOMODCACHE="+filepath.Join(cache, "modules"), "GOFLAGS=-modcacherw")
	out, err := cmd.Output()
	if err := errors.Join(err, json.Unmarshal(out, &at)); err != nil {
		return at.Tree, fmt.Errorf("download %s %s: %w: %s", Module, version, err, at.Error)
	}
	return at.Tree, nil
}

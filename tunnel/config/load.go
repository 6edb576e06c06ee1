package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Bounds and defaults. What is not listed here has no default.
const (
	// MaxFile is the largest configuration file in bytes.
	MaxFile = 1 << 20
	// MaxPeers follows from the link number's eight bits in the packet mark.
	MaxPeers = 255
	// maxList bounds every other list of the file, maxWorkloads that one.
	maxList      = 256
	maxWorkloads = 4096

	minHistory, defaultHistory, maxHistory = 1 << 20, 256 << 20, 64 << 30
	maxPacketHistory                       = 1 << 30
	// defaultMemory is how much of a history with a directory lies in memory.
	defaultMemory = 1 << 30
	// maxDomains is small: every domain has a history of its own with each peer.
	maxDomains = 16
	// maxClasses is small: each is looked at for every packet.
	maxClasses = 16

	defaultPort           = 51820
	defaultUnderlay       = 1500
	maxUnderlay           = 9216
	defaultBroadcastLimit = 500
	maxBroadcastLimit     = 1_000_000
	maxMoveLimit          = 100
	defaultTTL            = 5 * time.Second

	// maxRunDir leaves room for the longest socket name in the 107 bytes of a
	// unix socket address.
	maxRunDir = 90
)

// loader builds one Config from one file.
type loader struct {
	*scan
	raw      rawConfig
	cfg      *Config
	readFile func(string) ([]byte, error)
	public   Key // of our private key; zero when there is none
}

// Load checks the text of a configuration file and returns what it means.
// name is used in messages and to resolve relative key file names; readFile
// reads those key files. All problems found are reported, at most ten, each an
// *Error with file, line, key and remedy; then the Config is nil.
//
// Load borrows data. It is safe for concurrent use if readFile is.
func Load(name string, data []byte, readFile func(string) ([]byte, error)) (*Config, error) {
	p := &problems{file: name}
	if len(data) > MaxFile {
		p.add(0, "", "larger than %d bytes: this is not a configuration file", MaxFile)
		return nil, p.err()
	}
	l := &loader{scan: newScan(p, data), cfg: &Config{}, readFile: readFile}
	if !l.decode(data) {
		return nil, l.err()
	}
	l.site()
	l.peers()
	l.overlaps()
	l.segments()
	l.domains()
	l.classes()
	l.streams()
	l.dials()
	l.workloads()
	l.services()
	l.dns()
	if err := l.err(); err != nil {
		return nil, err
	}
	return l.cfg, nil
}

// decode fills raw. What the scan found counts before what the decoder says,
// because it says it better; only mistakes of TOML itself are the decoder's.
func (l *loader) decode(data []byte) bool {
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&l.raw)
	if len(l.found) > 0 {
		return false
	}
	if err == nil {
		return true
	}
	line, text := 0, err.Error()
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(missing.Errors) > 0 {
		err = &missing.Errors[0]
	}
	if de, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ = de.Position()
		text = de.Error()
	}
	l.add(line, "", "%s", tomlProblem(strings.TrimPrefix(text, "toml: ")))
	return false
}

// tomlProblem adds a remedy to what the decoder says.
func tomlProblem(text string) string {
	switch {
	case strings.Contains(text, "already"):
		return "written twice (" + text + "): keep one of them"
	case strings.Contains(text, "at start of value"):
		return "not TOML (" + text + "): put text in \"quotes\""
	}
	return "not TOML (" + text + "): mend this line"
}

// problem records what is wrong at a path such as peer[0].endpoint.
func (l *loader) problem(path, format string, args ...any) {
	l.add(l.lineOf(path), dotted(path), format, args...)
}

// check records err, if any, at a path, and reports whether there was none.
func (l *loader) check(path string, err error) bool {
	if err != nil {
		l.problem(path, "%v", err)
	}
	return err == nil
}

// missing records that a required key is not there.
func (l *loader) missing(path string) {
	l.problem(path, "missing: add %s", example(place{key: dotted(path)}))
}

// tooMany reports whether a list is beyond its bound, and records it.
func (l *loader) tooMany(path string, n, most int) bool {
	if n > most {
		l.problem(path, "%d entries: at most %d are allowed", n, most)
	}
	return n > most
}

// number reads an optional integer within bounds; def stands for a missing one.
func (l *loader) number(path string, v *int64, def, least, most int64) int64 {
	if v == nil {
		return def
	}
	if *v < least || *v > most {
		l.problem(path, "%d is out of range: use %d to %d", *v, least, most)
		return def
	}
	return *v
}

// dotted drops the indices from a path.
func dotted(path string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(path, "[") {
		if _, rest, ok := strings.Cut(part, "]"); ok && b.Len() > 0 {
			part = rest
		}
		b.WriteString(part)
	}
	return b.String()
}

// at is the path of the i-th element of a list.
func at(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

// site checks what the file says about this site itself.
func (l *loader) site() {
	if l.raw.Site == "" {
		l.missing("site")
	} else {
		l.check("site", parseName(l.raw.Site))

	}
	l.cfg.Site = l.raw.Site
	l.cfg.RunDir = "/run/stitch/" + l.cfg.Site
	if dir := l.raw.RunDir; dir != "" {
		l.runDir(dir)
	}
	if l.raw.PrivateKeyFile == "" {
		l.missing("private_key_file")
	} else {
		l.cfg.PrivateKey = l.keyFile("private_key_file", l.raw.PrivateKeyFile)
		l.public = publicOf(l.cfg.PrivateKey)
	}
	l.cfg.Subnets = l.prefixes("subnets", l.raw.Subnets)
	l.history()
	l.offload()
}

// runDir checks the directory of the sockets.
func (l *loader) runDir(dir string) {
	switch {
	case !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.ContainsFunc(dir, isControl) || dir == "/":
		l.problem("run_dir", "%s is not a plain absolute path such as /run/stitch/dc1", quote(dir))
	case len(dir) > maxRunDir:
		l.problem("run_dir", "%d characters are too many for a socket's address: use at most %d", len(dir), maxRunDir)
	}
	l.cfg.RunDir = dir
}

// isControl reports characters that have no place in a path.
func isControl(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }

// keyFile reads the key in a file named relative to the configuration file.
func (l *loader) keyFile(path, file string) Key {
	if strings.ContainsFunc(file, isControl) {
		l.problem(path, "%s is not a file name", quote(file))
		return Key{}
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(l.file), file)
	}
	data, err := l.readFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		l.problem(path, "there is no file %s: make one with `stitch keygen %s`", file, file)
		return Key{}
	}
	if err != nil {
		l.problem(path, "%v", err)
		return Key{}
	}
	k, err := parseKeyFile(data)
	if err != nil {
		l.problem(path, "%s: %v", file, err)
	}
	return k
}

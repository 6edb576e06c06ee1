package tunnel_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// faultGroups are the groups of cases in testdata/faults.tsv, and how many there
// are of each. All have to be there.
var faultGroups = map[string]int{
	"W": 18, "P": 13, "D": 19, "R": 14, "L": 17, "M": 8, "C": 8, "K": 8, "H": 12, "N": 10, "A": 10, "Q": 12, "B": 10, "X": 14, "V": 13, "S": 8,
}

// faultGoals are the goals that are there too.
var faultGoals = []string{"G-01", "G-02", "G-11", "G-12", "G-14", "G-15", "G-16", "G-17", "G-18", "G-19", "S-G9"}

// TestFaults holds testdata/faults.tsv, which says of each fault which tests
// provoke it, against the tests there are. A line is an identifier, what happens,
// the tests as directory.Function or a file of a script, and what is not tested and
// why. One of the last two may be empty.
func TestFaults(t *testing.T) {
	lines, err := readFaults("../testdata/faults.tsv")
	if err != nil {
		t.Fatal(err)
	}
	tests := testFunctions(t, "..")
	if len(tests) < 400 {
		t.Fatalf("only %d tests found", len(tests))
	}
	for _, problem := range checkFaults(lines, tests) {
		t.Error(problem)
	}
}

// TestFaultsControl shows that TestFaults notices what it must.
func TestFaultsControl(t *testing.T) {
	tests := map[string]bool{"tunnel.TestA": true}
	var whole []fault
	for group, n := range faultGroups {
		for i := range n {
			whole = append(whole, fault{id: fmt.Sprintf("%s-%02d", group, i+1), what: "x", tests: []string{"tunnel.TestA"}})
		}
	}
	for _, id := range faultGoals {
		whole = append(whole, fault{id: id, what: "x", reason: "y"})
	}
	if got := checkFaults(whole, tests); len(got) > 0 {
		t.Errorf("a good table: %v", got)
	}
	for name, spoil := range map[string]func([]fault) []fault{
		"missing":      func(l []fault) []fault { return l[1:] },
		"twice":        func(l []fault) []fault { return append(l, l[0]) },
		"unknown":      func(l []fault) []fault { return append(l, fault{id: "W-19", what: "x", reason: "y"}) },
		"no such test": func(l []fault) []fault { l[0].tests = []string{"tunnel.TestB"}; return l },
		"no such file": func(l []fault) []fault { l[0].tests = []string{"tunnel/nothing.txt"}; return l },
		"neither":      func(l []fault) []fault { l[0].tests = nil; return l },
		"no words":     func(l []fault) []fault { l[0].what = ""; return l },
	} {
		if got := checkFaults(spoil(slices.Clone(whole)), tests); len(got) != 1 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// fault is a line of the table.
type fault struct {
	id, what string
	tests    []string
	reason   string
}

// readFaults reads the table; lines that begin with # are remarks.
func readFaults(file string) (list []fault, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimRight(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 4 {
			return nil, fmt.Errorf("%s:%d: %d fields, want 4", file, number, len(f))
		}
		list = append(list, fault{f[0], f[1], strings.Fields(f[2]), f[3]})
	}
	return list, nil
}

// checkFaults returns what is wrong with the table.
func checkFaults(list []fault, tests map[string]bool) (problems []string) {
	seen := map[string]int{}
	for _, f := range list {
		seen[f.id]++
		if f.what == "" || len(f.tests) == 0 && f.reason == "" {
			problems = append(problems, f.id+": it does not say what happens, or neither a test nor a reason")
		}
		for _, name := range f.tests {
			ok := tests[name]
			if strings.HasSuffix(name, ".txt") {
				_, err := os.Stat(filepath.Join("..", name))
				ok = err == nil
			}
			if !ok {
				problems = append(problems, f.id+": there is no "+name)
			}
		}
	}
	known := slices.Clone(faultGoals)
	for group, n := range faultGroups {
		for i := range n {
			known = append(known, fmt.Sprintf("%s-%02d", group, i+1))
		}
	}
	for _, id := range known {
		if n := seen[id]; n != 1 {
			problems = append(problems, fmt.Sprintf("%s is there %d times", id, n))
		}
		delete(seen, id)
	}
	for id := range seen {
		problems = append(problems, id+" is not known")
	}
	return problems
}

// testFunctions are the names of the tests and fuzz targets below root, as
// directory.Function.
func testFunctions(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if ok && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				names[filepath.ToSlash(dir)+"."+f.Name.Name] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

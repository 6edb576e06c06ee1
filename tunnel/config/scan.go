package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// scan walks a document once, remembers on which line every key is, and holds
// each key and the kind of its value against the raw types. TOML's own rules
// (duplicates, escapes, redefined tables) are left to the decoder.
type scan struct {
	*problems
	parser   unstable.Parser
	newlines []int          // offsets of the line ends
	lines    map[string]int // path such as peer[0].endpoint to its line
	counts   map[string]int // list path such as peer to how many so far
}

// place is a spot in the document: its path with indices, its dotted key
// without, and the raw type there (nil: below something unknown).
type place struct {
	path, key string
	typ       reflect.Type
}

// newScan reads data. When it is not TOML the scan ends early, without a
// problem of its own: the decoder says it better.
func newScan(p *problems, data []byte) *scan {
	s := &scan{problems: p, lines: map[string]int{}, counts: map[string]int{}}
	for i, b := range data {
		if b == '\n' {
			s.newlines = append(s.newlines, i)
		}
	}
	s.parser.Reset(data)
	root := place{typ: reflect.TypeFor[rawConfig]()}
	table := root
	for s.parser.NextExpression() {
		switch e := s.parser.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = s.header(root, e)
		case unstable.KeyValue:
			s.keyValue(table, e)
		}
	}
	return s
}

// line returns the line of n, or 0 for the nodes that have no position.
func (s *scan) line(n *unstable.Node) int {
	at, _ := slices.BinarySearch(s.newlines, int(n.Raw.Offset))
	return at + 1
}

// lineOf returns the line of path or of the nearest table around it.
func (s *scan) lineOf(path string) int {
	for path != "" {
		if l, ok := s.lines[path]; ok {
			return l
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}

// header enters the table named by [a.b] or [[a.b]].
func (s *scan) header(at place, e *unstable.Node) place {
	keys := e.Key()
	for keys.Next() && at.typ != nil {
		last, n := keys.IsLast(), keys.Node()
		at = s.child(at, n)
		if at.typ == nil {
			return at
		}
		if at.typ.Kind() == reflect.Slice {
			at = s.element(at, n, last, e.Kind == unstable.ArrayTable)
		} else if last && e.Kind == unstable.ArrayTable {
			s.add(s.line(n), at.key, "there is only one: write [%s]", at.key)
			at.typ = nil
		}
		if at.typ == nil {
			return at
		}
		if k := at.typ.Kind(); k != reflect.Struct && k != reflect.Map {
			s.add(s.line(n), at.key, "is a value, not a table: write %s", example(at))
			at.typ = nil
		}
	}
	return at
}

// element steps from a list of tables to one of its tables: a new one for the
// last part of a [[header]], else the newest.
func (s *scan) element(list place, n *unstable.Node, last, isArray bool) place {
	if list.typ.Elem().Kind() != reflect.Struct {
		s.add(s.line(n), list.key, "is a value, not a table: write %s", example(list))
		return place{key: list.key}
	}
	if last && !isArray || s.counts[list.path] == 0 && !last {
		s.add(s.line(n), list.key, "there may be several: write [[%s]]", list.key)
		return place{key: list.key}
	}
	if last {
		s.counts[list.path]++
	}
	return s.enter(place{path: fmt.Sprintf("%s[%d]", list.path, s.counts[list.path]-1), key: list.key, typ: list.typ.Elem()}, n)
}

// enter remembers the line of a place; the first mention counts.
func (s *scan) enter(at place, n *unstable.Node) place {
	if _, ok := s.lines[at.path]; !ok {
		s.lines[at.path] = s.line(n)
	}
	return at
}

// child steps to the key n inside at. An unknown key is a problem and gives a
// place without type.
func (s *scan) child(at place, n *unstable.Node) place {
	name := string(n.Data)
	sub := place{path: join(at.path, name), key: join(at.key, name)}
	if at.typ.Kind() == reflect.Map {
		sub.typ = at.typ.Elem()
		return s.enter(sub, n)
	}
	if f, ok := field(at.typ, name); ok {
		sub.typ = f.Type
		if f.Type.Kind() == reflect.Pointer {
			sub.typ = f.Type.Elem()
		}
		return s.enter(sub, n)
	}
	where := "at the top of the file"
	if at.key != "" {
		where = "in [" + at.key + "]"
	}
	s.add(s.line(n), "", "unknown key %s: %s", quote(name), suggest(name, names(at.typ), where))
	return sub
}

// keyValue checks one "a.b = value".
func (s *scan) keyValue(at place, e *unstable.Node) {
	keys := e.Key()
	line := 0
	for keys.Next() && at.typ != nil {
		if k := at.typ.Kind(); k != reflect.Struct && k != reflect.Map {
			s.add(s.line(keys.Node()), at.key, "is a value, not a table: write %s", example(at))
			return
		}
		line = s.line(keys.Node())
		at = s.child(at, keys.Node())
	}
	if at.typ != nil {
		s.value(at, e.Value(), line)
	}
}

// value holds the kind of a value against the type at its place.
func (s *scan) value(at place, v *unstable.Node, line int) {
	switch {
	case at.typ.Kind() == reflect.Interface && (v.Kind == unstable.String || v.Kind == unstable.Integer),
		at.typ.Kind() == reflect.String && v.Kind == unstable.String,
		at.typ.Kind() == reflect.Int64 && v.Kind == unstable.Integer,
		at.typ.Kind() == reflect.Bool && v.Kind == unstable.Bool:
	case at.typ.Kind() == reflect.Slice && v.Kind == unstable.Array:
		s.list(at, v, line)
	case (at.typ.Kind() == reflect.Struct || at.typ.Kind() == reflect.Map) && v.Kind == unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				s.keyValue(at, it.Node())
			}
		}
	default:
		s.add(line, at.key, "must not be %s: write %s", kindName(v.Kind), example(at))
	}
}

// list checks the elements of an array.
func (s *scan) list(at place, v *unstable.Node, line int) {
	i := 0
	for it := v.Children(); it.Next(); {
		n := it.Node()
		if n.Kind == unstable.Comment {
			continue
		}
		if n.Raw.Length > 0 {
			line = s.line(n)
		}
		e := place{path: fmt.Sprintf("%s[%d]", at.path, i), key: at.key, typ: at.typ.Elem()}
		s.lines[e.path] = line
		s.value(e, n, line)
		i++
	}
	s.counts[at.path] = i
}

// join makes a dotted key.
func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "." + b
}

// field finds the field of raw type t with the given key, exactly as spelled.
func field(t reflect.Type, key string) (reflect.StructField, bool) {
	for f := range t.Fields() {
		if f.Tag.Get("toml") == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// names returns the keys of raw type t.
func names(t reflect.Type) []string {
	var out []string
	for f := range t.Fields() {
		out = append(out, f.Tag.Get("toml"))
	}
	return out
}

// example returns a right way to write the key at a place.
func example(at place) string {
	t, eg, last := reflect.TypeFor[rawConfig](), "", ""
	for part := range strings.SplitSeq(at.key, ".") {
		for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			break // below a map: its own example shows the form
		}
		f, ok := field(t, part)
		if !ok {
			break
		}
		t, eg, last = f.Type, f.Tag.Get("eg"), part
	}
	switch {
	case eg != "":
		return last + " = " + strings.ReplaceAll(eg, "'", `"`)
	case t.Kind() == reflect.Slice:
		return "[[" + last + "]]"
	}
	return "[" + last + "]"
}

// kindName names a kind of TOML value for people.
func kindName(k unstable.Kind) string {
	switch k {
	case unstable.String:
		return "a string"
	case unstable.Integer, unstable.Float:
		return "a number"
	case unstable.Bool:
		return "true or false"
	case unstable.Array:
		return "a list"
	case unstable.InlineTable:
		return "a table"
	}
	return "a date or time"
}

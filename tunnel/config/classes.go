package config

import "slices"

// ClassOf is the class that a mark stands for, by its number; 0 for one of no rule.
func (c *Config) ClassOf(mark int) int {
	if mark >= len(c.Marks) {
		return 0
	}
	return c.Marks[mark].Class
}

// classes checks every [[class]].
func (l *loader) classes() {
	l.cfg.Marks = []Mark{{Share: 1}}
	if l.tooMany("class", len(l.raw.Class), maxClasses) || len(l.raw.Class) == 0 {
		return
	}
	u := uses{l, map[string]string{}}
	classes, all := []Class{{}}, 0
	for i, r := range l.raw.Class {
		path := at("class", i)
		c := Class{Name: r.Name, Percent: int(l.number(path+".percent", r.Percent, 0, 1, 100))}
		if r.Name == "" {
			l.missing(path + ".name")
		} else if l.check(path+".name", parseName(r.Name)) {
			u.once(path+".name", "class "+r.Name, "say it once")
		}
		if r.Percent == nil {
			l.missing(path + ".percent")
		}
		if r.Limit != "" {
			var err error
			c.Limit, err = parseRate(r.Limit)
			l.check(path+".limit", err)
		}
		if all += c.Percent; all > 100 && all-c.Percent <= 100 {
			l.problem(path+".percent", "with this class the percentages make %d: they are of one rate, at most 100, of which what is in no class has the rest", all)
		}
		classes = append(classes, c)
	}
	classes[0].Percent = max(100-all, 1)
	l.cfg.Classes = classes
}

// class returns the number of a class by the name that a rule gives it.
func (l *loader) class(path, name string) int {
	if name == "" {
		return 0
	}
	i := slices.IndexFunc(l.cfg.Classes, func(c Class) bool { return c.Name == name })
	switch {
	case i > 0:
		return i
	case len(l.cfg.Classes) == 0:
		l.problem(path, "there is no class %s: add a [[class]] table with that name", quote(name))
	default:
		var names []string
		for _, c := range l.cfg.Classes[1:] {
			names = append(names, c.Name)
		}
		l.problem(path, "there is no class %s: %s", quote(name), suggest(name, names, "classes"))
	}
	return 0
}

// shares checks what a rule's connections get of the rate of the link to a peer.
func (l *loader) shares(path, name string, share *int64, p *Peer) (class, n, mark int) {
	rated := func(path string) {
		none := func(r rawPeer) bool { return r.Name == p.Name && r.Rate == noRate }
		if p != nil && slices.ContainsFunc(l.raw.Peer, none) {
			l.problem(path, "is about the peer's rate, and peer %s has rate = \"off\": write \"learn\" or a rate there or leave this out", quote(p.Name))
		}
	}
	if name != "" {
		rated(path + ".class")
	}
	if share != nil {
		rated(path + ".share")
	}
	m := Mark{l.class(path+".class", name), int(l.number(path+".share", share, 1, 1, MaxShare))}
	i := slices.Index(l.cfg.Marks, m)
	if i < 0 {
		i = len(l.cfg.Marks)
		l.cfg.Marks = append(l.cfg.Marks, m)
	}
	if i == MaxMarks {
		l.problem(path, "with this rule there are more than %d different pairs of class and share: use fewer", MaxMarks-1)
	}
	return m.Class, m.Share, i
}

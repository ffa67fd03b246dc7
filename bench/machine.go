package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// describe says in the head of the results what is measured, and where.
func (s *session) describe(quick bool) {
	s.set("goos", runtime.GOOS)
	s.set("goarch", runtime.GOARCH)
	s.set("cpu", fileField("/proc/cpuinfo", "model name"))
	s.set("cores", strconv.Itoa(runtime.NumCPU()))
	s.set("memory", fileField("/proc/meminfo", "MemTotal"))
	s.set("kernel", strings.TrimSpace(read("/proc/sys/kernel/osrelease")))
	s.set("go", runtime.Version())
	s.set("commit", commit())
	for _, m := range dependencies() {
		s.set("version/"+strings.ToLower(m.Path), m.Version)
	}
	s.set("quick", strconv.FormatBool(quick))
	s.set("sizes", strings.Trim(fmt.Sprint(s.sizes), "[]"))
	s.set("hit-keys", thousands(s.hitKeys))
	s.set("rounds", strconv.Itoa(s.rounds))
	s.set("only", s.only.String())
	s.set("began", time.Now().UTC().Format("2006-01-02 15:04"))
	s.set("load-before", load())
}

// describeEnd says when it was over.
func (s *session) describeEnd() {
	s.set("load-after", load())
	s.set("ended", time.Now().UTC().Format("2006-01-02 15:04"))
}

// peers are the modules whose versions the document names.
var peers = []string{
	"github.com/maypok86/otter/v2", "github.com/Yiling-J/theine-go", "github.com/dgraph-io/ristretto/v2",
	"github.com/viccon/sturdyc", "github.com/hashicorp/golang-lru/v2", "github.com/coocood/freecache",
	"github.com/allegro/bigcache/v3", "github.com/puzpuzpuz/xsync/v4", "github.com/cespare/xxhash/v2",
}

// dependencies returns the peers as they are linked.
func dependencies() (all []debug.Module) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	for _, path := range peers {
		for _, m := range info.Deps {
			if m.Path == path {
				all = append(all, *m)
			}
		}
	}
	return all
}

// commit returns the abbreviated commit of the tree, with a plus if the tree has
// changes, or nothing if there is no git.
func commit() string {
	head, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	c := strings.TrimSpace(string(head))
	if changes, err := exec.Command("git", "status", "--porcelain", "--untracked-files=no").Output(); err != nil || len(changes) > 0 {
		c += "+"
	}
	return c
}

// load returns the load averages.
func load() string {
	if f := strings.Fields(read("/proc/loadavg")); len(f) > 3 {
		return strings.Join(f[:3], " ")
	}
	return "unknown"
}

// fileField returns the value of a line "field: value".
func fileField(file, field string) string {
	for line := range strings.Lines(read(file)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == field {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func read(file string) string {
	b, _ := os.ReadFile(file) // a system that has no such file
	return string(b)
}

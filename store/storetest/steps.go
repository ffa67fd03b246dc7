package storetest

import (
	"errors"

	"github.com/tidemark-go/tidemark"
)

// set writes value over base, which must succeed, and returns the new version.
func (p *probe) set(key string, base tidemark.Version, value string) tidemark.Version {
	p.Helper()
	return p.setAs(newOp(), key, base, value)
}

// setAs is set with a given operation id.
func (p *probe) setAs(op tidemark.OpID, key string, base tidemark.Version, value string) tidemark.Version {
	p.Helper()
	v, err := p.store.CompareAndSet(p.ctx, key, base, value, op)
	if err != nil {
		p.fatalf("CompareAndSet with the current base %d: %v", base, err)
	}
	if v <= base {
		p.fatalf("CompareAndSet over version %d returned version %d, want a larger one", base, v)
	}
	return v
}

// remove deletes key at base, which must succeed, and returns the version of
// the deletion.
func (p *probe) remove(key string, base tidemark.Version) tidemark.Version {
	p.Helper()
	return p.removeAs(newOp(), key, base)
}

// removeAs is remove with a given operation id.
func (p *probe) removeAs(op tidemark.OpID, key string, base tidemark.Version) tidemark.Version {
	p.Helper()
	v, err := p.store.CompareAndDelete(p.ctx, key, base, op)
	if err != nil {
		p.fatalf("CompareAndDelete with the current base %d: %v", base, err)
	}
	if v <= base {
		p.fatalf("CompareAndDelete of version %d returned version %d, want a larger one", base, v)
	}
	return v
}

// wantRow demands that key holds value at version.
func (p *probe) wantRow(key, value string, version tidemark.Version) {
	p.Helper()
	got, v, err := p.store.Load(p.ctx, key)
	if err != nil {
		p.fatalf("Load of a key that was written: %v", err)
	}
	if got != value || v != version {
		p.fatalf("Load = %s at version %d, want %s at version %d", quote(got), v, quote(value), version)
	}
}

// wantAbsent demands that key does not exist, as of version.
func (p *probe) wantAbsent(key string, version tidemark.Version) {
	p.Helper()
	got, v, err := p.store.Load(p.ctx, key)
	if !errors.Is(err, tidemark.ErrNotFound) {
		p.fatalf("Load of an absent key: error %v, want one that wraps ErrNotFound", err)
	}
	if got != "" {
		p.fatalf("Load of an absent key returned the value %s", quote(got))
	}
	if v != version {
		p.fatalf("Load of an absent key names version %d, want %d", v, version)
	}
}

// conflict demands that err is a conflict and nothing else, and returns it.
func (p *probe) conflict(err error) *tidemark.ConflictError {
	p.Helper()
	var conflict *tidemark.ConflictError
	if !errors.As(err, &conflict) {
		p.fatalf("error %v, want a *ConflictError", err)
	}
	if errors.Is(err, tidemark.ErrUnavailable) {
		p.fatalf("a conflict wraps ErrUnavailable: %v", err)
	}
	return conflict
}

// wantConflict demands that err is a conflict with the store's version current.
func (p *probe) wantConflict(err error, current tidemark.Version) {
	p.Helper()
	if c := p.conflict(err); c.Current != current || c.Absent {
		p.fatalf("the conflict says %q, want version %d", c, current)
	}
}

// wantConflictAbsent demands that err is a conflict with the absence of the key:
// deletion is the version of its deletion, which the store need not name, or 0.
func (p *probe) wantConflictAbsent(err error, deletion tidemark.Version) {
	p.Helper()
	c := p.conflict(err)
	if !c.Absent {
		p.fatalf("the conflict does not say that the key is absent: %v", c)
	}
	if c.Current != 0 && c.Current != deletion {
		p.fatalf("the conflict names version %d, want that of the deletion, %d, or none", c.Current, deletion)
	}
}

// wantCommitted demands that the store knows op as committed at version.
func (p *probe) wantCommitted(key string, op tidemark.OpID, version tidemark.Version) {
	p.Helper()
	v, committed, err := p.store.Outcome(p.ctx, key, op)
	if err != nil {
		p.fatalf("Outcome: %v", err)
	}
	if !committed {
		p.fatalf("Outcome of a write committed at version %d: not committed", version)
	}
	if v != version {
		p.fatalf("Outcome of a write committed at version %d: version %d", version, v)
	}
}

// wantNotCommitted demands that the store does not know op.
func (p *probe) wantNotCommitted(key string, op tidemark.OpID) {
	p.Helper()
	v, committed, err := p.store.Outcome(p.ctx, key, op)
	if err != nil {
		p.fatalf("Outcome: %v", err)
	}
	if committed {
		p.fatalf("Outcome of a write that was not committed: committed at version %d", v)
	}
}

// quote shortens long values for messages.
func quote(s string) string {
	const most = 40 // bytes, enough to tell the suite's values apart
	if len(s) > most {
		return "\"" + s[:most] + "…\""
	}
	return "\"" + s + "\""
}

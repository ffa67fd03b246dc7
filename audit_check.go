package tidemark

import (
	"errors"
	"sync"
	"time"
)

// Why a suspicion that is confirmed is no false alarm. The entry is copied first,
// and then the source is asked, which reflects all that was committed before it was
// asked; so a source that has a newer state had it when it answered, whatever
// happened in between, and a source that has an older one went back. What explains
// the former is a change whose message is on its way. It is given Bound from when
// the source answered; with a Log, Bound in the time of the mark, which stands for
// what has been applied here, however late that is. Then the source is asked again,
// and after that, under the shard's lock, the entry must be the same one, of the era
// that entries are served in now: an entry that was replaced, evicted, expired, made
// suspect or thrown away meanwhile is no mismatch, since nobody is served it. A fence
// that is not a load's, or a doubt, says that a write of the key is under way, which may
// be the very one that the source has committed and not yet answered: then it is asked
// again.

// examine compares what memory has of some keys with the source.
func (a *auditor[K, V]) examine(list []check[K]) {
	ready := make([]check[K], 0, len(list))
	for _, k := range list {
		switch a.prepare(&k) {
		case isReady:
			ready = append(ready, k)
		case isEarly:
			k.due = after(a.c.now(), min(a.o.Bound/4, auditRetry))
			a.put(k)
		default:
			a.gone(&k)
		}
	}
	if len(ready) == 0 {
		return
	}
	asked := a.c.now()
	a.free = after(max(asked, a.free), time.Duration(int64(len(ready))*a.each))
	answers, err := a.ask(ready)
	for i := range ready {
		k := &ready[i]
		switch answer, told := answers[k.key]; {
		case err != nil:
			a.failed(k, err)
		case answer.err != nil:
			a.failed(k, answer.err)
		case !told && !k.byValue && !a.byValue():
			k.byValue, k.due = true, asked // it is gone, or the source does not say
			a.put(*k)
		case !told:
			a.failed(k, ErrIncomplete)
		default:
			a.judge(k, answer, asked)
		}
	}
}

type readiness uint8

const (
	isGone  readiness = iota // nobody is served the entry, but as stale
	isEarly                  // it is too early to judge
	isReady
)

// prepare notes what memory has of the key, and says whether the source is to be
// asked.
func (a *auditor[K, V]) prepare(k *check[K]) readiness {
	var e entry[V]
	if _, ok := a.c.shard(k.hash).look(k.hash, k.key, &e.value, &e.facts); !ok || !a.serves(&e.facts) {
		return isGone
	}
	if k.suspect && !k.had.same(&e.facts) {
		return isGone
	}
	if k.suspect && !a.waited(k) {
		return isEarly
	}
	k.had = e.facts
	if a.o.Digest != nil && !e.absent {
		k.digest, k.judged = a.digest(e.value)
	}
	return isReady
}

// same reports whether both are of one entry, as far as readers can tell.
func (e *facts) same(other *facts) bool {
	return e.era == other.era && e.version == other.version && e.absent == other.absent
}

// serves reports whether the entry would be served if nobody had switched that off.
func (a *auditor[K, V]) serves(e *facts) bool {
	c := a.c
	fresh := c.freshness()
	return c.servable(c.era.Load()&^eraSwitchedOff, e) && c.admits(Any, true, e, fresh, c.moments())
}

// waited reports whether all that was on its way when k was first suspected has had
// its time. Bound has passed since.
func (a *auditor[K, V]) waited(k *check[K]) bool {
	if !a.c.logged {
		return true
	}
	// The log may be slow, or a strict write under way that this replica has not heard of.
	m := a.c.freshness()
	return m.Mono >= after(k.seen, a.o.Bound) && m.Vouches(m.Mono-int64(a.o.Bound))
}

// writingLocked reports whether a write or a fill of the key is under way, or in
// doubt. A load is no excuse for what is served meanwhile.
func (s *shard[K, V]) writingLocked(key K) bool {
	p := s.pending[key]
	return p != nil && (p.doubts > 0 || len(p.fences) > p.running)
}

// digest calls Digest, and contains its panic. If it ends its goroutine it ends neither
// the auditor nor a reader.
func (a *auditor[K, V]) digest(value V) (sum uint64, ok bool) {
	var calling sync.WaitGroup
	calling.Go(func() {
		defer func() {
			if r := recover(); r != nil {
				_ = a.c.caught(r)
			}
		}()
		sum = a.o.Digest(value)
		ok = true
	})
	calling.Wait()
	return sum, ok
}

// failed lets a check be made again later, or gives it up.
func (a *auditor[K, V]) failed(k *check[K], err error) {
	if !errors.Is(err, errPutOff) {
		k.tries++
	}
	a.mu.Lock()
	a.tally.Refused++
	if k.tries == maxFailed {
		a.tally.Unchecked++
	}
	a.mu.Unlock()
	if k.tries == maxFailed {
		a.decided(k, false)
		return
	}
	k.due = after(a.c.now(), auditRetry)
	a.put(*k)
}

// gone ends a check of an entry that nobody is served any more. That is what a
// suspicion is given its time for, if it went because of what memory has learnt; if it
// has just expired or was evicted nobody will ever know how long it would have been stale.
func (a *auditor[K, V]) gone(k *check[K]) {
	if !k.suspect {
		a.decided(k, false)
		return
	}
	learnt := a.learnt(k)
	if !learnt {
		now := a.c.now()
		a.mu.Lock()
		a.tally.Undecided++
		for i := range a.lost {
			if over := a.scale(i); k.had.provenAt == unproven || time.Duration(now-k.had.provenAt) > over {
				a.lost[i]++
			}
		}
		a.mu.Unlock()
	}
	a.decided(k, learnt)
}

// learnt reports whether this replica knows by now that there is something newer than
// the entry that k suspects, or may be.
func (a *auditor[K, V]) learnt(k *check[K]) bool {
	s := a.c.shard(k.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if k.had.era != a.c.era.Load()&^eraSwitchedOff {
		return true // a message may be missing: everything is to be confirmed
	}
	if p, ok := s.table.Find(k.hash, k.key); ok {
		var e facts
		e.read(p.Head)
		return !e.same(&k.had)
	}
	return s.recorder.newerLocked(k.hash, k.had.mark(), k.had.provenAt)
}

// decided ends a check; counted says that it is one that was made.
func (a *auditor[K, V]) decided(k *check[K], counted bool) {
	if k.walk {
		a.open--
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if k.shadow {
		delete(a.doubts, k.key)
	}
	if counted {
		a.tally.Checked++
	}
}

// judge says what the source's answer means.
func (a *auditor[K, V]) judge(k *check[K], s answer[V], asked int64) {
	kind := differs(k.had.mark(), s.mark())
	if kind == 0 && k.judged && !s.Absent {
		if sum, ok := a.digest(s.Value); ok && sum != k.digest {
			kind = MismatchDiffers
		}
	}
	switch {
	case kind == 0:
		a.prove(k, asked)
		a.decided(k, true)
	case k.suspect:
		a.confirm(k, kind, s.mark())
	default:
		k.suspect, k.seen, k.sample = true, a.c.now(), false
		k.due = after(k.seen, a.o.Bound)
		a.mu.Lock()
		a.tally.Suspicions++
		a.mu.Unlock()
		a.put(*k)
	}
}

// differs says in what memory's state differs from the one that the source has had
// after it, or 0.
func differs(had, source mark) MismatchKind {
	switch {
	case had.absent && source.absent:
		return 0 // sources number deletions as they like
	case source.absent && source.version == 0, had.before(source):
		return MismatchStale
	case source.before(had):
		return MismatchAhead
	default:
		return 0
	}
}

// prove notes that the source had the entry's state when it was asked: it is as good
// as loaded then.
func (a *auditor[K, V]) prove(k *check[K], asked int64) {
	s := a.c.shard(k.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.table.Find(k.hash, k.key)
	if !ok {
		return
	}
	var e facts
	if e.read(p.Head); e.same(&k.had) && e.provenAt < asked {
		s.table.Begin(p)
		p.Head.provenAt.Store(asked)
		s.table.End(p)
	}
}

// confirm ends a suspicion that has not been explained, unless the entry is not the
// same any more. source is what the source has.
func (a *auditor[K, V]) confirm(k *check[K], kind MismatchKind, source mark) {
	s := a.c.shard(k.hash)
	s.mu.Lock()
	at := a.c.moment()
	p, ok := s.table.Find(k.hash, k.key)
	var e facts
	if ok {
		e.read(p.Head)
	}
	switch {
	case !ok || !e.same(&k.had) || e.era != at.era&^eraSwitchedOff || e.expired(at.now()):
		s.mu.Unlock()
		a.gone(k)
		return
	case s.writingLocked(k.key): // which may be what explains it
		s.mu.Unlock()
		a.held(k)
		return
	}
	m := Mismatch[K]{Key: k.key, Kind: kind, Time: time.Now(), Version: e.version, Absent: e.absent,
		Source: source.version, SourceAbsent: source.absent, AtLeast: time.Duration(at.now() - k.seen), AtMost: -1,
		Record: s.recorder.ofLocked(k.hash, a.c.clock.began)}
	if e.provenAt != unproven {
		m.AtMost = max(time.Duration(at.now()-e.provenAt), m.AtLeast)
	}
	a.repairLocked(s, k, p, kind, source, at)
	s.mu.Unlock()
	a.decided(k, true)
	a.tell(&m)
}

// held lets a suspicion be looked at again when what is under way may have ended. What
// does not end holds up neither the cycle nor, by its questions, the source.
func (a *auditor[K, V]) held(k *check[K]) {
	pause := min(a.o.Bound/4, auditRetry)
	if k.holds++; k.holds > maxFailed {
		pause = a.o.Bound
	}
	if k.walk && k.holds >= 2*maxFailed {
		k.walk = false
		a.open--
	}
	k.due = after(a.c.now(), pause)
	a.put(*k)
}

// repairLocked drops an entry that is not what the source has, and lets nothing
// below the source's state in again. Nothing is installed: the next read loads. An
// absence that the source does not number comes after the version that memory has.
func (a *auditor[K, V]) repairLocked(s *shard[K, V], k *check[K], p place, kind MismatchKind, source mark, at moment) {
	switch kind {
	case MismatchStale:
		if source.version == 0 {
			source.version = k.had.version
		}
		s.invalidateLocked(k.key, k.hash, source, byAudit, at)
	case MismatchDiffers:
		s.recordLocked(dropped, k.hash, k.had.mark(), byAudit, at)
		s.dropLocked(p, k.hash, at)
	}
}

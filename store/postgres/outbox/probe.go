package outbox

import (
	"context"
	"fmt"

	"github.com/tidemark-go/tidemark"
)

// A Prober puts the probes of a cache into the outbox of its table, so that what
// the cache reads Within a bound misses nothing that was committed before that,
// whoever committed it. Set it in the Invalidator of the cache:
//
//	inv := tidemark.NATS(nc, tidemark.NATSOptions{Name: "accounts", Stream: &tidemark.NATSStream{}})
//	inv.Prober, err = outbox.NewProber(pool, outbox.Table{Name: "accounts"})
//
// While no relay brings the probes back the entries grow old, and reads Within a
// bound go to the database, or fail, as OnStale says.
type Prober struct {
	db    DB
	query string
}

var _ tidemark.Prober = (*Prober)(nil)

// NewProber returns a Prober that uses db, which stays the caller's. The error joins
// a [*tidemark.OptionError] for each mistake.
func NewProber(db DB, t Table) (*Prober, error) {
	t, err := t.normal()
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	if db == nil {
		return nil, fmt.Errorf("outbox: %w", &tidemark.OptionError{Field: "db", Problem: "is nil"})
	}
	wake := `, pg_notify('{channel}', '')`
	if t.NoNotify {
		wake = ""
	}
	// A probe need not survive a crash, so nobody waits for the disk.
	return &Prober{db, t.render(`WITH probe AS (INSERT INTO {outbox} (origin, nonce) VALUES ($1, $2))` +
		` SELECT set_config('synchronous_commit', 'off', true)` + wake)}, nil
}

// Probe implements [tidemark.Prober] with one statement.
func (p *Prober) Probe(ctx context.Context, probe tidemark.Probe) error {
	if _, err := p.db.Exec(ctx, p.query, int64(probe.Origin), int64(probe.Nonce)); err != nil {
		return fmt.Errorf("outbox: probe: %w", err)
	}
	return nil
}

package sqlstore

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Schema returns the statements that create the table and its journal where
// they do not exist yet, for those who keep their schema elsewhere. Column types
// may be changed as long as what is stored comes back the same and keys compare
// by bytes.
func (s *Store[K, V]) Schema() []string { return slices.Clone(s.schema) }

// CreateTables runs the statements of [Store.Schema]. Any number of processes
// may do so at once.
func (s *Store[K, V]) CreateTables(ctx context.Context) error {
	for _, statement := range s.schema {
		_, err := s.db.ExecContext(ctx, statement)
		if err != nil && ctx.Err() == nil {
			// PostgreSQL lets two who see no table both create it, and fails
			// one of them; now it exists.
			_, err = s.db.ExecContext(ctx, statement)
		}
		if err != nil {
			return fmt.Errorf("sqlstore: create tables: %w", err)
		}
	}
	return nil
}

// minPrune keeps Prune away from writes whose outcome somebody may still ask.
const minPrune = time.Minute

// Prune forgets the writes that were committed longer than olderThan ago, by
// the clock of the database, and returns how many. A forgotten write counts as
// not committed to [Store.Outcome], and would be made again if it were sent
// again. So olderThan must exceed the time for which a write can be in doubt or
// be retried, the cache's DoubtTimeout for one; under a minute is refused. An
// hour is plenty; a journal of an hour has 3600 lines for each write per second.
//
// It deletes in batches, each a transaction of its own, and holds no lock
// between them. After an error the number is that of the batches before it.
func (s *Store[K, V]) Prune(ctx context.Context, olderThan time.Duration) (int64, error) {
	if olderThan < minPrune {
		return 0, fmt.Errorf("sqlstore: prune: olderThan is %v, want at least %v", olderThan, minPrune)
	}
	for total := int64(0); ; {
		result, err := s.db.ExecContext(ctx, s.sql.prune, int64(olderThan/time.Second))
		if err != nil {
			return total, fmt.Errorf("sqlstore: prune: %w", err)
		}
		n, err := result.RowsAffected()
		if err != nil {
			return total, fmt.Errorf("sqlstore: prune: %w", err)
		}
		if total += n; n < pruneBatch {
			return total, nil
		}
	}
}

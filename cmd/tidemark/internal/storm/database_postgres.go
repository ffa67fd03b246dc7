package storm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/store/postgres"
	"github.com/tidemark-go/tidemark/store/postgres/outbox"
)

// postgresRecords are accounts in a schema of its own in a PostgreSQL, in the table
// that store/postgres makes. Its triggers raise the versions, whoever writes.
type postgresRecords struct {
	pool   *pgxpool.Pool
	schema string
	table  string
	relay  *outbox.Relay // nil until tell
}

// postgresPool is how many connections the replicas and the job share.
const postgresPool = 24

// openPostgres creates the schema and the table with accounts rows, each at its
// opening state.
func openPostgres(ctx context.Context, url string, accounts int) (records, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	config.MaxConns = postgresPool
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	// Nothing else in the database is touched.
	schema := "tidemark_storm_" + strings.ToLower(rand.Text())
	if _, err := pool.Exec(ctx, `CREATE SCHEMA `+schema); err != nil {
		pool.Close()
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	p := &postgresRecords{pool: pool, schema: schema, table: schema + ".accounts"}
	if err := p.create(ctx, accounts); err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", errors.Join(err, p.close()))
	}
	return p, nil
}

func (p *postgresRecords) create(ctx context.Context, accounts int) error {
	store, err := p.postgres(0)
	if err != nil {
		return err
	}
	if err := store.CreateTables(ctx); err != nil {
		return err
	}
	_, err = p.pool.Exec(ctx, `INSERT INTO `+p.table+` (key, value, version) SELECT n, $1, $2 FROM generate_series(0, $3::bigint - 1) n`,
		Account{Balance: openingBalance}.encode(), openingVersion, accounts)
	if err != nil {
		return err
	}
	_, err = p.pool.Exec(ctx, `ANALYZE `+p.table)
	return err
}

func (p *postgresRecords) postgres(within time.Duration) (*postgres.Store[int, Account], error) {
	return postgres.New(p.pool, postgres.Options[int, Account]{
		Table: p.table,
		Value: postgres.ValueCodec[Account]{
			Encode: func(a Account) ([]byte, error) { return a.encode(), nil },
			Decode: decodeAccount,
			Binary: true,
		},
		Timeout: within,
	})
}

func (p *postgresRecords) store(within time.Duration) (accountStore, error) {
	return p.postgres(within)
}

// outboxTable is the table as its outbox knows it.
func (p *postgresRecords) outboxTable() outbox.Table { return outbox.Table{Name: p.table} }

// relayReady is how long the relay may take until it works.
const relayReady = 10 * time.Second

// tell installs the outbox, and a relay that tells inv what is in it, until close.
func (p *postgresRecords) tell(ctx context.Context, inv tidemark.Invalidator) error {
	if err := outbox.Install(ctx, p.pool, p.outboxTable()); err != nil {
		return err
	}
	var err error
	p.relay, err = outbox.NewRelay(outbox.RelayOptions{
		Config: p.pool.Config().ConnConfig.Copy(), Table: p.outboxTable(), Invalidator: inv,
	})
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(relayReady); ; time.Sleep(5 * time.Millisecond) {
		s := p.relay.Stats()
		switch {
		case s.Working && s.Everything > 0: // that the triggers are new is told
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the relay does not work after %v: %+v", relayReady, s)
		}
	}
}

func (p *postgresRecords) prober() (tidemark.Prober, error) {
	return outbox.NewProber(p.pool, p.outboxTable())
}

// close also drops the schema.
func (p *postgresRecords) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	if p.relay != nil {
		err = p.relay.Close(ctx)
	}
	if _, e := p.pool.Exec(ctx, `DROP SCHEMA IF EXISTS `+p.schema+` CASCADE`); e != nil {
		err = errors.Join(err, fmt.Errorf("schema %s stays behind: %w", p.schema, e))
	}
	p.pool.Close()
	return err
}

func (p *postgresRecords) row(ctx context.Context, account int) (Account, uint64, error) {
	return scanPostgres(p.pool.QueryRow(ctx, `SELECT value, version FROM `+p.table+` WHERE key = $1`, account))
}

// scanPostgres reads a row of value and version.
func scanPostgres(row pgx.Row) (Account, uint64, error) {
	var value []byte
	var version uint64
	if err := row.Scan(&value, &version); err != nil {
		return Account{}, 0, err
	}
	a, err := decodeAccount(value)
	return a, version, err
}

func (p *postgresRecords) overwrite(ctx context.Context, account int, a Account) (version uint64, err error) {
	err = p.pool.QueryRow(ctx, p.update(), a.encode(), account).Scan(&version)
	return version, err
}

// update is an UPDATE as a program makes it that knows nothing of versions.
func (p *postgresRecords) update() string {
	return `UPDATE ` + p.table + ` SET value = $1 WHERE key = $2 RETURNING version`
}

func (p *postgresRecords) transact(ctx context.Context, account int, fn func(current Account) Account) (next Account, version uint64, err error) {
	err = pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		current, _, err := scanPostgres(tx.QueryRow(ctx, `SELECT value, version FROM `+p.table+` WHERE key = $1 FOR UPDATE`, account))
		if err != nil {
			return err
		}
		next = fn(current)
		return tx.QueryRow(ctx, p.update(), next.encode(), account).Scan(&version)
	})
	return next, version, err
}

// correct is two statements, however many corrections there are.
func (p *postgresRecords) correct(ctx context.Context, corrections []correction) ([]change, error) {
	keys := make([]int64, len(corrections))
	place := make(map[int64]int, len(corrections))
	for i, c := range corrections {
		keys[i], place[int64(c.account)] = int64(c.account), i
	}
	values := make([][]byte, len(corrections))
	changes := make([]change, len(corrections))
	var key int64
	var value []byte
	var version uint64
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT key, value FROM `+p.table+` WHERE key = ANY($1) ORDER BY key FOR UPDATE`, keys)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, []any{&key, &value}, func() error {
			c := corrections[place[key]]
			current, err := decodeAccount(value)
			values[place[key]] = current.deposit(c.op, c.cents).encode()
			return err
		})
		if err != nil {
			return err
		}
		rows, err = tx.Query(ctx, `UPDATE `+p.table+` a SET value = c.value FROM unnest($1::bigint[], $2::bytea[]) c(key, value)`+
			` WHERE a.key = c.key RETURNING a.key, a.version`, keys, values)
		if err != nil {
			return err
		}
		tag, err := pgx.ForEachRow(rows, []any{&key, &version}, func() error {
			changes[place[key]] = change{int(key), version}
			return nil
		})
		if err == nil && tag.RowsAffected() != int64(len(corrections)) {
			err = fmt.Errorf("%d of %d accounts are there", tag.RowsAffected(), len(corrections))
		}
		return err
	})
	return changes, err
}

func (p *postgresRecords) all(ctx context.Context, visit func(account int, a Account, version uint64)) error {
	rows, err := p.pool.Query(ctx, `SELECT key, value, version FROM `+p.table+` ORDER BY key`)
	if err != nil {
		return err
	}
	var id int
	var value []byte
	var version uint64
	_, err = pgx.ForEachRow(rows, []any{&id, &value, &version}, func() error {
		a, err := decodeAccount(value)
		if err != nil {
			return err
		}
		visit(id, a, version)
		return nil
	})
	return err
}

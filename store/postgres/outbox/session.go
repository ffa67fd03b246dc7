package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// A session is one connection of a relay. Any error ends it.
//
// That one relay works and not two saves work and nothing else. Who works holds an
// advisory lock, which the server takes back with the session: when the connection
// breaks, when the process is gone, or when it has asked for nothing for a Lease, as
// one that is stopped or stuck does. One that wakes up after that tells a batch for
// the second time, and cannot delete it: its session is gone. Had it still one, it
// would delete what the log has acknowledged, and that by id.
type session struct {
	*Relay
	conn  *pgx.Conn
	query queries

	id  int64 // the outbox's, to lock
	key keyType

	watched string // what the triggers were when everything was last told

	// Of where the next look begins, see pass.

	floor     int64     // no row at or below it will ever appear
	candidate int64     // the next floor, once what was then under way has ended
	under     int64     // that is what has a transaction id below this; 0: there is none
	swept     time.Time // when a pass last began at 0
	latest    int64     // transaction id of the latest deletion: all that were under way had a smaller one
}

// queries are the statements of a session.
type queries struct {
	state, look, watch, page, forget, collapse, count, seen string
}

func newQueries(t Table) queries {
	return queries{
		state: t.render(`SELECT o.oid::bigint, coalesce(obj_description(o.oid, 'pg_class'), ''), pg_is_in_recovery(),
	coalesce((WITH RECURSIVE base AS ( -- a domain is told as the type that is below it
		SELECT a.atttypid AS oid FROM pg_attribute a
		WHERE a.attrelid = to_regclass('{table}') AND a.attname = $1 AND NOT a.attisdropped
		UNION ALL
		SELECT t.typbasetype FROM base JOIN pg_type t ON t.oid = base.oid WHERE t.typtype = 'd'
	) SELECT t.oid::regtype::text FROM base JOIN pg_type t ON t.oid = base.oid WHERE t.typtype <> 'd'), ''),
	coalesce((SELECT watched FROM {state}), ''), coalesce((SELECT cache FROM {state}), ''),
	{ordered}
	FROM pg_class o WHERE o.oid = '{outbox}'::regclass`),
		look: t.render(`SELECT pg_snapshot_xmin(s)::text::bigint, s::text,
	coalesce(pg_sequence_last_value(pg_get_serial_sequence('{outbox}', 'id')::regclass), 0)
	FROM pg_current_snapshot() s`),
		page: t.render(`SELECT id, key, coalesce(version, 0), origin, coalesce(nonce, 0),
	extract(epoch FROM clock_timestamp() - at)::float8 FROM {outbox}
	WHERE id > $1 AND (origin IS NULL OR pg_visible_in_snapshot(xid, coalesce($2::text::pg_snapshot, pg_current_snapshot())))
	ORDER BY id LIMIT $3`),
		watch:  t.render(watchQuery),
		forget: t.render(`WITH gone AS (DELETE FROM {outbox} WHERE id = ANY($1)) SELECT pg_current_xact_id()::text::bigint`),
		count:  t.render(`SELECT count(*) FROM (SELECT FROM {outbox} WHERE id > $1 LIMIT $2) r`),
		collapse: t.render(`WITH gone AS (DELETE FROM {outbox} WHERE id IN (SELECT id FROM {outbox}
	WHERE id > $1 AND pg_visible_in_snapshot(xid, $2::text::pg_snapshot) ORDER BY id LIMIT $3) RETURNING id)
	SELECT count(*), coalesce(max(id), 0), pg_current_xact_id()::text::bigint FROM gone`),
		seen: t.render(`UPDATE {state} SET watched = $1, cache = $2`),
	}
}

// lockClass keeps our advisory locks apart from those of others: "tide" in ASCII.
const lockClass = 0x74696465

// connect opens a session. It fails if the outbox is not one that it knows.
func (r *Relay) connect() (*session, error) {
	config := r.o.Config.Copy()
	config.RuntimeParams["application_name"] = "tidemark relay"
	config.RuntimeParams["idle_session_timeout"] = strconv.FormatInt(r.o.Lease.Milliseconds(), 10)
	config.RuntimeParams["idle_in_transaction_session_timeout"] = strconv.FormatInt(r.o.Lease.Milliseconds(), 10)
	config.RuntimeParams["default_transaction_isolation"] = "read committed" // no deletion is to be refused
	// A machine that is gone is noticed in the same time.
	seconds := strconv.Itoa(max(1, int(r.o.Lease.Seconds()/3)))
	config.RuntimeParams["tcp_keepalives_idle"] = seconds
	config.RuntimeParams["tcp_keepalives_interval"] = seconds
	config.RuntimeParams["tcp_keepalives_count"] = "2"
	ctx, cancel := r.bounded()
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	s := &session{Relay: r, conn: conn, query: newQueries(r.o.Table)}
	if err := s.inspect(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// inspect looks at what is installed.
func (s *session) inspect(ctx context.Context) error {
	var comment, keyColumn, cache string
	var standby, ordered bool
	err := s.conn.QueryRow(ctx, s.query.state, s.o.Table.Key).Scan(&s.id, &comment, &standby, &keyColumn, &s.watched, &cache, &ordered)
	switch {
	case err != nil:
		return fmt.Errorf("look at the outbox: %w", err)
	case comment != mark:
		return fmt.Errorf("%s is %q, want %q: install it again", s.o.Table.Outbox, comment, mark)
	case standby:
		return errors.New("the server is a standby")
	case cache != "" && cache != s.cache():
		return fmt.Errorf("what %s has is told to the cache %s, and not to %s: install an outbox of its own for that", s.o.Table.Outbox, cache, s.cache())
	case !ordered:
		return fmt.Errorf("the ids of %s are not drawn one by one: install it again", s.o.Table.Outbox)
	case keyColumn == "":
		return fmt.Errorf("%s has no column %q", s.o.Table.Name, s.o.Table.Key)
	}
	s.key = keyTypeOf(keyColumn)
	return nil
}

// cache names the cache that hears this relay.
func (r *Relay) cache() string {
	if r.o.Invalidator.Schema == "" {
		return r.o.Invalidator.Name
	}
	return r.o.Invalidator.Name + " of schema " + r.o.Invalidator.Schema
}

// serverTimeout bounds one call to the server. It is long: what is deleted and not
// vacuumed takes time to go through, and the lease does not run while the server is
// at work.
const serverTimeout = time.Minute

// bounded returns a context for one call to the server.
func (r *Relay) bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.life, serverTimeout)
}

// lead returns once this session is the one that works.
func (s *session) lead() error {
	for {
		ctx, cancel := s.bounded()
		var mine bool
		err := s.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1::int4, $2::bigint::oid::int4)`, lockClass, s.id).Scan(&mine)
		if err == nil && mine {
			if _, err = s.conn.Exec(ctx, s.o.Table.render(`LISTEN "{channel}"`)); err == nil {
				err = s.inspect(ctx) // the one before may have told of what it found
			}
		}
		cancel()
		if err != nil {
			return fmt.Errorf("take the lock: %w", err)
		}
		s.leads(mine)
		if mine {
			return nil
		}
		// It asks instead of waiting in the server, where that would hold a snapshot.
		if poll := s.o.Lease / 20; !s.sleep(poll/2 + rand.N(poll)) {
			return s.life.Err()
		}
	}
}

// wait returns when there may be something to tell.
func (s *session) wait() error {
	ctx, cancel := context.WithTimeout(s.life, s.o.Poll)
	defer cancel()
	_, err := s.conn.WaitForNotification(ctx)
	if s.life.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// closeTimeout bounds how long a session waits for the server to say goodbye.
const closeTimeout = time.Second

// close ends the session.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = s.conn.Close(ctx) // the server notices either way
}

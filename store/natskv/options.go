package natskv

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidemark-go/tidemark"
)

// Options configures a Store. Bucket is required.
type Options[K comparable, V any] struct {
	// Bucket names the bucket, which must exist; see [BucketConfig].
	Bucket string

	// KeyCodec turns keys into bytes. Nil is enough for strings, which are
	// stored as their bytes, and for integers, which are stored as decimal
	// digits. What no key of a bucket may contain is escaped, see [Store].
	KeyCodec tidemark.KeyCodec[K]

	// Value stores values. The zero ValueCodec stores strings and byte slices
	// as they are, and everything else as JSON.
	Value ValueCodec[V]
}

// A Store keeps records in a bucket. All methods may be called concurrently. It
// has one subscription on the connection, which is the caller's and ends it.
//
// A key of ASCII letters, digits and any of "-_/", in parts joined by single
// dots, is the bucket's key as it stands, unless it begins with an underscore:
// "accounts.4711" is accounts.4711 to everybody. Every other byte is written as
// "=" and two hexadecimal digits, as in quoted-printable, and the empty key as
// "=". So no two keys share a name, none is a pattern, and none touches the keys
// that this package keeps for itself, which begin with "_tidemark.". The written
// form has at most 1024 bytes.
type Store[K comparable, V any] struct {
	b     *bucket
	key   keyCodec[K]
	value ValueCodec[V]
}

var _ interface {
	tidemark.Store[string, string]
	tidemark.BulkLoader[string, string]
	tidemark.VersionLoader[string]
} = (*Store[string, string])(nil)

const (
	defaultReplicas = 3
	defaultHistory  = 16
	minHistory      = 8
)

// BucketConfig returns the configuration of a bucket that New accepts: in files,
// on three servers, with a history of 16. Change it as you need, for example
// Replicas to 1 where there is no cluster, and create the bucket with
// [jetstream.JetStream.CreateKeyValue]. The same by hand:
//
//	nats kv add balances --history 16 --replicas 3 --storage file
//
// The history is how far back [Store.Outcome] sees, and what the bucket costs:
// so many values for each key that is written often.
func BucketConfig(bucket string) jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{
		Bucket:   bucket,
		History:  defaultHistory,
		Replicas: defaultReplicas,
		Storage:  jetstream.FileStorage,
	}
}

var bucketName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// New returns a Store on a bucket that exists. It asks the server what the bucket
// is like, and the first New ever of a bucket leaves a mark in it, by which the
// Store knows it again. The error joins a [*tidemark.OptionError] for each
// mistake in the arguments, or for each setting of the bucket with which the
// promises of a Store could not be kept; the package comment lists them.
func New[K comparable, V any](ctx context.Context, nc *nats.Conn, o Options[K, V]) (*Store[K, V], error) {
	var m mistakes
	if nc == nil {
		m.add("nc", "is nil")
	}
	if !bucketName.MatchString(o.Bucket) {
		m.add("Bucket", "is %q, want letters, digits, '-' and '_', at most 128", o.Bucket)
	}
	key, err := newKeyCodec(o.KeyCodec)
	if err != nil {
		m.add("KeyCodec", "%v", err)
	}
	value, err := o.Value.orDefault()
	if err != nil {
		m.add("Value", "%v", err)
	}
	if err := m.join(); err != nil {
		return nil, err
	}
	b, err := open(ctx, nc, o.Bucket)
	if err != nil {
		return nil, err
	}
	return &Store[K, V]{b: b, key: key, value: value}, nil
}

// mistakes collects what is wrong with options, or with a bucket.
type mistakes []error

func (m *mistakes) add(field, format string, args ...any) {
	*m = append(*m, &tidemark.OptionError{Field: field, Problem: fmt.Sprintf(format, args...)})
}

func (m mistakes) join() error {
	if len(m) == 0 {
		return nil
	}
	return fmt.Errorf("natskv: bad options: %w", errors.Join(m...))
}

// unsuitable lists the settings of a bucket's stream with which a key's version
// could go back or vanish, or reads and outcomes could not be proven.
func unsuitable(c *jetstream.StreamConfig) mistakes {
	var m mistakes
	refuse := func(cond bool, format string, args ...any) {
		if cond {
			m.add("Bucket", format, args...)
		}
	}
	refuse(c.Storage != jetstream.FileStorage, "is kept in memory: when its servers restart, versions begin anew")
	refuse(c.PersistMode != jetstream.DefaultPersistMode, "acknowledges before it writes to disk: versions could be given twice")
	refuse(c.MaxMsgsPerSubject >= 0 && c.MaxMsgsPerSubject < minHistory,
		"has a history of %d, want at least %d: what became of a write could not be told", c.MaxMsgsPerSubject, minHistory)
	refuse(!c.AllowDirect, "has no direct get, by which it is read")
	refuse(!c.DenyDelete, "lets single messages be deleted: an older value could become the last again")
	refuse(c.MaxAge > 0 && c.SubjectDeleteMarkerTTL == 0, "has a TTL but no limit markers: values would expire unheard")
	refuse(c.MaxAge > 0 && c.SubjectDeleteMarkerTTL > 0, "has a TTL, under which the mark that tells one bucket from the next expires too")
	refuse(c.AllowMsgTTL && c.SubjectDeleteMarkerTTL == 0, "lets messages expire without a marker, so unheard")
	refuse(c.Discard != jetstream.DiscardNew && (c.MaxBytes > 0 || c.MaxMsgs > 0), "makes room by discarding keys")
	refuse(c.DiscardNewPerSubject, "refuses writes of keys whose history is full")
	refuse(c.Retention != jetstream.LimitsPolicy, "drops messages once they are consumed")
	refuse(c.Mirror != nil, "is a mirror of another, to which nobody can write")
	refuse(c.SubjectTransform != nil, "renames its keys")
	refuse(c.AllowMsgCounter, "holds counters, whose values are not what was written")
	refuse(c.NoAck, "acknowledges nothing")
	refuse(c.Sealed, "is sealed")
	return m
}

// leastServer is the first version of nats-server whose direct gets of several
// keys are isolated from writes. What earlier ones do under load is not known.
const leastServer = "2.15"

// oldServer reports whether a server's version is below leastServer.
func oldServer(version string) bool {
	return below(version, leastServer)
}

func below(version, least string) bool {
	v, l := strings.Split(version, "."), strings.Split(least, ".")
	for i := range l {
		if i >= len(v) {
			return true
		}
		have, err := strconv.Atoi(v[i])
		want, _ := strconv.Atoi(l[i])
		if err != nil || have != want {
			return err != nil || have < want
		}
	}
	return false
}

// messageID names a write in the stream: its operation id, and, because one id
// may be used for writes of several keys, a hash of the key.
func messageID(op tidemark.OpID, subject string) string {
	return hex.EncodeToString(op[:]) + "-" + strconv.FormatUint(hashOf(subject), 16)
}

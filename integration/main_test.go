// Package integration tests tidemark against the servers and databases that it
// is used with. It is a module of its own so that nobody who imports tidemark
// gets a driver or a server into their go.mod.
//
// PostgreSQL comes from internal/pgtest: the one at TIDEMARK_POSTGRES, or one that
// the tests start. Tests that need MySQL or MariaDB are behind a build tag, and fail
// if they are not told where it is:
//
//	go test -tags mysql ./...      TIDEMARK_MYSQL='user:password@tcp(127.0.0.1:3306)/db'
//
// They create tables with names that nobody else uses, and drop them.
package integration

import (
	"crypto/rand"
	"encoding/hex"
	"flag"
	"os"
	"testing"

	"github.com/tidemark-go/tidemark"
	"github.com/tidemark-go/tidemark/internal/pgtest"
)

// TestMain lets more tests run beside each other than there are processors, unless
// the command line says how many: those that do mostly wait for servers.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", "4"); err != nil {
			panic(err)
		}
	}
	os.Exit(pgtest.Main(m))
}

// unique returns 16 hexadecimal digits, for names in databases that outlive the
// test.
func unique() string {
	var b [8]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// newOp returns an operation id that nobody has used.
func newOp() (op tidemark.OpID) {
	rand.Read(op[:])
	return op
}

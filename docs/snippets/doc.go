// Package snippets is the code that the documents show, where no other program of
// this repository has it. Each block of Go in a Markdown file is a piece of a Go file,
// to the letter (TestGoBlocksAreCode of internal/lint), so that what the documents say
// compiles, is vetted, and, here, runs: the code of before a migration, and that of
// after it, on one table.
//
// It is a module of its own so that nobody else gets other people's caches into their
// go.mod.
package snippets

import (
	"context"
	"errors"
)

// A bank is what both sides of a migration offer.
type bank interface {
	balance(ctx context.Context, account string) (int64, error)
	deposit(ctx context.Context, account string, cents int64) error
}

var errNoAccount = errors.New("no such account")

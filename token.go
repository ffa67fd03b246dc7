package tidemark

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Token stands for writes and invalidations that some replicas have made: for
// a session that must not see less than it has done, whichever replica serves it
// next. It travels as text, in a header or a cookie, and is read with [After].
// The zero Token stands for nothing. A Token is a value: methods return new ones.
//
// It needs a [Log]: without one there is nothing to hold it against, and reads
// After it go to the source.
type Token struct {
	parts []tokenPart // by origin; never changed once made
	full  bool        // it stands for more than it can name
}

// A tokenPart is one replica and the number of its latest message.
type tokenPart struct{ origin, seq uint64 }

// maxTokenParts bounds the text of a Token to less than 700 bytes.
const maxTokenParts = 16

// Token returns what stands for everything that this replica has written or
// invalidated so far, as far as those calls have returned. While one of them has
// returned ErrNotBroadcast and is still to be told, it stands for everything: reads
// After it go to the source. Without an Invalidator it is the zero Token: there is
// only this replica.
func (c *Cache[K, V]) Token() Token {
	if c.replica == nil {
		return Token{}
	}
	origin, seq, all := c.replica.out.said()
	switch {
	case !all:
		return Token{full: true} // it stands for what no message says yet
	case seq == 0:
		return Token{}
	}
	return Token{parts: []tokenPart{{origin, seq}}}
}

// Join returns a Token that stands for all that t and u stand for. Of more than
// 16 replicas it stands for everything: reads After it go to the source.
func (t Token) Join(u Token) Token {
	newest := map[uint64]uint64{}
	for _, p := range slices.Concat(t.parts, u.parts) {
		newest[p.origin] = max(newest[p.origin], p.seq)
	}
	if t.full || u.full || len(newest) > maxTokenParts {
		return Token{full: true}
	}
	var parts []tokenPart
	for origin, seq := range newest {
		parts = append(parts, tokenPart{origin, seq})
	}
	slices.SortFunc(parts, func(a, b tokenPart) int { return cmp.Compare(a.origin, b.origin) })
	return Token{parts: parts}
}

// String returns the text of t: letters, digits, '-', '.' and '*' only. The zero
// Token is "-".
func (t Token) String() string {
	switch {
	case t.full:
		return "*"
	case len(t.parts) == 0:
		return "-"
	}
	texts := make([]string, len(t.parts))
	for i, p := range t.parts {
		texts[i] = strconv.FormatUint(p.origin, 36) + "-" + strconv.FormatUint(p.seq, 36)
	}
	return strings.Join(texts, ".")
}

// MarshalText implements encoding.TextMarshaler.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

var errToken = errors.New("tidemark: not the text of a token")

// UnmarshalText implements encoding.TextUnmarshaler. It takes what String
// returns, and nothing else. A text that somebody made up can at worst make
// reads go to the source.
func (t *Token) UnmarshalText(text []byte) error {
	s := string(text)
	if len(s) > 28*maxTokenParts {
		return fmt.Errorf("%w: %d bytes", errToken, len(s))
	}
	var u Token
	switch s {
	case "*":
		u.full = true
	case "-":
	default:
		for part := range strings.SplitSeq(s, ".") {
			origin, seq, _ := strings.Cut(part, "-")
			o, err1 := strconv.ParseUint(origin, 36, 64)
			n, err2 := strconv.ParseUint(seq, 36, 64)
			if err := errors.Join(err1, err2); err != nil {
				return fmt.Errorf("%w: %w", errToken, err)
			}
			u.parts = append(u.parts, tokenPart{o, n})
		}
	}
	if u.String() != s || len(u.parts) > maxTokenParts || u.Join(u).String() != s {
		return fmt.Errorf("%w: not as String writes it", errToken)
	}
	*t = u
	return nil
}

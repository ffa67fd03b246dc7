package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestGoldenBytes pins the layout of wire version 1. A process of an older
// release must read what a newer one sends: if this test fails, the change
// needs a new wire version, not new bytes here.
func TestGoldenBytes(t *testing.T) {
	tests := []struct {
		name string
		msg  Message
		want string // hex; blanks separate the fields
	}{
		{
			name: "invalidate",
			msg: Message{
				Kind: KindInvalidate, Flags: FlagIgnorable, CacheID: 0x1122334455667788, Epoch: 7,
				Origin: 0xa0a1a2a3a4a5a6a7, Seq: 300,
				Entries: []Entry{
					{Key: []byte("acc:42"), Version: 17},
					{Key: []byte("acc:43"), Version: 18, Deleted: true},
					{Key: nil, Version: 0},
				},
			},
			want: "5643 01 01 0100 8877665544332211 07000000 a7a6a5a4a3a2a1a0 2c01000000000000 03" +
				" 06 6163633a3432 1100000000000000 00" +
				" 06 6163633a3433 1200000000000000 01" +
				" 00 0000000000000000 04" +
				" c2230d4a",
		},
		{
			name: "strict writes",
			msg: Message{
				Kind: KindInvalidate, CacheID: 1, Epoch: 2, Origin: 3, Seq: 4,
				Entries: []Entry{
					{Key: []byte("a"), Stage: Begun, Op: [16]byte{1, 15: 2}, TTL: 20_000},
					{Key: []byte("b"), Version: 5, Deleted: true, Stage: Ended, Op: [16]byte{3}},
					{Key: []byte("c"), Stage: Void, Op: [16]byte{4}},
				},
			},
			want: "5643 01 01 0000 0100000000000000 02000000 0300000000000000 0400000000000000 03" +
				" 01 61 0000000000000000 0c 01000000000000000000000000000002 204e0000" +
				" 01 62 0500000000000000 11 03000000000000000000000000000000" +
				" 01 63 0000000000000000 34 04000000000000000000000000000000" +
				" 26e33798",
		},
		{
			name: "invalidate all",
			msg:  Message{Kind: KindInvalidateAll, CacheID: 1, Epoch: 2, Origin: 3, Seq: 4},
			want: "5643 01 02 0000 0100000000000000 02000000 0300000000000000 0400000000000000 00 7257dc1d",
		},
		{
			name: "hello",
			msg:  Message{Kind: KindHello, CacheID: 1, Epoch: 2, Origin: 3, Seq: 4, Nonce: 0x0102030405060708},
			want: "5643 01 03 0000 0100000000000000 02000000 0300000000000000 0400000000000000 00" +
				" 0807060504030201 064fdc93",
		},
		{
			name: "probe",
			msg: Message{Kind: KindProbe, Flags: FlagIgnorable, CacheID: 1, Epoch: 2, Origin: 3, Seq: 4,
				Probes: []Probe{{Origin: 0x0102030405060708, Nonce: 9}, {Origin: 1, Nonce: 2}}},
			want: "5643 01 09 0100 0100000000000000 02000000 0300000000000000 0400000000000000 02" +
				" 0807060504030201 0900000000000000 0100000000000000 0200000000000000 8777af55",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Append(nil, &tt.msg)
			require.NoError(t, err)
			assert.Equal(t, strings.ReplaceAll(tt.want, " ", ""), hex.EncodeToString(got))
		})
	}
}

// messages generates messages that Append accepts, most of them small.
func messages() *rapid.Generator[Message] {
	entry := rapid.Custom(func(t *rapid.T) Entry {
		e := Entry{
			Key:   rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "key"),
			Stage: rapid.SampledFrom([]Stage{0, 0, Begun, Ended, Void}).Draw(t, "stage"),
		}
		if e.Stage != 0 {
			copy(e.Op[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "op"))
		}
		switch e.Stage {
		case Begun:
			e.TTL = rapid.Uint32().Draw(t, "ttl")
		case 0, Ended:
			e.Version = rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64()).Draw(t, "version")
			e.Deleted = rapid.Bool().Draw(t, "deleted")
		}
		return e
	})
	return rapid.Custom(func(t *rapid.T) Message {
		m := Message{
			Kind:    rapid.SampledFrom([]Kind{KindInvalidate, KindInvalidateAll, KindHello, KindProbe}).Draw(t, "kind"),
			Flags:   rapid.Uint16().Draw(t, "flags"),
			CacheID: rapid.Uint64().Draw(t, "cacheID"),
			Epoch:   rapid.Uint32().Draw(t, "epoch"),
			Origin:  rapid.Uint64().Draw(t, "origin"),
			Seq:     rapid.Uint64().Draw(t, "seq"),
		}
		switch m.Kind {
		case KindInvalidate:
			m.Entries = rapid.SliceOfN(entry, 0, 200).Draw(t, "entries")
		case KindHello:
			m.Nonce = rapid.Uint64().Draw(t, "nonce")
		case KindProbe:
			m.Probes = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Probe {
				return Probe{rapid.Uint64().Draw(t, "of"), rapid.Uint64().Draw(t, "probe")}
			}), 0, 200).Draw(t, "probes")
		}
		return m
	})
}

// TestRoundTrip decodes into one Message again and again, as a receiver does,
// and writes behind bytes that are already there.
func TestRoundTrip(t *testing.T) {
	var got Message
	rapid.Check(t, func(t *rapid.T) {
		want := messages().Draw(t, "message")
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 5).Draw(t, "prefix")

		b, err := Append(bytes.Clone(prefix), &want)
		require.NoError(t, err)
		require.Equal(t, prefix, b[:len(prefix):len(prefix)])
		require.NoError(t, Decode(b[len(prefix):], &got))
		requireSameMessage(t, &want, &got)

		again, err := Append(nil, &got)
		require.NoError(t, err)
		require.Equal(t, b[len(prefix):], again)
	})
}

func requireSameMessage(t require.TestingT, want, got *Message) {
	a, b := *want, *got
	a.Entries, b.Entries = nil, nil
	a.Probes, b.Probes = nil, nil
	require.Equal(t, a, b)
	require.True(t, slices.Equal(want.Probes, got.Probes), "probes %v, want %v", got.Probes, want.Probes)
	require.Len(t, got.Entries, len(want.Entries))
	for i := range want.Entries {
		w, g := want.Entries[i], got.Entries[i]
		require.True(t, bytes.Equal(w.Key, g.Key), "key of entry %d: %x, want %x", i, g.Key, w.Key)
		w.Key, g.Key = nil, nil
		require.Equal(t, w, g)
	}
}

// samples holds one message of each kind.
func samples() []Message {
	return []Message{
		{
			Kind: KindInvalidate, CacheID: 9, Epoch: 1, Origin: 77, Seq: 5,
			Entries: []Entry{
				{Key: []byte("acc:1"), Version: 1 << 40},
				{Key: bytes.Repeat([]byte("k"), 200), Deleted: true},
				{Version: 3, Deleted: true},
				{Key: []byte("acc:2"), Stage: Begun, Op: [16]byte{1}, TTL: 20_000},
				{Key: []byte("acc:3"), Stage: Ended, Op: [16]byte{2}, Version: 4},
				{Key: []byte("acc:4"), Stage: Void, Op: [16]byte{3}},
			},
		},
		{Kind: KindInvalidateAll, Flags: FlagIgnorable, CacheID: 9, Origin: 77, Seq: 6},
		{Kind: KindHello, CacheID: 9, Origin: 77, Seq: 7, Nonce: 1},
		{Kind: KindProbe, Flags: FlagIgnorable, CacheID: 9, Origin: 77, Seq: 8, Probes: []Probe{{1, 2}, {3, 4}, {1 << 63, 1 << 40}}},
	}
}

func encode(t testing.TB, m *Message) []byte {
	t.Helper()
	b, err := Append(nil, m)
	require.NoError(t, err)
	return b
}

// seal makes b a message with a good checksum, whatever it says.
func seal(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func TestDecodeRejectsEveryChangedByte(t *testing.T) {
	for _, m := range samples() {
		t.Run(m.Kind.String(), func(t *testing.T) {
			b := encode(t, &m)
			for i := range b {
				for change := byte(1); change != 0; change++ {
					b[i] ^= change
					var got Message
					err := Decode(b, &got)
					b[i] ^= change
					if i == versionOffset {
						require.ErrorIs(t, err, ErrVersion, "byte %d ^ %#x", i, change)
					} else {
						require.ErrorIs(t, err, ErrCorrupt, "byte %d ^ %#x", i, change)
					}
					require.Zero(t, got)
				}
			}
			require.NoError(t, Decode(b, &Message{}), "the test must have put every byte back")
		})
	}
}

func TestDecodeRejectsEveryCutAndEveryAddition(t *testing.T) {
	for _, m := range samples() {
		t.Run(m.Kind.String(), func(t *testing.T) {
			b := encode(t, &m)
			body := b[:len(b)-checksumSize]
			for n := range b {
				require.ErrorIs(t, Decode(b[:n], &Message{}), ErrCorrupt, "cut to %d bytes", n)
			}
			for n := versionOffset + 1; n < len(body); n++ { // the checksum must not be all that notices
				require.ErrorIs(t, Decode(seal(bytes.Clone(body[:n])), &Message{}), ErrCorrupt, "cut to %d bytes and sealed", n)
			}
			for _, extra := range []int{1, 4, 8, 10, 100} {
				tail := make([]byte, extra)
				require.ErrorIs(t, Decode(append(bytes.Clone(b), tail...), &Message{}), ErrCorrupt, "%d bytes more", extra)
				require.ErrorIs(t, Decode(seal(append(bytes.Clone(body), tail...)), &Message{}), ErrCorrupt, "%d bytes more, sealed", extra)
			}
		})
	}
}

// TestDecodeRejectsWhatAppendDoesNotWrite builds bodies with a good checksum
// that say something no sender of this version says.
func TestDecodeRejectsWhatAppendDoesNotWrite(t *testing.T) {
	header := func(k Kind) []byte {
		b := encode(t, &Message{Kind: KindInvalidateAll, CacheID: 1, Seq: 1})[:headerSize]
		b[3] = byte(k)
		return b
	}
	version := func(v uint64, flags byte) []byte {
		return append(binary.LittleEndian.AppendUint64(nil, v), flags)
	}
	tests := []struct {
		name string
		kind Kind
		body []byte // after the header
	}{
		{"count in two bytes where one does", KindInvalidateAll, []byte{0x80, 0x00}},
		{"key length in two bytes where one does", KindInvalidate, append([]byte{1, 0x80, 0x00}, version(1, 0)...)},
		{"count longer than any uvarint", KindInvalidate, bytes.Repeat([]byte{0xff}, 11)},
		{"key length longer than any uvarint", KindInvalidate, append([]byte{1}, bytes.Repeat([]byte{0xff}, 11)...)},
		{"key longer than the message", KindInvalidate, append([]byte{1, 100}, version(1, 0)...)},
		{"key length near the largest uint64", KindInvalidate,
			append(binary.AppendUvarint([]byte{1}, 1<<64-1), version(1, 0)...)},
		{"entries with invalidate all", KindInvalidateAll, append([]byte{1, 0}, version(1, 0)...)},
		{"entries with hello", KindHello, append([]byte{1, 0}, append(version(1, 0), 1, 2, 3, 4, 5, 6, 7, 8)...)},
		{"fewer probes than announced", KindProbe, append([]byte{2}, make([]byte, 16)...)},
		{"more probes than announced", KindProbe, append([]byte{1}, make([]byte, 32)...)},
		{"half a probe", KindProbe, append([]byte{1}, make([]byte, 8)...)},
		{"version 0 not marked unknown", KindInvalidate, append([]byte{1, 0}, version(0, 0)...)},
		{"version 1 marked unknown", KindInvalidate, append([]byte{1, 0}, version(1, entryUnversioned)...)},
		{"entry with a value", KindInvalidate, append([]byte{1, 0}, version(1, 2)...)},
		{"entry flag of the future", KindInvalidate, append([]byte{1, 0}, version(1, 128)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var m Message
			require.ErrorIs(t, Decode(seal(append(header(tt.kind), tt.body...)), &m), ErrCorrupt)
			assert.Zero(t, m.Kind)
			assert.Empty(t, m.Entries)
		})
	}
}

func TestDecodeUnknownKindFillsInTheHeader(t *testing.T) {
	want := Message{Flags: FlagIgnorable | 1<<9, CacheID: 1, Epoch: 2, Origin: 3, Seq: 4}
	for _, kind := range []Kind{0, 4, 12, 255} {
		want.Kind = KindHello
		b := encode(t, &want)
		want.Kind = kind
		b[3] = byte(kind)
		b = append(b[:len(b)-checksumSize], "a body nobody here understands"...)

		got := Message{Nonce: 8, Entries: []Entry{{Version: 9}}, Probes: []Probe{{1, 2}}}
		require.ErrorIs(t, Decode(seal(bytes.Clone(b)), &got), ErrUnknownKind)
		assert.Empty(t, got.Entries)
		assert.Empty(t, got.Probes)
		got.Entries, got.Probes = nil, nil
		assert.Equal(t, want, got)

		// A kind that only a transmission error made up is not "unknown".
		damaged := seal(bytes.Clone(b))
		damaged[len(damaged)-1] ^= 1
		require.ErrorIs(t, Decode(damaged, &got), ErrCorrupt)
		assert.Zero(t, got.Kind)
	}
}

func TestDecodeOtherWireVersion(t *testing.T) {
	// Nothing after the version is looked at, not even the checksum.
	for _, b := range []string{"VC\x00", "VC\x02", "VC\x02 whatever", "VC\xff\x01\x00\x00"} {
		var m Message
		require.ErrorIs(t, Decode([]byte(b), &m), ErrVersion, "%q", b)
		require.Zero(t, m)
	}
}

func TestLimits(t *testing.T) {
	keyOf := func(size int) *Message {
		return &Message{Kind: KindInvalidate, Entries: []Entry{{Key: make([]byte, size), Version: 1}}}
	}
	const overhead = headerSize + 1 + 3 + entryFixed + checksumSize // 3: length of the key

	t.Run("largest message", func(t *testing.T) {
		b := encode(t, keyOf(MaxBytes-overhead))
		assert.Len(t, b, MaxBytes)
		assert.NoError(t, Decode(b, &Message{}))
	})
	t.Run("most entries", func(t *testing.T) {
		b := encode(t, &Message{Kind: KindInvalidate, Entries: make([]Entry, MaxEntries)})
		var m Message
		require.NoError(t, Decode(b, &m))
		assert.Len(t, m.Entries, MaxEntries)
	})

	manyKeys := make([]Entry, MaxEntries) // few enough, and each small enough
	for i := range manyKeys {
		manyKeys[i].Key = make([]byte, 64)
	}
	for name, m := range map[string]*Message{
		"one byte more":      keyOf(MaxBytes - overhead + 1),
		"one huge key":       keyOf(4 * MaxBytes),
		"one entry more":     {Kind: KindInvalidate, Entries: make([]Entry, MaxEntries+1)},
		"one probe more":     {Kind: KindProbe, Probes: make([]Probe, MaxEntries+1)},
		"bytes of many keys": {Kind: KindInvalidate, Entries: manyKeys},
	} {
		t.Run("append "+name, func(t *testing.T) {
			b, err := Append([]byte("kept"), m)
			require.ErrorIs(t, err, ErrTooBig)
			assert.Equal(t, "kept", string(b))
		})
	}

	t.Run("decode one byte more", func(t *testing.T) {
		b := encode(t, keyOf(MaxBytes-overhead))
		b = append(b[:len(b)-checksumSize], 0)
		require.ErrorIs(t, Decode(seal(b), &Message{}), ErrTooBig)
	})
	t.Run("decode one entry more", func(t *testing.T) {
		b := encode(t, &Message{Kind: KindInvalidate})[:headerSize]
		b = binary.AppendUvarint(b, MaxEntries+1)
		for range MaxEntries + 1 {
			b = appendEntry(b, &Entry{Version: 1})
		}
		var m Message
		require.ErrorIs(t, Decode(seal(b), &m), ErrTooBig)
		require.Zero(t, m)
	})
}

func TestAppendRefusesToLeaveAnythingOut(t *testing.T) {
	one := []Entry{{Version: 1}}
	entry := func(e Entry) Message { return Message{Kind: KindInvalidate, Entries: []Entry{e}} }
	for name, tt := range map[string]struct {
		msg  Message
		want error
	}{
		"entries with invalidate all": {Message{Kind: KindInvalidateAll, Entries: one}, ErrFields},
		"entries with hello":          {Message{Kind: KindHello, Nonce: 1, Entries: one}, ErrFields},
		"nonce with invalidate":       {Message{Kind: KindInvalidate, Nonce: 1, Entries: one}, ErrFields},
		"probes with invalidate":      {Message{Kind: KindInvalidate, Probes: []Probe{{1, 2}}}, ErrFields},
		"probes with hello":           {Message{Kind: KindHello, Nonce: 1, Probes: []Probe{{1, 2}}}, ErrFields},
		"entries with probe":          {Message{Kind: KindProbe, Entries: one}, ErrFields},
		"nonce with invalidate all":   {Message{Kind: KindInvalidateAll, Nonce: 1}, ErrFields},
		"operation without a stage":   {entry(Entry{Op: [16]byte{1}}), ErrFields},
		"time to live of a change":    {entry(Entry{TTL: 1}), ErrFields},
		"version of a beginning":      {entry(Entry{Stage: Begun, Version: 1}), ErrFields},
		"deletion that begins":        {entry(Entry{Stage: Begun, Deleted: true}), ErrFields},
		"time to live of an end":      {entry(Entry{Stage: Ended, TTL: 1}), ErrFields},
		"version of nothing":          {entry(Entry{Stage: Void, Version: 1}), ErrFields},
		"deletion of nothing":         {entry(Entry{Stage: Void, Deleted: true}), ErrFields},
		"time to live of nothing":     {entry(Entry{Stage: Void, TTL: 1}), ErrFields},
		"no such stage":               {entry(Entry{Stage: Void + 1}), ErrFields},
		"no kind":                     {Message{}, ErrUnknownKind},
		"reserved kind":               {Message{Kind: 4, Entries: one}, ErrUnknownKind},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Append([]byte("kept"), &tt.msg)
			require.ErrorIs(t, err, tt.want)
			assert.Equal(t, "kept", string(b))
		})
	}
}

// An entry of a stage that Append would not write is no entry.
func TestDecodeStages(t *testing.T) {
	op := strings.Repeat("07", opSize)
	for name, tt := range map[string]struct {
		version, flags, rest string
		want                 error
	}{
		"begun":                  {"0000000000000000", "0c", op + "01000000", nil},
		"ended":                  {"0100000000000000", "10", op, nil},
		"void":                   {"0000000000000000", "34", op, nil},
		"begun and ended":        {"0000000000000000", "1c", op + "01000000", ErrCorrupt},
		"void but not ended":     {"0000000000000000", "24", op, ErrCorrupt},
		"begun with a version":   {"0100000000000000", "08", op + "01000000", ErrCorrupt},
		"begun with a deletion":  {"0000000000000000", "0d", op + "01000000", ErrCorrupt},
		"void with a version":    {"0100000000000000", "30", op, ErrCorrupt},
		"begun, cut in its time": {"0000000000000000", "0c", op + "010000", ErrCorrupt},
		"ended, cut in its name": {"0100000000000000", "10", op[2:], ErrCorrupt},
		"an unknown flag":        {"0100000000000000", "40", "", ErrCorrupt},
	} {
		b := encode(t, &Message{Kind: KindInvalidate})[:headerSize]
		entry, err := hex.DecodeString("01" + "00" + tt.version + tt.flags + tt.rest)
		require.NoError(t, err)
		var m Message
		assert.Equal(t, tt.want, Decode(seal(append(b, entry...)), &m), name)
	}
}

func TestKeysAreCutOffFromTheRestOfTheMessage(t *testing.T) {
	b := encode(t, &samples()[0])
	before := bytes.Clone(b)
	var m Message
	require.NoError(t, Decode(b, &m))
	for i := range m.Entries {
		m.Entries[i].Key = append(m.Entries[i].Key, "more"...)
	}
	assert.Equal(t, before, b)
}

func TestDecodeAllocatesNothingForAnnouncedEntries(t *testing.T) {
	header := encode(t, &Message{Kind: KindInvalidate})[:headerSize]
	for _, n := range []uint64{1, 2, MaxEntries, MaxEntries + 1, 1 << 32, 1<<64/minEntrySize + 1, 1<<64 - 1} {
		b := seal(binary.AppendUvarint(bytes.Clone(header), n))
		var m Message
		allocs := testing.AllocsPerRun(20, func() {
			if Decode(b, &m) == nil {
				t.Error("a message without its entries was accepted")
			}
		})
		assert.Zero(t, allocs, "announced %d entries", n)
		assert.Zero(t, cap(m.Entries), "announced %d entries", n)
		b[3] = byte(KindProbe)
		assert.Error(t, Decode(seal(b[:len(b)-checksumSize]), &m))
		assert.Zero(t, cap(m.Probes), "announced %d probes", n)
	}
}

func TestReuseAllocatesNothing(t *testing.T) {
	for _, m := range samples() {
		b := encode(t, &m)
		var got Message
		require.NoError(t, Decode(b, &got))
		assert.Zero(t, testing.AllocsPerRun(100, func() { _ = Decode(b, &got) }), "Decode %v", m.Kind)

		buf := make([]byte, 0, len(b))
		assert.Zero(t, testing.AllocsPerRun(100, func() { _, _ = Append(buf, &m) }), "Append %v", m.Kind)
	}
}

func TestKindString(t *testing.T) {
	assert.Equal(t, "invalidate", KindInvalidate.String())
	assert.Equal(t, "invalidate-all", KindInvalidateAll.String())
	assert.Equal(t, "hello", KindHello.String())
	assert.Equal(t, "probe", KindProbe.String())
	assert.Equal(t, "kind(12)", Kind(12).String())
}

// FuzzDecode decodes its input twice: as it is, and with a checksum put behind
// it, because a fuzzer does not find checksums by itself.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("VC\x02"))
	for _, m := range samples() {
		b := encode(f, &m)
		f.Add(b)
		f.Add(b[:len(b)-checksumSize])
		b[3] = 12 // a kind of the future
		f.Add(b[:len(b)-checksumSize])
	}
	announced := encode(f, &Message{Kind: KindInvalidate})[:headerSize]
	f.Add(binary.AppendUvarint(announced, 1<<63))

	f.Fuzz(func(t *testing.T, b []byte) {
		checkDecode(t, b)
		checkDecode(t, seal(bytes.Clone(b)))
	})
}

func checkDecode(t *testing.T, b []byte) {
	var m Message
	err := Decode(b, &m)
	if limit := len(b)/minEntrySize*2 + 8; cap(m.Entries) > limit {
		t.Fatalf("room for %d entries from %d bytes", cap(m.Entries), len(b))
	}
	if err != nil {
		return
	}
	again, err := Append(nil, &m)
	require.NoError(t, err)
	require.Equal(t, b, again)
	var second Message
	require.NoError(t, Decode(again, &second))
	requireSameMessage(t, &m, &second)
}

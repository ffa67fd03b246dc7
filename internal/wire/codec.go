package wire

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

const (
	magic       = "VC"
	wireVersion = 1

	headerSize    = 34 // everything before n
	nonceSize     = 8
	probeSize     = 8 + nonceSize
	checksumSize  = 4
	entryFixed    = 8 + 1 // version and entry flags
	minEntrySize  = 1 + entryFixed
	minSize       = headerSize + 1 + checksumSize
	versionOffset = len(magic)
)

// Entry flags. Bit 2 is reserved for an entry that carries its value.
const (
	entryDeleted     = 1
	entryUnversioned = 4
	entryBegun       = 8
	entryEnded       = 16
	entryVoid        = 32 // with entryEnded
	entryStage       = entryBegun | entryEnded | entryVoid
)

// Sizes of what an entry has beside its fixed part, by its stage.
const (
	opSize  = 16
	ttlSize = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append appends the encoding of m to dst and returns the longer slice. It
// allocates only when dst has no room and keeps no reference to m.
//
// The error is [ErrTooBig], [ErrUnknownKind] for a kind that this wire version
// does not define, or [ErrFields]; then dst is returned as it was.
func Append(dst []byte, m *Message) ([]byte, error) {
	size, err := encodedSize(m)
	if err != nil {
		return dst, err
	}
	b := slices.Grow(dst, size)
	start := len(b)
	b = append(b, magic...)
	b = append(b, wireVersion, byte(m.Kind))
	b = binary.LittleEndian.AppendUint16(b, m.Flags)
	b = binary.LittleEndian.AppendUint64(b, m.CacheID)
	b = binary.LittleEndian.AppendUint32(b, m.Epoch)
	b = binary.LittleEndian.AppendUint64(b, m.Origin)
	b = binary.LittleEndian.AppendUint64(b, m.Seq)
	b = binary.AppendUvarint(b, uint64(len(m.Entries)+len(m.Probes))) // one of them is empty
	for i := range m.Entries {
		b = appendEntry(b, &m.Entries[i])
	}
	for _, p := range m.Probes {
		b = binary.LittleEndian.AppendUint64(b, p.Origin)
		b = binary.LittleEndian.AppendUint64(b, p.Nonce)
	}
	if m.Kind == KindHello {
		b = binary.LittleEndian.AppendUint64(b, m.Nonce)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli)), nil
}

// encodedSize returns the size of the encoding of m in bytes, or why it has none.
func encodedSize(m *Message) (int, error) {
	if !m.Kind.known() {
		return 0, ErrUnknownKind
	}
	if len(m.Entries) > 0 && m.Kind != KindInvalidate || len(m.Probes) > 0 && m.Kind != KindProbe || m.Nonce != 0 && m.Kind != KindHello {
		return 0, ErrFields
	}
	if len(m.Entries) > MaxEntries || len(m.Probes) > MaxEntries {
		return 0, ErrTooBig
	}
	size := headerSize + uvarintSize(len(m.Entries)+len(m.Probes)) + probeSize*len(m.Probes) + checksumSize
	if m.Kind == KindHello {
		size += nonceSize
	}
	for i := range m.Entries {
		n := len(m.Entries[i].Key)
		if n > MaxBytes { // before the sum, which must not overflow
			return 0, ErrTooBig
		}
		if !m.Entries[i].consistent() {
			return 0, ErrFields
		}
		size += uvarintSize(n) + n + entryFixed + m.Entries[i].Stage.size()
	}
	if size > MaxBytes {
		return 0, ErrTooBig
	}
	return size, nil
}

// size returns how many bytes an entry of stage s has beside its fixed part.
func (s Stage) size() int {
	switch s {
	case 0:
		return 0
	case Begun:
		return opSize + ttlSize
	default:
		return opSize
	}
}

// consistent reports whether e has no field that its stage has no place for.
func (e *Entry) consistent() bool {
	stateless := e.Version == 0 && !e.Deleted
	switch e.Stage {
	case 0:
		return e.Op == [opSize]byte{} && e.TTL == 0
	case Begun:
		return stateless
	case Ended:
		return e.TTL == 0
	case Void:
		return stateless && e.TTL == 0
	default:
		return false
	}
}

func uvarintSize(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

func appendEntry(b []byte, e *Entry) []byte {
	var flags byte
	if e.Deleted {
		flags |= entryDeleted
	}
	if e.Version == 0 {
		flags |= entryUnversioned
	}
	switch e.Stage {
	case Begun:
		flags |= entryBegun
	case Ended:
		flags |= entryEnded
	case Void:
		flags |= entryEnded | entryVoid
	}
	b = binary.AppendUvarint(b, uint64(len(e.Key)))
	b = append(b, e.Key...)
	b = binary.LittleEndian.AppendUint64(b, e.Version)
	b = append(b, flags)
	if e.Stage != 0 {
		b = append(b, e.Op[:]...)
	}
	if e.Stage == Begun {
		b = binary.LittleEndian.AppendUint32(b, e.TTL)
	}
	return b
}

// Decode reads the message that fills all of b into m. It overwrites every
// field of m and reuses the arrays of m.Entries and m.Probes, so decoding into one
// Message again and again allocates nothing once they have grown. The keys of
// m.Entries alias b: copy those that must outlive it.
//
// The error is [ErrVersion], [ErrTooBig], [ErrUnknownKind] or [ErrCorrupt].
// With ErrUnknownKind the checksum was good and every field of m but Nonce,
// Entries and Probes is filled in, so the caller can ask m.Flags whether the message
// may be skipped. With any other error m is zero but for the room in these two.
func Decode(b []byte, m *Message) error {
	*m = Message{Entries: m.Entries[:0], Probes: m.Probes[:0]}
	body, err := unseal(b)
	if err != nil {
		return err
	}
	m.Kind = Kind(body[3])
	m.Flags = binary.LittleEndian.Uint16(body[4:])
	m.CacheID = binary.LittleEndian.Uint64(body[6:])
	m.Epoch = binary.LittleEndian.Uint32(body[14:])
	m.Origin = binary.LittleEndian.Uint64(body[18:])
	m.Seq = binary.LittleEndian.Uint64(body[26:])
	if !m.Kind.known() {
		return ErrUnknownKind
	}
	if err := decodeBody(body[headerSize:], m); err != nil {
		*m = Message{Entries: m.Entries[:0], Probes: m.Probes[:0]}
		return err
	}
	return nil
}

// unseal checks what surrounds a message and returns b without its checksum:
// at least a header and one byte more.
//
// The wire version is looked at before the checksum, because another version
// may use another checksum.
func unseal(b []byte) ([]byte, error) {
	if len(b) <= versionOffset || string(b[:versionOffset]) != magic {
		return nil, ErrCorrupt
	}
	if b[versionOffset] != wireVersion {
		return nil, ErrVersion
	}
	if len(b) > MaxBytes {
		return nil, ErrTooBig
	}
	if len(b) < minSize {
		return nil, ErrCorrupt
	}
	body, sum := b[:len(b)-checksumSize], b[len(b)-checksumSize:]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return nil, ErrCorrupt
	}
	return body, nil
}

// decodeBody reads what follows the header of a known kind.
func decodeBody(b []byte, m *Message) error {
	n, b, ok := cutUvarint(b)
	if !ok || n > 0 && m.Kind != KindInvalidate && m.Kind != KindProbe {
		return ErrCorrupt
	}
	if n > MaxEntries {
		return ErrTooBig
	}
	if m.Kind == KindProbe {
		return decodeProbes(b, n, m)
	}
	if n*minEntrySize > uint64(len(b)) { // before Entries grows
		return ErrCorrupt
	}
	m.Entries = slices.Grow(m.Entries, int(n))
	for range n {
		var e Entry
		if e, b, ok = cutEntry(b); !ok {
			return ErrCorrupt
		}
		m.Entries = append(m.Entries, e)
	}
	if m.Kind == KindHello {
		if len(b) < nonceSize {
			return ErrCorrupt
		}
		m.Nonce = binary.LittleEndian.Uint64(b)
		b = b[nonceSize:]
	}
	if len(b) != 0 {
		return ErrCorrupt
	}
	return nil
}

// decodeProbes reads n probes, which must fill all of b.
func decodeProbes(b []byte, n uint64, m *Message) error {
	if n*probeSize != uint64(len(b)) { // before Probes grows
		return ErrCorrupt
	}
	m.Probes = slices.Grow(m.Probes, int(n))
	for ; len(b) > 0; b = b[probeSize:] {
		m.Probes = append(m.Probes, Probe{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])})
	}
	return nil
}

// cutEntry reads the entry that b begins with and returns the rest of b.
func cutEntry(b []byte) (e Entry, rest []byte, ok bool) {
	size, b, ok := cutUvarint(b)
	if !ok || size > uint64(len(b)) || uint64(len(b))-size < entryFixed {
		return Entry{}, nil, false
	}
	e.Key = b[:size:size] // an append to Key must not write into the message
	b = b[size:]
	e.Version = binary.LittleEndian.Uint64(b)
	flags := b[entryFixed-1]
	b = b[entryFixed:]
	e.Deleted = flags&entryDeleted != 0
	unversioned := flags&entryUnversioned != 0
	if flags&^(entryDeleted|entryUnversioned|entryStage) != 0 || unversioned != (e.Version == 0) {
		return Entry{}, nil, false
	}
	switch flags & entryStage {
	case 0:
		return e, b, true
	case entryBegun:
		e.Stage = Begun
	case entryEnded:
		e.Stage = Ended
	case entryEnded | entryVoid:
		e.Stage = Void
	default:
		return Entry{}, nil, false
	}
	if len(b) < e.Stage.size() {
		return Entry{}, nil, false
	}
	copy(e.Op[:], b)
	if e.Stage == Begun {
		e.TTL = binary.LittleEndian.Uint32(b[opSize:])
	}
	return e, b[e.Stage.size():], e.consistent()
}

// cutUvarint reads the uvarint that b begins with and returns the rest of b. A
// number that could have been written in fewer bytes is refused: every message
// has one encoding.
func cutUvarint(b []byte) (x uint64, rest []byte, ok bool) {
	x, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 {
		return 0, nil, false
	}
	return x, b[n:], true
}

package pgtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestWithoutPostgres: what a test says where there is no server is what to do. That
// servers start, die and come back is tested in integration, which has a driver.
func TestWithoutPostgres(t *testing.T) {
	before := installed
	t.Cleanup(func() { installed = before })
	installed = filepath.Join(t.TempDir(), "usr", "lib", "postgresql", "*", "bin", "initdb")
	t.Setenv("PATH", "")
	t.Setenv(Variable, "")
	_, _, err := find()
	require.Error(t, err)
	assert.ErrorContains(t, err, "apt-get install postgresql")
	assert.ErrorContains(t, err, Variable)
	_, err = New()
	require.ErrorIs(t, err, errNotInstalled)

	for _, bad := range []string{"host=127.0.0.1", "127.0.0.1:5432", "mysql://127.0.0.1", "postgres://%zz"} {
		t.Setenv(Variable, bad)
		_, _, err := find()
		assert.ErrorContains(t, err, "is not a URL like postgres://", bad)
	}
	t.Setenv(Variable, "postgres://user@db/x?sslmode=disable")
	url, server, err := find()
	require.NoError(t, err)
	assert.Equal(t, os.Getenv(Variable), url)
	assert.Nil(t, server)
}

// TestBinaries_AreTheNewest of those that are installed, by number.
func TestBinaries_AreTheNewest(t *testing.T) {
	before := installed
	t.Cleanup(func() { installed = before })
	root := t.TempDir()
	installed = filepath.Join(root, "*", "bin", "initdb")
	for _, version := range []string{"9", "15", "17"} {
		folder := filepath.Join(root, version, "bin")
		require.NoError(t, os.MkdirAll(folder, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(folder, "initdb"), nil, 0o755))
	}
	got, err := binaries()
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(root, "17", "bin"), got)
}

package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLoops_AreWhatTheTemplateSays(t *testing.T) {
	want, err := generate()
	require.NoError(t, err)
	got, err := os.ReadFile("../loops.go")
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got), "run go generate . in bench")
}

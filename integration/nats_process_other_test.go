//go:build !linux

package integration

import "os/exec"

// startTied starts a process. Here it outlives this one, if this one is killed.
func startTied(cmd *exec.Cmd) error { return cmd.Start() }

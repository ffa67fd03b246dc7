//go:build !unix

package pgtest

import (
	"fmt"
	"os/exec"
	"syscall"
)

const sigstop = syscall.SIGKILL

// own refuses: servers are started on Unix only.
func own(string) error {
	return fmt.Errorf("pgtest: no server can be started on this system: set %s to the URL of one", Variable)
}

func asOwner(*exec.Cmd)              {}
func kill(int, syscall.Signal) error { return own("") }
func gone(int) bool                  { return false }
func children(int) []int             { return nil }

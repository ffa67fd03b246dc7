package integration

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// starter runs what it is sent on one thread, which lives as long as this process:
// Linux takes the end of the thread that started a process for its parent's.
var starter = sync.OnceValue(func() chan<- func() {
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for call := range calls {
			call()
		}
	}()
	return calls
})

// startTied starts a process that does not outlive this one, however this one ends.
func startTied(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starter() <- func() { started <- cmd.Start() }
	return <-started
}

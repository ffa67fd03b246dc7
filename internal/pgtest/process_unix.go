//go:build unix

package pgtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// sigstop stops a process until it is killed.
const sigstop = syscall.SIGSTOP

// owner returns the user that servers run as, if not as this process: PostgreSQL
// refuses to run as root.
func owner() (uid, gid int, other bool, err error) {
	if os.Geteuid() != 0 {
		return 0, 0, false, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, false, fmt.Errorf("pgtest: this is root, and PostgreSQL does not run as root: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return uid, gid, true, errors.Join(err1, err2)
}

// own gives dir to the servers' user.
func own(dir string) error {
	uid, gid, other, err := owner()
	if err != nil || !other {
		return err
	}
	return os.Chown(dir, uid, gid)
}

// asOwner makes cmd run as the servers' user, and out of the reach of the terminal:
// an interrupt is for the test binary.
func asOwner(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if uid, gid, other, err := owner(); err == nil && other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
}

// kill sends a signal. The error for a process that is not there is
// [os.ErrProcessDone].
func kill(pid int, sig syscall.Signal) error {
	err := syscall.Kill(pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// gone reports whether a process has ended, though it may be a zombie. Where there
// is no /proc, zombies count as alive.
func gone(pid int) bool {
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, found := bytes.Cut(stat, []byte(") ")) // behind the name
	return found && len(state) > 0 && (state[0] == 'Z' || state[0] == 'X')
}

// children returns the processes that pid has started, where there is a /proc.
func children(pid int) (pids []int) {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	for _, field := range bytes.Fields(list) {
		if child, err := strconv.Atoi(string(field)); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

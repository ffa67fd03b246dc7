package tidemark

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run if the tests, which close every cache they make, leave
// a goroutine behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := goroutinesLeft(5 * time.Second); code == 0 && len(left) > 0 {
		fmt.Printf("FAIL: %d goroutines are left behind:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// goroutinesLeft returns the stacks of the goroutines that are neither the
// caller's nor the testing package's, once there are none or the time is over.
func goroutinesLeft(within time.Duration) []string {
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		left := goroutines()
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// goroutines returns the stacks of all goroutines that may be a test's.
func goroutines() (stacks []string) {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	for i, stack := range strings.Split(strings.TrimSpace(string(buf)), "\n\n") {
		switch {
		case i == 0: // the caller
		case strings.Contains(stack, "testing.tRunner("), strings.Contains(stack, "testing.(*T).Run("), strings.Contains(stack, "testing.(*M)."):
		case strings.Contains(stack, "os/signal."), strings.Contains(stack, "runtime.ensureSigM"):
		default:
			stacks = append(stacks, stack)
		}
	}
	return stacks
}

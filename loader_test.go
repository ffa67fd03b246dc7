package tidemark

import "runtime"

// goexit ends the calling goroutine.
func goexit() { runtime.Goexit() }

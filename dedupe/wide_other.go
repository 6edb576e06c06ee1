//go:build !amd64

package dedupe

const wide = false

func sampleGroups(*uint32, *byte, int) { panic("dedupe: not on this processor") }

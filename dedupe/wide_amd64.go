package dedupe

import features "golang.org/x/sys/cpu"

// wide says whether this processor has sampleGroups.
var wide = features.X86.HasAVX2

// sampleGroups sets masks for 32*groups positions from b on, 1 to wideGroups
// groups: bit k of a group's mask says whether a window that begins at its
// position k is that of an anchor. It reads wideMore bytes behind them.
//
// The sum of two bytes is 61 times the first and 37 times the second; that of a
// longer window a constant times the sum of its first half, and the sum of its
// second. So all windows of 64 bytes take six steps, and no position waits for
// another.
//
//go:noescape
func sampleGroups(masks *uint32, b *byte, groups int)

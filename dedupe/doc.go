// Package dedupe finds repeats of bytes that two agents have already
// exchanged. See History.
package dedupe

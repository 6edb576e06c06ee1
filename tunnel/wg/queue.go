package wg

// queue is a bounded ring of packets that keeps its buffers. When there is no
// room for all parts of a message, push drops the message, that is the newest:
// what waits is older and nearer to its receiver's patience. It is not safe
// for concurrent use.
type queue struct {
	slots   [][]byte
	head, n int
}

// newQueue returns a queue of at most n packets.
func newQueue(n int) *queue { return &queue{slots: make([][]byte, n)} }

// room reports whether n more packets fit.
func (q *queue) room(n int) bool { return q.n+n <= len(q.slots) }

// push adds a packet of n bytes and returns its bytes for the caller to fill
// in. There must be room.
func (q *queue) push(n int) []byte {
	slot := &q.slots[(q.head+q.n)%len(q.slots)]
	q.n++
	if cap(*slot) < n {
		*slot = make([]byte, n, max(n, 2048))
	}
	*slot = (*slot)[:n]
	return *slot
}

// pop takes the oldest packet out and gives its slot the spare buffer in
// return; nil if there is none.
func (q *queue) pop(spare []byte) []byte {
	if q.n == 0 {
		return nil
	}
	b := q.slots[q.head]
	q.slots[q.head] = spare
	q.head = (q.head + 1) % len(q.slots)
	q.n--
	return b
}

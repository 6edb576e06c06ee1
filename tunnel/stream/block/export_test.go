package block

import "stitch/compress"

// Pin makes every block be compressed at level l.
func (e *Encoder) Pin(l compress.Level) { e.level, e.chooser = l, nil }

// Bulk makes the encoder take a context at once.
func (e *Encoder) Bulk() { e.bulk = bulkSize }

package store

// Seal writes the checksum of a record or state slot.
var Seal = seal

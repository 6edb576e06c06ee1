package traffic

import (
	"fmt"
	"math/rand/v2"
)

// Log returns n bytes like a web server's log, which compress to about a fifth;
// the same ones each time.
func Log(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 1))
	var b []byte
	for len(b) < n {
		b = fmt.Appendf(b, "192.0.2.%d - - [26/Nov/2026:%02d:%02d:%02d +0000] \"GET /static/%x HTTP/1.1\" 200 %d\n",
			rng.IntN(256), rng.IntN(24), rng.IntN(60), rng.IntN(60), rng.Uint32(), rng.IntN(100000))
	}
	return b[:n]
}

// Noise returns n bytes that do not compress; the same ones each time.
func Noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

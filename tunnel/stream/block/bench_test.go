package block_test

import (
	"testing"

	"stitch/compress"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

// encodeAll encodes src in blocks that are acknowledged at once and returns
// the bytes sent.
func encodeAll(b *testing.B, e *block.Encoder, d *block.Decoder, src []byte) (wire int) {
	var body, out, ack []byte
	for len(src) > 0 {
		n := min(len(src), block.MaxBlock)
		body = e.Append(body[:0], src[:n])
		wire += len(body)
		if d != nil {
			var err error
			if out, err = d.Decode(out[:0], body); err != nil {
				b.Fatal(err)
			}
			ack = d.AppendAck(ack[:0])
			if err := e.Ack(ack); err != nil {
				b.Fatal(err)
			}
		}
		src = src[n:]
	}
	return wire
}

// BenchmarkFresh encodes data never seen before; "match" is matching alone.
func BenchmarkFresh(b *testing.B) {
	const n = 64 << 20
	for _, data := range []struct {
		name  string
		bytes []byte
	}{
		{"random", blocktest.Random(1, n)},
		{"text", blocktest.Text(1, n)},
		{"pages", blocktest.Pages(1, n/4104)},
	} {
		for _, e := range []struct {
			name  string
			level compress.Level
		}{{"match", compress.Store}, {"fast", compress.Fast}, {"balanced", compress.Balanced}, {"strong", compress.Strong}} {
			b.Run(data.name+"/"+e.name, func(b *testing.B) {
				b.SetBytes(int64(len(data.bytes)))
				b.ReportAllocs()
				wire := 0
				p := blocktest.NewAgents(n)
				_ = p.Forward(1).Send(data.bytes, nil) // touches the memory
				for b.Loop() {
					b.StopTimer()
					p.A.Restart()
					c := p.Forward(1)
					b.StartTimer()
					c.Enc.Pin(e.level)
					wire = encodeAll(b, c.Enc, nil, data.bytes)
					b.StopTimer()
					c.Close()
					b.StartTimer()
				}
				b.ReportMetric(float64(len(data.bytes))/float64(wire), "ratio")
			})
		}
	}
}

// BenchmarkReturn sends a stream of guest pages one way, then the other way
// with one page in a hundred edited; the second is measured, encoding only.
func BenchmarkReturn(b *testing.B) {
	src := blocktest.Pages(1, 16<<10)
	back, edited, pages := blocktest.Edit(src, 2, 100)
	for _, bench := range []struct {
		name   string
		bytes  []byte
		decode bool
	}{{"again", src, false}, {"edited", back, false}, {"edited+decode", back, true}} {
		b.Run(bench.name, func(b *testing.B) {
			p := blocktest.NewAgents(160 << 20)
			if err := p.Forward(1).Send(src, nil); err != nil {
				b.Fatal(err)
			}
			if err := p.Backward(1).Send(src, nil); err != nil { // touches the memory
				b.Fatal(err)
			}
			b.SetBytes(int64(len(bench.bytes)))
			b.ReportAllocs()
			wire := 0
			for b.Loop() {
				c := p.Backward(2)
				dec := c.Dec
				if !bench.decode {
					dec = nil
				}
				c.Enc.Pin(compress.Fast)
				wire = encodeAll(b, c.Enc, dec, bench.bytes)
				c.Close()
				b.StopTimer()
				p.A.Restart()
				p.B.Restart()
				p.Meet()
				if err := p.Forward(1).Send(src, nil); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(len(bench.bytes))/float64(wire), "ratio")
			b.ReportMetric(float64(wire)/float64(edited+12*pages), "x-edited")
		})
	}
}

// BenchmarkPhases encodes fresh guest pages with both halves in turn, and with
// the second half of each block beside the first half of the next, which needs
// two cores to be faster. x-zstd is the share of the literals that zstd took.
func BenchmarkPhases(b *testing.B) {
	src := blocktest.Pages(1, 8<<10)
	for name, encode := range map[string]func(*block.Encoder) int{
		"in turn": func(e *block.Encoder) (wire int) {
			var body []byte
			for rest := src; len(rest) > 0; rest = rest[min(len(rest), block.MaxBlock):] {
				body = e.Append(body[:0], rest[:min(len(rest), block.MaxBlock)])
				wire += len(body)
			}
			return wire
		},
		"beside": func(e *block.Encoder) (wire int) {
			works, done := make(chan *block.Work), make(chan int)
			go func() {
				var body []byte
				n := 0
				for w := range works {
					body = e.Finish(body[:0], w)
					n += len(body)
				}
				done <- n
			}()
			for rest := src; len(rest) > 0; rest = rest[min(len(rest), block.MaxBlock):] {
				works <- e.Match(rest[:min(len(rest), block.MaxBlock)])
			}
			close(works)
			return <-done
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			wire := 0
			var mix block.Mix
			p := blocktest.NewAgents(64 << 20)
			for b.Loop() {
				b.StopTimer()
				p.A.Restart()
				c := p.Forward(1)
				b.StartTimer()
				wire = encode(c.Enc)
				mix = c.Enc.Stats().Mix
				c.Close()
			}
			zstd := mix.Zstd.In + mix.Carried.In
			b.ReportMetric(float64(len(src))/float64(wire), "ratio")
			b.ReportMetric(float64(zstd)/float64(zstd+mix.S2.In+mix.Raw.In), "x-zstd")
		})
	}
}

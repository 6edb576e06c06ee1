package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"stitch/scripts/machine"
	"stitch/scripts/source"
)

const (
	pictures = 16
	logLines = 200_000
)

// others makes what is not a guest: source trees and their archives, logs,
// pictures, and a name for the disk image.
func (c *corpus) others(ctx context.Context) error {
	if err := c.sources(ctx); err != nil {
		return err
	}
	for i := range 2 {
		name := fmt.Sprintf("web%d.log", i+1)
		err := c.create(name, "a web server's log of day "+fmt.Sprint(i+1)+" (made up)", func(w io.Writer) error {
			return accessLog(w, i, logLines)
		})
		if err != nil {
			return err
		}
	}
	err := c.create("pictures.jpg", "JPEG pictures one after another (made up)", func(w io.Writer) error {
		return jpegs(w, pictures)
	})
	if err != nil {
		return err
	}
	disk := c.path("disk.img")
	if err := os.Remove(disk); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Link(filepath.Join(c.image, "golden.img"), disk); err != nil {
		return err
	}
	return c.list("the disk image all guests start from", disk)
}

// create writes and lists a file.
func (c *corpus) create(name, what string, fill func(io.Writer) error) error {
	f, err := os.Create(c.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	if err := errors.Join(fill(w), w.Flush(), f.Close()); err != nil {
		return err
	}
	c.Say("%s: made", name)
	return c.list(what, c.path(name))
}

// sources gets the source trees by Go's module proxy, into a cache of their own.
func (c *corpus) sources(ctx context.Context) error {
	for i, version := range source.Versions {
		at, err := source.Download(ctx, filepath.Join(c.work, "source"), version)
		if err != nil {
			return err
		}
		tar := c.path(fmt.Sprintf("source%d.tar", i+1))
		zip := c.path(fmt.Sprintf("source%d.zip", i+1))
		if err := machine.Run(exec.CommandContext(ctx, "tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner",
			"-C", filepath.Dir(at.Dir), "--transform=s,^[^/]*,source,", "-cf", tar, filepath.Base(at.Dir))); err != nil {
			return err
		}
		if err := machine.Run(exec.CommandContext(ctx, "cp", at.Zip, zip)); err != nil {
			return err
		}
		c.Say("%s %s: here", source.Module, version)
		if err := errors.Join(c.list("source tree of "+source.Module+" "+version, tar), c.list("the same tree as a zip archive", zip)); err != nil {
			return err
		}
	}
	return nil
}

// accessLog writes lines as web servers do, of one day of a shop with regular
// customers and favourite pages.
func accessLog(w io.Writer, day, lines int) error {
	r := rand.New(rand.NewPCG(uint64(day), 0))
	agents := []string{
		"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1",
		"curl/8.5.0", "Prometheus/2.53.0",
	}
	pages := rand.NewZipf(r, 1.2, 4, 9999)
	clients := rand.NewZipf(r, 1.1, 8, 1<<18)
	at := time.Date(2026, 3, 1+day, 0, 0, 0, 0, time.UTC)
	for range lines {
		at = at.Add(time.Duration(r.ExpFloat64() * float64(24*time.Hour) / float64(lines)))
		client := uint32(clients.Uint64()) * 2654435761
		status := 200
		if r.IntN(40) == 0 {
			status = []int{301, 304, 404, 500}[r.IntN(4)]
		}
		_, err := fmt.Fprintf(w, "%d.%d.%d.%d - - [%s] \"GET /item/%d?s=%08x HTTP/1.1\" %d %d \"https://shop.example/list/%d\" \"%s\" %.3f\n",
			client>>24, client>>16&255, client>>8&255, client&255, at.Format("02/Jan/2006:15:04:05 -0700"),
			pages.Uint64(), r.Uint32(), status, 400+r.IntN(30_000), pages.Uint64()/100, agents[client%uint32(len(agents))], r.ExpFloat64()/20)
		if err != nil {
			return err
		}
	}
	return nil
}

// jpegs writes n pictures of soft shapes and grain.
func jpegs(w io.Writer, n int) error {
	const width, height = 1600, 1200
	for i := range n {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		var wave [3][3]float64
		for c := range wave {
			wave[c] = [3]float64{r.Float64() / 90, r.Float64() / 90, r.Float64() * 6}
		}
		picture := image.NewRGBA(image.Rect(0, 0, width, height))
		for y := range height {
			for x := range width {
				var v [3]uint8
				grain := r.Float64() * 24
				for c, k := range wave {
					v[c] = uint8(116 + 100*math.Sin(k[0]*float64(x)+k[2])*math.Cos(k[1]*float64(y)) + grain)
				}
				picture.SetRGBA(x, y, color.RGBA{v[0], v[1], v[2], 255})
			}
		}
		var b bytes.Buffer
		if err := jpeg.Encode(&b, picture, &jpeg.Options{Quality: 88}); err != nil {
			return err
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

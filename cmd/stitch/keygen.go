package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"stitch/tunnel/config"
	"stitch/tunnel/wg"
)

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:      "keygen",
		Usage:     "make a key pair: the private key into FILE, the public key on stdout",
		ArgsUsage: "FILE",
		Description: "FILE gets mode 0600 and is never overwritten; name it as private_key_file.\n" +
			"The peers put the public key into public_key.\n\n" +
			"Examples:\n" +
			"  stitch keygen /etc/stitch/dc1.key\n" +
			"  stitch keygen --public /etc/stitch/dc1.key   # once more, of an existing file\n" +
			"  stitch keygen --preshared /etc/stitch/dc1-dc2.psk   # a secret for both ends",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "public", Usage: "print the public key of the existing FILE"},
			&cli.BoolFlag{Name: "preshared", Usage: "make a preshared key: copy FILE to the peer over a safe way"},
		},
		Action: func(c *cli.Context) error {
			file, err := oneArg(c, "FILE")
			if err != nil {
				return err
			}
			public, preshared := c.Bool("public"), c.Bool("preshared")
			var key config.Key
			switch {
			case public && preshared:
				return refuse("a preshared key has no public key: choose one flag")
			case public:
				key, err = readKey(file)
			default:
				key, err = writeKey(file)
			}
			if err == nil && !preshared {
				_, err = fmt.Fprintln(c.App.Writer, wg.PublicKey(key).Base64())
			}
			return err
		},
	}
}

// readKey reads the private key in a file.
func readKey(file string) (config.Key, error) {
	key, err := config.LoadKey(file)
	if err != nil {
		return key, refusal{err}
	}
	return key, nil
}

// writeKey makes a key and a new file for it.
func writeKey(file string) (config.Key, error) {
	key, err := wg.GenerateKey(rand.Reader)
	if err != nil {
		return key, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return key, hint{refuse("%s exists already and is not overwritten", file), "`stitch keygen --public " + file + "` prints its public key"}
	}
	if err != nil {
		return key, refusal{err}
	}
	_, err = f.WriteString(key.Base64() + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return key, errors.Join(err, os.Remove(file))
	}
	return key, nil
}

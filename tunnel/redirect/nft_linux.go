package redirect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
)

// nftState is what the kernel tells of our table: somebody who flushed,
// deleted or refilled it leaves another handle or another number of objects.
// The zero value means there is no table.
type nftState struct {
	handle uint64
	use    uint32
}

// Attributes of a table in linux/netfilter/nf_tables.h.
const (
	nftaTableName   = 1
	nftaTableUse    = 3
	nftaTableHandle = 4
)

// readNft asks for our table; an error reads as "none".
func readNft() (s nftState) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nftaTableName, []byte(config.NftTable+"\x00")))
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(msgs) == 0 || len(msgs[0]) < nl.SizeofNfgenmsg {
		return nftState{}
	}
	attrs, err := nl.ParseRouteAttr(msgs[0][nl.SizeofNfgenmsg:])
	if err != nil {
		return nftState{}
	}
	for _, a := range attrs {
		switch {
		case a.Attr.Type == nftaTableHandle && len(a.Value) == 8:
			s.handle = binary.BigEndian.Uint64(a.Value)
		case a.Attr.Type == nftaTableUse && len(a.Value) == 4:
			s.use = binary.BigEndian.Uint32(a.Value)
		}
	}
	return s
}

// applyNft loads the text unless it is loaded already and still whole.
func (k *Linux) applyNft(text string) error {
	if text == k.applied && k.table != (nftState{}) && readNft() == k.table {
		return nil
	}
	if err := runNft(text); err != nil {
		return err
	}
	k.applied, k.table = text, readNft()
	return nil
}

func (k *Linux) deleteNft() error {
	k.applied, k.table = "", nftState{}
	if readNft() == (nftState{}) {
		return nil
	}
	return runNft("delete table inet " + config.NftTable + "\n")
}

// runNft feeds one transaction to nft.
func runNft(text string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("redirect: nft is not installed: apt-get install nftables")
	}
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
		return fmt.Errorf("redirect: nft: %s: %w", line, err)
	}
	return nil
}

// Tracked is how many connections the kernel tracks in this network namespace, and how
// many it can; 0 and 0 if it does not say.
func Tracked() (n, most int) {
	n, err1 := strconv.Atoi(sysctl("net/netfilter/nf_conntrack_count"))
	most, err2 := strconv.Atoi(sysctl("net/netfilter/nf_conntrack_max"))
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	return n, most
}

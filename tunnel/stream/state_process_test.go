package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// ResumeVariable makes the test binary the new stream process of site dc1, with its
// history in the directory that it names. Descriptor 3 is a socket to the old one.
const ResumeVariable = "STITCH_TEST_RESUME"

// ResumeMain is that process: it goes on with what it is given until all has ended.
func ResumeMain(dir string) error {
	c, err := net.FileConn(os.NewFile(3, "handover"))
	if err != nil {
		return err
	}
	a := &agent{site: "dc1", peer: "dc2", near: true, history: duoHistory(dir)}
	if err := a.start(); err != nil {
		return err
	}
	for {
		state, files, err := receive(c.(*net.UnixConn))
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := a.unpack(state, files[0], files[1]); err != nil {
			return err
		}
	}
	a.p.tasks.Wait()
	s := a.p.Stats().Peers[0]
	fmt.Printf("%d streams, %d reset\n", s.Total, s.Reset)
	return a.p.Close()
}

// send hands a stream over: the length of its state, with both descriptors, then it.
func (p packed) send(c *net.UnixConn) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(p.state)))
	if _, _, err := c.WriteMsgUnix(head, unix.UnixRights(int(p.local.Fd()), int(p.peer.Fd())), nil); err != nil {
		return err
	}
	_, err := c.Write(p.state)
	return cmpErr(err, p.local.Close(), p.peer.Close())
}

// receive takes what send sends.
func receive(c *net.UnixConn) (state []byte, files [2]*os.File, err error) {
	head, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(8))
	n, m, _, _, err := c.ReadMsgUnix(head, oob)
	if err != nil || n == 0 {
		return nil, files, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil || n < 4 || len(messages) != 1 {
		return nil, files, fmt.Errorf("handover: %d bytes, %d messages, %v", n, len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		return nil, files, fmt.Errorf("handover: %d descriptors, %v", len(fds), err)
	}
	for i, fd := range fds {
		unix.SetNonblock(fd, true)
		files[i] = os.NewFile(uintptr(fd), "handed over")
	}
	state = make([]byte, binary.BigEndian.Uint32(head))
	_, err = io.ReadFull(c, state)
	return state, files, err
}

// TestResumeProcess: streams in the middle of everything are handed to a second
// process with their descriptors (SCM_RIGHTS), and this one closes the history that
// the other opens.
func TestResumeProcess(t *testing.T) {
	d := newDuo(t, true)
	a := d.agents[0]
	const streams, size = 4, 3 << 20
	results := make(chan error, 4*streams)
	modes := [streams]mode{modeFull, modeFull, modeCompress, modeAccelerate}
	var heard [2 * streams]heardSoFar
	for k := range streams {
		j := d.open(modes[k])
		for i := range 2 {
			id := uint64(2*k + i)
			go func() { results <- cmpErr(say(j.hosts[i], id, 0, size), j.hosts[i].CloseWrite()) }()
			go func() {
				n, err := hear(j.hosts[1-i], id, 0, 0, &heard[id])
				if err == nil && n != size {
					err = fmt.Errorf("direction %d ended after %d bytes", id, n)
				}
				results <- err
			}()
		}
	}
	d.await("they are on the way", func() bool { return sum(heard[:]) > streams*size/2 })
	handed := d.pack(a, nil)
	if len(handed) != streams {
		t.Errorf("%d streams are handed over", len(handed))
	}
	d.must(a.p.Close())

	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	d.must(err)
	ours, theirs := os.NewFile(uintptr(ends[0]), ""), os.NewFile(uintptr(ends[1]), "")
	c, err := net.FileConn(ours)
	d.must(err)
	ours.Close()
	self, err := os.Executable()
	d.must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), ResumeVariable+"="+a.history.Dir)
	cmd.ExtraFiles = []*os.File{theirs}
	var out lines
	cmd.Stdout, cmd.Stderr = &out, &out
	d.must(cmd.Start())
	theirs.Close()
	for _, p := range handed {
		d.must(p.send(c.(*net.UnixConn)))
	}
	c.Close()
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); err != nil || string(out) != fmt.Sprintf("%d streams, 0 reset\n", streams) {
		t.Errorf("the new process: %v, %q", err, out)
	}
}

// lines keeps what is written.
type lines []byte

func (l *lines) Write(b []byte) (int, error) {
	*l = append(*l, b...)
	return len(b), nil
}

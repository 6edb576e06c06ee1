package wan

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DisableOffloads makes the interface called name, in the calling thread's
// network namespace, hand over frames as they are on a wire: no transmit
// checksum offload, no segmentation offload (TSO, GSO, UDP segmentation),
// no merging of received packets (GRO). A feature that the device does not
// have or cannot change is not an error unless it stays on.
func DisableOffloads(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("offloads of %s: %w", name, err)
	}
	defer unix.Close(fd)
	for _, f := range []struct {
		label    string
		set, get uint32
	}{
		{"gro", unix.ETHTOOL_SGRO, unix.ETHTOOL_GGRO},
		{"tso", unix.ETHTOOL_STSO, unix.ETHTOOL_GTSO},
		{"gso", unix.ETHTOOL_SGSO, unix.ETHTOOL_GGSO},
		{"scatter-gather", unix.ETHTOOL_SSG, unix.ETHTOOL_GSG},
		{"transmit checksums", unix.ETHTOOL_STXCSUM, unix.ETHTOOL_GTXCSUM},
	} {
		_, errSet := ethtoolValue(fd, name, f.set, 0)
		on, errGet := ethtoolValue(fd, name, f.get, 0)
		if err := errors.Join(errSet, errGet); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("offload %s of %s: %w", f.label, name, err)
		}
		if on != 0 {
			return fmt.Errorf("offload %s of %s cannot be switched off", f.label, name)
		}
	}
	return nil
}

// ethtoolValue runs a command whose argument and result is one number.
func ethtoolValue(fd int, name string, cmd, value uint32) (uint32, error) {
	arg := struct{ cmd, value uint32 }{cmd, value}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	ifr := ifreqData{data: unsafe.Pointer(&arg)}
	copy(ifr.name[:], req.Name())
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
	if errno != 0 {
		return 0, errno
	}
	return arg.value, nil
}

// ifreqData is the kernel's struct ifreq with a pointer in its union.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

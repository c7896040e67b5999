package store

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// placeOf names a file as the file system knows it.
func placeOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &info); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%d %d.%d\n", info.VolumeSerialNumber, info.FileIndexHigh, info.FileIndexLow), nil
}

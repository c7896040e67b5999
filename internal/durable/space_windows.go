package durable

import "golang.org/x/sys/windows"

// Space returns how large the file system of a path is, and how much of it is
// free for this process, in bytes.
func Space(path string) (size, free int64, err error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, 0, err
	}
	var mine, all uint64
	if err := windows.GetDiskFreeSpaceEx(name, &mine, &all, nil); err != nil {
		return 0, 0, err
	}
	return int64(all), int64(mine), nil
}

package durable

// ShareOf returns one part in so many of the disk that path is on, and at most
// most, which it also returns where the disk cannot be asked.
func ShareOf(path string, parts, most int64) int64 {
	size, _, err := Space(path)
	if err != nil || size <= 0 {
		return most
	}
	return min(most, size/parts)
}

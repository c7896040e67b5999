package durable

// SyncDir does nothing: Windows offers no such call, and NTFS keeps a journal
// of its directories.
func SyncDir(string) error { return nil }

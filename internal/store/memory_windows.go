package store

// sharesMemory reports nothing: every file can be mapped.
func sharesMemory(string, bool) error { return nil }

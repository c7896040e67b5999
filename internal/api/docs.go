package api

func renderDocs(doc []byte) ([]byte, string, error) { return doc, "", nil }

package api

func openAPIJSON(doc []byte) ([]byte, error)        { return []byte("{}"), nil }
func renderDocs(doc []byte) ([]byte, string, error) { return doc, "", nil }

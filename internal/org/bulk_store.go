package org

// ImportTx is the part of a Tx that imports are made with.
type ImportTx interface {
	// OrgStates returns the states of those of the organizations that are
	// live, by id.
	OrgStates(ids []string) (map[string]OrgState, error)
	// TakenIDs returns those of the ids that InsertOrgs would find in use.
	TakenIDs(ids []string) ([]string, error)
}

package problem

// MaxFields bounds the Fields of an Error.
const MaxFields = 100

// Rows collects what is wrong with the rows of a request: lines of an import, or
// events of a batch. It counts all bad ones and keeps the first MaxFields of them.
// The zero Rows is empty. It is not safe for concurrent use.
type Rows struct {
	fields []Field
	count  int
	first  string
}

// Add notes that a row is bad. row says which by its Index, its Line or both; where in
// it and why, err says, by the first of its fields if it has any.
func (r *Rows) Add(row Field, err error) {
	p := From(err)
	if r.count++; r.count == 1 {
		r.first = p.Detail
	}
	if len(r.fields) == MaxFields {
		return
	}
	row.Detail = p.Detail
	if len(p.Fields) > 0 {
		row.Pointer, row.Detail = p.Fields[0].Pointer, p.Fields[0].Detail
	}
	r.fields = append(r.fields, row)
}

// Count returns how many rows are bad, also those that are not kept.
func (r *Rows) Count() int { return r.count }

// First returns what is wrong with the row that was added first, as a sentence.
func (r *Rows) First() string { return r.first }

// Fields returns the rows that are kept, in the order in which they were added.
func (r *Rows) Fields() []Field { return r.fields }

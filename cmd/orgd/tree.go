package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

// deepest is the number of levels that a tree has at most below its root.
const deepest = 32

func orgTreeCommand(s *session) *cobra.Command {
	var depth int
	cmd := &cobra.Command{
		Use: "tree [ORG]", Short: "Draw the tree below an organization", Args: cobra.MaximumNArgs(1),
		Long: `Draw the tree below an organization, with the number of organizations below
each.

Without ORG it draws the tree of the key's organization. For the operator it
lists the roots, or with --depth draws the tree of each.`,
		Example: `  orgd org tree acme
  orgd org tree acme --depth 2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if depth < 0 {
				return usageError("--depth cannot be negative")
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			tops := one(func() (*client.Org, error) { return c.Org(ctx, args[0]) })
			rootsOnly := false
			if len(args) == 0 {
				who, err := c.WhoAmI(ctx)
				if err != nil {
					return err
				}
				if who.Kind == "operator" {
					tops = c.Search(ctx, client.OrgQuery{Roots: true})
					rootsOnly = depth == 0
				} else {
					tops = one(func() (*client.Org, error) { return c.Org(ctx, who.OrgID) })
				}
			}
			if s.json() {
				return orgs.print(cmd, s, trees(ctx, c, tops, depth, rootsOnly), 0)
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			var drawn, roots int64
			for top, err := range tops {
				if err == nil && rootsOnly {
					_, err = fmt.Fprintln(out, label(&node{id: top.ID, name: top.Name}))
					drawn++
				} else if err == nil {
					var n int64
					n, err = drawTree(out, &top, c.Descendants(ctx, top.ID, below(depth)), depth)
					drawn += n
				}
				if err != nil {
					out.Flush()
					return err
				}
				roots++
			}
			if rootsOnly {
				fmt.Fprintf(out, "\n%s. Name one to draw its tree.\n", plural(roots, "root"))
			} else {
				fmt.Fprintf(out, "\n%s\n", plural(drawn, "organization"))
			}
			return out.Flush()
		},
	}
	cmd.Flags().IntVar(&depth, "depth", 0, "draw this many `levels` below the organization; 0 for all")
	return cmd
}

// below returns how many levels to ask for in order to draw depth levels: one
// more, for the number of children of the last.
func below(depth int) int {
	if depth == 0 || depth >= deepest {
		return 0
	}
	return depth + 1
}

// one returns a sequence of one organization.
func one(get func() (*client.Org, error)) iter.Seq2[client.Org, error] {
	return func(yield func(client.Org, error) bool) {
		o, err := get()
		if err != nil {
			yield(client.Org{}, err)
			return
		}
		yield(*o, nil)
	}
}

// trees returns organizations, each followed by its descendants.
func trees(ctx context.Context, c *client.Client, tops iter.Seq2[client.Org, error], depth int, topsOnly bool) iter.Seq2[client.Org, error] {
	return func(yield func(client.Org, error) bool) {
		for top, err := range tops {
			if !yield(top, err) || err != nil {
				return
			}
			if topsOnly {
				continue
			}
			for o, err := range c.Descendants(ctx, top.ID, depth) {
				if !yield(o, err) || err != nil {
					return
				}
			}
		}
	}
}

// node is an organization in a drawing.
type node struct {
	id, name string
	depth    int  // below the top
	last     bool // of its parent's children
	children int64
	below    int64 // descendants that are known
	cut      bool  // its children are not drawn
}

func label(n *node) string {
	s := clean(n.name)
	if n.name != n.id {
		s += "  " + n.id
	}
	switch {
	case n.cut && n.children == 1:
		s += "  (1 child)"
	case n.cut && n.children > 1:
		s += "  (" + grouped(n.children) + " children)"
	case n.below > 0:
		s += "  (" + grouped(n.below) + ")"
	}
	return s
}

// drawTree draws the top and its descendants, which come depth first, down to
// depth levels, or all if it is 0, and returns how many it drew. It keeps one
// subtree of a child of the top in memory: a branch can be drawn only once it
// is known whether another one follows.
func drawTree(out io.Writer, top *client.Org, descendants iter.Seq2[client.Org, error], depth int) (int64, error) {
	if _, err := fmt.Fprintln(out, label(&node{id: top.ID, name: top.Name})); err != nil {
		return 0, err
	}
	drawn := int64(1)
	var subtree []node
	for o, err := range descendants {
		if err != nil {
			return drawn, err
		}
		n := node{id: o.ID, name: o.Name, depth: o.Depth - top.Depth}
		if n.depth < 1 {
			return drawn, fmt.Errorf("the tree changed while it was being read: %s was moved; draw it again", top.ID)
		}
		if n.depth == 1 && len(subtree) > 0 {
			if err := drawSubtree(out, subtree, false, depth, &drawn); err != nil {
				return drawn, err
			}
			subtree = subtree[:0]
		}
		subtree = append(subtree, n)
	}
	return drawn, drawSubtree(out, subtree, true, depth, &drawn)
}

func drawSubtree(out io.Writer, subtree []node, last bool, depth int, drawn *int64) error {
	levels := 2
	for i := range subtree {
		levels = max(levels, subtree[i].depth+2)
	}
	follows := make([]bool, levels)   // another node of this level follows below the same parent
	children := make([]int64, levels) // of this level, below the same parent
	total := make([]int64, levels)    // of this level and deeper, below the same parent
	follows[1] = !last
	for i := len(subtree) - 1; i >= 0; i-- {
		n := &subtree[i]
		d := n.depth
		n.last, n.children, n.below = !follows[d], children[d+1], total[d+1]
		n.cut = depth > 0 && d >= depth
		follows[d] = true
		children[d]++
		total[d] += 1 + total[d+1]
		for deeper := d + 1; deeper < levels; deeper++ {
			follows[deeper], children[deeper], total[deeper] = false, 0, 0
		}
	}
	if depth > 0 {
		// What is below the last level asked for is not known, so no number
		// of descendants is.
		for i := range subtree {
			subtree[i].below = 0
		}
	}
	bars := make([]string, levels)
	for i := range subtree {
		n := &subtree[i]
		if depth > 0 && n.depth > depth {
			continue
		}
		branch := "├── "
		bars[n.depth] = "│   "
		if n.last {
			branch, bars[n.depth] = "└── ", "    "
		}
		if _, err := fmt.Fprintln(out, strings.Join(bars[1:n.depth], "")+branch+label(n)); err != nil {
			return err
		}
		*drawn++
	}
	return nil
}

package key

import (
	"slices"
	"strconv"
	"strings"

	"github.com/orgd/orgd/internal/problem"
)

// The permissions.
const (
	OrgsRead            = "orgs:read"
	OrgsWrite           = "orgs:write"
	OrgsDelete          = "orgs:delete"
	CustomizationsRead  = "customizations:read"
	CustomizationsWrite = "customizations:write"
	TagsWrite           = "tags:write"
	AccessLogRead       = "access_log:read"
	AccessLogWrite      = "access_log:write"
	AuditRead           = "audit:read"
	AuditErase          = "audit:erase"
	ConsumptionRead     = "consumption:read"
	ConsumptionWrite    = "consumption:write"
	KeysRead            = "keys:read"
	KeysWrite           = "keys:write"
	KeysVerify          = "keys:verify"
)

// Bundles are names that stand for several permissions. They are expanded
// when they are read and never stored.
const (
	BundleRead  = "read"  // every permission to read
	BundleWrite = "write" // BundleRead, and every permission to write
	BundleAdmin = "admin" // every permission
)

// AppPrefix starts the permissions that a product defines for itself. orgd
// keeps and hands them on; no bundle holds any.
const AppPrefix = "app:"

const (
	maxPermissions     = 100
	maxAppPermission   = 128 // bytes after AppPrefix
	maxEchoedInProblem = 64  // bytes of a caller's value that an error repeats
)

var all = Permissions{
	AccessLogRead, AccessLogWrite, AuditErase, AuditRead, ConsumptionRead, ConsumptionWrite, CustomizationsRead, CustomizationsWrite,
	KeysRead, KeysVerify, KeysWrite, OrgsDelete, OrgsRead, OrgsWrite, TagsWrite,
}

var bundles = map[string]Permissions{
	BundleRead:  ending(":read"),
	BundleWrite: ending(":read", ":write"),
	BundleAdmin: all,
}

func ending(suffixes ...string) Permissions {
	var ps Permissions
	for _, p := range all {
		if slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(p, s) }) {
			ps = append(ps, p)
		}
	}
	return ps
}

// Bundle returns the permissions that a bundle stands for; nil if there is no such
// bundle.
func Bundle(name string) Permissions { return slices.Clone(bundles[name]) }

// AllPermissions returns every permission that orgd itself knows.
func AllPermissions() Permissions { return slices.Clone(all) }

// Has reports whether the set holds p.
func (ps Permissions) Has(p string) bool {
	_, ok := slices.BinarySearch(ps, p)
	return ok
}

// SubsetOf returns the permissions of ps that other lacks; none if ps is a
// subset of other.
func (ps Permissions) SubsetOf(other Permissions) (missing []string) {
	for _, p := range ps {
		if !other.Has(p) {
			missing = append(missing, p)
		}
	}
	return missing
}

// ParsePermissions returns the set of the permissions and bundles in names, of
// which there must be 1 to 100. pointer is where names stands in the request
// body, for errors. The error is an InvalidBody that names every entry that is
// not known.
func ParsePermissions(pointer string, names []string) (Permissions, *problem.Error) {
	switch {
	case len(names) == 0:
		return nil, problem.Body(pointer, "must name at least one permission").WithFix("%s", permissionFix())
	case len(names) > maxPermissions:
		return nil, problem.Body(pointer, "must be at most %d permissions, not %d", maxPermissions, len(names))
	}
	set := make(Permissions, 0, len(names))
	var bad []problem.Field
	for i, name := range names {
		switch {
		case bundles[name] != nil:
			set = append(set, bundles[name]...)
		case all.Has(name) || validApp(name):
			set = append(set, name)
		default:
			e := problem.Body(itemPointer(pointer, i), "is not a permission: %q", Echo(name))
			bad = append(bad, e.Fields...)
		}
	}
	if len(bad) > 0 {
		e := problem.Body(bad[0].Pointer, "%s", bad[0].Detail).WithFix("%s", permissionFix())
		e.Fields = bad
		return nil, e
	}
	slices.Sort(set)
	return slices.Compact(set), nil
}

func validApp(name string) bool {
	product, ok := strings.CutPrefix(name, AppPrefix)
	if !ok || len(product) == 0 || len(product) > maxAppPermission {
		return false
	}
	for i := 0; i < len(product); i++ {
		if c := product[i]; c <= ' ' || c > '~' || c == ',' {
			return false
		}
	}
	return true
}

func permissionFix() string {
	return "Use " + strings.Join(all, ", ") + ", the bundles read, write and admin, or app: followed by 1 to 128 visible ASCII characters without a comma."
}

func itemPointer(pointer string, i int) string { return pointer + "/" + strconv.Itoa(i) }

// Echo returns the start of a caller's value as an error may repeat it.
func Echo(s string) string {
	if len(s) > maxEchoedInProblem {
		s = s[:maxEchoedInProblem] + "…"
	}
	return strings.ToValidUTF8(Redact(s), "\uFFFD")
}

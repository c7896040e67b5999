# The few commands that people use. `go run ./cmd/orgd demo` and
# `go test ./...` need nothing but Go.

.PHONY: demo test bench fuzz lint build

demo: ## serve a real organization tree on loopback
	go run ./cmd/orgd demo

test: ## all tests; those that need PostgreSQL, a proxy or npm skip without it
	go test ./...

bench: ## the table of speeds and sizes
	go run ./bench

fuzz: ## every fuzz target for a while
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep ^Fuzz); do \
		go test -run '^$$' -fuzz "^$$f$$" -fuzztime 20s $$p || exit 1; done; done

lint: ## formatting, vet and staticcheck
	gofmt -l . && go vet ./... && go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

build: ## the static binary ./orgd
	CGO_ENABLED=0 go build -trimpath -o orgd ./cmd/orgd

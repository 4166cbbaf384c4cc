# make demo    signs and verifies real certificates, from nothing
# make test    the whole test suite, about 12 minutes on 2 cores (2026-12-01)
# make check   style, types, layers, proto lint, drift of generated code
# make torture long fault and scale runs, to take at most 40 minutes on 2 cores
# make packaging  the image by podman, docs/packaging.md on an empty Debian; as root
# make clients    the clients of docs/clients, as printed: fetched, compiled and run
# make reference  docs/metrics.md, docs/api.md and docs/cli.md anew, from the code
# make released   with a release: proto/released.binpb, which later changes of the API must fit
# make shim    a PKCS#11 module that is slow or wrong on demand, for tests and `signer dev up`
# make bench   the table of docs/performance.md, beside a C loop on the same token

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
DEV := .venv/dev
TOOLS := .venv/tools
PROTOS := $(wildcard proto/signer/v1/*.proto)
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PROTOC = $(BIN)/python -m grpc_tools.protoc -I proto -I $(SITE)

.PHONY: demo test check torture packaging clients bench shim setup proto reference released lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml .ci/packages
	.ci/packages
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What tests and checks need besides.
$(DEV): $(READY) requirements-dev.lock
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	touch $@

$(TOOLS): $(DEV)
	.ci/packages tests
	touch $@

demo: $(READY)
	$(BIN)/python -m tests.e2e.demo

# Five at a time on two cores: most tests wait for processes of their own. A file stays
# together; the many short files of unit tests come last.
test: $(TOOLS) build/shim.so
	$(BIN)/pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder

# As `test`; conftest.py has the files that take longest begin. What Hypothesis tries in `test` it
# tries again, four times as many examples.
torture: $(TOOLS) build/shim.so
	$(BIN)/pytest -m 'torture or hypothesis' --hypothesis-profile thorough \
		--numprocesses 3 --dist loadfile --no-loadscope-reorder

packaging: $(DEV)
	.ci/packages packaging
	$(BIN)/pytest -m packaging

# A language whose tools are not installed is skipped, and the summary says so.
clients: $(TOOLS)
	$(BIN)/pytest -m clients

check: $(DEV)
	.ci/words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m signer.observe.reference | cmp - docs/metrics.md
	$(BIN)/python .ci/reference cli | cmp - docs/cli.md
	mkdir -p build/proto
	$(PROTOC) -I $(SITE)/grpc_tools/_proto --include_imports --include_source_info \
		-o build/proto/image.binpb $(PROTOS)
	$(BIN)/python .ci/reference api build/proto/image.binpb | cmp - docs/api.md
	$(BIN)/buf lint build/proto/image.binpb --config proto/buf.yaml
	$(BIN)/buf breaking build/proto/image.binpb --against proto/released.binpb --config proto/buf.yaml
	$(PROTOC) --python_out=build/proto --pyi_out=build/proto --grpc_python_out=build/proto $(PROTOS)
	for file in build/proto/signer/v1/*; do cmp $$file signer/v1/$$(basename $$file) || exit 1; done

# Without Go, or without its modules, the bench uses a load client in Python.
bench: $(TOOLS) build/loop
	-@$(MAKE) --no-print-directory build/load
	$(BIN)/signer dev init build/bench-keys --facilities 10000
	$(BIN)/signer bench --dir build/bench; missed=$$?; \
	$(BIN)/signer bench --dir build/bench-keys --case keys-10 --case keys-10000 --case greedy-50 && exit $$missed

shim: build/shim.so

build/shim.so: tests/fault/shim.c $(TOOLS)
	mkdir -p build
	cc -std=gnu11 -O2 -Wall -Wextra -Werror -shared -fPIC -o $@ $< -ldl -lpthread

build/loop: tests/load/loop.c $(TOOLS)
	mkdir -p build
	cc -O2 -Wall -Wextra -Werror -o $@ $< -ldl -lpthread -lcrypto

build/load: $(wildcard tests/load/client/*) proto/signer/v1/signing.proto $(TOOLS)
	tests/load/client/build $@

proto: $(DEV)
	$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

reference: $(DEV)
	$(BIN)/python -m signer.observe.reference > docs/metrics.md
	$(BIN)/python .ci/reference cli > docs/cli.md
	mkdir -p build/proto
	$(PROTOC) --include_imports --include_source_info -o build/proto/image.binpb $(PROTOS)
	$(BIN)/python .ci/reference api build/proto/image.binpb > docs/api.md

# The API of the last release, as descriptors. Before the first release it is what programs may
# rely on already: with a release, and only then, it is written anew and committed.
released: $(DEV)
	$(PROTOC) -I $(SITE)/grpc_tools/_proto --include_imports -o proto/released.binpb $(PROTOS)

# Writes both locks anew from pyproject.toml, for the newest releases.
COMPILE = $(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
	--no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	--build-deps-for wheel --build-deps-for editable \
	--extra server --extra postgresql --extra tracing --extra issue
lock: $(DEV)
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf build .venv

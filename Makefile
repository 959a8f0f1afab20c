# The first target that needs .venv makes it.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
READY_TO_BENCH := $(VENV)/ready-to-bench
READY_FOR_DOCS := $(VENV)/ready-for-docs
# Workers for the tests: two for each core, since many tests wait.
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) \* 2)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# A test that fails beside others runs once more by itself; both results are printed: $(call tested,EXPRESSION).
tested = $(PYTEST) -m "$(1)" $(ARGS) || { test $$? = 1 && $(BIN)/python -m pytest -m "$(1)" --last-failed --last-failed-no-failures none $(ARGS); }
AUDIT := $(VENV)/audit/bin/pip-audit
FUZZ_SECONDS ?= 60
ATHERIS := $(VENV)/atheris

# Python keeps what it has compiled: the tests start it hundreds of times.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test slow test-matrix check format lint types layers audit fuzz migration bench soak docs screenshots release lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY)  ## show it at work: an embedded PostgreSQL, an application to sign up at, its mails and the queue in a browser
	@$(BIN)/mailroom demo

test: $(READY)  ## run the quick tests, on an embedded PostgreSQL: five minutes on two cores
	$(call tested,not slow)

slow: $(READY)  ## run the tests that `make test` leaves out
	$(call tested,slow)

test-matrix: $(READY)  ## run the tests on every PostgreSQL and Python that it can install; prints which it cannot
	PYTEST_ADDOPTS="-n $(JOBS) --dist worksteal" $(BIN)/python tests/matrix.py $(ARGS)

check: lint types layers docs test slow  ## everything that CI runs: format, lint, types, import layers, the site, all tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	test ! -e $(BIN)/hadolint || $(BIN)/hadolint --ignore DL3059 Dockerfile  # the layers of the build are thrown away
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

audit: $(AUDIT)  ## check the locked dependencies for known vulnerabilities; fails when no database answers
	@for service in pypi osv; do \
	    report=$$($(AUDIT) --strict --progress-spinner off --vulnerability-service $$service --disable-pip --require-hashes \
	        $(patsubst %,--requirement %,$(wildcard requirements/*.txt)) 2>&1) && { echo "$$report"; exit 0; }; \
	    case "$$report" in *"Found "*" known vulnerabilit"*) echo "$$report"; exit 1;; esac; \
	    echo "$$service has no answer: $$(echo "$$report" | tail -n 1)" >&2; \
	done; \
	echo "Error: neither PyPI nor OSV answered for every package. Try: make audit, where the network allows it" >&2; \
	exit 69

fuzz: $(READY)  ## fuzz the parsers, FUZZ_SECONDS=60 each; with atheris where pip can install it
	@test -d $(ATHERIS) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(ATHERIS) \
	    --require-hashes -r requirements/fuzz.txt || echo "atheris cannot be installed: the changes are random" >&2
	@for target in line inbox; do \
	    PYTHONPATH=tests:$(ATHERIS) $(BIN)/python -m fuzz $$target $(FUZZ_SECONDS) || exit; \
	done

migration: $(READY)  ## make the next migration, NAME=…, from what changed in src/mailroom/sql
	@$(BIN)/python scripts/migration.py $(NAME)

bench: $(READY_TO_BENCH)  ## measure what docs/benchmarks.md shows, and rewrite it; takes 40 minutes
	$(BIN)/python -m bench $(ARGS)

soak: $(READY_TO_BENCH)  ## let faults happen under load for MINUTES=20, by SEED=1, and account for every mail
	$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),20) --seed $(or $(SEED),1) $(ARGS)

docs: $(READY_FOR_DOCS)  ## build the documentation's site into site/, without the network; ARGS=serve shows it while you write
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs $(or $(ARGS),build --strict)

screenshots: $(READY)  ## take the README's screenshots again, by the browser tests
	mkdir -p dist/screenshots
	MAILROOM_SCREENSHOTS=dist/screenshots $(BIN)/python -m pytest --quiet tests/pages/test_inbox_page.py tests/pages/test_console_page.py -k fit
	cp dist/screenshots/inbox-1440-light.png docs/images/inbox.png
	cp dist/screenshots/inbox-360-dark.png docs/images/mail-on-a-phone.png
	cp dist/screenshots/console-1440-light.png docs/images/console.png

release: $(READY)  ## build wheel and sdist of a tagged commit, and try each in an empty environment
	$(BIN)/python scripts/release.py

lock: $(READY)  ## lock the newest versions of all dependencies (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra dev --upgrade pyproject.toml --output-file requirements/dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra bench --constraint requirements/dev.txt --upgrade pyproject.toml --output-file requirements/bench.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra inbox --constraint requirements/dev.txt --upgrade pyproject.toml --output-file requirements/image.txt
	printf "babel\nhatchling\n" | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --constraint requirements/dev.txt --upgrade - --output-file requirements/build.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra docs --constraint requirements/dev.txt --upgrade pyproject.toml --output-file requirements/docs.txt
	echo pip-audit | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --upgrade - --output-file requirements/audit.txt
	echo "atheris==3.0.*" | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --upgrade - --output-file requirements/fuzz.txt

clean:  ## delete what the other targets made
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(READY): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Error: no Python 3.11 or newer. Try: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(READY_TO_BENCH): $(READY) requirements/bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

$(READY_FOR_DOCS): $(READY) requirements/docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

$(AUDIT):
	@test -n "$(PYTHON)" || { echo "Error: no Python 3.11 or newer. Try: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.txt

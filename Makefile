# Python 3.11 or newer and make are all that is needed. `make demo` and `make test` make what they stand on.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python -m
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# More words for pytest and the benchmark: make test ARGS="-k budget"
ARGS ?=

.PHONY: help venv demo test test-slow lint format conformance bench bench-policy powerloss tamper fuzz-policy fuzz-strict schema constraints clean

help:
	@echo "make demo          watch real tools being governed (ONCE=1: end after the story)"
	@echo "make test          run the tests"
	@echo "make test-slow     run the slow ones: other people's servers and clients, crashes"
	@echo "make lint          style and types"
	@echo "make conformance   the official MCP suites through Remit (needs npm)"
	@echo "make bench         what a governed call costs"
	@echo "make bench-policy  what a policy decision costs, beside other engines"
	@echo "make powerloss     open what a power loss may leave of a record, 500 times"
	@echo "make tamper        change a record behind Remit's back, 10,000 times"
	@echo "make fuzz-policy   random policies against the stock Casbin engine"
	@echo "make fuzz-strict   random bytes against the strict decoder"

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade 'pip>=25.3'
	$(RUN) pip install --quiet -c constraints.txt --build-constraint constraints.txt -e '.[demo,otlp]' --group dev
	@touch $@

demo: venv
	$(RUN) remit demo $(if $(ONCE),--once)

test: venv
	$(RUN) pytest -m "not slow" $(ARGS)

test-slow: venv
	$(RUN) pytest -m slow --timeout=900 $(ARGS)

lint: venv
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) pyright

format: venv
	$(RUN) ruff check --fix
	$(RUN) ruff format

conformance: venv
	$(RUN) tests.conformance.run

bench: venv
	$(RUN) benchmarks.gateway --quick $(ARGS)

bench-policy: venv
	$(RUN) pip install --quiet -c constraints.txt --group bench
	$(RUN) benchmarks.policy --quick $(ARGS)

powerloss: venv
	$(RUN) tests.powerloss.run $(ARGS)

tamper: venv
	$(RUN) tests.tamper.run $(ARGS)

fuzz-policy: venv
	$(RUN) tests.rbac.fuzz $(ARGS)

fuzz-strict: venv
	$(RUN) tests.fuzz.fuzz_strict --runs 100000 $(ARGS)

# What editors check remit.yaml with; a test compares it with the model in server/remit/config.py.
schema: venv
	$(VENV)/bin/python -c 'import json; from remit.config_schema import json_schema; print(json.dumps(json_schema(), indent=2))' > configs/remit.schema.json
	$(VENV)/bin/python -c 'import json; from remit.policy_tests import json_schema; print(json.dumps(json_schema(), indent=2))' > configs/policy_tests.schema.json
	$(VENV)/bin/python -c 'import json; from remit.context_schema import request_schema; print(json.dumps(request_schema(None), indent=2))' > configs/policy_context.schema.json

# The newest of everything that pyproject.toml allows, resolved without installing it.
define PINS
import json, re, sys
found = [each for each in json.load(sys.stdin)["install"] if "dir_info" not in each["download_info"]]
names = {re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower(): each["metadata"]["version"] for each in found}
print("# Exact versions of everything that is installed here, for the builds too. `make constraints` writes them.")
print("\n".join(f"{name}=={version}" for name, version in sorted(names.items())))
endef
export PINS

constraints:
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --dry-run --ignore-installed --report - \
		-e '.[demo,otlp]' --group dev --group bench hatchling editables > constraints.json
	$(VENV)/bin/python -c "$$PINS" < constraints.json > constraints.txt
	@rm constraints.json

# All that was made here but the virtual environment.
clean:
	rm -rf out dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

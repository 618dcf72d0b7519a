.DEFAULT_GOAL := help
python := .venv/bin/python

help: ## these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: ## everything on this machine, with a demo
	./run-standalone.sh

test: ## lint, types and all tests
	./run-tests.sh

unit: ## the tests that need no server
	./run-tests.sh tests/unit

faults: ## every fault of docs/reliability.md at length, and the table; "make faults ARGS=--write" keeps it
	$(python) -m tests.reliability $(ARGS)

lint: ## ruff and mypy only
	$(python) -m ruff check . && $(python) -m ruff format --check . && $(python) -m mypy

format: ## put the code into its form
	$(python) -m ruff check --fix . && $(python) -m ruff format .

bench: ## the short form of every benchmark of a worker, and one table
	$(python) -m benchmarks.summary

bench-bridge: ## a bridge beside paho (needs mosquitto)
	$(python) -m benchmarks.bridge
	$(python) -m benchmarks.reading --rows 900000 --rounds 3 --entries 50000

soak: ## three workers under all faults at random; MINUTES=5, SEED= of a run to play again
	SLUICE_SOAK_MINUTES=$(or $(MINUTES),5) SLUICE_SOAK_SEED=$(SEED) \
		$(python) -m pytest -q -s tests/acceptance/test_soak.py -k befalls

fuzz: ## a million nasty payloads through the parser; SEED= of a run to play again
	$(python) -m tests.fuzz --inputs 1000000 --processes 2 $(if $(SEED),--seed $(SEED))

profile: ## where a worker's processor time goes, by stage
	$(python) -m benchmarks.profile

postgresql: ## the tests of writing on PostgreSQL 14 to 18 (needs npm)
	$(python) -m tests.postgresql_versions

reference: ## make docs/configuration.md anew from the settings
	$(python) -m ops.configuration > docs/configuration.md

proto: ## make the stubs of query/collector.proto anew
	$(python) -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. query/collector.proto

audit: ## ask whether pinned packages have known vulnerabilities; fails where that cannot be asked
	requirements/audit.sh

lock: ## pin packages anew (needs uv)
	requirements/lock.sh

shots: ## take the pictures of docs/images anew (needs chromium)
	$(python) -m benchmarks.screenshots

.PHONY: help run test unit audit lint format bench bench-bridge profile postgresql reference proto lock shots soak fuzz faults

# Two commands matter: `make demo` and `make test`. All others are for developers; CONTRIBUTING.md has them.
# Relative paths only: the directory's own path may hold spaces.
SHELL := /bin/sh
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-all lab-up lab-down bench lock clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

setup: ## make .venv and install everything into it
	@tools/setup.sh

demo: setup ## train a tiny SDXL on two machine ranks of this machine
	@.venv/bin/clusterft train examples/demo.yaml

check: setup ## lint, types, import contracts
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache --no-logo
	@$(PY) tools/write_docs.py --check

test: setup ## every test this machine allows, at most 20 minutes
	@$(PY) tools/run_tests.py

test-all: setup ## the long suites too; an interrupted run continues
	@$(PY) tools/run_tests.py --all

lab-up: setup ## real nodes on this machine to try commands on: make lab-up NODES="--light 3"
	@$(PY) tests/lab up $(or $(NODES),--light 3)

lab-down: setup ## take the lab's nodes away again
	@$(PY) tests/lab down

bench: setup ## all benchmarks, a JSON line each
	@for b in benchmarks/[a-z]*.py; do $(PY) "$$b" --json || exit 1; done

lock: setup ## write constraints.txt anew from a fresh environment
	@tools/lock.sh

clean: ## remove what the commands above made
	rm -rf .venv demo-out .test-state .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

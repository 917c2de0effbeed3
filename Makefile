# Each command makes the virtual environment it needs; nothing but Python 3.10+ with pip is assumed.
PYTHON ?= python3
BIN := .venv/bin
BUILD := .venv/build/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
FAQ := examples/data/milvus_faq

SIZE ?= 0.6b
DTYPE ?= float32

.PHONY: demo test eval bench check docs build clean

# The main job on the demo models: ingest a folder, retrieve, rerank, answer if there is a key.
demo: .venv/demo.stamp
	$(BIN)/qwen3-rag ingest $(FAQ) --models demo --uri .venv/demo.db
	$(BIN)/qwen3-rag ask "Which index should I choose when memory is short?" --models demo --uri .venv/demo.db

test: .venv/test.stamp
	$(BIN)/python -m pytest

# Retrieval quality of the demo models before and after reranking.
eval: .venv/demo.stamp
	$(BIN)/qwen3-rag ingest $(FAQ) --models demo --uri .venv/demo.db
	$(BIN)/qwen3-rag eval $(FAQ)/questions.jsonl --language en --models demo --uri .venv/demo.db

# The engine against its peers: over an hour on two cores at the size of the real models, which
# SIZE=tiny is not.
bench: .venv/bench.stamp
	$(BIN)/python -m benchmarks query --size $(SIZE) --dtype $(DTYPE)
	$(BIN)/python -m benchmarks memory --size $(SIZE) --dtype $(DTYPE)
	$(BIN)/python -m benchmarks rerank --size $(SIZE) --dtype $(DTYPE)
	$(BIN)/python -m benchmarks rerank --size $(SIZE) --dtype $(DTYPE) --candidates 100 --rounds 1
	$(BIN)/python -m benchmarks ingest --size $(SIZE) --dtype $(DTYPE)
	$(BIN)/python -m benchmarks roofline --size $(SIZE) --dtype $(DTYPE)

check: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/.
docs: .venv/docs.stamp
	$(BIN)/python -m mkdocs build --strict

# The source distribution and the wheel, in dist/, as they are published. Needs no torch.
build: .venv/build.stamp
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt $(BUILD)/python -m build
	$(BUILD)/python -m twine check --strict dist/*

clean:
	rm -rf .venv dist site

# torch comes first: by itself pip would take the newest one.
.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[cli]"
	touch $@

.venv/bench.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[bench]"
	touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[dev]"
	touch $@

.venv/docs.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[docs]"
	touch $@

.venv/build.stamp: constraints.txt
	$(PYTHON) -m venv .venv/build
	$(BUILD)/python -m pip install --quiet -c constraints.txt build twine
	touch $@

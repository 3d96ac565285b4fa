# make demo and make test need only Python 3.10 or later and PyPI; both create .venv on their first call.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs bench clean

# install again when the dependencies change; the package itself is editable
.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/mec demo

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/.installed
	$(BIN)/python benchmarks/objective.py
	$(BIN)/python benchmarks/relations.py
	$(BIN)/python benchmarks/views.py --data ../shared/data
	$(BIN)/python benchmarks/fidelity.py --data ../shared/data
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/stability.py
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/cifar10_cpu.py
	$(BIN)/python benchmarks/training.py --device cpu --threads 2
	$(BIN)/python benchmarks/chunk_memory.py
	$(BIN)/python benchmarks/linear_probe.py
	$(BIN)/python benchmarks/large_banks.py --width 256
	$(BIN)/python benchmarks/caltech.py --data ../shared/data/caltech101/101_ObjectCategories
	$(BIN)/python benchmarks/unitrack_parity.py --data ../shared/data --encoder ../shared/golden/resnet18_seed0.pth
	$(BIN)/python benchmarks/tracking_speed.py --data ../shared/data
	$(BIN)/python benchmarks/tracking_scenes.py --data ../shared/data
	$(BIN)/python benchmarks/near_duplicates.py ../shared/data/caltech101/101_ObjectCategories

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

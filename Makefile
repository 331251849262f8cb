# Needs make and Python 3.11 or newer; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
LOWEST := tests/unit/config tests/unit/export tests/unit/latency tests/device/test_onnxruntime.py
INSTALLED := .venv/.installed
# Without bytecode on disk each of Ray's processes compiles all that it imports, for many seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test soak lowest lint docs bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/donna demo --out runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests

soak: $(INSTALLED)
	$(BIN)/python -m pytest -m soak tests

# The oldest versions that pyproject.toml allows, in .venv-lowest.
lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct -e .
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python \
		"pytest>=9.1,<9.2" pytest-timeout hypothesis
	.venv-lowest/bin/python -m pytest $(LOWEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict

bench: $(INSTALLED)
	$(BIN)/python scripts/bench_images.py
	$(BIN)/python scripts/bench_distill.py
	$(BIN)/python scripts/bench_inherit.py --every 6
	$(BIN)/python scripts/bench_racing.py
	$(BIN)/python scripts/bench_lowering.py
	$(BIN)/python scripts/bench_int8.py
	$(BIN)/python scripts/bench_half.py
	$(BIN)/python scripts/bench_space.py
	$(BIN)/python scripts/bench_storage.py
	$(BIN)/python scripts/bench_batchnorm.py
	$(BIN)/python scripts/bench_predictions.py
	$(BIN)/python scripts/bench_regret.py
	$(BIN)/python scripts/bench_samples.py
	$(BIN)/python scripts/bench_shortlist.py
	$(BIN)/python scripts/bench_farm.py
	$(BIN)/python scripts/bench_timing.py
	$(BIN)/python scripts/bench_litert.py
	$(BIN)/python scripts/bench_search.py
	$(BIN)/python scripts/bench_ask.py
	$(BIN)/python scripts/bench_front.py
	$(BIN)/python scripts/bench_search.py --device
	$(BIN)/python scripts/bench_cluster.py
	$(BIN)/python scripts/bench_plan.py
	$(BIN)/python scripts/simulate_scale.py

clean:
	rm -rf .venv .venv-lowest build *.egg-info

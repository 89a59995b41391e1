# Everything runs in .venv, which the other targets make on demand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test faults lint format docs clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: venv
	$(BIN)/vcmodels phantom demo/scroll.zarr --shape 96,320,320 --keep
	$(BIN)/python train.py tasks/sheet_normals.json
	$(BIN)/python infer.py tasks/sheet_normals.json
	$(BIN)/vcmodels evaluate tasks/sheet_normals.json --overlay demo/overlay.png

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n logical --maxprocesses 8 --dist loadfile

faults: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --full tests/faults

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: venv
	$(BIN)/python -c "from vcmodels.config.schema import schema_text; print(schema_text(), end='')" \
		> vcmodels/task.schema.json
	$(BIN)/vcmodels schema --markdown > docs/task-file.md
	$(BIN)/vcmodels schema --losses > docs/losses.md

clean:
	rm -rf $(VENV) demo build *.egg-info

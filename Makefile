# Everything runs in .venv, which the other targets make on demand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test chromium browser-test faults interop lint format docs clean

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

# Bytecode is kept, whatever the environment says: each worker and each child compiles all else.
test: lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -q -n logical --maxprocesses 8 --dist worksteal

# Pages in a Chromium, which root gets from apt where there is none; without one they are skipped.
CHROMIUM := chromium chromium-browser google-chrome google-chrome-stable
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20

chromium:
	@has() { for one in $(CHROMIUM); do command -v $$one > /dev/null && return; done; false; }; \
	if ! has && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		$(APT) update > /dev/null; \
		$(APT) install -y --no-install-recommends chromium > /dev/null; \
	fi; \
	has || echo "there is no Chromium, and none could be installed: the tests of pages are skipped"

browser-test: venv chromium
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -rs tests/browser

faults: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --full tests/faults

# Against other programs, which have an environment of their own; NNUNET_PYTHON and HIPPOCAMPUS say where
# nnU-Net and its cases are, without which its tests are skipped.
INTEROP := .venv-interop

$(INTEROP)/.installed:
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet "bioimageio.core==0.11.0" "pydantic<2.14" onnxruntime
	touch $@

interop: venv $(INTEROP)/.installed
	BIOIMAGEIO=$(INTEROP)/bin/bioimageio OMP_NUM_THREADS=1 $(BIN)/pytest -q -rs -s tests/interop

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: venv
	$(BIN)/python -c "from vcmodels.config.schema import schema_text; print(schema_text(), end='')" \
		> vcmodels/task.schema.json
	$(BIN)/vcmodels schema --markdown > docs/task-file.md
	$(BIN)/vcmodels schema --losses > docs/losses.md
	$(BIN)/python -m tools.dependencies > docs/dependencies.md

clean:
	rm -rf $(VENV) demo build *.egg-info

# Two commands, each of which does all its own set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
MOVING := runs/demo_moving

.PHONY: demo test lint types contracts pytest clean

demo: $(STAMP)
	$(BIN)/nfc-gs train configs/toy.yaml name=demo --overwrite
	$(BIN)/nfc-gs export $(DEMO) --output $(DEMO)/exports/demo_playcanvas.ply widen=1.02
	$(BIN)/nfc-gs train configs/dynamic/toy.yaml name=demo_moving --overwrite
	$(BIN)/nfc-gs render $(MOVING) --path orbit --frames 40 --fps 20 --size 160x160 --output $(MOVING)/moving.gif
	@echo
	@echo "The scene:          $(DEMO)/exports/demo.ply   (drop it into a splat viewer)"
	@echo "  for PlayCanvas:   $(DEMO)/exports/demo_playcanvas.ply   (as https://superspl.at/editor; see docs/viewers.md)"
	@echo "Held-out pictures:  $(DEMO)/contact_sheet.png  (photograph | render | error)"
	@echo "A moving scene:     $(MOVING)/moving.gif       (a turning arm, as the camera moves)"
	@echo "The numbers:        $(DEMO)/metrics.json"
	@echo "Watch a training:   $(BIN)/tensorboard --logdir runs"
	@echo "Your own pictures:  $(BIN)/nfc-gs train configs/static/colmap.yaml dataset.folder=PATH name=mine"

test: lint types contracts pytest

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

# Each worker gets one thread: two pools on two cores would fight.
pytest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# uv where it is present, otherwise pip; always the tested versions; then the CPU's kernels are compiled. The stamp makes it
# happen once.
$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  set -ex; \
	  uv venv --allow-existing --python $(PYTHON) $(VENV); \
	  UV_FIND_LINKS="$${UV_FIND_LINKS:-$$($(PYTHON) -m pip config get global.find-links 2>/dev/null || true)}" \
	    uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  set -ex; \
	  $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	$(BIN)/nfc-gs doctor --warm
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

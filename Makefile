# Everything runs in .venv, made from pyproject.toml and constraints.txt; what needs PyTorch's CUDA build in .venv-nullcuda.
# The rivals of the race lie unpacked in .venv-race.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
NULLCUDA := .venv-nullcuda
RIVALS := .venv-race
QUANTIZED := .venv-quantized
# the tests for a GPU by themselves: they ask PyTorch for another workspace, which their process keeps
ON_NULLCUDA = $(NULLCUDA)/bin/python -m tests.nullcuda $(NULLCUDA)/bin/pytest -p tests.nullcuda.plugin -m "nullcuda or gpu" \
	--numprocesses=logical --maxprocesses=4 --dist=worksteal
RACE_ON_GPU = PYTHONPATH=$(RIVALS):$(QUANTIZED) $(BIN)/python -m benchmarks.race.on_gpu

.PHONY: setup demo check fmt test proofs classes quantized quantized-large browser soak bench traces pictures notebooks gpu nullcuda race

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[pipelines]" --group dev
	touch $(READY)

demo: setup  ## Does SDXL run in 8 GiB of an RTX 4060? Needs neither; draws demo/sdxl_8gib.png.
	mkdir -p demo
	$(BIN)/vramtune plan sdxl --vram-gb 8 --gpu "RTX 4060" --plot demo/sdxl_8gib.png

check: setup  ## Style, types, arrows between the folders.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup  ## What needs no GPU and little time, on up to four cores.
	$(BIN)/pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal

proofs: setup  ## What takes longer: stock modes at every link, the search near its bound, bad inputs, soak, notebooks.
	$(BIN)/pytest -m slow --numprocesses=logical --maxprocesses=4 --dist=worksteal

bench: setup  ## Writes dated tables to benchmarks/results/.
	$(BIN)/python -m benchmarks.plans
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.flux_bound
	$(BIN)/python -m benchmarks.stock_modes_on_sim
	$(BIN)/python -m benchmarks.prediction_on_sim

classes: setup  ## A tiny pipeline of each family: predicted, tuned, streamed, given back. (diffusers' own: python -m benchmarks.classes)
	$(BIN)/pytest -m classes --numprocesses=logical --maxprocesses=4 --dist=loadgroup tests/classes

quantized: $(QUANTIZED)/.ready  ## Each library's and kind's quantized weights under a plan; the libraries are unpacked apart.
	PYTHONPATH=$(QUANTIZED) $(BIN)/pytest -m "quantized and not gpu and not slow" --numprocesses=logical --maxprocesses=4 --dist=worksteal tests/quantized

quantized-large: $(QUANTIZED)/.ready  ## The same with 50 to 190 MiB of weights; minutes.
	PYTHONPATH=$(QUANTIZED) $(BIN)/pytest -m "quantized and not gpu and slow" --numprocesses=logical --maxprocesses=4 --dist=loadgroup tests/quantized

$(QUANTIZED)/.ready: tests/quantized/requirements.txt $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(QUANTIZED) --requirement tests/quantized/requirements.txt
	touch $(QUANTIZED)/.ready

browser: setup  ## The HTML report in a real browser; needs Chromium (apt install chromium) and fails without.
	$(BIN)/pytest -m browser

soak: setup  ## A thousand calls with random budgets, shapes, seeds and edits; an error at every line of ours.
	VRAMTUNE_SOAK_CALLS=1000 $(BIN)/pytest -m "slow or not slow" --timeout 7200 tests/offload/test_soak.py tests/offload/test_interrupts.py

traces: setup  ## Remakes the traces of the catalog's models that come with the package; half an hour.
	$(BIN)/python -m benchmarks.shipped_traces

pictures: setup  ## Remakes docs/img/.
	$(BIN)/python -m docs.pictures

notebooks: setup  ## Runs the notebooks again and keeps their outputs.
	$(BIN)/python -m notebooks.remake

gpu: setup $(QUANTIZED)/.ready $(RIVALS)/.ready  ## The tests that need a CUDA GPU, which fail without one, then real models on it, and the race.
	$(BIN)/pytest -m "gpu and not quantized"
	PYTHONPATH=$(QUANTIZED) $(BIN)/pytest -m "gpu and quantized" tests/quantized
	$(BIN)/python -m benchmarks.on_gpu
	$(RACE_ON_GPU) --models small-sdxl small-flux-awkward small-flux-nf4 small-wan --percents 60 40 25
	$(RACE_ON_GPU) --models sdxl flux.1-dev wan2.1-1.3b --caps 16 8 6

nullcuda: $(NULLCUDA)/.ready  ## PyTorch's real CUDA code without a GPU (tests/nullcuda): its own tests, and those that need a GPU.
	$(ON_NULLCUDA) tests/nullcuda
	$(ON_NULLCUDA) tests/test_on_gpu.py

race: $(NULLCUDA)/.ready $(RIVALS)/.ready $(QUANTIZED)/.ready  ## vramtune and its rivals on the simulated card, hours; goes on where it was cut; then docs/race.md.
	$(NULLCUDA)/bin/python -m benchmarks.race --jobs 2
	$(NULLCUDA)/bin/python -m benchmarks.race.page

$(RIVALS)/.ready: benchmarks/race/requirements.txt $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(RIVALS) --requirement benchmarks/race/requirements.txt
	touch $(RIVALS)/.ready

# Without dependencies, or pip would fetch NVIDIA's libraries with PyTorch, and another PyTorch with the rest.
$(NULLCUDA)/.ready: constraints.txt pyproject.toml tests/nullcuda/torch.txt tests/nullcuda/headers.txt
	$(PYTHON) -m venv $(NULLCUDA)
	$(NULLCUDA)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	grep --invert-match '^torch==' constraints.txt > $(NULLCUDA)/others.txt
	$(NULLCUDA)/bin/python -m pip install --quiet --no-deps --requirement $(NULLCUDA)/others.txt
	$(NULLCUDA)/bin/python -m pip install --quiet --no-deps --requirement tests/nullcuda/torch.txt --editable .
	$(NULLCUDA)/bin/python -m pip install --quiet --no-deps --upgrade --target $(NULLCUDA)/cuda --requirement tests/nullcuda/headers.txt
	touch $(NULLCUDA)/.ready

# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make demo   set up, train five methods on the embedded data, print the table, write the plot
#   make test   set up and run the tests
# Further targets:
#   make lint         ruff, mypy and the order of imports
#   make coverage     the tests again, and which lines they run
#   make soak         the long tests: killed commands, workers and nodes, thousands of damaged inputs
#   make wheel-check  build the wheel, install it in an empty environment and run it there
#   make docs         build the website into build/site; warnings are errors

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := results/demo

.PHONY: demo test coverage soak lint format wheel-check docs clean pocket-data pocket-train pocket-eval

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "promptbench needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/promptbench run zeroshot coop ivlp maple mmlop --benchmark base2novel --dataset icons --seeds 1 --out $(DEMO)
	$(BIN)/promptbench compare --out $(DEMO) --plot tradeoff

test: $(STAMP) lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup

coverage: $(STAMP)
	mkdir -p build
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup --cov --cov-report term --cov-report xml:build/coverage.xml

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --capture no

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.tree

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# WHEEL_CHECK=--share takes the dependencies from $(VENV) instead of downloading them once more.
wheel-check: $(STAMP)
	$(BIN)/python -m tools.wheel $(WHEEL_CHECK)

# The pages keep their places in the repository, so that links work there and on the website alike.
SITE := build/docs
PAGES := README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff LICENSE docs examples datasets/pocket/*.md \
	datasets/pocket/backbone/settings.yaml results/published.csv results/reference/*.md results/reference/plots

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs
	rm -rf $(SITE)
	mkdir -p $(SITE)
	tar -cf - $(PAGES) | tar -xf - -C $(SITE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The embedded default, made anew from its recipe: see datasets/pocket/README.md. Needs npm.
POCKET := $(VENV)/.pocket

$(POCKET): $(STAMP) tools/pocket/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement tools/pocket/requirements.txt
	touch $(POCKET)

pocket-data: $(POCKET)
	$(BIN)/python -m tools.pocket.data

pocket-train: $(POCKET)
	$(BIN)/python -m tools.pocket.train --install

pocket-eval: $(STAMP)
	$(BIN)/python -m tools.pocket.evaluate --card datasets/pocket/README.md --sheets docs/pocket

clean:
	rm -rf $(VENV) build dist *.egg-info $(DEMO) .pytest_cache .mypy_cache .ruff_cache

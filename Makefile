# Every target is a script in ci/; PYTHON and ARGS reach it.
PYTHON ?= python
ARGS ?=
export PYTHON

.PHONY: build debug test sanitizers bench lint types wheel clean

build:
	ci/build.sh
debug:
	FASTRAY_DEBUG=1 ci/build.sh --force
test:
	ci/test.sh $(ARGS)
sanitizers:
	ci/sanitizers.sh $(ARGS)
bench:
	ci/bench.sh $(ARGS)
lint:
	ci/lint.sh
types:
	ci/types.sh
wheel:
	ci/wheels.sh
clean:
	ci/clean.sh

# The commands that people need; the build itself is CMake's (CMakePresets.json).
PREFIX ?= /usr/local
DESTDIR ?=
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# Pictures of each class that `make data` draws.
COUNT ?= 1000

.PHONY: help deps build demo data train-tiny test bench lint format install clean

help: ## this list
	@echo "usage: make COMMAND [JOBS=$(JOBS)] [PREFIX=$(PREFIX)] [DESTDIR=$(DESTDIR)]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

deps: ## install every package that building, testing and linting need (packages.txt)
	@tools/deps.sh build test data lint

build: ## install what is missing, then build the program: build/aim
	@tools/deps.sh build
	cmake --preset release --log-level=WARNING
	cmake --build --preset release -j $(JOBS)

demo: build ## build, then paint a picture of every class: demo.png
	build/aim generate -n 20 --captions --cfg 2 -o demo.png
	@echo
	@echo "The pictures are in $(CURDIR)/demo.png. What to try next:"
	@echo "    build/aim generate -c castle -o castle.png"
	@echo "    build/aim generate -c cat,fish -n 16 --cfg 4 --seed 7 -o grid.png"
	@echo "With published weights, in a folder that holds config.json and model.safetensors:"
	@echo "    build/aim generate -m FOLDER -c 207 -n 4 -o dogs.png"

data: ## draw a data set of 20 classes: build/drawings (COUNT=1000 pictures of each)
	@tools/deps.sh build data
	@$(MAKE) --no-print-directory build
	build/tools/draw/aim-draw --out build/drawings/train --count $(COUNT)
	build/tools/draw/aim-draw --out build/drawings/val --count 50 --split val

train-tiny: ## train both stages on small drawings, then paint: build/tiny/pictures.png (some minutes)
	@tools/deps.sh build data
	@$(MAKE) --no-print-directory build
	tools/train_tiny.sh build build/tiny

test: ## every test: release build, sanitizers, fuzzers
	@tools/deps.sh build test data
	@tools/test.sh $(JOBS)

bench: build ## run every benchmark
	@for program in build/bench/bench_*; do echo "== $$program" && "$$program" || exit 1; done

lint: build ## formatting, clang-tidy, cppcheck, include direction, file lengths
	@tools/deps.sh lint
	@tools/lint.sh $(JOBS)

format: ## format every source file in place
	@tools/deps.sh lint
	tools/sources.sh | xargs clang-format -i

install: build ## install program, libraries, header and aim.pc below DESTDIR/PREFIX
	DESTDIR="$(DESTDIR)" cmake --install build --prefix "$(PREFIX)"

clean: ## remove everything that was built
	rm -rf build demo.png

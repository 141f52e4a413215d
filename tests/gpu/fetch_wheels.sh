#!/bin/bash
# Fetches what the card's machine lacks (wheels.txt, 36 MiB) into build/wheels, for check.sh to install there.
# Made for Python 3.12 on Linux, x86-64; PYTHON_VERSION=3.13 for another.
set -eu
cd "$(dirname "$0")/../.."
platforms=$(for glibc in 17 24 27 28 31 34; do echo "--platform manylinux_2_${glibc}_x86_64"; done)
# shellcheck disable=SC2086
exec "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-3.12}" $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
    --dest build/wheels --requirement tests/gpu/wheels.txt

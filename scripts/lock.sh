#!/bin/sh
# Writes requirements/*.txt from requirements/*.in: pinned, hashed, without the address of any index.
# usage: make lock [LOCKS="node-main"]
set -eu
cd "$(dirname "$0")/../requirements"
for name in ${LOCKS:-controller dev node-main}; do
    echo "locking $name"
    UV_NO_CONFIG=1 "${UV:-uv}" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-annotate --custom-compile-command "make lock" "$name.in" --output-file "$name.txt"
done

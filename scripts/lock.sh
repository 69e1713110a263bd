#!/bin/sh
# Writes requirements/*.txt from requirements/*.in: pinned, hashed, without the address of any index.
# usage: make lock [LOCKS="node-main"]      versions that a lock already has are kept; delete the .txt to move all of them
set -eu
cd "$(dirname "$0")/../requirements"
for name in ${LOCKS:-controller dev node-main node-ppo node-ktransformers node-unsloth node-fp8 node-ray node-store build collections}; do
    echo "locking $name"
    alone=
    [ "$name" != collections ] || alone=--no-deps
    UV_NO_CONFIG=1 "${UV:-uv}" pip compile --quiet $alone --universal --python-version 3.11 --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" "$name.in" --output-file "$name.txt"
done

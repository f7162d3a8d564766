#!/bin/sh
# Greets; with --self-test, greets and checks itself.
set -eu

greet() {
    echo "hello, $1"
}

if [ "${1:-}" = --self-test ]; then
    [ "$(greet acrtask)" = "hello, acrtask" ] || { echo "not ok 1 - it greets by name"; exit 1; }
    echo "ok 1 - it greets by name"
    exit 0
fi
greet "$1"

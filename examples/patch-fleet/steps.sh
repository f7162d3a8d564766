#!/usr/bin/env bash
# Pushes a patched base and rebuilds a fleet of nine images. Needs an engine, git, the program acrtask
# in PATH, and these variables:
#   REGISTRY  a registry on this machine with base/busybox:1.36, as `cargo xtask up` sets one up
#   DIR       an empty folder (default: a temporary one)
#   PORT      a free port for the server (default: 7073)
#   GIT_PORT  a free port for the sources (default: 7074)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
DIR=${DIR:-$(mktemp -d)}
PORT=${PORT:-7073} GIT_PORT=${GIT_PORT:-7074}
export XDG_CONFIG_HOME="$DIR" NO_COLOR=${NO_COLOR-}
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
wait_for() { # repeats a command until it succeeds
    local i
    for i in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    "$@"
}
show() { # prints a command and runs it
    echo "\$ $*"
    "$@"
    echo
}
os="$REGISTRY/fleet/os:12"
push_os() { # pushes the base with a patch level, as its maintainer does
    acrtask build --local -t "$os" --build-arg "REGISTRY=$REGISTRY" --build-arg "PATCH=$1" images/os >"$DIR/os.log" 2>&1 ||
        { cat "$DIR/os.log" && return 1; }
}

echo "--- 1: a repository with the sources, and a server with a built-in runner"
git init --quiet --initial-branch=main "$DIR/fleet"
cp -R images "$DIR/fleet/"
git -C "$DIR/fleet" add .
git -C "$DIR/fleet" -c user.name=fleet -c user.email=fleet@example.com commit --quiet --message "the fleet"
git daemon --export-all --base-path="$DIR" --listen=127.0.0.1 --port="$GIT_PORT" --reuseaddr "$DIR" &
acrtask serve --listen "127.0.0.1:$PORT" --data-dir "$DIR/server" --allow-private-addresses >"$DIR/server.out" 2>"$DIR/server.log" &
wait_for grep --quiet acrt_ "$DIR/server.out"
sed -n 's/.*\(acrt_[A-Za-z0-9_-]*\).*/\1/p' "$DIR/server.out" | acrtask login "http://127.0.0.1:$PORT" --token-file -
wait_for git ls-remote "git://127.0.0.1:$GIT_PORT/fleet"

echo "--- 2: the base before the patch, and the fleet on it"
push_os 1
sed "s|registry.example.com|$REGISTRY|g; s|https://git.example.com/fleet.git|git://127.0.0.1:$GIT_PORT/fleet|" tasks.yaml |
    acrtask task apply -f -
echo "settleSecs: 3" | acrtask cascade settings set -f -
for task in web worker tools shop catalog gateway mailer invoices reports; do
    acrtask task run "$task" >"$DIR/run.log" 2>&1 || { cat "$DIR/run.log" && exit 1; }
    echo "built $task"
done
show acrtask image tree --all "$os"

echo "--- 3: a patch of the base, which starts a cascade automatically"
push_os 2
acrtask base check "$os" >/dev/null # now, instead of within five minutes
show acrtask cascade plan "$os"
wait_for acrtask cascade show --no-follow 1
show acrtask cascade show --follow 1

echo "--- 4: every image uses the patched base"
show acrtask image list --stale
show acrtask image why "$REGISTRY/fleet/gateway:1"
show acrtask cascade list

#!/usr/bin/env bash
# From one machine to many, in five steps. Needs these variables:
#   REGISTRY         a registry
#   DATABASE         the URL of an empty PostgreSQL database
#   CERT, KEY        a certificate for 127.0.0.1 and its key
#   CA               the authority that signed it, or the certificate itself if this command made it:
#                    openssl req -x509 -addext basicConstraints=critical,CA:FALSE \
#                      -addext subjectAltName=IP:127.0.0.1
#   DIR              an empty folder
#   ONE, TWO, THREE  the ports of the servers (default: 7070 to 7072)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export XDG_CONFIG_HOME="$DIR"
ONE=${ONE:-7070} TWO=${TWO:-7071} THREE=${THREE:-7072}
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
wait_ready() { # waits until a server listens, by the file with its output
    local i
    for i in $(seq 200); do
        grep --quiet 'listening at' "$1" && return
        sleep 0.1
    done
    cat "$1" >&2
    return 1
}
first_token() { # prints the first token of a server, from the file with its output
    sed -n 's/.*\(acrt_[A-Za-z0-9_-]*\).*/\1/p' "$1"
}

echo "--- 1: one command starts a whole service: API, queue, logs, and a runner with this machine's engine"
acrtask serve --listen 127.0.0.1:$ONE --data-dir "$DIR/one" >"$DIR/one.out" &
one=$!
wait_ready "$DIR/one.out"

echo "--- 2: the commands stay the same"
first_token "$DIR/one.out" | acrtask login http://127.0.0.1:$ONE --token-file -
acrtask run -r "$REGISTRY" build-test-push

echo "--- 3: the server stores a task, whose runs share a layer cache in the registry"
acrtask task create hello --registry "$REGISTRY" --context /dev/null \
    --cmd '$Registry/base/busybox:1.36 echo hello from {{.Run.TaskName}}'
acrtask task run hello
acrtask task export >"$DIR/tasks.yaml"
kill "$one" && wait "$one" || true

echo "--- 4: two servers on one PostgreSQL, with TLS; either may be restarted at any time"
for port in $TWO $THREE; do
    acrtask serve --listen "127.0.0.1:$port" --no-runner --data-dir "$DIR/many" \
        --database "$DATABASE" --tls-cert "$CERT" --tls-key "$KEY" >"$DIR/$port.out" &
    wait_ready "$DIR/$port.out"
done
first_token "$DIR/$TWO.out" | acrtask login https://127.0.0.1:$TWO --ca "$CA" --token-file -
acrtask task apply -f "$DIR/tasks.yaml"

echo "--- 5: runners are wherever an engine is; each registers with a single-use token"
for i in 1 2; do
    port=$TWO
    [ "$i" = 1 ] || port=$THREE
    acrtask runner token >"$DIR/runner$i.token"
    acrtask runner start --server "https://127.0.0.1:$port" --ca "$CA" --name "runner$i" \
        --token-file "$DIR/runner$i.token" --state-dir "$DIR/runner$i" 2>"$DIR/runner$i.log" &
done
acrtask task run hello
acrtask runner list
acrtask runs list

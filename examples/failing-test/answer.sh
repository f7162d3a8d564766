# Checks an answer that is wrong.
answer=$((6 * 8))
echo "ok 1 - it computes"
if [ "$answer" -ne 42 ]; then
    echo "not ok 2 - expected 42, got $answer" >&2
    exit 3
fi

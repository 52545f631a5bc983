#!/usr/bin/env bash
# Start the service, send it the sample PDF, show what came back, stop the service.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
folder=$(mktemp -d)
PORT=${PORT:-$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
export PORT

"$bin/rtprune" serve >"$folder/service.log" 2>&1 &
service=$!
stop() {
  kill "$service" 2>/dev/null || true
  wait "$service" 2>/dev/null || true
  rm -rf "$folder"
}
trap stop EXIT

echo "Starting the service on port $PORT ..."
until curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/readyz"; do
  kill -0 "$service" 2>/dev/null || { cat "$folder/service.log" >&2; exit 1; }
  sleep 0.2
done

if ! curl --silent --show-error --fail-with-body --output "$folder/answer.json" \
  --form file=@docs/sample.pdf "http://127.0.0.1:$PORT/v1/parse"; then
  cat "$folder/answer.json" "$folder/service.log" >&2
  exit 1
fi
"$bin/python" docs/show.py "$folder/answer.json"

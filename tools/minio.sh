#!/bin/sh
# MinIO without containers: the same port, credentials and bucket as minio-compose.yml.
#
#   tools/minio.sh install             builds it once with Go (about two minutes)
#   tools/minio.sh start [--detach]    installs if need be and runs it, until Ctrl-C or `stop`
#   tools/minio.sh stop                stops one that was started with --detach
#
# Set from the environment as there: MINIO_ROOT_USER, MINIO_ROOT_PASSWORD, MINIO_BUCKET, MINIO_PORT,
# MINIO_CONSOLE_PORT; and OURDB_MINIO_HOME, where program and data are kept (default: .cache/minio).
set -eu

# The makers ship source only since October 2025; the module's version has no release tag.
VERSION=v0.0.0-20260212201848-7aac2a2c5b7c

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
home=${OURDB_MINIO_HOME:-$project/.cache/minio}
binary=$home/bin/minio
pid_file=$home/minio.pid
log=$home/minio.log
export MINIO_ROOT_USER="${MINIO_ROOT_USER:-ourdb}"
export MINIO_ROOT_PASSWORD="${MINIO_ROOT_PASSWORD:-ourdb-secret}"
bucket=${MINIO_BUCKET:-ourdb}
port=${MINIO_PORT:-9000}
console_port=${MINIO_CONSOLE_PORT:-9001}
endpoint=http://127.0.0.1:$port

fail() {
  echo "minio.sh: $*" >&2
  exit 1
}

is_running() {
  [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null
}

is_ready() {
  if command -v curl >/dev/null; then
    curl -fs -o /dev/null --max-time 2 --noproxy '*' "$endpoint/minio/health/ready"
  else
    python3 -c 'import sys, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=2)' \
      "$endpoint/minio/health/ready" 2>/dev/null
  fi
}

install() {
  [ -x "$binary" ] && return
  command -v go >/dev/null || fail "no Go tool-chain here: install Go (https://go.dev/dl)," \
    "put a minio of your own at $binary, or use minio-compose.yml with Docker"
  echo "building MinIO $VERSION, once: about two minutes" >&2
  mkdir -p "$home/bin"
  GOBIN=$home/bin go install "github.com/minio/minio@$VERSION"
}

start() {
  install
  is_running && fail "runs already (pid $(cat "$pid_file")): tools/minio.sh stop"
  is_ready && fail "something serves port $port already: stop it, or set MINIO_PORT"
  mkdir -p "$home/data/$bucket" # on a single drive a directory is a bucket
  set -- "$binary" server "$home/data" --address "127.0.0.1:$port" \
    --console-address "127.0.0.1:$console_port" --quiet
  if command -v setsid >/dev/null; then
    set -- setsid "$@" # Ctrl-C goes to this script, which stops the server in order
  fi
  "$@" >"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  wait_until_ready
  echo "export AWS_ENDPOINT_URL=$endpoint"
  echo "export AWS_ACCESS_KEY_ID=$MINIO_ROOT_USER AWS_SECRET_ACCESS_KEY=$MINIO_ROOT_PASSWORD"
  echo "# bucket: $bucket, console: http://127.0.0.1:$console_port, log: $log"
}

wait_until_ready() {
  tries=0
  until is_ready; do
    is_running || {
      rm -f "$pid_file"
      tail -5 "$log" >&2
      fail "MinIO ended at once: see $log"
    }
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || {
      stop
      fail "MinIO is not ready after 60 seconds: see $log"
    }
    sleep 0.2
  done
}

stop() {
  is_running || {
    rm -f "$pid_file"
    echo "minio.sh: does not run" >&2
    return
  }
  pid=$(cat "$pid_file")
  kill "$pid"
  tries=0
  while kill -0 "$pid" 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 50 ] || kill -9 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  rm -f "$pid_file"
}

case "${1:-} ${2:-}" in
"install ") install ;;
"start --detach") start ;;
"start ")
  trap 'stop; exit 0' INT TERM
  start
  echo "# runs until Ctrl-C"
  wait "$(cat "$pid_file")" || true
  rm -f "$pid_file"
  ;;
"stop ") stop ;;
*)
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac

#!/bin/sh
# Watches the Matryo server of this machine with Debian's Prometheus and Alertmanager, until Ctrl-C.
# All their data lies in a temporary folder, which goes with them.
#   MATRYO_METRICS_PORT or MATRYO_PORT   port of the server, 8080 by default
#   MATRYO_METRICS_KEY                   as the server has it
#   PROMETHEUS_PORT, ALERTMANAGER_PORT   9090 and 9093 by default
set -eu
port=${MATRYO_METRICS_PORT:-${MATRYO_PORT:-8080}}
prometheus_port=${PROMETHEUS_PORT:-9090}
alertmanager_port=${ALERTMANAGER_PORT:-9093}

if ! command -v prometheus > /dev/null; then
  echo 'prometheus is not installed. Run: apt-get install prometheus prometheus-alertmanager' >&2
  echo 'or, with a container engine: docker compose --profile monitoring up' >&2
  exit 1
fi
here=$(cd "$(dirname "$0")" && pwd)
alertmanager=$(command -v prometheus-alertmanager || command -v alertmanager || true)

data=$(mktemp -d)
started=
# shellcheck disable=SC2086 # several process ids
end() {
  trap - EXIT
  trap '' INT TERM # a second signal does not stop the clean-up
  [ -z "$started" ] || kill $started 2> /dev/null || true
  wait
  rm -rf "$data"
}
trap end EXIT
trap 'end; exit 0' INT TERM

cp -r "$here/." "$data/config"
# A graph should move while its reader looks: scrape every 5 s.
sed -i 's/scrape_interval: 15s/scrape_interval: 5s/; s/evaluation_interval: 15s/evaluation_interval: 5s/' \
  "$data/config/prometheus.yml"
sed -i "s/127.0.0.1:8080/127.0.0.1:$port/" "$data/config/targets/matryo.yml"
sed -i "s/127.0.0.1:9093/127.0.0.1:$alertmanager_port/" "$data/config/targets/alertmanager.yml"
if [ -n "${MATRYO_METRICS_KEY:-}" ]; then
  printf %s "$MATRYO_METRICS_KEY" > "$data/config/key" # the folder is its owner's alone
  sed -i "s|# authorization:|authorization:|; s|#   credentials_file: .*|  credentials_file: $data/config/key|" \
    "$data/config/prometheus.yml"
fi

if [ -n "$alertmanager" ]; then
  "$alertmanager" --config.file="$data/config/alertmanager.yml" --storage.path="$data/alertmanager" \
    --web.listen-address="127.0.0.1:$alertmanager_port" --cluster.listen-address= --log.level=warn &
  started="$started $!"
else
  echo 'prometheus-alertmanager is not installed: alerts are shown, and sent nowhere.'
  echo '[]' > "$data/config/targets/alertmanager.yml"
fi
prometheus --config.file="$data/config/prometheus.yml" --storage.tsdb.path="$data/prometheus" \
  --web.listen-address="127.0.0.1:$prometheus_port" --web.console.templates="$data/config/consoles" \
  --web.console.libraries="$data/config/consoles" --log.level=warn &
started="$started $!"

echo "server   http://127.0.0.1:$port/metrics"
echo "graphs   http://127.0.0.1:$prometheus_port/consoles/matryo.html"
echo "alerts   http://127.0.0.1:$prometheus_port/alerts"
[ -z "$alertmanager" ] || echo "sent to  http://127.0.0.1:$alertmanager_port"
echo 'Ctrl-C ends all of it.'
wait $!

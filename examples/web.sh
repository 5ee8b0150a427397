#!/usr/bin/env bash
# A web server in a namespace of its own, at port 8080 of the host; everything is taken away at the end.
#
#   sudo examples/web.sh
set -euo pipefail

remove() {
    kill "${server:-}" 2>/dev/null || true
    atoll ns rm web-server >/dev/null 2>&1 || true
    atoll network rm web >/dev/null 2>&1 || true
}
trap remove EXIT

atoll network create web --subnet 10.30.0.0/24
atoll ns create web-server
atoll connect web web-server -p 8080:80

atoll ns exec web-server -- python3 -m http.server 80 --directory /usr/share &>/dev/null &
server=$!

# It needs a moment to start.
for _ in {1..50}; do
    curl --silent --output /dev/null http://127.0.0.1:8080/ && break
    sleep 0.1
done

echo "The host's port 8080 leads to the server:"
for address in 127.0.0.1 10.30.0.1; do
    curl --silent --show-error --head "http://$address:8080/" | head -1
done

echo "Who publishes what:"
atoll ns ls

#!/bin/sh
# Installs Debian's PostgreSQL for the tests of the store, unless it is there. Needs root; says so and goes on without:
# those tests then skip loudly, or fail where CI=true. Tests start a server of their own; none is left running.
set -eu

if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "install-postgres: PostgreSQL is missing, and this is not root on Debian;" \
         "run 'sudo apt-get install postgresql' for the tests of the store" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null || {
    echo "install-postgres: apt-get could not install postgresql; see above" >&2
    exit 0
}

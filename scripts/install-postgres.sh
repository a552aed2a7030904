#!/bin/sh
# Installs Debian's PostgreSQL for the tests of the store, unless it is there. Tests start a server of their own; none is
# left running.
set -eu
. "$(dirname "$0")/debian.sh"

ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ||
    install_or_say install-postgres PostgreSQL "the tests of the store" postgresql

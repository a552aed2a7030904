#!/bin/sh
# Installs Debian's Chromium and Chinese fonts for tests/browser, unless they are there.
set -eu
. "$(dirname "$0")/debian.sh"

if ! command -v chromium >/dev/null 2>&1 || ! fc-list :lang=zh 2>/dev/null | grep -q .; then
    install_or_say install-browser "Chromium or a Chinese font" "the browser tests" chromium fonts-noto-cjk fontconfig
fi

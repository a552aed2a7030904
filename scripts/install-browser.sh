#!/bin/sh
# Installs Debian's Chromium and Chinese fonts for tests/browser, unless they are there. Needs root; says so and goes on
# without: the browser tests then skip loudly, or fail where CI=true.
set -eu

if command -v chromium >/dev/null 2>&1 && fc-list :lang=zh 2>/dev/null | grep -q .; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "install-browser: Chromium or a Chinese font is missing, and this is not root on Debian;" \
         "run 'sudo apt-get install chromium fonts-noto-cjk' for the browser tests" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk fontconfig >/dev/null || {
    echo "install-browser: apt-get could not install chromium and fonts-noto-cjk; see above" >&2
    exit 0
}

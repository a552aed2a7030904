# For the scripts beside this one: packages of Debian's that tests need, installed where that can be done.

# install_or_say SCRIPT WHAT PURPOSE PACKAGE...: as root on Debian installs the packages; elsewhere, and where that fails,
# says so and goes on, since the tests then skip loudly, or fail where CI=true.
install_or_say() {
    script=$1 what=$2 purpose=$3
    shift 3
    if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
        echo "$script: $what is missing, and this is not root on Debian; run 'sudo apt-get install $*' for $purpose" >&2
        return 0
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        echo "$script: apt-get could not install $*; see above" >&2
}

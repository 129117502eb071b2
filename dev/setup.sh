# What dev/demo and dev/test share: system packages, and a virtual environment in .venv. Sourced, from the top of the checkout.

# Installs those of the named Debian packages that are not there yet.
packages() {
    missing=
    for package; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "Installing$missing"
    update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null
}

# Refreshes apt's lists, once.
update() {
    [ -n "${updated:-}" ] || as_root apt-get -qq update
    updated=yes
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# An interpreter of Python 3.11 or newer: the system's where it will do, since that is the one that qmail's users can read.
interpreter() {
    for python in "${PYTHON:-}" /usr/bin/python3 python3; do
        if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "Python 3.11 or newer is needed: apt-get install python3" >&2
    exit 1
}

# Makes .venv with greycheck and the named extras ("" or "[test]").
environment() {
    python=$(interpreter)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || packages python3-venv
    [ -x .venv/bin/pip ] || "$python" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --editable ".$1"
}

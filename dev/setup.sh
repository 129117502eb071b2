# What dev/demo and dev/test share: system packages, and a virtual environment. Sourced, from the
# top of the checkout.

VENV=${VENV:-.venv}

# Ends with one sentence.
give_up() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Those of the named Debian packages that are not installed.
missing() {
    for package; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
            echo "$package"
    done
}

# Installs those of the named Debian packages that are not there yet. What services they bring is
# neither started nor enabled.
packages() {
    missing=$(missing "$@" | sort -u | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    echo "Installing $missing"
    may_run "apt-get install $missing"
    update
    policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] && policy=
    if [ -n "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y --no-install-recommends install $missing >/dev/null ||
        give_up "apt-get could not install $missing: see above."
    for package in postfix postgresql mariadb-server nsd; do
        case " $missing" in
            *" $package "*)
                as_root systemctl disable --quiet "${package%-server}" 2>/dev/null || true
                ;;
        esac
    done
    if [ -n "$policy" ]; then
        as_root rm -f "$policy"
        trap - EXIT HUP INT TERM
    fi
}

# Refreshes apt's lists, once.
update() {
    [ -z "${updated:-}" ] || return 0
    may_run "apt-get update"
    as_root apt-get -qq update || give_up "apt-get update failed: is there a network?"
    updated=yes
}

# Ends where this user cannot run the COMMAND $1 of apt.
may_run() {
    command -v apt-get >/dev/null || give_up "this is no Debian: install what corresponds to $1"
    [ "$(id -u)" = 0 ] || sudo -v 2>/dev/null || sudo -n true 2>/dev/null ||
        give_up "ask somebody who may be root for: $1"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# An interpreter of Python 3.11 or newer: the system's where it will do, since that is the one that
# qmail's users can read.
interpreter() {
    for python in "${PYTHON:-/usr/bin/python3}" python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
        [ -z "${PYTHON:-}" ] || break
    done
    found=$("$python" --version 2>/dev/null) || found="no Python"
    give_up "Python 3.11 or newer is needed, and here is $found: name another one as" \
        "PYTHON=/path/to/python3."
}

# Makes $VENV with greycheck and the named extras ("" or "[test]"), unless it is there and nothing
# has changed.
environment() {
    [ -n "${PYTHON:-}" ] || command -v python3 >/dev/null || packages python3 python3-venv
    python=$(interpreter) || exit 1
    made=$("$python" -c 'import sys; print(sys.version, sys.executable)')
    made="$PWD $made $(cksum <pyproject.toml)"
    case $(cat "$VENV/made" 2>/dev/null) in "$made [test]" | "$made $1") return ;; esac
    # A checkout that was moved, or another Python: its programs name what is no longer there.
    grep -qF "$PWD/$VENV/" "$VENV/bin/pip" 2>/dev/null &&
        "$VENV/bin/python" -m pip --version >/dev/null 2>&1 ||
        rm -rf "$VENV"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || packages python3-venv
    [ -x "$VENV/bin/pip" ] || "$python" -m venv "$VENV" ||
        give_up "no virtual environment can be made in $VENV."
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --editable ".$1" \
        >"$VENV/pip.log" 2>&1 ||
        give_up "pip could not fetch greycheck's libraries, which it needs a network for, once:" \
            "its words are in $VENV/pip.log."
    echo "$made $1" >"$VENV/made"
}

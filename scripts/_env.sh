# Sourced by the other scripts: the checkout as working directory, Debian packages, the virtual environment.
# shellcheck shell=bash
#
#   need_debian PACKAGE:PROOF...    without them the script can't do its work
#   want_debian PACKAGE:PROOF...    without them it does less
#   python_env runtime|dev          fills .venv ($ATOLL_VENV) from constraints.txt
#
# PROOF, a command or an absolute path, shows that a package is there; somebody else's build of it is as good.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
root=$PWD
venv=${ATOLL_VENV:-$root/.venv}
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # nft, ip and others, which a user's PATH leaves out on Debian

# Run a command, with its output shown only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1 </dev/null) || { printf '%s\n' "$output" >&2; return 1; }
}

# Install packages so that the machine runs no more services than before, now or after a reboot. The body is a subshell, as its
# trap must fire even when the script goes on with exec.
apt_install() (
    exec 9</usr/sbin && flock 9 # one at a time, as policy-rc.d is shared
    if [[ ! -e /usr/sbin/policy-rc.d ]]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    enabled=$(enabled_units)
    quietly apt-get -qq -o DPkg::Lock::Timeout=120 install --no-install-recommends "$@"
    status=$?
    mapfile -t fresh < <(comm -13 <(echo "$enabled") <(enabled_units))
    if ((${#fresh[@]})) && command -v systemctl >/dev/null; then
        quietly systemctl disable "${fresh[@]}" || status=1
    fi
    return $status
)

enabled_units() {
    find /etc/systemd/system -type l -path '*.wants/*' -printf '%f\n' 2>/dev/null | sort -u
}

# Print the packages among PACKAGE:PROOF... whose proof is missing.
missing_packages() {
    local spec
    for spec in "$@"; do
        command -v "${spec#*:}" >/dev/null || [[ -e ${spec#*:} ]] || echo "${spec%%:*}"
    done
}

want_debian() {
    local packages package
    mapfile -t packages < <(missing_packages "$@")
    ((${#packages[@]})) || return 0
    if ((EUID)) || ! command -v apt-get >/dev/null; then
        echo "missing packages: sudo apt-get install --no-install-recommends ${packages[*]}" >&2
        return 1
    fi
    echo "installing ${packages[*]}" >&2
    # Once a run; an old list may do, and if not, the installation says so.
    ${apt_updated:-false} || quietly apt-get -qq update || true
    apt_updated=true
    apt_install "${packages[@]}" && return
    # One that this distribution lacks must not keep the others away.
    for package in "${packages[@]}"; do
        apt_install "$package" 2>/dev/null || echo "could not install $package" >&2
    done
    [[ -z $(missing_packages "$@") ]]
}

need_debian() {
    want_debian "$@" || exit 1
}

find_python() {
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$python" && return
    done
}

# What the environment was made from: it is made anew when the checkout has moved, Python or the requirements have changed.
env_stamp() {
    echo "$root $("$venv/bin/python" -V 2>&1) $(cat pyproject.toml constraints.txt | cksum)"
}

python_env() {
    [[ $1 == dev || ! -e $venv/.stamp-dev ]] || set -- dev # what has the tools keeps them
    local stamp=$venv/.stamp-$1
    [[ -e $stamp && $(<"$stamp") == "$(env_stamp)" ]] && return

    exec 9<"$root" && flock 9 # two scripts started together
    if [[ ! -e $stamp || $(<"$stamp") != "$(env_stamp)" ]]; then
        make_env "$1" || exit 1
        env_stamp >"$stamp"
    fi
    exec 9<&-
}

make_env() {
    local python version
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        [[ -n $(find_python) ]] || need_debian python3-venv:python3
        python=$(find_python)
        [[ -n $python ]] || { echo "Atoll needs Python 3.11 or newer; here is $(python3 -V 2>&1 || true)" >&2; return 1; }
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        # Debian keeps half of venv in a package of its own.
        "$python" -c 'import ensurepip' 2>/dev/null || need_debian "$version-venv:/usr/lib/$version/ensurepip"
        echo "making $venv" >&2
        quietly "$python" -m venv --clear "$venv" || return 1
    fi
    echo "installing Atoll and what it needs ($1) into $venv" >&2
    # The build back end goes in first and isolation is off, so that it too has its tested version.
    local pip=("$venv/bin/python" -m pip --quiet --no-input --disable-pip-version-check install --constraint constraints.txt)
    quietly "${pip[@]}" hatchling || return 1
    local target=.
    [[ $1 == dev ]] && target='.[dev]'
    quietly "${pip[@]}" --no-build-isolation --editable "$target"
}

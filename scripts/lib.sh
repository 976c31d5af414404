# shellcheck shell=bash
# Set-up shared by scripts/test and scripts/demo: Debian packages, virtual environment, locked dependencies.
# Idempotent; says what it installs; the second run takes a second.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
uv_version=0.13.9

say() { printf '%s\n' "$*" >&2; }

# The newest Python from 3.11 on that can make a virtual environment.
find_python() {
    local candidate
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# need PACKAGE PROGRAM [PACKAGE PROGRAM]...: install with apt what is not there, or say what is missing.
need_packages() {
    local missing=()
    while [ $# -gt 0 ]; do
        if ! command -v "$2" >/dev/null 2>&1 && [ ! -x "/usr/sbin/$2" ]; then
            missing+=("$1")
        fi
        shift 2
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        say "not installed, and what needs it is skipped: ${missing[*]}"
        say "hint: sudo apt-get install ${missing[*]}"
        return 0
    fi
    say "installing Debian packages: ${missing[*]}"
    apt-get update -q >/dev/null || say "warning: apt-get update failed, trying with the lists that are there"
    # No service may start: the tests have engines and registries of their own.
    local policy=/usr/sbin/policy-rc.d made_policy=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made_policy=1
    fi
    local status=0
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null || status=$?
    [ -z "$made_policy" ] || rm -f "$policy"
    [ "$status" -eq 0 ] || say "warning: apt-get could not install ${missing[*]}"
}

# Sets python and uv: a Python from 3.11 on, and the one version of uv.
find_uv() {
    need_packages python3 python3
    if ! python=$(find_python); then
        say "error: Python 3.11 or newer is needed, found: $(python3 --version 2>&1 || echo none)"
        say "hint: sudo apt-get install python3.11 python3.11-venv"
        return 1
    fi
    uv="$root/.cache/uv-$uv_version/bin/uv"
    if command -v uv >/dev/null 2>&1 && uv --version | grep -q "^uv $uv_version "; then
        uv=$(command -v uv)
    elif [ ! -x "$uv" ]; then
        if ! "$python" -c 'import ensurepip' 2>/dev/null; then
            need_packages "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" ensurepip-is-missing
        fi
        say "installing uv $uv_version into .cache"
        "$python" -m venv "$root/.cache/uv-$uv_version"
        "$root/.cache/uv-$uv_version/bin/pip" install -q --disable-pip-version-check "uv==$uv_version"
    fi
    export UV_PYTHON_DOWNLOADS=never
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}" # as pip does: a site's own authority is in the system's store
}

# The virtual environment .venv with exactly what uv.lock says.
make_environment() {
    local python uv stamp
    find_uv || return 1
    stamp="$(cat "$root/uv.lock" "$root/pyproject.toml" | sha256sum | cut -d' ' -f1) $root"
    if [ "$(cat "$root/.venv/stamp" 2>/dev/null)" != "$stamp" ]; then
        say "installing the locked dependencies into .venv"
        (cd "$root" && "$uv" sync -q --frozen --all-extras --python "$python")
        printf '%s' "$stamp" >"$root/.venv/stamp"
    fi
    PATH="$root/.venv/bin:$(dirname "$uv"):$PATH"
    export PATH
}

# shellcheck disable=SC2034  # used by the scripts that read this file
engine_packages=(docker.io dockerd iproute2 ip iptables iptables util-linux unshare)
# shellcheck disable=SC2034
test_packages=(docker-registry docker-registry gcc gcc libc6-dev gencat skopeo skopeo debootstrap debootstrap openssl openssl golang-go go git git curl curl e2fsprogs mkfs.ext4 prometheus promtool)

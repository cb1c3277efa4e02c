#!/usr/bin/env bash
# Builds and installs Google Research Football (the package gfootball) for one Python. What is there already is left alone.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: bash install_gfootball.sh [--no-apt]

  --no-apt  do not install Debian packages: the headers and libraries are there, or come from elsewhere

Environment:
  PYTHON  which Python gets the package (default: python3; with an active virtual environment, that one's). On Debian it
          must have the version of Debian's own Python, for which Debian's Boost.Python is built.

Compiling takes about 5 minutes on 2 cores. pip keeps what it built: a second installation takes seconds.
EOF
}

LOG=${TMPDIR:-/tmp}/gfootball_build.log
# To compile: compiler and headers. To run: what they depend on; the last two are for opencv-python.
DEBIAN=(
    build-essential cmake
    libegl-dev libgl-dev
    libsdl2-dev libsdl2-gfx-dev libsdl2-image-dev libsdl2-ttf-dev
    libboost-filesystem-dev libboost-python-dev libboost-system-dev libboost-thread-dev
    libgl1 libglib2.0-0
)

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

works() { "$PYTHON" -c 'import gfootball.env' >/dev/null 2>&1; }

missing_packages() {
    local name
    for name in "${DEBIAN[@]}"; do
        dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || printf '%s ' "$name"
    done
}

install_packages() {
    local missing sudo=()
    if ! command -v apt-get >/dev/null; then
        fail "this is no Debian: install cmake, a C++ compiler and the headers of OpenGL, EGL, SDL2 (gfx, image, ttf) and" \
            "Boost (filesystem, python, system, thread) by hand, then use --no-apt"
    fi
    read -r -a missing <<<"$(missing_packages)"
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail "as root: apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

apt=yes
while (($#)); do
    case $1 in
    --no-apt) apt=no ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        fail "unknown option '$1'"
        ;;
    esac
    shift
done

wanted=${PYTHON:-python3}
PYTHON=$("$wanted" -c 'import sys; print(sys.executable)' 2>/dev/null) || fail "there is no $wanted: set PYTHON"
cd "$(dirname "$0")"
if works; then
    say "gfootball is installed for $PYTHON already"
    exit
fi
if [[ $apt == yes ]]; then
    install_packages
    version='import sys; print("%d.%d" % sys.version_info[:2])'
    debian=$(/usr/bin/python3 -c "$version")
    ours=$("$PYTHON" -c "$version")
    [[ $ours == "$debian" ]] || fail "Debian's Boost.Python is for Python $debian, $PYTHON is Python $ours: set PYTHON" \
        "to one of version $debian, e.g. in a virtual environment made by /usr/bin/python3"
fi

# gfootball's build script asks the python3 on the path for psutil, which an isolated build would not see.
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
printf '#!/bin/sh\nexec "%s" "$@"\n' "$PYTHON" >"$tools/python3"
chmod +x "$tools/python3"
say "building gfootball, about 5 minutes on 2 cores"
if ! {
    "$PYTHON" -m pip install psutil wheel 'setuptools<81' &&
        PATH=$tools:$PATH "$PYTHON" -m pip install -v --no-build-isolation -r requirements.txt -r requirements-gfootball.txt
} >"$LOG" 2>&1; then
    grep -iE 'error' "$LOG" | tail -5 >&2 || true
    fail "gfootball cannot be built, see $LOG"
fi
works || fail "gfootball is built, but cannot be used: $("$PYTHON" -c 'import gfootball.env' 2>&1 | tail -1)"
say "ready: $PYTHON src/main.py --config=qmix --env-config=gfootball with env_args.map_name=academy_3_vs_2 runner=parallel"

#!/usr/bin/env bash
# Brings the database servers and the browser that the tests start: `make servers`. Safe to run again.
#
# Programs go to $MODEL_OPT_SERVERS (default ~/.cache/model_opt/servers), outside the repository.
# PYTHON names the interpreter of the environment that model_opt is installed in (default: python3).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
target=${MODEL_OPT_SERVERS:-$HOME/.cache/model_opt/servers}
python=${PYTHON:-python3}
missing=0

say() { printf 'servers: %s\n' "$*"; }

# have PROGRAM PACKAGES: installs the system's packages where PROGRAM is missing and this user may; false where it may not.
have() {
    if command -v "$1" >/dev/null; then
        return 0
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "$1 is missing and this user may not install it: sudo apt-get install $2"
        missing=1
        return 1
    fi
    say "installing the system's packages $2 (apt-get)"
    apt-get update -qq >/dev/null
    # A server's package would start it on its usual port; the tests start theirs on a free one.
    # shellcheck disable=SC2086 - several packages
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2 >/dev/null
}

install_neo4j() {
    local lib=$target/neo4j-5.26.20
    have java openjdk-17-jre-headless || return 0
    if [ -f "$lib/.complete" ]; then
        say "Neo4j 5.26.20 is in $lib"
        return
    fi
    have mvn maven || return 0
    mkdir -p "$lib"
    (cd "$lib" && mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$lib/lib")
    touch "$lib/.complete"
    say "Neo4j 5.26.20 is now in $lib"
}

install_redis() {
    have redis-server redis-server || return 0
    say "Redis is $(command -v redis-server)"
}

install_python_servers() {
    if ! "$python" -c 'import redis, pymongo, chromadb' 2>/dev/null || ! have_script nx-27017 || ! have_script chroma; then
        say "installing the drivers, chroma and nx-27017 with pip"
        "$python" -m pip install -q 'redis>=5.2' 'pymongo>=4.10' 'chromadb>=1.5.9,<2' nx-27017
    fi
    say "chroma and nx-27017 come with the Python environment"
}

have_script() { [ -x "$(dirname "$("$python" -c 'import sys; print(sys.executable)')")/$1" ]; }

install_browser() {
    if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
        say "Chromium is $(command -v chromium)"
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing the system's packages chromium and chromium-driver (apt-get)"
        apt-get update -qq >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            chromium chromium-driver fonts-dejavu-core >/dev/null
    else
        say "chromium is missing and this user may not install it: sudo apt-get install chromium chromium-driver"
        missing=1
    fi
}

install_redis
install_browser
install_python_servers
install_neo4j
exit $missing

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

install_neo4j() {
    local lib=$target/neo4j-5.26.20
    if [ -f "$lib/.complete" ]; then
        say "Neo4j 5.26.20 is in $lib"
        return
    fi
    if ! command -v mvn >/dev/null || ! command -v java >/dev/null; then
        say "Neo4j needs Java 17 or newer and Maven: apt-get install openjdk-17-jre-headless maven"
        missing=1
        return
    fi
    mkdir -p "$lib"
    (cd "$lib" && mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$lib/lib")
    touch "$lib/.complete"
    say "Neo4j 5.26.20 is now in $lib"
}

install_redis() {
    if command -v redis-server >/dev/null; then
        say "Redis is $(command -v redis-server)"
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing the system's package redis-server (apt-get)"
        apt-get update -qq >/dev/null
        # The package would start a server of its own on the usual port; the tests start theirs on a free one.
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null
    else
        say "redis-server is missing and this user may not install it: sudo apt-get install redis-server"
        missing=1
    fi
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

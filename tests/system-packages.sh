#!/bin/sh
# What the tests can use beyond Python. Installed where we may (root, apt); otherwise those tests skip and say so.
if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing postgresql for the tests of ingest from a query"
        (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql) >/dev/null 2>&1 ||
            echo "postgresql could not be installed: its tests will be skipped"
    else
        echo "no PostgreSQL server here: its tests will be skipped (Debian: apt-get install postgresql)"
    fi
fi

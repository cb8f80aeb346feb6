#!/bin/sh
# Puts onnxruntime_c_api.h into a folder and prints the folder: onnxruntime-header.sh FOLDER
#
# For Debian 12, which has no libonnxruntime-dev: the package of Debian 13 is fetched from where this machine gets its packages,
# with lists of its own, and unpacked. Nothing is installed.
set -eu
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
folder=$(cd "$1" && pwd)
sources=$folder/apt/debian.sources

if [ -e /etc/apt/sources.list.d/debian.sources ]; then
  awk -v RS= 'NR == 1' /etc/apt/sources.list.d/debian.sources | sed 's/^Suites:.*/Suites: trixie/; s/^Components:.*/Components: main/' >"$sources"
else
  sources=$folder/apt/sources.list
  awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^(https?|file|mirror):/) { print "deb", $i, "trixie main"; exit } }' /etc/apt/sources.list >"$sources"
fi

own() {
  apt-get -qq -o Dir::Etc::SourceList="$sources" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$folder/apt/lists" \
    -o Dir::Cache="$folder/apt/cache" -o Acquire::Languages=none -o APT::Sandbox::User="$(id -un)" "$@" >&2
}
cd "$folder/apt"
own update
own download libonnxruntime-dev
dpkg-deb -x libonnxruntime-dev_*.deb unpacked
cp unpacked/usr/include/onnxruntime/*.h "$folder"
rm -r "$folder/apt"
echo "$folder"

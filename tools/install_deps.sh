#!/bin/bash
# Installs the Debian/Ubuntu packages that are missing for the given purposes:
#   tools/install_deps.sh build        compiler, CMake and libraries
#   tools/install_deps.sh build test   ... and what the tests and lints use
#   tools/install_deps.sh plot         gnuplot
# As root or with a passwordless sudo it runs apt-get; otherwise it prints the command to run and
# exits with 3. What is already there, whoever installed it, is left alone.
# --list only prints what is missing (nothing if all is there).
set -euo pipefail

# purpose, package, and what shows that it is there: commands (name) or files (/path), any of them
table='
build g++                 g++ clang++
build cmake               cmake
build ninja-build         ninja
build git                 git
build ccache              ccache
build libhdf5-dev         /usr/include/hdf5/serial/hdf5.h /usr/include/hdf5.h /usr/local/include/hdf5.h
build libeigen3-dev       /usr/include/eigen3/Eigen/Core /usr/local/include/eigen3/Eigen/Core
build nlohmann-json3-dev  /usr/include/nlohmann/json.hpp /usr/local/include/nlohmann/json.hpp
build libcli11-dev        /usr/include/CLI/CLI.hpp /usr/local/include/CLI/CLI.hpp
build libzstd-dev         /usr/include/zstd.h /usr/local/include/zstd.h
build libpcre2-dev        /usr/include/pcre2.h /usr/local/include/pcre2.h
build libutf8proc-dev     /usr/include/utf8proc.h /usr/local/include/utf8proc.h
build libcpp-httplib-dev  /usr/include/httplib.h /usr/local/include/httplib.h
test  libopenmpi-dev      mpicc /usr/include/mpi.h
test  openmpi-bin         mpirun
test  libgtest-dev        /usr/include/gtest/gtest.h /usr/local/include/gtest/gtest.h
test  clang-format        clang-format
test  shellcheck          shellcheck
plot  gnuplot-nox         gnuplot
'

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
}

list_only=0
purposes=
for arg in "$@"; do
  case $arg in
    build | test | plot) purposes="$purposes $arg" ;;
    --list) list_only=1 ;;
    --help | -h)
      usage
      exit 0
      ;;
    *)
      echo "install_deps.sh: unknown argument '$arg' (build, test, plot, --list)" >&2
      exit 2
      ;;
  esac
done
if [ -z "$purposes" ]; then
  echo "install_deps.sh: name at least one purpose: build, test, plot" >&2
  exit 2
fi

# present PROBE...: is any of these commands or files there?
present() {
  local probe
  for probe in "$@"; do
    case $probe in
      /*) if [ -e "$probe" ]; then return 0; fi ;;
      *) if command -v "$probe" >/dev/null 2>&1; then return 0; fi ;;
    esac
  done
  return 1
}

# Prints the missing packages, one per line.
find_missing() {
  local purpose package probes
  while read -r purpose package probes; do
    case " $purposes " in *" $purpose "*) ;; *) continue ;; esac
    # shellcheck disable=SC2086  # a list of probes
    if ! present $probes; then echo "$package"; fi
  done < <(printf '%s' "$table" | grep .)
}

mapfile -t missing < <(find_missing)
if [ $list_only -eq 1 ]; then
  if [ ${#missing[@]} -gt 0 ]; then printf '%s\n' "${missing[@]}"; fi
  exit 0
fi

if [ ${#missing[@]} -gt 0 ]; then
  command_line="apt-get install --yes --no-install-recommends ${missing[*]}"
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "install_deps.sh: this is not Debian or Ubuntu; install what these packages are called" >&2
    echo "on your system and start again: ${missing[*]}" >&2
    exit 3
  fi
  if [ "$(id -u)" -eq 0 ]; then
    as_root=(env)
  elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root=(sudo -n env)
  else
    echo "install_deps.sh: packages are missing and this user may not install any. Please run" >&2
    echo "  sudo apt-get update && sudo $command_line" >&2
    echo "and start again." >&2
    exit 3
  fi
  echo "== installing ${missing[*]}"
  # Package lists may be absent (fresh container) or old: one update, then the installation.
  # dpkg needs the folders of administrators' programs, which a short PATH may lack.
  apt_get=("${as_root[@]}" DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
    apt-get -q -o Dpkg::Use-Pty=0)
  "${apt_get[@]}" update </dev/null || echo "install_deps.sh: apt-get update failed, trying anyway" >&2
  if ! "${apt_get[@]}" install --yes --no-install-recommends "${missing[@]}" </dev/null; then
    echo "install_deps.sh: the installation failed; see apt-get's messages above. The command was" >&2
    echo "  $command_line" >&2
    exit 3
  fi
  mapfile -t missing < <(find_missing)
  if [ ${#missing[@]} -gt 0 ]; then
    echo "install_deps.sh: installed, but still not found: ${missing[*]}" >&2
    exit 3
  fi
fi

case " $purposes " in *" build "*)
  version=$(cmake --version | sed -n '1s/.* //p')
  if [ "$(printf '3.25\n%s\n' "$version" | sort -V | head -n 1)" != 3.25 ]; then
    echo "install_deps.sh: CMake $version is too old, 3.25 is needed (Debian 12 and Ubuntu 24.04" >&2
    echo "have it; elsewhere: python3 -m pip install cmake, or the packages of cmake.org)" >&2
    exit 3
  fi
  ;;
esac

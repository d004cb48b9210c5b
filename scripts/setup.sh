#!/usr/bin/env bash
# Installs what switchyard needs to build and to run its tests, all from Debian's (or Ubuntu's) own packages.
# Does nothing, and needs no network, where all of it is there.
#
#   scripts/setup.sh            install what is missing, as root or through sudo
#   scripts/setup.sh --check    only say what is missing; exit code 1 if anything is
#   scripts/setup.sh --browser  Chromium too, in which tests open the page of tools/report.py (skipped without it)
#   scripts/setup.sh --no-mpi   without Open MPI: the build then refuses mpirun, and tests of ranks under it are skipped
set -euo pipefail

# The OpenCL files: Debian's oneDNN asks for them in its CMake configuration, but only recommends their package.
packages=(g++ cmake ninja-build ccache git python3 libboost-context-dev libdnnl-dev ocl-icd-opencl-dev nlohmann-json3-dev libspdlog-dev
  libfmt-dev libcli11-dev libgtest-dev libbenchmark-dev zlib1g-dev pkg-config libonig-dev libutf8proc-dev)
# For ranks under mpirun, on one machine or several; the build and its other tests need none of them.
mpi_packages=(libopenmpi-dev openmpi-bin)

check_only=false
mpi=true
for option in "$@"; do
  case $option in
    --check) check_only=true ;;
    --browser) packages+=(chromium) ;;
    --no-mpi) mpi=false ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "setup: unknown option '$option'; there are --check, --browser and --no-mpi" >&2; exit 2 ;;
  esac
done
if $mpi; then packages+=("${mpi_packages[@]}"); fi

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  echo "setup: this is not Debian or Ubuntu, so nothing can be checked or installed here." >&2
  echo "setup: install what these Debian packages hold: ${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  if [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2> /dev/null)" != installed ]]; then
    missing+=("$package")
  fi
done
if ((${#missing[@]} == 0)); then
  echo "setup: everything is installed"
  exit 0
fi

echo "setup: missing packages: ${missing[*]}"
by_hand="apt-get update && apt-get install --no-install-recommends ${missing[*]}"
if $check_only; then
  echo "setup: install them with: $by_hand"
  exit 1
fi

as_root=()
if ((EUID != 0)); then
  if command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
    as_root=(sudo -n)
  elif command -v sudo > /dev/null && [[ -t 0 ]]; then
    as_root=(sudo)  # a person is there to type the password
  else
    echo "setup: only root may install them; run this as root: $by_hand" >&2
    exit 1
  fi
fi

if ((${#as_root[@]})); then
  "${as_root[@]}" -v  # asks for the password here, where the prompt can be seen
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" > "$log" 2>&1 && return
  cat "$log" >&2
  echo "setup: 'apt-get $1' failed (its messages are above); once that is mended, run: $by_hand" >&2
  exit 1
}
echo "setup: installing them (this can take some minutes)"
apt update
apt install -y --no-install-recommends "${missing[@]}"
echo "setup: done"

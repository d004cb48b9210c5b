#!/usr/bin/env bash
# Checks and measures switchyard on a GPU, in one command, and says in one table what came out: tools/gpu_check.py, whose
# --help lists the options. Here is what makes a bundle of binaries, on a machine where switchyard can be built:
#
#   scripts/gpu_check.sh --bundle DIR [--arch LIST]      CMAKE_CUDA_ARCHITECTURES; default: all that are usual
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bundle='' arch=''
given=("$@")
while (($#)); do
  case $1 in
    --bundle | --arch)
      (($# > 1)) || { echo "gpu_check: $1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2"
      shift
      ;;
  esac
  shift
done
[[ -n $bundle ]] || exec python3 -B tools/gpu_check.py "${given[@]}"

# Of the C and C++ libraries every machine has its own, of cuBLAS one that fits its driver, of NCCL one that fits its network.
left_out='^(ld-linux.*|libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|libcublas|libcublasLt|libnccl)\.so'

newest_symbol() { # newest_symbol PREFIX FILE...: the newest version of a library's symbols that the files ask for
  local prefix=$1
  shift
  objdump -T "$@" | { grep -oE "\b${prefix}_[0-9.]+" || true; } | sort -uV | tail -n 1
}

make_bundle() {
  local build=build-bundle directory nccl
  # Programs find the libraries beside them by an RPATH, which holds for what those need too; LD_LIBRARY_PATH would put
  # them in front of other programs' own.
  # shellcheck disable=SC2016  # $ORIGIN is the loader's
  cmake --preset cuda -B $build -DSWITCHYARD_NATIVE=OFF -DSWITCHYARD_CUDNN=OFF -DSWITCHYARD_MPI=OFF ${arch:+-DCMAKE_CUDA_ARCHITECTURES="$arch"} \
    -DCMAKE_BUILD_RPATH='$ORIGIN/../lib' -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags
  cmake --build $build --target switchyard cuda_test bench_cuda bench_exchange
  directory=$(mktemp -d)
  trap 'rm -rf "$directory"' RETURN
  mkdir "$directory/bin" "$directory/lib"
  cp $build/switchyard $build/bench_cuda $build/bench_exchange $build/tests/cuda_test "$directory/bin"
  ldd "$directory"/bin/* | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u | while read -r name path; do
    [[ $name =~ $left_out ]] || cp -L "$path" "$directory/lib/$name"
  done
  strip --strip-unneeded "$directory"/bin/* "$directory"/lib/*
  # shellcheck disable=SC2046,SC2086  # words, one line
  {
    echo "commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown), built $(date -u +%F) on $(uname -m)"
    echo "architectures" $(grep -oh '\bsm_[0-9a-z]*' $build/build.ninja | sort -u)
    echo "toolkit" $(sed -n 's/^set(CMAKE_CUDA_COMPILER_VERSION "\(.*\)")/\1/p' $build/CMakeFiles/*/CMakeCUDACompiler.cmake)
    echo "needs" $(newest_symbol GLIBC "$directory"/*/*) $(newest_symbol GLIBCXX "$directory"/*/*) \
      $(objdump -p "$directory"/bin/switchyard | sed -n 's/^ *NEEDED *\(libcublasLt.*\)/\1/p')
    nccl=$(sed -n 's/^SWITCHYARD_NCCL_HEADER:INTERNAL=//p' $build/CMakeCache.txt)
    if [[ -n $nccl ]]; then
      echo "several ranks by NCCL, header $nccl; libnccl.so.2 is left to the machine"
    else
      echo "several ranks: no, NCCL was not found"
    fi
  } > "$directory/bundle.txt"
  mkdir -p "$bundle"
  # In one stream, so that the kernels, which are in each of the binaries, are stored once.
  tar -C "$directory" -cf - bin lib bundle.txt | xz -9 > "$bundle/switchyard-gpu.tar.xz"
  cp "$directory/bundle.txt" "$bundle"
  cat "$directory/bundle.txt"
  du -h "$bundle/switchyard-gpu.tar.xz"
}

make_bundle

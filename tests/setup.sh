#!/usr/bin/env bash
# Installs the Debian packages that tests need beyond what `make setup` brings. As root, once:
#
#   tests/setup.sh
#
# Without one of them its tests are skipped and name this script; with CI=true they fail.
#
#   ocl-icd-libopencl1    the loader, libOpenCL.so.1, that the runtime opens
#   pocl-opencl-icd       PoCL: a driver whose device is this machine's CPU; it stands in for the GPU
#   oclgrind              a simulator that finds reads out of bounds, uninitialised values and races in kernels
#   opencl-c-headers      Khronos' header, which one test compares our declarations with
#   clang                 compiles kernels with half arithmetic, which no driver here has, for spir64
#   libclang-rt-N-dev     its libFuzzer, with which tests/attack reads the program cache
#   g++                   builds the OpenCL runtime with sanitizers; its linker takes a glibc that boards lack
#   llvm-19               llvm-mca, which counts cycles of Arm kernels; that of Debian 12's llvm knows too few cores
#   binutils              nm and readelf, which tests compare our ELF reader with
#   openssh-server        a test's own sshd, for what is copied to a board; where root starts it, it needs /run/sshd
#   chromium, fonts-dejavu-core  draw the HTML report; DejaVu Sans is the font that its charts were measured with
#
# The emulated AArch64 board (tests/virtual_board/build.sh) is not installed: its tests fetch its packages into
# ~/.cache/hetero_sd when they first run. Its OpenCL needs root then, too.
#
# Without root, `pip install pyopencl pocl-binary-distribution` brings a loader and PoCL for x86-64. Point HSD_OPENCL_LIB
# at pyopencl/.libs/libOpenCL-*.so* and PYOPENCL_HOME at the folder pyopencl, without which that loader crashes.
# Oclgrind has no such wheel.
set -euo pipefail

apt-get update -qq
clang=$(apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p')  # of this Debian
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  ocl-icd-libopencl1 pocl-opencl-icd oclgrind opencl-c-headers clang "libclang-rt-$clang-dev" g++ llvm-19 binutils \
  openssh-server chromium fonts-dejavu-core
mkdir -p /run/sshd

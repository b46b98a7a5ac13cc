#!/usr/bin/env bash
# Installs what tests need beside Python: an OpenCL that runs on the CPU (tests/targets/mali), and a browser (the report
# of `predict` is drawn and looked at in tests/hetero_sd/predict). As root:
#
#   tests/opencl/setup.sh
#
#   ocl-icd-libopencl1    the loader, libOpenCL.so.1, that the runtime opens
#   pocl-opencl-icd       PoCL: a driver whose device is this machine's CPU; it stands in for the GPU
#   oclgrind              a simulator that finds reads out of bounds, uninitialised values and races in kernels
#   opencl-c-headers      Khronos' header, which one test compares our declarations with
#   clang                 compiles kernels with half arithmetic, which no driver here has, for spir64
#   g++, g++-aarch64-linux-gnu   build the runtime for this machine and for a board
#   chromium, fonts-dejavu-core  draw the report; DejaVu Sans is as wide as the font that its charts were measured with
#
# Without root, `pip install pyopencl pocl-binary-distribution` brings a loader and PoCL for x86-64. Point HSD_OPENCL_LIB
# at pyopencl/.libs/libOpenCL-*.so* and PYOPENCL_HOME at the folder pyopencl, without which that loader crashes.
# Oclgrind has no such wheel.
set -euo pipefail

apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  ocl-icd-libopencl1 pocl-opencl-icd oclgrind opencl-c-headers clang g++ g++-aarch64-linux-gnu \
  chromium fonts-dejavu-core

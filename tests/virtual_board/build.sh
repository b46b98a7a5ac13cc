#!/usr/bin/env bash
# Makes the virtual AArch64 board: a folder with an arm64 Debian (Python, the C++ library, a shell)
# and QEMU's user-mode emulator, in which `virtual_board.run` (tests/virtual_board/conftest.py) runs AArch64
# Python. It shows that cross-compiled code computes the right numbers; its timings mean nothing.
#
#   tests/virtual_board/build.sh [--opencl]
#
# What it fetches, and why (all from this machine's own Debian mirror, nothing is installed on this machine):
#   qemu-user-static   amd64  the emulator: one static file, copied into the root, so that binfmt is not needed
#   python3 libstdc++6 zlib1g libgomp1 dash coreutils   arm64  what the TVM runtime and numpy wheels link against
#   --opencl: ocl-icd-libopencl1 pocl-opencl-icd clinfo binutils gcc libc6-dev   arm64  an OpenCL driver on the
#             CPU. It starts a linker, and a child process needs binfmt, so --opencl also registers the emulator.
#
# Where: $HSD_VIRTUAL_BOARD, or ~/.cache/hetero_sd/virtual_board. A second call does nothing.
# Needs: Debian on x86-64. Root, or user namespaces, is needed to run the board (chroot, bind mounts), not to
# build it; only --opencl needs root here, to register binfmt.
set -euo pipefail

packages=(python3 libstdc++6 zlib1g libgomp1 dash coreutils)
kind=cpu
case "${1:-}" in
  "") ;;
  --opencl)
    kind=opencl
    packages+=(ocl-icd-libopencl1 pocl-opencl-icd clinfo binutils gcc libc6-dev)
    ;;
  *)
    echo "usage: build.sh [--opencl]" >&2
    exit 2
    ;;
esac

fail() {
  echo "virtual board: $1" >&2
  exit 1
}

board="${HSD_VIRTUAL_BOARD:-${HOME:-/root}/.cache/hetero_sd/virtual_board}"
mkdir -p "$board"
board="$(cd "$board" && pwd)"
exec 9>"$board/.lock"
flock 9  # two test sessions may ask for the board at once

# With --opencl: let the kernel run AArch64 programs through the emulator, until the next reboot.
register_emulator() {
  [ "$kind" = opencl ] || return 0
  local binfmt=/proc/sys/fs/binfmt_misc
  [ -e "$binfmt/register" ] || mount -t binfmt_misc none "$binfmt" ||
    fail "--opencl needs binfmt_misc, and it cannot be mounted (not root?)"
  [ ! -e "$binfmt/qemu-aarch64" ] || return 0
  # Magic and mask of an AArch64 ELF file; F = open the emulator now, so that it need not be found in the chroot.
  local magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf '%s' ":qemu-aarch64:M::$magic:$mask:$board/root/qemu-aarch64-static:F" >"$binfmt/register" ||
    fail "--opencl could not register the emulator with binfmt_misc"
}

# The stamp is written last; it names the parts, so a root without OpenCL is rebuilt when --opencl is asked for.
stamp="$board/root/.hetero_sd_board"
wanted="${packages[*]}"
if [ -f "$stamp" ]; then
  have="$(cat "$stamp")"
  if [ "$have" = "$wanted" ] || [ "$kind" = cpu ]; then
    register_emulator
    echo "virtual board: ready in $board"
    exit 0
  fi
fi

[ "$(uname -m)" = x86_64 ] || fail "needs an x86-64 machine, this is $(uname -m)"
for tool in apt-get dpkg-deb unshare chroot; do
  command -v "$tool" >/dev/null || fail "needs Debian's $tool, which is not here"
done

# Package lists and downloads live in folders of their own: this machine's dpkg and apt state are left alone.
# Usage: apt_for ARCH ARGUMENTS
apt_for() {
  local arch="$1"
  shift
  local state="$board/apt/$arch"
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  : >"$state/status"
  DEBIAN_FRONTEND=noninteractive apt-get -q \
    -o APT::Architecture="$arch" -o APT::Architectures="$arch" \
    -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" \
    -o Dir::Cache="$state/cache" -o Dir::Cache::archives="$state/cache/archives" \
    -o Dir::Log="$state" -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
    -o APT::Keep-Downloaded-Packages=true -o DPkg::Post-Invoke= -o APT::Update::Post-Invoke= "$@"
}

# Usage: fetch_packages ARCH PACKAGE...   (the .deb files then lie in $board/apt/ARCH/cache/archives)
fetch_packages() {
  local arch="$1"
  shift
  # A foreign source of this machine without arm64 packages may fail; what counts is that the install is found.
  apt_for "$arch" update >"$board/apt-$arch.log" 2>&1 || true
  apt_for "$arch" install -y --download-only --no-install-recommends "$@" >>"$board/apt-$arch.log" 2>&1 ||
    fail "the $arch packages could not be fetched: $(grep -m1 '^E:' "$board/apt-$arch.log" || echo "see $board/apt-$arch.log")"
}

echo "virtual board: fetching the emulator and ${#packages[@]} arm64 packages with what they need into $board"
mkdir -p "$board/apt"
fetch_packages amd64 qemu-user-static
fetch_packages arm64 "${packages[@]}"

rm -rf "$board/root.new" "$board/emulator.new"
mkdir -p "$board/root.new" "$board/emulator.new"
dpkg-deb -x "$board"/apt/amd64/cache/archives/qemu-user-static_*.deb "$board/emulator.new"
# Debian's /bin, /lib and /sbin are links into /usr; the package that makes them is not among ours.
for folder in bin lib sbin; do
  mkdir -p "$board/root.new/usr/$folder"
  ln -s "usr/$folder" "$board/root.new/$folder"
done
for package in "$board"/apt/arm64/cache/archives/*.deb; do
  # Through tar, because `dpkg-deb -x` would replace those links by folders.
  dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink --no-same-owner -C "$board/root.new"
done
mkdir -p "$board/root.new"/{proc,sys,dev,tmp,root,site,work}
chmod 1777 "$board/root.new/tmp"
ln -sf dash "$board/root.new/usr/bin/sh"
cp "$board/emulator.new/usr/bin/qemu-aarch64-static" "$board/root.new/qemu-aarch64-static"
rm -rf "$board/root.new/usr/share"/{doc,man,locale,info} "$board/emulator.new"
echo "$wanted" >"$board/root.new/.hetero_sd_board"
rm -rf "$board/root"
mv "$board/root.new" "$board/root"
rm -rf "$board/apt"
register_emulator

echo "virtual board: ready in $board ($(du -sm "$board/root" | cut -f1) MB)"

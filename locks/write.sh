#!/usr/bin/env bash
# "make lock": every package of every extra with the SHA-256 of its files, for Python 3.11 and newer on any system.
# What is locked stays unless pyproject.toml forbids it; "make lock UPGRADE=--upgrade" takes the newest of all.
#   packages.txt    what is installed
#   torch.txt       torch and CUDA: limits for what packages.txt asks for, because a CPU wheel of torch asks for no CUDA
#   torch-cpu.txt   those wheels; not written here, but their version is the one that is locked
#   pip.txt         the pip that reads hashes from limits; older ones do not
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -r "$place"' EXIT
cat locks/packages.txt locks/torch.txt > "$place/all.txt"
sed -n 's/^\(torch==[0-9.]*\).*/\1/p' locks/torch-cpu.txt > "$place/torch.in"
uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-header \
  --no-annotate -c "$place/torch.in" "$@" -o "$place/all.txt"
entries() { awk -v wanted="$1" -v others="$2" '/^[a-z]/ { keep = $0 ~ wanted && $0 !~ others } keep' "$place/all.txt"; }
cuda='^(torch|triton)==|^(nvidia|cuda)-'
entries . "$cuda" > locks/packages.txt
entries "$cuda" '^$' > locks/torch.txt
entries '^pip==' '^$' > locks/pip.txt

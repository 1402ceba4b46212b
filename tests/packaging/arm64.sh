#!/usr/bin/env bash
# A Python for arm64 from Debian's packages into .arm64, for the emulator; the system's own packages stay as they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -e .arm64 ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives}/partial "$work/root"
touch "$work/status"
cat > "$work/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
CONF
export APT_CONFIG="$work/apt.conf"
apt-get update -qq
python=$(apt-cache depends python3-minimal | sed -n 's/.*Depends: \(python3\.[0-9]*\)-minimal/\1/p')
(cd "$work" && apt-get download -qq "$python-minimal" "lib$python-minimal" "lib$python-stdlib" libc6 libstdc++6 \
  libgcc-s1 libffi8 zlib1g libexpat1)
for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
mv "$work/root" .arm64

#!/bin/sh
# install.sh REQUIREMENTS: in an image of Debian 12, as root, OpenGL by EGL and OSMesa, and the lock in /opt/srpo.
set -eu
apt-get update
apt-get install --yes --no-install-recommends \
    ca-certificates git libegl1 libgl1 libglib2.0-0 libosmesa6 python3 python3-venv
rm -rf /var/lib/apt/lists/*
# By this file EGL finds NVIDIA's driver, which comes from the host.
mkdir -p /usr/share/glvnd/egl_vendor.d
echo '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}}' \
    >/usr/share/glvnd/egl_vendor.d/10_nvidia.json
python3 -m venv /opt/srpo
/opt/srpo/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --requirement "$1"

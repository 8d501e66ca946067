#!/usr/bin/env bash
# Builds the Dockerfile and runs the image as the platform does: build.sh, export.sh and test.sh.
#
# With a Docker engine, on the Dockerfile's own base. Without one, as root on a Debian or Ubuntu
# machine: Podman and Buildah from the distribution, on a Debian base that debootstrap makes. Base
# and layers are kept in ${XDG_CACHE_HOME:-/var/tmp}/hmvnet-container, for the next run.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-/var/tmp}/hmvnet-container
base=localhost/hmvnet-debian:bookworm
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { echo "container check, $SECONDS s: $*"; }

install_tools() { # debootstrap and the chroot build need root, even where the tools are there
    [[ $(id -u) == 0 ]] || return
    type podman buildah runc debootstrap > /dev/null 2>&1 && return
    local packages=(podman buildah runc debootstrap debian-archive-keyring)
    command -v apt-get > /dev/null \
        && apt-get update -qq \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" > /dev/null
}

# Storage and locks of our own: nothing of the machine's other images is touched, and no other
# Podman is waited for (by default all share one file of locks, whatever their storage). Overlay
# shares layers; where the file system has none, vfs copies, and all layers would fill the disk.
set_up_podman() {
    local driver run
    export CONTAINERS_CONF=$scratch/containers.conf CONTAINERS_STORAGE_CONF=$scratch/storage.conf
    for driver in overlay vfs; do
        run=/run/hmvnet-container/$driver
        mkdir -p "$cache/$driver" "$run"
        printf '[storage]\ndriver = "%s"\ngraphroot = "%s"\nrunroot = "%s"\n' \
            "$driver" "$cache/$driver" "$run" > "$CONTAINERS_STORAGE_CONF"
        cat > "$CONTAINERS_CONF" <<END
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "$run/libpod"
END
        podman info > /dev/null 2> "$scratch/info.log" && break
    done
    if [[ $driver == overlay ]]; then layers=--layers; else layers=--layers=false; fi
    say "storage driver $driver in $cache"
}

make_base() {
    podman image exists "$base" && return
    say "making the Debian base"
    debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates bookworm \
        "$scratch/debian" > "$scratch/debootstrap.log" 2>&1 \
        || { tail -n 20 "$scratch/debootstrap.log" >&2; return 1; }
    tar -C "$scratch/debian" -c . | podman import --quiet - "$base"
    rm -rf "$scratch/debian"
}

pip_mounts() { # the machine's own sources of packages, if its pip knows any
    local python
    for python in "$root/.venv/bin/python" python3; do
        if "$python" -m pip --version > /dev/null 2>&1; then
            "$python" "$root/.ci/pip_mounts.py" "$scratch/pip.conf"
            return
        fi
    done
}

check_image() {
    "$root/build.sh"
    say "running the sample cases"
    "$root/test.sh"
    say "running one case with the weights of model.tar.gz in /opt/ml/model"
    OUTPUT_DIR=$scratch "$root/export.sh" model
    mkdir "$scratch/model"
    tar -C "$scratch/model" -xzf "$scratch/model.tar.gz"
    MODEL=$scratch/model MIN_DICE=0.99 "$root/test.sh" phantom-1
}

if docker info > /dev/null 2>&1; then
    say "with the Docker engine"
    check_image
    say "passed"
    exit
fi

if ! install_tools; then
    say "SKIPPED, no Docker engine, and podman, buildah, runc, debootstrap cannot be installed (root?)"
    exit 0
fi
set_up_podman
make_base

# chroot isolation builds where a nested engine may not make namespaces of its own.
export DOCKER=podman BASE_IMAGE=$base IMAGE=localhost/hmvnet-ci
export DOCKER_BUILD="buildah bud --isolation chroot --network host $layers"
DOCKER_BUILD_ARGS=$(pip_mounts)
export DOCKER_BUILD_ARGS
# By default Podman puts a writable tmpfs on /run and /var/tmp, which the platform does not, and
# sets limits that can lie above those that this machine lets it set.
export DOCKER_RUN_ARGS="--read-only-tmpfs=false --ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
check_image
podman image prune --force > /dev/null
say "passed"

#!/usr/bin/env bash
# Builds the container image from the Dockerfile, from any working directory.
#
#   ./build.sh                      with Docker
#   DOCKER=podman ./build.sh        with Podman
#
# IMAGE            name of the image                          (default hmvnet)
# BASE_IMAGE       base image                                 (default: the Dockerfile's)
# WEIGHTS          bundle under weights/ that goes in         (default: the Dockerfile's)
# INTERFACE        auto, 2025 or 2026: whose platform reads it  (default auto: by the input)
# TASK             of 2025: 1, 2 or both                      (default both)
# ON_ERROR         answer every case, or refuse what cannot be trusted (hospitals)  (default answer)
# PLATFORM         platform to build for                      (default linux/amd64)
# PIP_FIND_LINKS   folder or page of wheels, for the build only
# DOCKER_BUILD     the build command                          (default "$DOCKER build")
# DOCKER_BUILD_ARGS  further arguments to it, such as "-v /wheels:/wheels:ro" for Podman
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
image=${IMAGE:-hmvnet}
read -r -a engine <<< "${DOCKER:-docker}"
read -r -a build <<< "${DOCKER_BUILD:-${engine[*]} build} ${DOCKER_BUILD_ARGS:-}"

arguments=(--platform "${PLATFORM:-linux/amd64}" --tag "$image")
for name in BASE_IMAGE WEIGHTS INTERFACE TASK ON_ERROR PIP_FIND_LINKS; do
    if [[ -n ${!name:-} ]]; then
        arguments+=(--build-arg "$name=${!name}")
    fi
done
if revision=$(git rev-parse HEAD 2> /dev/null); then
    arguments+=(--label "org.opencontainers.image.revision=$revision")
fi

echo "Building $image"
started=$SECONDS
"${build[@]}" "${arguments[@]}" .
bytes=$("${engine[@]}" image inspect --format '{{.Size}}' "$image")
echo "Built $image: $((bytes / 1000000)) MB in $((SECONDS - started)) s"

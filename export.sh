#!/usr/bin/env bash
# Writes the two files that are uploaded to the platform: the image and, separately, the weights.
#
#   ./export.sh                     both
#   ./export.sh image               <image>.tar.gz only
#   ./export.sh model [BUNDLE]      model.tar.gz only, of weights/BUNDLE or of a bundle's folder
#
# The platform extracts model.tar.gz into /opt/ml/model, where process.py looks before the weights
# that are in the image; so new weights need no new image.
#
# DOCKER           container engine                           (default docker)
# IMAGE            name of the image                          (default hmvnet)
# WEIGHTS          the bundle, where no argument names one    (default hmvnet-base)
# OUTPUT_DIR       where the files go                         (default: the repository's root)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
image=${IMAGE:-hmvnet}
what=${1:-all}
bundle=${2:-${WEIGHTS:-hmvnet-base}}
target=${OUTPUT_DIR:-$root}
read -r -a engine <<< "${DOCKER:-docker}"
if command -v pigz > /dev/null; then compress=(pigz -n); else compress=(gzip -n); fi

pack() { # pack FILE COMMAND...: the command's output, compressed; FILE appears once it is complete
    local file=$1
    shift
    echo "Writing $file"
    "$@" | "${compress[@]}" > "$file.part"
    mv "$file.part" "$file"
    echo "Wrote $file: $(($(wc -c < "$file") / 1000000)) MB"
}

export_image() {
    local name
    name=$(basename "$image")
    pack "$target/${name//:/_}.tar.gz" "${engine[@]}" save "$image"
}

export_model() {
    local folder=$root/weights/$bundle
    if [[ -d $bundle ]]; then folder=$bundle; fi
    if [[ ! -f $folder/manifest.json ]]; then
        echo "export.sh: $folder/manifest.json: no such file; is '$bundle' a weight bundle?" >&2
        exit 1
    fi
    # The files themselves at the top of the archive, not the folder that holds them, and readable
    # by the container's user whatever the umask of this checkout.
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/hmvnet-export.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    cp -RL "$folder/." "$scratch/"
    chmod -R a+rX "$scratch"
    pack "$target/model.tar.gz" tar -C "$scratch" -cf - .
}

mkdir -p "$target"
case $what in
    all)
        export_model
        export_image
        ;;
    image) export_image ;;
    model) export_model ;;
    *) echo "export.sh: unknown '$what'; expected image, model or nothing for both" >&2; exit 2 ;;
esac

#!/usr/bin/env bash
# What tests use beyond Python, where it can be installed: Chromium opens the page, dicom3tools looks
# at DICOM, dcmtk compresses it. Tests that find them missing say so and are skipped.
set -uo pipefail
packages=(chromium dicom3tools dcmtk)
for command in chromium dciodvfy dcmcjpeg; do
    command -v "$command" > /dev/null || missing=1
done
[[ ${missing:-} ]] || exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get > /dev/null; then
    echo "note: ${packages[*]} are not all here and cannot be installed; their tests are skipped"
    exit 0
fi
{ apt-get update && apt-get install --yes --no-install-recommends "${packages[@]}"; } \
    > /dev/null 2>&1 || echo "note: ${packages[*]} could not be installed; their tests are skipped"

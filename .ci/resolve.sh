#!/usr/bin/env bash
# Resolves base and train to wheels alone on every supported Python, and prints a table. Nothing is
# installed. Where pip of this machine takes packages from elsewhere, uv is told so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=.venv/bin/uv
source=$(PYTHONPATH=.ci .venv/bin/python -c "
from pip_mounts import read_settings
print(*(value for name, value in read_settings().items() if name.startswith('index')))")
[[ -z $source ]] || export UV_DEFAULT_INDEX=$source
failed=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
.venv/bin/python - > "$scratch/train.txt" <<END
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["train"], sep="\n")
END
printf '%-8s %-8s %s\n' Python extra result
for version in 3.10 3.11 3.12 3.13 3.14; do
    for extra in base train; do
        options=(requirements.txt --python-version "$version" --python-platform x86_64-manylinux_2_28)
        [[ $extra == base ]] || options+=("$scratch/$extra.txt")
        if found=$("$uv" pip compile --quiet --only-binary :all: --no-header --no-annotate \
            "${options[@]}" 2> "$scratch/log"); then
            printf '%-8s %-8s %s packages\n' "$version" "$extra" "$(grep -c '==' <<< "$found")"
        else
            printf '%-8s %-8s FAILED\n' "$version" "$extra"
            cat "$scratch/log"
            failed=1
        fi
    done
done
exit $failed

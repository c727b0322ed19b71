"""Puts the configs, the demo's backbone and the tools into the wheel; all else: setup.cfg."""

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
        for name in ('configs', 'pretrain', 'tools'):
            target = Path(self.build_lib, 'vpt_dense/.mim', name)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=shutil.ignore_patterns('__pycache__', 'dev'))


setup(cmdclass=dict(build_py=BuildWithConfigs))

"""mmpretrain without its multimodal models where they cannot be imported.

With pycocotools and transformers installed ``import mmpretrain`` imports them, whatever is wanted
of it, and ends in a TypeError if transformers is of version 5 or newer: it lacks names that they
are made of. They are then what they are without pycocotools: names that say what they need.
"""

import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Sequence
from types import ModuleType


class Guard:
    """Finds the module of mmpretrain that says whether the models are imported."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if name != 'mmpretrain.utils.dependency':
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                version = module.WITH_MULTIMODAL and importlib.metadata.version('transformers')
                if version and int(version.partition('.')[0]) >= 5:
                    module.WITH_MULTIMODAL = False

            spec.loader.exec_module = exec_module
        return spec


if Guard not in sys.meta_path:
    sys.meta_path.insert(0, Guard)

"""Avoids slow or failing imports that the OpenMMLab packages make without need.

- mmpretrain: with pycocotools and transformers installed its multimodal models are imported, which
  ends in a TypeError if transformers is of version 5 or newer: it lacks names that they are made
  of. They are then what they are without pycocotools: names that say what they need.
- mmengine imports transformers for one optimizer, ``Adafactor``; here, when that is looked up.
- Modules that call functions of timm, scipy or torchvision, which hardly any config names, get
  functions that import these when they are called. One that reads a table of mmpretrain's reads
  it without mmpretrain's data sets.

And what mmdet needs of an mmcv without compiled operators: ``mmcv._ext`` is then
:mod:`vpt_dense.operators`, once mmdet is imported. Others, who can do without, are told as before
that there is none; and modules of mmseg and mmpretrain that would try mmdet, and failed without
operators, do not import it: that takes seconds.
"""

import gc
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_BOXES = ('torchvision', 'torchvision.ops', 'torchvision.ops.boxes')
#: Module of the stack -> modules of which it calls functions, seldom, and packages of which it
#: imports a module: nothing else.
LATER = {
    'mmdet.models.dense_heads.clr_head.clr_head': ('scipy.interpolate',),
    'mmdet.models.dense_heads.clr_head.lane': ('scipy.interpolate',),
    'mmdet.models.task_modules.assigners.hungarian_assigner': ('scipy.optimize',),
    'mmdet.models.task_modules.assigners.topk_hungarian_assigner': ('scipy.optimize',),
    'mmdet.models.task_modules.tracking.aflink': ('scipy.optimize',),
    'mmdet.models.task_modules.tracking.interpolation': (
        'sklearn', 'sklearn.gaussian_process', 'sklearn.gaussian_process.kernels'),
    'mmdet.models.trackers.sort_tracker': ('scipy.optimize',),
    'mmengine.optim.optimizer.builder': ('transformers',),
    'mmpretrain.evaluation.metrics.visual_grounding_eval': _BOXES,
    'mmpretrain.models.utils.box_utils': _BOXES,
    'mmseg.datasets.onedl': ('mmpretrain.datasets',),
    'mmseg.datasets.transforms.transforms': ('scipy.ndimage',),
    'mmseg.models.assigners.hungarian_assigner': ('scipy.optimize',),
    'mmseg.models.backbones.beit': ('scipy.interpolate',),
    'mmseg.models.backbones.timm_backbone': ('timm',),
    'mmseg.models.losses.huasdorff_distance_loss': ('scipy.ndimage',),
    'mmseg.utils.tokenizer': ('ftfy',),
}
#: Others that are changed once they are executed.
_CHANGED = ('mmpretrain.utils.dependency', 'mmcv.ops.multi_scale_deform_attn')
#: They try mmdet, and do without.
_TRY_MMDET = (
    'mmpretrain.models.utils.res_layer_extra_norm',
    'mmseg.models.decode_heads.mask2former_head', 'mmseg.models.decode_heads.maskformer_head')
#: mmcv's compiled operators, and the file that stands in for them.
_EXTENSION, _OPERATORS = 'mmcv._ext', Path(__file__).with_name('operators.py')


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile: a seventh of the time that the stack's imports take."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Later(ModuleType):
    """Stands for a module; its functions import it when they are called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = importlib.util.find_spec(name).submodule_search_locations or []

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        inner = sys.modules.get(f'{self.__name__}.{name}')
        if isinstance(inner, _Later):
            return inner

        def function(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return function


@contextmanager
def _replaced(names: Sequence[str]) -> Iterator[None]:
    """Put stand-ins in the place of modules that are installed and not imported yet."""
    absent = [name for name in names if name not in sys.modules]
    if names and importlib.util.find_spec(names[0].partition('.')[0]) is None:
        absent = []
    for name in absent:  # a package before what it holds
        sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        for name in list(sys.modules):
            if any(name == other or name.startswith(f'{other}.') for other in absent):
                del sys.modules[name]


@contextmanager
def _without_mmdet(name: str) -> Iterator[None]:
    """For modules that try mmdet there is none, if nobody imported it and operators lack."""
    hides = name in _TRY_MMDET and 'mmdet' not in sys.modules and not has_compiled_operators()
    if hides:
        sys.modules['mmdet'] = None
    try:
        yield
    finally:
        if hides:
            del sys.modules['mmdet']


class _WithAdafactor(dict):
    """The classes of mmengine's registry of optimizers; this one is imported when looked up."""

    def __getitem__(self, name: str) -> Any:
        if name == 'Adafactor' and not isinstance(super().__getitem__(name), type):
            self[name] = importlib.import_module('transformers').Adafactor
        return super().__getitem__(name)


def _change(module: ModuleType) -> None:
    """Change a module of the stack after it was executed."""
    if module.__name__ == 'mmengine.optim.optimizer.builder':
        module.OPTIMIZERS._module_dict = _WithAdafactor(module.OPTIMIZERS._module_dict)
    elif module.__name__ == 'mmpretrain.utils.dependency':
        version = module.WITH_MULTIMODAL and importlib.metadata.version('transformers')
        if version and int(version.partition('.')[0]) >= 5:
            module.WITH_MULTIMODAL = False
    elif module.__name__ == 'mmcv.ops.multi_scale_deform_attn' and not has_compiled_operators():
        module.IS_CUDA_AVAILABLE = False  # then its own formula serves CUDA too


def has_compiled_operators() -> bool:
    """Whether mmcv was built with its operators."""
    mmcv = importlib.util.find_spec('mmcv')
    if mmcv is None:
        return False
    places = mmcv.submodule_search_locations
    return importlib.machinery.PathFinder.find_spec(_EXTENSION, places) is not None


class Guard:
    """Finds the modules of the stack that import too much."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if name == _EXTENSION and 'mmdet' in sys.modules and not has_compiled_operators():
            return importlib.util.spec_from_file_location(name, _OPERATORS)
        if name not in LATER and name not in (*_CHANGED, *_TRY_MMDET):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            execute: Callable = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with _replaced(LATER.get(name, ())), _without_mmdet(name):
                    execute(module)
                _change(module)

            spec.loader.exec_module = exec_module
        return spec


if Guard not in sys.meta_path:
    sys.meta_path.insert(0, Guard)

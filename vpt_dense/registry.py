"""Registries of vpt_dense: children of mmengine's, under the scope ``vpt_dense``.

Each names the modules that hold its classes (``locations``). mmengine imports
``vpt_dense.registry`` by itself when a config says ``type='vpt_dense.X'``, and the registry then
imports its locations: no ``custom_imports`` is needed, whatever the default scope.

A location is imported as a whole, so what one task needs (mmseg, mmpretrain) must not sit in a
location that the other task asks for.
"""

from mmengine import registry as _mmengine


def _child(name: str, *locations: str) -> _mmengine.Registry:
    parent = getattr(_mmengine, name)
    return _mmengine.Registry(
        parent.name, parent=parent, scope='vpt_dense', locations=list(locations)
    )


MODELS = _child(
    'MODELS', 'vpt_dense.prompts', 'vpt_dense.backbones', 'vpt_dense.engine'
)
DATASETS = _child(
    'DATASETS', 'vpt_dense.datasets.seg_folder', 'vpt_dense.datasets.image_folder'
)
TRANSFORMS = _child(
    'TRANSFORMS', 'vpt_dense.datasets.loading', 'vpt_dense.datasets.transforms'
)
HOOKS = _child('HOOKS', 'vpt_dense.hooks')
METRICS = _child('METRICS', 'vpt_dense.evaluation')
OPTIMIZERS = _child('OPTIMIZERS', 'vpt_dense.engine.muon')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'vpt_dense.engine')

__all__ = [
    'DATASETS', 'HOOKS', 'METRICS', 'MODELS', 'OPTIMIZERS', 'OPTIM_WRAPPERS', 'TRANSFORMS'
]

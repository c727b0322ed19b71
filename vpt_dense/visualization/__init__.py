"""Pictures of labels. The visualizers need mmseg or mmpretrain: the registry imports them."""

from vpt_dense.visualization.drawing import (
    Panel,
    draw_captions,
    draw_labels,
    draw_panels,
    make_palette,
    to_picture,
)

__all__ = [
    'Panel', 'draw_captions', 'draw_labels', 'draw_panels', 'make_palette', 'ours', 'to_picture',
]

#: Visualizers and hooks of the stack that have a replacement of the same name here.
_REPLACED = {
    'SegLocalVisualizer': 'mmseg', 'SegVisualizationHook': 'mmseg',
    'UniversalVisualizer': 'mmpretrain', 'VisualizationHook': 'mmpretrain',
}


def ours(config: dict) -> dict:
    """The config of a visualizer or a hook; ours in place of mmseg's or mmpretrain's.

    Args:
        config: It stays as it is.
    """
    kind = config.get('type')
    if isinstance(kind, type):  # of a config in mmengine's style
        scope, name = kind.__module__.partition('.')[0], kind.__name__
    else:
        scope, _, name = str(kind).rpartition('.')
    if name in _REPLACED and scope in ('', _REPLACED[name]):
        return {**config, 'type': f'vpt_dense.{name}'}
    return config

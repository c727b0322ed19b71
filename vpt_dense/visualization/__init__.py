"""Pictures of labels. The visualizers need mmseg or mmpretrain: the registry imports them."""

from vpt_dense import tasks
from vpt_dense.visualization.drawing import (
    Boxes,
    Panel,
    draw_boxes,
    draw_captions,
    draw_labels,
    draw_panels,
    make_palette,
    segment_panel,
    to_picture,
)
from vpt_dense.visualization.map_colours import (
    colour_depth,
    colour_normals,
    colour_numbers,
    depth_range,
)

__all__ = [
    'Boxes', 'Panel', 'colour_depth', 'colour_normals', 'colour_numbers', 'depth_range',
    'draw_boxes', 'draw_captions', 'draw_labels', 'draw_panels', 'make_palette', 'ours',
    'segment_panel', 'to_picture',
]


def ours(config: dict) -> dict:
    """The config of a visualizer or a hook; ours in place of that of its name in the stack.

    Args:
        config: It stays as it is.
    """
    kind = config.get('type')
    if isinstance(kind, type):  # of a config in mmengine's style
        scope, name = kind.__module__.partition('.')[0], kind.__name__
    else:
        scope, _, name = str(kind).rpartition('.')
    own = f'vpt_dense.{name}'
    for task in tasks.TASKS.values():
        kinds = (task.visualizer.get('type'), task.drawing.get('type'))
        if own in kinds and scope in ('', task.scope):
            return {**config, 'type': own}
    return config

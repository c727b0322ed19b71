"""Walking through a config: data sets inside wrappers, heads inside ensembles."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from vpt_dense import tasks

DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def get(node: Any, place: str) -> Any:
    """The value at a dotted place below a node; None: there is none."""
    for key in place.split('.'):
        if isinstance(node, (list, tuple)) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            node = node.get(key) if isinstance(node, (Mapping, Config)) else None
    return node


def as_list(node: Any) -> list:
    """A list or tuple as a list, None as an empty one, anything else as a list of one."""
    return list(node) if isinstance(node, (list, tuple)) else [] if node is None else [node]


def walk(node: Any, place: str) -> Iterator[tuple[str, dict]]:
    """All dicts below a node of the config with their dotted places, outermost first."""
    if isinstance(node, dict):
        yield place, node
        for key, child in node.items():
            yield from walk(child, f'{place}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from walk(child, f'{place}.{index}')


def placed_datasets(dataloader: dict | None, place: str) -> list[tuple[str, dict]]:
    """(dotted place, config dict) of a dataloader's data sets, inside wrappers, in their order."""

    def unwrap(node: Any, place: str) -> Iterator[tuple[str, dict]]:
        if not isinstance(node, dict):
            return
        inner = [key for key in ('dataset', 'datasets') if node.get(key)]
        if not inner:
            yield place, node
        for key in inner:
            child = node[key]
            if isinstance(child, (list, tuple)):
                for index, each in enumerate(child):
                    yield from unwrap(each, f'{place}.{key}.{index}')
            else:
                yield from unwrap(child, f'{place}.{key}')

    return list(unwrap((dataloader or {}).get('dataset'), f'{place}.dataset'))


def leaf_datasets(dataloader: dict | None) -> list[dict]:
    """The config dicts of a dataloader's data sets, inside wrappers such as RepeatDataset."""
    return [dataset for _, dataset in placed_datasets(dataloader, '')]


def heads(model: dict | None) -> list[dict]:
    """The config dicts of a model's heads: that of its task, and auxiliary ones.

    Of an ensemble's heads it is that of a member; of a detector's parts those that tell classes
    apart.
    """
    return [head for _, head in placed_heads(model)]


def placed_heads(model: dict | None, place: str = 'model') -> list[tuple[str, dict]]:
    """(dotted place, config dict) of a model's heads, see :func:`heads`."""
    model = model or {}
    regions = {name for task in tasks.TASKS.values() if task.regions for name in task.heads}
    found = []
    for name in tasks.heads():
        part = model.get(name)
        if name in regions:
            found += [(where, node) for where, node in walk(part, f'{place}.{name}')
                      if 'num_classes' in node and kind_of(node).endswith('Head')]
            continue
        if name == 'task_heads' and isinstance(part, dict):
            found += [(f'{place}.{name}.{task}', head) for task, head in part.items()]
            continue
        several = isinstance(part, (list, tuple))
        for index, head in enumerate(part if several else [part] if part else []):
            where = f'{place}.{name}.{index}' if several else f'{place}.{name}'
            inner = isinstance(head.get('head'), dict)  # of an ensemble
            found.append((f'{where}.head', head['head']) if inner else (where, head))
    return found


def kind_of(node: dict) -> str:
    """The name of a config's class without its scope."""
    return str(node.get('type')).rpartition('.')[2]

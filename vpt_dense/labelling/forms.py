"""What Label Studio calls things: its labelling configs, predictions and annotations."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vpt_dense.client import Result, Task
from vpt_dense.errors import UserError, suggest
from vpt_dense.labelling import brush

#: The tag of a labelling config by which results of a kind are shown.
TAGS = {'segmentation': 'BrushLabels', 'classification': 'Choices'}


@dataclass(frozen=True)
class Control:
    """A tag of a labelling config that a task fills in.

    Attributes:
        tag: ``BrushLabels`` or ``Choices``.
        name: The control's.
        to_name: That of the image.
        field: The key of the task's data that says where the image is.
        labels: What may be given, as results have it (an alias, where there is one).
    """

    tag: str
    name: str
    to_name: str
    field: str
    labels: tuple[str, ...]


def read_config(text: str, task: Task) -> Control:
    """The control of a labelling config that a task fills in.

    Args:
        text: The config, XML.
        task: Of the server.

    Raises:
        UserError: If there is none, or it has a label that the task does not know.
    """
    if task.kind not in TAGS:
        raise UserError(
            f'task {task.name} is of {task.kind}; Label Studio is given segmentation and '
            'classification')
    tag = TAGS[task.kind]
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f'the labelling config is no XML ({error})') from error
    images = {each.get('name'): each.get('value', '') for each in root.iter('Image')}
    controls = [each for each in root.iter(tag) if each.get('toName') in images]
    if len(controls) != 1:
        raise UserError(
            f'task {task.name} of {task.kind} needs one <{tag}> for an <Image> in the labelling '
            f'config, found {len(controls)}')
    (control,) = controls
    value = images[control.get('toName')]
    if not value.startswith('$'):
        raise UserError(f'the <Image> of the labelling config has the value {value!r}, not $NAME')
    inner = 'Label' if tag == 'BrushLabels' else 'Choice'
    labels = tuple(each.get('alias') or each.get('value', '') for each in control.iter(inner))
    for label in labels:
        if label not in task.classes:
            raise UserError(
                f'the labelling config has the label {label!r}, which task {task.name} does not '
                f'know{suggest(label, task.classes)}; its classes: {", ".join(task.classes)}')
    if not labels:
        raise UserError(
            f'<{tag} name="{control.get("name")}"> of the labelling config has no label')
    return Control(tag, control.get('name', ''), control.get('toName'), value[1:], labels)


def version(task: Task) -> str:
    """What predictions of a task are called: another delta is another version."""
    return f'{task.name} {task.sha256[:12]}'.strip()


def prediction(result: Result, control: Control, task: Task) -> dict[str, Any]:
    """A result as a prediction of Label Studio.

    Classes that are no label of the config are left out, as a background is.
    """
    common = dict(from_name=control.name, to_name=control.to_name)
    if control.tag == 'Choices':
        name, score = next(
            (name, score) for name, score in result.scores if name in control.labels)
        row = dict(common, type='choices', value=dict(choices=[name]), score=score)
        return dict(result=[row], score=score, model_version=version(task))
    height, width = result.labels.shape
    rows = []
    for label in control.labels:
        mask = result.labels == task.classes.index(label)
        if mask.any():
            rows.append(dict(
                common, type='brushlabels', original_width=width, original_height=height,
                image_rotation=0,
                value=dict(format='rle', rle=brush.encode(mask), brushlabels=[label])))
    return dict(result=rows, model_version=version(task))


def choose(task: dict[str, Any]) -> dict[str, Any] | None:
    """The annotation of a task that counts: a ground truth, else the one that was changed last."""
    there = [each for each in task.get('annotations', ()) if not each.get('was_cancelled')]
    return max(
        there, default=None,
        key=lambda each: (bool(each.get('ground_truth')), str(each.get('updated_at') or ''),
                          each.get('id') or 0))


def mask(
    annotation: dict[str, Any], control: Control, classes: Sequence[str], size: tuple[int, int],
    ids: Sequence[int] = (), ignored: int = 255,
) -> np.ndarray:
    """What was painted, as a mask to train with.

    Where nothing was painted is the one class that has no label in the config; if there is not
    exactly one, it is left out of training. What was painted later lies above.

    Args:
        annotation: Of Label Studio.
        control: Of the labelling config.
        classes: Names of the classes.
        size: (height, width) of the image.
        ids: Of each class the value in the mask; empty: its position.
        ignored: The value that is left out of training.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: If it has another size, or was painted over a turned image.
    """
    ids = ids or range(len(classes))
    others = [i for i, name in zip(ids, classes, strict=True) if name not in control.labels]
    found = np.full(size, others[0] if len(others) == 1 else ignored, np.uint8)
    where = f'annotation {annotation.get("id")}'
    for row in annotation.get('result', ()):
        if row.get('from_name') != control.name:
            continue
        value = row.get('value') or {}
        if row.get('type') != 'brushlabels' or value.get('format') != 'rle':
            raise UserError(f'{where}: {row.get("type")!r} is not painted with a brush')
        if row.get('image_rotation'):
            raise UserError(
                f'{where}: the image was turned by {row["image_rotation"]} degrees; turn it back')
        if (row.get('original_height'), row.get('original_width')) != size:
            raise UserError(
                f'{where} is of an image of {row.get("original_width")}x'
                f'{row.get("original_height")}, the image has {size[1]}x{size[0]}')
        labels = value.get('brushlabels') or []
        if len(labels) != 1 or labels[0] not in classes:
            raise UserError(f'{where}: {labels} is not one of {", ".join(classes)}')
        try:
            painted = brush.decode(value.get('rle'), *size)
        except ValueError as error:
            raise UserError(f'{where}: {error}') from error
        found[painted] = ids[list(classes).index(labels[0])]
    return found

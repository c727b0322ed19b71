"""How many parameters a model has, how many train, and what the tuned ones take on disk."""

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from vpt_dense import tables, tasks

#: Prefix of names -> part of the backbone; the first that fits decides.
_OF_BACKBONE = {
    'backbone.prompt.': 'prompt',
    'backbone.image_prompt.': 'image prompt',
    'backbone.adapters.': 'adapters',
    'backbone.': 'backbone',
}
TEXTS = 'text tower'
NOT_DEPLOYED = 'auxiliary heads'
DEPLOYED_NOTE = 'without the auxiliary heads, which are used in training only'

Counts = dict[str, tuple[int, int]]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the bare model inside distributed and test-time-augmentation wrappers.

    Both keep it as ``module``, which would otherwise prefix every parameter's name.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def part_of(name: str) -> str:
    """Return the part a parameter of a model belongs to, by its name.

    Outside of the backbone and the heads it is called as the name's first component.
    """
    for prefix, part in _OF_BACKBONE.items():
        if name.startswith(prefix):
            return part
    first, *rest = name.split('.')
    if rest[:1] == ['text'] and first in tasks.heads():  # of a head that knows classes by texts
        return TEXTS
    return _heads().get(first, first)


def _heads() -> dict[str, str]:
    """What heads are called, by their keys."""
    return {**{head: part for task in tasks.TASKS.values()
               for head, part in {task.head: task.part, **task.parts}.items()},
            tasks.AUXILIARY: NOT_DEPLOYED}


def order() -> list[str]:
    """The order in which parts are reported: the way a signal takes through the model."""
    return ['backbone', 'prompt', 'image prompt', 'adapters', 'neck', TEXTS, *_heads().values()]


def count(model: nn.Module) -> Counts:
    """Count the parameters of a model by part.

    Args:
        model: The model of a task, wrapped or not, on any device (``meta`` included). A
            tensor that several modules share counts once.

    Returns:
        ``{part: (trainable, total)}`` in the order of :func:`order`, only the parts that have
        parameters. Trainable means ``requires_grad``.
    """
    sums: dict[str, list[int]] = {}
    for name, parameter in unwrap(model).named_parameters():
        entry = sums.setdefault(part_of(name), [0, 0])
        entry[0] += parameter.numel() if parameter.requires_grad else 0
        entry[1] += parameter.numel()
    names = dict.fromkeys([*(part for part in order() if part in sums), *sums])
    return {part: (sums[part][0], sums[part][1]) for part in names}


def add_up(counts: Counts) -> tuple[int, int]:
    """Return (trainable, total) over all parts."""
    return sum(t for t, _ in counts.values()), sum(n for _, n in counts.values())


def backbone_trainable(counts: Counts) -> int:
    """Return the trainable parameters of the backbone, with all that tuning added to it."""
    return sum(counts[part][0] for part in _OF_BACKBONE.values() if part in counts)


def deployed(counts: Counts) -> tuple[int, int]:
    """Return (trainable, total) of what inference needs: everything but the auxiliary heads."""
    return add_up({part: pair for part, pair in counts.items() if part != NOT_DEPLOYED})


def tuned_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes that the tuned part of a model takes on disk.

    These are the trainable parameters and the saved buffers that training changes with them
    (batch-norm statistics). A buffer counts if its module owns a trainable parameter, or owns no
    parameter and lies in a part in which everything trains.

    Returns:
        ``{part: bytes}``, of the parts in which anything trains.
    """
    model = unwrap(model)
    whole = {part for part, (trainable, total) in count(model).items() if trainable == total}
    sizes: dict[str, int] = {}
    for prefix, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        part = part_of(f'{prefix}.x')
        tensors = [parameter for parameter in own if parameter.requires_grad]
        if tensors or (not own and part in whole):
            tensors += [
                buffer
                for name, buffer in module.named_buffers(recurse=False)
                if name not in module._non_persistent_buffers_set
            ]
        if tensors:
            sizes[part] = sizes.get(part, 0) + sum(t.numel() * t.element_size() for t in tensors)
    return sizes


def tuned_megabytes(model: nn.Module) -> tuple[float, float]:
    """Return :func:`tuned_bytes` in 10^6 bytes: of all parts, and of what is deployed."""
    sizes = tuned_bytes(model)
    size = sum(sizes.values())
    return size / 1e6, (size - sizes.get(NOT_DEPLOYED, 0)) / 1e6


def report(model: nn.Module) -> dict[str, Any]:
    """Return the counts of a model as plain data.

    Returns:
        ``parts`` ({part: {trainable, total}}), ``trainable``, ``total``, ``percent`` (trainable of
        total, 0 to 100), ``tuned_megabytes`` (10^6 bytes, see :func:`tuned_bytes`), and
        ``deployed`` ({trainable, total, tuned_megabytes, note}), without the auxiliary heads.
    """
    counts = count(model)
    trainable, total = add_up(counts)
    deployed_trainable, deployed_total = deployed(counts)
    megabytes, deployed_megabytes = tuned_megabytes(model)
    return {
        'parts': {part: {'trainable': t, 'total': n} for part, (t, n) in counts.items()},
        'trainable': trainable,
        'total': total,
        'percent': percent(trainable, total),
        'tuned_megabytes': megabytes,
        'deployed': {
            'trainable': deployed_trainable,
            'total': deployed_total,
            'tuned_megabytes': deployed_megabytes,
            'note': DEPLOYED_NOTE,
        },
    }


def percent(part: int, whole: int) -> float:
    """Return ``part`` of ``whole`` in percent; 0 of an empty whole."""
    return 100 * part / whole if whole else 0.0


def format_percent(value: float) -> str:
    """Write a percentage with one decimal, small ones with two digits that count."""
    return f'{value:.1f} %' if value >= 0.1 or value == 0 else f'{value:.2g} %'


def parts_table(model: nn.Module) -> str:
    """Return the table of parts x (trainable, total, %) of a model, as text for a log."""
    counts = count(model)
    rows = list(counts.items())
    if NOT_DEPLOYED in counts:
        rows.append(('all, in training', add_up(counts)))
        rows.append(('deployed (no auxiliary heads)', deployed(counts)))
    else:
        rows.append(('all', add_up(counts)))
    table = tables.text(
        ('part', 'trainable', 'total', '%'),
        [
            (part, f'{t:,}', f'{n:,}', format_percent(percent(t, n)).removesuffix(' %'))
            for part, (t, n) in rows
        ],
    )
    megabytes, deployed_megabytes = tuned_megabytes(model)
    size = f'The tuned part takes {megabytes:,.2f} MB on disk'
    if NOT_DEPLOYED in counts:
        size += f', {deployed_megabytes:,.2f} MB without the auxiliary heads'
    return f'{table}\n{size}.'

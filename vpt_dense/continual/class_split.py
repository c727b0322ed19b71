"""Base and new classes: half of the classes trains, the other half is only tested."""

from collections.abc import Mapping, Sequence

from mmengine.config import Config, ConfigDict

from vpt_dense.argument_checks import check_choice, is_list
from vpt_dense.continual.stream import names_of
from vpt_dense.errors import UserError
from vpt_dense.tree import DATALOADERS, get, kind_of

PARTS = ('base', 'new')


def labels_of(
    part: str, classes: Sequence[str], new: Sequence[str] | None = None
) -> list[int]:
    """The labels of base or new classes.

    Args:
        part: One of :data:`PARTS`.
        classes: Names of all.
        new: Names of the new ones. None: the second half, in the order of the labels; the base has
            one more where they do not divide, as in CoCoOp (https://arxiv.org/abs/2203.05557,
            section 4.1).

    Raises:
        UserError: If a name is not known, or one of the two has no class.
    """
    if new is None:
        start = (len(classes) + 1) // 2
        chosen = set(range(start, len(classes)))
    else:
        strange = [name for name in new if name not in classes]
        if strange:
            raise UserError(f'class_split.new: the data have no class {strange[0]!r}')
        chosen = {classes.index(name) for name in new}
    if not 0 < len(chosen) < len(classes):
        raise UserError(
            f'class_split: {len(chosen)} of the {len(classes)} classes are new; some must be, and '
            'some not')
    return [label for label in range(len(classes)) if (label in chosen) == (part == 'new')]


def place(cfg: Config, classes: Sequence[str] | None) -> None:
    """Make a config one of base or new classes, in place, where it has ``class_split``.

    ``class_split = 'base'``, or ``dict(part='base', new=[names])``: every data set holds the images
    of these classes alone, with their labels as they were, and the head tells them apart from each
    other (``head.among``). Training is of the base, a test of either.

    Args:
        cfg: A config whose data sets are merged.
        classes: Their names; None: not known.

    Raises:
        UserError: If a value is none of its kind, or the head does not know classes by their names.
    """
    given = cfg.pop('class_split', None)
    if given is None:
        return
    given = {'part': given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or set(given) - {'part', 'new'} or 'part' not in given:
        raise UserError(
            f"class_split: 'base', 'new' or a dict of part and new was expected, found {given!r}")
    try:
        check_choice(given['part'], 'class_split.part', PARTS)
    except ValueError as error:
        raise UserError(str(error)) from error
    new = given.get('new')
    if new is not None and not is_list(new):
        raise UserError(f'class_split.new must be a list of names, found {new!r}')
    if get(cfg, 'model.head.text') is None:
        raise UserError(
            'class_split: it is for classifiers that know classes by their names (model.head.text, '
            'configs/clip): others have nothing to tell new ones by')
    classes = names_of(cfg) if classes is None else classes
    if classes is None:
        raise UserError('class_split: the classes are not known; set dataset.classes, or put the '
                        'data where the config says')
    labels = labels_of(given['part'], list(classes), new)
    for name in DATALOADERS:
        inner = get(cfg, f'{name}.dataset')
        if inner:
            inner = inner['dataset'] if kind_of(inner) == 'ClassSubset' else inner
            cfg[name]['dataset'] = ConfigDict(
                type='vpt_dense.ClassSubset', dataset=inner, labels=labels, key='class_split')
    cfg.model.head['among'] = labels

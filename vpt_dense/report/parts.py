"""What a page consists of, as plain data that the template writes: sections, tables, cells."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vpt_dense import tasks
from vpt_dense.argument_checks import is_number

#: What a page can hold of pictures, in letters: it stays well below 2 MB.
BUDGET = 1_100_000


def cell(
    text: Any, value: float | None = None, bar: float | None = None, head: bool = False,
    note: str = '', tone: str = '',
) -> dict[str, Any]:
    """A cell of a table.

    Args:
        text: What it says; None: a dash.
        value: The number it is sorted by; None: by its text, and a dash stands last.
        bar: How long its bar is, in percent; None: it has none.
        head: Whether it names its row.
        note: Small, behind the text.
        tone: 'good' or 'bad', of the note.
    """
    if is_number(value):
        bar = None if bar is None else round(min(max(bar, 0.0), 100.0), 2)
    else:
        value = bar = None
    return {'text': '–' if text is None else str(text), 'value': value, 'bar': bar, 'head': head,
            'note': note, 'tone': tone, 'empty': text is None}


def number(
    value: Any, form: str = '.2f', bar: bool = False, most: float = 100.0, **kwargs: Any
) -> dict[str, Any]:
    """A cell of a number; a dash where there is none.

    Args:
        value: The number.
        form: How it is written.
        bar: Whether it has a bar.
        most: What a whole bar is.
        **kwargs: See :func:`cell`.
    """
    if not is_number(value):
        return cell(None)
    length = 100 * value / most if bar and most else None
    return cell(format(value, form), float(value), length, **kwargs)


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[dict]], note: str = '',
    sort: bool = True,
) -> dict[str, Any]:
    """A table that can be sorted.

    Args:
        caption: What it shows.
        columns: Headings.
        rows: Cells.
        note: Below it.
        sort: Whether its headings are buttons.
    """
    columns = [
        {'name': name, 'numeric': any(row[i]['value'] is not None for row in rows)}
        for i, name in enumerate(columns)
    ]
    return {'kind': 'table', 'caption': caption, 'columns': columns, 'rows': rows, 'note': note,
            'sort': sort and len(rows) > 1}


def facts(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Names with what they are; those that are None or empty are left out."""
    return {'kind': 'facts',
            'pairs': [(name, str(value)) for name, value in pairs if value not in (None, '')]}


def code(title: str, text: str) -> dict[str, Any]:
    """A text as it is, folded."""
    return {'kind': 'code', 'title': title, 'text': text}


def section(title: str, blocks: Sequence[dict | None], note: str = '') -> dict[str, Any] | None:
    """A part of a page; None if there is nothing in it."""
    blocks = [block for block in blocks if block]
    name = title.lower().replace(' ', '-')
    return {'id': name, 'title': title, 'blocks': blocks, 'note': note} if blocks else None


def attempt(problems: list[str], what: str, make: Callable, *args: Any) -> Any:
    """What a function returns; if a record is not as it should be None, and a sentence says so."""
    try:
        return make(*args)
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        problems.append(f'{what}: the records are not as expected ({type(error).__name__}'
                        f'{reason and f": {reason}"})')
        return None


# --- pictures --------------------------------------------------------------------------------


def gallery(
    records: Mapping[str, Mapping[str, Any]], where: str, left: str | None = None,
    right: str | None = None,
) -> dict[str, Any] | None:
    """The pictures of an evaluation, with the predictions of one or several methods.

    Args:
        records: Method -> what a run has left in ``pictures_*.json``.
        where: What the images are: 'test split'.
        left: The method that stands on the left; None: the truth.
        right: The method that stands on the right; None: the last.

    Returns:
        As many images as the page has room for, of those that all methods have; a sentence if
        that is none; None without pictures.
    """
    records = {name: record for name, record in records.items() if record.get('images')}
    if not records:
        return None
    by_place = {name: {(each['position'], each['name']): each for each in record['images']}
                for name, record in records.items()}  # fmt: skip
    kept, room = [], BUDGET
    some = next(iter(records.values()))
    maps = isinstance(some['images'][0].get('prediction'), str)  # the URL of a picture
    for place, image in next(iter(by_place.values())).items():
        own = {name: images[place] for name, images in by_place.items() if place in images}
        if len(own) < len(records):
            continue
        size = len(image['image'])
        if maps:
            size += len(image.get('truth') or '') + sum(len(e['prediction']) for e in own.values())
        room -= size
        if room < 0:
            break
        kept.append((image, own))
    if not kept:
        told = 'are too large for a page' if room < 0 else 'are not of the same images'
        return {'kind': 'list', 'lines': [f'The pictures of these runs {told}.']}
    common = {'where': where, 'count': len(kept), 'methods': list(records)}
    if not maps:
        return {'kind': 'verdicts', **common, 'images': [
            {**_picture(image), 'truth': _names(image.get('truth')),
             'verdicts': [{'method': name, 'prediction': _names(each['prediction']),
                           'score': each.get('score'), 'right': each.get('right')}
                          for name, each in own.items()]}
            for image, own in kept]}  # fmt: skip
    truth = all(image.get('truth') for image, _ in kept)
    layers = [('truth', 'truth')] if truth else []
    layers += [(f'm{i}', 'prediction' if len(records) == 1 else name)
               for i, name in enumerate(records)]  # fmt: skip
    keys = {name: f'm{i}' for i, name in enumerate(records)}
    shown = (keys.get(left, layers[0][0] if layers[1:] else 'image'),
             keys.get(right, layers[-1][0]))
    images = []
    for image, own in kept:
        drawn = [(image['truth'], None)] if truth else []
        drawn += [(each['prediction'], each.get('IoU')) for each in own.values()]
        images.append({**_picture(image), 'layers': [
            {'key': key, 'name': name, 'url': url, 'IoU': iou}
            for (url, iou), (key, name) in zip(drawn, layers, strict=True)]})  # fmt: skip
    labels = {label for image, own in kept for each in own.values() for label in each['labels']}
    classes, palette = some['classes'] or (), some.get('palette')
    if palette is None:
        from vpt_dense.visualization import make_palette

        palette = make_palette(len(classes))
    legend = [('#{:02x}{:02x}{:02x}'.format(*palette[label]), str(classes[label]))
              for label in sorted(labels)]  # fmt: skip
    return {'kind': 'gallery', **common, 'layers': layers, 'left': shown[0], 'right': shown[1],
            'images': images, 'legend': legend}


def by_task(records: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The pictures of several tasks that were predicted together, as those of models of one.

    Args:
        records: As in :func:`gallery`.

    Returns:
        Task -> records of it; under '' what is of one task.
    """
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for method, record in records.items():
        images = record.get('images') or [{}]
        for task in images[0].get('tasks') or ('',):
            own = dict(record)
            if task:
                rows = [{**each, **each['tasks'][task]} for each in images]
                own.update(images=rows, classes=rows[0]['classes'], palette=rows[0]['palette'])
            found.setdefault(task, {})[method] = own
    return found


def galleries(
    records: Mapping[str, Mapping[str, Any]], where: str, left: str | None = None,
    right: str | None = None,
) -> list[dict[str, Any] | None]:
    """A gallery for each task, see :func:`gallery`."""
    return [gallery(own, f'{where}, task {task}' if task else where, left, right)
            for task, own in by_task(records).items()]


def _picture(image: Mapping[str, Any]) -> dict[str, Any]:
    return {'name': image['name'], 'url': image['image'], 'width': int(image['width']),
            'height': int(image['height'])}  # fmt: skip


def _names(names: Sequence[str] | None) -> str | None:
    return None if names is None else ', '.join(map(str, names)) or 'none'


# --- text ------------------------------------------------------------------------------------


def label_of(metric: str | None) -> str:
    """What a metric is called in a sentence."""
    task = tasks.metrics().get(metric)
    return task and task.label or str(metric)


def duration(seconds: Any) -> str | None:
    """Seconds as one says them."""
    if not is_number(seconds):
        return None
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s'


def size(number_of_bytes: Any) -> str | None:
    """Bytes as one says them."""
    if not is_number(number_of_bytes):
        return None
    power = min(int(math.log10(max(number_of_bytes, 1)) // 3), 4)
    return f'{number_of_bytes / 1000**power:.3g} {("B", "kB", "MB", "GB", "TB")[power]}'


def short(count: int) -> str:
    """A count of parameters with three digits: 21.8 M."""
    for limit, letter in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
        if count >= limit:
            return f'{count / (1e3 if letter == "k" else limit):.3g} {letter}'
    return f'{count:,}'

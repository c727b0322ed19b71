"""Cost relative to no prompts over prompts, image tokens and batch, with the arithmetic bound.

``python tools/benchmark/train_step.py --tokens 1 10 50 100 200 --json prompts.json``
``python tools/benchmark/train_step.py --img-size 160 224 320 --tokens 50 --json sizes.json``
``python tools/benchmark/train_step.py --batch 1 2 4 8 --tokens 50 --json batches.json``
``python tools/benchmark/plot.py prompts.json sizes.json batches.json --out docs/cost.svg``

Files of forward.py are drawn in a second row.
"""

import json
import statistics
from pathlib import Path

from vpt_dense import outputs
from vpt_dense.errors import ArgumentParser, UserError, main
from vpt_dense.safe_files import atomic

SCRIPTS = {'train_step': 'training step', 'forward': 'forward pass'}
#: Label, colour (M. Okabe and K. Ito's, which the colour-blind can tell apart) and mark.
WAYS = {
    'reference': ('reference algorithm', '#D55E00', 's'),
    'mmseg': ("mmseg's ViT, prompts as tokens", '#CC79A7', 'D'),
    'tokens': ("prompts_as='tokens'", '#E69F00', '^'),
    'ours': ('vpt_dense', '#0072B2', 'o'),
}
AXES = {
    'tokens': 'prompts p in each block',
    'image_tokens': 'image tokens N',
    'batch': 'images in a batch',
}


def multiply_adds(
    image_tokens: int, prompts: int, width: int, blocks: int, batch: int = 1, training: bool = True
) -> float:
    """Count what the blocks of a frozen ViT with deep prompts cannot do without.

    With N image tokens (cls token included), p prompts and width C a block's forward pass takes,
    for each image, 12 N C^2 for the linear layers (query, key and value 3, projection 1, MLP 8)
    and 2 N (N + p) C for the products Q K^T and A V. Keys and values of the prompts take 2 p C^2,
    once for a whole batch; at test time once for ever, which counts as nothing.

    A training step of a frozen backbone adds the gradients to activations: for linear layers as
    much as forward; for attention, two products for each of the two and Q K^T once more, since
    kernels that do not keep the attention matrix compute it again. No weight has a gradient. With
    prompts the first block needs gradients to their keys and values alone: 4 N p C, and none for
    the linear layer that makes queries, keys and values of image tokens (3 N C^2). Without prompts
    all gradients flow to the tokens that enter the first block.

    Args:
        image_tokens: N.
        prompts: p, 0 for none.
        width: C.
        blocks: Of the backbone.
        batch: Images.
        training: A training step; otherwise a forward pass at test time.

    Returns:
        Multiply-adds an image; norms, softmax and GELU are left out.
    """
    linear = 12 * image_tokens * width**2
    attention = 2 * image_tokens * (image_tokens + prompts) * width
    prompt_keys_values = 2 * prompts * width**2 / batch
    if not training:
        return blocks * (linear + attention)
    step = blocks * (2 * linear + 3.5 * attention + 2 * prompt_keys_values)
    if prompts:
        step -= 3 * image_tokens * width**2
        step -= 2.5 * attention - 4 * image_tokens * prompts * width
    return step


def read(path: Path) -> dict:
    """Read a file that train_step.py or forward.py has written.

    Raises:
        UserError: If it is something else.
    """
    try:
        found = json.loads(path.read_text())
        figures = found['figures']
        known = figures['script'] in SCRIPTS
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: not a file of a benchmark (--json)') from error
    if not known:
        raise UserError(f'{path}: of {figures["script"]}.py; take one of {", ".join(SCRIPTS)}')
    for row in figures['rows']:
        row['image_tokens'] = (row['img_size'] // figures['patch_size']) ** 2 + 1
    options = found['options']
    setting = {key: options[key] for key in ('arch', 'dtype', 'device')}
    return dict(figures, setting=dict(setting, layers=figures['num_layers']))


def series(rows: list[dict], axis: str) -> tuple[dict, list[int]]:
    """Find the rows that differ along one axis and nowhere else.

    Args:
        rows: Of one script.
        axis: One of :data:`AXES`.

    Returns:
        The values of the other axes where the most points are, and the points; none if there are
        fewer than two.
    """
    others = [other for other in AXES if other != axis]
    points: dict[tuple, set] = {}
    for row in rows:
        if row['tokens']:
            points.setdefault(tuple(row[other] for other in others), set()).add(row[axis])
    place, values = max(points.items(), key=lambda item: len(item[1]), default=((), set()))
    if len(values) < 2:
        return {}, []
    return dict(zip(others, place, strict=True)), sorted(values)


def ratios(rows: list[dict], place: dict, axis: str, values: list[int], way: str) -> list[tuple]:
    """Points of a curve: value, ratio of medians to no prompts, half the quartiles' distance."""
    points = []
    for value in values:
        here = {**place, axis: value}
        found = [row for row in rows if row['way'] == way
                 and all(row[key] == here[key] for key in AXES)]
        # Those without prompts were measured once for all numbers of them, in the same rounds.
        bases = [row for row in rows if row['way'] == 'p0' and row['run'] == found[-1]['run']
                 and all(row[key] == here[key] for key in AXES if key != 'tokens')
                 ] if found else []
        if bases:
            base = statistics.median(bases[-1]['seconds'])
            low, middle, high = statistics.quantiles(found[-1]['seconds'], n=4, method='inclusive')
            points.append((value, middle / base, (high - low) / 2 / base))
    return points


def draw(files: list[dict], out: Path) -> None:
    """Draw a row of panels for each script and a panel for each axis with points.

    Raises:
        UserError: If no axis has two points.
    """
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['svg.hashsalt'] = 'vpt_dense'  # the same figures give the same file
    from matplotlib import pyplot

    panels = []
    for script in SCRIPTS:
        rows = [dict(row, run=i) for i, file in enumerate(files) if file['script'] == script
                for row in file['rows']]
        found = [(script, rows, axis, *series(rows, axis)) for axis in AXES]
        panels.append([panel for panel in found if panel[-1]])
    panels = [row for row in panels if row]
    if not panels:
        raise UserError('no two runs differ in prompts, in pixels or in batch alone')
    width, blocks = files[0]['embed_dims'], files[0]['num_layers']
    columns = max(map(len, panels))
    figure, axes = pyplot.subplots(
        len(panels), columns, figsize=(3.8 * columns, 3.4 * len(panels)), squeeze=False,
        layout='constrained')
    handles = {}
    for line, row in zip(axes, panels, strict=True):
        for panel in line[len(row):]:
            panel.set_axis_off()
        for panel, (script, rows, axis, place, values) in zip(line, row, strict=False):
            for way, (label, colour, mark) in WAYS.items():
                points = ratios(rows, place, axis, values, way)
                if points:
                    x, y, spread = zip(*points, strict=True)
                    handles[label] = panel.errorbar(
                        x, y, spread, color=colour, marker=mark, markersize=5, capsize=2)
            x = [values[0] + (values[-1] - values[0]) * i / 100 for i in range(101)]
            bound = [bound_ratio(script, {**place, axis: value}, width, blocks) for value in x]
            handles['arithmetic bound'], = panel.plot(x, bound, color='black', linestyle='--')
            panel.set(xlabel=AXES[axis], ylabel=f'{SCRIPTS[script]} / without prompts',
                      title=', '.join(f'{NAMES[key]} {value}' for key, value in place.items()))
            panel.title.set_fontsize('medium')
            panel.set_ylim(bottom=0)
            panel.grid(color='0.9')
            panel.spines[['top', 'right']].set_visible(False)
    figure.legend(handles.values(), handles, loc='outside lower center', ncols=3, frameon=False)
    setting = files[0]['setting']
    figure.suptitle(f'ViT {setting["arch"]}, {blocks} blocks, {setting["dtype"]}, '
                    f'{setting["device"]}')
    svg = out.suffix == '.svg'
    with atomic(out) as unfinished:
        figure.savefig(
            unfinished, format=out.suffix[1:], metadata={'Date': None} if svg else None, dpi=150
        )


NAMES = {'tokens': 'p =', 'image_tokens': 'N =', 'batch': 'batch'}


def bound_ratio(script: str, place: dict, width: int, blocks: int) -> float:
    """The arithmetic of a place on the axes against that without prompts."""
    sizes = dict(image_tokens=place['image_tokens'], width=width, blocks=blocks,
                 batch=place['batch'], training=script == 'train_step')
    return multiply_adds(prompts=place['tokens'], **sizes) / multiply_adds(prompts=0, **sizes)


def run() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('files', nargs='+', type=Path, metavar='FILE',
                        help='JSON of train_step.py and forward.py')
    parser.add_argument('--out', type=Path, required=True, help='.svg, .png or .pdf')
    outputs.add_force_option(parser)
    args = parser.parse_args()
    if args.out.suffix not in ('.svg', '.png', '.pdf'):
        raise UserError(f'--out {args.out}: must end in .svg, .png or .pdf')
    outputs.check_free([args.out], args.force, args.files)
    files = [read(path) for path in args.files]
    for path, file in zip(args.files, files, strict=True):
        if file['setting'] != files[0]['setting']:
            raise UserError(f'{path}: {file["setting"]} cannot be drawn with '
                            f'{files[0]["setting"]} of {args.files[0]}')
    draw(files, args.out)
    print(args.out)


if __name__ == '__main__':
    main(run)

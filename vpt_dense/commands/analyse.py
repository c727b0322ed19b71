"""Shows what a tuned model does: attention, features, errors; curves, cost; what should train.

``vpt-dense analyse attention CONFIG CHECKPOINT``: each kind writes a picture and its numbers.
"""

import argparse
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vpt_dense import errors, outputs
from vpt_dense.errors import UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = errors.ArgumentParser(description=__doc__.partition('\n')[0])
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='WHAT')

    def kind(name: str, text: str) -> argparse.ArgumentParser:
        new = kinds.add_parser(name, help=text, description=text)
        new.add_argument('--out', type=Path, help='folder (default: work_dirs/analysis/WHAT)')
        return new

    def of_model(
        name: str, text: str, images: int, which: str = 'the first N'
    ) -> argparse.ArgumentParser:
        new = kind(name, text)
        new.add_argument('config', help='config of the training')
        new.add_argument('checkpoint', help='checkpoint, delta, or folder of a run')
        new.add_argument('--split', choices=['train', 'val', 'test'], default='val',
                         help='whose images, as they are read there (default: %(default)s)')
        new.add_argument('--images', type=int, default=images, metavar='N',
                         help=f'{which} (default: %(default)s; 0: all)')
        new.add_argument('--device', default='cpu')
        new.add_argument('--base', metavar='PATH', help='pretrained weights of the backbone')
        new.add_config_options('override settings')
        return new

    of_model('attention', 'attention to and of the prompts, by block and over images', 4)
    of_model('prompts', 'how alike the prompts of the blocks are', 1)
    pruning = of_model(
        'pruning', 'which prompts of E2VPT matter; a config that leaves out the others', 500,
        'N from all over the split')
    pruning.set_defaults(split='train')
    for what in ('tokens', 'pieces'):
        pruning.add_argument(f'--keep-{what}', type=float, default=0.5, metavar='SHARE',
                             help=f'of the {what} of a block (default: %(default)s)')
    features = of_model('features', 't-SNE and neighbours of features before and after tuning', 200)
    features.add_argument('--neighbours', type=int, default=20)
    features.add_argument('--per-class', type=int, default=3, metavar='N',
                          help='places of a class in an image (default: %(default)s)')
    features.add_argument('--seed', type=int, default=0)
    wrong = of_model('errors', 'confusion of classes, scores of images, the worst images', 0)
    wrong.add_argument('--worst', type=int, default=6, metavar='N', help='images that are drawn')
    wrong.add_argument('--against', metavar='CHECKPOINT',
                       help='another model on the same images, head-only for instance')
    wrong.add_argument('--against-config', metavar='CONFIG', help='its config, if it has another')
    curves = kind('curves', "scores of comparisons over a setting of their runs")
    curves.add_argument('folders', nargs='+', help='work dirs of vpt-dense compare')
    curves.add_argument('--x', default='backbone_trainable',
                        help='trainable, backbone_trainable, ... or a key of the configs, as '
                        'model.backbone.prompt.num_tokens (default: %(default)s)')
    curves.add_argument('--metric', help="of the test (default: the task's)")
    cost = kind('cost', 'latency, throughput, memory and arithmetic by the number of prompts')
    cost.add_argument('config', help='a recipe')
    cost.add_argument('--tokens', type=int, nargs='+', default=[0, 1, 5, 10, 50, 100, 200])
    cost.add_argument('--methods', nargs='*', default=['full', 'lora', 'bias'],
                      help='beside VPT-deep')
    cost.add_argument('--steps', type=int, default=10, help='steps that are timed')
    cost.add_argument('--amp', action='store_true', help='mixed precision in training')
    cost.add_config_options('override settings', method=False)
    sensitive = kind('sensitivity', 'the weights that the loss depends on most, and a method file '
                     'in which these train (SPT)')
    sensitive.add_argument('config', help='a recipe')
    sensitive.add_argument('--images', type=int, default=400, metavar='N',
                           help='spread over the training images (default: %(default)s; 0: all)')
    sensitive.add_argument('--budget', type=int, default=400_000, metavar='N',
                           help='parameters that may train in the backbone (default: %(default)s)')
    sensitive.add_argument('--rank', type=int, default=8, help='of LoRA (default: %(default)s)')
    sensitive.add_argument('--ratio', type=float, default=5.0, metavar='R',
                           help='LoRA updates a matrix that has a share 1/R of its cost in '
                           'sensitive weights (default: %(default)s)')
    sensitive.add_argument('--no-single', action='store_true',
                           help='no single weights: LoRA and whole vectors alone')
    outputs.add_force_option(sensitive)
    sensitive.add_argument('--device', default='cpu')
    sensitive.add_argument('--seed', type=int, default=0, help='of the head and the augmentation')
    sensitive.add_argument('--base', metavar='PATH', help='pretrained weights of the backbone')
    sensitive.add_config_options('override settings', method=False)
    transfer = kind('transfer', "every task's prompts as every other's start: which help, and "
                    'whether their similarity tells')
    transfer.add_argument('file', help='the tasks: Python, YAML or JSON (docs/transfer.md)')
    transfer.add_argument('--table', action='store_true', help='train nothing: of what there is')
    args = parser.parse_args(argv)
    args.out = args.out or Path('work_dirs/analysis', args.kind)
    if getattr(args, 'against_config', None) and not args.against:
        raise UserError('--against-config does nothing without --against')
    for name in ('keep_tokens', 'keep_pieces'):
        if not 0 < getattr(args, name, 1) <= 1:
            raise UserError(f'--{name.replace("_", "-")} must be above 0 and at most 1, found '
                            f'{getattr(args, name)}')
    for name, least in (('images', 0), ('neighbours', 1), ('per_class', 1), ('worst', 0),
                        ('steps', 1), ('budget', 1), ('rank', 1)):
        value = getattr(args, name, least)
        if value < least:
            raise UserError(f'--{name.replace("_", "-")} must be at least {least}, found {value}')
    if getattr(args, 'ratio', 1.0) <= 0:
        raise UserError(f'--ratio must be above 0, found {args.ratio}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Analyse and write."""
    args = parse_args(argv)
    from vpt_dense import logging

    logging.filter_warnings()
    logging.quiet()
    for file in _KINDS[args.kind](args):
        print(file)


# --- models and their images -----------------------------------------------------------------


def _load(
    args: argparse.Namespace, checkpoint: str | None = None, config: str | None = None
) -> Any:
    from vpt_dense.predicting.model import load

    return load(
        checkpoint or args.checkpoint, config or args.config, args.device, base=args.base,
        cfg_options=args.cfg_options, method=args.method)


def _with_classes(predictor: Any) -> Any:
    """A predictor whose task this is for.

    Raises:
        UserError: If it is another.
    """
    if predictor.task not in ('segmentation', 'classification'):
        raise UserError(
            f'this is for segmentation and classification, the model is of {predictor.task}')
    return predictor


def _ignored(predictor: Any) -> int | None:
    """The label in annotations that is none."""
    if predictor.task != 'segmentation':
        return None
    ignored = predictor.cfg.model.decode_head.get('ignore_index')
    return 255 if ignored is None else ignored


def _batches(
    predictor: Any, args: argparse.Namespace, spread: bool = False
) -> Iterator[tuple[str, dict]]:
    """Name of each image, and a batch of it alone as a loader makes it.

    The first ones, or with ``spread`` as many from all over the data set.
    """
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    from vpt_dense import building

    loader = predictor.cfg.get(f'{args.split}_dataloader')
    if not loader:
        raise UserError(f'--split {args.split}: the config has no {args.split}_dataloader')
    with building.scope(predictor.cfg):
        dataset = DATASETS.build(loader.dataset)
        number = min(args.images, len(dataset)) if args.images else len(dataset)
        for i in range(number):
            batch = pseudo_collate([dataset[i * len(dataset) // number if spread else i]])
            yield Path(batch['data_samples'][0].img_path).name, batch


def _inputs(predictor: Any, args: argparse.Namespace) -> Iterator[tuple[str, Any, Any]]:
    """Name, normalised image (1, 3, H, W) and data sample of each image."""
    for name, batch in _batches(predictor, args):
        made = predictor.model.data_preprocessor(batch, False)
        inputs = made['inputs']
        yield name, inputs, made['data_samples'][0]


def _picture(inputs: Any) -> Any:
    """A normalised image (1, 3, H, W) as one that can be looked at, (H, W, 3) of 0 to 1."""
    image = inputs[0, :3].float().cpu()
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    return ((image - low) / (high - low).clamp_min(1e-6)).permute(1, 2, 0).numpy()


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    from vpt_dense import safe_files

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(header)
    writer.writerows(rows)
    safe_files.write_text(path, stream.getvalue())
    return path


# --- the kinds -------------------------------------------------------------------------------


def _attention(args: argparse.Namespace) -> list[Path]:
    import torch
    import torch.nn.functional as F

    from vpt_dense.analysis import attention, figures

    predictor = _load(args)
    found, pictures, names = [], [], []
    for name, inputs, _ in _inputs(predictor, args):
        found.append(attention.attention(predictor.model.backbone, inputs))
        pictures.append(inputs)
        names.append(name)
    if not any(block.prompts for block in found[0]):
        raise UserError('no block of this model has prompts; nothing attends to them')
    rows, curve = [], []
    for blocks in zip(*found, strict=True):
        heads = torch.stack([block.to_prompts for block in blocks]).mean(0)
        first = blocks[0]
        rows.append([first.block, first.prompts, first.keys, first.even, heads.mean().item(),
                     *heads.tolist()])
        curve.append((first.block, heads.mean().item(), 0.0))
    header = ['block', 'prompts', 'keys', 'even share', 'share', *(
        f'head {i}' for i in range(len(rows[0]) - 5))]
    written = [_write_csv(args.out / 'attention.csv', header, rows)]
    series = {'to prompts': curve, 'if even': [(row[0], row[3], 0.0) for row in rows]}
    written.append(figures.lines(args.out / 'attention.png', series, 'block',
                                 "share of the patches' attention"))
    shown = [i for i, block in enumerate(found[0]) if block.prompts]
    shown = [shown[round(k * (len(shown) - 1) / 3)] for k in range(4)] if len(shown) > 4 else shown

    def enlarged(values: Any, inputs: Any) -> Any:
        size = inputs.shape[-2:]
        return F.interpolate(values[None, None].float(), size, mode='nearest')[0, 0].cpu().numpy()

    lines = [[_picture(inputs), *(enlarged(blocks[i].map[0], inputs) for i in shown)]
             for inputs, blocks in zip(pictures, found, strict=True)]
    columns = ['image', *(f'to prompts, block {i}' for i in shown)]
    written.append(figures.grid(args.out / 'to_prompts.png', lines, columns, names))
    last = found[0][shown[-1]]
    if last.of_prompts is not None:
        number = min(6, last.of_prompts.shape[1])
        lines = [[_picture(inputs), *(
            enlarged(blocks[shown[-1]].of_prompts[0, p], inputs) for p in range(number))]
            for inputs, blocks in zip(pictures, found, strict=True)]
        columns = ['image', *(f'prompt {p}' for p in range(number))]
        written.append(figures.grid(args.out / 'of_prompts.png', lines, columns, names))
    return written


def _prompts(args: argparse.Namespace) -> list[Path]:
    import torch

    from vpt_dense.analysis import attention, figures

    predictor = _load(args)
    found = [attention.prompts(predictor.model.backbone, inputs)
             for _, inputs, _ in _inputs(predictor, args)]
    if not found[0]:
        raise UserError('no block of this model has prompts among its tokens')
    tokens = {i: torch.stack([each[i] for each in found]).mean(0) for i in found[0]}
    matrix = attention.similarity(tokens)
    names = [str(i) for i in tokens]
    rows = [[name, *line] for name, line in zip(names, matrix.tolist(), strict=True)]
    return [_write_csv(args.out / 'similarity.csv', ['block', *names], rows),
            figures.heatmap(args.out / 'similarity.png', matrix.cpu().numpy(), names,
                            ('block', 'block'))]


def _pruning(args: argparse.Namespace) -> list[Path]:
    from vpt_dense import config, safe_files, seeding
    from vpt_dense.analysis import figures, importance

    predictor = _load(args)
    preprocess = predictor.model.data_preprocessor
    with seeding.seeded('pruning'):  # training images are augmented
        batches = (preprocess(batch, True) for _, batch in _batches(predictor, args, spread=True))
        found = importance.importance(predictor.model, batches)
    kept = importance.choose(found, args.keep_tokens, args.keep_pieces)
    rows = [
        [i, t, score, *of_pieces, bits]
        for i, (scores, pieces, row) in enumerate(zip(*found, kept, strict=True))
        for t, (score, of_pieces, bits) in enumerate(
            zip(scores.tolist(), pieces.tolist(), row, strict=True))]
    header = ['layer', 'token', 'score', *(f'piece {i}' for i in range(len(rows[0]) - 4)), 'kept']
    written = [_write_csv(args.out / 'importance.csv', header, rows)]
    series = {'tokens, mean and deviation': [
        (i, own.mean().item(), own.std(correction=0).item()) for i, own in enumerate(found.tokens)]}
    written.append(figures.lines(
        args.out / 'importance.png', series, 'layer', 'importance for the loss'))
    cfg = config.load(args.config, args.cfg_options, args.method)
    cfg.model.backbone.prompt.kept = kept
    if cfg.get('work_dir'):
        cfg.work_dir = f'{cfg.work_dir}_pruned'
    flat = [bits for row in kept for bits in row]
    told = (f'{sum(bits > 0 for bits in flat)} of {found.tokens.numel()} prompts stay, and '
            f'{sum(bits.bit_count() for bits in flat)} of all {found.pieces.numel()} pieces')
    print(told)
    path = args.out / 'pruned.py'
    safe_files.write_text(path, f'# {told}: {args.config}\n{cfg.pretty_text}')
    return [*written, path]


def _features(args: argparse.Namespace) -> list[Path]:
    import torch

    from vpt_dense import building, run_setup
    from vpt_dense.analysis import features, figures
    from vpt_dense.tuning import ADDED

    predictor = _with_classes(_load(args))
    model = predictor.model
    plain = predictor.cfg.copy()
    for key in ADDED:
        plain.model.backbone.pop(key, None)
    plain.model.backbone.trainable = []
    if args.base:
        run_setup.use_base(plain, args.base)
    before = building.build_model(plain)
    before.init_weights()
    before = before.backbone.to(args.device).eval()
    dense = predictor.task == 'segmentation'
    generator = torch.Generator().manual_seed(args.seed)
    state = generator.get_state()
    points: dict[str, list] = {'before': [], 'after': []}
    labels: list[Any] = []
    with torch.no_grad():
        for _, inputs, sample in _inputs(predictor, args):
            state = generator.get_state()
            for name, backbone in (('before', before), ('after', model.backbone)):
                output = backbone(inputs)[-1].float().cpu()
                if dense:
                    generator.set_state(state)  # the same places
                    vectors, classes = features.of_pixels(
                        output, sample.gt_sem_seg.data[0].cpu(), _ignored(predictor),
                        args.per_class, generator)
                else:
                    vectors, classes = features.of_images(output), sample.gt_label.cpu()[:1]
                points[name].append(vectors)
            labels.append(classes)
    classes = torch.cat(labels)
    if not len(classes):
        raise UserError('none of these images has a label')
    rows, panels = [], {}
    for name, found in points.items():
        vectors = torch.cat(found)
        accuracy = features.knn_accuracy(vectors, classes, args.neighbours)
        where = features.plane(vectors, args.seed)
        panels[f'{name}: {accuracy:.1f} % by neighbours'] = where.numpy(), classes.numpy()
        rows += [[name, predictor.classes[label], *map(float, xy)]
                 for label, xy in zip(classes.tolist(), where, strict=True)]
        print(f'{name}: {accuracy:.2f} % of {len(classes)} points are of the class of most of '
              f'their {args.neighbours} nearest neighbours')
    return [_write_csv(args.out / 'features.csv', ['weights', 'class', 'x', 'y'], rows),
            figures.points(args.out / 'features.png', panels, predictor.classes)]


def _errors(args: argparse.Namespace) -> list[Path]:
    import torch

    from vpt_dense.analysis import errors_of, figures

    predictor = _with_classes(_load(args))
    models = {'model': predictor}
    if args.against:
        models['against'] = _load(args, args.against, args.against_config)
        if models['against'].classes != predictor.classes:
            raise UserError(f'--against {args.against}: its classes are others')
    dense = predictor.task == 'segmentation'
    counts = {name: errors_of.Errors(len(predictor.classes)) for name in models}

    def judged(predictor: Any, batch: dict) -> tuple[Any, Any]:
        with torch.no_grad():
            (result,) = predictor.model.test_step(batch)
        if dense:
            return result.gt_sem_seg.data[0].cpu(), result.pred_sem_seg.data[0].cpu()
        return result.gt_label.cpu(), result.pred_label.cpu()

    for name, batch in _batches(predictor, args):
        for key, each in models.items():
            counts[key].add(name, *judged(each, batch), _ignored(predictor))
    found, names = counts['model'], predictor.classes
    unit = 'IoU' if dense else 'accuracy'
    by_class = {
        key: errors_of.iou(each.matrix) if dense else
        100 * each.matrix.diagonal().double() / each.matrix.sum(1) for key, each in counts.items()}
    rows = []
    for i, name in enumerate(names):
        own = [values[i].item() for values in by_class.values()]
        gain = [own[0] - own[1]] if args.against else []
        rows.append([name, int(found.matrix[i].sum()), *own, *gain])
    other = [f'{unit} of the other', 'gain'] if args.against else []
    header = ['class', 'labelled', unit, *other]
    written = [_write_csv(args.out / 'classes.csv', header, rows),
               _write_csv(args.out / 'confusion.csv', ['truth', *names],
                          [[name, *line] for name, line in
                           zip(names, found.matrix.tolist(), strict=True)])]
    shares = found.matrix.double() / found.matrix.sum(1, keepdim=True).clamp_min(1)
    written.append(figures.heatmap(
        args.out / 'confusion.png', shares.numpy(), names, ('truth', 'predicted')))
    for key, each in counts.items():
        scores = f'accuracy {errors_of.accuracy(each.matrix):.2f}'
        if dense:
            scores = f'mIoU {errors_of.mean_iou(each.matrix):.2f}, ' + scores
        print(f'{key}: {scores}')
    worst = found.worst()
    written.append(_write_csv(args.out / 'images.csv', ['image', 'mIoU'], worst))
    if dense and args.worst and worst:
        written.append(_draw_worst(models, args, dict(worst[: args.worst]), judged))
    return written


def _draw_worst(
    models: dict[str, Any], args: argparse.Namespace, scores: dict[str, float], judged: Callable
) -> Path:
    """Image, truth, prediction and errors of each model, of the images that have scores."""
    import numpy as np
    import torch.nn.functional as F

    from vpt_dense.analysis import figures

    predictor = models['model']
    palette = np.array([*predictor.palette, [0, 0, 0]], np.uint8)
    number, lines = len(predictor.classes), {}
    for name, batch in _batches(predictor, args):
        if name not in scores:
            continue
        inputs = predictor.model.data_preprocessor(batch, False)['inputs']
        lines[name] = []
        for each in models.values():
            truth, predicted = judged(each, batch)
            known = (truth >= 0) & (truth < number) & (truth != _ignored(predictor))
            lines[name] += [palette[predicted.numpy()], ((truth != predicted) & known).numpy()]
        image = _picture(F.interpolate(inputs.float(), tuple(truth.shape), mode='bilinear'))
        lines[name][:0] = [image, palette[truth.where(known, truth.new_tensor(number)).numpy()]]
    size = next(iter(lines.values()))[0].shape[:2]
    if any(line[0].shape[:2] != size for line in lines.values()):
        lines = {name: [_fitted(picture, size) for picture in line] for name, line in lines.items()}
    labels = [f'{name}\nmIoU {score:.1f}' for name, score in scores.items()]
    titles = ['image', 'truth', 'prediction', 'errors']
    if len(models) > 1:
        titles += [f'{title} of the other' for title in titles[2:]]
    return figures.grid(args.out / 'worst.png', [lines[name] for name in scores], titles, labels)


def _fitted(picture: Any, size: tuple[int, int]) -> Any:
    """A picture in another size, without new colours."""
    import numpy as np

    rows = (np.arange(size[0]) * picture.shape[0] // size[0])[:, None]
    return picture[rows, np.arange(size[1]) * picture.shape[1] // size[1]]


def _curves(args: argparse.Namespace) -> list[Path]:
    from vpt_dense.analysis import curves, figures

    points = curves.read(args.folders, args.x, args.metric)
    series: dict[str, list] = {}
    for point in points:
        # Over parameters each method is a point: one line through all says nothing.
        series.setdefault(point['method'], []).append(
            (point['x'], point['mean'], point['std'] or 0.0))
    header = ['method', 'x', 'mean', 'std', 'seeds']
    rows = [['' if point[key] is None else point[key] for key in header] for point in points]
    xs = [point['x'] for point in points if point['x'] > 0]
    log = bool(xs) and max(xs) >= 30 * min(xs)
    header[1], metric = args.x, points[0]['metric']
    return [_write_csv(args.out / 'curves.csv', header, rows),
            figures.lines(args.out / 'curves.png', series, args.x, f'{metric} (test)', log)]


def _cost(args: argparse.Namespace) -> list[Path]:
    from vpt_dense import installed, tables
    from vpt_dense.analysis import cost, figures

    recipe = str(installed.config(args.config)) if '::' in args.config else args.config
    if min(args.tokens) < 0:
        raise UserError(f'--tokens must not be negative, found {min(args.tokens)}')
    rows: list[tuple[str, int | None]] = [
        ('deep', number) if number else ('head', None) for number in dict.fromkeys(args.tokens)]
    rows += [(method, None) for method in args.methods]
    found = cost.measure(recipe, rows, args.out.absolute() / 'measured', args.steps,
                         args.cfg_options or [], args.amp)
    keys = list(found[0])
    print(tables.markdown(keys, [[_short(row[key]) for key in keys] for row in found]))
    series = {'VPT-deep': [(row['tokens'] or 0, row['test_ms'], 0.0) for row in found
                           if row['method'] in ('deep', 'head')]}
    for row in found[len(series['VPT-deep']):]:
        series[row['method']] = [(x, row['test_ms'], 0.0) for x in sorted(
            {min(args.tokens), max(args.tokens)})]
    return [_write_csv(args.out / 'cost.csv', keys, [[
        '' if row[key] is None else row[key] for key in keys] for row in found]),
        figures.lines(args.out / 'cost.png', series, 'prompts', 'testing, ms an image')]


def _sensitivity(args: argparse.Namespace) -> list[Path]:
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    from vpt_dense import building, config, live, preflight, run_setup, safe_files, seeding
    from vpt_dense.analysis import figures, sensitivity

    outputs.check_free([args.out / 'method.py'], args.force)
    cfg = config.load(args.config, args.cfg_options, 'full')
    if args.base:
        run_setup.use_base(cfg, args.base)
    cfg.work_dir, cfg.launcher = str(args.out), 'none'
    preflight.check(cfg, 'train')
    with seeding.seeded('sensitivity', args.seed):
        model = building.build_model(cfg)
        model.init_weights()
        model.to(args.device)
        with building.scope(cfg):
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
        number = min(args.images, len(dataset)) if args.images else len(dataset)
        spread = torch.linspace(0, len(dataset) - 1, number, dtype=torch.float64)
        chosen = spread.round().long().split(cfg.train_dataloader.batch_size)

        def batches() -> Iterator[dict]:
            for indices in live.track(chosen, len(chosen), 'gradients: batches', print):
                yield pseudo_collate([dataset[i] for i in indices.tolist()])

        scores = sensitivity.measure(model, batches())
    backbone = model.backbone
    choice = sensitivity.choose(
        backbone, scores, args.budget, args.rank, args.ratio, not args.no_single)
    rows = sensitivity.table(backbone, scores, choice)
    header = ['weight', 'part', 'number', 'sensitivity', 'trains']
    written = [_write_csv(args.out / 'sensitivity.csv', header, rows)]
    places = None
    if choice.single:
        places = args.out.absolute() / 'places.safetensors'
        safe_files.write_tensors(choice.single, places, {})
        written.append(places)
    total = sum(p.numel() for p in backbone.parameters())
    note = (f'SPT (https://arxiv.org/abs/2303.08566): {choice.number:,} of {total:,} parameters, '
            f'from {number} images of {Path(args.config).stem}')
    file = args.out / 'method.py'
    safe_files.write_text(file, sensitivity.method_file(choice, args.rank, places, note))
    blocks = [f'{block.name}.' for block in backbone.block_list()]
    sums = [sum(row[3] for row in rows if row[0].startswith(name)) for name in blocks]
    series = {'all weights': [(i, value, 0.0) for i, value in enumerate(sums)]}
    written += [figures.lines(args.out / 'sensitivity.png', series, 'block',
                              'sum of squared gradients'), file]
    alone = sum(len(each) for each in choice.single.values())
    print(f'{choice.number:,} parameters: LoRA on {len(choice.low_rank)} matrices, '
          f'{len(choice.vectors)} vectors, {alone:,} single weights')
    return written


def _transfer(args: argparse.Namespace) -> list[Path]:
    from vpt_dense.analysis import transfer

    plan = transfer.read(args.file)
    if not args.table:
        transfer.run(plan, args.out, print)
    return transfer.write(plan, args.out)


def _short(value: Any) -> str:
    return '-' if value is None else f'{value:,.2f}' if isinstance(value, float) else str(value)


_KINDS = dict(attention=_attention, prompts=_prompts, pruning=_pruning, features=_features,
              errors=_errors, curves=_curves, cost=_cost, sensitivity=_sensitivity,
              transfer=_transfer)

"""Folders as runs and comparisons leave them, for tests of the pages that are made of them."""

import json
import types
from pathlib import Path

import numpy as np
import torch

from vpt_dense.comparison import report
from vpt_dense.report import samples

CLASSES = ('road', 'tree', 'sky', 'car')
PALETTE = [[128, 64, 128], [107, 142, 35], [70, 130, 180], [0, 0, 142]]
#: Text that would be markup, script, a template or an attribute if it were not escaped.
HOSTILE = (
    '</script><script>window.hurt = 1</script>', '"><img src=x onerror="window.hurt = 2">',
    "' onmouseover='window.hurt = 3", '{{ 7 * 7 }}{% raw %}', '</style><b>&amp;<!-- ]]>',
)


class Sample(types.SimpleNamespace):
    """A data sample: attributes, ``get`` and ``metainfo``."""

    def get(self, key, default=None):
        return getattr(self, key, default)


def labels(seed, height=60, width=90, number=4):
    """A random label map (1, H, W) of large patches."""
    patches = np.random.default_rng(seed).integers(0, number, (height // 15, width // 15))
    return torch.from_numpy(patches.repeat(15, 0).repeat(15, 1)[None])


def segmented(truth, prediction, **metainfo):
    return Sample(
        gt_sem_seg=types.SimpleNamespace(data=truth),
        pred_sem_seg=types.SimpleNamespace(data=prediction), metainfo=metainfo)


def pictures(seed, names, classes=CLASSES, task='segmentation', count=20):
    """The record of the pictures of an evaluation, as the report's hook writes it."""
    found = samples.Samples()
    found.start(count)
    meta = {'classes': classes, 'palette': PALETTE}

    def tell(sample):
        return getattr(samples, task)(sample, meta, 255)

    for i in range(count):
        image = torch.from_numpy(
            np.random.default_rng(i).integers(0, 255, (3, 60, 90), dtype=np.uint8))
        truth = labels(i)
        if task == 'segmentation':
            prediction = torch.where(torch.rand(
                truth.shape, generator=torch.Generator().manual_seed(seed)) < 0.2,
                labels(i + seed + 1), truth)
            truth = truth.clone()
            truth[0, :5] = 255
            output = segmented(truth, prediction, img_path=names[i % len(names)])
        else:
            label, truth = torch.tensor([(i + seed) % 4]), torch.tensor([i % 4])
            output = Sample(pred_label=label, gt_label=truth, metainfo={},
                            pred_score=torch.eye(4)[label[0]] * 0.75)
        found.take([image], [output], {'bgr_to_rgb': True},
                   lambda _, place: f'{names[place % len(names)]} {place}', tell)
    return {'iter': 40, 'run_id': 'a', 'task': task, 'classes': classes, 'palette': PALETTE,
            'images': found.found}


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding='utf-8')


def counts(trainable, backbone):
    parts = {'backbone': {'trainable': 0, 'total': 86_000_000}}
    if backbone:
        parts['prompt'] = {'trainable': backbone, 'total': backbone}
    parts['decode head'] = {'trainable': trainable - backbone, 'total': trainable - backbone}
    total = 86_000_000 + trainable
    return {'parts': parts, 'trainable': trainable, 'total': total,
            'percent': 100 * trainable / total, 'tuned_megabytes': trainable * 4e-6}


def make_run(
    folder: Path, score=50.0, seed=0, backbone=4608, classes=CLASSES, names=('a/b.png',),
    task='segmentation', config='configs/vpt/deep.py', text="model = dict(type='X')\n",
    command='vpt-dense train configs/vpt/deep.py', tested=True, versions=None,
) -> Path:
    """Write what a training of 40 iterations and a test leave."""
    metric = {'segmentation': 'mIoU', 'classification': 'accuracy/top1'}[task]
    report_ = counts(backbone + 3003, backbone)
    identity = {
        'command': command, 'config': config, 'experiment': 'deep_20260102_030405',
        'ended': '2026-01-02 03:09:05', 'task': task, 'model': 'EncoderDecoder, X',
        'backbone': 'VisionTransformer b',
        'method': {'prompt': {'type': 'vpt_dense.TokenPrompt', 'num_tokens': 6} if backbone else
                   None, 'trainable': ['^prompt'] if backbone else []},
        'data': {'train': 'SegFolder, data, 100 images'}, 'weights': 'base.safetensors',
        'device': 'cpu, 1 process', 'seed': seed, 'world_size': 1,
        'versions': versions or {'python': '3.11.7', 'torch': '2.14.1'},
    }  # fmt: skip
    rng = np.random.default_rng(seed + backbone)

    def per_class():
        return [{'class': name, 'IoU': round(float(rng.uniform(0, 100)), 2),
                 'Acc': None if i == 1 else round(float(rng.uniform(0, 100)), 2)}
                for i, name in enumerate(classes)]

    evaluations = [
        {'iter': i, 'run_id': 'a', 'metrics': {'aAcc': 80.0 + i / 10, metric: value},
         'per_class': per_class() if task == 'segmentation' else None}
        for i, value in ((10, score - 9), (20, score - 4), (30, score + 1.5), (40, score + 1.25))]
    slim = [{key: e[key] for key in ('iter', 'metrics')} for e in evaluations]
    write(folder / 'params.json', report_)
    write(folder / 'evaluations.json', evaluations)
    write(folder / 'summary.json', {
        **identity, 'run_id': 'a', 'earlier_run_ids': [], 'metric': metric, 'best': slim[2],
        'last': slim[3], 'params': report_, 'iter': 40, 'started_at_iter': 0,
        'wall_time_seconds': 754.2, 'skipped_steps': 2,
        'peak_memory': {'bytes': 1_930_000_000, 'kind': 'CUDA tensors of process 0'}})
    write(folder / 'pictures_val.json', pictures(seed + backbone, names, classes, task))
    if tested:
        write(folder / 'test.json', {
            **identity, 'command': 'vpt-dense test', 'checkpoint': str(folder / 'iter_40.pth'),
            'run_id': 'a', 'metrics': {'aAcc': 84.0, metric: score},
            'per_class': per_class() if task == 'segmentation' else None, 'params': report_})
        write(folder / 'pictures_test.json', pictures(seed + backbone, names, classes, task))
    write(folder / 'deep.py', text)
    lines = [{'params/trainable': 5, 'step': 0}]
    lines += [{'lr': 0.001 * (41 - i), 'loss': 3 / i + 0.5, 'step': i, 'iter': i}
              for i in range(2, 41, 2)]  # fmt: skip
    log = ''.join(f'{json.dumps(line)}\n' for line in lines)
    write(folder / '20260102_030405/vis_data/scalars.json', f'{log}{{"half')
    return folder


def make_comparison(
    folder: Path, methods, seeds=(0, 1), classes=CLASSES, names=('a/b.png',), **table
) -> Path:
    """Write a folder of a comparison.

    Args:
        folder: Gets it.
        methods: Name -> trained parameters of the backbone part.
        seeds: Of each method.
        classes: Of the data.
        names: Of images.
        **table: What table.json has beside its rows.
    """
    results = []
    for i, (method, backbone) in enumerate(methods.items()):
        for seed in seeds:
            score = 40.0 + 2.25 * i + 0.5 * seed
            place = folder / f'{i}_seed{seed}'
            run = make_run(place, score, seed, backbone, classes, names)
            own = json.loads((run / 'test.json').read_text())
            numbers = own['params']
            result = dict(
                method=method, seed=seed, metrics=own['metrics'], disk_megabytes=0.5 + i,
                train_seconds=100.0 + i, backbone_trainable=backbone,
                **{k: numbers[k] for k in ('trainable', 'total', 'percent', 'tuned_megabytes')})
            write(run / 'run.json', result)
            results.append(result)
    costs = {method: {'train_ms': 30.0 + i, 'test_ms': 9.5 + i, 'peak_megabytes': 900.0 + i}
             for i, method in enumerate(methods)}  # fmt: skip
    rows = report.summarise(results, 'mIoU', list(methods), costs)
    notes = dict(command='vpt-dense compare recipe.py', cost='Time: median of 5 steps.', amp=True,
                 threads=2, versions={'torch': '2.14.1'}, costs=costs)
    failures = table.pop('failures', {})
    report.write(rows, 'mIoU', folder, notes | table, failures)
    return folder

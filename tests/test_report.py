"""Reports of a run (hook and metric): console, JSON files, scalars; segmentation and images."""

import base64
import io
import json
import logging
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from utils import CONFIGS, TINY_ARCH, tiny_setr_overrides

from vpt_dense import config, params
from vpt_dense.hooks import report_hook

DEEP = CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py'


# --- the metric ------------------------------------------------------------------------------


def samples(num_classes, seed=0, num_images=3):
    """Random predictions and labels (H, W), some ignored, the last class always absent."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for height, width in [(17, 23), (8, 8), (31, 5)][:num_images]:
        draw = torch.randint(0, num_classes - 1, (2, 1, height, width), generator=generator)
        prediction, label = draw
        label[torch.rand(label.shape, generator=generator) < 0.3] = 255
        made.append({'pred_sem_seg': {'data': prediction}, 'gt_sem_seg': {'data': label}})
    return made


def evaluate(metric, num_classes, **kwargs):
    """Evaluate a metric on :func:`samples`; returns (metrics, results by class, log lines)."""
    metric.dataset_meta = {'classes': [f'class {i}' for i in range(num_classes)]}
    data = samples(num_classes, **kwargs)
    metric.process({}, data)
    logger = MMLogger.get_instance('vpt_dense_test_iou')
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    try:
        metrics = metric.evaluate(len(data))
    finally:
        logger.removeHandler(handler)
    return metrics, getattr(metric, 'per_class', None), messages


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        {'iou_metrics': ['mIoU', 'mDice', 'mFscore']},
        {'nan_to_num': 0},
        {'prefix': 'val'},
        {'ignore_index': 3},
    ],
)
@pytest.mark.parametrize('num_classes', [5, 150])
def test_iou_is_that_of_mmseg(num_classes, kwargs):
    """Same names, same numbers as mmseg's metric, pixels of label 255 left out."""
    from mmseg.evaluation import IoUMetric as Reference

    from vpt_dense.evaluation import IoUMetric

    expected, none, _ = evaluate(Reference(**kwargs), num_classes)
    metrics, _, _ = evaluate(IoUMetric(**kwargs), num_classes)
    assert none is None
    assert metrics == expected
    assert any(0 < value < 100 for value in metrics.values())


def test_iou_by_class_against_counting():
    """Results by class are those that sets of pixels give; a class that is absent has none."""
    from vpt_dense.evaluation import IoUMetric

    _, rows, _ = evaluate(IoUMetric(), 5)
    prediction, label = (
        np.concatenate([s[key]['data'].numpy().ravel() for s in samples(5)])
        for key in ('pred_sem_seg', 'gt_sem_seg')
    )
    seen = label != 255
    for index, row in enumerate(rows[:4]):
        hit = seen & (prediction == index) & (label == index)
        either = seen & ((prediction == index) | (label == index))
        assert row['class'] == f'class {index}'
        assert row['IoU'] == pytest.approx(100 * hit.sum() / either.sum(), abs=0.0051)
        acc = 100 * hit.sum() / (seen & (label == index)).sum()
        assert row['Acc'] == pytest.approx(acc, abs=0.0051)
    assert np.isnan(rows[4]['IoU'])


@pytest.mark.parametrize('num_classes, printed', [(20, True), (21, False)])
def test_table_of_classes_is_for_few_classes(num_classes, printed):
    """Twenty classes are shown, more go to JSON alone."""
    from vpt_dense.evaluation import IoUMetric

    _, rows, messages = evaluate(IoUMetric(), num_classes)
    assert len(rows) == num_classes
    text = '\n'.join(messages)
    assert ('class 0' in text) is printed
    assert 'prefix' not in text


def test_iou_of_nothing_is_an_error():
    """An empty data set has no mIoU; mmseg fails with an assertion without a text."""
    from vpt_dense.evaluation import IoUMetric

    with pytest.raises(ValueError, match='no image'):
        IoUMetric().compute_metrics([])


# --- the hook: runs --------------------------------------------------------------------------


def load(path):
    """Read a JSON file strictly: NaN is not JSON."""

    def refuse(constant):
        raise ValueError(f'{constant} in {path}')

    return json.loads(Path(path).read_text(encoding='utf-8'), parse_constant=refuse)


def segmentation_config(data_root, work_dir, **overrides):
    """The ADE20K config of VPT-deep, shrunk, with no hook but the report."""
    cfg = config.load(str(DEEP))
    options = tiny_setr_overrides(data_root, work_dir)
    # mmengine replaces a string by a dict only if told so.
    options['model.backbone.arch'] = dict(**TINY_ARCH, _delete_=True)
    for head in options['model.auxiliary_head']:
        head['norm_cfg'] = dict(type='BN')
    cfg.merge_from_dict(options | {'model.decode_head.norm_cfg.type': 'BN'} | overrides)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.data_root = str(data_root)
        dataset.pipeline = [  # the images have the size of the crop
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ]
    cfg.custom_hooks = [dict(type='vpt_dense.ReportHook')]
    return cfg


@pytest.fixture(scope='module')
def trained(ade_folder, tmp_path_factory):
    """A run of two iterations with one validation: (work_dir, config, console output)."""
    work_dir = tmp_path_factory.mktemp('seg')
    cfg = segmentation_config(
        ade_folder, work_dir, **{'visualizer.vis_backends': [dict(type='LocalVisBackend')]}
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    (log,) = Path(runner.log_dir).glob('*.log')
    return types.SimpleNamespace(
        work_dir=work_dir, cfg=cfg, runner=runner, log=log.read_text(encoding='utf-8')
    )


D, LAYERS, TOKENS = 64, 4, 10
PROMPT = LAYERS * TOKENS * D


def test_params_json_and_scalars(trained):
    """The counts by part are in work_dir and among the visualizer's scalars."""
    report = load(trained.work_dir / 'params.json')
    assert report == json.loads(json.dumps(params.report(trained.runner.model)))
    assert report['parts']['prompt'] == {'trainable': PROMPT, 'total': PROMPT}
    assert report['parts']['backbone']['trainable'] == 0
    lines = Path(trained.runner.log_dir, 'vis_data/scalars.json').read_text().splitlines()
    scalars = json.loads(lines[0])
    assert scalars['params/prompt_trainable'] == PROMPT
    assert scalars['params/trainable'] == report['trainable']
    assert scalars['params/decode_head_total'] == report['parts']['decode head']['total']


def test_scalars_reach_tensorboard(trained, tmp_path):
    """TensorBoard takes the scalars as they are."""
    pytest.importorskip('tensorboard')
    from mmengine.visualization import TensorboardVisBackend
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backend = TensorboardVisBackend(str(tmp_path))
    backend.add_scalars(report_hook._scalars(load(trained.work_dir / 'params.json')))
    backend.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Scalars('params/prompt_trainable')
    assert (event.step, event.value) == (0, PROMPT)
    assert events.Scalars('params/percent')[0].value > 0


def test_log_says_what_runs_and_what_trains(trained):
    """Config, data with the number of images, weights, work_dir, and a row for each part."""
    for text in (
        str(DEEP),
        'ADE20KDataset',
        '2 images',
        'random initialisation',
        'cpu, 1 process',
        str(trained.work_dir),
        'TokenPrompt',
        'EncoderDecoder, VisionTransformer, SETRUPHead, 3 x auxiliary SETRUPHead\n',
        r"'^prompt",
    ):
        assert text in trained.log, text
    for part, entry in load(trained.work_dir / 'params.json')['parts'].items():
        assert re.search(
            f'^{part} +{entry["trainable"]:,} +{entry["total"]:,} ', trained.log, re.MULTILINE
        ), part
    assert trained.log.index('auxiliary heads') < trained.log.index('Iter(train)')


def test_line_beside_evaluation(trained):
    """mIoU with the number of trainable parameters, after the evaluation's own line."""
    report = load(trained.work_dir / 'params.json')
    (record,) = load(trained.work_dir / 'evaluations.json')
    line = (
        f'mIoU {record["metrics"]["mIoU"]:.2f} · {report["trainable"]:,} trainable '
        f'({report["percent"]:.1f} %)'
    )
    assert trained.log.index('Iter(val) [2/2]') < trained.log.index(line)


def test_evaluations_hold_every_class(trained):
    """150 classes: none in the log, all in the JSON, absent ones as null."""
    (record,) = load(trained.work_dir / 'evaluations.json')
    assert record['iter'] == 2 and 'epoch' not in record
    assert [row['class'] for row in record['per_class']] == list(
        trained.runner.val_dataloader.dataset.metainfo['classes']
    )
    ious = [row['IoU'] for row in record['per_class']]
    assert None in ious
    present = [iou for iou in ious if iou is not None]
    assert np.mean(present) == pytest.approx(record['metrics']['mIoU'], abs=0.01)
    assert 'chandelier' not in trained.log.split('Iter(train)')[-1]


def test_summary(trained):
    """The summary tells the method, the outcome, the cost and the versions."""
    summary = load(trained.work_dir / 'summary.json')
    assert summary['config'] == str(DEEP)
    assert summary['method']['prompt']['num_tokens'] == TOKENS
    assert summary['method']['trainable'] == trained.runner.model.backbone.trainable
    assert summary['metric'] == 'mIoU'
    assert summary['iter'] == 2
    assert summary['best'] == summary['last']
    assert set(summary['last']) == {'iter', 'metrics'}
    assert summary['params'] == load(trained.work_dir / 'params.json')
    assert 0 < summary['wall_time_seconds'] < 600
    # A process that has torch loaded takes more than 100 MB and less than 100 GB.
    assert 1e8 < summary['peak_memory']['bytes'] < 1e11
    assert summary['seed'] == trained.runner.seed == 0
    for name in ('python', 'torch', 'numpy', 'mmengine', 'mmcv', 'mmseg', 'timm', 'vpt_dense'):
        assert re.match(r'\d+\.\d+', summary['versions'][name]), name
    assert not list(trained.work_dir.glob('.*'))  # half-written ones


def test_test_only_run(trained, tmp_path):
    """Testing a checkpoint leaves its own file with metrics, classes and counts."""
    cfg = trained.cfg.copy()
    cfg.merge_from_dict(
        {'work_dir': str(tmp_path), 'load_from': str(trained.work_dir / 'iter_2.pth')}
    )
    metrics = Runner.from_cfg(cfg).test()
    result = load(tmp_path / 'test.json')
    # As printed, without the noise of float32.
    assert result['metrics'] == {key: float(f'{value:.2f}') for key, value in metrics.items()}
    assert result['checkpoint'] == str(trained.work_dir / 'iter_2.pth')
    assert result['params'] == load(trained.work_dir / 'params.json')
    assert len(result['per_class']) == 150
    assert not (tmp_path / 'summary.json').exists()
    assert not (tmp_path / 'evaluations.json').exists()


def colours(url):
    """The pixels (H, W, 4) of a picture that is a data URL."""
    from PIL import Image

    data = base64.b64decode(url.partition(',')[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGBA'))


def test_pictures_of_a_validation(trained, ade_folder):
    """Images of the last validation, their masks in the colours of the classes; and the page."""
    record = load(trained.work_dir / 'pictures_val.json')
    dataset = trained.runner.val_dataloader.dataset
    (evaluation,) = load(trained.work_dir / 'evaluations.json')
    assert (record['iter'], record['task']) == (2, 'segmentation')
    assert record['run_id'] == evaluation['run_id']
    assert record['classes'] == list(dataset.metainfo['classes'])
    assert [each['position'] for each in record['images']] == [0, 1]
    for each, item in zip(record['images'], (dataset[0], dataset[1]), strict=True):
        assert item['data_samples'].img_path.endswith(each['name'])
        image = item['inputs'].permute(1, 2, 0).numpy()[..., ::-1].astype(int)
        assert (each['height'], each['width']) == image.shape[:2]
        # Noise of one pixel is not what JPEG keeps, the mean is.
        assert np.abs(colours(each['image'])[..., :3].mean((0, 1)) - image.mean((0, 1))).max() < 3
        labels = item['data_samples'].gt_sem_seg.data[0].numpy()
        pixels, known = colours(each['truth']), labels != 255
        assert (pixels[..., 3] == 255 * known).all() and known.any()
        palette = np.asarray(dataset.metainfo['palette'])
        assert (pixels[known][:, :3] == palette[labels[known]]).all()
        assert (colours(each['prediction'])[..., 3] == 255).all() and 0 <= each['IoU'] < 50
    page = (trained.work_dir / 'report.html').read_text(encoding='utf-8')
    assert all(each['prediction'] in page for each in record['images'])
    assert f'Report: {trained.work_dir / "report.html"}' in trained.log
    summary = load(trained.work_dir / 'summary.json')
    assert summary['backbone'] == 'VisionTransformer' and summary['task'] == 'segmentation'
    assert 'ADE20KDataset' in summary['data']['train'] and summary['device'] == 'cpu, 1 process'


def test_a_report_that_fails_ends_no_run(trained, tmp_path, monkeypatch):
    """Neither pictures nor the page; the log says so, in a line each."""
    def fail(*args):
        raise RuntimeError('out of order')

    monkeypatch.setattr('vpt_dense.report.samples.segmentation', fail)
    monkeypatch.setattr('vpt_dense.report.page.render', fail)
    cfg = trained.cfg.copy()
    cfg.merge_from_dict(
        {'work_dir': str(tmp_path), 'load_from': str(trained.work_dir / 'iter_2.pth')})
    cfg.experiment_name = 'failing'  # else a logger of the same second would be its own
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    assert load(tmp_path / 'test.json')['metrics'].keys() == metrics.keys()
    (log,) = Path(runner.log_dir).glob('*.log')
    told = [line for line in log.read_text().splitlines() if 'out of order' in line]
    assert len(told) == 2 and 'no pictures' in told[0] and 'report.html could not' in told[1]
    assert not list(tmp_path.glob('pictures_*')) + list(tmp_path.glob('*.html'))


def test_another_test_puts_the_pictures_of_the_first_aside(trained, tmp_path):
    cfg = trained.cfg.copy()
    cfg.merge_from_dict(
        {'work_dir': str(tmp_path), 'load_from': str(trained.work_dir / 'iter_2.pth')})
    for _ in range(2):
        Runner.from_cfg(cfg).test()
    first, = tmp_path.glob('before_*/pictures_test.json')
    assert first.read_text() == (tmp_path / 'pictures_test.json').read_text()
    assert (tmp_path / 'report.html').is_file()


def test_resumed_run_keeps_earlier_evaluations(trained, tmp_path):
    """Evaluations up to the checkpoint are kept, later ones of the interrupted run are not."""
    first = load(trained.work_dir / 'evaluations.json')
    good = {**first[0], 'metrics': {**first[0]['metrics'], 'mIoU': 99.0}}
    beyond = {**first[0], 'iter': 3, 'metrics': {**first[0]['metrics'], 'mIoU': 100.0}}
    (tmp_path / 'old').mkdir()
    checkpoint = tmp_path / 'old/iter_2.pth'
    checkpoint.write_bytes((trained.work_dir / 'iter_2.pth').read_bytes())
    (tmp_path / 'old/evaluations.json').write_text(json.dumps([good, beyond]))
    cfg = trained.cfg.copy()
    cfg.merge_from_dict(
        {
            'work_dir': str(tmp_path / 'new'),
            'load_from': str(checkpoint),
            'resume': True,
            'train_cfg.max_iters': 4,
        }
    )
    Runner.from_cfg(cfg).train()
    assert [r['iter'] for r in load(tmp_path / 'new/evaluations.json')] == [2, 4]
    summary = load(tmp_path / 'new/summary.json')
    assert summary['best']['iter'] == 2 and summary['best']['metrics']['mIoU'] == 99.0
    assert summary['last']['iter'] == 4
    assert summary['started_at_iter'] == 2


def test_interrupted_run_leaves_counts_and_evaluations(trained, tmp_path):
    """A run that dies in training has written its counts; there is no summary."""
    cfg = trained.cfg.copy()
    cfg.merge_from_dict({'work_dir': str(tmp_path), 'train_cfg.max_iters': 4})
    runner = Runner.from_cfg(cfg)

    class Stop(CheckpointHook.__base__):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if batch_idx == 3:
                raise KeyboardInterrupt

    runner.register_hook(Stop())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert load(tmp_path / 'params.json')['parts']['prompt']['trainable'] == PROMPT
    assert len(load(tmp_path / 'evaluations.json')) == 1
    assert not (tmp_path / 'summary.json').exists()


def classification_config(root, work_dir):
    """Three classes of random images on a tiny ViT, two epochs with a validation each."""
    import cv2

    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('ash', 'birch', 'cedar'):
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                cv2.imwrite(str(root / split / name / f'{index}.png'), pixels)

    def loader(split):
        pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
        dataset = dict(
            type='CustomDataset', data_root=str(root), data_prefix=split, pipeline=pipeline
        )
        sampler = dict(type='DefaultSampler', shuffle=False)
        return dict(batch_size=3, num_workers=0, dataset=dataset, sampler=sampler)

    return dict(
        default_scope='mmpretrain',
        work_dir=str(work_dir),
        model=dict(
            type='ImageClassifier',
            backbone=dict(
                type='vpt_dense.VisionTransformer',
                arch=TINY_ARCH,
                img_size=32,
                patch_size=8,
                prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=5),
            ),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=64, topk=(1,)),
            data_preprocessor=dict(mean=[128.0] * 3, std=[64.0] * 3, num_classes=3),
        ),
        train_dataloader=loader('train'),
        val_dataloader=loader('val'),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type='vpt_dense.ReportHook')],
        randomness=dict(seed=3),
        experiment_name='vpt_dense_test_report_cls',
    )


def test_classification_counts_in_epochs(tmp_path):
    """Accuracy, epochs and the classification head; no results by class, no mmseg needed."""
    cfg = classification_config(tmp_path / 'data', tmp_path / 'run')
    runner = Runner.from_cfg(cfg)
    runner.train()
    records = load(tmp_path / 'run/evaluations.json')
    assert [(r['epoch'], r['iter']) for r in records] == [(1, 2), (2, 4)]
    assert records[0]['per_class'] is None
    summary = load(tmp_path / 'run/summary.json')
    assert summary['metric'] == 'accuracy/top1'
    assert summary['config'] is None
    assert summary['seed'] == 3
    assert summary['best']['metrics']['accuracy/top1'] == max(
        r['metrics']['accuracy/top1'] for r in records
    )
    pictures = load(tmp_path / 'run/pictures_val.json')
    assert pictures['epoch'] == 2 and pictures['task'] == 'classification'
    assert [(each['name'], each['truth']) for each in pictures['images']] == [
        (f'{name}/{i}.png', [name]) for name in ('ash', 'birch', 'cedar') for i in range(2)]
    right = sum(each['right'] for each in pictures['images'])
    assert 100 * right / 6 == pytest.approx(records[-1]['metrics']['accuracy/top1'])
    assert (tmp_path / 'run/report.html').is_file()
    head = 3 * 64 + 3
    assert summary['params']['parts']['classification head'] == {'trainable': head, 'total': head}
    assert summary['params']['trainable'] == head + 5 * 64
    (log,) = Path(runner.log_dir).glob('*.log')
    text = log.read_text(encoding='utf-8')
    assert re.search(rf'accuracy \d+\.\d\d · {head + 320} trainable \(\d', text)
    assert 'CustomDataset' in text and '6 images' in text


# --- the hook: pieces ------------------------------------------------------------------------


def fake_runner(work_dir, **checkpoint):
    """A runner with what the headline needs."""
    return types.SimpleNamespace(hooks=[CheckpointHook(**checkpoint)], work_dir=str(work_dir))


@pytest.mark.parametrize(
    'save_best, metrics, expected',
    [
        (None, {'aAcc': 1.0, 'mIoU': 2.0}, ('mIoU', 1)),
        (None, {'single-label/f1-score': 1.0}, ('single-label/f1-score', 1)),
        ('mDice', {'mIoU': 1.0, 'mDice': 2.0}, ('mDice', 1)),
        (None, {}, (None, 1)),
        (None, {'names': ['a']}, (None, 1)),
    ],
)
def test_metric_that_counts(tmp_path, save_best, metrics, expected):
    """The one checkpoints are chosen by, else the usual one of the task, else the first."""
    runner = fake_runner(tmp_path, save_best=save_best, rule='greater' if save_best else None)
    assert report_hook._judged_by(runner, metrics) == expected


def test_less_can_be_better(tmp_path):
    """With a metric that should be small the best is the smallest."""
    runner = fake_runner(tmp_path, save_best='loss', rule='less')
    assert report_hook._judged_by(runner, {'loss': 0.5}) == ('loss', -1)


def test_only_the_first_process_reports(tmp_path, monkeypatch):
    """Other processes write no file."""
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: 1)
    hook = report_hook.ReportHook()
    for method in (hook.before_run, hook.before_train, hook.after_train, hook.after_val):
        method(None)  # would need a runner
    hook.after_val_epoch(None, metrics={})
    hook.after_test_epoch(None, metrics={})
    assert hook.report == {}


def test_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """What cannot be written leaves the former file as it was."""
    path = tmp_path / 'summary.json'
    report_hook._write_json(str(path), {'a': float('nan'), 'b': np.float32(0.5), 'c': (1, 2)})
    assert load(path) == {'a': None, 'b': 0.5, 'c': [1, 2]}

    def fail(self, text, **kwargs):
        self.write_bytes(text[:5].encode())
        raise OSError('out of order')

    monkeypatch.setattr(Path, 'write_text', fail)
    with pytest.raises(OSError, match='out of order'):
        report_hook._write_json(str(path), {'d': 1})
    assert load(path)['b'] == 0.5
    assert [file.name for file in tmp_path.iterdir()] == ['summary.json']


def test_peak_memory_is_in_bytes():
    """Allocating 200 MB raises the peak to at least what is in use now."""
    block = torch.ones(50_000_000)  # 200 MB
    resident = int(Path('/proc/self/statm').read_text().split()[1]) * 4096
    peak = report_hook.ReportHook()._peak_memory()
    assert block.sum() > 0
    if not torch.cuda.is_initialized():
        assert 0.9 * resident <= peak['bytes'] < 100 * resident

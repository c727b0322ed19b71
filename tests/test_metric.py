"""The metric counts as mmseg's does: on any device, over processes, without keeping images."""

import json
import logging
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric as Reference
from PIL import Image

from vpt_dense import hooks
from vpt_dense.evaluation import IoUMetric

CLASSES = 7
ALL = ['mIoU', 'mDice', 'mFscore']


def make(kind, **kwargs):
    metric = kind(**kwargs)
    metric.dataset_meta = {'classes': [f'class {i}' for i in range(CLASSES)]}
    return metric


def samples(number, prediction_type=torch.int64, label_type=torch.int64, top=CLASSES, seed=0):
    """Images (1, H, W) of unequal sizes; a fifth of the labels is 255, values are below ``top``."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(number):
        shape = (1, 5 + i, 9)
        prediction = torch.randint(0, top, shape, generator=generator)
        other = torch.randint(0, top, shape, generator=generator)
        label = torch.where(torch.rand(shape, generator=generator) < 0.5, prediction, other)
        label[torch.rand(shape, generator=generator) < 0.2] = 255
        made.append({
            'pred_sem_seg': {'data': prediction.to(prediction_type)},
            'gt_sem_seg': {'data': label.to(label_type)},
            'img_path': f'folder/image {i}.jpg',
        })  # fmt: skip
    return made


def evaluate(metric, data, batch=2, size=None):
    for i in range(0, len(data), batch):
        metric.process({}, data[i : i + batch])
    return metric.evaluate(len(data) if size is None else size)


@pytest.fixture
def messages():
    """What the current logger is told."""
    name = 'vpt_dense_test_metric'
    logger = MMLogger.get_instance(name)
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    MMLogger._instance_dict.pop(name)  # the newest is the current one, also for other tests


# --- one process -----------------------------------------------------------------------------


@pytest.mark.parametrize('top', [CLASSES, 12], ids=['classes', 'ids above the classes'])
@pytest.mark.parametrize('label_type', [torch.uint8, torch.int64])
@pytest.mark.parametrize('prediction_type', [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_numbers_are_those_of_mmseg(prediction_type, label_type, top):
    data = samples(5, prediction_type, label_type, top)
    found = evaluate(make(IoUMetric, iou_metrics=ALL), data)
    assert found == evaluate(make(Reference, iou_metrics=ALL, prefix=''), data)
    assert 30 < found['mIoU'] < 70


@pytest.mark.parametrize('value', [-1, -100, 0, 3, 255])
def test_any_id_can_be_ignored(value):
    data = samples(3)
    for sample in data:
        label = sample['gt_sem_seg']['data']
        label[label == 255] = value
    found = evaluate(make(IoUMetric, ignore_index=value), data)
    assert found == evaluate(make(Reference, ignore_index=value, prefix=''), data)


class Areas(IoUMetric):
    """Shows what was counted."""

    def compute_metrics(self, results):
        (self.areas,) = results
        return {}


def test_counts_beyond_float32_are_exact():
    """Of 16.8 million pixels of one class, mmseg's float32 histogram loses some."""
    label = torch.zeros(4097, 4096, dtype=torch.uint8)
    label[-1, :7] = 1
    label[0, :5] = 255
    prediction = torch.zeros_like(label)
    prediction[1, :3] = 2
    data = [{'pred_sem_seg': {'data': prediction}, 'gt_sem_seg': {'data': label}}] * 2
    metric = make(Areas)
    evaluate(metric, data)
    p, t = prediction.numpy(), label.numpy()
    seen = t != 255
    wanted = [
        [2 * np.count_nonzero(where & seen & (c == i)) for i in range(CLASSES)]
        for where, c in ((p == t, t), (True, p), (True, t))
    ]
    assert metric.areas.tolist() == wanted
    assert wanted[2][0] > 2**25
    assert metric.areas.dtype == torch.int64


def test_counting_waits_for_no_gpu():
    """A tensor on `meta` has no values: what needs one, as every wait for a GPU does, fails."""
    data = [
        {name: {'data': sample[name]['data'].to('meta')} for name in ('pred_sem_seg', 'gt_sem_seg')}
        for sample in samples(3)
    ]
    make(IoUMetric).process({}, data)
    # mmseg's, for one, asks for the pixels of a mask.
    with pytest.raises(NotImplementedError, match='nonzero'):
        make(Reference, prefix='').process({}, data)


def test_nothing_of_an_image_is_kept():
    metric, sizes = make(IoUMetric), []
    for sample in samples(12):
        metric.process({}, [sample])
        kept = [value for value in vars(metric).values() if isinstance(value, torch.Tensor)]
        sizes.append(sum(value.numel() for value in kept))
    assert metric.results == []
    assert len(set(sizes)) == 1 and sizes[0] > 0


def test_an_evaluation_starts_anew(messages):
    metric, data = make(IoUMetric), samples(4)
    first = evaluate(metric, data[:2])
    second = evaluate(metric, data[2:])
    assert first != second == evaluate(make(IoUMetric), data[2:])
    assert len(metric.per_class) == CLASSES
    assert not [line for line in messages if 'results`' in line or 'no image' in line]


def test_no_image_is_an_error(messages):
    with pytest.raises(ValueError, match='no image'):
        make(IoUMetric).evaluate(0)
    assert 'IoUMetric was given no image to process' in messages


def test_a_prediction_of_another_size_is_an_error():
    (sample,) = samples(1)
    sample['gt_sem_seg']['data'] = sample['gt_sem_seg']['data'].transpose(1, 2)
    with pytest.raises(ValueError, match=r'the prediction is \(5, 9\), the label \(9, 5\)'):
        make(IoUMetric).process({}, [sample])


@pytest.mark.parametrize('batch', [1, 4])
def test_one_image_beyond_the_data_set_is_taken_back(batch):
    data = samples(4)
    found = evaluate(make(IoUMetric), data, batch, size=3)
    assert found == evaluate(make(Reference, prefix=''), data, batch, size=3)
    assert found != evaluate(make(IoUMetric), data)


def test_more_images_than_the_data_set_has_are_an_error():
    with pytest.raises(ValueError, match='4 images were processed and the data set has 2'):
        evaluate(make(IoUMetric), samples(4), size=2)


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('format_only', [False, True])
def test_predictions_are_saved_as_by_mmseg(format_only, reduce_zero_label, tmp_path, messages):
    data = [dict(sample, reduce_zero_label=reduce_zero_label) for sample in samples(3)]
    if format_only:
        data = [{k: v for k, v in sample.items() if k != 'gt_sem_seg'} for sample in data]
    found = {}
    for kind in (IoUMetric, Reference):
        folder = str(tmp_path / kind.__module__)
        metric = make(kind, output_dir=folder, format_only=format_only, prefix='val')
        metrics = evaluate(metric, data)
        assert bool(metrics) is not format_only
        files = sorted((tmp_path / kind.__module__).iterdir())
        found[kind] = metrics, [(f.name, np.array(Image.open(f)).tolist()) for f in files]
    assert found[IoUMetric] == found[Reference]
    assert len(found[IoUMetric][1]) == 3


# --- several processes -----------------------------------------------------------------------

# Images of the data set, as seen by DefaultSampler; with batches of 1 and of 2 images.
SIZES = [1, 4, 5, 6]


def shares(size, world):
    """The images of each process, as DefaultSampler deals them out: as many for each."""
    longest = -(-size // world)
    return [[(i * world + rank) % size for i in range(longest)] for rank in range(world)]


def work(rank, world, port, folder):
    """In each process: all sizes with both metrics, then shares that no sampler made."""
    torch.set_num_threads(1)  # the threads of the process that we are a copy of are not there
    MMLogger.get_instance(f'vpt_dense_test_metric_{world}', log_level='ERROR')
    dist.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=world)
    found = {}
    for size in SIZES:
        data = samples(size)
        mine = [data[i] for i in shares(size, world)[rank]]
        for batch in (1, 2):
            ours, theirs = make(IoUMetric), make(Reference, prefix='')
            theirs.collect_dir = f'{folder}/{world}-{size}-{batch}'
            pair = [evaluate(metric, mine, batch, size) for metric in (ours, theirs)]
            rows = [row['IoU'] for row in ours.per_class]
            found[f'{size} by {batch}'] = *({k: float(v) for k, v in m.items()} for m in pair), rows
    # One process has everything; then two images too many for every process.
    metric = make(IoUMetric)
    metrics = evaluate(metric, samples(5) if rank == 1 else [], size=5)
    found['all in one'] = {k: float(v) for k, v in metrics.items()}
    try:
        evaluate(make(IoUMetric), samples(3), size=world)
    except ValueError as error:
        found['too many'] = str(error)
    with open(f'{folder}/{world}-{rank}.json', 'w') as file:
        json.dump(found, file)
    dist.destroy_process_group()


@pytest.fixture(scope='module', params=[2, 3])
def of_processes(request, tmp_path_factory):
    """(number of processes, what each found). Forked: new ones would import for seconds."""
    world, folder = request.param, tmp_path_factory.mktemp('metric')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    mp.start_processes(work, (world, port, str(folder)), nprocs=world, start_method='fork')
    return world, [json.loads((folder / f'{world}-{rank}.json').read_text())
                   for rank in range(world)]  # fmt: skip


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_processes_count_every_image_once(of_processes, size, batch):
    """Padded repeats are left out: as mmseg cuts its list, and as one process counts."""
    world, found = of_processes
    alone = make(IoUMetric)
    wanted = {k: float(v) for k, v in evaluate(alone, samples(size)).items()}
    rows = [row['IoU'] for row in alone.per_class]
    for ours, theirs, rows_there in (one[f'{size} by {batch}'] for one in found):
        assert ours == theirs == wanted
        np.testing.assert_array_equal(rows_there, rows)
    padded = sum(map(len, shares(size, world))) - size
    assert padded == -size % world


def test_a_process_may_have_no_image(of_processes):
    _, found = of_processes
    wanted = {k: float(v) for k, v in evaluate(make(IoUMetric), samples(5)).items()}
    assert [one['all in one'] for one in found] == [wanted] * len(found)


def test_every_process_raises_where_there_are_too_many_images(of_processes):
    world, found = of_processes
    line = f'{3 * world} images were processed and the data set has {world}'
    assert all(line in one['too many'] for one in found)


def test_seen_and_unseen_classes():
    """Three classes of IoU 1/4, 1 and 1/4, the first and the last not seen."""
    metric = IoUMetric(iou_metrics=['mIoU'], unseen=['a', 'c'])
    metric.dataset_meta = dict(classes=['a', 'b', 'c'])
    label = torch.tensor([[0, 0, 1, 1, 2, 2, 2]])
    prediction = torch.tensor([[0, 2, 1, 1, 2, 0, 0]])  # a and c: 1 pixel of 4
    data = [dict(pred_sem_seg=dict(data=prediction), gt_sem_seg=dict(data=label))]
    metric.process({}, data)
    found = metric.evaluate(1)
    assert found == dict(aAcc=57.14, mIoU=50.0, mAcc=61.11, mIoU_seen=100.0, mIoU_unseen=25.0,
                         hIoU=40.0)
    metric.process({}, [dict(pred_sem_seg=dict(data=label % 1 + 1), gt_sem_seg=dict(data=label))])
    assert metric.evaluate(1)['hIoU'] == 0
    assert list(found) == names_of(metric)


def names_of(metric):
    return hooks.monitor_hook._names(metric)


def test_bad_unseen_classes():
    with pytest.raises(ValueError, match='list of classes'):
        IoUMetric(unseen='a')
    with pytest.raises(ValueError, match="needs iou_metrics=.'mIoU'"):
        IoUMetric(unseen=['a'], iou_metrics=['mDice'])
    metric = IoUMetric(unseen=['car'])
    with pytest.raises(ValueError, match="names 'car', which is none of .*did you mean 'cat'"):
        metric.dataset_meta = dict(classes=['cat', 'dog'])
    with pytest.raises(ValueError, match='all of them'):
        metric.dataset_meta = dict(classes=['car'])

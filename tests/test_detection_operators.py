"""vpt_dense.operators, mmcv's operators without a compiler: each against its formula in float64."""

import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

import mmdet.models  # noqa: F401 - has mmcv find its operators
from mmcv import ops

from vpt_dense import imports
from vpt_dense.errors import UserError

pytestmark = pytest.mark.skipif(
    imports.has_compiled_operators(), reason='this mmcv has its own operators')


def boxes_of(number, seed, size=40.0):
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(0, size, (number, 2)), rng.uniform(1, size / 2, (number, 2))
    return torch.tensor(np.concatenate([corners, corners + sides], axis=1), dtype=torch.float32)


def overlap(a, b, offset):
    """IoU of two boxes by its definition."""
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset) for i in (0, 1)]
    area_a, area_b = ((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b))
    common = sides[0] * sides[1]
    return common / (area_a + area_b - common)


@pytest.mark.parametrize('offset', [0, 1])
def test_nms(offset):
    boxes, scores = boxes_of(60, offset), torch.rand(60, generator=torch.manual_seed(1))
    wanted = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[i].tolist(), boxes[j].tolist(), offset) <= 0.3 for j in wanted):
            wanted.append(i)
    dets, kept = ops.nms(boxes, scores, 0.3, offset=offset)
    assert kept.tolist() == wanted and 5 < len(wanted) < 60
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])
    half, kept = ops.nms(boxes.bfloat16(), scores.bfloat16(), 0.3)
    assert half.dtype == torch.bfloat16 and len(kept) > 5
    none, kept = ops.nms(boxes[:0], scores[:0], 0.3)
    assert none.shape == (0, 5) and kept.shape == (0,)


def test_nms_of_classes_apart():
    box = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    scores, classes = torch.tensor([0.1, 0.9, 0.8, 0.7]), torch.tensor([0, 0, 1, 1])
    dets, kept = ops.batched_nms(box, scores, classes, dict(type='nms', iou_threshold=0.5))
    assert kept.tolist() == [1, 2] and torch.equal(dets[:, :4], box[:2])


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method):
    boxes, scores = boxes_of(40, 3), torch.rand(40, generator=torch.manual_seed(2))
    left, wanted = dict(enumerate(scores.double().tolist())), []
    while left:
        best = max(left, key=left.get)
        wanted.append((best, left.pop(best)))
        for i in list(left):
            iou = overlap(boxes[best].tolist(), boxes[i].tolist(), 0)
            if method == 'gaussian':
                left[i] *= np.exp(-iou * iou / 0.5)
            elif iou >= 0.3:
                left[i] *= 1 - iou if method == 'linear' else 0
            if left[i] < 0.05:
                del left[i]
    dets, kept = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method)
    assert kept.tolist() == [i for i, _ in wanted] and 5 < len(wanted) < 40
    assert torch.equal(dets[:, :4], boxes[kept])
    torch.testing.assert_close(
        dets[:, 4].double(), torch.tensor([s for _, s in wanted], dtype=torch.float64),
        rtol=1e-5, atol=1e-6)


def bilinear(image, y, x):
    """Value at a place of a map (C, H, W) with zeros around it, whose edge pixels reach one out."""
    height, width = image.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return image.new_zeros(len(image))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    down, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    return ((1 - v) * (1 - u) * image[:, top, left] + (1 - v) * u * image[:, top, right]
            + v * (1 - u) * image[:, down, left] + v * u * image[:, down, right])


@pytest.mark.parametrize('sampling', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align(sampling, aligned):
    """Means of bilinear samples in every bin; gradients by autograd through them."""
    rng = torch.Generator().manual_seed(4)
    maps = torch.randn(2, 3, 9, 11, generator=rng, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(
        [[0, 2.0, 3, 30, 20], [1, -4, 5, 13, 37.5], [1, 20, 20, 21, 22]], dtype=torch.float64)
    scale, size = 0.25, (2, 3)
    shift = 0.5 if aligned else 0.0
    wanted = []
    for image, x1, y1, x2, y2 in rois.tolist():
        x, y = x1 * scale - shift, y1 * scale - shift
        width, height = (x2 - x1) * scale, (y2 - y1) * scale
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        rows, columns = (sampling or int(np.ceil(length / bins))
                         for length, bins in zip((height, width), size, strict=True))
        for i in range(size[0]):
            for j in range(size[1]):
                values = [
                    bilinear(maps[int(image)], y + (i + (a + 0.5) / rows) * height / size[0],
                             x + (j + (b + 0.5) / columns) * width / size[1])
                    for a in range(rows) for b in range(columns)]
                wanted.append(sum(values) / max(rows * columns, 1))
    wanted = torch.stack(wanted).unflatten(0, (3, *size)).permute(0, 3, 1, 2)
    factor = torch.randn(wanted.shape, generator=rng, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((wanted * factor).sum(), maps)
    for kind, close in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        inputs = maps.detach().to(kind).requires_grad_()
        found = ops.roi_align(inputs, rois.to(kind), size, scale, sampling, 'avg', aligned)
        assert found.dtype == kind
        if kind == torch.bfloat16:  # boxes of 8 bits lie elsewhere
            found = ops.roi_align(inputs, rois.float(), size, scale, sampling, 'avg', aligned)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=close)
        (own,) = torch.autograd.grad((found * factor.to(kind)).sum(), inputs)
        torch.testing.assert_close(own.double(), gradient, rtol=0, atol=3 * close)


def test_sigmoid_focal_loss():
    rng = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(7, 4, generator=rng, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 1])  # 4: no class
    p = logits.clone().requires_grad_()
    own = torch.nn.functional.one_hot(target, 5)[:, :4].double()
    chance = p.sigmoid()
    wanted = -(own * 0.25 * (1 - chance) ** 2 * chance.log()
               + (1 - own) * 0.75 * chance**2 * (1 - chance).log())
    (gradient,) = torch.autograd.grad(wanted.sum(), p)
    for kind, close in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        inputs = logits.to(kind).requires_grad_()
        found = ops.sigmoid_focal_loss(inputs, target, 2.0, 0.25, None, 'none')
        torch.testing.assert_close(found.double(), wanted, rtol=close, atol=close)
        (own_gradient,) = torch.autograd.grad(found.sum(), inputs)
        torch.testing.assert_close(own_gradient.double(), gradient, rtol=close, atol=close)
    extreme = ops.sigmoid_focal_loss(torch.tensor([[200.0, -200.0]]), torch.tensor([1]),
                                     2.0, 0.25, None, 'none')
    torch.testing.assert_close(extreme, torch.tensor([[150.0, 50.0]]))
    with pytest.raises(UserError, match='weights of classes has no stand-in'):
        ops.sigmoid_focal_loss(logits.float(), target, 2.0, 0.25, torch.ones(4))


def zero_outside(image, y, x):
    """Bilinear value at a place of a map (C, H, W) with zeros all around; y, x: tensors."""
    height, width = image.shape[1:]
    top, left = int(torch.floor(y)), int(torch.floor(x))
    v, u = y - top, x - left
    total = 0
    for row, by_row in ((top, 1 - v), (top + 1, v)):
        for column, by_column in ((left, 1 - u), (left + 1, u)):
            if 0 <= row < height and 0 <= column < width:
                total = total + by_row * by_column * image[:, row, column]
    return total + image.new_zeros(len(image))


@pytest.mark.parametrize('modulated', [False, True])
def test_deformable_convolution(modulated):
    """A convolution whose samples are moved, of two groups with two fields of offsets."""
    rng = torch.Generator().manual_seed(6)

    def random(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()

    image, weight = random(2, 4, 5, 6), random(6, 2, 3, 3)
    offset, mask, bias = random(2, 2 * 18, 3, 3), random(2, 2 * 9, 3, 3), random(6)
    rows = []
    for n in range(2):
        for out in range(6):
            group = out // 3
            for i in range(3):
                for j in range(3):
                    value = bias[out] if modulated else 0
                    for a in range(3):
                        for b in range(3):
                            k = 3 * a + b
                            y = 2 * i - 1 + a + offset[n, group * 18 + 2 * k, i, j]
                            x = 2 * j - 1 + b + offset[n, group * 18 + 2 * k + 1, i, j]
                            sampled = zero_outside(image[n, 2 * group : 2 * group + 2], y, x)
                            if modulated:
                                sampled = sampled * mask[n, group * 9 + k, i, j]
                            value = value + (weight[out, :, a, b] * sampled).sum()
                    rows.append(value)
    wanted = torch.stack(rows).unflatten(0, (2, 6, 3, 3))
    parts = [image, weight, offset] + ([mask, bias] if modulated else [])
    factor = torch.randn(wanted.shape, generator=rng, dtype=torch.float64)
    gradients = torch.autograd.grad((wanted * factor).sum(), parts)
    for kind, close in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        own = [part.detach().to(kind).requires_grad_() for part in parts]
        if modulated:
            order = [own[i] for i in (0, 2, 3, 1, 4)]
            found = ops.modulated_deform_conv2d(*order, 2, 1, 1, 2, 2)
        else:
            found = ops.deform_conv2d(own[0], own[2], own[1], 2, 1, 1, 2, 2)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=close)
        for mine, theirs in zip(
                torch.autograd.grad((found * factor.to(kind)).sum(), own), gradients, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=close)


def test_deformable_attention_by_its_formula():
    """mmcv's own form is taken, on CUDA too, and it is right."""
    from mmcv.ops import multi_scale_deform_attn as attention

    assert attention.IS_CUDA_AVAILABLE is False
    rng = torch.Generator().manual_seed(7)
    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(1, 26, 2, 3, generator=rng, dtype=torch.float64)
    places = torch.rand(1, 3, 2, 2, 2, 2, generator=rng, dtype=torch.float64)
    weights = torch.rand(1, 3, 2, 2, 2, generator=rng, dtype=torch.float64)
    found = attention.multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    for query in range(3):
        for head in range(2):
            wanted, start = 0, 0
            for level, (height, width) in enumerate(shapes.tolist()):
                plane = value[0, start : start + height * width, head].T.reshape(3, height, width)
                start += height * width
                for point in range(2):
                    x, y = places[0, query, head, level, point]
                    wanted = wanted + weights[0, query, head, level, point] * zero_outside(
                        plane, y * height - 0.5, x * width - 0.5)
            torch.testing.assert_close(
                found[0, query, 3 * head : 3 * head + 3], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(('call', 'name'), [
    (lambda: ops.roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2), 'roi_pool_forward'),
    (lambda: ops.roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2, 1.0, 0, 'max'),
     "roi_align with pool_mode='max'"),
    (lambda: ops.nms_match(torch.zeros(1, 5), 0.5), 'nms_match'),
])
def test_what_is_not_there_is_named(call, name):
    with pytest.raises(UserError, match='without its compiled operators') as told:
        call()
    assert name in str(told.value) and '\n' not in str(told.value)


def test_others_do_not_import_mmdet():
    """Unless it is there already: then mmseg has its Mask2Former too."""
    code = ('import sys, vpt_dense{}\nimport mmseg.models, mmpretrain.models\n'
            'from mmseg.models.decode_heads.mask2former_head import MMDET_Mask2FormerHead as head\n'
            'print(head.__module__.partition(".")[0], "mmdet" in sys.modules)')
    for first, told in (('', 'mmengine False'), (', mmdet.models', 'mmdet True')):
        done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code.format(first)],
                              check=True, capture_output=True, text=True)  # fmt: skip
        assert done.stdout.splitlines()[-1] == told


@pytest.mark.parametrize(('first', 'there'), [
    ('import vpt_dense', False), ('import vpt_dense, mmdet', True)])
def test_they_are_found_for_mmdet_alone(first, there):
    """Who does without operators (mmcv's own check, mmseg) finds none until mmdet is there."""
    code = (f'{first}\nimport sys\nassert "mmcv._ext" not in sys.modules\ntry:\n'
            '    import mmcv._ext as found\nexcept ModuleNotFoundError:\n    found = None\n'
            'print(bool(found))')
    told = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True,
                          capture_output=True, text=True).stdout  # fmt: skip
    assert told.split()[-1] == str(there)

"""A training step hands work to the device and never asks for a number or copies one there.

Either would let a GPU stand idle until the CPU has caught up. Tensors on 'meta' have no numbers to
ask for; copies to another device are watched.
"""

import pytest
import torch
from methods import BACKBONES, CASES, COLUMNS_ARE_LONG, KIN, ROWS, build_at_start
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from utils import CONFIGS, in_scope


class OneDevice(TorchDispatchMode):
    """Refuses operations between devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, out)) if isinstance(t, torch.Tensor)]
        assert len({tensor.device.type for tensor in tensors}) <= 1, function
        return out


ONCE = [case for case in CASES
        if case[2] == ROWS[case[0]].tasks[-1] and case[1] not in COLUMNS_ARE_LONG]
QUICK = {name: case for case in reversed(ONCE) for name in case[:1]}  # the first family of a row


@pytest.mark.parametrize(('name', 'family', 'task'), [
    pytest.param(*case, marks=() if QUICK[case[0]] == case else
                 pytest.mark.long if case[0] in KIN else pytest.mark.slow)
    for case in ONCE])
def test_no_method_waits(name, family, task):
    model = build_at_start(ROWS[name].tuning, family, task).train().to('meta')
    x = torch.empty(2, 3, *BACKBONES[family].size, device='meta')
    model(x)  # what a first step makes stays
    with OneDevice():
        total = sum(out.square().sum() for out in model(x))
        if total.requires_grad:
            total.backward()


def test_it_would_be_seen():
    x = torch.empty(2, device='meta')
    with OneDevice():
        with pytest.raises(AssertionError, match='to_copy'):
            torch.zeros(2).to('meta')
        with pytest.raises((NotImplementedError, RuntimeError)):
            x.sum().item()


@pytest.mark.parametrize(('file', 'key', 'index'), [
    ('setr-pup', 'decode_head', None), ('setr-pup', 'auxiliary_head', 0),
    ('setr-mla', 'decode_head', None)])
def test_no_head_waits(file, key, index):
    in_scope('mmseg')
    cfg = Config.fromfile(CONFIGS / f'_base_/models/{file}_vit-l.py').model[key]
    cfg = cfg if index is None else cfg[index]
    cfg.norm_cfg = dict(type='BN')
    head = MODELS.build(cfg).train().to('meta')
    width = cfg.in_channels if isinstance(cfg.in_channels, int) else cfg.in_channels[0]
    maps = [torch.empty(2, width, 8, 8, device='meta', requires_grad=True)] * 4
    labels = torch.empty(2, 1, 128, 128, dtype=torch.int64, device='meta')
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    with OneDevice():
        losses = head.loss(maps, samples, None)
        sum(value for name, value in losses.items() if 'loss' in name).backward()

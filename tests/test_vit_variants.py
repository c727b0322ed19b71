"""Every method of the table on every kind of vision transformer that mmpretrain's class covers."""

import re
from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from methods import PATCHES, ROWS, D, H, N, build
from test_methods import parameters, total
from torch import nn
from utils import images

from vpt_dense.tuning import is_added


class Variant(NamedTuple):
    """A kind of vision transformer.

    Attributes:
        settings: What differs from the tiny ViT of the table.
        size: Images, pixels a side: 4x4 patches.
        task: Which of the table's rows hold for it: 'cls' or 'seg'.
        more: Row -> how many parameters more train than in the table.
        unfit: Rows without meaning here -> what they say.
        unmergeable: Rows that the table calls mergeable and that are not here -> what they say.
    """

    settings: dict[str, Any]
    size: int = 32
    task: str = 'cls'
    more: dict[str, int] = {}
    unfit: dict[str, str] = {}
    unmergeable: dict[str, str] = {}


def blocks(number: int) -> Counter:
    """So many parameters more in every block: what the rows that train whole blocks train more."""
    counts = {'full': N, 'partial-1': 1, 'partial-2': 2, 'partial-4': 4, 'last-2': 2, 'last-4': 4}
    return Counter({row: count * number for row, count in counts.items()})


def plus(*tables: dict[str, int]) -> dict[str, int]:
    rows = {row for table in tables for row in table}
    return {row: sum(table.get(row, 0) for table in tables) for row in rows}


#: One more final norm; to a row of its own what trains of it.
NORM = {
    **dict.fromkeys(('full', 'layernorm', 'partial-1', 'partial-2', 'partial-4', 'ssf'), 2 * D),
    'bias': D,
}
NO_NORM = {row: -number for row, number in NORM.items()}
#: Patches of 14 pixels instead of 8, images of 56x56 instead of 32x32.
WEIGHTS, PIXELS = (14**2 - 8**2) * D, 56**2 - 32**2
PATCH_14 = {
    'full': 3 * WEIGHTS,
    'pixel': 5 * 3 * (14**2 - 8**2),
    'pad': 3 * 2 * 32 * 2 * (56 - 32),
    'concat-channel': (3 + 2) * WEIGHTS + 2 * PIXELS,
    'lor-vp': 4 * 3 * 2 * (56 - 32),
}
#: Two thirds of the MLP's width, rounded up to a multiple of 8, and as much for the gate.
INNER = (int(H * 2 / 3) + 7) // 8 * 8
GLU_BIASES = 2 * INNER - H
GLU = plus(
    blocks(3 * D * INNER - 2 * D * H + GLU_BIASES),
    {'bias': N * GLU_BIASES, 'ssf': 2 * N * GLU_BIASES,
     'lora-all': 2 * N * (2 * INNER - H + INNER - H)},
)
SWIGLU = dict(layer_cfgs=dict(ffn_type='swiglu_fused'))
SCALE = dict(layer_scale_init_value=0.1)
#: Patches of the last block are read.
REIN = {'rein': 6 * 2 + 2 * D}

VARIANTS = {
    'patch 14': Variant(dict(patch_size=14, img_size=56), 56, more=PATCH_14),
    'registers': Variant(dict(num_registers=4), task='seg', more={'full': 4 * D}),
    'layer scale': Variant(SCALE, more=blocks(2 * D)),
    'CLIP': Variant(
        dict(pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5),
             layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU'))),
        # A norm in place of the bias of the patch embedding.
        more={'full': 2 * D - D, 'layernorm': 2 * D, 'concat-channel': -D},
        unmergeable={'add': 'without the pre_norm', 'add-1': 'without the pre_norm',
                     'ssf': 'patch_embed.projection has no bias'}),
    'average pool': Variant(dict(out_type='avg_featmap'), more=plus(NORM, REIN)),
    'average pool of MAE': Variant(dict(out_type='avg_featmap', final_norm=False), more=REIN),
    'SwiGLU': Variant(SWIGLU, more=GLU),
    'no cls token': Variant(
        dict(with_cls_token=False), task='seg',
        more={'full': -2 * D, 'add': -D, 'add-deep': -N * D},
        unfit={'cls-token': r"trainable: pattern '\^cls_token\$' matches none of the"}),
    'no final norm': Variant(dict(final_norm=False), task='seg', more=NO_NORM),
    'giant DINOv2 with registers': Variant(
        dict(patch_size=14, img_size=56, num_registers=4, **SCALE, **SWIGLU), 56,
        more=plus(PATCH_14, GLU, blocks(2 * D), {'full': 4 * D})),
}  # fmt: skip
ALL = [
    (variant, row)
    for variant, kind in VARIANTS.items()
    for row in ROWS
    if 'vit' in ROWS[row].count and kind.task in ROWS[row].tasks
]
UNFIT = [(variant, row) for variant, row in ALL if row in VARIANTS[variant].unfit]
case = pytest.mark.parametrize(('variant', 'row'), [pair for pair in ALL if pair not in UNFIT])


def build_variant(variant: str, row: str, **kwargs) -> nn.Module:
    kind = VARIANTS[variant]
    return build(row, 'vit', kind.task, **kind.settings, **kwargs).double()


def batch(variant: str, number: int) -> torch.Tensor:
    size = VARIANTS[variant].size
    return images(number, 3, size, size, dtype=torch.float64)


@case
def test_what_trains(variant, row):
    """As many parameters as the formula says, of the names that it says; gradients just there."""
    kind = VARIANTS[variant]
    model = build_variant(variant, row).train()
    counts = {**ROWS[row].count, **(ROWS[row].seg_count if kind.task == 'seg' else {})}
    trained = parameters(model)
    number = sum(parameter.numel() for parameter in trained.values())
    if row in kind.more or all(is_added(name) for name in trained):  # else their names say all
        assert number == counts['vit'] + kind.more.get(row, 0)
    patterns = ROWS[row].tuning.get('trainable')
    if patterns is None:
        assert all(is_added(name) for name in trained)
    elif not any(pattern.startswith(('last:', 'partial:')) for pattern in patterns):
        names = {name for name, _ in model.named_parameters()}
        assert trained.keys() == {
            name for name in names if any(re.search(pattern, name) for pattern in patterns)}
    outs = model(batch(variant, 2))
    assert all(out.isfinite().all() for out in outs)
    if trained:
        total(outs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == trained.keys()
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


@pytest.mark.slow
@case
def test_a_batch_of_three_is_three_batches_of_one(variant, row):
    model = build_variant(variant, row).eval()
    x = batch(variant, 3)
    single = [model(image[None]) for image in x]
    for i, whole in enumerate(model(x)):
        torch.testing.assert_close(whole, torch.cat([outs[i] for outs in single]))


@pytest.mark.parametrize(
    ('variant', 'row'), [pair for pair in ALL if 'prompt' in ROWS[pair[1]].tuning])
def test_prompts_as_tokens_are_prompts_as_keys_and_values(variant, row):
    """Features and gradients."""
    results = []
    for prompts_as in ('tokens', 'keys_values'):
        model = build_variant(variant, row, prompts_as=prompts_as).eval()
        outs = model(batch(variant, 2))
        if parameters(model):
            total(outs).backward()
        results.append((outs, {name: p.grad for name, p in parameters(model).items()}))
    torch.testing.assert_close(*results)


MERGED = [pair for pair in ALL if ROWS[pair[1]].merges and pair not in UNFIT]


@pytest.mark.parametrize(('variant', 'row'), MERGED)
def test_merged_it_is_equal(variant, row):
    """In the same backbone, and in one of the same kind without adapters."""
    model = build_variant(variant, row).eval()
    if row in VARIANTS[variant].unmergeable:
        with pytest.raises(ValueError, match=VARIANTS[variant].unmergeable[row]):
            model.adapters[0].merge(model)
        return
    x = batch(variant, 2)
    with torch.no_grad():
        before = model(x)
        for adapter in model.adapters:
            adapter.merge(model)
        merged = {name: t for name, t in model.state_dict().items() if not is_added(name)}
        plain = build_variant(variant, 'linear').eval()
        plain.load_state_dict(merged)
        torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(plain(x), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(('variant', 'row'), UNFIT)
def test_what_does_not_fit_says_so(variant, row):
    with pytest.raises(ValueError, match=VARIANTS[variant].unfit[row]):
        build_variant(variant, row)


def test_registers_are_what_their_name_says():
    """Four tokens beside cls: the features depend on them, and they are no patches."""
    model = build_variant('registers', 'deep').eval()
    x = batch('registers', 1)
    with torch.no_grad():
        before = model(x)
        assert [out.shape for out in before] == [(1, D, 4, 4)] * len(before)
        assert PATCHES == 4 * 4
        model.register_tokens *= -1
        assert all(not torch.allclose(a, b) for a, b in zip(model(x), before, strict=True))

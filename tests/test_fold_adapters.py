"""Adapters that become part of the weights: exact, in any company; checkpoints of them."""

import itertools

import pytest
import torch
import torch.nn.utils.prune
from methods import BACKBONES, COLUMNS_ARE_LONG, KIN, ROWS, build
from methods import CASES as TABLE
from mmengine import Config
from mmengine.registry import MODELS
from test_adapters import SWIGLU
from test_deltas import prompted
from tool_helpers import run_tool
from torch import nn
from utils import images, randomise, tiny_vit

from vpt_dense import building, safe_files
from vpt_dense.adapters import merge_adapters
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.tuning import is_added
from vpt_dense.weights import stored_config

ADAPTERS = {
    'lora': dict(type='vpt_dense.LoRA', rank=2, alpha=3, targets=[r'\.(qkv|proj|fc1|fc2)$']),
    'lora-qv': dict(type='vpt_dense.LoRA', rank=2, parts=['q', 'v']),
    'dora': dict(type='vpt_dense.DoRA', rank=2, alpha=3, targets=[r'\.(qkv|proj|fc1|fc2)$']),
    'pissa': dict(type='vpt_dense.PiSSA', rank=2, alpha=3, parts=['k', 'v']),
    'soma': dict(type='vpt_dense.SoMA', rank=2, layer_range=(1, 3)),
    'glora': dict(type='vpt_dense.GLoRA', rank=2, bias_scale='scalar', targets=[r'\.(qkv|fc1)$']),
    'vera': dict(type='vpt_dense.VeRA', rank=5, parts=['q', 'k']),
    'fact': dict(type='vpt_dense.FacT', rank=2, form='tk'),
    'ssf': dict(type='vpt_dense.SSF'),
    'rep': dict(type='vpt_dense.RepAdapter', rank=4, scale=0.7),
    'rep-other': dict(type='vpt_dense.RepAdapter', rank=2),
    'add': dict(type='vpt_dense.AddPrompt'),
}
LISTS = [
    ('lora',), ('lora-qv',), ('ssf',), ('rep',), ('rep', 'rep-other'),
    *itertools.permutations(('lora', 'ssf', 'rep')), ('add', 'ssf', 'lora-qv'),
    ('dora', 'lora', 'ssf', 'rep'), ('rep', 'dora', 'ssf', 'lora-qv'),
    ('soma', 'ssf', 'pissa'), ('rep', 'fact', 'ssf', 'vera'),
    ('rep', 'glora', 'ssf', 'lora'),
]  # fmt: skip
VARIANTS = {
    'featmap': {},
    'cls': dict(out_type='cls_token'),
    'mean': dict(out_type='avg_featmap', final_norm=False),
    'layer-scale': dict(layer_scale_init_value=0.5, num_registers=2),
    'swiglu': SWIGLU,
    'clip': dict(pre_norm=True, patch_cfg=dict(bias=True)),
    'deep': dict(prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)),
    'shallow': dict(prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=3)),
}
CASES = [
    *((names, 'featmap') for names in LISTS),
    *((('ssf', 'lora', 'rep'), variant) for variant in VARIANTS if variant != 'featmap'),
]


def gap(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> float:
    """The largest distance, relative to the outputs."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))


def computed(model):
    torch.nn.utils.prune.identity(model.layers[2].attn.qkv, 'weight')


@pytest.mark.parametrize(('last', 'options', 'spoil', 'told'), [
    (dict(type='vpt_dense.SSF'), dict(patch_cfg=dict(bias=False)), None, 'has no bias'),
    (dict(type='vpt_dense.RepAdapter', rank=2),
     dict(layer_cfgs=[dict(), dict(), dict(), dict(qkv_bias=False)]), None, 'has no bias'),
    (dict(type='vpt_dense.AddPrompt', deep=True), {}, None, 'is no linear map'),
    (dict(type='vpt_dense.AddPrompt'), {}, None, ''),
    (dict(type='vpt_dense.RepAdapter', rank=2), {}, computed, 'qkv.weight is computed'),
])
@pytest.mark.parametrize('first', ['lora', 'ssf', 'rep', 'add'])
def test_all_are_merged_or_none(first, last, options, spoil, told):
    model = randomise(tiny_vit(adapters=[ADAPTERS[first], last], **options)).double().eval()
    x = images(2, 3, 32, 32, dtype=torch.float64)
    if told and spoil:
        spoil(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        outs = model(x)[0]
        for _ in range(2):
            if told:
                with pytest.raises(ValueError, match=told):
                    merge_adapters(model)
                assert len(model.adapters) == 2
            else:
                merge_adapters(model)
                assert not len(model.adapters) and not model.layers[0].adapters
            torch.testing.assert_close(model(x)[0], outs, rtol=1e-9, atol=1e-9)
    if told:
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize('name', ADAPTERS)
def test_an_adapter_is_merged_once(name):
    model = randomise(tiny_vit(adapters=[ADAPTERS[name]])).double().eval()
    x = images(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        outs = model(x)[0]
        for _ in range(2):
            model.adapters[0].merge(model)
            torch.testing.assert_close(model(x)[0], outs, rtol=1e-9, atol=1e-9)


def check_merge(make, x: torch.Tensor) -> None:
    """Merged, it computes the same, without one parameter more than the plain backbone."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        model = make().to(dtype).eval()
        plain = make(adapters=None).to(dtype).eval()
        with torch.no_grad():
            before = model(x.to(dtype))
            merge_adapters(model)
            assert gap(model(x.to(dtype)), before) < tolerance
            state = model.state_dict()
            assert state.keys() == plain.state_dict().keys()
            plain.load_state_dict(state)
            assert gap(plain(x.to(dtype)), before) < tolerance
            # What was merged is no small matter.
            own = {n: t for n, t in make().to(dtype).state_dict().items() if 'adapters.' not in n}
            plain.load_state_dict(own)
            assert gap(plain(x.to(dtype)), before) > 1e-3


@pytest.mark.parametrize(('names', 'variant'), CASES, ids=str)
def test_merged_is_equal_in_any_order(names, variant):
    adapters = [ADAPTERS[name] for name in names]

    def make(**kwargs):
        return randomise(tiny_vit(**{'adapters': adapters, **VARIANTS[variant], **kwargs}))

    # What is added to tokens is resized with the position embedding, in float32.
    check_merge(make, images(2, 3, 32, 32 if 'add' in names else 40))


@pytest.mark.parametrize('names', [('ssf', 'lora', 'rep'), ('rep', 'lora-qv')], ids=str)
@pytest.mark.parametrize('size', [(32, 32), (40, 24)])
def test_merged_swins_are_equal_where_windows_are_padded_too(names, size):
    def make(**kwargs):
        adapters = [ADAPTERS[name] for name in names]
        cfg = {**BACKBONES['swin'].cfg, 'adapters': adapters, 'out_indices': (0, 1), **kwargs}
        return randomise(MODELS.build(cfg))

    check_merge(make, images(2, 3, *size))


def test_the_order_of_the_list_counts():
    """Else the tests above could not tell a wrong one."""
    outs = []
    for names in (('lora', 'ssf'), ('ssf', 'lora')):
        model = tiny_vit(adapters=[ADAPTERS[name] for name in names])
        randomise(model)
        for adapter in model.adapters:  # the same values, wherever they are in the list
            randomise(adapter, seed=1)
        outs.append(model.eval()(images(1, 3, 32, 32)))
    assert gap(*outs) > 1e-3


def test_what_cannot_be_merged_stays_as_it_was():
    x = images(1, 3, 32, 32)
    for kwargs, message in (
        (dict(adapters=[ADAPTERS['lora'], dict(type='vpt_dense.AdaptFormer')]),
         r'adapters\.1 \(AdaptFormer\) is no linear map of one layer'),
        (dict(adapters=[ADAPTERS['ssf']], pre_norm=True),
         r'patch_embed\.projection has no bias, so that no shift can be merged'),
        (dict(adapters=[ADAPTERS['rep']], qkv_bias=False), r'layers\.0\.attn\.qkv has no bias'),
        *((dict(adapters=[ADAPTERS[name]], frozen_dtype='bfloat16'),
           r'is held in bfloat16, which .*; build the backbone with frozen_dtype=None')
          for name in ADAPTERS if name != 'add'),
    ):
        model = randomise(tiny_vit(**kwargs)).eval()
        with torch.no_grad():
            before, state = model(x), {n: t.clone() for n, t in model.state_dict().items()}
            with pytest.raises(ValueError, match=message):
                merge_adapters(model)
            assert torch.equal(model(x)[0], before[0])
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


# --- checkpoints -----------------------------------------------------------------------------

DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)


@pytest.mark.parametrize('prompt', [None, DEEP], ids=['', 'deep'])
@pytest.mark.parametrize('half', [None, 'bfloat16'])
def test_folded_checkpoints_have_no_adapters(capfd, tmp_path, prompt, half):
    adapters = [ADAPTERS[name] for name in ('ssf', 'lora', 'rep')]
    path = prompted(tmp_path, prompt, adapters=adapters, frozen_dtype=half)
    done = run_tool(capfd, 'delta', 'fold', path, tmp_path / 'folded.pth')
    assert (done.code, done.err) == (0, '')
    checkpoint = deltas.read(str(path))
    cfg = stored_config.parse(checkpoint['meta']['cfg'], 'c')
    exact = cfg.copy()
    exact.model.backbone.frozen_dtype = None  # what the merged one is to be equal to
    model = deltas.load(exact, checkpoint, 'c')
    cfg = Config.fromfile(tmp_path / 'folded.py')
    assert 'adapters' not in cfg.model.backbone and not cfg.model.backbone.get('frozen_dtype')
    folded = building.build_model(cfg)
    assert len(folded.backbone.adapters) == 0
    assert not any(p.requires_grad for p in folded.backbone.parameters())
    state = safe_files.read(tmp_path / 'folded.pth')['state_dict']
    plain = {n for n, _ in model.named_parameters() if not is_added(n.removeprefix('backbone.'))}
    assert {n for n, _ in folded.named_parameters()} == plain
    folded.load_state_dict(state, strict=True)
    folded.eval()
    for size in (32, 48):
        x = images(2, 3, size, size)
        with torch.no_grad():
            assert gap(folded.extract_feat(x), model.extract_feat(x)) < 1e-6


@pytest.mark.parametrize(('backbone', 'message'), [
    (dict(adapters=[ADAPTERS['lora'], dict(type='vpt_dense.BottleneckAdapter')]),
     r'adapters\.1 \(BottleneckAdapter\) is no linear map .*; tools/delta.py merge keeps'),
    (dict(adapters=[ADAPTERS['ssf']], pre_norm=True), r'no bias.*; tools/delta.py merge keeps'),
    (dict(adapters=[ADAPTERS['lora']], prompt=dict(DEEP, deep=False)),
     r'prompts that enter block 0 flow on'),
])  # fmt: skip
def test_what_is_not_folded_says_so_in_one_line(tmp_path, backbone, message):
    path = prompted(tmp_path, **{'prompt': None, **backbone})
    with pytest.raises(UserError, match=message) as caught:
        deltas.fold(str(path))
    assert '\n' not in str(caught.value)


class Model(nn.Module):
    """A backbone by the name that it has in classifiers and segmentors."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)


@pytest.mark.parametrize(('name', 'family', 'task'), [
    pytest.param(*case, marks=pytest.mark.long if case[1] in COLUMNS_ARE_LONG else
                 pytest.mark.slow if case[0] in KIN or (
                     case[1] != 'vit' and case[2] != ROWS[case[0]].tasks[-1]) else ())
    for case in TABLE if {'prompt', 'adapters'} & ROWS[case[0]].tuning.keys()])
def test_every_row_is_folded_or_refused(name, family, task, tmp_path, monkeypatch):
    """What the table says can be merged is; of the others none computes something else."""
    row = ROWS[name]
    model = build(name, family, task).eval()
    kind = BACKBONES[family]
    backbone = {**kind.cfg, **kind.tasks[task][0], **row.tuning}
    text = f'model = {dict(type="Model", backbone=backbone)!r}\n'
    monkeypatch.setattr(building, 'build_model', lambda cfg: Model(cfg.model.backbone.to_dict()))
    state = {f'backbone.{n}': t for n, t in model.state_dict().items()}
    path = tmp_path / 'c.pth'
    safe_files.write(dict(state_dict=state, meta=dict(cfg=text)), path)
    try:
        checkpoint, text = deltas.fold(str(path))
    except UserError as error:
        assert not row.merges or name in kind.unmergeable
        assert '\n' not in str(error) and 'merge' in str(error)
        return
    folded = Model(stored_config.parse(text, 'c').model.backbone.to_dict()).eval()
    folded.load_state_dict(checkpoint['state_dict'])
    x = images(2, 3, 32, 32, dtype=torch.float64)  # what is left is the rounding of the weights
    with torch.no_grad():
        assert gap(folded.double().backbone(x), model.double()(x)) < 1e-6

"""The prompted vision transformer; tests/test_methods.py has what holds on every backbone."""

import re
import textwrap

import methods
import pytest
import torch
from methods import ROWS, TOKENS, build_at_start
from mmengine.registry import MODELS
from utils import ROOT, TINY_ARCH, images, randomise, tiny_vit

from vpt_dense import registry
from vpt_dense.backbones import PromptedVisionTransformer
from vpt_dense.parts import PARTS, register
from vpt_dense.prompts import Prompt, Site, TokenPrompt
from vpt_dense.weights import stored_config

#: What a ViT is tested with here: all that trains of it, and every option of its prompts.
NAMES = (
    'full', 'linear', 'bias', 'partial-1',
    *(name for name, row in ROWS.items() if 'vit' in row.fits and 'pool' not in row.tuning
      and row.tuning.get('prompt', {}).get('type') == TOKENS['type']),
)
variant = pytest.mark.parametrize('name', NAMES)


def build(name: str, **kwargs) -> torch.nn.Module:
    """The tiny ViT of a row; its last map, if nothing else is said."""
    return methods.build(name, 'vit', 'seg', **{'out_indices': -1, **kwargs})


def block_lengths(model: torch.nn.Module, x: torch.Tensor) -> list[int]:
    """Number of tokens that each block sees."""
    seen = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        for layer in model.layers
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@variant
@pytest.mark.parametrize('size', [(32, 32), (48, 32), (16, 72), (30, 37)])
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'raw', 'avg_featmap'])
def test_output_shapes_hold_no_prompts(name, size, out_type):
    model = build(name, out_type=out_type, out_indices=(0, 1, -1)).eval()
    outs = model(images(2, 3, *size))
    height, width = (-(-n // 8) for n in size)  # a trailing part of a patch is padded
    shape = {
        'featmap': (2, 64, height, width),
        'cls_token': (2, 64),
        'avg_featmap': (2, 64),
        'raw': (2, 1 + height * width, 64),
    }[out_type]
    assert [out.shape for out in outs] == [shape] * 3


@variant
def test_checkpointing_changes_nothing(name):
    x = images(2, 3, 32, 32, dtype=torch.float64)
    grads, outs = [], []
    for options in ({}, dict(with_cp=True), dict(memory='lean')):
        model = build(name, drop_rate=0.1, drop_path_rate=0.2, **options)
        model = model.double().train()
        torch.manual_seed(7)  # the same dropout masks
        out = model(x)[0]
        outs.append(out.detach())
        if out.requires_grad:
            out.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for i in (1, 2):
        torch.testing.assert_close(outs[0], outs[i], rtol=0, atol=0)
        for one, other in zip(grads[0], grads[i], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('options', [{}, dict(out_type='featmap', out_indices=(1, 3)), dict(
    out_type='raw', final_norm=False, with_cls_token=False, drop_rate=0.1, drop_path_rate=0.2,
), dict(layer_scale_init_value=1e-2, pre_norm=True, interpolate_mode='bilinear')])
@pytest.mark.parametrize('size', [(32, 32), (40, 72)])
def test_without_a_prompt_it_is_mmpretrains_vit_bit_for_bit(options, size):
    shared = dict(arch=TINY_ARCH, img_size=32, patch_size=8)
    theirs = MODELS.build(
        dict(type='mmpretrain.VisionTransformer', **shared, **options)
    )
    ours = MODELS.build(dict(type='vpt_dense.VisionTransformer', **shared, **options))
    assert list(theirs.state_dict()) == list(ours.state_dict())
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for model in (theirs, ours):
        model.train()
        x = images(2, 3, *size).requires_grad_()
        torch.manual_seed(5)  # the same dropout masks
        outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        results.append([*outs, x.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_layer_ranges_place_prompts_and_lose_no_patch():
    x = images(2, 3, 32, 32)
    expected = {  # 1 cls + 16 patches, and 5 prompts where there are any
        'linear': [17, 17, 17, 17],
        'shallow': [22, 22, 22, 22],
        'deep': [22, 22, 22, 22],
        'deep, first 2': [22, 22, 22, 22],
        'deep, first 2, removed': [22, 22, 17, 17],
        'deep, last 2': [17, 17, 22, 22],
        'shallow, in the middle': [17, 22, 22, 17],
    }
    seen = {name: block_lengths(build(name, prompts_as='tokens'), x) for name in expected}
    assert seen == expected


def test_last_layers_see_every_patch():
    """The original drops as many patches as there are prompts here; all must matter."""
    model = build('deep, last 2').eval()
    x = images(1, 3, 32, 32).requires_grad_()
    model(x)[0].square().sum().backward()
    patches = x.grad.unfold(2, 8, 8).unfold(3, 8, 8)  # (1, 3, 4, 4, 8, 8)
    assert (patches.abs().sum((0, 1, 4, 5)) > 0).all()


def test_dropout_differs_by_sample_and_layer_and_ends_with_training():
    model = build('deep, dropout', prompts_as='tokens').train()
    zeros = []

    def record(_, args):
        zeros.append(args[0][:, 1:6] == 0)  # the prompts, (B, 5, 64)

    for layer in model.layers:
        layer.register_forward_pre_hook(record)
    model(images(2, 3, 32, 32))
    masks = torch.stack(zeros)  # (layers, B, 5, 64)
    assert 0.4 < masks.float().mean() < 0.6
    flat = masks.flatten(0, 1).flatten(1)
    assert len(flat.unique(dim=0)) == 4 * 2
    zeros.clear()
    model.eval()(images(2, 3, 32, 32))
    assert not torch.stack(zeros).any()


def test_dropout_keeps_the_mean():
    prompt = tiny_vit(prompt=dict(**TOKENS, deep=True, dropout=0.25)).prompt.train()
    torch.nn.init.ones_(prompt.tokens)
    tokens = prompt(images(400, 17, 64), 0)
    assert tokens.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert tokens.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ('patch', 'dims', 'project', 'bound'),
    # Bounds of the paper's formula sqrt(6 / (3 * p * p + dims)): B/16, L/16, H/14.
    [(16, 768, None, 0.0625), (16, 1024, None, 0.057864), (14, 1280, None, 0.056674),
     (16, 768, 48, 0.085749)],
)
def test_initial_range_is_the_papers(patch, dims, project, bound):
    prompt = MODELS.build(
        dict(type='vpt_dense.TokenPrompt', num_tokens=50, deep=True, project_dims=project),
        default_args=dict(site=Site(dims, range(4), 4, 8, (patch, patch), dims)),
    )
    largest = prompt.tokens.abs().max().item()
    assert bound * 0.999 < largest <= bound * 1.00001
    # A uniform distribution on (-v, v) has the standard deviation v / sqrt(3).
    assert prompt.tokens.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    if project:
        assert prompt.project.weight.std().item() == pytest.approx((2 / dims) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(prompt=dict(TOKENS, num_tokens=0)), r'num_tokens.*0.*leave `prompt` out'),
        (dict(prompt=dict(TOKENS, num_tokens=-1)), r'num_tokens.*-1'),
        (dict(prompt=dict(TOKENS, num_tokens='5')), r"num_tokens.*'5'"),
        (dict(prompt=dict(TOKENS, num_tokens=True)), r'num_tokens.*True'),
        (dict(prompt=dict(TOKENS, dropout=1.0)), r'dropout.*1\.0'),
        (dict(prompt=dict(TOKENS, dropout='a')), r"dropout.*'a'"),
        (dict(prompt=dict(TOKENS, shared=True)), r'shared.*deep'),
        (dict(prompt=dict(TOKENS, project_dims=0)), r'project_dims.*0'),
        (dict(prompt=dict(TOKENS, deep=True, layer_range=(3, 2))), r'layer_range.*\(3, 2\)'),
        (dict(prompt=dict(TOKENS, deep=True, layer_range=(0, 5))), r'layer_range.*4 layers'),
        (dict(prompt=dict(TOKENS, deep=True, layer_range=3)), r'layer_range.*3'),
        (dict(trainable=['bais$']), r"trainable: pattern 'bais\$' matches none of the 54 param"),
        (dict(trainable=['(']), r"trainable: '\(' is not a valid regular expression"),
        (dict(trainable='bias'), r"trainable must be a list.*'bias'"),
        (dict(out_indices=[0, 4]), r'out_indices must be .* from -4 to 3, found \[0, 4\]'),
        (dict(out_indices=-5), r'out_indices must be .* from -4 to 3, found \[-5\]'),
        (dict(img_size=(32, 36)), r'img_size \(32, 36\) is not a multiple.*\(32, 32\)'),
        (dict(img_size=0), r'img_size must be a positive'),
        (dict(img_size=None), r'img_size must be a positive .* found None'),
        (dict(patch_size=True), r'patch_size must be a positive .* found True'),
        (dict(out_indices=None), 'out_indices must be a list of integers .* found None'),
        (dict(out_indices=[]), r'out_indices must be a list of integers .* found \[\]'),
        (dict(frozen_dtype=[1]), r'frozen_dtype must be .* found \[1\]'),
        (dict(frozen_stages=2), r'frozen_stages=2.*trainable'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, AssertionError), match=message):
        tiny_vit(**options)


def test_the_first_name_stays():
    """Configs and checkpoints have it, and are of the same model as those with the new one."""
    first, second = (dict(type=f'vpt_dense.{name}VisionTransformer') for name in ('Prompted', ''))
    assert MODELS.get(first['type']) is MODELS.get(second['type']) is PromptedVisionTransformer
    assert stored_config.difference(dict(backbone=first), dict(backbone=second), 'model') == ''


def test_a_need_that_no_backbone_offers_is_named():
    class Odd(TokenPrompt):
        needs = frozenset({'tokens', 'wings'})

    with pytest.raises(ValueError, match='prompt: Odd needs wings, VisionTransformer has none'):
        tiny_vit(prompt=dict(type=Odd, num_tokens=3))


def test_unknown_prompt_type_is_named():
    with pytest.raises(KeyError, match='TokenPromt'):
        tiny_vit(prompt=dict(type='vpt_dense.TokenPromt', num_tokens=5))


def test_initialisation_depends_on_the_seed_alone():
    def tokens() -> torch.Tensor:
        torch.manual_seed(11)
        model = tiny_vit(prompt=dict(TOKENS, deep=True))
        model.init_weights()
        return model.prompt.tokens

    assert torch.equal(tokens(), tokens())


@pytest.mark.parametrize('family', ['vit', 'swin'])
def test_the_example_of_contributing_works(family):
    """The class that CONTRIBUTING shows, as it stands there."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    source = textwrap.dedent(re.search(r'```python\n(.*?class MyPrompt.*?)```', text, re.S)[1])
    known = dict(register=register, Prompt=Prompt, torch=torch, nn=torch.nn)
    try:
        exec(source, known)
        prompt = dict(type='vpt_dense.MyPrompt', num_tokens=3)
        model = build_at_start(dict(prompt=prompt), family, 'seg')
        sum(out.square().sum() for out in model.train()(images(2, 3, 32, 32))).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert sum(len(p) for p in trained) == 4  # a set for each block
        assert all(own.any() for p in trained for own in p.grad)
        assert model.keys_values_layers == []
    finally:
        for names in (PARTS, registry.MODELS.module_dict):
            names.pop('MyPrompt', None)

"""Prompts that are added to tokens, and prompts that are learnt as pixels."""

import math

import pytest
import torch
from methods import build_at_start
from mmengine.config import Config
from test_reference import TOLERANCE, ours, read, under
from utils import images, randomise, tiny_vit

from vpt_dense import config
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError

ADD = dict(type='vpt_dense.AddPrompt')
PIXELS = dict(type='vpt_dense.PixelPrompt', num_tokens=5)
BOUND = math.sqrt(6 / (3 * 8 * 8 + 64))


@pytest.mark.parametrize('recompute', [{}, dict(with_cp=True), dict(memory='lean')], ids=str)
@pytest.mark.parametrize('case', ['abl_add_deep', 'abl_prepend-pixel'])
def test_agrees_with_the_original(case, recompute):
    tensors, metadata = read(case)
    weights, grads = under(tensors, 'weight/'), under(tensors, 'grad/')
    if case == 'abl_add_deep':
        model = tiny_vit(adapters=[dict(**ADD, deep=True)], **recompute).double()

        def added(values):
            rows = [*values['prompt_embeddings'], *values['deep_prompt_embeddings']]
            return {f'adapters.0.tokens.{i}': row[None] for i, row in enumerate(rows)}
    else:
        model = tiny_vit(prompt=PIXELS, **recompute).double()

        def added(values):
            return {'prompt.pixels': values['prompt_embeddings']}

    model.load_state_dict(ours(weights, '') | added(weights), strict=True)
    model.eval()
    blocks, final = {}, {}
    for i, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda _, __, out, i=i: blocks.setdefault(i, out))
    model.ln1.register_forward_hook(lambda _, __, out: final.setdefault('out', out))
    image = tensors['input'].requires_grad_()
    model(image)
    for i in range(4):
        torch.testing.assert_close(blocks[i], tensors[f'block/{i}'], **TOLERANCE)
    torch.testing.assert_close(final['out'], tensors['output'], **TOLERANCE)
    loss = (final['out'] * tensors['probe']).sum()
    torch.testing.assert_close(loss.item(), float(metadata['loss']), **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(image.grad, grads['input'], **TOLERANCE)
    expected = added(grads)
    assert expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, **TOLERANCE)


# --- add, add-1 ------------------------------------------------------------------------------


@pytest.mark.parametrize('per_token', [True, False])
@pytest.mark.parametrize('deep', [True, False])
def test_shapes_and_start_of_what_is_added(deep, per_token):
    model = tiny_vit(adapters=[dict(**ADD, deep=deep, per_token=per_token)])
    tokens = list(model.adapters[0].tokens)
    assert [tuple(t.shape) for t in tokens] == [(1, 17 if per_token else 1, 64)] * (1 + 3 * deep)
    values = torch.cat([t.flatten() for t in tokens])
    assert 0.9 * BOUND < values.abs().max() <= BOUND


@pytest.mark.parametrize('size', [(32, 32), (40, 64)])
@pytest.mark.parametrize('per_token', [True, False])
def test_cls_and_patches_get_it_registers_and_prompts_do_not(per_token, size):
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=5)
    model = randomise(tiny_vit(
        adapters=[dict(**ADD, deep=True, per_token=per_token)], prompt=prompt, num_registers=2,
        interpolate_mode='bilinear'))
    entered, left = {}, {}
    for i, layer in enumerate(model.layers):
        layer.register_forward_pre_hook(lambda _, args, i=i: entered.setdefault(i, args[0]))
        layer.register_forward_hook(lambda _, __, out, i=i: left.setdefault(i, out))
    grid = (size[0] // 8, size[1] // 8)
    model(images(2, 3, *size))
    for i in range(1, 4):
        difference = entered[i] - left[i - 1]
        assert difference.shape[1] == 1 + 2 + 5 + math.prod(grid)
        added = model.adapters[0].tokens[i]
        cls, patches = added[:, :1], added[:, 1:]
        if not per_token:
            patches = added.expand(-1, math.prod(grid), -1)
        elif grid != (4, 4):
            patches = patches.transpose(1, 2).unflatten(2, (4, 4))
            patches = torch.nn.functional.interpolate(patches, grid, mode='bilinear')
            patches = patches.flatten(2).transpose(1, 2)
        wanted = torch.cat((cls, torch.zeros(1, 7, 64), patches), dim=1)
        torch.testing.assert_close(difference, wanted.expand(2, -1, -1), rtol=0, atol=1e-5)


def test_in_the_last_block_patches_act_on_cls_through_keys_and_values():
    deep = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True)
    gradients = []
    for kwargs in (
        dict(out_type='cls_token'),  # computes cls alone in the last block
        dict(out_type='raw', prompts_as='tokens'),
    ):
        model = tiny_vit(prompt=deep, adapters=[dict(**ADD, deep=True)], **kwargs)
        model = randomise(model).double().train()
        (out,) = model(images(2, 3, 32, 32, dtype=torch.float64))
        cls = out if out.ndim == 2 else out[:, 0]
        (cls * images(2, 64, seed=1, dtype=torch.float64)).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        last = model.adapters[0].tokens[3].grad
        assert (last.abs().amax(-1) > 1e-6).all()  # of every token, patches too
    assert len(gradients[0]) == 5
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('size', [(32, 32), (40, 64)])
@pytest.mark.parametrize('per_token', [True, False])
def test_merged_into_the_position_embedding(per_token, size):
    model = randomise(tiny_vit(adapters=[dict(**ADD, per_token=per_token)], num_registers=2))
    model = model.double().eval()
    x = images(2, 3, *size, dtype=torch.float64)
    (before,) = model(x)
    model.adapters[0].merge(model)
    plain = tiny_vit(num_registers=2).double().eval()
    plain.load_state_dict(model.state_dict())
    # Float32 inside of the resize, which is not exactly linear there.
    torch.testing.assert_close(plain(x)[0], before, rtol=0, atol=1e-12 if size[0] == 32 else 1e-5)


@pytest.mark.parametrize('per_token', [True, False])
@pytest.mark.parametrize(('layer_range', 'deep', 'blocks'), [
    ((2, None), False, [2]), ((1, 3), True, [1, 2]), ((-1, None), True, [3]), ((0, 1), True, [0]),
])
def test_added_before_the_blocks_of_a_range(layer_range, deep, blocks, per_token):
    add = dict(**ADD, deep=deep, per_token=per_token, layer_range=layer_range)
    model = randomise(tiny_vit(adapters=[add], out_type='raw')).double().eval()
    plain = tiny_vit(out_type='raw').double().eval()
    plain.load_state_dict(
        {n: t for n, t in model.state_dict().items() if not n.startswith('adapters')})
    for block, tokens in zip(blocks, model.adapters[0].tokens, strict=True):
        plain.layers[block].register_forward_pre_hook(
            lambda _, args, tokens=tokens: (args[0] + tokens,))
    x = images(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x)[0], plain(x)[0], rtol=1e-12, atol=1e-12)
    assert f'blocks={blocks[0]}..{blocks[-1]}' in repr(model.adapters[0])


def test_a_range_of_no_block_is_refused():
    with pytest.raises(ValueError, match=r'adapters.layer_range must be a pair .* found \(3, 2\)'):
        tiny_vit(adapters=[dict(**ADD, layer_range=(3, 2))])


@pytest.mark.parametrize(
    'kwargs', [dict(deep=True), dict(pre_norm=True), dict(layer_range=(1, None))], ids=str)
def test_what_cannot_be_merged_says_so(kwargs):
    own = {key: kwargs[key] for key in ('deep', 'layer_range') if key in kwargs}
    kwargs = {key: value for key, value in kwargs.items() if key not in own}
    model = tiny_vit(adapters=[dict(**ADD, **own)], **kwargs)
    assert not model.adapters[0].mergeable
    with pytest.raises(ValueError, match='AddPrompt can be merged .* with deep=False, before'):
        model.adapters[0].merge(model)


def test_add_fits_no_swin():
    with pytest.raises(ValueError, match='adapters: AddPrompt needs blocks .* of one width, Swin'):
        build_at_start(dict(adapters=[ADD]), 'swin', 'cls')


# --- pixels ----------------------------------------------------------------------------------


def test_three_starts():
    pixels = {
        start: tiny_vit(prompt=dict(
            **{**PIXELS, 'num_tokens': 50}, start=start, mean=[10, 20, 30], std=[4, 5, 6]
        )).prompt.pixels.detach()
        for start in ('uniform', 'normal', 'image')
    }
    assert {tuple(p.shape) for p in pixels.values()} == {(1, 3, 8, 50 * 8)}
    assert 0.99 * BOUND < pixels['uniform'].abs().max() <= BOUND
    assert abs(pixels['normal'].mean()) < 0.05 and abs(pixels['normal'].std() - 1) < 0.05
    image = pixels['image'][0] * torch.tensor([4, 5, 6]).reshape(3, 1, 1)
    image = (image + torch.tensor([10, 20, 30]).reshape(3, 1, 1)) / 255
    assert image.amin((1, 2)).allclose(torch.zeros(3), atol=0.01)
    assert image.amax((1, 2)).allclose(torch.ones(3), atol=0.01)
    assert image.mean((1, 2)).allclose(torch.full((3,), 0.5), atol=0.05)


def test_mean_and_std_come_from_the_preprocessor():
    cfg = Config(dict(model=dict(
        data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6]),
        backbone=dict(prompt=dict(**PIXELS, start='image', mean=None, std=None)))))
    config.resolve(cfg)
    assert cfg.model.backbone.prompt.mean == [1, 2, 3]
    assert cfg.model.backbone.prompt.std == [4, 5, 6]


@pytest.mark.parametrize(
    'kwargs',
    [dict(pre_norm=True), dict(patch_size=14, img_size=56), dict(patch_size=(8, 16)),
     dict(num_registers=2), dict(in_channels=4)],
    ids=str,
)  # fmt: skip
def test_pixels_become_patches_of_the_backbone(kwargs):
    channels = kwargs.get('in_channels', 3)
    model = randomise(tiny_vit(prompt=dict(**PIXELS, in_channels=channels), **kwargs)).double()
    projection = model.patch_embed.projection
    assert (projection.bias is None) == ('pre_norm' in kwargs)
    entered = {}
    model.layers[0].register_forward_pre_hook(lambda _, args: entered.setdefault('x', args[0]))
    (out,) = model(images(2, channels, *model.img_size, dtype=torch.float64))
    height, width = projection.kernel_size
    for i in range(5):
        patch = model.prompt.pixels[0, :, :, i * width : (i + 1) * width]
        wanted = (projection.weight * patch).sum((1, 2, 3))
        if projection.bias is not None:
            wanted = wanted + projection.bias
        token = entered['x'][1, 1 + kwargs.get('num_registers', 0) + i]
        torch.testing.assert_close(token, wanted, rtol=0, atol=1e-10)
    out.sum().backward()
    assert model.prompt.pixels.grad.abs().amin() > 0
    assert projection.weight.grad is None


def test_pixels_are_not_folded():
    with pytest.raises(UserError, match=r'run\.pth: prompts that enter block 0 flow on'):
        deltas.fold_prompt(tiny_vit(prompt=PIXELS), 'run.pth')


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_tokens=0), r'prompt\.num_tokens must be an integer of at least 1, found 0'),
        (dict(start='noise'), r"prompt\.start must be 'uniform', .*, found 'noise'"),
        (dict(in_channels=4), r'prompt\.in_channels is 4, but the patch embedding takes .* 3'),
        (dict(start='image', mean=[1.0]), r'prompt\.mean must be 3 numbers, one for each channel'),
    ],
)
def test_bad_options_fail_when_it_is_built(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit(prompt={**PIXELS, **kwargs})

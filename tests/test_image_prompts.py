"""Prompts in image space: formulas, sizes, alignment, pretrained weights, errors."""

import pytest
import torch
from mmengine.registry import MODELS
from utils import images, randomise, tiny_vit

from vpt_dense import config
from vpt_dense.checkpoints import deltas
from vpt_dense.image_prompts import PadPrompt
from vpt_dense.image_prompts.base import MEAN, STD

MEAN, STD = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]


def prompt(kind: str, img_size=(32, 48), **kwargs):
    """An image prompt for images of 32 x 48 pixels, with values of its own."""
    built = MODELS.build(dict(type=f'vpt_dense.{kind}', img_size=img_size, **kwargs))
    return randomise(built)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels of 0..1 as our data preprocessors make them of 0..255."""
    return (pixels * 255 - MEAN) / STD


# --- what they compute -----------------------------------------------------------------------


def test_pad_puts_normalised_pixels_around_the_image():
    pad = prompt('PadPrompt', width=3)
    assert pad.top_bottom.shape == (1, 3, 6, 54) and pad.left_right.shape == (1, 3, 32, 6)
    x = images(2, 3, 32, 48)
    out = pad(x)
    assert out.shape == (2, 3, 38, 54)
    assert torch.equal(out[:, :, 3:-3, 3:-3], x)
    rows, columns = normalise(pad.top_bottom), normalise(pad.left_right)
    whole = torch.cat((rows[:, :, :3], torch.zeros(1, 3, 32, 54), rows[:, :, 3:]), 2)
    whole[:, :, 3:-3, :3], whole[:, :, 3:-3, -3:] = columns[..., :3], columns[..., 3:]
    whole = whole.repeat(2, 1, 1, 1)
    whole[:, :, 3:-3, 3:-3] = x
    torch.testing.assert_close(out, whole)


def test_pad_starts_as_pixels():
    torch.manual_seed(0)
    pad = MODELS.build(dict(type='vpt_dense.PadPrompt', img_size=(224, 224), width=16))
    for parameter in pad.parameters():
        assert 0 <= parameter.min() < 0.01 and 0.99 < parameter.max() < 1
        assert parameter.mean().item() == pytest.approx(0.5, abs=0.01)


def test_strips_are_resized_along_their_length_alone():
    pad = prompt('PadPrompt', width=2)
    with torch.no_grad():  # every row and column of a strip a constant
        pad.top_bottom.copy_(torch.arange(4.0).reshape(1, 1, 4, 1).expand(1, 3, 4, 52))
        pad.left_right.copy_(torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 3, 32, 4))
    x = images(1, 3, 50, 21)
    out = pad(x)
    assert out.shape == (1, 3, 54, 25)
    steps = normalise(torch.arange(4.0).expand(3, 1, 4))[:, 0]  # (3, 4)
    for i, place in enumerate((0, 1, -2, -1)):
        expected = steps[:, i, None]
        torch.testing.assert_close(out[0, :, place], expected.expand(3, 25))
        torch.testing.assert_close(out[0, :, 2:-2, place], expected.expand(3, 50))


def test_concatenated_channels_are_normalised_pixels():
    concat = prompt('ConcatChannelPrompt', num_channels=2)
    x = images(2, 3, 32, 48)
    out = concat(x)
    assert out.shape == (2, 5, 32, 48) and torch.equal(out[:, :3], x)
    expected = (concat.maps * 255 - MEAN.mean()) / STD.mean()
    torch.testing.assert_close(out[:, 3:], expected.repeat(2, 1, 1, 1))
    assert concat(images(2, 3, 64, 16)).shape == (2, 5, 64, 16)


def concat(form: str, family: str = 'vit', **kwargs) -> torch.nn.Module:
    part = dict(type='vpt_dense.ConcatChannelPrompt', num_channels=2, **kwargs)
    part = part if form == 'default' else dict(part, form=form)
    cfg = FAMILIES[family][0]
    return MODELS.build(dict(cfg, image_prompt=part, trainable=['.*']))


@pytest.mark.parametrize('family', ['vit', 'swin'])
def test_the_originals_channels_enter_the_convolution_as_they_are(family, tmp_path):
    """Conv(image) + conv(raw channels), started at U(-v, v), pretrained weights loaded or not."""
    torch.manual_seed(0)
    base = MODELS.build(FAMILIES[family][0])
    torch.save(base.state_dict(), tmp_path / 'base.pth')
    model = concat('original', family, mean=[127.5] * 3, std=[127.5] * 3)
    kernel, bias = model.patch_embed.projection.weight, model.patch_embed.projection.bias
    width, _, height, length = kernel.shape
    bound = (6 / (3 * height * length + width)) ** 0.5
    maps = model.image_prompt.maps
    model.load_base(str(tmp_path / 'base.pth'))
    for start in (maps, kernel[:, 3:]):
        assert start.abs().max() <= bound and start.abs().max() > 0.9 * bound
        assert start.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert abs(start.mean().item()) < 0.2 * bound
    x = images(2, 3, 64, 64)
    theirs = base.patch_embed.projection.weight
    alone = torch.nn.functional.conv2d(x, theirs, bias, stride=kernel.shape[2:])
    added = torch.nn.functional.conv2d(maps, kernel[:, 3:], stride=kernel.shape[2:])
    tokens, _ = model.patch_embed(model.image_prompt(x))
    expected = (alone + added).flatten(2).transpose(1, 2)
    expected = expected if family == 'vit' else model.patch_embed.norm(expected)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.image_prompt(x)[:, 3:], maps.expand(2, -1, -1, -1))


def test_the_two_forms_are_one_function_with_other_gradients():
    torch.manual_seed(0)
    normalised, original, default = map(concat, ('normalised', 'original', 'default'))
    assert default.image_prompt.form == 'normalised'
    assert 0 <= normalised.image_prompt.maps.min() and 0.9 < normalised.image_prompt.maps.max() < 1
    original.load_state_dict(normalised.state_dict())
    with torch.no_grad():  # the same channels as the convolution gets them
        original.image_prompt.maps.copy_(normalise_mean(normalised.image_prompt.maps))
    x, grads = images(2, 3, 64, 64), []
    for model in (normalised.eval(), original.eval()):
        (out,) = model(x)
        (out * images(*out.shape, seed=1)).sum().backward()
        grads.append((out, model.image_prompt.maps.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1] * 255 / STD.mean(), rtol=1e-3, atol=1e-4)
    assert 255 / STD.mean().item() == pytest.approx(4.42, abs=0.01)


def normalise_mean(pixels: torch.Tensor) -> torch.Tensor:
    return (255 * pixels - MEAN.mean()) / STD.mean()


@pytest.mark.parametrize('family', ['resnet', 'convnext'])
def test_the_originals_form_for_convolutional_backbones_is_the_normalised(family):
    with pytest.raises(ValueError, match=r"image_prompt\.form='original' is .* form='normalised'"):
        concat('original', family)


def test_lor_vp_adds_before_the_normalisation():
    """x' = normalise(x + B A) for pixels in 0..1, whatever mean and std are."""
    pixels = torch.rand(2, 3, 32, 48)
    for kwargs in ({}, dict(mean=[127.5] * 3, std=[100.0, 50.0, 25.0])):
        lor = prompt('LoRVP', rank=3, **kwargs)
        mean, std = lor.mean, lor.std
        added = torch.einsum('chr,crw->chw', lor.left, lor.right)
        expected = ((pixels + added) * 255 - mean) / std
        torch.testing.assert_close(
            lor((pixels * 255 - mean) / std), expected, rtol=1e-4, atol=1e-4)
    added = lor(torch.zeros(1, 3, 64, 24))
    small = torch.nn.functional.interpolate(
        lor(torch.zeros(1, 3, 32, 48)), (64, 24), mode='bilinear')
    torch.testing.assert_close(added, small)


def test_lor_vp_starts_at_nothing_with_5376_parameters():
    torch.manual_seed(0)
    lor = MODELS.build(dict(type='vpt_dense.LoRVP', img_size=(224, 224)))
    assert sum(p.numel() for p in lor.parameters()) == 5376
    x = images(2, 3, 224, 224)
    assert torch.equal(lor(x), x)
    assert lor.right.std().item() == pytest.approx(0.01, rel=0.05)
    lor(x).square().sum().backward()
    assert lor.left.grad.any()


# --- maps and the border ---------------------------------------------------------------------

FAMILIES = {
    'vit': (dict(type='vpt_dense.VisionTransformer', img_size=64, patch_size=8,
                 arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=8),
                 out_type='featmap'), (8,)),
    'resnet': (dict(type='vpt_dense.ResNet', depth=18, img_size=64, base_channels=8,
                    stem_channels=8, out_indices=(0, 2)), (4, 16)),
    'swin': (dict(type='vpt_dense.SwinTransformer', img_size=64, window_size=4, pad_small_map=True,
                  arch=dict(embed_dims=8, depths=[2, 2], num_heads=[2, 2]), out_indices=(0, 1)),
             (4, 8)),
    'convnext': (dict(type='vpt_dense.ConvNeXt', img_size=64, out_indices=(1, 3),
                      arch=dict(depths=[1] * 4, channels=[8] * 4), gap_before_final_norm=False),
                 (8, 32)),
}  # fmt: skip


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('size', [(64, 64), (96, 50)], ids=str)
def test_maps_show_the_image_without_its_border(family, size):
    """A border of the image's own surroundings gives the maps of the larger image, cut out."""
    cfg, strides = FAMILIES[family]
    plain = randomise(MODELS.build(cfg)).eval()
    pad = dict(type='vpt_dense.PadPrompt', width=32)
    model = MODELS.build({**cfg, 'image_prompt': pad, 'img_size': size if family != 'vit' else 64})
    state = plain.state_dict()
    if family == 'vit':  # positions would not be the same
        torch.nn.init.zeros_(plain.pos_embed)
        state['pos_embed'] = torch.zeros_like(model.pos_embed)
    model.load_state_dict(state, strict=False)
    model.eval()
    large = images(1, 3, size[0] + 64, size[1] + 64)
    if family != 'vit':
        pixels = (large * STD + MEAN) / 255
        with torch.no_grad():
            rows = torch.cat((pixels[:, :, :32], pixels[:, :, -32:]), 2)
            model.image_prompt.top_bottom.copy_(rows)
            columns = torch.cat((pixels[..., :32], pixels[..., -32:]), 3)[:, :, 32:-32]
            model.image_prompt.left_right.copy_(columns)
    else:
        with torch.no_grad():  # one value, which resizing keeps
            for parameter in model.image_prompt.parameters():
                parameter.fill_(0.25)
        border = normalise(torch.full((3, 1, 1), 0.25))
        inside = large[:, :, 32:-32, 32:-32].clone()
        large[:] = border
        large[:, :, 32:-32, 32:-32] = inside
    with torch.no_grad():
        outs = model(large[:, :, 32:-32, 32:-32])
        expected = plain(large)
    assert len(outs) == len(strides)
    for out, whole, stride in zip(outs, expected, strides, strict=True):
        k = 32 // stride
        torch.testing.assert_close(out, whole[:, :, k:-k, k:-k], rtol=1e-4, atol=1e-4)
        assert out.shape == plain(large[:, :, 32:-32, 32:-32])[strides.index(stride)].shape


def test_a_border_is_cut_by_the_stride_of_each_side():
    part = PadPrompt(width=16, img_size=(32, 64))
    padded = torch.arange(16.0)[:, None] * 100 + torch.arange(12.0)  # 64 x 96 pixels
    (cut,) = part.crop([padded[None, None]], [(4, 8)])
    assert torch.equal(cut[0, 0], padded[4:12, 2:10])


@pytest.mark.parametrize('family', FAMILIES)
def test_a_border_that_cannot_be_cut_off_is_refused(family):
    cfg, strides = FAMILIES[family]
    pad = dict(type='vpt_dense.PadPrompt', width=strides[-1] + 1)
    message = (
        rf'image_prompt\.width must be a multiple of the stride of every map \({strides[-1]} '
        rf'pixels\), .* found {strides[-1] + 1}; or set image_prompt\.aligned=False'
    )
    with pytest.raises(ValueError, match=message):
        MODELS.build({**cfg, 'image_prompt': pad})
    model = MODELS.build({**cfg, 'image_prompt': {**pad, 'aligned': False}})
    plain = MODELS.build(cfg)(images(1, 3, 64, 64))[-1]
    assert model.eval()(images(1, 3, 64, 64))[-1].shape[-1] > plain.shape[-1]


def test_the_remainder_that_the_border_leaves_is_dropped():
    """As in the original: 32 + 2 * 5 pixels are five patches of 8, not six."""
    model = tiny_vit(image_prompt=dict(type='vpt_dense.PadPrompt', width=5), out_type='raw')
    assert model.patch_resolution == (5, 5) and model.pos_embed.shape == (1, 26, 64)
    assert model.eval()(images(1, 3, 32, 32))[0].shape == (1, 26, 64)
    whole = tiny_vit(image_prompt=dict(type='vpt_dense.PadPrompt', width=8), out_type='featmap')
    # Images that are no multiple are padded, as without a prompt.
    assert whole.eval()(images(1, 3, 36, 32))[0].shape == (1, 64, 5, 4)


# --- pretrained weights ----------------------------------------------------------------------


@pytest.mark.parametrize('family', FAMILIES)
def test_pretrained_weights_fill_the_images_channels_alone(family, tmp_path):
    cfg, _ = FAMILIES[family]
    plain = randomise(MODELS.build(cfg))
    torch.save(plain.state_dict(), tmp_path / 'base.pth')
    patterns = [r'^image_prompt\.',
                r'^(patch_embed\.projection|conv1|downsample_layers\.0\.0)\.']
    cfg = {**cfg, 'image_prompt': dict(type='vpt_dense.ConcatChannelPrompt', num_channels=2),
           'trainable': patterns,
           'init_cfg': dict(type='Pretrained', checkpoint=str(tmp_path / 'base.pth'))}
    model = MODELS.build(cfg)
    (name,) = [n for n, p in model.named_parameters() if p.requires_grad and p.ndim == 4
               and not n.startswith('image_prompt')]  # fmt: skip
    start = model.get_parameter(name).detach().clone()
    model.init_weights()
    kernel = model.get_parameter(name)
    assert torch.equal(kernel[:, :3], plain.get_parameter(name))
    assert torch.equal(kernel[:, 3:], start[:, 3:]) and start[:, 3:].std() > 0
    checkpoint = dict(state_dict={k: t.clone() for k, t in model.state_dict().items()})
    deltas.reduce(model, checkpoint)
    assert name in checkpoint['state_dict'] and 'image_prompt.maps' in checkpoint['state_dict']
    assert len(checkpoint['state_dict']) < len(model.state_dict())
    other = MODELS.build(cfg)
    other.load_state_dict(checkpoint['state_dict'])
    assert all(torch.equal(t, other.state_dict()[k]) for k, t in model.state_dict().items())


def test_a_frozen_convolution_with_random_channels_is_stored_whole(tmp_path):
    torch.save(randomise(tiny_vit()).state_dict(), tmp_path / 'base.pth')
    cfg = dict(image_prompt=dict(type='vpt_dense.ConcatChannelPrompt', num_channels=1),
               init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'base.pth')))
    model = tiny_vit(**cfg)
    model.init_weights()
    checkpoint = dict(state_dict={k: t.clone() for k, t in model.state_dict().items()})
    deltas.reduce(model, checkpoint)
    assert 'patch_embed.projection.weight' in checkpoint['state_dict']
    other = tiny_vit(**cfg)
    other.load_state_dict(checkpoint['state_dict'])
    assert all(torch.equal(t, other.state_dict()[k]) for k, t in model.state_dict().items())


def test_other_bands_and_patches_and_a_prompt(tmp_path):
    """Four bands and two learnt channels, from a patch embedding of 3 bands and 16 pixels."""
    torch.save(randomise(tiny_vit(img_size=64, patch_size=16)).state_dict(), tmp_path / 'a.pth')
    statistics = dict(mean=[0.0] * 4, std=[255.0] * 4)
    concat = dict(type='vpt_dense.ConcatChannelPrompt', num_channels=2, **statistics)
    model = tiny_vit(in_channels=4, image_prompt=concat)
    plain = tiny_vit(in_channels=4)
    report = model.load_base(str(tmp_path / 'a.pth'))
    plain.load_base(str(tmp_path / 'a.pth'))
    assert '3 -> 4 bands' in report and '2 channels of the image prompt in patch_embed' in report
    ours, theirs = (m.patch_embed.projection.weight for m in (model, plain))
    assert ours.shape[1] == 6 and torch.equal(ours[:, :4], theirs)


def test_positions_are_resized_to_the_padded_image(tmp_path):
    plain = randomise(tiny_vit())
    torch.save(plain.state_dict(), tmp_path / 'a.pth')
    model = tiny_vit(image_prompt=dict(type='vpt_dense.PadPrompt', width=8))
    assert '4x4 -> 6x6' in model.load_base(str(tmp_path / 'a.pth'))
    assert model.pos_embed.shape == (1, 37, 64)


# --- configs and errors ----------------------------------------------------------------------


def test_the_preprocessors_statistics_reach_the_prompt(tmp_path):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        "tuning = dict(image_prompt=dict(type='vpt_dense.LoRVP', mean=None, std=None))\n"
        'model = dict(backbone=dict(**tuning), data_preprocessor=dict(mean=[1.0], std=[2.0]))\n'
    )
    found = config.load(str(leaf)).model.backbone.image_prompt
    assert found.mean == [1.0] and found.std == [2.0]


@pytest.mark.parametrize(
    ('kind', 'kwargs', 'message'),
    [
        ('PadPrompt', dict(width=0), r'image_prompt\.width must be an integer of at least 1, .* 0'),
        ('PadPrompt', dict(width=1.5), r'image_prompt\.width must be .* found 1\.5'),
        ('ConcatChannelPrompt', dict(num_channels=-1), r'image_prompt\.num_channels must be .* -1'),
        ('ConcatChannelPrompt', dict(num_channels=1, form='raw'),
         r"image_prompt\.form must be 'normalised' or 'original', found 'raw'"),
        ('LoRVP', dict(rank=0), r'image_prompt\.rank must be an integer of at least 1, found 0'),
        ('LoRVP', dict(mean=[0.0]), r'image_prompt\.mean must be 3 numbers, .* found \[0\.0\]'),
        ('LoRVP', dict(mean=0.5), r'image_prompt\.mean must be 3 numbers, .* found 0\.5'),
        ('LoRVP', dict(mean='abc'), r"image_prompt\.mean must be 3 numbers, .* found 'abc'"),
        ('PadPrompt', dict(width=8, mean=['a', 'b', 'c']),
         r"image_prompt\.mean must be a number, found 'a'"),
        ('PadPrompt', dict(width=8, std=[1, 0, 1]),
         r'image_prompt\.std must be a number above 0, found 0'),
        ('PadPrompt', dict(width=8, aligned='no'),
         r"image_prompt\.aligned must be True or False, found 'no'"),
    ],
)
def test_bad_options_are_refused_by_name(kind, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit(image_prompt=dict(type=f'vpt_dense.{kind}', **kwargs))

"""ResNet and ConvNeXt: modes, what trains, formats of weights, configs, what is refused."""

import pytest
import sizes
import timm
import torch
import torchvision
from mmengine.registry import MODELS
from timm.models.convnext import checkpoint_filter_fn
from torch import nn
from utils import CONFIGS, images, in_scope, load, randomise

from vpt_dense import building, config, params
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.weights.base import KEY

TOLERANCE = dict(rtol=1e-4, atol=1e-4)
ARCH = dict(depths=[1, 2, 1, 1], channels=[8, 16, 24, 32])


def resnet(**kwargs) -> nn.Module:
    """A tiny ResNet-50."""
    cfg = dict(type='vpt_dense.ResNet', depth=50, img_size=64, base_channels=8)
    return MODELS.build({**cfg, **kwargs})


def convnext(**kwargs) -> nn.Module:
    cfg = dict(type='vpt_dense.ConvNeXt', arch=ARCH, img_size=64)
    return MODELS.build({**cfg, **kwargs})


def trained(model: nn.Module) -> nn.Module:
    """Values of its own for every parameter and every statistic of a batch norm."""
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            noise = torch.rand(buffer.shape, generator=generator)
            buffer.copy_(noise + 0.5 if name.endswith('var') else noise - 0.5)
    model.eval()  # some return None
    return model


# --- what trains, and modes ------------------------------------------------------------------


def test_a_frozen_batch_norm_keeps_its_statistics():
    """With biases that train: the rest is frozen, so nothing of a batch enters the statistics."""
    model = trained(resnet(trainable=['bias$'])).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    x = images(4, 3, 64, 64)
    (out,) = model(x)
    out.sum().backward()
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
    torch.testing.assert_close(out, model.eval()(x)[0])
    names = {n for n, p in model.named_parameters() if p.grad is not None}
    assert names == {n for n, _ in model.named_parameters() if n.endswith('.bias')}
    assert 'bn1.bias' in names and 'layer1.0.downsample.1.bias' in names


def test_full_tuning_of_a_resnet_trains_its_statistics():
    model = resnet(trainable=['.*']).train()
    before = model.bn1.running_mean.clone()
    model(images(2, 3, 64, 64))
    assert not torch.equal(before, model.bn1.running_mean)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        p.numel() for p in model.parameters())


def test_random_start_is_upstreams():
    """Kaiming and the last norm of a block at zero; a truncated normal distribution."""
    model = resnet()
    model.init_weights()
    assert not model.layer1[0].bn3.weight.any() and model.layer1[0].bn2.weight.all()
    model = convnext()
    model.init_weights()
    weight = model.stages[3][0].pointwise_conv1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)


# --- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize('counted', [True, False])
def test_resnet_of_timm(tmp_path, counted):
    theirs = trained(timm.models.ResNet(
        timm.models.resnet.Bottleneck, [3, 4, 6, 3], channels=(8, 16, 32, 64), num_classes=5))
    state = theirs.state_dict()
    if not counted:  # as files from before PyTorch 0.4.1
        state = {n: t for n, t in state.items() if not n.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'a.pth')
    ours = resnet()
    report = ours.load_base(str(tmp_path / 'a.pth'))
    assert '(ResNet layout' in report and 'fc.weight' in report.partition('left out:')[2]
    ours.eval()
    for size in ((64, 64), (96, 50)):
        x = images(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x)[0], theirs.forward_features(x), **TOLERANCE)


def test_resnet_of_torchvision(tmp_path):
    theirs = trained(torchvision.models.resnet18(num_classes=3))
    torch.save(theirs.state_dict(), tmp_path / 'a.pth')
    ours = resnet(depth=18, base_channels=64)
    ours.load_base(str(tmp_path / 'a.pth'))
    ours.eval()
    x = images(1, 3, 64, 48)
    with torch.no_grad():
        pooled = ours(x)[0].mean((2, 3))
        torch.testing.assert_close(theirs.fc(pooled), theirs(x), **TOLERANCE)


def facebook(state: dict) -> dict:
    """timm's tensors under the authors' names."""
    swaps = (('stem.', 'downsample_layers.0.'), ('.blocks.', '.'), ('conv_dw', 'dwconv'),
             ('mlp.fc1', 'pwconv1'), ('mlp.fc2', 'pwconv2'), ('head.norm', 'norm'),
             ('head.fc', 'head'))  # fmt: skip
    new = {}
    for name, tensor in state.items():
        if '.downsample.' in name:
            stage, rest = name.removeprefix('stages.').split('.downsample.')
            name = f'downsample_layers.{stage}.{rest}'
        for theirs, authors in swaps:
            name = name.replace(theirs, authors)
        new[name] = tensor
    return new


def timm_convnext(**kwargs) -> nn.Module:
    return trained(timm.models.ConvNeXt(
        depths=ARCH['depths'], dims=ARCH['channels'], num_classes=5, **kwargs))


def test_convnext_of_timm(tmp_path):
    theirs = timm_convnext()
    torch.save(theirs.state_dict(), tmp_path / 'a.pth')
    assert_same_pooled(convnext(), theirs, tmp_path / 'a.pth', '(timm ConvNeXt layout')


def test_convnext_v2_of_timm(tmp_path):
    theirs = timm_convnext(use_grn=True, ls_init_value=None)
    torch.save(theirs.state_dict(), tmp_path / 'a.pth')
    ours = convnext(use_grn=True, layer_scale_init_value=0.0)
    assert_same_pooled(ours, theirs, tmp_path / 'a.pth', '(timm ConvNeXt layout')


def test_convnext_of_its_authors(tmp_path):
    """timm's converter for their files is the oracle."""
    state = facebook(timm_convnext().state_dict())
    torch.save(dict(model=state), tmp_path / 'a.pth')
    theirs = timm.models.ConvNeXt(
        depths=ARCH['depths'], dims=ARCH['channels'], num_classes=5).eval()
    theirs.load_state_dict(checkpoint_filter_fn(dict(model=state), theirs))
    assert_same_pooled(convnext(), theirs, tmp_path / 'a.pth', '(ConvNeXt layout')


def assert_same_pooled(ours, theirs, path, said):
    report = ours.load_base(str(path))
    assert said in report and 'head' in report.partition('left out:')[2]
    ours.eval()
    for size in ((64, 64), (96, 50)):
        x = images(2, 3, *size)
        with torch.no_grad():
            expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
            torch.testing.assert_close(ours(x)[0], expected, **TOLERANCE)


@pytest.mark.parametrize('build', [resnet, convnext])
def test_mmpretrains_own_files(build, tmp_path):
    ours = build()
    cfg = dict(resnet=dict(type='mmpretrain.ResNet', depth=50, base_channels=8),
               convnext=dict(type='mmpretrain.ConvNeXt', arch=ARCH))[ours.weights_family]
    theirs = trained(MODELS.build(cfg))
    state = {f'backbone.{n}': t for n, t in theirs.state_dict().items()}
    state['head.fc.weight'] = torch.zeros(3, 32)
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    ours.load_base(str(tmp_path / 'a.pth'))
    ours.eval()
    x = images(2, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(ours(x)[0], theirs(x)[0])


def test_norms_of_further_outputs_are_named(tmp_path):
    torch.save(timm_convnext().state_dict(), tmp_path / 'a.pth')
    maps = dict(out_indices=(0, 3), gap_before_final_norm=False)
    with pytest.raises(UserError, match=r'missing: norm0\.weight.*allow_missing'):
        convnext(**maps).load_base(str(tmp_path / 'a.pth'))
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), allow_missing=['^norm0'])
    convnext(**maps, init_cfg=init).init_weights()


def test_a_convnext_may_have_another_number_of_stages():
    """Upstream counts from the fourth: its last output of five is that of the fourth."""
    arch = dict(depths=[1] * 5, channels=[8, 8, 8, 8, 16])
    assert convnext(arch=arch).out_indices == [4]
    model = convnext(arch=arch, out_indices=(0, -1), gap_before_final_norm=False).eval()
    assert [out.shape for out in model(images(1, 3, 64, 64))] == [(1, 8, 16, 16), (1, 16, 1, 1)]
    assert model.map_strides() == [(4, 4), (64, 64)]


@pytest.mark.parametrize(('build', 'wrong', 'message'), [
    (resnet, dict(depth=101), r'ResNet\(arch of 33 layers, .*Set model\.backbone\.depth'),
    (convnext, dict(arch=dict(depths=[1] * 4, channels=ARCH['channels'])),
     r'ConvNeXt\(arch of 4 layers, width 32\).*Set model\.backbone\.arch'),
])  # fmt: skip
def test_weights_of_another_size_are_refused(build, wrong, message, tmp_path):
    torch.save(build().state_dict(), tmp_path / 'a.pth')
    with pytest.raises(UserError, match=message):
        build(**wrong).load_base(str(tmp_path / 'a.pth'))


def test_weights_of_another_family_are_refused(tmp_path):
    torch.save(resnet().state_dict(), tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'holds a resnet .* the backbone ConvNeXt is a convnext'):
        convnext().load_base(str(tmp_path / 'a.pth'))


# --- deltas ----------------------------------------------------------------------------------


@pytest.mark.parametrize('build', [resnet, convnext])
def test_a_checkpoint_without_its_base_tells_which_backbone(build, tmp_path):
    torch.save(trained(build()).state_dict(), tmp_path / 'a.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    model = build(init_cfg=init, image_prompt=dict(type='vpt_dense.LoRVP'))
    model.init_weights()
    checkpoint = dict(state_dict={n: t.clone() for n, t in model.state_dict().items()})
    deltas.reduce(model, checkpoint)
    assert set(checkpoint['state_dict']) == {'image_prompt.left', 'image_prompt.right', KEY}
    assert model.base.arch == model.describe()
    torch.save(randomise(build(), seed=5).state_dict(), tmp_path / 'b.pth')
    init['checkpoint'] = str(tmp_path / 'b.pth')
    other = build(init_cfg=init, image_prompt=dict(type='vpt_dense.LoRVP'))
    with pytest.raises(UserError, match=r'b\.pth are not those that it was trained on: the SHA'):
        other.load_state_dict(checkpoint['state_dict'])


# --- configs ---------------------------------------------------------------------------------

SIZES = {
    'resnet-50': sizes.resnet(64, size=224),
    'convnext-b': sizes.convnext((128, 256, 512, 1024), (3, 3, 27, 3), size=224),
}
#: All parameters without the head. ResNet-50: 25,557,032 published (torchvision, with its head of
#: 2,049,000); ConvNeXt-B 88,591,464 (timm, with 1,025,000).
PUBLISHED = {'resnet-50': 25_557_032 - 2_049_000, 'convnext-b': 88_591_464 - 1_025_000}
METHODS = ('full', 'linear', 'bias', 'partial-1_{}', 'pad', 'concat-channel', 'lor-vp')


@pytest.mark.parametrize(('recipe', 'method'), [
    *((f'{arch}_imagefolder', method.format(arch)) for arch in SIZES for method in METHODS),
    ('resnet-50_lor-vp-ilm_imagefolder', 'lor-vp')])
def test_counts_of_every_method(recipe, method):
    cfg = load(recipe if method in recipe else f'{recipe} {method}')
    arch = recipe.partition('_')[0]
    wanted = sizes.count(sizes.formula_of(method), SIZES[arch], cfg.model.backbone)
    if method == 'full':
        assert wanted == PUBLISHED[arch]
    parts = params.report(building.build_model(cfg, 'meta'))['parts']
    head = parts.pop('classification head')
    assert head['trainable'] == (0 if 'ilm' in recipe else head['total'])
    assert sum(part['trainable'] for part in parts.values()) == wanted
    image_prompt = cfg.model.backbone.get('image_prompt')
    if image_prompt is not None:
        assert image_prompt.mean == cfg.model.data_preprocessor.mean


def test_upernet_on_convnext_builds_and_learns():
    """The dense leaf, tiny: shapes of the pyramid; biases, norms of outputs and heads train."""
    cfg = config.load(str(CONFIGS / 'vpt' / 'upernet_convnext-b_bias_ade20k.py'))
    channels = ARCH['channels']
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    cfg.model.decode_head.update(in_channels=channels, channels=8)
    cfg.model.auxiliary_head.update(in_channels=channels[2], channels=8)
    in_scope('mmseg')
    model = MODELS.build(cfg.model)
    feats = model.extract_feat(images(2, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in feats] == [
        (c, 16 >> i, 24 >> i) for i, c in enumerate(channels)]
    scores = model.decode_head(feats)
    assert scores.shape == (2, 150, 16, 24)
    scores.square().mean().backward()
    grads = {n for n, p in model.backbone.named_parameters() if p.grad is not None}
    norms = {f'norm{i}.weight' for i in range(4)}
    assert grads == norms | {
        n for n, _ in model.backbone.named_parameters() if n.endswith('bias')}


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(('build', 'kwargs', 'message'), [
    (resnet, dict(prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=5)),
     r'prompt: TokenPrompt needs transformer blocks, ResNet has none'),
    (convnext, dict(adapters=[dict(type='vpt_dense.LoRA')]),
     r'adapters: LoRA needs transformer blocks, ConvNeXt has none'),
    (resnet, dict(frozen_stages=1), 'frozen_stages=1 and `trainable` are two ways'),
    (convnext, dict(frozen_stages=2), 'frozen_stages=2 and `trainable` are two ways'),
    (resnet, dict(depth=51), r'depth must be 18, .*found 51'),
    (resnet, dict(out_indices=(4,)), r'out_indices must be .* from 0 to 3, found \(4,\)'),
    (resnet, dict(out_indices=3), r'out_indices must be a list of integers from 0 .* found 3'),
    (convnext, dict(out_indices=-5), r'out_indices must be .* from -4 to 3, found \[-5\]'),
    (convnext, dict(out_indices=None), r'out_indices must be .* from -4 to 3, found None'),
    (resnet, dict(img_size=0), 'img_size must be a positive integer or a pair of them, found 0'),
    (convnext, dict(trainable=['^layers']), r"trainable: pattern '\^layers' matches none"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)

"""Pretrained weights: what is loaded, what is left out by name, what is refused."""

import pickle

import pytest
import timm
import torch
from mmengine.registry import MODELS
from safetensors.torch import save_file
from utils import TINY_ARCH, images, randomise, tiny_vit

from vpt_dense.errors import UserError
from vpt_dense.weights import read_state_dict

DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True)


def timm_vit(img_size: int = 48, in_chans: int = 3, **kwargs) -> torch.nn.Module:
    """The tiny architecture in timm, head included; 48 px and patches of 8: a 6x6 grid."""
    sizes = dict(patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2, num_classes=10)
    model = timm.models.VisionTransformer(
        img_size=img_size, in_chans=in_chans, **{**sizes, **kwargs}
    )
    return randomise(model).eval()


def saved(model: torch.nn.Module, path, wrap=lambda state: state) -> str:
    torch.save(wrap(model.state_dict()), path)
    return str(path)


@pytest.mark.parametrize(
    'wrap',
    [lambda s: s, lambda s: {'model': s}, lambda s: {'state_dict': s, 'epoch': 3}],
    ids=['bare', 'model', 'state_dict'],
)
def test_timm_weights_give_timms_features(tmp_path, wrap):
    theirs = timm_vit()
    ours = tiny_vit(img_size=48, out_type='raw')
    report = ours.load_base(saved(theirs, tmp_path / 'timm.pth', wrap))
    assert 'timm layout' in report and 'left out: head.weight, head.bias' in report
    x = images(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(x)[0], theirs.forward_features(x), rtol=1e-5, atol=1e-5
        )


def test_position_embedding_is_resized_on_the_grid_and_the_final_norm_left_out(tmp_path):
    """The SETR case: 24x24 -> 32x32 bilinear, as 6x6 -> 4x8, no final norm, patch bias kept."""
    theirs = timm_vit()
    ours = tiny_vit(
        img_size=(32, 64), interpolate_mode='bilinear', final_norm=False, prompt=DEEP
    )
    report = ours.load_base(saved(theirs, tmp_path / 'timm.pth'))
    assert 'position embedding 6x6 -> 4x8 (bilinear)' in report
    assert 'left out: norm.weight, norm.bias, head.weight, head.bias' in report
    assert 'created: prompt.tokens' in report
    assert torch.equal(ours.patch_embed.projection.bias, theirs.patch_embed.proj.bias)
    assert torch.equal(ours.pos_embed[:, 0], theirs.pos_embed[:, 0])
    grid = theirs.pos_embed[:, 1:].reshape(1, 6, 6, 64).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (4, 8), mode='bilinear', align_corners=False)
    torch.testing.assert_close(ours.pos_embed[:, 1:], grid.flatten(2).transpose(1, 2))


def test_equal_token_counts_of_different_grids_are_resized(tmp_path):
    """mmseg resizes by the number of tokens only: 6x6 and 3x12 would pass as equal."""
    report = tiny_vit(img_size=(24, 96)).load_base(saved(timm_vit(), tmp_path / 'timm.pth'))
    assert 'position embedding 6x6 -> 3x12 (bicubic)' in report


def test_without_a_cls_token_its_rows_are_left_out_by_name(tmp_path):
    theirs = timm_vit()
    ours = tiny_vit(img_size=48, with_cls_token=False)
    report = ours.load_base(saved(theirs, tmp_path / 'timm.pth'))
    assert 'cls_token' in report.partition('left out:')[2]
    assert torch.equal(ours.pos_embed, theirs.pos_embed[:, 1:])


@pytest.mark.parametrize('whole_model', [False, True])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_mmpretrain_weights_load_with_only_the_prompt_missing(tmp_path, suffix, whole_model):
    shared = dict(arch=TINY_ARCH, img_size=32, patch_size=8)
    theirs = randomise(MODELS.build(dict(type='mmpretrain.VisionTransformer', **shared)))
    state = theirs.state_dict()
    if whole_model:
        state = {f'backbone.{name}': tensor for name, tensor in state.items()}
        state['head.layers.head.weight'] = torch.zeros(10, 64)
    path = tmp_path / f'mmpretrain{suffix}'
    (save_file if suffix == '.safetensors' else torch.save)(state, path)
    ours = tiny_vit(prompt=DEEP, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    drawn = ours.prompt.tokens.clone()
    ours.init_weights()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert torch.equal(ours.prompt.tokens, drawn)


@pytest.mark.parametrize('bands', [1, 4, 7])
def test_bands_are_repeated_and_scaled(tmp_path, bands):
    theirs = timm_vit()
    ours = tiny_vit(img_size=48, in_channels=bands)
    report = ours.load_base(saved(theirs, tmp_path / 'timm.pth'))
    assert f'patch embedding 3 -> {bands} bands' in report
    kernel = theirs.patch_embed.proj.weight
    if bands == 1:  # timm's rule for one band: the sum over RGB
        expected = kernel.sum(1, keepdim=True)
    else:
        expected = torch.stack([kernel[:, i % 3] * 3 / bands for i in range(bands)], 1)
    torch.testing.assert_close(ours.patch_embed.projection.weight, expected)


WAYS = {  # bands -> the part of each of four bands, of the kernels of R, G and B; words of the log
    'repeat': (lambda r, g, b: [r * 3 / 4, g * 3 / 4, b * 3 / 4, r * 3 / 4], 'repeated and scaled'),
    'mean': (lambda r, g, b: [(r + g + b) / 4] * 4, 'each the mean of R, G, B x 3/4'),
    ('B', 'G', 'R', 'mean'): (lambda r, g, b: [b, g, r, (r + g + b) / 3], 'B, G, R, mean'),
    ('R', 'G', 'B', 'zero'): (lambda r, g, b: [r, g, b, 0 * r], 'R, G, B, zero'),
}


@pytest.mark.parametrize('way', WAYS)
def test_bands_are_made_as_the_key_says_and_a_delta_remembers_it(tmp_path, way):
    theirs = timm_vit()
    path = saved(theirs, tmp_path / 'timm.pth')
    parts, words = WAYS[way]
    bands = way if isinstance(way, str) else list(way)
    init = dict(type='Pretrained', checkpoint=path, bands=bands)
    ours = tiny_vit(img_size=48, in_channels=4, prompt=DEEP, init_cfg=init)
    assert f'patch embedding 3 -> 4 bands ({words}' in ours.load_base(path)
    expected = torch.stack(parts(*theirs.patch_embed.proj.weight.unbind(1)), 1)
    torch.testing.assert_close(ours.patch_embed.projection.weight, expected)
    ours.init_weights()
    state = {k: v for k, v in ours.state_dict().items() if k not in ours.frozen_names}
    other = tiny_vit(img_size=48, in_channels=4, prompt=DEEP)
    other.load_state_dict({**state, 'frozen_base': ours.base.to_tensor()})
    assert torch.equal(other.patch_embed.projection.weight, ours.patch_embed.projection.weight)


def test_a_new_patch_embedding_starts_at_random_and_is_trained(tmp_path):
    theirs = timm_vit()
    init = dict(type='Pretrained', checkpoint=saved(theirs, tmp_path / 'timm.pth'), bands='new')
    ours = tiny_vit(img_size=48, in_channels=4, prompt=DEEP, init_cfg=init,
                    trainable=[r'^prompt\.', r'^patch_embed\.'])  # fmt: skip
    drawn = ours.patch_embed.projection.weight.clone()
    report = ours.load_base(init['checkpoint'])
    assert 'bands (new, at random)' in report and 'patch_embed.projection.weight' in report
    assert torch.equal(ours.patch_embed.projection.weight, drawn) and drawn.std() > 0
    assert torch.equal(ours.patch_embed.projection.bias, theirs.patch_embed.proj.bias)
    torch.testing.assert_close(ours.layers[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)
    frozen = tiny_vit(img_size=48, in_channels=4, prompt=DEEP, init_cfg=init)
    with pytest.raises(UserError, match=r"it is frozen: add r'\^patch_embed\\\.' to model"):
        frozen.load_base(init['checkpoint'])


@pytest.mark.parametrize('bands, file_bands, line', [
    ('rgb', 3, r"init_cfg.bands must be 'repeat', 'mean', 'new' or a list .*found 'rgb'"),
    (['R', 'NIR'], 3, r"must be 'repeat'.*found \['R', 'NIR'\]"),
    (['R', 'G', 'B'], 3, r'is for 3 bands, the backbone has in_channels=4'),
    ('mean', 4, r'has 4 bands, and init_cfg.bands=.mean. says what becomes of 3; leave it out'),
])  # fmt: skip
def test_a_key_for_bands_that_cannot_act_is_refused(tmp_path, bands, file_bands, line):
    path = saved(timm_vit(in_chans=file_bands), tmp_path / 'timm.pth')
    ours = tiny_vit(img_size=48, in_channels=4,
                    init_cfg=dict(type='Pretrained', checkpoint=path, bands=bands))  # fmt: skip
    with pytest.raises(UserError, match=line):
        ours.load_base(path)


def damaged(change):
    def write(path):
        state = timm_vit().state_dict()
        torch.save(change(state) or state, path)

    return write


def truncated(path):
    saved(timm_vit(), path)
    path.write_bytes(path.read_bytes()[:5000])


class Hostile:
    def __reduce__(self):
        return (exec, ('import pathlib; pathlib.Path("ran").touch()',))


REFUSED = {
    'absent': (lambda path: None, r'weights not found: .*w\.pth'),
    'truncated': (truncated, r'w\.pth is truncated or damaged'),
    'html': (lambda path: path.write_text('<!DOCTYPE html><html></html>'), r'web page \(HTML\)'),
    'text': (lambda path: path.write_text('hello'), r'w\.pth is damaged'),
    'empty': (lambda path: path.write_bytes(b''), r'w\.pth is empty'),
    'pickle': (lambda path: path.write_bytes(pickle.dumps(Hostile())), r'would run code'),
    'hostile': (lambda path: torch.save({'model': Hostile()}, path), r'would run code'),
    'no tensors': (lambda path: torch.save({'a': 1}, path), r"more than tensors.*\['a'\]"),
    'a list': (lambda path: torch.save([1], path), r'no state dict but list'),
    'unrelated': (
        lambda path: torch.save({'conv1.weight': torch.zeros(1)}, path),
        r'no backbone of a known layout \(.*mmpretrain, .*timm.*conv1\.weight',
    ),
    'patch bias missing': (
        damaged(lambda s: s.__delitem__('patch_embed.proj.bias')),
        r'1 missing: patch_embed\.projection\.bias',
    ),
    'a block missing': (
        damaged(lambda s: {k: v for k, v in s.items() if not k.startswith('blocks.3.')}),
        r'12 missing: layers\.3\.ln1\.weight.* and 7 more.*Set model\.backbone\.arch',
    ),
    'unexpected': (
        damaged(lambda s: s.update(norm_pre=torch.zeros(3))), r'1 unexpected: norm_pre'
    ),
    'deeper': (
        lambda path: saved(timm_vit(depth=5), path),
        r'12 unexpected: layers\.4\.ln1\.weight.*Set model\.backbone\.arch',
    ),
    'wider': (
        lambda path: saved(timm_vit(embed_dim=128), path),
        r'of another shape: cls_token \(1, 1, 128\) instead of \(1, 1, 64\)',
    ),
    'other bands': (
        lambda path: saved(timm_vit(in_chans=5), path),
        r'patch_embed\.projection\.weight \(64, 5, 8, 8\) instead of \(64, 3, 8, 8\)',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write, message = REFUSED[case]
    write(tmp_path / 'w.pth')
    model = tiny_vit(img_size=48, prompt=DEEP)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        model.load_base(str(tmp_path / 'w.pth'))
    assert '\n' not in str(error.value)
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    assert not (tmp_path / 'ran').exists()


def test_damaged_safetensors_are_refused(tmp_path):
    path = tmp_path / 'w.safetensors'
    save_file({'a': torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r'w\.safetensors is truncated'):
        read_state_dict(str(path))

"""EVA-02 against timm's, and its weights."""

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from timm.models.eva import Eva
from utils import TINY_ARCH, images, randomise

from vpt_dense import building

#: timm's 'tiny' and 'small' have one layer of queries, keys and values, its 'base' and 'large'
#: three and a norm in the MLP.
KINDS = {
    'tiny': dict(qkv_fused=True, scale_mlp=False),
    'base': dict(qkv_fused=False, scale_mlp=True),
}


def theirs(kind: str, size: tuple[int, int] = (32, 32), **kwargs) -> torch.nn.Module:
    return randomise(Eva(
        img_size=size, patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2, num_classes=5,
        swiglu_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16), **KINDS[kind],
        **kwargs)).eval()


def ours(kind: str, **kwargs) -> torch.nn.Module:
    arch = dict(TINY_ARCH, sub_norm=KINDS[kind]['scale_mlp'])
    return MODELS.build(dict(
        type='vpt_dense.EVA02VisionTransformer', arch=arch, img_size=32, patch_size=8,
        **kwargs)).eval()


@pytest.mark.parametrize('kind', KINDS)
def test_features_are_timms(kind, tmp_path):
    """At the trained size and another, for which timm gets our resized position embedding."""
    model = theirs(kind)
    torch.save(model.state_dict(), tmp_path / 'timm.pth')
    raw = ours(kind, out_type='raw', final_norm=False)
    assert 'timm EVA-02' in raw.load_base(str(tmp_path / 'timm.pth'))
    wide = theirs(kind, (48, 32))
    state = {n: t for n, t in model.state_dict().items() if n != 'pos_embed'}
    wide.load_state_dict(state, strict=False)
    with torch.no_grad():
        wide.pos_embed.copy_(raw.add_positions(torch.zeros(1, 1 + 6 * 4, 64), (6, 4)))
        for other, size in ((model, (32, 32)), (wide, (48, 32))):
            x = images(2, 3, *size)
            assert (raw(x)[0] - other.forward_features(x)).abs().max() < 1e-5


@pytest.mark.parametrize('kind', KINDS)
def test_published_classifiers_read_a_mean(kind, tmp_path):
    model = theirs(kind)
    torch.save(model.state_dict(), tmp_path / 'timm.pth')
    backbone = ours(
        kind, out_type='avg_featmap', final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth')))
    backbone.init_weights()
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features(x), pre_logits=True)
        assert (backbone(x)[0] - wanted).abs().max() < 1e-5


@pytest.mark.parametrize('way', ['keys_values', 'tokens'])
def test_prompts_and_cls_have_no_place(way):
    """Turning all patches by one angle more changes nothing that only patches see of each other."""
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)
    model = randomise(ours('base', prompt=prompt, prompts_as=way, with_cls_token=False,
                           out_type='raw')).double()
    x = images(1, 3, 32, 32, dtype=torch.float64)
    before = model(x)[0]
    ((sin, cos),) = model.block_arguments((4, 4))
    angles = torch.atan2(sin, cos) + 0.3
    shifted = angles.sin(), angles.cos()
    model.block_arguments = lambda grid: (shifted,)
    moved = model(x)[0]
    assert (moved - before).abs().max() > 1e-4  # the prompts stay where they were
    model.prompt.tokens.data = model.prompt.tokens.data[:, :0]
    model.keys_values_layers = []
    alone = model(x)[0]
    del model.block_arguments
    torch.testing.assert_close(model(x)[0], alone, rtol=1e-9, atol=1e-9)


def test_both_ways_to_compute_prompts_are_equal():
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)
    x = images(2, 3, 48, 32, dtype=torch.float64)
    outs = [
        randomise(ours('base', prompt=prompt, prompts_as=way)).double()(x)[0]
        for way in ('keys_values', 'tokens')
    ]
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('kind', KINDS)
def test_its_own_files_are_told_from_those_of_a_vit(kind, tmp_path):
    model = randomise(ours(kind))
    state = {f'backbone.{n}': t for n, t in model.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'own.pth')
    again = ours(kind, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'own.pth')))
    again.init_weights()
    x = images(2, 3, 32, 32)
    assert torch.equal(model(x)[0], again(x)[0])


@pytest.mark.parametrize('arch', ['tiny', 'base'])
def test_published_sizes(arch):
    """As many parameters as timm's models, and the biases of keys."""
    size = dict(tiny=336, base=448)[arch]
    with torch.device('meta'):
        wanted = timm.create_model(f'eva02_{arch}_patch14_{size}', num_classes=0)
    found = building.build_model(Config(dict(model=dict(
        type='vpt_dense.EVA02VisionTransformer', arch=arch, patch_size=14, img_size=size,
        final_norm=False, out_type='avg_featmap'))), 'meta')
    assert count(found) == count(wanted) + found.num_layers * found.embed_dims


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

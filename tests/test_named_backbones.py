"""Named backbones: each is what its publisher's model is, and takes one line of a leaf."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine import Config
from mmengine.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from safetensors.torch import save_file
from tool_helpers import run_tool
from torch import nn
from utils import CONFIGS, RECIPES, images, in_scope, randomise

from vpt_dense import config, preflight
from vpt_dense.errors import UserError
from vpt_dense.tuning import is_added

#: Name -> the same model in timm.
NAMED = {
    'augreg_vit-b': 'vit_base_patch16_224.augreg_in21k',
    'augreg_vit-l': 'vit_large_patch16_224.augreg_in21k',
    'in21k_vit-h': 'vit_huge_patch14_224.orig_in21k',
    'jx_vit-l_384': 'vit_large_patch16_384.augreg_in21k_ft_in1k',  # same model, later weights
    'deit3_vit-b': 'deit3_base_patch16_224.fb_in22k_ft_in1k',
    'deit3_vit-l': 'deit3_large_patch16_224.fb_in22k_ft_in1k',
    'mae_vit-b': 'vit_base_patch16_224.mae',
    'mae_vit-l': 'vit_large_patch16_224.mae',
    'mocov3_vit-b': 'vit_base_patch16_224.dino',  # same model and mean; timm has no MoCo v3
    'dinov2_vit-s': 'vit_small_patch14_dinov2.lvd142m',
    'dinov2_vit-b': 'vit_base_patch14_dinov2.lvd142m',
    'dinov2_vit-l': 'vit_large_patch14_dinov2.lvd142m',
    'dinov2_vit-g': 'vit_giant_patch14_dinov2.lvd142m',
    'dinov2-reg_vit-s': 'vit_small_patch14_reg4_dinov2.lvd142m',
    'dinov2-reg_vit-b': 'vit_base_patch14_reg4_dinov2.lvd142m',
    'dinov2-reg_vit-l': 'vit_large_patch14_reg4_dinov2.lvd142m',
    'dinov2-reg_vit-g': 'vit_giant_patch14_reg4_dinov2.lvd142m',
    'clip_vit-b': 'vit_base_patch16_clip_quickgelu_224.openai',
    'clip_vit-l': 'vit_large_patch14_clip_quickgelu_224.openai',
}
#: Name -> timm's, of files whose model is timm's own; in a classifier if that is another.
OF_TIMM = {
    'dinov3_vit-s': 'vit_small_patch16_dinov3.lvd1689m',
    'dinov3_vit-b': 'vit_base_patch16_dinov3.lvd1689m',
    'dinov3_vit-l': 'vit_large_patch16_dinov3.lvd1689m',
    'lingbot_vit-b': 'vit_base_patch16_lingbot.robbyant',
    'lingbot_vit-l': 'vit_large_patch16_lingbot.robbyant',
    'tipsv2_vit-b': 'vit_base_patch14_reg1_tipsv2.webli',
    'pe-spatial_vit-b': 'vit_pe_spatial_base_patch16_512.fb',
    'siglip2_vit-b': 'vit_base_patch16_siglip_256.v2_webli',
}
LEAF = """
_base_ = [
    '{configs}/_base_/models/vit-b_cls.py',
    '{configs}/_base_/backbones/{backbone}.py',
    '{configs}/_base_/datasets/imagefolder.py',
    '{configs}/_base_/schedules/cls_100e.py',
    '{configs}/_base_/default_runtime_cls.py',
    '{configs}/_base_/optim/classification.py',
    '{configs}/_base_/methods/deep.py',
]
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
"""


def leaf(folder: Path, backbone: str, extra: str = '') -> str:
    path = folder / 'leaf.py'
    path.write_text(LEAF.format(configs=CONFIGS, backbone=backbone) + extra)
    return str(path)


def test_all_named_backbones_are_tested():
    files = CONFIGS.glob('_base_/backbones/*.py')
    assert sorted([*NAMED, *OF_TIMM]) == sorted(path.stem for path in files)


@pytest.mark.parametrize('name', NAMED)
def test_a_named_backbone_is_its_publishers_model(tmp_path, mmpretrain_scope, name):
    """The model in timm, built without memory: parameters, size, norms, activation, mean, std."""
    cfg = config.load(leaf(tmp_path, name)).model
    with torch.device('meta'):
        ours = MODELS.build(cfg.backbone)
        theirs = timm.create_model(NAMED[name], num_classes=0)
    published = theirs.pretrained_cfg

    count = sum(p.numel() for n, p in ours.named_parameters() if not n.startswith('prompt.'))
    expected = sum(p.numel() for p in theirs.parameters())
    if theirs.no_embed_class:  # one row of the position embedding: the cls token's, zero
        expected += theirs.embed_dim
    assert count == expected
    size, patch = published['input_size'][1], theirs.patch_embed.patch_size
    assert (ours.img_size, tuple(ours.patch_embed.projection.kernel_size)) == ((size, size), patch)
    block, layer = theirs.blocks[0], ours.layers[0]
    assert (layer.ln1.eps, ours.layers[-1].ln2.eps) == (block.norm1.eps, block.norm2.eps)
    assert layer.attn.num_heads == block.attn.num_heads
    assert isinstance(ours.pre_norm, nn.LayerNorm) == isinstance(theirs.norm_pre, nn.LayerNorm)
    x = torch.linspace(-3, 3, 7)
    activation = next((m for m in layer.ffn.modules() if 'GELU' in type(m).__name__), nn.SiLU())
    assert isinstance(block.mlp.act, nn.SiLU) == isinstance(activation, nn.SiLU)
    torch.testing.assert_close(activation(x), block.mlp.act(x))
    for key in ('mean', 'std'):
        wanted = [255 * value for value in published[key]]
        assert cfg.data_preprocessor[key] == pytest.approx(wanted, abs=1e-9)
    assert cfg.data_preprocessor.to_rgb
    assert cfg.head.in_channels == theirs.embed_dim
    address = cfg.backbone.init_cfg.checkpoint
    if address.startswith('timm://'):
        assert address == f'timm://{NAMED[name]}'
    elif name.startswith('mae'):
        assert address == published['url']


@pytest.mark.parametrize('name', OF_TIMM)
def test_a_named_backbone_is_timms_model(tmp_path, mmpretrain_scope, name):
    """Parameters, size, output, weights, mean and std; the model base's ViT has left nothing."""
    cfg = config.load(leaf(tmp_path, name)).model
    with torch.device('meta'):
        ours = MODELS.build(cfg.backbone)
        theirs = timm.create_model(OF_TIMM[name], num_classes=0)
    published = theirs.pretrained_cfg
    wanted = {n: p.shape for n, p in theirs.named_parameters()}
    assert {n: p.shape for n, p in ours.named_parameters() if not is_added(n)} == wanted
    assert cfg.backbone.init_cfg.to_dict() == dict(
        type='Pretrained', checkpoint=f'timm://{OF_TIMM[name]}')
    assert cfg.backbone.img_size == published['input_size'][1]
    assert ours.out_type == {'map': 'pooled'}.get(theirs.global_pool, 'cls_token')
    for key in ('mean', 'std'):
        wanted = [255 * value for value in published[key]]
        assert cfg.data_preprocessor[key] == pytest.approx(wanted, abs=1e-5)
    assert cfg.data_preprocessor.to_rgb
    assert cfg.head.in_channels == theirs.embed_dim
    assert not {'arch', 'patch_size', 'final_norm', 'interpolate_mode'} & set(cfg.backbone)


@pytest.mark.parametrize('head', ['setr-pup_vit-l', 'upernet_vit-l', 'linear_vit-l'])
def test_a_model_of_timm_in_segmentation(tmp_path, mmseg_scope, head):
    model = segmentation(tmp_path, 'dinov3_vit-b', model=head)
    kept = dict(out_type='featmap', img_size=(512, 512), norm_outputs=True)
    assert {key: model.backbone[key] for key in kept} == kept
    assert set(model.backbone) == {
        'type', 'model', 'init_cfg', 'out_indices', 'prompt', 'trainable', *kept}
    depths = {'setr': [4, 7, 9, 11], 'upernet': [2, 5, 8, 11], 'linear': [11]}
    assert model.backbone.out_indices == depths[head.partition('_')[0].partition('-')[0]]
    assert all(part.in_channels in (768, [768] * 4) for part in config.heads(model))
    assert model.backbone.init_cfg.checkpoint == 'timm://vit_base_patch16_dinov3.lvd1689m'
    assert model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    said = """
model['backbone'].update(init_cfg=dict(checkpoint='my.pth'), img_size=(224, 448), depth=6)
model['data_preprocessor'] = dict(mean=[1.0, 2.0, 3.0])
"""
    again = segmentation(tmp_path, 'dinov3_vit-b', said, head)
    assert again.backbone.init_cfg == dict(type='Pretrained', checkpoint='my.pth')
    assert (again.backbone.img_size, again.backbone.depth) == ((224, 448), 6)
    assert again.backbone.out_indices[-1] == 5
    assert again.data_preprocessor.mean == [1.0, 2.0, 3.0]
    assert again.data_preprocessor.std == [58.395, 57.12, 57.375]


@pytest.mark.parametrize('name', NAMED)
def test_a_named_backbone_computes_what_its_publishers_does(tmp_path, mmpretrain_scope, name):
    """The settings of the config, with the weights of a small model of the same making."""
    published = name.startswith(('mae', 'mocov3'))
    cfg = config.load(leaf(tmp_path, name)).model.backbone
    size = 4 * cfg.patch_size
    small = dict(img_size=size, embed_dim=64, depth=2, num_heads=4, mlp_ratio=4, num_classes=0)
    theirs = randomise(timm.create_model(NAMED[name], **small)).eval()
    state = theirs.state_dict()
    if name.startswith('mocov3'):
        state = {f'module.base_encoder.{key}': tensor for key, tensor in state.items()}
        momentum = {key.replace('base', 'momentum'): 0 * t for key, t in state.items()}
        state = dict(state_dict={**momentum, **state})
    elif name.startswith('mae'):
        state = dict(model=state)
    path = tmp_path / ('w.pth' if published else 'w.safetensors')
    (torch.save if published else save_file)(state, path)

    glu = 'layer_cfgs' in cfg and cfg.layer_cfgs.get('ffn_type') == 'swiglu_fused'
    channels = 192 if glu else 256  # of SwiGLU two thirds are its width
    cfg.update(arch=dict(
        embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=channels), img_size=size
    )  # fmt: skip
    cfg.init_cfg.checkpoint = str(path)
    del cfg['prompt'], cfg['trainable']
    ours = MODELS.build(cfg).eval()
    ours.init_weights()
    x = images(2, 3, size, size)
    with torch.no_grad():
        if name.startswith('mae'):  # as its authors' model for fine-tuning
            averaging = timm.create_model(NAMED[name], **small, global_pool='avg').eval()
            averaging.load_state_dict(theirs.state_dict(), strict=False)
            expected = averaging.forward_head(averaging.forward_features(x), pre_logits=True)
        else:
            expected = theirs.forward_features(x)[:, 0]
        torch.testing.assert_close(ours(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_classifiers_pooling_is_the_authors(tmp_path):
    for name in NAMED:
        backbone = config.load(leaf(tmp_path, name)).model.backbone
        averaged = name.startswith('mae')
        assert backbone.out_type == ('avg_featmap' if averaged else 'cls_token')
        assert backbone.get('final_norm', True) != averaged


def segmentation(folder: Path, backbone: str, extra: str = '', model: str = 'setr-pup_vit-l'):
    path = folder / 'leaf.py'
    bases = [f'models/{model}', f'backbones/{backbone}', 'datasets/ade20k_512', 'schedules/160k',
             'default_runtime', 'methods/deep']  # fmt: skip
    listed = ', '.join(f"'{CONFIGS}/_base_/{base}.py'" for base in bases)
    path.write_text(f'_base_ = [{listed}]\nmodel = dict(backbone=_base_.method)\n{extra}')
    return config.load(str(path)).model


def test_segmentation_heads_follow_the_backbone(tmp_path, mmseg_scope):
    model = segmentation(tmp_path, 'mae_vit-b')
    assert model.backbone.out_indices == [4, 7, 9, 11]  # 10, 15, 20, 24 of 24
    assert [head.in_channels for head in config.heads(model)] == [768] * 4
    # What is a classifier's stays away: pooling, the final norm, the size of the images.
    assert model.backbone.out_type == 'featmap'
    assert (model.backbone.final_norm, model.backbone.img_size) == (False, (512, 512))
    del model['auxiliary_head'], model.backbone['init_cfg']
    model.decode_head.channels = 8
    with torch.no_grad():
        segmentor = MODELS.build(model).eval()
        features = segmentor.extract_feat(torch.zeros(1, 3, 32, 64))
        assert segmentor.decode_head(features).shape == (1, 150, 32, 64)

    giant = segmentation(tmp_path, 'dinov2_vit-g', 'model["backbone"]["img_size"] = (518, 518)')
    assert giant.backbone.out_indices == [16, 24, 32, 39]
    assert [head.in_channels for head in config.heads(giant)] == [1536] * 4
    assert giant.backbone.img_size == (518, 518)

    mla = segmentation(tmp_path, 'mae_vit-b', model='setr-mla_vit-l')
    assert mla.neck.in_channels == [768] * 4
    assert mla.backbone.out_indices == [2, 5, 8, 11]
    assert [head.in_channels for head in config.heads(mla)] == [(256,) * 4, 256, 256, 256, 256]


def test_what_a_leaf_says_stays(tmp_path):
    """The model base's settings give way to the backbone's, a leaf's do not."""
    extra = """
model['backbone'].update(init_cfg=dict(checkpoint='my.pth'), img_size=(224, 448), norm_cfg=None)
model['data_preprocessor'] = dict(mean=[1.0, 2.0, 3.0], to_rgb=False)
model['head'] = dict(in_channels=5)
"""
    path = leaf(tmp_path, 'dinov2_vit-l', extra)
    again = tmp_path / 'again.py'  # a leaf of that leaf, which changes one thing
    again.write_text("_base_ = './leaf.py'\nmodel = dict(backbone=dict(patch_size=7))\n")
    for file, patch in ((path, 14), (str(again), 7)):
        model = config.load(file).model
        assert model.backbone.init_cfg == dict(type='Pretrained', checkpoint='my.pth')
        assert (model.backbone.img_size, model.backbone.patch_size) == ((224, 448), patch)
        assert (model.backbone.arch, model.backbone.norm_cfg) == ('large', None)
        assert model.backbone.prompt.num_tokens == 10
        assert model.data_preprocessor.mean == [1.0, 2.0, 3.0]
        assert model.data_preprocessor.std == [58.395, 57.12, 57.375]
        assert not model.data_preprocessor.to_rgb
        assert model.head.in_channels == 5


def test_a_leaf_may_have_its_own_named_backbone_or_its_own_model(tmp_path):
    path = tmp_path / 'leaf.py'
    path.write_text(f"""
_base_ = '{CONFIGS}/_base_/models/vit-b_cls.py'
pretrained = dict(backbone=dict(arch='large', patch_size=14, img_size=42))
model = dict(backbone=dict(img_size=28))
""")
    model = config.load(str(path)).model
    assert (model.backbone.arch, model.backbone.patch_size) == ('large', 14)
    assert (model.backbone.img_size, model.head.in_channels) == (28, 1024)
    path.write_text(f"""
_base_ = '{CONFIGS}/_base_/backbones/clip_vit-l.py'
model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
""")
    model = config.load(str(path)).model
    assert (model.backbone.arch, model.backbone.patch_size) == ('base', 14)
    assert (model.backbone.pre_norm, model.head.in_channels) == (True, 768)


def test_options_have_the_last_word(tmp_path):
    options = {
        'model.backbone.patch_size': 7,
        'model.backbone.init_cfg.checkpoint': 'my.pth',
        'pretrained.classifier.out_type': 'avg_featmap',
    }
    model = config.load(leaf(tmp_path, 'dinov2_vit-b'), options).model
    assert (model.backbone.patch_size, model.backbone.out_type) == (7, 'avg_featmap')
    assert model.backbone.init_cfg.checkpoint == 'my.pth'


def test_another_model_of_timm_by_options():
    name = 'vit_large_patch16_dinov3_qkvb'
    options = {'pretrained.backbone.model': name,
               'pretrained.backbone.init_cfg.checkpoint': f'timm://{name}.lvd1689m'}
    path = str(CONFIGS / 'vpt/linear_vit-b_dinov3_ade20k.py')
    model = config.load(path, options, 'deep').model
    assert (model.backbone.model, model.backbone.out_indices) == (name, [23])
    assert model.backbone.init_cfg.checkpoint == f'timm://{name}.lvd1689m'
    assert (model.decode_head.in_channels, model.backbone.norm_outputs) == (1024, False)


def test_without_files_the_named_backbone_goes_over_the_model():
    cfg = Config(
        dict(
            pretrained=dict(backbone=dict(arch='base', patch_size=14)),
            model=dict(backbone=dict(arch='large', patch_size=16), decode_head=dict(in_channels=9)),
        )
    )
    config.resolve(cfg)
    assert 'pretrained' not in cfg
    assert cfg.model.backbone == dict(arch='base', patch_size=14)
    assert cfg.model.decode_head.in_channels == 9  # not the backbone's width before either


@pytest.mark.parametrize(
    'pretrained, message',
    [
        ("dict(backbones=dict(arch='base'))", r"pretrained: a dict of .* found \['backbones'\]"),
        ("'weights.pth'", r"pretrained: a dict of .* found 'weights\.pth'"),
    ],
)
def test_a_pretrained_of_another_kind_is_refused(tmp_path, pretrained, message):
    path = tmp_path / 'leaf.py'
    base = CONFIGS / 'vpt/vit-b_deep_imagefolder.py'
    path.write_text(f"_base_ = '{base}'\npretrained = {pretrained}\n")
    with pytest.raises(UserError, match=message):
        config.load(str(path))


def test_without_a_model_it_is_refused(tmp_path):
    path = tmp_path / 'leaf.py'
    path.write_text(f"_base_ = '{CONFIGS}/_base_/backbones/mae_vit-b.py'\n")
    with pytest.raises(UserError, match=r'pretrained: .* list a file of configs/_base_/models'):
        config.load(str(path))


def test_the_printed_config_is_plain(tmp_path, capfd):
    """print_config's copy needs neither vpt_dense's config reader nor the files it came from."""
    saved = tmp_path / 'plain.py'
    path = CONFIGS / 'vpt/vit-b_clip_deep_imagefolder.py'
    outcome = run_tool(capfd, 'print_config', path, 'model.backbone', '--save-path', saved)
    assert (outcome.code, outcome.err) == (0, '')
    assert "act_cfg=dict(type='mmpretrain.QuickGELU')" in outcome.out
    plain = Config.fromfile(saved)
    assert 'pretrained' not in plain
    in_scope('mmpretrain')
    with torch.device('meta'):
        model = MODELS.build(plain.model)
    assert model.backbone.layers[0].ln1.eps == 1e-5


TINY = """
model['backbone'].update(
    arch=dict(
        _delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=128),
    init_cfg=dict(checkpoint='{weights}'),
)
dataset = dict(data_root='{data}')
work_dir = '{work_dir}'
_train = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=56), dict(type='PackInputs')]
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(pipeline=_train))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=_train))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=_train))
train_cfg = dict(max_epochs=1)
"""


def test_a_named_backbone_trains_and_its_dumped_config_needs_no_reader(tmp_path, capfd):
    """DINOv2's settings on a tiny architecture: tools/train.py, then mmpretrain's own reader."""
    from mmpretrain.apis import get_model

    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('iris', 'rose', 'tulip'):
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            pixels = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'data' / split / name / 'a.png')
    theirs = timm.models.VisionTransformer(
        img_size=518, patch_size=14, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2,
        init_values=1e-5, num_classes=0,
    )  # fmt: skip
    weights = tmp_path / 'model.safetensors'
    save_file(randomise(theirs).state_dict(), weights)
    places = dict(weights=weights, data=tmp_path / 'data', work_dir=tmp_path / 'work')
    path = leaf(tmp_path, 'dinov2_vit-b', TINY.format(**places))
    outcome = run_tool(capfd, 'train', path)
    assert outcome.code == 0, outcome.err
    in_scope('mmpretrain')
    dumped = Config.fromfile(tmp_path / 'work' / 'leaf.py')
    assert 'pretrained' not in dumped
    assert dumped.model.head.in_channels == 64
    model = get_model(dumped, pretrained=str(tmp_path / 'work' / 'epoch_1.pth')).eval()
    backbone = model.backbone
    assert backbone.prompt.tokens.shape == (4, 10, 64)
    assert torch.equal(backbone.pos_embed, theirs.pos_embed)
    backbone.prompt, backbone.keys_values_layers = None, []
    x = images(1, 3, 518, 518)
    with torch.no_grad():
        expected = theirs.eval().forward_features(x)[:, 0]
        torch.testing.assert_close(backbone(x)[0], expected, rtol=1e-4, atol=1e-4)


def test_every_recipe_names_its_backbone():
    paths = [CONFIGS / path for path in RECIPES if path.count('_') == 2 and 'vit-' in path]
    paths = [path for path in paths if path.stem.endswith('_imagefolder')]
    assert len(paths) > 10
    for path in paths:
        arch, family, _ = path.stem.split('_')
        assert f'/backbones/{family}_{arch}.py' in path.read_text()


def test_dinov2_in_segmentation_sees_whole_patches_of_14_pixels(mmseg_scope):
    """Training crops and test windows, of a 683x512 photograph and of a narrow strip."""
    cfg = config.load(str(CONFIGS / 'vpt/setr_vit-l_dinov2_deep_ade20k.py'))
    for size in (cfg.train_dataloader.dataset.pipeline[3].crop_size, cfg.model.test_cfg.crop_size,
                 cfg.model.data_preprocessor.size, cfg.model.backbone.img_size):  # fmt: skip
        assert tuple(size) == (518, 518)
    tiny = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=32)
    cfg.model.backbone.update(arch=tiny, out_indices=[0, 1, 2, 3], init_cfg=None)
    cfg.model.decode_head.update(in_channels=32, channels=8, num_classes=3)
    del cfg.model['auxiliary_head']
    model = MODELS.build(cfg.model).eval()
    seen = []
    model.backbone.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    for height, width in ((518, 691), (100, 518)):
        sample = SegDataSample(metainfo=dict(ori_shape=(height, width), img_shape=(height, width)))
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        with torch.no_grad():
            (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
        assert result.pred_sem_seg.shape == (height, width)
    sizes = {tuple(shape[2:]) for shape in seen}
    assert sizes == {(518, 518), (112, 518)}


@pytest.mark.parametrize('place', ['data_preprocessor.size', 'test_cfg.crop_size'])
def test_crops_of_another_patch_size_are_refused(place):
    path = str(CONFIGS / 'vpt/setr_vit-l_dinov2_deep_ade20k.py')
    preflight.check_model(config.load(path).model)
    cfg = config.load(path, {f'model.{place}': (512, 512)})
    with pytest.raises(UserError, match=rf'model\.{place} \(512, 512\) .* patch_size 14'):
        preflight.check_model(cfg.model)

"""Weights of other libraries: built there, saved as there, loaded here, features compared.

docs/weights.md says what each of these proves.
"""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmengine.utils import digit_version
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer, _load_weights, checkpoint_filter_fn
from utils import images, randomise, tiny_vit

from vpt_dense.errors import UserError
from vpt_dense.weights.pretrained import resize_patch_embed

WIDTH = 64
ARCH = dict(embed_dims=WIDTH, num_layers=2, num_heads=4, feedforward_channels=128)
SWIGLU_ARCH = {**ARCH, 'feedforward_channels': 256}  # of which mmpretrain makes 176
SWIGLU = dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=2 * 176 / WIDTH)
SCALED = dict(layer_scale_init_value=1e-5)


def home(img_size=224, patch_size=16, cls=VisionTransformer, **kwargs) -> torch.nn.Module:
    """A tiny ViT of timm with random weights, head included."""
    sizes = dict(embed_dim=WIDTH, depth=2, num_heads=4, mlp_ratio=2, num_classes=10)
    model = cls(img_size=img_size, patch_size=patch_size, **{**sizes, **kwargs})
    return randomise(model).eval()


def vit(**kwargs) -> torch.nn.Module:
    """The same architecture here."""
    cfg = dict(arch=ARCH, img_size=224, patch_size=16, out_type='raw')
    return tiny_vit(**{**cfg, **kwargs}).eval()


def resized(positions: torch.Tensor, extra: int, grid: tuple, mode: str = 'bicubic'):
    """A position embedding of a square grid for another, by the definition."""
    side = round((positions.shape[1] - extra) ** 0.5)
    rows = positions[:, extra:].double().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    rows = F.interpolate(rows, grid, mode=mode, align_corners=False).flatten(2).transpose(1, 2)
    return torch.cat((positions[:, :extra].double(), rows), 1).float()


def other_size(theirs: torch.nn.Module, size: tuple, extra: int, **kwargs) -> torch.nn.Module:
    """The model of timm for images of another size: only its position embedding changes."""
    patch = theirs.patch_embed.patch_size
    model = home(size, patch[0], cls=type(theirs), **kwargs)
    state = theirs.state_dict()
    grid = (size[0] // patch[0], size[1] // patch[1])
    state['pos_embed'] = resized(state['pos_embed'], extra, grid)
    model.load_state_dict(state)
    return model.eval()


def assert_same_features(ours, theirs, size, features='forward_features'):
    x = images(2, 3, *size)
    with torch.no_grad():
        expected = getattr(theirs, features)(x)
        torch.testing.assert_close(ours(x)[0], expected, rtol=1e-5, atol=1e-5)


def write(state, path) -> str:
    (save_file if path.suffix == '.safetensors' else torch.save)(state, path)
    return str(path)


# --- timm, and what bears its names ----------------------------------------------------------

#: name: (arguments of timm's model, arguments of ours, rows of the position embedding before the
#: grid). Patches of 14: the DINOv2 and CLIP ViT-L case.
TIMM = {
    'plain': ({}, {}, 1),
    'no qkv bias': (dict(qkv_bias=False), dict(qkv_bias=False), 1),
    'CLIP-like': (dict(pre_norm=True, patch_size=14), dict(pre_norm=True, patch_size=14), 1),
    'DINOv2': (dict(init_values=1e-5, patch_size=14), dict(patch_size=14, **SCALED), 1),
    'DINOv2 g': (
        dict(init_values=1e-5, patch_size=14, **SWIGLU),
        dict(arch=SWIGLU_ARCH, patch_size=14, layer_cfgs=dict(ffn_type='swiglu_fused'), **SCALED),
        1,
    ),
    'DINOv2 reg4': (
        dict(init_values=1e-5, patch_size=14, reg_tokens=4, no_embed_class=True),
        dict(patch_size=14, num_registers=4, **SCALED),
        0,
    ),
    'registers with positions': (dict(reg_tokens=4), dict(num_registers=4), 5),
    'registers without cls': (
        dict(reg_tokens=4, class_token=False, global_pool='avg', fc_norm=False),
        dict(num_registers=4, with_cls_token=False),
        4,
    ),
    'DeiT III': (dict(init_values=1e-5, no_embed_class=True), SCALED, 0),
    'DeiT distilled': (
        dict(cls=timm.models.deit.VisionTransformerDistilled), dict(num_registers=1), 2
    ),
}  # fmt: skip


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('case', TIMM)
def test_timm(tmp_path, case, suffix):
    theirs_kwargs, ours_kwargs, extra = TIMM[case]
    theirs = home(**theirs_kwargs)
    checkpoint = write(theirs.state_dict(), tmp_path / f'w{suffix}')
    ours = vit(**ours_kwargs)
    ours.load_base(checkpoint)
    assert_same_features(ours, theirs, (224, 224))
    # An image that is not square, 16 x 12 or 14 x 10 patches: by a backbone of 224 x 224, and by
    # one that was built for this size.
    size = (224, 168 if 'patch_size' in ours_kwargs else 160)
    own = {key: value for key, value in theirs_kwargs.items() if key not in ('patch_size', 'cls')}
    at_size = other_size(theirs, size, extra, **own)
    assert_same_features(ours, at_size, size)
    ours = vit(**ours_kwargs, img_size=size)
    report = ours.load_base(checkpoint)
    assert f'x{size[1] // theirs.patch_embed.patch_size[1]} (bicubic)' in report
    assert_same_features(ours, at_size, size)


@pytest.mark.parametrize('pool', ['avg_featmap', 'featmap'])
def test_the_norm_after_pooling(tmp_path, pool):
    """A fine-tuned MAE (fc_norm): loaded for pooled features, left out by name for maps."""
    theirs = home(global_pool='avg', fc_norm=True)
    ours = vit(out_type=pool, final_norm=False)
    report = ours.load_base(write(theirs.state_dict(), tmp_path / 'w.pth'))
    x = images(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.forward_features(x)
        if pool == 'avg_featmap':
            assert 'fc_norm' not in report
            expected = theirs.forward_head(expected, pre_logits=True)
        else:
            assert 'left out: fc_norm.weight, fc_norm.bias, head' in report
            expected = expected[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
        torch.testing.assert_close(ours(x)[0], expected, rtol=1e-5, atol=1e-5)


def with_prefix(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: dict) -> dict:
    """Other values under the same names: taking the wrong network cannot pass."""
    return {name: tensor + 1 for name, tensor in state.items()}


def mae(state):
    decoder = {f'decoder_blocks.0.{name}': torch.ones(1) for name in ('attn.qkv.weight', 'norm1')}
    heads = {'mask_token': torch.ones(1), 'decoder_pos_embed': torch.ones(1)}
    return {'model': {**state, **decoder, **heads}, 'optimizer': {}, 'epoch': 799}


def dino(state):
    head = {'head.mlp.0.weight': torch.ones(1), 'head.last_layer.weight_g': torch.ones(1)}
    student = with_prefix('module.', {**with_prefix('backbone.', other(state)), **head})
    teacher = {**with_prefix('backbone.', state), **head}
    return {'student': student, 'teacher': teacher, 'epoch': 100}


def moco(state):
    head = {'head.0.weight': torch.ones(1), 'head.1.num_batches_tracked': torch.ones(1)}
    return {
        'arch': 'vit_base',
        'state_dict': {
            **with_prefix('module.base_encoder.', {**state, **head}),
            **with_prefix('module.momentum_encoder.', {**other(state), **head}),
            'module.predictor.0.weight': torch.ones(1),
        },
    }


def without_head(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith('head')}


#: name: (the authors' file from timm's tensors, what the report must say)
PUBLISHED = {
    'MAE': (mae, ('MAE layout, from model', 'decoder_pos_embed')),
    'DINO': (dino, ('timm layout, from teacher[backbone]', 'head.mlp.0.weight')),
    'MoCo v3': (
        moco,
        ('MoCo v3 layout, from state_dict[module.base_encoder]', 'module.momentum_encoder.* (32)'),
    ),
    'DeiT': (lambda state: {'model': state, 'model_ema': other(state)}, ('from model)',)),
    'DDP': (lambda state: with_prefix('module.', state), ('from [module]',)),
    'backbone': (lambda state: {'state_dict': with_prefix('backbone.', state)}, ('[backbone]',)),
    'encoder': (lambda state: with_prefix('encoder.', state), ('[encoder]',)),
    'compiled EMA': (
        lambda state: {'model_ema': with_prefix('module._orig_mod.', state)}, ('model_ema[',)
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', PUBLISHED)
def test_published_wrappings(tmp_path, case):
    wrap, said = PUBLISHED[case]
    theirs = home()
    ours = vit()
    report = ours.load_base(write(wrap(without_head(theirs.state_dict())), tmp_path / 'w.pth'))
    assert_same_features(ours, theirs, (224, 224))
    assert_same_features(ours, other_size(theirs, (224, 160), extra=1), (224, 160))
    assert all(words in report for words in said), report
    assert '\n' not in report


def test_dinov2_as_published(tmp_path):
    """register_tokens beside a position row for cls, mask_token: timm's converter is the oracle."""
    sizes = dict(patch_size=14, init_values=1e-5, reg_tokens=4, no_embed_class=True)
    theirs = home(**sizes)
    state = without_head(theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    cls_row = torch.randn(1, 1, WIDTH, generator=generator)
    state['register_tokens'] = state.pop('reg_token')
    state['pos_embed'] = torch.cat((cls_row, state['pos_embed']), 1)
    state['mask_token'] = torch.zeros(1, WIDTH)
    checkpoint = write(state, tmp_path / 'w.pth')
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs), strict=False)
    ours = vit(patch_size=14, num_registers=4, **SCALED)
    report = ours.load_base(checkpoint)
    assert 'DINOv2 layout' in report and 'left out: mask_token' in report
    assert_same_features(ours, theirs, (224, 224))
    sizes.pop('patch_size')
    assert_same_features(ours, other_size(theirs, (224, 168), extra=0, **sizes), (224, 168))


@pytest.mark.parametrize('chunks', [False, True])
def test_dinov2_giant_as_published(tmp_path, chunks):
    """SwiGLU as w12 and w3; and the blocks in chunks, as FSDP leaves them in a teacher."""
    theirs = home(patch_size=14, init_values=1e-5, **SWIGLU)
    published = {
        name.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3'): tensor
        for name, tensor in without_head(theirs.state_dict()).items()
    }
    published['mask_token'] = torch.zeros(1, WIDTH)
    state = checkpoint_filter_fn(dict(published), theirs)
    theirs.load_state_dict(state, strict=False)
    if chunks:
        published = {
            name.replace('blocks.', 'blocks.0.').replace('blocks.0.1.', 'blocks.1.1.'): tensor
            for name, tensor in published.items()
        }
        published = {
            'teacher': {**with_prefix('backbone.', published), 'dino_head.mlp.0.weight':
                        torch.ones(1), 'ibot_head.mlp.0.weight': torch.ones(1)}
        }
    ours = vit(arch=SWIGLU_ARCH, patch_size=14, layer_cfgs=dict(ffn_type='swiglu_fused'), **SCALED)
    report = ours.load_base(write(published, tmp_path / 'w.pth'))
    assert ('DINOv2 in chunks' if chunks else 'DINOv2 layout') in report
    assert_same_features(ours, theirs, (224, 224))
    at_size = other_size(theirs, (224, 168), extra=1, init_values=1e-5, **SWIGLU)
    assert_same_features(ours, at_size, (224, 168))


def test_deit3_as_published(tmp_path):
    sizes = dict(init_values=1e-5, no_embed_class=True)
    theirs = home(**sizes)
    published = {
        name.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): tensor
        for name, tensor in theirs.state_dict().items()
    }
    state = checkpoint_filter_fn({'model': dict(published)}, theirs, adapt_layer_scale=True)
    theirs.load_state_dict(state)
    ours = vit(**SCALED)
    report = ours.load_base(write({'model': published}, tmp_path / 'w.pth'))
    assert 'DeiT III layout' in report and 'no position of the cls token: zero' in report
    assert_same_features(ours, theirs, (224, 224))
    assert_same_features(ours, other_size(theirs, (224, 160), extra=0, **sizes), (224, 160))


# --- Google's files --------------------------------------------------------------------------


def google_file(path, big_vision: bool = False, prefix: str = '') -> str:
    """An .npz file with the names and axes that Google publishes, random values."""
    rng = np.random.default_rng(0)
    heads, depth = 4, WIDTH // 4
    mha, norm2, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
    shapes = {
        'cls': (1, 1, WIDTH),
        'embedding/kernel': (16, 16, 3, WIDTH),
        'embedding/bias': (WIDTH,),
        'pos_embedding' if big_vision else 'Transformer/posembed_input/pos_embedding':
            (1, 196 if big_vision else 197, WIDTH),
        'Transformer/encoder_norm/scale': (WIDTH,),
        'Transformer/encoder_norm/bias': (WIDTH,),
        'head/kernel': (WIDTH, 10),
        'head/bias': (10,),
        'pre_logits/kernel': (WIDTH, WIDTH),
        'pre_logits/bias': (WIDTH,),
    }  # fmt: skip
    for i in range(2):
        block = f'Transformer/encoderblock_{i}'
        attention = f'{block}/MultiHeadDotProductAttention_{mha}'
        for name in ('query', 'key', 'value'):
            shapes[f'{attention}/{name}/kernel'] = (WIDTH, heads, depth)
            shapes[f'{attention}/{name}/bias'] = (heads, depth)
        shapes[f'{attention}/out/kernel'] = (heads, depth, WIDTH)
        shapes[f'{attention}/out/bias'] = (WIDTH,)
        for norm in (0, norm2):
            shapes[f'{block}/LayerNorm_{norm}/scale'] = (WIDTH,)
            shapes[f'{block}/LayerNorm_{norm}/bias'] = (WIDTH,)
        shapes[f'{block}/MlpBlock_{mlp}/Dense_0/kernel'] = (WIDTH, 128)
        shapes[f'{block}/MlpBlock_{mlp}/Dense_0/bias'] = (128,)
        shapes[f'{block}/MlpBlock_{mlp}/Dense_1/kernel'] = (128, WIDTH)
        shapes[f'{block}/MlpBlock_{mlp}/Dense_1/bias'] = (WIDTH,)
    arrays = {
        prefix + name: (rng.normal(size=shape) * 0.1).astype(np.float32)
        for name, shape in shapes.items()
    }
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ('big_vision', 'prefix'),
    [(False, ''), (False, 'opt/target/'), (True, ''), (True, 'params/')],
)
def test_google_files(tmp_path, big_vision, prefix):
    """timm's reader of these files is the oracle. In big_vision cls has no position."""
    checkpoint = google_file(tmp_path / 'ViT-B_16.npz', big_vision, prefix)
    theirs = home(no_embed_class=big_vision)
    try:
        _load_weights(theirs, checkpoint)
    except KeyError:
        if digit_version(timm.__version__) >= digit_version('1.0.31'):
            raise
        pytest.skip("this release of timm does not read such a file")
    ours = vit()
    report = ours.load_base(checkpoint)
    assert ('big_vision npz' if big_vision else 'Google npz') in report
    assert ('no position of the cls token: zero' in report) == big_vision
    assert 'head' in report.partition('left out:')[2] and 'pre_logits' in report
    assert_same_features(ours, theirs, (224, 224))
    size = (224, 160)
    at_size = other_size(theirs, size, extra=not big_vision, no_embed_class=big_vision)
    ours = vit(img_size=size)
    ours.load_base(checkpoint)
    assert_same_features(ours, at_size, size)


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / 'w.npz', a=np.array([{'code': 1}], dtype=object))
    with pytest.raises(UserError, match=r'w\.npz is no \.npz file of plain arrays .*unpickled'):
        vit().load_base(str(tmp_path / 'w.npz'))
    (tmp_path / 'w.npz').write_bytes((tmp_path / 'w.npz').read_bytes()[:100])
    with pytest.raises(UserError, match=r'w\.npz is truncated'):
        vit().load_base(str(tmp_path / 'w.npz'))


# --- OpenMMLab -------------------------------------------------------------------------------


@pytest.mark.parametrize('patch_bias', [False, True])
def test_mmseg(tmp_path, patch_bias):
    """mmseg's ViT, by default without a patch bias: zero, as it computes."""
    import mmseg.models  # noqa: F401 - registers

    def build(size):
        cfg = dict(
            type='mmseg.VisionTransformer', img_size=size, patch_size=16, embed_dims=WIDTH,
            num_layers=2, num_heads=4, mlp_ratio=2, patch_bias=patch_bias, final_norm=True,
            interpolate_mode='bicubic', norm_cfg=dict(type='LN', eps=1e-6),
        )  # fmt: skip
        model = randomise(MODELS.build(cfg))
        model.eval()
        return model

    theirs = build((224, 224))
    state = {'state_dict': {**with_prefix('backbone.', theirs.state_dict()),
                            'decode_head.conv_seg.weight': torch.zeros(2, WIDTH, 1, 1)}}
    ours = vit(out_type='featmap')
    report = ours.load_base(write(state, tmp_path / 'w.pth'))
    assert 'mmsegmentation layout' in report and 'left out: decode_head.conv_seg' in report
    assert ('patch_embed.projection.bias zero' in report) != patch_bias
    for size in ((224, 224), (224, 160)):
        x = images(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-5, atol=1e-5)


def test_mmpretrain_with_all_its_parts(tmp_path):
    kwargs = dict(arch=SWIGLU_ARCH, img_size=224, patch_size=14, pre_norm=True, **SCALED,
                  layer_cfgs=dict(ffn_type='swiglu_fused'), out_type='avg_featmap')
    theirs = randomise(MODELS.build(dict(type='mmpretrain.VisionTransformer', **kwargs)))
    theirs.eval()
    ours = vit(**kwargs)
    ours.load_base(write(theirs.state_dict(), tmp_path / 'w.pth'))
    for size in ((224, 224), (224, 168)):
        x = images(2, 3, *size)
        with torch.no_grad():
            assert torch.equal(ours(x)[0], theirs(x)[0])


# --- fitting ---------------------------------------------------------------------------------


@pytest.mark.parametrize('sizes', [(14, 16), (16, 14), (16, 32), (16, 8), ((8, 8), (8, 16))])
def test_patch_sizes(tmp_path, sizes):
    old, new = (size if isinstance(size, tuple) else (size, size) for size in sizes)
    kernel = images(WIDTH, 3, *old)
    ours = resize_patch_embed(kernel, new)
    # timm computes the pseudo-inverse in float32
    expected = resample_patch_embed(kernel, list(new))
    torch.testing.assert_close(ours.float(), expected, rtol=1e-3, atol=1e-3)
    if new[0] >= old[0]:  # patches enlarged: the same answer to the same content
        x = images(5, 3, *old).double()
        larger = F.interpolate(x, new, mode='bicubic', antialias=True)
        torch.testing.assert_close(
            F.conv2d(larger, ours), F.conv2d(x, kernel.double()), rtol=1e-9, atol=1e-9
        )


def test_patch_size_14_into_16(tmp_path):
    theirs = home(patch_size=14)
    ours = vit(patch_size=16)
    report = ours.load_base(write(theirs.state_dict(), tmp_path / 'w.pth'))
    assert 'patches 14x14 -> 16x16 pixels (pseudo-inverse resize)' in report
    assert 'position embedding 16x16 -> 14x14 (bicubic)' in report
    assert torch.equal(
        ours.patch_embed.projection.weight,
        resize_patch_embed(theirs.patch_embed.proj.weight, (16, 16)).float(),
    )
    at_home = home(patch_size=16)
    state = theirs.state_dict()
    state['patch_embed.proj.weight'] = ours.patch_embed.projection.weight
    state['pos_embed'] = resized(state['pos_embed'], 1, (14, 14))
    at_home.load_state_dict(state)
    assert_same_features(ours, at_home, (224, 224))


def with_init(checkpoint: str, **options) -> dict:
    return dict(type='Pretrained', checkpoint=checkpoint, **options)


def test_a_grid_that_is_not_square_has_to_be_named(tmp_path):
    """24 x 6 rows have the number of a square grid of 12: only the config can tell."""
    theirs = home(img_size=(384, 96))
    checkpoint = write(theirs.state_dict(), tmp_path / 'w.pth')
    ours = vit(img_size=(384, 96), init_cfg=with_init(checkpoint, source_grid=(24, 6)))
    ours.load_base(checkpoint)
    assert_same_features(ours, theirs, (384, 96))
    taken_for_square = vit(img_size=(384, 96))
    report = taken_for_square.load_base(checkpoint)
    assert '12x12 -> 24x6' in report

    checkpoint = write(home(img_size=(224, 160)).state_dict(), tmp_path / 'v.pth')
    with pytest.raises(UserError, match='not square: set init_cfg.source_grid'):
        vit(img_size=(224, 160)).load_base(checkpoint)
    ours = vit(img_size=(224, 160), init_cfg=with_init(checkpoint, source_grid=(14, 11)))
    with pytest.raises(UserError, match='not the 14x11 of init_cfg.source_grid'):
        ours.init_weights()


def test_what_may_stay_random_has_to_be_listed(tmp_path):
    """MAE's encoder has a norm before the pooling, and none after it."""
    theirs = home()
    checkpoint = write(theirs.state_dict(), tmp_path / 'w.pth')
    kwargs = dict(out_type='avg_featmap', final_norm=False)
    with pytest.raises(UserError, match=r'2 missing: ln2\.weight, ln2\.bias'):
        vit(**kwargs).load_base(checkpoint)
    init = with_init(checkpoint, allow_missing=[r'^ln2\.'])
    ours = vit(**kwargs, init_cfg=init)
    report = ours.load_base(checkpoint)
    assert 'created: ln2.weight, ln2.bias' in report
    assert 'left out: norm.weight, norm.bias, head' in report


OPTIONS = {
    'typo': (dict(allow_mising=['x']), r"no key 'allow_mising'; did you mean 'allow_missing'"),
    'matches nothing': (dict(allow_missing=['ln9']), r"allow_missing: 'ln9' matches no tensor"),
    'not a list': (dict(allow_missing='ln1'), r"allow_missing must be a list .*'ln1'"),
    'no expression': (dict(allow_missing=['(']), r"allow_missing: '\(' is not a valid regular"),
    'grid': (dict(source_grid=24), r'source_grid must be \(rows, columns\), found 24'),
    'prefix': (dict(prefix='student'), r"prefix='student\.', but backbones of .* begin with ''"),
}


@pytest.mark.parametrize('case', OPTIONS)
def test_wrong_options(tmp_path, case):
    options, message = OPTIONS[case]
    checkpoint = write(home().state_dict(), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=message):
        vit(init_cfg=with_init(checkpoint, **options)).init_weights()


def test_one_of_several_backbones(tmp_path):
    theirs = home()
    state = theirs.state_dict()
    both = {**with_prefix('image_a.', other(state)), **with_prefix('image_b.', state)}
    checkpoint = write(both, tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'2 backbones: image_a\., image_b\.; .*init_cfg\.prefix'):
        vit().load_base(checkpoint)
    ours = vit(init_cfg=with_init(checkpoint, prefix='image_b'))
    ours.init_weights()
    assert_same_features(ours, theirs, (224, 224))


def test_half_precision_files_are_widened_and_float64_is_rounded(tmp_path):
    theirs = home()
    for dtype in (torch.bfloat16, torch.float64):
        state = {name: tensor.to(dtype) for name, tensor in theirs.state_dict().items()}
        ours = vit()
        ours.load_base(write(state, tmp_path / 'w.pth'))
        assert torch.equal(ours.cls_token, theirs.cls_token.to(dtype).float())


def beit(path):
    model = timm.models.beit.Beit(
        img_size=32, patch_size=16, embed_dim=WIDTH, depth=2, num_heads=4, use_rel_pos_bias=True
    )
    return write(model.state_dict(), path)


def scaled(path):
    return write(home(init_values=1e-5).state_dict(), path)


def registers(path):
    return write(home(reg_tokens=4).state_dict(), path)


def pre_norm(path):
    return write(home(pre_norm=True).state_dict(), path)


def fine_tuned(path):
    return write(home(global_pool='avg').state_dict(), path)


def swiglu(path):
    state = home(**SWIGLU).state_dict()
    return write({n.replace('fc1', 'w12').replace('fc2', 'w3'): t for n, t in state.items()}, path)


def wider_mlp(path):
    return write(home(mlp_ratio=4).state_dict(), path)


def poisoned(path):
    state = home().state_dict()
    state['blocks.1.norm1.bias'][3] = float('nan')
    return write(state, path)


def quantised(path):
    state = home().state_dict()
    state['cls_token'] = state['cls_token'].to(torch.int8)
    return write(state, path)


def flat_kernel(path):
    path = path.with_suffix('.npz')
    with np.load(google_file(path)) as content:
        arrays = dict(content)
    arrays['embedding/kernel'] = arrays['embedding/kernel'].reshape(-1, WIDTH)
    np.savez(path, **arrays)
    return str(path)


HINTS = {
    'NaN': (poisoned, {}, r'1 with NaN, infinite or integer values: layers\.1\.ln1\.bias'),
    'quantised': (quantised, {}, r'1 with NaN, infinite or integer values: cls_token'),
    'axes': (flat_kernel, {}, r'embedding\.kernel \(768, 64\) cannot become patch_embed'),
    'BEiT': (beit, {}, r'BEiT format\) cannot be loaded: .*relative position bias'),
    'layer scale': (scaled, {}, r'unexpected: layers\.0\.attn\.gamma1.*layer_scale_init_value=1e'),
    'no layer scale': (pre_norm, SCALED, r'layer_scale_init_value=0'),
    'registers': (registers, {}, r'unexpected: register_tokens\. Set num_registers=4 in model'),
    'norm before': (pre_norm, {}, r'pre_norm=True'),
    'no final norm': (fine_tuned, {}, r'2 missing: ln1\.weight.*final_norm=False'),
    'SwiGLU': (swiglu, {}, r"unexpected: .*ffn\.w12.*layer_cfgs=dict\(ffn_type='swiglu_fused'\)"),
    'MLP': (wider_mlp, {}, r'ffn\.layers\.0\.0\.weight \(256, 64\) instead of \(128, 64\)'),
}  # fmt: skip


@pytest.mark.parametrize('case', HINTS)
def test_what_does_not_fit_says_what_to_set(tmp_path, case):
    make, kwargs, message = HINTS[case]
    checkpoint = make(tmp_path / 'w.pth')
    ours = vit(**kwargs)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(UserError, match=message) as error:
        ours.load_base(checkpoint)
    assert '\n' not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


# --- registers and prompts -------------------------------------------------------------------


@pytest.mark.parametrize('out_type', ['cls_token', 'featmap', 'avg_featmap', 'raw'])
@pytest.mark.parametrize('deep', [False, True])
def test_prompts_beside_registers(deep, out_type):
    """Prompts as keys and values alone stay exact; outputs hold no prompts."""
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=deep)
    kwargs = dict(
        img_size=64, out_type=out_type, prompt=prompt, num_registers=3, out_indices=[0, 1], **SCALED
    )
    models = [randomise(vit(**kwargs, prompts_as=way)) for way in ('tokens', 'keys_values')]
    x = images(2, 3, 64, 48).double()
    outs = [model.double()(x) for model in models]
    for one, another in zip(*outs, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-10, atol=1e-10)
    shape = dict(cls_token=(2, WIDTH), avg_featmap=(2, WIDTH), featmap=(2, WIDTH, 4, 3),
                 raw=(2, 1 + 3 + 12, WIDTH))[out_type]
    assert outs[0][0].shape == shape


@pytest.mark.parametrize('number', [-1, 1.5, True, '4'])
def test_wrong_numbers_of_registers(number):
    with pytest.raises(ValueError, match='num_registers must be an integer of at least 0'):
        vit(num_registers=number)

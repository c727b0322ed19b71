"""Formats of pretrained weights: CLIP, Hugging Face transformers, the original VPT, Swin.

Each model is built in its home library with random weights, saved as that library saves, loaded
here and compared.
"""

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import MODELS
from mmseg.models.backbones import SwinTransformer as MMSegSwin
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from utils import TINY_ARCH, images, randomise, tiny_vit

from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.weights.original import load_vpt

TOLERANCE = dict(rtol=1e-5, atol=1e-5)
REFERENCE = Path(__file__).parent / 'data' / 'reference'
QUICK = dict(layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')))
CLIP = dict(pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5), out_type='raw')
#: 224 pixels (the size of training here) and a size that is not square, in patches of 16.
SIZES = [(224, 224), (160, 288)]


def vit(**kwargs) -> nn.Module:
    """Our tiny ViT for images of 224, patches of 16, in eval mode."""
    cfg = dict(img_size=224, patch_size=16, out_type='raw')
    return randomise(tiny_vit(**{**cfg, **kwargs}), seed=9).eval()


# --- CLIP ------------------------------------------------------------------------------------


def open_clip_model(quick_gelu: bool = True, **kwargs) -> nn.Module:
    """A tiny CLIP, both towers; the architecture of the other tests."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        layers=4, width=64, head_width=16, mlp_ratio=2, patch_size=16, image_size=224, **kwargs
    )
    text = CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=2, layers=2)
    return randomise(CLIP(32, vision, text, quick_gelu=quick_gelu)).eval()


def clip_tokens(visual: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """All tokens of open_clip's image tower after its last norm (its own forward pools them).

    It knows one size of image; for others its position embedding is resized as open_clip's
    ``resize_pos_embed`` does when it loads weights, without antialiasing.
    """
    x = visual.conv1(x)
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat((visual.class_embedding.expand(len(x), 1, -1), x), dim=1)
    positions = visual.positional_embedding
    side = math.isqrt(len(positions) - 1)
    if grid != (side, side):
        image = positions[1:].T.unflatten(1, (side, side))[None]
        image = nn.functional.interpolate(image, grid, mode='bicubic', align_corners=False)
        positions = torch.cat((positions[:1], image[0].flatten(1).T))
    return visual.ln_post(visual.transformer(visual.ln_pre(x + positions)))


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('quick_gelu', [True, False])
@pytest.mark.parametrize('part', ['whole', 'tower', 'module.'])
def test_clip(tmp_path, size, quick_gelu, part):
    theirs = open_clip_model(quick_gelu)
    path = tmp_path / 'open_clip_model.safetensors'
    state = theirs.visual.state_dict() if part == 'tower' else theirs.state_dict()
    if part == 'module.':  # as open_clip's own training saves
        path = tmp_path / 'epoch_32.pt'
        state = {f'module.{name}': tensor for name, tensor in state.items()}
        torch.save({'epoch': 32, 'name': 'run', 'state_dict': state}, path)
    else:
        save_file(state, path)
    ours = vit(**CLIP, **(QUICK if quick_gelu else {}))
    report = ours.load_base(str(path))
    assert ('CLIP image tower layout' if part == 'tower' else 'CLIP layout') in report
    assert 'proj' in report.partition('left out:')[2]
    x = images(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], clip_tokens(theirs.visual, x), **TOLERANCE)
        if size == (224, 224):  # open_clip's own forward: cls after the norm, then the projection
            pooled = ours(x)[0][:, 0] @ theirs.visual.proj
            torch.testing.assert_close(pooled, theirs.visual(x), **TOLERANCE)


def test_clip_with_layer_scale(tmp_path):
    theirs = open_clip_model(ls_init_value=0.5)
    save_file(theirs.state_dict(), tmp_path / 'clip.safetensors')
    ours = vit(**CLIP, **QUICK, layer_scale_init_value=1e-5)
    ours.load_base(str(tmp_path / 'clip.safetensors'))
    x = images(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], clip_tokens(theirs.visual, x), **TOLERANCE)


def test_openais_torchscript_archive(tmp_path):
    """OpenAI's published files hold code beside the tensors: refused, with the way out."""
    path = tmp_path / 'ViT-B-16.pt'
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(UserError, match=r'TorchScript.*timm://vit_base_patch16_clip') as error:
        vit(**CLIP).load_base(str(path))
    assert '\n' not in str(error.value)


def test_clip_in_half_precision_comes_in_float32(tmp_path):
    state = {name: tensor.half() for name, tensor in open_clip_model().state_dict().items()}
    save_file(state, tmp_path / 'clip.safetensors')
    ours = vit(**CLIP, **QUICK)
    ours.load_base(str(tmp_path / 'clip.safetensors'))
    weight = ours.layers[0].attn.qkv.weight
    assert weight.dtype == torch.float32
    name = 'visual.transformer.resblocks.0.attn.in_proj_weight'
    assert torch.equal(weight, state[name].float())


# --- Hugging Face transformers ---------------------------------------------------------------

TINY_HF = dict(
    hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
    image_size=224, patch_size=16,
)  # fmt: skip


def hugging_face(kind: str) -> tuple[nn.Module, dict, dict]:
    """A tiny model, what ours needs to be it, and what its forward needs for any size."""
    import transformers as t

    free = dict(interpolate_pos_encoding=True)
    vit_1e12 = dict(norm_cfg=dict(type='LN', eps=1e-12))
    scale = dict(layer_scale_init_value=1.0)
    dino = {**TINY_HF, 'mlp_ratio': 2}
    glu = dict(layer_cfgs=dict(ffn_type='swiglu_fused'))
    text = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    makers = {
        'ViTModel': lambda: (t.ViTModel(t.ViTConfig(**TINY_HF)), vit_1e12, free),
        'ViTForImageClassification': lambda: (
            t.ViTForImageClassification(t.ViTConfig(**TINY_HF)), vit_1e12, free),
        'Dinov2Model': lambda: (t.Dinov2Model(t.Dinov2Config(**dino)), scale, {}),
        'Dinov2Model, SwiGLU': lambda: (
            t.Dinov2Model(t.Dinov2Config(**dino, use_swiglu_ffn=True)), {**scale, **glu}, {}),
        'Dinov2WithRegistersModel': lambda: (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**dino)),
            dict(num_registers=4, **scale), {}),
        'CLIPVisionModel': lambda: (
            t.CLIPVisionModel(t.CLIPVisionConfig(**TINY_HF)), {**CLIP, **QUICK}, free),
        'CLIPVisionModelWithProjection': lambda: (
            t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**TINY_HF)),
            {**CLIP, **QUICK}, free),
        'CLIPModel': lambda: (
            t.CLIPModel(t.CLIPConfig(vision_config=TINY_HF, text_config=text)),
            {**CLIP, **QUICK}, free),
    }  # fmt: skip
    model, ours, arguments = makers[kind]()
    return randomise(model).eval(), ours, arguments


def hf_tokens(model: nn.Module, x: torch.Tensor, arguments: dict) -> torch.Tensor:
    """All tokens after the last norm."""
    for name in ('vit', 'vision_model'):
        model = getattr(model, name, model)
    tokens = model(x, **arguments).last_hidden_state
    # CLIP's norm sees the cls token alone there.
    return model.post_layernorm(tokens) if hasattr(model, 'post_layernorm') else tokens


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
@pytest.mark.parametrize('kind', [
    'ViTModel', 'ViTForImageClassification', 'Dinov2Model', 'Dinov2Model, SwiGLU',
    'Dinov2WithRegistersModel', 'CLIPVisionModel', 'CLIPVisionModelWithProjection', 'CLIPModel',
])  # fmt: skip
def test_hugging_face(tmp_path, monkeypatch, kind, file):
    from safetensors.torch import load_file

    if 'Registers' in kind:  # its position embedding alone is resized with antialiasing
        plain = nn.functional.interpolate
        monkeypatch.setattr(
            nn.functional, 'interpolate', lambda *a, antialias=False, **k: plain(*a, **k)
        )

    theirs, needed, arguments = hugging_face(kind)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / file
    if not path.exists():  # the same names in what older releases wrote
        torch.save(load_file(tmp_path / 'model.safetensors'), path)
    ours = vit(**needed)
    report = ours.load_base(str(path))
    assert 'Hugging Face' in report
    for size in SIZES:
        x = images(2, 3, *size)
        with torch.no_grad():
            expected = hf_tokens(theirs, x, arguments)
            torch.testing.assert_close(ours(x)[0], expected, **TOLERANCE)


def test_hugging_face_clip_of_older_releases(tmp_path):
    """They put the image tower below ``vision_model.`` and saved the row numbers too."""
    theirs, needed, _ = hugging_face('CLIPVisionModel')
    theirs.save_pretrained(tmp_path)
    new, old = vit(**needed), vit(**needed)
    new.load_base(str(tmp_path / 'model.safetensors'))
    state = {f'vision_model.{n.removeprefix("vision_model.")}': t
             for n, t in theirs.state_dict().items() if not n.endswith('position_ids')}  # fmt: skip
    state['vision_model.embeddings.position_ids'] = torch.arange(197)[None]
    torch.save(state, tmp_path / 'pytorch_model.bin')
    report = old.load_base(str(tmp_path / 'pytorch_model.bin'))
    assert 'left out: vision_model.embeddings.position_ids' in report
    assert all(torch.equal(t, old.state_dict()[n]) for n, t in new.state_dict().items())


# --- the original VPT ------------------------------------------------------------------------


def vpt_file(tmp_path: Path, case: str) -> tuple[str, dict, dict]:
    """A reference model of the original under the names that its whole model saves."""
    with safe_open(REFERENCE / f'{case}.safetensors', 'pt') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        meta = file.metadata()
    state = {
        f'enc.transformer.{name.removeprefix("weight/")}': tensor
        for name, tensor in tensors.items()
        if name.startswith('weight/')
    }
    generator = torch.Generator().manual_seed(3)
    state['head.last_layer.weight'] = torch.randn(5, 64, generator=generator)
    state['head.last_layer.bias'] = torch.randn(5, generator=generator)
    path = tmp_path / 'last_model.pth'
    torch.save({'model': state}, path)
    return str(path), tensors, json.loads(meta['prompt_cfg'])


def pretrained(path: str, **kwargs) -> dict:
    return dict(type='Pretrained', checkpoint=path, **kwargs)


@pytest.mark.parametrize(
    'case', ['vit_noprompt', 'vit_shallow_p5', 'vit_deep_p5', 'vit_deep_p5_proj24']
)
def test_vpt(tmp_path, case):
    path, tensors, cfg = vpt_file(tmp_path, case)
    prompt = {}
    if cfg:
        prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=cfg['DEEP'])
        if cfg['PROJECT'] > 0:
            prompt['project_dims'] = cfg['PROJECT']
    ours = tiny_vit(
        prompt=prompt or None,
        out_type='raw',
        init_cfg=pretrained(path, prompts=bool(cfg)),
    ).eval()
    ours.init_weights()
    with torch.no_grad():
        found = ours(tensors['input'].float())[0]
    # Their output holds the prompts after cls, ours never does.
    number = 5 if cfg else 0
    expected = torch.cat((tensors['output'][:, :1], tensors['output'][:, 1 + number :]), dim=1)
    torch.testing.assert_close(found.double(), expected, **TOLERANCE)


def test_vpts_prompts_are_left_out_unless_asked_for(tmp_path):
    path, tensors, _ = vpt_file(tmp_path, 'vit_deep_p5')
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=7, deep=True)
    ours = tiny_vit(prompt=prompt, init_cfg=pretrained(path))
    drawn = ours.prompt.tokens.clone()
    report = ours.load_base(path)
    left_out = report.partition('left out: ')[2]
    assert 'enc.transformer.prompt_embeddings' in left_out or 'enc.*' in left_out
    assert 'created: prompt.tokens' in report
    assert torch.equal(ours.prompt.tokens, drawn)

    with pytest.raises(UserError, match=r'prompt\.tokens \(4, 5, 64\) instead of \(4, 7, 64\)'):
        tiny_vit(prompt=prompt, init_cfg=pretrained(path, prompts=True)).init_weights()
    plain, *_ = vpt_file(tmp_path, 'vit_noprompt')
    with pytest.raises(UserError, match=r'1 missing: prompt\.tokens'):
        tiny_vit(prompt=prompt, init_cfg=pretrained(plain, prompts=True)).init_weights()


def test_vpt_of_a_self_supervised_vit(tmp_path):
    """Prompted MAE and MoCo v3: timm's names below ``enc.``."""
    theirs = randomise(timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2, num_classes=0
    )).eval()  # fmt: skip
    state = {f'enc.{name}': tensor for name, tensor in theirs.state_dict().items()}
    first, deep = torch.randn(1, 5, 64), torch.randn(3, 5, 64)
    state.update({'enc.prompt_embeddings': first, 'enc.deep_prompt_embeddings': deep})
    path = tmp_path / 'model.pth'
    torch.save({'model': state}, path)
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True)
    ours = tiny_vit(prompt=prompt, out_type='raw', init_cfg=pretrained(str(path), prompts=True))
    ours.init_weights()
    assert torch.equal(ours.prompt.tokens, torch.cat((first, deep)))
    ours = tiny_vit(out_type='raw', init_cfg=pretrained(str(path))).eval()
    ours.init_weights()
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs.forward_features(x), **TOLERANCE)


def classifier(num_classes: int = 5, prompt: dict | None = None) -> nn.Module:
    return MODELS.build(dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='vpt_dense.VisionTransformer', arch=TINY_ARCH, img_size=32, patch_size=8,
            prompt=prompt),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=num_classes, in_channels=64),
    )).eval()  # fmt: skip


def test_a_whole_model_of_vpt(tmp_path):
    path, tensors, _ = vpt_file(tmp_path, 'vit_deep_p5')
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True)
    ours = classifier(prompt=prompt)
    assert 'classifier of 5 classes' in load_vpt(ours, path)
    state = torch.load(path, weights_only=True)['model']
    expected = nn.functional.linear(
        tensors['output'][:, 0].float(),
        state['head.last_layer.weight'], state['head.last_layer.bias'])
    with torch.no_grad():
        torch.testing.assert_close(ours(tensors['input'].float(), mode='tensor'), expected,
                                   **TOLERANCE)  # fmt: skip

    before = {name: t.clone() for name, t in ours.state_dict().items()}
    state['head.projection.0.weight'] = torch.zeros(64, 64)
    torch.save({'model': state}, tmp_path / 'mlp.pth')
    for model, file, message in (
        (classifier(3, prompt), path, r'head\.last_layer\.weight is \(5, 64\).*num_classes'),
        (classifier(5), path, 'has prompts, the model has none'),
        (ours, tmp_path / 'mlp.pth', 'a head of several layers has no counterpart'),
    ):
        with pytest.raises(UserError, match=message):
            load_vpt(model, str(file))
    assert all(torch.equal(before[name], t) for name, t in ours.state_dict().items())


# --- Swin ------------------------------------------------------------------------------------

SWIN = dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])


def swin(**kwargs) -> nn.Module:
    """Our tiny Swin for images of 224 and windows of 7, in eval mode."""
    cfg = dict(type='vpt_dense.SwinTransformer', arch=SWIN, img_size=224)
    return randomise(MODELS.build({**cfg, **kwargs}), seed=9).eval()


def timm_swin(**kwargs) -> nn.Module:
    cfg = dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), num_classes=10)
    return randomise(timm.models.SwinTransformer(**{**cfg, **kwargs})).eval()


def microsoft(state: dict, window: int = 7) -> dict:
    """timm's tensors under Microsoft's names, with the buffers that its files hold."""
    new = {}
    for name, tensor in state.items():
        stage, _, rest = name.removeprefix('layers.').partition('.')
        if rest.startswith('downsample'):
            name = f'layers.{int(stage) - 1}.{rest}'
        new[name.replace('head.fc', 'head')] = tensor
        if name.endswith('qkv.weight'):
            block = name.removesuffix('qkv.weight')
            new[f'{block}relative_position_index'] = torch.zeros(window**2, window**2).long()
    new['layers.0.blocks.1.attn_mask'] = torch.zeros(64, window**2, window**2)
    return new


@pytest.mark.parametrize('layout', ['Microsoft', 'timm'])
def test_swin_of_timm_and_microsoft(tmp_path, layout):
    theirs = timm_swin(strict_img_size=False)
    state = theirs.state_dict()
    torch.save({'model': microsoft(state) if layout == 'Microsoft' else state}, tmp_path / 's.pth')
    ours = swin()
    report = ours.load_base(str(tmp_path / 's.pth'))
    assert ('(timm Swin layout' if layout == 'timm' else '(Swin layout') in report
    assert 'head' in report.partition('left out:')[2]
    for size in ((224, 224), (224, 448)):  # windows of 7 that need no padding
        x = images(2, 3, *size)
        with torch.no_grad():
            expected = theirs.forward_features(x).permute(0, 3, 1, 2)
            torch.testing.assert_close(ours(x)[0], expected, **TOLERANCE)


@pytest.mark.parametrize('size', [(224, 224), (160, 288)], ids=str)
def test_swin_of_mmseg(tmp_path, size):
    theirs = randomise(MMSegSwin(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)))
    theirs.eval()  # it returns None
    state = {f'backbone.{name}': tensor for name, tensor in theirs.state_dict().items()}
    state['decode_head.conv_seg.weight'] = torch.zeros(3, 3, 1, 1)
    torch.save({'meta': {}, 'state_dict': state}, tmp_path / 'upernet.pth')
    ours = swin(out_indices=(0, 1, 2, 3), pad_small_map=True)
    report = ours.load_base(str(tmp_path / 'upernet.pth'))
    assert '(OpenMMLab Swin layout' in report
    x = images(2, 3, *size)
    with torch.no_grad():
        for found, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(found, expected, **TOLERANCE)


def test_swin_of_the_first_mmcls(tmp_path):
    """Its last norm has no number; mmpretrain's own class renames it likewise."""
    theirs = mmpretrain_swin()
    state = {n.replace('norm3.', 'norm.'): t for n, t in theirs.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'mmcls.pth')
    ours = swin()
    ours.load_base(str(tmp_path / 'mmcls.pth'))
    theirs.eval(), ours.eval()  # theirs returns None
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(x)[0], theirs(x)[0])


def mmpretrain_swin(**kwargs) -> nn.Module:
    cfg = dict(type='mmpretrain.SwinTransformer', arch=SWIN, img_size=224)
    return randomise(MODELS.build({**cfg, **kwargs}))


def test_swin_is_mmpretrains_bit_for_bit(tmp_path):
    theirs = mmpretrain_swin(pad_small_map=True)
    path = tmp_path / 'swin.safetensors'
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, path)
    ours = swin(pad_small_map=True, trainable=[], init_cfg=pretrained(str(path)))
    ours.init_weights()
    state = ours.state_dict()
    assert all(torch.equal(state[name], t) for name, t in theirs.state_dict().items())
    x = images(2, 3, 160, 288)
    with torch.no_grad():
        theirs.eval()  # it returns None
        assert torch.equal(ours.train()(x)[0], theirs(x)[0])  # frozen: eval mode


def test_swins_trainable_part_and_mode():
    assert all(p.requires_grad for p in swin().parameters())
    ours = swin(trainable=[r'^stages\.3\.', r'^norm3\.'])
    names = {n.split('.')[0] + '.' + n.split('.')[1] for n, p in ours.named_parameters()
             if p.requires_grad}  # fmt: skip
    assert names == {'stages.3', 'norm3.weight', 'norm3.bias'}
    assert ours.train() is ours
    assert not any(m.training for n, m in ours.named_modules() if n not in ('', 'adapters'))
    assert all(module.training for module in swin().train().modules())
    with pytest.raises(ValueError, match=r"trainable: pattern '\^prompt' matches none"):
        swin(trainable=['^prompt'])
    with pytest.raises(ValueError, match='frozen_stages=1 and `trainable`'):
        swin(frozen_stages=1)


def test_swin_of_another_window(tmp_path):
    theirs = timm_swin()
    torch.save({'model': microsoft(theirs.state_dict())}, tmp_path / 's.pth')
    ours = swin(window_size=12, img_size=384)
    report = ours.load_base(str(tmp_path / 's.pth'))
    assert 'position biases for windows of 7x7 -> 12x12 (bicubic)' in report
    table = theirs.layers[2].blocks[1].attn.relative_position_bias_table
    image = table.T.reshape(1, 4, 13, 13)  # Microsoft's load_pretrained
    image = nn.functional.interpolate(image, (23, 23), mode='bicubic')
    expected = image.reshape(4, 23 * 23).T
    found = ours.stages[2].blocks[1].attn.w_msa.relative_position_bias_table
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_swins_position_embedding_is_resized_on_the_grid(tmp_path):
    """Equal counts of different grids too: 8x8 patches of a square and 4x16 ones."""
    theirs = mmpretrain_swin(use_abs_pos_embed=True, img_size=32)
    torch.save(theirs.state_dict(), tmp_path / 's.pth')
    ours = swin(use_abs_pos_embed=True, img_size=(16, 64))
    report = ours.load_base(str(tmp_path / 's.pth'))
    assert 'position embedding 8x8 -> 4x16 (bicubic)' in report
    image = theirs.absolute_pos_embed.reshape(1, 8, 8, 16).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(image, (4, 16), mode='bicubic')
    expected = image.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours.absolute_pos_embed, expected, **TOLERANCE)


def test_norms_of_other_outputs_are_new_only_where_the_config_says_so(tmp_path):
    torch.save({'model': microsoft(timm_swin().state_dict())}, tmp_path / 's.pth')
    path = str(tmp_path / 's.pth')
    outputs = dict(out_indices=(0, 1, 2, 3))
    with pytest.raises(UserError, match=r'6 missing: norm0\.weight.*init_cfg\.allow_missing'):
        swin(**outputs).load_base(path)
    ours = swin(**outputs, init_cfg=pretrained(path, allow_missing=[r'^norm[012]\.']))
    assert 'created: norm0.weight' in ours.load_base(path)
    init = pretrained(path, allow_missing=[r'^norm[02]\.'])
    report = swin(out_indices=(0, 2), init_cfg=init).load_base(path)
    assert 'norm.weight' in report.partition('left out:')[2]


@pytest.mark.parametrize('ours, state, message', [
    (vit, lambda: timm_swin().state_dict(), r'holds a swin .*VisionTransformer is a vit'),
    (swin, lambda: vit().state_dict(), r'holds a vit .*SwinTransformer is a swin'),
], ids=['Swin into ViT', 'ViT into Swin'])  # fmt: skip
def test_a_backbone_of_another_family_is_refused(tmp_path, ours, state, message):
    torch.save(state(), tmp_path / 'w.pth')
    with pytest.raises(UserError, match=message):
        ours().load_base(str(tmp_path / 'w.pth'))


@pytest.mark.parametrize('case', ['Swin', 'Swin, norms new', 'MAE'])
def test_a_reduced_state_dict_is_completed_without_the_config(tmp_path, case):
    """Inferencers blank init_cfg: its further keys are in the state dict too."""
    path = str(tmp_path / 'w.pth')
    if case == 'MAE':
        torch.save({'model': timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2,
            num_classes=0).state_dict()}, path)  # fmt: skip
        keys = dict(allow_missing=[r'^ln2\.'])
        cfg = dict(out_type='avg_featmap', final_norm=False, trainable=[])
        make = tiny_vit
    else:
        torch.save(timm_swin().state_dict(), path)
        keys, cfg, make = {}, dict(trainable=[r'^stages\.3\.']), swin
        if case != 'Swin':
            keys = dict(allow_missing=[r'^norm[012]\.'])
            cfg.update(out_indices=(0, 1, 2, 3))

    def model(init_cfg: dict | None) -> nn.Module:
        holder = nn.Module()
        holder.backbone = make(init_cfg=init_cfg, **cfg)
        return holder

    trained = model(pretrained(path, **keys))
    trained.backbone.init_weights()
    checkpoint = dict(state_dict=dict(trained.state_dict()))
    deltas.reduce(trained, checkpoint)
    assert len(checkpoint['state_dict']) < len(trained.state_dict())
    fresh = model(None)
    fresh.load_state_dict(checkpoint['state_dict'])
    own = fresh.state_dict()
    assert all(torch.equal(own[name], t) for name, t in trained.state_dict().items())

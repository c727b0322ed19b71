"""Weights of other libraries in models of timm: built there, saved there, features compared."""

import copy
import sys

import pytest
import timm
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import VisionTransformer, model_entrypoint
from torch import nn
from utils import images, randomise, tiny_vit

from vpt_dense.backbones.timm_vit import TimmBackbone
from vpt_dense.errors import UserError
from vpt_dense.weights import compute
from vpt_dense.weights.base import KEY

SIZES = dict(embed_dim=64, depth=2, num_heads=2, num_classes=0)
HF = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
          image_size=64, patch_size=16)  # fmt: skip
TEXT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            vocab_size=99)  # fmt: skip


def tiny(name: str, **kwargs) -> nn.Module:
    """A model of timm with its random start, as a backbone."""
    model = timm.create_model(name, **{**SIZES, 'img_size': 64, **kwargs}).eval()
    model.weights_family = 'timm'
    return model


def given(model: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    """A model's tensors, all with values; it stays as it is."""
    return {n: x.clone() for n, x in randomise(copy.deepcopy(model), seed).state_dict().items()}


def load(model: nn.Module, path, **keys) -> str:
    converted = compute(model, str(path), keys)
    model.load_state_dict({**model.state_dict(), **converted.tensors})
    return converted.report


def write(state: dict, path) -> str:
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    (save_file if path.suffix == '.safetensors' else torch.save)(state, path)
    return str(path)


def same(ours: nn.Module, expected, x, **tolerance) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(x), expected(x), **tolerance)


# --- Hugging Face transformers ---------------------------------------------------------------


def siglip2(kwargs):
    """Images as rows of patches, which is what it takes."""
    model = t.Siglip2VisionModel(t.Siglip2VisionConfig(num_patches=16, **kwargs))

    def tokens(x):
        rows = x.unflatten(2, (4, 16)).unflatten(4, (4, 16)).permute(0, 2, 4, 3, 5, 1).flatten(3)
        rows = rows.flatten(1, 2)
        mask = torch.ones(len(x), 16, dtype=torch.long)
        shapes = torch.tensor([[4, 4]] * len(x))
        return model(rows, mask, shapes).last_hidden_state

    return model, tokens


def last(model, inner=None):
    def tokens(x):
        tower = inner(model) if inner else model
        found = tower(x).last_hidden_state
        return tower.post_layernorm(found) if inner or 'CLIP' in type(model).__name__ else found

    return model, tokens


def dinov3(**kwargs):
    config = t.DINOv3ViTConfig(**{**HF, 'num_register_tokens': 4, **kwargs})
    return last(t.DINOv3ViTModel(config))


CLIP = dict(vision_config={**HF, 'hidden_act': 'gelu'}, text_config=TEXT)
DINOV2 = {**HF, 'mlp_ratio': 4}
#: name: (the model of transformers and its tokens, timm's name, its arguments, words of the report)
MODELS = {
    'DINOv3': (dinov3, 'vit_small_patch16_dinov3_qkvb', {}, 'Hugging Face DINOv3'),
    'DINOv3 gated': (
        lambda: dinov3(use_gated_mlp=True, hidden_act='silu'),
        'vit_small_plus_patch16_dinov3_qkvb', {}, 'Hugging Face DINOv3'),
    'DINOv2': (
        lambda: last(t.Dinov2Model(t.Dinov2Config(**DINOV2))),
        'vit_small_patch14_dinov2', dict(patch_size=16), 'Hugging Face DINOv2'),
    'DINOv2, SwiGLU': (
        lambda: last(t.Dinov2Model(t.Dinov2Config(**DINOV2, use_swiglu_ffn=True))),
        'vit_giant_patch14_dinov2', dict(patch_size=16, mlp_ratio=2 * 176 / 64),
        'Hugging Face DINOv2'),
    'DINOv2 with registers': (
        lambda: last(t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**DINOV2))),
        'vit_small_patch14_reg4_dinov2', dict(patch_size=16), 'position of cls_token added to it'),
    'ViT': (
        lambda: last(t.ViTModel(t.ViTConfig(**HF, layer_norm_eps=1e-6))),
        'vit_small_patch16_224', {}, 'left out: pooler'),
    'CLIP': (
        lambda: last(t.CLIPVisionModel(t.CLIPVisionConfig(**CLIP['vision_config']))),
        'vit_base_patch16_clip_224', {}, 'Hugging Face CLIP'),
    'whole CLIP': (
        lambda: last(t.CLIPModel(t.CLIPConfig(**CLIP)), lambda m: m.vision_model),
        'vit_base_patch16_clip_224', {}, 'text_model.* ('),
    'SigLIP': (
        lambda: last(t.SiglipVisionModel(t.SiglipVisionConfig(**HF, hidden_act='gelu'))),
        'vit_base_patch16_siglip_224', {}, 'Hugging Face SigLIP image tower'),
    'SigLIP 2': (
        lambda: siglip2(dict(
            {k: v for k, v in HF.items() if k != 'image_size'}, hidden_act='gelu')),
        'vit_base_patch16_siglip_224', {}, 'Hugging Face SigLIP image tower'),
}  # fmt: skip


def hugging_face(case: str, tmp_path, dtype=torch.float32):
    make, name, kwargs, words = MODELS[case]
    theirs, tokens = make()
    randomise(theirs).eval()
    theirs.save_pretrained(tmp_path)
    theirs.to(dtype)
    return tmp_path / 'model.safetensors', tokens, tiny(name, **kwargs), words


@pytest.mark.parametrize('case', MODELS)
def test_hugging_face(tmp_path, case):
    path, tokens, ours, words = hugging_face(case, tmp_path)
    assert words in load(ours, path)
    same(ours, tokens, images(2, 3, 64, 64), rtol=1e-5, atol=1e-5)


#: Of DINOv3 both compute the angles of RoPE in float32, rounded differently; the sum of cls and
#: its position is kept in float32.
ROUNDED = ('DINOv3', 'DINOv3 gated', 'DINOv2 with registers')


@pytest.mark.parametrize('case', MODELS)
def test_hugging_face_in_float64(tmp_path, case):
    path, tokens, ours, _ = hugging_face(case, tmp_path, torch.float64)
    load(ours, path)
    within = 1e-6 if case in ROUNDED else 1e-10
    x = images(2, 3, 64, 64, dtype=torch.float64)
    same(ours.double(), tokens, x, rtol=within, atol=within)


@pytest.mark.parametrize('case', MODELS)
@pytest.mark.parametrize('prefix', ['model.', 'module.backbone.'])
def test_hugging_face_below_a_prefix(tmp_path, case, prefix):
    path, _, ours, _ = hugging_face(case, tmp_path)
    state = load_file(path)
    if case.startswith('SigLIP'):  # transformers before 5
        prefix = 'vision_model.'
        state['text_model.embeddings.token_embedding.weight'] = torch.zeros(9, 32)
        state = {prefix + n if 'text' not in n else n: x for n, x in state.items()}
    elif case == 'whole CLIP':
        state = {prefix + n: x for n, x in state.items()}
    else:
        state = {prefix + n: x for n, x in state.items()}
    want = compute(ours, str(path), {})
    found = compute(ours, write(state, tmp_path / 'w.pth'), {})
    assert found.tensors.keys() == want.tensors.keys()
    assert all(torch.equal(x, want.tensors[n]) for n, x in found.tensors.items())


def test_attention_pooling_of_siglip(tmp_path):
    path, _, ours, _ = hugging_face('SigLIP', tmp_path)
    report = load(ours, path)
    assert 'left out' not in report
    theirs = t.SiglipVisionModel.from_pretrained(tmp_path).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).pooler_output, rtol=1e-5, atol=1e-5)
    bare = tiny('vit_base_patch16_siglip_gap_224', fc_norm=False)
    assert 'left out: head.* (11)' in load(bare, path)


def test_another_grid(tmp_path):
    """As timm resizes: prefix rows stay."""
    path, _, _, _ = hugging_face('CLIP', tmp_path)
    ours = tiny('vit_base_patch16_clip_224', img_size=(96, 48))
    report = load(ours, path)
    assert 'position embedding 4x4 -> 6x3 (bicubic with antialiasing)' in report
    state = load_file(path)['embeddings.position_embedding.weight'][None]
    expected = resample_abs_pos_embed(state, (6, 3), (4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(ours.pos_embed.detach(), expected, rtol=0, atol=1e-6)


# --- DINOv3 ----------------------------------------------------------------------------------


def original_dinov3(path, bias=1.0) -> dict[str, torch.Tensor]:
    """The authors' file from transformers' tensors."""
    state, out = load_file(path), {}
    parts = dict(o_proj='proj', up_proj='fc1', down_proj='fc2')
    gated = any('gate_proj' in name for name in state)
    if gated:
        parts.update(gate_proj='w1', up_proj='w2', down_proj='w3')
    for name, tensor in state.items():
        if '_proj' in name and name.split('.')[-2] in ('q_proj', 'k_proj', 'v_proj'):
            continue
        name = name.replace('layer.', 'blocks.').replace('attention.', 'attn.')
        name = name.replace('layer_scale1.lambda1', 'ls1.gamma')
        name = name.replace('layer_scale2.lambda1', 'ls2.gamma')
        name = name.replace('embeddings.register_tokens', 'storage_tokens')
        name = name.replace('embeddings.patch_embeddings', 'patch_embed.proj')
        name = name.replace('embeddings.', '')
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        out[name] = tensor[0] if name == 'mask_token' else tensor
    for i in range(2):
        at = f'layer.{i}.attention.'
        out[f'blocks.{i}.attn.qkv.weight'] = torch.cat(
            [state[f'{at}{q}_proj.weight'] for q in 'qkv'])
        q, v = (state[f'{at}{q}_proj.bias'] * bias for q in 'qv')
        out[f'blocks.{i}.attn.qkv.bias'] = torch.cat((q, torch.full_like(q, 7), v))
        out[f'blocks.{i}.attn.qkv.bias_mask'] = torch.cat(
            (torch.ones_like(q), torch.zeros_like(q), torch.ones_like(q)))
    out['rope_embed.periods'] = torch.ones(8)
    out['local_cls_norm.weight'] = torch.ones(64)
    out['local_cls_norm.bias'] = torch.ones(64)
    return out


@pytest.mark.parametrize('case', ['DINOv3', 'DINOv3 gated'])
@pytest.mark.parametrize('wrapped', [False, True])
def test_original_dinov3(tmp_path, case, wrapped):
    path, tokens, ours, _ = hugging_face(case, tmp_path)
    state = original_dinov3(path)
    if wrapped:  # a training checkpoint
        state = {f'backbone.{name}': tensor for name, tensor in state.items()}
    torch.save({'teacher': state} if wrapped else state, tmp_path / 'dinov3.pth')
    report = load(ours, tmp_path / 'dinov3.pth')
    assert '(DINOv3 layout' in report and 'bias of keys left out: all zero' in report
    for name in () if wrapped else ('mask_token', 'rope_embed.periods', 'local_cls_norm.weight'):
        assert name in report.partition('left out')[2]
    same(ours, tokens, images(2, 3, 64, 48), rtol=1e-5, atol=1e-5)


def test_dinov3_without_biases(tmp_path):
    """timm's plain models have none: a bias of zero is left out, any other refused."""
    path, *_ = hugging_face('DINOv3', tmp_path)
    plain, with_bias = tiny('vit_small_patch16_dinov3'), tiny('vit_small_patch16_dinov3_qkvb')
    for source in ('original', 'transformers'):
        if source == 'original':
            zero, other = original_dinov3(path, bias=0), original_dinov3(path)
        else:
            other = load_file(path)
            zero = {n: x * 0 if 'q_proj.bias' in n or 'v_proj.bias' in n else x
                    for n, x in other.items()}  # fmt: skip
        report = load(plain, write(zero, tmp_path / 'zero.pth'))
        assert 'values left out: all zero, hence exact' in report
        load(with_bias, tmp_path / 'zero.pth')
        same(plain, with_bias.forward_features, images(2, 3, 64, 64), rtol=1e-6, atol=1e-6)
        before = copy.deepcopy(plain.state_dict())
        with pytest.raises(UserError, match='queries in blocks.0.attn is not zero.*dinov3_qkvb'):
            load(plain, write(other, tmp_path / 'other.pth'))
        assert all(torch.equal(x, before[n]) for n, x in plain.state_dict().items())


def test_timms_plain_dinov3_with_biases(tmp_path):
    plain, ours = tiny('vit_small_patch16_dinov3'), tiny('vit_small_patch16_dinov3_qkvb')
    state = given(plain)
    plain.load_state_dict(state)
    nn.init.ones_(ours.blocks[1].attn.v_bias)
    report = load(ours, write(state, tmp_path / 'w.safetensors'))
    assert 'bias of queries and values zero: the file has none' in report
    same(ours, plain.forward_features, images(2, 3, 48, 80), rtol=1e-6, atol=1e-6)
    # A bias of keys that counts has no place there.
    state = {**original_dinov3_biases(64), **state}
    with pytest.raises(UserError, match='bias of keys in blocks.0.attn is not zero'):
        load(ours, write(state, tmp_path / 'keys.safetensors'))


def original_dinov3_biases(width: int) -> dict[str, torch.Tensor]:
    return {f'blocks.{i}.attn.qkv.bias': torch.ones(3 * width) for i in range(2)}


# --- timm and the authors, against timm's own converters ---------------------------------------


def renamed(state: dict, *pairs: tuple[str, str]) -> dict:
    out = {}
    for name, tensor in state.items():
        for old, new in pairs:
            name = name.replace(old, new)
        out[name] = tensor
    return out


def dinov2(state):
    state = renamed(state, ('mlp.fc1', 'mlp.w12'), ('mlp.fc2', 'mlp.w3'))
    return {**state, 'mask_token': torch.ones(1, 64)}


def registers(state):
    state = renamed(state, ('reg_token', 'register_tokens'))
    state['pos_embed'] = torch.cat((torch.full((1, 1, 64), 0.3), state['pos_embed']), 1)
    return {**state, 'mask_token': torch.ones(1, 64)}


def tips(state):
    state = {f'vision_encoder.{name}': x for name, x in registers(state).items()}
    return {**state, 'text_encoder.ln_final.weight': torch.ones(3)}


def clip_names(state, prefix='visual.', scale=('gamma_', 'ls_')):
    state = renamed(
        state, ('norm_pre', 'ln_pre'), ('blocks.', 'transformer.resblocks.'), ('.norm', '.ln_'),
        ('patch_embed.proj', 'conv1'), ('pos_embed', 'positional_embedding'),
        ('attn.qkv.', 'attn.in_proj_'), ('attn.proj', 'attn.out_proj'), ('fc1', 'c_fc'),
        ('fc2', 'c_proj'), ('cls_token', 'class_embedding'))  # fmt: skip
    state = {'ln_post.' + n.removeprefix('norm.') if n.startswith('norm.') else n: x
             for n, x in state.items()}  # fmt: skip
    state = {prefix + n + ('.gamma' if 'ls_' in n else ''): x
             for n, x in renamed(state, scale).items()}  # fmt: skip
    for name in ('class_embedding', 'positional_embedding'):
        if prefix + name in state:
            state[prefix + name] = state[prefix + name].squeeze(0)
    if prefix + 'class_embedding' in state:
        state[prefix + 'class_embedding'] = state[prefix + 'class_embedding'].squeeze(0)
    third = 'attn_pool.attn.in_proj_'
    for kind in ('weight', 'bias'):
        if f'{prefix}attn_pool.q.{kind}' in state:
            parts = [state.pop(f'{prefix}attn_pool.{part}.{kind}') for part in ('q', 'kv')]
            state[f'{prefix}{third}{kind}'] = torch.cat(parts)
    state = renamed(
        state, ('attn_pool.latent', 'attn_pool.probe'), ('attn_pool.ln_', 'attn_pool.layernorm'),
        ('attn_pool.proj', 'attn_pool.attn.out_proj'))  # fmt: skip
    if prefix:
        state['transformer.resblocks.0.ln_1.weight'] = torch.ones(3)
    return {**state, f'{prefix}proj': torch.ones(64, 8)}


def eva02(state):
    state = renamed(
        state, ('mlp.fc1_g', 'mlp.w1'), ('mlp.fc1_x', 'mlp.w2'), ('mlp.fc1.', 'mlp.w12.'),
        ('mlp.fc2', 'mlp.w3'), ('mlp.norm', 'mlp.ffn_ln'), ('attn.norm', 'attn.inner_attn_ln'),
        ('q_proj.bias', 'q_bias'), ('v_proj.bias', 'v_bias'))  # fmt: skip
    return {**state, 'blocks.0.attn.rope.freqs_cos': torch.ones(2, 2)}


def radio(state):
    """CLS tokens and registers in one; linear patches; a large grid of positions."""
    out = {f'radio_model.model.{n}': x for n, x in state.items() if n.startswith('blocks.')}
    out = renamed(out, ('ls1.gamma', 'ls1.grandma'), ('ls2.gamma', 'ls2.grandma'))
    at = 'radio_model.model.patch_generator.'
    out[f'{at}embedder.weight'] = state['patch_embed.proj.weight'].flatten(1)
    out[f'{at}pos_embed'] = torch.randn(1, 64, 64)
    out[f'{at}cls_token.token'] = torch.cat((state['cls_token'], state['reg_token']), 1)[0]
    return {**out, 'radio_model.input_conditioner.norm_mean': torch.ones(3)}


def aimv2(state):
    state = renamed(state, ('.fc1_g', '.fc1'), ('.fc1_x', '.fc3'))
    state = renamed(state, ('norm1', 'norm_1'), ('norm2', 'norm_2'))
    return {
        'preprocessor.patchifier.' + n.removeprefix('patch_embed.') if n.startswith('patch_embed')
        else 'preprocessor.' + n if n == 'pos_embed'
        else 'trunk.post_trunk_norm.' + n.removeprefix('norm.') if n.startswith('norm.')
        else 'trunk.' + n: x
        for n, x in state.items()
    }  # fmt: skip


def beit3(state):
    out = {}
    for name, tensor in state.items():
        name = name.replace('patch_embed', 'beit3.vision_embed')
        name = name.replace('cls_token', 'beit3.vision_embed.cls_token')
        if name == 'pos_embed':
            rows = torch.cat((torch.ones(2, 64), tensor[0]))
            out['beit3.encoder.embed_positions.A.weight'] = rows
            continue
        if name.startswith('blocks'):
            name = 'beit3.encoder.layers' + name.removeprefix('blocks')
            for old, new in (('norm1.', 'self_attn_layer_norm.A.'),
                             ('norm2.', 'final_layer_norm.A.'),
                             ('mlp.norm.', 'ffn.A.ffn_layernorm.'), ('mlp.', 'ffn.A.'),
                             ('attn.norm.', 'self_attn.inner_attn_ln.A.'),
                             ('attn.proj.', 'self_attn.out_proj.A.')):  # fmt: skip
                if f'.{old}' in name:
                    name = name.replace(old, new)
                    break
            if 'attn.qkv' in name:
                for q, part in zip('qkv', tensor.chunk(3), strict=True):
                    out[name.replace('attn.qkv', f'self_attn.{q}_proj.A')] = part
                continue
        out[name] = tensor
        if '.A.' in name:
            out[name.replace('.A.', '.B.')] = tensor + 1
    return out


def sapiens2(state):
    state = renamed(
        state, ('reg_token', 'storage_tokens'), ('patch_embed.proj.', 'patch_embed.projection.'),
        ('q_proj', 'wq'), ('k_proj', 'wk'), ('v_proj', 'wv'), ('gamma_1', 'attn.gamma.weight'),
        ('.mlp.fc1.', '.ffn.w12.'), ('.mlp.fc2.', '.ffn.w3.'), ('.norm1.', '.ln1.'),
        ('.norm2.', '.ln2.'))  # fmt: skip
    return {'ln1.' + n[5:] if n.startswith('norm.') else n: x for n, x in state.items()}


def as_is(state):
    return state


#: name: (timm's name, its arguments, the authors' file from timm's tensors, words of the report)
AUTHORS = {
    'timm, plain': ('vit_small_patch16_224', {}, as_is, '(timm layout'),
    'timm, DINOv3': ('vit_small_plus_patch16_dinov3', {}, as_is, '(timm layout'),
    'timm, SigLIP': ('vit_base_patch16_siglip_224', {}, as_is, '(timm layout'),
    'timm, PE': ('vit_pe_spatial_base_patch16_512', {}, as_is, '(timm layout'),
    'timm, EVA-02': ('eva02_base_patch14_448', dict(patch_size=16), as_is, '(timm layout'),
    'timm, RADIO': ('vit_base_patch16_radio_v3', {}, as_is, '(timm layout'),
    'timm, parallel': ('vit_base_patch16_xp_224', {}, as_is, '(timm layout'),
    'timm, several': ('vit_base_patch16_18x2_224', {}, as_is, '(timm layout'),
    'timm, distilled': ('deit_small_distilled_patch16_224', {}, as_is, '(timm layout'),
    'OpenCLIP': (
        'vit_base_patch16_siglip_224', {},
        lambda state: {f'visual.trunk.{n}': x for n, x in state.items()}, 'from [visual.trunk]'),
    'DINOv2': (
        'vit_giant_patch14_dinov2', dict(patch_size=16, mlp_ratio=4), dinov2, '(DINOv2 layout'),
    'DINOv2 with registers': (
        'vit_small_patch14_reg4_dinov2', dict(patch_size=16), registers, '(DINOv2 layout'),
    'TIPSv2': (
        'vit_base_patch14_reg1_tipsv2', dict(patch_size=16), tips, 'from [vision_encoder]'),
    'CLIP': ('vit_base_patch16_clip_224', {}, clip_names, '(CLIP layout'),
    'PE': ('vit_pe_core_base_patch16_224', {}, clip_names, '(CLIP layout'),
    'PE spatial': (
        'vit_pe_spatial_base_patch16_512', {}, lambda s: clip_names(s, ''), '(CLIP image tower'),
    'EVA-02': ('eva02_base_patch14_448', dict(patch_size=16), eva02, '(EVA-02 layout'),
    'EVA-02, packed': ('eva02_tiny_patch14_224', dict(patch_size=16), eva02, '(EVA-02 layout'),
    'RADIO': ('vit_base_patch16_radio_v3', {}, radio, '(C-RADIO layout'),
    'BEiT-3': ('beit3_base_patch16_224', {}, beit3, '(BEiT-3 layout'),
    'Sapiens2': (
        'vit_base_patch16_sapiens2', dict(num_kv_heads=(2, 1)), sapiens2, '(Sapiens2 layout'),
    'AIMv2': ('aimv2_large_patch14_224', dict(patch_size=16), aimv2, '(AIMv2 layout'),
}  # fmt: skip


@pytest.mark.parametrize('size', [64, (96, 48)])
@pytest.mark.parametrize('case', AUTHORS)
def test_timm_converts_alike(tmp_path, case, size):
    name, kwargs, authors, words = AUTHORS[case]
    source = tiny(name, **kwargs)
    state = authors(given(source))
    ours = tiny(name, **kwargs, img_size=size)
    report = load(ours, write(state, tmp_path / 'w.pth'))
    assert words in report
    convert = sys.modules[model_entrypoint(name).__module__].checkpoint_filter_fn
    how = {}
    if 'radio' in name:
        how = dict(interpolation='bilinear', antialias=False, align_corners=True)
    state = {n: x.clone() for n, x in state.items()}
    expected = convert(state, tiny(name, **kwargs, img_size=size), **how)
    for key, tensor in ours.state_dict().items():
        found = expected[key]
        if key == 'pos_embed' and case.startswith('PE'):  # whose size timm does not change
            found = resample_abs_pos_embed(found, ours.patch_embed.grid_size)
        torch.testing.assert_close(tensor, found, rtol=0, atol=2e-6)
    resized = getattr(ours, 'pos_embed', None) is not None and (size != 64 or case == 'RADIO')
    assert ('position embedding ' in report) is resized


def test_rope_is_not_loaded_into_a_plain_vit(tmp_path):
    path, *_ = hugging_face('DINOv3', tmp_path)
    original = write(original_dinov3(path), tmp_path / 'w.pth')
    for each in (path, original):
        with pytest.raises(UserError, match='RoPE.*vpt_dense.TimmVisionTransformer'):
            tiny_vit().load_base(str(each))


def test_what_timm_cannot_convert_is_refused(tmp_path):
    state = radio(given(tiny('vit_base_patch16_radio_v3')))
    with pytest.raises(UserError, match='does not fit Eva|timm cannot convert it for'):
        load(tiny(NAME), write(state, tmp_path / 'w.pth'))
    state['radio_model.model.patch_generator.embedder.weight'] = torch.ones(3)
    with pytest.raises(UserError, match='looks like C-RADIO, but timm cannot convert it') as error:
        load(tiny('vit_base_patch16_radio_v3'), write(state, tmp_path / 'w.pth'))
    assert '\n' not in str(error.value)


def test_what_timm_leaves_out_is_said(tmp_path):
    name, _, authors, _ = AUTHORS['RADIO']
    state = authors(given(tiny(name)))
    state['radio_model.summary_idxs'] = torch.ones(2)
    report = load(tiny(name), write(state, tmp_path / 'w.pth'))
    assert 'left out: radio_model.input_conditioner.norm_mean, radio_model.summary_idxs' in report
    del state['radio_model.model.blocks.1.norm1.bias']
    with pytest.raises(UserError, match=r'1 missing: blocks\.1\.norm1\.bias'):
        load(tiny(name), write(state, tmp_path / 'w.pth'))


# --- strict ----------------------------------------------------------------------------------

NAME = 'vit_small_patch16_dinov3'


@pytest.mark.parametrize('fault, words', {
    'missing': r'1 missing: blocks\.1\.norm2\.weight',
    'more': r'1 unexpected: blocks\.0\.extra\.weight',
    'shape': r'1 of another shape: norm\.weight \(32,\) instead of \(64,\)',
    'NaN': r'1 with NaN, infinite or integer values: cls_token',
    'registers': r'1 unexpected: reg_token.*reg_tokens=4',
    'positions': '1 unexpected: pos_embed',
    'another ViT': '3 unexpected: pos_embed, .*attn.q_bias',
    'another model': r'holds a swin',
}.items())  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, fault, words):
    ours = tiny(NAME)
    state = given(ours)
    if fault == 'missing':
        del state['blocks.1.norm2.weight']
    elif fault == 'more':
        state['blocks.0.extra.weight'] = torch.ones(2)
    elif fault == 'shape':
        state['norm.weight'] = torch.ones(32)
    elif fault == 'NaN':
        state['cls_token'][0, 0, 3] = torch.nan
    elif fault == 'registers':
        ours = tiny(NAME, num_reg_tokens=0)
    elif fault == 'another ViT':  # which has biases too
        state = given(tiny('vit_small_patch16_224', reg_tokens=4, init_values=1e-5))
    elif fault == 'positions':
        state['pos_embed'] = torch.ones(1, 21, 64)
    else:
        state = timm.create_model('swin_tiny_patch4_window7_224', embed_dim=16).state_dict()
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(UserError, match=words) as error:
        load(ours, write(state, tmp_path / 'w.pth'))
    assert '\n' not in str(error.value)
    assert all(torch.equal(x, before[n]) for n, x in ours.state_dict().items())


@pytest.mark.parametrize('bands', [None, 'mean', ['B', 'zero', 'R', 'mean', 'G']])
def test_bands_and_patches(tmp_path, bands):
    source = tiny(NAME)
    state = given(source)
    path = write(state, tmp_path / 'w.pth')
    ours = tiny(NAME, in_chans=5, patch_size=8)
    keys = {} if bands is None else dict(bands=bands)
    report = load(ours, path, **keys)
    assert 'patch embedding 3 -> 5 bands' in report and 'patches 16x16 -> 8x8 pixels' in report
    kernel = state['patch_embed.proj.weight']
    r, g, b = kernel.unbind(1)
    if bands is None:
        kernel = torch.stack((r, g, b, r, g), 1) * 3 / 5
    elif bands == 'mean':
        kernel = kernel.mean(1, keepdim=True).repeat(1, 5, 1, 1) * 3 / 5
    else:
        kernel = torch.stack((b, 0 * b, r, kernel.mean(1), g), 1)
    expected = resample_patch_embed(kernel, (8, 8))
    torch.testing.assert_close(ours.patch_embed.proj.weight.detach(), expected, rtol=0, atol=1e-5)


def test_a_grid_that_is_not_square(tmp_path):
    source = tiny('vit_small_patch16_224', img_size=(96, 32))
    state = given(source)
    path = write(state, tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'13 rows, 1 cls.*not square: set init_cfg\.source_grid'):
        load(tiny('vit_small_patch16_224'), path)
    ours = tiny('vit_small_patch16_224')
    assert '6x2 -> 4x4' in load(ours, path, source_grid=(6, 2))
    expected = resample_abs_pos_embed(state['pos_embed'], (4, 4), (6, 2), num_prefix_tokens=1)
    torch.testing.assert_close(ours.pos_embed.detach(), expected, rtol=0, atol=1e-6)


def test_registers_take_rows_of_positions(tmp_path):
    """A file with rows for cls and registers, in a model that adds positions to patches alone."""
    source = tiny('vit_small_patch16_224', reg_tokens=2)
    state = given(source)
    source.load_state_dict(state)
    ours = tiny('vit_small_patch16_224', reg_tokens=2, no_embed_class=True)
    report = load(ours, write(state, tmp_path / 'w.pth'))
    assert 'position of cls_token added to it; position of reg_token added to it' in report
    same(ours, source.forward_features, images(2, 3, 64, 64), rtol=1e-5, atol=1e-5)
    back = tiny('vit_small_patch16_224', reg_tokens=2)
    assert '3 positions of cls and register tokens: zero' in load(
        back, write(ours.state_dict(), tmp_path / 'b.pth'))
    same(back, source.forward_features, images(2, 3, 64, 64), rtol=1e-5, atol=1e-5)


def test_a_classifier(tmp_path):
    source = tiny('vit_small_patch16_224', num_classes=5)
    state = given(source)
    path = write(state, tmp_path / 'w.pth')
    bare = tiny('vit_small_patch16_224')
    assert 'left out: head.weight, head.bias' in load(bare, path)
    whole = tiny('vit_small_patch16_224', num_classes=5)
    assert 'left out' not in load(whole, path)
    assert torch.equal(whole.head.weight, state['head.weight'])
    other = tiny('vit_small_patch16_224', num_classes=7)
    with pytest.raises(UserError, match='2 missing: head.weight, head.bias'):
        load(other, path)
    report = load(other, path, allow_missing=['^head'])
    assert 'left out: head.weight, head.bias; created: head.weight, head.bias' in report


def test_a_model_that_timm_has_no_name_for(tmp_path):
    source = VisionTransformer(img_size=64, embed_dim=64, depth=2, num_heads=2, num_classes=0)
    source.weights_family = 'timm'
    state = given(source)
    load(source, write(state, tmp_path / 'w.pth'))
    assert all(torch.equal(x, state[n]) for n, x in source.state_dict().items())
    # A converter of timm's is found by its class.
    beside = tiny('vit_base_patch16_radio_v3')
    own = VisionTransformer(
        img_size=64, embed_dim=64, depth=2, num_heads=2, num_classes=0, reg_tokens=7,
        no_embed_class=True, init_values=1e-5, final_norm=False)  # fmt: skip
    own.weights_family = 'timm'
    file = write(radio(given(beside)), tmp_path / 'radio.pth')
    assert '(C-RADIO layout' in load(own, file)
    state['pos_embed'] = torch.ones(1, 1 + 12, 64)
    with pytest.raises(UserError, match='not square: set init_cfg.source_grid'):
        load(source, write(state, tmp_path / 'w.pth'))


@pytest.mark.parametrize('case', ['DINOv3', 'CLIP', 'SigLIP', 'ViT'])
def test_a_tuned_model_and_its_state_without_the_base(tmp_path, case):
    """Loaded, reduced to what was tuned, and completed from the file of another library."""
    path, tokens, plain, _ = hugging_face(case, tmp_path)
    _, name, kwargs, _ = MODELS[case]

    def tuned(prompt=None):
        return TimmBackbone.take_over(tiny(name, **kwargs), prompt=prompt, trainable=['^prompt'])

    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)
    first, second = tuned(prompt), tuned(prompt)
    assert 'created: prompt.tokens' in first.load_base(str(path))
    load(plain, path)
    assert all(torch.equal(x, first.state_dict()[n]) for n, x in plain.state_dict().items())
    whole = first.state_dict()
    base = first.rebuilt_names(whole, '')
    assert base == set(plain.state_dict())
    reduced = {n: x for n, x in whole.items() if n not in base}
    second.load_state_dict({**reduced, KEY: first.base.to_tensor()})
    assert all(torch.equal(x, whole[n]) for n, x in second.state_dict().items())
    x = images(2, 3, 64, 64)
    same(second.eval(), first.eval().forward_features, x, rtol=0, atol=0)
    with torch.no_grad():
        assert not torch.allclose(first.forward_features(x), tokens(x), atol=1e-3)  # its prompts


def test_equal_inputs_equal_bytes(tmp_path):
    path, *_ = hugging_face('CLIP', tmp_path)
    first, second = (
        compute(tiny('vit_base_patch16_clip_224', img_size=96), str(path), {}) for _ in range(2))
    assert first.report == second.report
    assert all(torch.equal(x, second.tensors[n]) for n, x in first.tensors.items())

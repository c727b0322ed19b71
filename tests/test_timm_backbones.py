"""timm's vision transformers as backbones: which there are; they compute what timm does."""

import copy
import math
import re

import pytest
import timm
import torch
from methods import TIMM, build_at_start
from mmengine.registry import MODELS
from test_methods import parameters, total
from timm.models import model_entrypoint
from utils import ROOT, images, randomise

from vpt_dense import pretraining
from vpt_dense.backbones.timm_vit import TimmBackbone, create, names
from vpt_dense.building import on
from vpt_dense.errors import UserError

PAGE = (ROOT / 'docs/backbones.md').read_text()
DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)


def backbone(name: str, **kwargs) -> torch.nn.Module:
    return MODELS.build(dict(type='vpt_dense.TimmVisionTransformer', model=name, **kwargs))


# --- names -----------------------------------------------------------------------------------

SUPPORTED = names()
OTHERS = sorted(set(timm.list_models()) - set(SUPPORTED))
#: The one with the shortest name of each of timm's modules whose models are refused.
OF_MODULES = {model_entrypoint(n).__module__: n for n in sorted(OTHERS, key=len, reverse=True)}


def one_of_each(names: list[str], words: bool) -> list[str]:
    """The shortest of the names whose models differ in numbers alone: of channels, blocks, pixels.

    Args:
        names: timm's.
        words: Whether words, yes and no count that their functions say; otherwise only what they
            call: the layers and the class of the model are among it.
    """
    found: dict[tuple, str] = {}
    for name in sorted(names, key=len, reverse=True):
        code = model_entrypoint(name).__code__
        said = [word for word in flat(code.co_consts) if isinstance(word, str | bool | None)]
        said = [word for word in said if word != name and ' ' not in str(word)]  # and no docstring
        found[model_entrypoint(name).__module__, code.co_names, tuple(said) * words] = name
    return sorted(found.values())


def flat(values: tuple) -> list:
    return [part for value in values for part in (flat(value) if isinstance(value, tuple)
                                                  else [value])]


def is_tuned(name: str) -> bool:
    """Build one, with two blocks if it takes that number, and run it, on no device."""
    for depth in (dict(depth=2), {}):
        try:
            with on('meta'):
                model = backbone(name, prompt=DEEP, **depth)
        except UserError as error:
            if depth and 'num_kv_heads' in str(error):  # a number for each block
                continue
            raise
        sides = zip(model.patch_embed.img_size, model.patch_size_pixels(), strict=True)
        x = torch.empty(1, 3, *(side - side % patch for side, patch in sides), device='meta')
        (out,) = model(x)
        return out.shape == (1, model.embed_dims, *model.patch_grid(x))
    return False


def assert_refused(name: str) -> None:
    with pytest.raises(UserError) as caught, on('meta'):
        create(name, options=dict(dynamic_img_size=True) if name in SUPPORTED else {})
    kind = re.fullmatch(r'(\w+) cannot be tuned: .*', str(caught.value))[1]
    assert kind in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', SUPPORTED[::10])
def test_supported_names(name):
    assert is_tuned(name)


@pytest.mark.parametrize('name', sorted(OF_MODULES.values())[::10])
def test_refused_names(name):
    assert_refused(name)


#: timm has thousands of names, most of which differ in numbers from another.
walks = pytest.mark.parametrize('every', [
    pytest.param(each, marks=pytest.mark.long) for each in (False, True)],
    ids=['one of each', 'all'])  # fmt: skip


@walks
def test_every_name_is_supported_or_refused(every):
    assert all(map(is_tuned, SUPPORTED if every else one_of_each(SUPPORTED, words=True)))
    for name in OTHERS if every else one_of_each(OTHERS, words=False):
        assert_refused(name)


def test_the_page_says_how_many_there_are():
    version, supported, refused = re.search(
        r'timm ([\d.]+) has (\d+) names that fit and ([\d,]+) that are refused', PAGE).groups()
    if version == timm.__version__:
        assert (int(supported), int(refused.replace(',', ''))) == (len(SUPPORTED), len(OTHERS))


ROWS = [[cell.strip(' `') for cell in line.strip('|').split('|')]
        for line in PAGE.partition('| family |')[2].splitlines() if line.startswith('| [')]


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[1])
def test_the_page_says_what_they_are(row):
    _, name, licence, patch, home, first, positions, out_type = row
    told = pretraining.of(name)
    with on('meta'):
        model = create(name)
    assert told.name == name and told.licence == licence
    assert home == '{}x{}'.format(*told.input_size[1:])
    assert model.patch_embed.feat_ratio(as_scalar=False) == (int(patch),) * 2
    assert model.num_prefix_tokens == int(first)
    rotary = getattr(model, 'rope', None) is not None
    said = {(True, True): 'both', (True, False): 'embedding', (False, True): 'rotary'}
    assert positions == said[model.pos_embed is not None, rotary]
    pooled = model.attn_pool is not None or len(list(model.fc_norm.parameters())) > 0
    assert out_type == ('pooled' if pooled else 'cls_token' if model.cls_token is not None
                        else 'avg_tokens')


# --- the same as timm's ----------------------------------------------------------------------

TINY = dict(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4)
_HYBRID = dict(img_size=64, depth=2)
#: Every kind of model, block, attention, MLP and position: timm's name, and its tiny settings.
KINDS = {
    'plain': ('vit_small_patch16_224', TINY),
    'distilled': ('deit_tiny_distilled_patch16_224', TINY),
    'CLIP': ('vit_base_patch16_clip_224', TINY),
    'DINOv2, registers': ('vit_small_patch14_reg4_dinov2', TINY),
    'DINOv2 giant': ('vit_giant_patch14_dinov2', dict(TINY, mlp_ratio=4)),
    'AIMv2': ('aimv2_large_patch14_224', TINY),
    'BEiT-3': ('beit3_base_patch16_224', TINY),
    'TIPSv2': ('vit_base_patch14_reg1_tipsv2', TINY),
    'SigLIP 2': ('vit_base_patch16_siglip_256', TINY),
    'RADIO': ('vit_base_patch16_radio_v3', TINY),
    'residual post-norm': ('vit_base_patch16_rpn_224', TINY),
    'parallel, scaled': ('vit_base_patch16_xp_224', TINY),
    'parallel': ('vit_base_patch16_18x2_224', TINY),
    'differential attention': ('vit_dlittle_patch16_reg1_gap_256', TINY),
    'differential, parallel': ('vit_dpwee_patch16_reg1_gap_256', TINY),
    'EVA': ('eva_giant_patch14_224', TINY),
    'EVA-02': ('eva02_base_patch14_448', TINY),
    'EVA-02 tiny': ('eva02_tiny_patch14_336', TINY),
    'EVA-02 CLIP': ('eva02_base_patch16_clip_224', TINY),
    'EVA-02 CLIP, post-norm': ('eva02_enormous_patch14_clip_224', TINY),
    'PE core': ('vit_pe_core_base_patch16_224', TINY),
    'PE spatial': ('vit_pe_spatial_base_patch16_512', TINY),
    'PE spatial gigantic': ('vit_pe_spatial_gigantic_patch14_448', TINY),
    'axial RoPE': ('vit_small_patch16_rope_ape_224', TINY),
    'axial RoPE, register': ('vit_medium_patch16_rope_reg1_gap_256', TINY),
    'mixed RoPE': ('vit_small_patch16_rope_mixed_ape_224', TINY),
    'DINOv3': ('vit_small_patch16_dinov3', TINY),
    'DINOv3, biases': ('vit_small_patch16_dinov3_qkvb', TINY),
    'DINOv3, SwiGLU': ('vit_huge_plus_patch16_dinov3', TINY),
    'Sapiens2': ('vit_base_patch16_sapiens2', dict(TINY, num_kv_heads=(None, 2, 1))),
    'hybrid': ('vit_tiny_r_s16_p8_224', _HYBRID),
    'MobileCLIP': ('vit_base_mci_224', _HYBRID),
    'ViTamin': ('vitamin_small_224', _HYBRID),
}  # fmt: skip
kind = pytest.mark.parametrize('kind', KINDS)
RATES = dict(drop_path_rate=0.3, proj_drop_rate=0.1, attn_drop_rate=0.1, pos_drop_rate=0.1)


def both(kind: str, **kwargs) -> tuple[torch.nn.Module, torch.nn.Module]:
    """timm's model and ours, with the same weights."""
    name, settings = KINDS[kind]
    ours = randomise(backbone(name, **settings, **RATES, **kwargs))
    theirs = create(name, None, 3, {**settings, **RATES})
    if kind == 'Sapiens2':
        theirs.rope.aug_active = False  # test_no_place_moves_unless_asked_for
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all(n.startswith(('fc_norm.', 'attn_pool.')) for n in missing)  # ours are left out
    return theirs, ours


def covers() -> set[tuple]:
    """Class of model, block, attention, MLP, patch embedding and places of every kind."""
    return {parts_of(create(name, None, 3, settings)) for name, settings in KINDS.values()}


def parts_of(model) -> tuple:
    block = model.blocks[0]
    parts = (model, block, getattr(block, 'attn', None), getattr(block, 'mlp', None),
             model.patch_embed, getattr(model, 'rope', None))
    return tuple(type(part).__name__ for part in parts)


@walks
def test_the_kinds_are_all_that_names_have(every):
    known = covers()
    names = SUPPORTED if every else one_of_each(SUPPORTED, words=True)
    with on('meta'):
        assert {parts_of(create(name)) for name in names} <= known


@kind
@pytest.mark.parametrize('training', [False, True])
def test_without_a_method_it_is_timms_bit_for_bit(kind, training):
    """All blocks and the norm, features, gradients; while training with the same dropout masks."""
    theirs, ours = both(kind, out_type='raw')
    ours.out_indices = list(range(len(ours.blocks)))
    results = []
    for model in (theirs, ours):
        x = images(2, 3, *theirs.patch_embed.img_size).requires_grad_()
        torch.manual_seed(5)
        if model is ours:
            outs = model.train(training)(x)
        else:
            last, outs = model.train(training).forward_intermediates(
                x, output_fmt='NLC', return_prefix_tokens=model.num_prefix_tokens > 0)
            if model.num_prefix_tokens:
                outs = [torch.cat((first, patches), 1) for patches, first in outs]
            outs[-1] = last  # behind the norm
        total(outs).backward()
        with torch.no_grad():
            torch.manual_seed(6)
            whole = model.forward_features(x)
            maps = model.forward_intermediates(x, indices=[1], intermediates_only=True, norm=True)
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append(([*outs, whole, *maps, x.grad], grads))
    (one, grads), (other, own) = results
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert grads.keys() == own.keys() and all(torch.equal(grads[n], own[n]) for n in grads)
    if training:
        with torch.no_grad():  # the masks are there
            assert not torch.equal(ours(x)[-1], ours(x)[-1])


@kind
def test_what_a_classifier_reads_is_timms(kind):
    theirs, ours = both(kind, out_type='pooled')
    theirs.load_state_dict(ours.state_dict())  # with the pooling
    x = images(2, 3, *theirs.patch_embed.img_size)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x)[0], theirs.eval()(x))
        assert torch.equal(ours(x)[0], theirs.forward_head(theirs.forward_features(x)))


@kind
def test_prompts_of_every_kind_of_block(kind):
    """As tokens, and as keys and values where attention takes them; every one has a gradient."""
    name, settings = KINDS[kind]
    results = []
    for prompts_as in ('tokens', 'keys_values'):
        model = randomise(backbone(
            name, prompt=DEEP, prompts_as=prompts_as, **settings, **RATES)).double().train()
        outs = model(images(2, 3, *model.patch_embed.img_size, dtype=torch.float64))
        total(outs).backward()
        assert list(parameters(model)) == ['prompt.tokens']
        assert all(own.any() for block in model.prompt.tokens.grad for own in block)
        results.append((outs, model.prompt.tokens.grad))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    unable = kind.startswith(('parallel', 'differential'))
    assert (model.keys_values_layers == []) == unable


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', [
    'plain', 'distilled', 'CLIP', 'DINOv2, registers', 'SigLIP 2', 'RADIO', 'EVA-02', 'PE spatial',
    'axial RoPE', 'mixed RoPE', 'DINOv3', 'Sapiens2'])  # fmt: skip
@pytest.mark.parametrize('size', [(48, 32), (24, 72)])
def test_images_of_any_size(kind, size):
    """As a model of timm whose position embedding was resized for that size."""
    name, settings = KINDS[kind]
    theirs, ours = both(kind, out_type='raw')
    fixed = timm.create_model(name, num_classes=0, **{**settings, 'dynamic_img_size': False})
    state = {n: t for n, t in theirs.state_dict().items() if n in fixed.state_dict()}
    fixed.load_state_dict(state, strict=False)
    resizable = hasattr(fixed, 'set_input_size')
    if resizable:
        fixed.set_input_size(img_size=size)
    else:  # Eva: built for the size, with positions that timm resizes
        fixed = timm.create_model(
            name, num_classes=0, **{**settings, 'img_size': size, 'dynamic_img_size': False})
        if fixed.pos_embed is not None:
            rows = timm.layers.resample_abs_pos_embed(
                state.pop('pos_embed'), [s // 8 for s in size], (4, 4),
                num_prefix_tokens=0 if fixed.no_embed_class else fixed.num_prefix_tokens)
            fixed.pos_embed.data.copy_(rows)
        fixed.load_state_dict(state, strict=False)
    x = images(2, 3, *size)
    with torch.no_grad():
        (found,) = ours.eval()(x)
        assert found.shape[1] == ours.num_first + math.prod(size) // 64
        torch.testing.assert_close(found, fixed.eval().forward_features(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match='20x32 pixels: patches of 8x8 do not divide them'):
        ours(images(1, 3, 20, 32))


# --- places of DINOv3 ------------------------------------------------------------------------


def places(rows: int, columns: int, width: int, temperature: float = 100.0) -> torch.Tensor:
    """Angles of DINOv3's patches, (rows * columns, width), by the formula of its authors."""
    periods = temperature ** (4 * torch.arange(width // 4, dtype=torch.float64) / width)
    y, x = (2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1 for n in (rows, columns))
    y, x = torch.meshgrid(y, x, indexing='ij')
    angles = 2 * math.pi * torch.stack((y, x), -1).flatten(0, 1)[..., None] / periods
    return angles.flatten(1).tile(2)


def turned(tokens: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn the last of the tokens (B, heads, n, d) by angles (N, d); all others stay."""
    first = tokens.shape[2] - len(angles)
    patches = tokens[:, :, first:]
    one, other = patches.chunk(2, -1)
    patches = patches * angles.cos() + torch.cat((-other, one), -1) * angles.sin()
    return torch.cat((tokens[:, :, :first], patches), 2)


@pytest.mark.parametrize('grid', [(4, 4), (3, 6)])
@pytest.mark.parametrize('prompts_as', ['tokens', 'keys_values'])
def test_dinov3s_attention_is_that_of_its_formula(grid, prompts_as):
    """Class token, registers and prompts have no place, wherever they are computed."""
    model = randomise(build_at_start(dict(prompt=DEEP), 'dinov3', 'seg', prompts_as=prompts_as))
    model = model.double().eval()
    attn, seen = model.blocks[0].attn, []
    attn.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args[0], kwargs, out)), with_kwargs=True)
    with torch.no_grad():
        model(images(2, 3, grid[0] * 8, grid[1] * 8, dtype=torch.float64))
    x, kwargs, out = seen[0]
    prompts = kwargs.get('prompts')
    assert (prompts is None) == (prompts_as == 'tokens')
    assert x.shape[1] == 5 + (3 if prompts is None else 0) + math.prod(grid)
    angles = places(*grid, 16)
    q, k, v = (attn.qkv(x).unflatten(-1, (3, 4, 16))).permute(2, 0, 3, 1, 4)
    q, k = turned(q, angles), turned(k, angles)
    if prompts is not None:
        _, of_k, of_v = attn.qkv(prompts).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        k, v = (torch.cat((a, b.expand(2, -1, -1, -1)), 2) for a, b in ((k, of_k), (v, of_v)))
    wanted = attn.proj(_attend(q, k, v))
    # timm computes sine and cosine in float32.
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize('family', TIMM)
@pytest.mark.parametrize('prompts_as', ['tokens', 'keys_values'])
def test_the_order_of_prompts_changes_nothing(family, prompts_as):
    model = randomise(build_at_start(dict(prompt=DEEP), family, 'seg', prompts_as=prompts_as))
    model, x = model.double().eval(), images(2, 3, 48, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        model.prompt.tokens.copy_(model.prompt.tokens[:, [2, 0, 1]])
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
        model.prompt.tokens[:, 0] *= -2
        assert (model(x)[0] - before[0]).abs().max() > 1e-4


def test_rescaled_places_while_training():
    """The base is frozen and in eval mode; its places follow the mode of the model all the same."""
    make = lambda **how: randomise(build_at_start(  # noqa: E731
        dict(prompt=DEEP), 'dinov3', 'seg', **how))
    model, plain, x = make(rope_rescale=2.0), make(), images(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
    assert not model.train().blocks.training and model.rope.training
    scales, built = [], model.rope._get_pos_embed_from_coords
    model.rope._get_pos_embed_from_coords = lambda c: scales.append(c) or built(c)
    outs = [model(x)[0] for _ in range(8)]
    assert len({out.sum().item() for out in outs}) == 8
    corner = torch.stack([c.abs().max() for c in scales]) / 0.75  # of a grid of four
    assert ((corner >= 0.5) & (corner <= 2)).all() and corner.std() > 0.1
    aspect = [c[0, 0] / c[0, 1] for c in scales]
    assert aspect == pytest.approx([1] * 8)  # both axes by the same number
    del model.rope._get_pos_embed_from_coords
    torch.testing.assert_close(model.eval()(x), plain(x), rtol=0, atol=0)
    assert not plain.train().rope.aug_active
    torch.testing.assert_close(plain(x), plain.eval()(x), rtol=0, atol=0)


def test_no_place_moves_unless_asked_for():
    """timm's Sapiens2 rescales its places, and HF's DINOv3 too, whenever they are in train mode."""
    settings = dict(TINY, num_kv_heads=(None, 2, 1))
    assert create('vit_base_patch16_sapiens2', None, 3, settings).rope.aug_active
    model = backbone('vit_base_patch16_sapiens2', **settings).train()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.eval()(x), rtol=0, atol=0)
    asked = backbone('vit_base_patch16_sapiens2', rope_rescale=3.0, **settings)
    assert (asked.rope.aug_active, asked.rope.rescale_coords) == (True, 3.0)


def test_places_are_made_once_for_a_grid():
    """And anew for another type of numbers; copies have their own."""
    model = build_at_start({}, 'dinov3', 'seg').eval()
    made, create_embed = [], type(model.rope).original._create_embed
    model.rope._create_embed = lambda shape, **_: made.append(tuple(shape)) or create_embed(
        model.rope, shape)
    for side in (32, 32, 48, 48, 32, 32):
        with torch.inference_mode():
            model(images(1, 3, side, 32))
    assert made == [(4, 4), (6, 4), (4, 4)]
    sum(out.sum() for out in model(images(1, 3, 32, 32))).backward()  # made in inference mode
    again = copy.deepcopy(model).double()
    del again.rope._create_embed
    x = images(1, 3, 32, 32, dtype=torch.float64)
    (sum(out.sum() for out in again(x))).backward()
    fresh = build_at_start({}, 'dinov3', 'seg').double().eval()
    fresh.load_state_dict(again.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again(x), fresh(x), strict=True))


# --- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(('options', 'message'), [
    (dict(model='vit_smal_patch16_dinov3'), "'vit_smal_patch16_dinov3' is not known; did you mean"),
    (dict(model='swin_tiny_patch4_window7_224'), 'SwinTransformer cannot be tuned: it is neither'),
    (dict(out_type='patches'), "out_type must be .* found 'patches'"),
    (dict(out_indices=[3, 1]), r'out_indices must rise from block to block, found \[3, 1\]'),
    (dict(out_indices=12), r'out_indices must be .* from -12 to 11, found \[12\]'),
    (dict(out_type='pooled', out_indices=[3]), "'pooled' is made of the last block"),
    (dict(model='vit_base_patch16_siglip_256', out_type='cls_token'),
     "vit_base_patch16_siglip_256 has no class token; take 'pooled' or 'avg_tokens'"),
    (dict(img_size=40), r'img_size \(40, 40\) is no multiple of its patches \(16, 16\)'),
    (dict(img_size=64, image_prompt=dict(type='vpt_dense.PadPrompt', width=5)),
     r'img_size \(74, 74\) is no .*\(16, 16\); image_prompt puts 5 pixels on each side'),
    (dict(pool='patches'), "timm refuses .*'pool'"),
    (dict(patch_drop_rate=0.5), 'patch_drop_rate leaves out patches'),
    (dict(rope_rescale=-1), 'rope_rescale'),
    (dict(pretrained=True, init_cfg=dict(type='Pretrained', checkpoint='a.pth')), 'leave one out'),
])  # fmt: skip
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message) as caught, on('meta'):
        backbone(**{'name': 'vit_small_patch16_dinov3', **{
            'name' if key == 'model' else key: value for key, value in options.items()}})
    assert '\n' not in str(caught.value)


def test_a_check_leaves_the_model_alone():
    model = create('vit_small_patch16_224', 32, 3, dict(TINY))
    TimmBackbone.check(model)
    assert type(model) is timm.models.VisionTransformer

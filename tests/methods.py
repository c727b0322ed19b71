"""The tables of methods and of backbones: what tests/test_methods.py and others run over."""

from typing import Any, NamedTuple

import pytest
from mmengine.registry import MODELS
from sizes import Sizes, convnext, count, formula_of, resnet, swin, vit
from utils import TINY_ARCH, randomise


class Backbone(NamedTuple):
    """A tiny backbone: a family, or a variant of one.

    Attributes:
        cfg: Its config.
        size: Height and width of its images, in pixels.
        tasks: 'cls' (its outputs are vectors, or maps to be pooled) and 'seg' (maps) -> what is set
            for it; and the sizes that it then has.
        family: Whose rows it takes; empty: its own.
        upstream: The class that it is without a method, bit for bit; empty: none.
        unfit: Rows without meaning here -> what they say.
        unmergeable: Rows that merge elsewhere -> what they say here.
    """

    cfg: dict[str, Any]
    size: tuple[int, int]
    tasks: dict[str, tuple[dict[str, Any], Sizes]]
    family: str = ''
    upstream: str = ''
    unfit: dict[str, str] = {}
    unmergeable: dict[str, str] = {}


_VIT = dict(type='vpt_dense.VisionTransformer', arch=TINY_ARCH, img_size=32, patch_size=8)
_TOKEN, _MAPS = dict(out_type='cls_token'), dict(out_type='featmap', out_indices=[1, 3])
_GATES = dict(gates=True, mlp_norm=True)


def _variant(
    settings: dict[str, Any], task: str = 'cls', size: int = 32, **sizes: Any
) -> Backbone:
    """A vision transformer that differs from the tiny one, in one task."""
    of_task = dict(vector=True, reads_patches=False) if task == 'cls' else dict(outputs=2)
    settings = {**(_TOKEN if task == 'cls' else _MAPS), **settings}
    sized = {task: (settings, vit(size=size, **{**of_task, **sizes}))}
    return Backbone(_VIT, (size, size), sized, 'vit')


#: A SwiGLU has two thirds of the width, rounded up to a multiple of 8.
_SWIGLU = dict(layer_cfgs=dict(ffn_type='swiglu_fused'))
_GLU = dict(hidden=(128 * 2 // 3 + 7) // 8 * 8, gates=True)
_SCALE = dict(layer_scale_init_value=0.1)


def _timm(
    name: str, of_sizes: dict[str, Any], of_cls: dict[str, Any], **fields: Any
) -> Backbone:
    """A tiny model of timm.

    Args:
        name: timm's.
        of_sizes: Its sizes.
        of_cls: What it puts out in classification, and sizes that are others there.
        **fields: Further ones of :class:`Backbone`.
    """
    out_type, of_cls = of_cls['out_type'], {k: v for k, v in of_cls.items() if k != 'out_type'}
    cfg = dict(type='vpt_dense.TimmVisionTransformer', model=name, img_size=32, patch_size=8,
               embed_dim=64, depth=4, num_heads=4, mlp_ratio=2)
    return Backbone(
        cfg, (32, 32),
        dict(cls=(dict(out_type=out_type), vit(vector=True, **{**of_sizes, **of_cls})),
             seg=(_MAPS, vit(outputs=2, **of_sizes))), **fields)


_NO_BIAS = r'blocks\.0\.attn\.\w+ has no bias, so that no shift can be merged into it'
_CLS = dict(out_type='cls_token', reads_patches=False)
_NO_CLASS = {'tcpa': r"TCPAPrompt has prompts for the class token"}
#: Vision transformers of timm, under timm's names.
TIMM: dict[str, Backbone] = {
    # Rotary positions alone, no bias of queries, keys and values.
    'dinov3': _timm(
        'vit_small_patch16_dinov3',
        dict(registers=4, layer_scale=True, biases=0, positions=0), _CLS,
        unmergeable={'add': r'no position embedding', 'add-1': r'no position embedding',
                     'ssf': _NO_BIAS, 'rep-adapter': _NO_BIAS, 'glora': _NO_BIAS}),
    # Queries, keys and values each of a layer, without a bias of the keys; a norm in the MLP.
    'eva02-timm': _timm(
        'eva02_base_patch14_448',
        dict(gates=True, mlp_norm=True, biases=2, qkv=3, fc1=2, norms=0),
        dict(out_type='pooled', norms=1),
        unmergeable={'ssf': _NO_BIAS, 'rep-adapter': _NO_BIAS, 'glora': _NO_BIAS}),
    # No class token; a classifier reads what attention pools.
    'siglip2': _timm(
        'vit_base_patch16_siglip_256', dict(cls=False), dict(out_type='pooled', pool=True),
        unfit={'cls-token': r"trainable: pattern .*cls_token.* matches none of the"}),
    # Seven registers; the class token has no position.
    'radio': _timm(
        'vit_base_patch16_radio_v3',
        dict(registers=7, layer_scale=True, positions=16, norms=0), _CLS),
}  # fmt: skip

FAMILIES: dict[str, Backbone] = {
    'vit': Backbone(
        _VIT, (32, 32),
        dict(cls=(_TOKEN, vit(vector=True, reads_patches=False)), seg=(_MAPS, vit(outputs=2))),
        upstream='mmpretrain.VisionTransformer'),
    'eva02': Backbone(
        dict(_VIT, type='vpt_dense.EVA02VisionTransformer', arch=dict(TINY_ARCH, sub_norm=True)),
        (32, 32),
        dict(cls=(_TOKEN, vit(vector=True, reads_patches=False, **_GATES)),
             seg=(_MAPS, vit(outputs=2, **_GATES)))),
    'swin': Backbone(
        dict(type='vpt_dense.SwinTransformer', img_size=32, patch_size=4, window_size=4,
             arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]), out_indices=(1,),
             drop_path_rate=0.0, pad_small_map=True),
        (32, 32), dict(cls=({}, swin()), seg=(dict(out_indices=(0, 1)), swin(outputs=(0, 1)))),
        upstream='mmpretrain.SwinTransformer'),
    'resnet': Backbone(
        dict(type='vpt_dense.ResNet', depth=50, img_size=64, stem_channels=8, base_channels=8),
        (64, 64),
        dict(cls=({}, resnet()), seg=(dict(out_indices=(0, 1, 2, 3)), resnet(outputs=range(4)))),
        upstream='mmpretrain.ResNet'),
    'convnext': Backbone(
        dict(type='vpt_dense.ConvNeXt', img_size=64,
             arch=dict(depths=[1, 1, 1, 3], channels=[8, 16, 24, 32])),
        (64, 64),
        dict(cls=({}, convnext()),
             seg=(dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
                  convnext(outputs=range(4)))),
        upstream='mmpretrain.ConvNeXt'),
    **TIMM,
}  # fmt: skip
#: Every kind of vision transformer that mmpretrain's class covers.
VARIANTS: dict[str, Backbone] = {
    'patch 14': _variant(dict(patch_size=14, img_size=56), size=56, patch=14),
    'registers': _variant(dict(num_registers=4), 'seg', registers=4),
    'layer scale': _variant(_SCALE, layer_scale=True),
    'CLIP': _variant(
        dict(pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5),
             layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU'))),
        pre_norm=True,
    )._replace(unmergeable={'add': 'without the pre_norm', 'add-1': 'without the pre_norm',
                            'ssf': 'patch_embed.projection has no bias'}),
    'CLIP, prompts through the norm': _variant(
        dict(type='vpt_dense.CLIPVisionTransformer', norm_prompts=True), pre_norm=True,
    )._replace(unmergeable={'add': 'without the pre_norm', 'add-1': 'without the pre_norm',
                            'ssf': 'patch_embed.projection has no bias'}),
    'average pool': _variant(
        dict(out_type='avg_featmap'), norms=2, reads_patches=True)._replace(unfit=_NO_CLASS),
    'average pool of MAE': _variant(
        dict(out_type='avg_featmap', final_norm=False), reads_patches=True,
    )._replace(unfit=_NO_CLASS),
    'SwiGLU': _variant(_SWIGLU, **_GLU),
    'no cls token': _variant(
        dict(with_cls_token=False), 'seg', cls=False,
    )._replace(unfit={'cls-token': r"trainable: pattern .*cls_token.* matches none of the"}),
    'no final norm': _variant(dict(final_norm=False), 'seg', norms=0),
    'giant DINOv2 with registers': _variant(
        dict(patch_size=14, img_size=56, num_registers=4, **_SCALE, **_SWIGLU), size=56, patch=14,
        registers=4, layer_scale=True, **_GLU),
    # One layer of queries, keys and values, whose bias is made of parameters beside it.
    'EVA-02 tiny': TIMM['eva02-timm']._replace(
        cfg=dict(TIMM['eva02-timm'].cfg, model='eva02_tiny_patch14_336'), family='eva02-timm',
        tasks=dict(seg=(_MAPS, vit(outputs=2, gates=True, biases=2, norms=0))),
        unmergeable=dict.fromkeys(
            ('ssf', 'rep-adapter', 'glora'), r'blocks\.0\.attn\.qkv\.bias is computed from other')),
}  # fmt: skip
BACKBONES = {**FAMILIES, **VARIANTS}

_OURS = ('vit', 'eva02')
_PLAIN = (*_OURS, *TIMM)
_TOKENS = (*_PLAIN, 'swin')
_ALL = (*_TOKENS, 'resnet', 'convnext')


class Row(NamedTuple):
    """One method.

    Attributes:
        tuning: What it sets on the backbone, as the files of configs/_base_/methods do.
        fits: The families of backbones that it fits.
        tasks: 'cls', 'seg' or both.
        starts_equal: Without training the backbone computes what it computes without the method.
        merges: Its adapters can become weights of the backbone that compute the same.
        files: Names of its files in configs/_base_/methods, which say how much trains.
        formula: The same, of a row without a file, or with other settings than its files'.
    """

    tuning: dict[str, Any]
    fits: tuple[str, ...]
    tasks: tuple[str, ...] = ('cls', 'seg')
    starts_equal: bool = False
    merges: bool = False
    files: tuple[str, ...] = ()
    formula: str = ''

    def counts(self, backbone: str, task: str) -> set[int]:
        """How many parameters of a backbone train, by its formulas: one number."""
        files = (file for file in self.files if not file.endswith('_cls'))  # which say no other
        formulas = [self.formula] if self.formula else map(formula_of, files)
        sizes = BACKBONES[backbone].tasks[task][1]
        return {count(formula, sizes, self.tuning) for formula in formulas}


TOKENS = dict(type='vpt_dense.TokenPrompt', num_tokens=5)
DEEP = dict(**TOKENS, deep=True)
#: Of 5 tokens in each of 4 layers: 3 or 4 of them in part, 37 pieces.
KEPT = [[0xffff, 0, 0xfff0, 0, 0x8ff1 - 1], [0, 0xff, 0xfff, 0xff00, 0x1ff],
        [0x7fff, 0x7fff, 0x7f, 0, 0], [0, 0, 0x5555, 0xffff, 0x1fff]]

ROWS = {
    # --- what trains of the backbone itself
    # Not the ResNet: while all of it trains, its batch norms mix the images of a batch.
    'full': Row(dict(trainable=['.*']), (*_TOKENS, 'convnext'), starts_equal=True, files=('full',)),
    'linear': Row(dict(trainable=[]), _ALL, starts_equal=True, files=('head', 'linear')),
    'bias': Row(dict(trainable=['bias$']), _ALL, starts_equal=True, files=('bias',)),
    'partial-1_resnet-50': Row(
        dict(trainable=[r'^layer4\.2\.']), ('resnet',), starts_equal=True,
        files=('partial-1_resnet-50',)),
    'partial-1_convnext-b': Row(
        dict(trainable=[r'^stages\.3\.2\.', r'^norm3\.']), ('convnext',), starts_equal=True,
        files=('partial-1_convnext-b',)),
    'cls-token': Row(
        dict(trainable=[r'(^|\.)(cls_token|class_token|class_embedding)$']), _PLAIN,
        starts_equal=True, files=('cls-token',)),
    'layernorm': Row(
        dict(trainable=[
            r'(^|[._])(ln|norm|layer_?norm|layrnorm)(_?(\d+|pre|before|after))?\.(weight|bias)$'
            r'|^downsample_layers\.(0\.1|[1-3]\.0)\.']),
        (*_TOKENS, 'convnext'), starts_equal=True, files=('layernorm',)),
    'partial-1': Row(
        dict(trainable=['partial:1']), _TOKENS, starts_equal=True, files=('partial-1',)),
    'partial-2': Row(
        dict(trainable=['partial:2']), _TOKENS, starts_equal=True, files=('partial-2',)),
    'partial-4': Row(
        dict(trainable=['partial:4']), _PLAIN, starts_equal=True, files=('partial-4',)),
    'last-4': Row(dict(trainable=['last:4']), _PLAIN, starts_equal=True, files=('last-4',)),
    'last-2': Row(
        dict(trainable=['last:2']), _TOKENS, starts_equal=True, formula='2 * block[-1]'),
    'attn-proj': Row(
        dict(trainable=[r'^(?!head\.).*(attn|msa|attention)\.(proj|o_proj|out_proj|output\.dense)'
                        r'\.(weight|bias)$']),
        _TOKENS, starts_equal=True, files=('attn-proj',)),
    # --- prompts in token space
    'shallow': Row(dict(prompt=TOKENS), _TOKENS, files=('shallow', 'shallow_cls')),
    'deep': Row(
        dict(prompt=DEEP), _TOKENS, files=('deep', 'samples', 'prototypes', 'vipamin', 'da-vpt')),
    'da-vpt-plus': Row(
        dict(prompt=DEEP, trainable=[r'^prompt\.', r'\.qkv\.bias$']),
        ('vit', 'eva02', 'siglip2', 'radio'), files=('da-vpt-plus',)),
    'prompt-fixed': Row(dict(prompt=DEEP, trainable=[]), _TOKENS, files=('prompt-fixed',)),
    'pixel': Row(
        dict(prompt=dict(type='vpt_dense.PixelPrompt', num_tokens=5)), _PLAIN, files=('pixel',)),
    **{f'pool-{name}': Row(
        dict(prompt=DEEP, out_type='avg_tokens', pool=pool), _OURS, tasks=('cls',),
        files=(f'pool-{name}',))
       for name, pool in dict(image='patches', prompts='prompts', both='both').items()},
    'add': Row(
        dict(adapters=[dict(type='vpt_dense.AddPrompt')]), _PLAIN, merges=True, files=('add',)),
    'add-deep': Row(
        dict(adapters=[dict(type='vpt_dense.AddPrompt', deep=True)]), _PLAIN, files=('add',)),
    'add-1': Row(
        dict(adapters=[dict(type='vpt_dense.AddPrompt', per_token=False)]), _PLAIN, merges=True,
        files=('add-1',)),
    'add-1-deep': Row(
        dict(adapters=[dict(type='vpt_dense.AddPrompt', per_token=False, deep=True)]), _PLAIN,
        files=('add-1',)),
    'prefix': Row(
        dict(prompt=dict(type='vpt_dense.PrefixPrompt', num_tokens=5)), _TOKENS, files=('prefix',)),
    'e2vpt': Row(
        dict(prompt=dict(type='vpt_dense.E2VPTPrompt', num_tokens=5, num_kv_tokens=3)), _TOKENS,
        files=('e2vpt',)),
    'vfpt': Row(
        dict(prompt=dict(type='vpt_dense.FourierPrompt', num_tokens=5, fourier_share=0.6)),
        _TOKENS, files=('vfpt',)),
    'pae': Row(
        dict(prompt=dict(type='vpt_dense.PAEPrompt', num_tokens=5, koopman_dims=8)), _PLAIN,
        files=('pae',)),
    'gated': Row(
        dict(prompt=dict(type='vpt_dense.GatedPrompt', num_tokens=5)), _PLAIN, files=('gated',)),
    'residual': Row(
        dict(prompt=dict(type='vpt_dense.ResidualPrompt', num_tokens=5)), _TOKENS,
        files=('residual',)),
    'vapt': Row(
        dict(prompt=dict(type='vpt_dense.VAPTPrompt', num_tokens=5, hidden_dims=8, grid=(4, 4))),
        _PLAIN, files=('vapt',)),
    'lspt_like': Row(
        dict(prompt=dict(type='vpt_dense.LSPTLikePrompt', num_tokens=5, hidden_dims=8)), _PLAIN,
        files=('lspt_like',)),
    'ivpt_like': Row(
        dict(prompt=dict(type='vpt_dense.IVPTLikePrompt', num_tokens=5)), _PLAIN,
        files=('ivpt_like',)),
    'tcpa': Row(
        dict(prompt=dict(type='vpt_dense.TCPAPrompt', num_tokens=2, class_pool=4, class_chosen=2,
                         patch_pool=5, patch_chosen=2)),
        _OURS, tasks=('cls',), files=('tcpa',)),
    # --- prompts that are chosen by what the frozen backbone makes of an image
    'l2p': Row(
        dict(prompt=dict(type='vpt_dense.L2PPrompt', num_tokens=3, pool_size=4, chosen=4),
             out_type='avg_tokens', pool='prompts'),
        _OURS, tasks=('cls',), files=('l2p',)),
    'dualprompt': Row(
        dict(prompt=dict(type='vpt_dense.DualPrompt', num_general=3, num_expert=5,
                         general_layers=(0, 1), expert_layers=(1, 2))),
        _OURS, tasks=('cls',), files=('dualprompt',),
        formula='(2 * num_general + 2 * num_expert + 1) * d[0]'),
    'coda-prompt': Row(
        dict(prompt=dict(type='vpt_dense.CODAPrompt', num_tokens=2, components=3, layers=(0, 2))),
        _OURS, tasks=('cls',), files=('coda-prompt',),
        formula='2 * components * (2 * num_tokens + 2) * d[0]'),
    # --- options of theirs
    'e2vpt, pruned': Row(
        dict(prompt=dict(type='vpt_dense.E2VPTPrompt', num_tokens=5, num_kv_tokens=3, kept=KEPT)),
        ('vit', 'swin'), formula='sum(n * (37 * d // 16 + num_kv_tokens * d))'),
    'deep, dropout': Row(
        dict(prompt=dict(DEEP, dropout=0.5)), ('vit', 'swin'), formula=formula_of('deep')),
    'deep, shared': Row(
        dict(prompt=dict(DEEP, shared=True)), ('vit',), formula='num_tokens * d[0]'),
    'deep, projected': Row(
        dict(prompt=dict(DEEP, project_dims=8)), ('vit', 'swin'),
        formula='sum(n * num_tokens * project_dims + project_dims * d + d)'),
    'deep, first 2': Row(
        dict(prompt=dict(DEEP, layer_range=(0, 2))), ('vit', 'swin'),
        formula='2 * num_tokens * d[0]'),
    'deep, first 2, removed': Row(
        dict(prompt=dict(DEEP, layer_range=(0, 2), keep_outputs=False)), ('vit', 'swin'),
        formula='2 * num_tokens * d[0]'),
    'deep, last 2': Row(
        dict(prompt=dict(DEEP, layer_range=(-2, None))), ('vit', 'swin'),
        formula='2 * num_tokens * d[-1]'),
    'shallow, in the middle': Row(
        dict(prompt=dict(TOKENS, layer_range=(1, 3), keep_outputs=False)), ('vit', 'swin'),
        formula=formula_of('shallow')),
    # --- prompts in image space
    'pad': Row(
        dict(image_prompt=dict(type='vpt_dense.PadPrompt', width=32)), _ALL,
        files=('pad', 'pad_cls')),
    'concat-channel': Row(
        dict(image_prompt=dict(type='vpt_dense.ConcatChannelPrompt', num_channels=2),
             trainable=[r'^image_prompt\.',
                        r'^(patch_embed\.proj(ection)?|conv1|downsample_layers\.0\.0)\.']),
        _ALL, files=('concat-channel',)),
    'lor-vp': Row(
        dict(image_prompt=dict(type='vpt_dense.LoRVP', rank=4)), _ALL, starts_equal=True,
        files=('lor-vp',)),
    # --- adapters
    'lora': Row(
        dict(adapters=[dict(type='vpt_dense.LoRA', rank=2)]), _TOKENS, starts_equal=True,
        merges=True, files=('lora',)),
    'sparse': Row(
        dict(adapters=[dict(
            type='vpt_dense.SparseUpdate', counts={r'^(?!attn_pool).*\.(qkv|fc2)$': 7})]),
        _TOKENS, starts_equal=True, merges=True, formula='7 * sum(n * (qkv + 1))'),
    'cvpt': Row(
        dict(adapters=[dict(type='vpt_dense.CVPT', num_tokens=5)]), _TOKENS, files=('cvpt',)),
    'lora-qv': Row(
        dict(adapters=[dict(type='vpt_dense.LoRA', rank=2, parts=['q', 'v'])]), _TOKENS,
        starts_equal=True, merges=True, formula='sum(4 * n * rank * d)'),
    'lora-all': Row(
        dict(adapters=[
            dict(type='vpt_dense.LoRA', rank=2, alpha=3,
                 targets=[r'^(?!attn_pool).*\.(qkv|proj|fc1|fc2)$'])]),
        _TOKENS, starts_equal=True, merges=True,
        formula='sum(n * rank * ((qkv + 3) * d + 2 * d + (fc1 * d + u) + (h + d)))'),
    'rslora': Row(
        dict(adapters=[dict(type='vpt_dense.LoRA', rank=2, alpha=3, rslora=True)]), _TOKENS,
        starts_equal=True, merges=True, files=('rslora',)),
    'dora': Row(
        dict(adapters=[dict(type='vpt_dense.DoRA', rank=2)]), _TOKENS, starts_equal=True,
        merges=True, files=('dora',)),
    'dora-qv': Row(
        dict(adapters=[dict(type='vpt_dense.DoRA', rank=2, alpha=3, parts=['q', 'v'])]), _TOKENS,
        starts_equal=True, merges=True, formula='sum(n * (4 * rank + 2) * d)'),
    'pissa': Row(
        dict(adapters=[dict(type='vpt_dense.PiSSA', rank=2)]), _TOKENS, starts_equal=True,
        merges=True, files=('pissa',)),
    'pissa-qv': Row(
        dict(adapters=[dict(type='vpt_dense.PiSSA', rank=2, alpha=3, parts=['q', 'v'])]), _TOKENS,
        starts_equal=True, merges=True, formula='sum(4 * n * rank * d)'),
    'soma': Row(
        dict(adapters=[dict(type='vpt_dense.SoMA', rank=2)]), _TOKENS, starts_equal=True,
        merges=True, files=('soma',)),
    'peft': Row(
        dict(adapters=[dict(type='vpt_dense.PEFT', config=dict(peft_type='IA3'))]), _TOKENS,
        starts_equal=True, merges=True, files=('peft',)),
    'peft-lora': Row(
        dict(adapters=[dict(type='vpt_dense.PEFT', config=dict(peft_type='LORA', r=2))]),
        ('vit', 'swin'), starts_equal=True, merges=True, formula='sum(n * 8 * d)'),
    'glora': Row(
        dict(adapters=[dict(type='vpt_dense.GLoRA', rank=2)]), _TOKENS, starts_equal=True,
        merges=True, files=('glora',)),
    'bi-lora': Row(
        dict(adapters=[dict(type='vpt_dense.BiLoRA', rank=3, parts=['q', 'v'])]), _TOKENS,
        merges=True, files=('bi-lora',)),
    'vera': Row(
        dict(adapters=[dict(type='vpt_dense.VeRA', rank=3, parts=['q', 'v'])]), _TOKENS,
        starts_equal=True, merges=True, files=('vera',)),
    'vera-all': Row(
        dict(adapters=[
            dict(type='vpt_dense.VeRA', rank=3, targets=[r'^(?!attn_pool).*\.(qkv|proj|fc1|fc2)$'])
        ]), ('vit', 'eva02', 'swin'), starts_equal=True, merges=True,
        formula='sum(n * (4 * rank + 5 * d + u))'),
    **{f'fact-{form}': Row(
        dict(adapters=[dict(type='vpt_dense.FacT', form=form, rank=2)]), _TOKENS,
        starts_equal=True, merges=True, files=(f'fact-{form}',))
       for form in ('tt', 'tk')},
    'adapter': Row(
        dict(adapters=[dict(type='vpt_dense.BottleneckAdapter', reduction=8)]), _TOKENS,
        starts_equal=True, files=('adapter',)),
    'adaptformer': Row(
        dict(adapters=[dict(type='vpt_dense.AdaptFormer', hidden_dims=8)]), _TOKENS,
        starts_equal=True, files=('adaptformer',)),
    'rep-adapter': Row(
        dict(adapters=[dict(type='vpt_dense.RepAdapter', rank=4, groups=2)]), _TOKENS,
        starts_equal=True, merges=True, files=('rep-adapter',)),
    'ssf': Row(
        dict(adapters=[dict(type='vpt_dense.SSF')]), _TOKENS, merges=True, files=('ssf',)),
    'rein': Row(
        dict(adapters=[dict(type='vpt_dense.Rein', num_tokens=6, rank=2)]), _TOKENS,
        files=('rein',)),
    'mona': Row(
        dict(adapters=[dict(type='vpt_dense.Mona', hidden_dims=8)]), _TOKENS, starts_equal=True,
        files=('mona',)),
    'mona, random start': Row(
        dict(adapters=[dict(type='vpt_dense.Mona', hidden_dims=8, zero_start=False)]), ('vit',),
        formula=formula_of('mona')),
    'convpass': Row(
        dict(adapters=[dict(type='vpt_dense.Convpass', hidden_dims=4)]), _TOKENS,
        starts_equal=True, files=('convpass',)),
    'side': Row(dict(adapters=[dict(type='vpt_dense.SideNetwork')]), _TOKENS, files=('side',)),
    'vit-split': Row(
        dict(adapters=[dict(type='vpt_dense.ViTSplit', num_blocks=2, num_maps=2)]), _OURS,
        tasks=('seg',), files=('vit-split',)),
    # --- combinations
    'deep-bias': Row(
        dict(prompt=DEEP, trainable=[r'^prompt\.', 'bias$']), _TOKENS, files=('deep-bias',)),
    'deep-lora': Row(
        dict(prompt=DEEP, adapters=[dict(type='vpt_dense.LoRA', rank=2)]), _TOKENS,
        files=('deep-lora',)),
}  # fmt: skip

#: Families that differ from another of timm in sizes and layers: what holds by the code that they
#: share is tested in the long tests, or on the other.
COLUMNS_ARE_LONG = tuple(TIMM)[1:]
#: Rows that act where another one does, by the same hooks or calls: quick on the plain vision
#: transformer, in one task on Swin, slow or long on all others.
KIN = frozenset({
    'da-vpt-plus', 'vfpt', 'e2vpt, pruned', 'sparse', 'rslora', 'dora', 'dora-qv', 'pissa',
    'pissa-qv', 'soma', 'peft', 'peft-lora', 'glora', 'bi-lora', 'vera', 'vera-all', 'fact-tt',
    'fact-tk',
    'mona, random start', 'pae', 'lora-qv', 'deep-lora', 'deep, dropout', 'deep, last 2'})


def later(*place: int, every: int = 3) -> pytest.MarkDecorator:
    """Slow or long: of a table of slow tests every third diagonal is slow, all others long.

    Args:
        *place: The row and the column, as numbers.
        every: Of so many diagonals one is slow.
    """
    return pytest.mark.long if sum(place) % every else pytest.mark.slow


#: Every row on every family that it fits, in every task.
CASES = [
    (name, family, task)
    for name, row in ROWS.items() for family in row.fits for task in row.tasks
    if name not in FAMILIES[family].unfit
]  # fmt: skip
#: The same for the variants of a family.
OF_VARIANTS = [
    (name, variant, task)
    for variant, kind in VARIANTS.items() for task in kind.tasks for name, row in ROWS.items()
    if kind.family in row.fits and task in row.tasks and name not in kind.unfit
]  # fmt: skip
#: Rows whose graph is that of another: they differ in what trains, in sizes, or in dropout, which
#: no graph has; and one that has both parts of two others.
_OTHERS_GRAPHS = ('prompt-fixed', 'deep-bias', 'deep-lora', 'deep, dropout', 'lora-qv', 'rslora',
                  'dora-qv', 'pissa-qv', 'soma', 'mona, random start', 'da-vpt-plus')
#: A row for each place of a block where something stands or changes: what a method itself computes
#: there is in its graph on the plain vision transformer, and families differ in their places.
_PLACES = {
    # Its gated MLP and the norm inside, and where positions come in.
    'eva02': ('linear', 'deep', 'e2vpt', 'add-deep', 'lora-all', 'adapter', 'rep-adapter', 'ssf'),
    # timm's blocks: its attention is computed by ours where keys and values join.
    'dinov3': ('full', 'linear', 'deep', 'pixel', 'add-deep', 'e2vpt', 'pad', 'lora-all', 'cvpt',
               'adapter', 'rep-adapter', 'ssf', 'rein', 'mona', 'convpass', 'side'),
    # Windows: tokens, keys and values are put into each.
    'swin': ('full', 'linear', 'shallow', 'deep', 'prefix', 'e2vpt', 'vfpt', 'residual',
             'deep, projected', 'deep, first 2, removed', 'deep, last 2', 'pad', 'lora-all',
             'cvpt', 'adapter', 'rep-adapter', 'ssf', 'rein', 'mona', 'convpass', 'side'),
}
#: Those whose graphs are made of other operations: which weights train does not count, but for all
#: and none of them; and of the tasks the one with more outputs does for both.
GRAPHS = [
    (name, family, task) for name, family, task in CASES
    if task == ROWS[name].tasks[-1] and family not in COLUMNS_ARE_LONG
    and name not in _OTHERS_GRAPHS and name in _PLACES.get(family, ROWS)
    and (set(ROWS[name].tuning) != {'trainable'} or name in ('full', 'linear'))
]  # fmt: skip

#: Rows of every kind on the first family, one on the others: the graphs of all others are made of
#: the same operations, and long.
_OF_EVERY_KIND = ('full', 'deep', 'coda-prompt', 'pad', 'lora-all', 'ssf', 'rein')
GRAPH_PARAMS = [
    pytest.param(name, family, task, marks=pytest.mark.slow if name in (
        _OF_EVERY_KIND if family == 'vit' else ('deep',) if family in _TOKENS else ('pad',)
    ) else pytest.mark.long)
    for name, family, task in GRAPHS]


def few_blocks(family: str, task: str, name: str = '') -> dict[str, Any]:
    """What makes a backbone as shallow as a graph of it may be: it takes long for each block.

    A first and a last block; of a Swin both kinds of windows too. A row with a range of blocks
    needs all, and one with copies of some.
    """
    arch = FAMILIES[family].cfg.get('arch')
    prompt = ROWS[name].tuning.get('prompt') if name else None
    if prompt and 'layer_range' in prompt or name == 'vit-split':
        return {}
    if family == 'swin':
        return dict(arch=dict(arch, depths=[2, 1]))
    if family not in _PLAIN:
        return {}
    settings = dict(depth=2) if family in TIMM else dict(arch=dict(arch, num_layers=2))
    return settings if task == 'cls' else dict(settings, out_indices=[0, 1])


def build(name: str, backbone: str, task: str, **kwargs: Any):
    """Build the tiny backbone of a row, every parameter with a value of its own."""
    return randomise(build_at_start(ROWS[name].tuning, backbone, task, **kwargs))


def build_at_start(tuning: dict[str, Any], backbone: str, task: str, **kwargs: Any):
    """Build a tiny backbone as it starts."""
    kind = BACKBONES[backbone]
    cfg = {**kind.cfg, **kind.tasks[task][0], **tuning, **kwargs}
    if not cfg.get('prompt'):
        cfg.pop('norm_prompts', None)  # refused without one
    return MODELS.build(cfg)

"""The table of method x backbone x task: what every test of tests/test_methods.py runs over."""

from typing import Any, NamedTuple

from mmengine.registry import MODELS
from utils import TINY_ARCH, randomise

#: Tiny backbones of every family, the images they are tested with (height, width in pixels), and
#: what turns their features into maps (seg) or into vectors (cls).
BACKBONES: dict[str, dict[str, Any]] = {
    'vit': dict(type='vpt_dense.VisionTransformer', arch=TINY_ARCH, img_size=32,
                patch_size=8),
    'eva02': dict(type='vpt_dense.EVA02VisionTransformer', img_size=32, patch_size=8,
                  arch=dict(TINY_ARCH, sub_norm=True)),
    'swin': dict(type='vpt_dense.SwinTransformer', img_size=32, patch_size=4, window_size=4,
                 arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]), out_indices=(1,),
                 drop_path_rate=0.0, pad_small_map=True),
    'resnet': dict(type='vpt_dense.ResNet', depth=50, img_size=64, stem_channels=8,
                   base_channels=8),
    'convnext': dict(type='vpt_dense.ConvNeXt', img_size=64,
                     arch=dict(depths=[1, 1, 1, 3], channels=[8, 16, 24, 32])),
}  # fmt: skip
SIZES = {'vit': (32, 32), 'eva02': (32, 32), 'swin': (32, 32), 'resnet': (64, 64),
         'convnext': (64, 64)}  # fmt: skip
TASKS: dict[str, dict[str, dict[str, Any]]] = {
    'vit': dict(cls=dict(out_type='cls_token'), seg=dict(out_type='featmap', out_indices=[1, 3])),
    'eva02': dict(cls=dict(out_type='cls_token'), seg=dict(out_type='featmap', out_indices=[1, 3])),
    'swin': dict(cls={}, seg=dict(out_indices=(0, 1))),
    'resnet': dict(cls={}, seg=dict(out_indices=(0, 1, 2, 3))),
    'convnext': dict(cls={}, seg=dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False)),
}

# Sizes of the tiny ViT, for the formulas: width, blocks, MLP width, patches, pixels of a patch.
D, N, H, PATCHES, PIXELS = 64, 4, 128, 16, 8 * 8 * 3
#: Parameters of a block: qkv, proj, MLP, two norms, with biases.
BLOCK = (3 * D * D + 3 * D) + (D * D + D) + (2 * D * H + H + D) + 4 * D
BLOCK_BIASES = 3 * D + D + H + D + 2 * D
# The tiny Swin: width and depth of its stages, MLP four times as wide.
SWIN = ((16, 2), (32, 2))

# The tiny ResNet-50: width and blocks of its stages, which put out four times as much, after a stem
# of 8. And the tiny ConvNeXt.
RESNET = ((8, 3), (16, 4), (32, 6), (64, 3))
CONVNEXT = ((8, 1), (16, 1), (24, 1), (32, 3))
#: A block of ConvNeXt: depthwise 7x7, norm, two linear layers, layer scale.
CONVNEXT_BLOCK = {c: 50 * c + 2 * c + 2 * 4 * c * c + 5 * c + c for c, _ in CONVNEXT}
_DOWN = ((8, 16), (16, 24), (24, 32))  # between stages: norm and 2x2 convolution
#: All but the norms of the outputs.
CONVNEXT_FULL = (
    (3 * 4 * 4 + 1) * 8 + 2 * 8 + sum(n * CONVNEXT_BLOCK[c] for c, n in CONVNEXT)
    + sum(2 * a + 4 * a * b + b for a, b in _DOWN)
)
CONVNEXT_BIASES = 8 + 8 + sum(n * 7 * c for c, n in CONVNEXT) + sum(a + b for a, b in _DOWN)
#: All but the norms of the outputs: of the stem, the blocks and the layers between stages.
CONVNEXT_NORMS = 2 * 8 + sum(n * 2 * c for c, n in CONVNEXT) + sum(2 * a for a, _ in _DOWN)

#: Parameters of the norms behind its stages, in classification and segmentation.
SWIN_NORMS = dict(cls=2 * 32, seg=2 * (16 + 32))
#: Parameters of a block of its second stage: width 32, four heads, windows of 4x4.
SWIN_BLOCK = 12 * 32 * 32 + 13 * 32 + 4 * 7 * 7
#: All but the norms behind the stages: patch embedding, blocks, merging of patches between stages.
SWIN_FULL = (
    (3 * 4 * 4 + 3) * 16 + 2 * (12 * 16 * 16 + 13 * 16 + 2 * 7 * 7) + 2 * SWIN_BLOCK
    + 2 * 4 * 16 + 4 * 16 * 32
)
SWIN_BIASES = 2 * 16 + sum(depth * 11 * c for c, depth in SWIN) + 4 * 16
#: AlexNet's convolutions (torchvision's, without the classifier).
ALEXNET = 2_469_696


class Row(NamedTuple):
    """One method.

    Attributes:
        tuning: What it sets on the backbone, as the files of configs/_base_/methods do.
        count: Family of backbone -> trainable parameters of the tiny one, as a formula. The
            families that it fits.
        tasks: 'cls', 'seg' or both.
        starts_equal: Without training the backbone computes what it computes without the method.
        merges: Its adapters can become weights of the backbone that compute the same.
        files: Names of its files in configs/_base_/methods.
        seg_count: As ``count``, where segmentation has another.
    """

    tuning: dict[str, Any]
    count: dict[str, int]
    tasks: tuple[str, ...] = ('cls', 'seg')
    starts_equal: bool = False
    merges: bool = False
    files: tuple[str, ...] = ()
    seg_count: dict[str, int] = {}


TOKENS = dict(type='vpt_dense.TokenPrompt', num_tokens=5)

ROWS = {
    # --- what trains of the backbone itself
    'full': Row(
        dict(trainable=['.*']),
        dict(vit=N * BLOCK + PIXELS * D + D + D + (1 + PATCHES) * D + 2 * D,
             swin=SWIN_FULL + SWIN_NORMS['cls'], convnext=CONVNEXT_FULL + 2 * 32),
        # Not the ResNet: while all of it trains, its batch norms mix the images of a batch.
        starts_equal=True, files=('full',),
        seg_count=dict(swin=SWIN_FULL + SWIN_NORMS['seg'],
                       convnext=CONVNEXT_FULL + 2 * (8 + 16 + 24 + 32))),
    'linear': Row(
        dict(trainable=[]), dict(vit=0, swin=0, resnet=0, convnext=0), starts_equal=True,
        files=('head', 'linear')),
    'bias': Row(
        dict(trainable=['bias$']),
        dict(vit=N * BLOCK_BIASES + D + D, resnet=8 + sum((6 * n + 4) * c for c, n in RESNET),
             swin=SWIN_BIASES + SWIN_NORMS['cls'] // 2, convnext=CONVNEXT_BIASES + 32),
        starts_equal=True, files=('bias',),
        seg_count=dict(swin=SWIN_BIASES + SWIN_NORMS['seg'] // 2,
                       convnext=CONVNEXT_BIASES + 8 + 16 + 24 + 32)),
    'partial-1_resnet-50': Row(
        dict(trainable=[r'^layer4\.2\.']),
        dict(resnet=2 * 64 * 256 + 9 * 64 * 64 + 2 * (64 + 64 + 256)), starts_equal=True,
        files=('partial-1_resnet-50',)),
    'partial-1_convnext-b': Row(
        dict(trainable=[r'^stages\.3\.2\.', r'^norm3\.']),
        dict(convnext=CONVNEXT_BLOCK[32] + 2 * 32), starts_equal=True,
        files=('partial-1_convnext-b',)),
    'cls-token': Row(
        dict(trainable=[r'^cls_token$']), dict(vit=D), starts_equal=True,
        files=('cls-token',)),
    'layernorm': Row(
        dict(trainable=[
            r'(^|\.|_)(ln|norm)\d*\.(weight|bias)$|^downsample_layers\.(0\.1|[1-3]\.0)\.']),
        dict(vit=N * 4 * D + 2 * D, convnext=CONVNEXT_NORMS + 2 * 32,
             swin=(swin_norms := 2 * 16 + sum(depth * 4 * c for c, depth in SWIN) + 2 * 4 * 16)
             + SWIN_NORMS['cls']),
        seg_count=dict(swin=swin_norms + SWIN_NORMS['seg'],
                       convnext=CONVNEXT_NORMS + 2 * (8 + 16 + 24 + 32)),
        starts_equal=True, files=('layernorm',)),
    'partial-1': Row(
        dict(trainable=['partial:1']),
        dict(vit=BLOCK + 2 * D, swin=SWIN_BLOCK + SWIN_NORMS['cls']),
        seg_count=dict(swin=SWIN_BLOCK + SWIN_NORMS['seg']),
        starts_equal=True, files=('partial-1',)),
    'partial-2': Row(
        dict(trainable=['partial:2']),
        dict(vit=2 * BLOCK + 2 * D, swin=2 * SWIN_BLOCK + SWIN_NORMS['cls']),
        seg_count=dict(swin=2 * SWIN_BLOCK + SWIN_NORMS['seg']),
        starts_equal=True, files=('partial-2',)),
    'partial-4': Row(
        dict(trainable=['partial:4']), dict(vit=4 * BLOCK + 2 * D),
        starts_equal=True, files=('partial-4',)),
    'last-4': Row(
        dict(trainable=['last:4']), dict(vit=4 * BLOCK), starts_equal=True, files=('last-4',)),
    'last-2': Row(
        dict(trainable=['last:2']), dict(vit=2 * BLOCK, swin=2 * SWIN_BLOCK), starts_equal=True),
    'attn-proj': Row(
        dict(trainable=[r'\.proj\.(weight|bias)$']),
        dict(vit=N * (D * D + D), swin=sum(depth * (c * c + c) for c, depth in SWIN)),
        starts_equal=True, files=('attn-proj',)),
    # --- prompts in token space
    'shallow': Row(
        dict(prompt=TOKENS), dict(vit=5 * D, swin=5 * 16), files=('shallow', 'shallow_cls')),
    'deep': Row(
        dict(prompt=dict(**TOKENS, deep=True)),
        dict(vit=N * 5 * D, swin=sum(depth * 5 * c for c, depth in SWIN)),
        files=('deep', 'samples', 'prototypes')),
    'prompt-fixed': Row(
        dict(prompt=dict(**TOKENS, deep=True), trainable=[]), dict(vit=0, swin=0),
        files=('prompt-fixed',)),
    'pixel': Row(
        dict(prompt=dict(type='vpt_dense.PixelPrompt', num_tokens=5)), dict(vit=5 * PIXELS),
        files=('pixel',)),
    'pool-image': Row(
        dict(prompt=dict(**TOKENS, deep=True), out_type='avg_tokens', pool='patches'),
        dict(vit=N * 5 * D), tasks=('cls',), files=('pool-image',)),
    'pool-prompts': Row(
        dict(prompt=dict(**TOKENS, deep=True), out_type='avg_tokens', pool='prompts'),
        dict(vit=N * 5 * D), tasks=('cls',), files=('pool-prompts',)),
    'pool-both': Row(
        dict(prompt=dict(**TOKENS, deep=True), out_type='avg_tokens', pool='both'),
        dict(vit=N * 5 * D), tasks=('cls',), files=('pool-both',)),
    'add': Row(
        dict(adapters=[dict(type='vpt_dense.AddPrompt')]), dict(vit=(1 + PATCHES) * D),
        merges=True, files=('add',)),
    'add-deep': Row(
        dict(adapters=[dict(type='vpt_dense.AddPrompt', deep=True)]),
        dict(vit=N * (1 + PATCHES) * D), files=('add',)),
    'add-1': Row(
        dict(adapters=[dict(type='vpt_dense.AddPrompt', per_token=False)]), dict(vit=D),
        merges=True, files=('add-1',)),
    'add-1-deep': Row(
        dict(adapters=[dict(type='vpt_dense.AddPrompt', per_token=False, deep=True)]),
        dict(vit=N * D), files=('add-1',)),
    'prefix': Row(
        dict(prompt=dict(type='vpt_dense.PrefixPrompt', num_tokens=5)),
        dict(vit=2 * N * 5 * D, swin=sum(depth * 2 * 5 * c for c, depth in SWIN)),
        files=('prefix',)),
    'e2vpt': Row(
        dict(prompt=dict(type='vpt_dense.E2VPTPrompt', num_tokens=5, num_kv_tokens=3)),
        dict(vit=N * (5 + 3) * D, swin=sum(depth * (5 + 3) * c for c, depth in SWIN)),
        files=('e2vpt',)),
    'gated': Row(
        dict(prompt=dict(type='vpt_dense.GatedPrompt', num_tokens=5)), dict(vit=5 * D + N - 1),
        files=('gated',)),
    'residual': Row(
        dict(prompt=dict(type='vpt_dense.ResidualPrompt', num_tokens=5)),
        dict(vit=N * 5 * D + (N - 1) * (5 * 5 + 5),
             swin=sum(depth * 5 * c + (depth - 1) * (5 * 5 + 5) for c, depth in SWIN)),
        files=('residual',)),
    'vapt': Row(
        dict(prompt=dict(type='vpt_dense.VAPTPrompt', num_tokens=5, hidden_dims=8, grid=(4, 4))),
        dict(vit=5 * D + (N - 1) * (2 * D + 2 * 2 + 3 * 3 * 5 + 5) + 2 * D * 8),
        files=('vapt',)),
    # --- prompts in image space
    'pad': Row(
        dict(image_prompt=dict(type='vpt_dense.PadPrompt', width=32)),
        dict(vit=3 * 64 * (32 + 32 + 64), swin=3 * 64 * (32 + 32 + 64),
             resnet=3 * 64 * (64 + 64 + 64), convnext=3 * 64 * (64 + 64 + 64)),
        files=('pad', 'pad_cls')),
    'concat-channel': Row(
        dict(image_prompt=dict(type='vpt_dense.ConcatChannelPrompt', num_channels=2),
             trainable=[r'^image_prompt\.',
                        r'^(patch_embed\.projection|conv1|downsample_layers\.0\.0)\.']),
        dict(vit=2 * 32 * 32 + (3 + 2) * 64 * D + D,
             swin=2 * 32 * 32 + (3 + 2) * 4 * 4 * 16 + 16, resnet=2 * 64 * 64 + (3 + 2) * 7 * 7 * 8,
             convnext=2 * 64 * 64 + (3 + 2) * 4 * 4 * 8 + 8),
        files=('concat-channel',)),
    'lor-vp': Row(
        dict(image_prompt=dict(type='vpt_dense.LoRVP', rank=4)),
        dict(vit=4 * 3 * (32 + 32), swin=4 * 3 * (32 + 32), resnet=4 * 3 * (64 + 64),
             convnext=4 * 3 * (64 + 64)),
        starts_equal=True, files=('lor-vp',)),
    # --- adapters
    'lora': Row(
        dict(adapters=[dict(type='vpt_dense.LoRA', rank=2)]),
        dict(vit=N * 2 * (D + 3 * D), swin=sum(depth * 2 * 4 * c for c, depth in SWIN)),
        starts_equal=True, merges=True, files=('lora',)),
    'cvpt': Row(
        dict(adapters=[dict(type='vpt_dense.CVPT', num_tokens=5)]),
        dict(vit=N * 5 * D, swin=sum(depth * 5 * c for c, depth in SWIN)), files=('cvpt',)),
    'lora-qv': Row(
        dict(adapters=[dict(type='vpt_dense.LoRA', rank=2, parts=['q', 'v'])]),
        dict(vit=4 * N * 2 * D, swin=sum(depth * 4 * 2 * c for c, depth in SWIN)),
        starts_equal=True, merges=True),
    'lora-all': Row(
        dict(adapters=[
            dict(type='vpt_dense.LoRA', rank=2, alpha=3, targets=[r'\.(qkv|proj|fc1|fc2)$'])]),
        dict(vit=N * 2 * (4 * D + 2 * D + 2 * (D + H)),
             swin=sum(depth * 2 * (4 * c + 2 * c + 2 * 5 * c) for c, depth in SWIN)),
        starts_equal=True, merges=True),
    'adapter': Row(
        dict(adapters=[dict(type='vpt_dense.BottleneckAdapter', reduction=8)]),
        dict(vit=N * (2 * D * (D // 8) + D // 8 + D),
             swin=sum(depth * (2 * c * (c // 8) + c // 8 + c) for c, depth in SWIN)),
        starts_equal=True, files=('adapter',)),
    'adaptformer': Row(
        dict(adapters=[dict(type='vpt_dense.AdaptFormer', hidden_dims=8)]),
        dict(vit=N * (2 * D * 8 + 8 + D),
             swin=sum(depth * (2 * c * 8 + 8 + c) for c, depth in SWIN)),
        starts_equal=True, files=('adaptformer',)),
    'rep-adapter': Row(
        dict(adapters=[dict(type='vpt_dense.RepAdapter', rank=4, groups=2)]),
        dict(vit=2 * N * (4 * D + 4 + 4 * D // 2 + D),
             swin=sum(2 * depth * (4 * c + 4 + 4 * c // 2 + c) for c, depth in SWIN)),
        starts_equal=True, merges=True, files=('rep-adapter',)),
    'ssf': Row(
        dict(adapters=[dict(type='vpt_dense.SSF')]),
        dict(vit=N * 2 * (7 * D + H) + 4 * D,
             swin=(swin_ssf := sum(depth * 22 * c for c, depth in SWIN) + 4 * 16)
             + SWIN_NORMS['cls']),
        seg_count=dict(swin=swin_ssf + SWIN_NORMS['seg']), merges=True, files=('ssf',)),
    'rein': Row(
        dict(adapters=[dict(type='vpt_dense.Rein', num_tokens=6, rank=2)]),
        # The patches that the last block puts out are read in segmentation alone.
        dict(vit=(N - 1) * (6 * 2 + 2 * D) + 2 * (D * D + D) + 1,
             swin=sum(depth * (6 * 2 + 2 * c) + 2 * (c * c + c) for c, depth in SWIN) + 1),
        seg_count=dict(vit=N * (6 * 2 + 2 * D) + 2 * (D * D + D) + 1), files=('rein',)),
    'side': Row(
        dict(adapters=[dict(type='vpt_dense.SideNetwork')]),
        dict(vit=ALEXNET + 9216 * D + 1, swin=ALEXNET + 256 * 32 + 1),
        seg_count=dict(vit=ALEXNET + 2 * 256 * D + 1, swin=ALEXNET + 256 * (16 + 32) + 1),
        files=('side',)),
    # --- combinations
    'deep-bias': Row(
        dict(prompt=dict(**TOKENS, deep=True), trainable=[r'^prompt\.', 'bias$']),
        dict(vit=N * 5 * D + N * BLOCK_BIASES + D + D,
             swin=(swin_deep_bias := SWIN_BIASES + sum(depth * 5 * c for c, depth in SWIN))
             + SWIN_NORMS['cls'] // 2),
        seg_count=dict(swin=swin_deep_bias + SWIN_NORMS['seg'] // 2), files=('deep-bias',)),
    'deep-lora': Row(
        dict(prompt=dict(**TOKENS, deep=True), adapters=[dict(type='vpt_dense.LoRA', rank=2)]),
        dict(vit=N * 5 * D + N * 2 * 4 * D, swin=sum(depth * (5 + 2 * 4) * c for c, depth in SWIN)),
        files=('deep-lora',)),
}  # fmt: skip

#: What the tiny EVA-02 has more than the ViT of its sizes: the first layer of its MLP, a SwiGLU,
#: puts out gates beside values, H more, and there is a norm of H in it.
EVA02_BLOCK = (D * H + H) + 2 * H
_MORE = {
    'full': N * EVA02_BLOCK, 'bias': N * 2 * H, 'deep-bias': N * 2 * H, 'layernorm': N * 2 * H,
    'partial-1': EVA02_BLOCK, 'partial-2': 2 * EVA02_BLOCK, 'partial-4': 4 * EVA02_BLOCK,
    'last-2': 2 * EVA02_BLOCK, 'last-4': 4 * EVA02_BLOCK, 'lora-all': N * 2 * H,
    'ssf': N * 2 * H,
}
for _name, _row in ROWS.items():
    for _counts in (_row.count, _row.seg_count):
        if 'vit' in _counts:
            _counts['eva02'] = _counts['vit'] + _MORE.get(_name, 0)

#: Every row on every backbone that it fits, in every task.
CASES = [
    (name, family, task)
    for name, row in ROWS.items() for family in row.count for task in row.tasks
]  # fmt: skip
#: Those whose graphs are made of other operations: which weights train does not count, but for all
#: and none of them; and of the tasks the one with more outputs does for both.
GRAPHS = [
    (name, family, task) for name, family, task in CASES
    if task == ROWS[name].tasks[-1]
    and (set(ROWS[name].tuning) != {'trainable'} or name in ('full', 'linear'))
]  # fmt: skip


def build(name: str, family: str, task: str, **kwargs: Any):
    """Build the tiny backbone of a row, every parameter with a value of its own."""
    return randomise(build_at_start(ROWS[name].tuning, family, task, **kwargs))


def build_at_start(tuning: dict[str, Any], family: str, task: str, **kwargs: Any):
    """Build a tiny backbone as it starts."""
    return MODELS.build({**BACKBONES[family], **TASKS[family][task], **tuning, **kwargs})

"""The Swin transformer with prompts, adapters and prompts in image space."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from safetensors import safe_open
from safetensors.torch import save_file
from sizes import count, formula_of
from sizes import swin as sizes_of_swin
from tool_helpers import run_tool
from torch import Tensor, nn
from utils import CONFIGS, images, load, make_ade_folder, randomise

from vpt_dense import building, params, safe_files
from vpt_dense.adapters import Adapter
from vpt_dense.prompts import TokenLayout
from vpt_dense.weights.base import KEY

DATA = Path(__file__).parent / 'data' / 'reference'
EXACT = dict(rtol=1e-10, atol=1e-10)
ARCH = dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
P3 = dict(type='vpt_dense.TokenPrompt', num_tokens=3)
DEEP = dict(**P3, deep=True)
LORA = dict(type='vpt_dense.LoRA', rank=2, targets=[r'\.qkv$', r'\.proj$', 'reduction'])
#: A map of 18x25 patches: windows of 4 are padded, the last stage is smaller than one.
SIZE = (72, 100)


def build(upstream: bool = False, **kwargs) -> nn.Module:
    """A tiny Swin of four stages with windows of 4, in float32 as it starts."""
    cfg = dict(
        type='mmpretrain.SwinTransformer' if upstream else 'vpt_dense.SwinTransformer',
        arch=ARCH, img_size=64, window_size=4, out_indices=(0, 1, 2, 3), pad_small_map=True,
    )  # fmt: skip
    return MODELS.build({**cfg, **kwargs})


def swin(**kwargs) -> nn.Module:
    """The same in float64 and eval mode, every parameter with a value of its own."""
    return randomise(build(**kwargs)).double().eval()


def all_grads(model: nn.Module, x: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs, and the gradients of a sum that tells all outputs apart."""
    outs = model(x)
    loss = sum((out * images(*out.shape, seed=s).to(out.dtype)).sum()
               for s, out in enumerate(outs))  # fmt: skip
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return outs, grads


# --- the original ----------------------------------------------------------------------------


@pytest.mark.parametrize('recompute', [{}, dict(with_cp=True), dict(memory='lean')], ids=str)
def test_agrees_with_the_original(tmp_path, recompute):
    """KMnP/vpt at 4410440, deep prompts; its pool is over prompts and patches.

    Of the prompts' own outputs, it mixes those of a batch's images where there are several windows
    (stages 0 and 1); deep prompts are replaced, so nothing comes of it.
    """
    with safe_open(DATA / 'swin_deep_p3_b2.safetensors', 'pt') as file:
        assert '4410440' in file.metadata()['source']
        assert json.loads(file.metadata()['arch'])['swin']['embed_dim'] == 16
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        loss = float(file.metadata()['loss'])
    save_file(under(tensors, 'weight/'), tmp_path / 'swin.safetensors')

    model = build(
        prompt=DEEP, prompts_as='tokens', out_indices=(3,), pad_small_map=False,
        # The original shrinks windows to the map, 2x2 in the last stage.
        stage_cfgs=[{}, {}, {}, dict(block_cfgs=dict(window_size=2))], **recompute,
    )  # fmt: skip
    model.load_base(str(tmp_path / 'swin.safetensors'))
    for name, tokens in prompts(under(tensors, 'weight/')).items():
        model.get_parameter(name).data.copy_(tokens)
    model.double().eval()
    blocks = {}
    for block in model.block_list():
        block.module.register_forward_hook(
            lambda module, _, out: blocks.setdefault(module.index, out))

    image = tensors['input'].double().requires_grad_()
    (patches,) = model(image)
    for i in range(8):
        own = 0 if i >= 4 else 3  # prompts and patches, or patches
        torch.testing.assert_close(blocks[i][:, own:], tensors[f'block/{i}'][:, own:], **EXACT)
    everything = model.norm3(blocks[7])
    torch.testing.assert_close(everything[:, 3:], patches.flatten(2).transpose(1, 2), **EXACT)
    output = everything.mean(1)
    torch.testing.assert_close(output, tensors['output'], **EXACT)

    found = (output * tensors['probe'].double()).sum()
    torch.testing.assert_close(found.item(), loss, **EXACT)
    found.backward()
    torch.testing.assert_close(image.grad, tensors['grad/input'], **EXACT)
    expected = prompts(under(tensors, 'grad/'))
    assert len(expected) == 4
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, **EXACT)


def under(tensors: dict[str, Tensor], room: str) -> dict[str, Tensor]:
    return {k.removeprefix(room): v for k, v in tensors.items() if k.startswith(room)}


def prompts(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's prompts under our names: the first block's stand alone there."""
    stages = [original[f'deep_prompt_embeddings_{s}'] for s in range(4)]
    stages[0] = torch.cat((original['prompt_embeddings'], stages[0]))
    return {f'prompt.stages.{s}.tokens': tokens for s, tokens in enumerate(stages)}


# --- prompts in windows ----------------------------------------------------------------------

PROMPTS = {
    'deep': DEEP,
    'shallow': P3,
    'range': dict(**DEEP, layer_range=(1, 5)),
    'range, removed': dict(**DEEP, layer_range=(1, 4), keep_outputs=False),
    'shallow, from the second stage': dict(**P3, layer_range=(3, 6), keep_outputs=False),
    'shared in a stage': dict(**DEEP, layer_range=(2, 4), shared=True),
    'projected': dict(**DEEP, project_dims=6),
}
with_prompts = pytest.mark.parametrize('prompt', PROMPTS.values(), ids=PROMPTS)


def attend(block: nn.Module, tokens: Tensor, size: tuple[int, int], prompts: Tensor) -> Tensor:
    """Attention of one image, window by window: prompts (P, C) and patches (H * W, C)."""
    msa, window, (height, width) = block.attn.w_msa, block.attn.window_size, size
    channels, heads, shift = tokens.shape[-1], msa.num_heads, block.attn.shift_size
    down, right = -(-height // window) * window, -(-width // window) * window
    padded = tokens.new_zeros(down, right, channels)
    padded[:height, :width] = tokens.reshape(height, width, channels)
    out, of_prompts = torch.zeros_like(padded), []
    for top in range(0, down, window):
        for left in range(0, right, window):
            rows = [r for r in range(top, top + window) for _ in range(window)]
            columns = [c for c in range(left, left + window)] * window
            # Places of the shifted map; those of one window that wrap around are strangers.
            side = [(r >= down - shift, c >= right - shift)
                    for r, c in zip(rows, columns, strict=True)]  # fmt: skip
            places = ([(r + shift) % down for r in rows], [(c + shift) % right for c in columns])
            x = torch.cat((prompts, padded[places]))
            q, k, v = msa.qkv(x).reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)
            scores = q @ k.transpose(-1, -2) / math.sqrt(channels // heads)
            first = len(prompts)
            for a in range(window**2):
                for b in range(window**2):
                    down_by, right_by = rows[a] - rows[b], columns[a] - columns[b]
                    entry = (down_by + window - 1) * (2 * window - 1) + right_by + window - 1
                    scores[:, first + a, first + b] += (
                        msa.relative_position_bias_table[entry] - 100.0 * (side[a] != side[b]))
            x = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), channels)
            out[places] = msa.proj(x[first:])
            of_prompts.append(msa.proj(x[:first]))
    patches = out[:height, :width].reshape(-1, channels)
    return torch.cat((torch.stack(of_prompts).mean(0), patches))


def plainly(model: nn.Module, image: Tensor) -> list[Tensor]:
    """The maps of one image with VPT-shallow, by the formulas."""
    x, size = model.patch_embed(image[None])
    prompts, x = model.prompt.stages['0'].tokens[0], x[0]
    number, maps = len(prompts), []
    for s, stage in enumerate(model.stages):
        for block in stage.blocks:
            tokens = torch.cat((prompts, x))
            normed = block.norm1(tokens)
            tokens = tokens + attend(block, normed[number:], size, normed[:number])
            tokens = tokens + block.ffn.layers(block.norm2(tokens))
            prompts, x = tokens[:number], tokens[number:]
        maps.append(getattr(model, f'norm{s}')(x).T.reshape(-1, *size))
        if stage.downsample is not None:
            x, size = stage.downsample(x[None], size)
            x = x[0]
            # OpenMMLab's order: the four copies of a channel lie side by side.
            four = prompts.repeat_interleave(4, dim=-1)
            prompts = stage.downsample.reduction(stage.downsample.norm(four))
    return maps


@torch.no_grad()
def test_shallow_prompts_by_the_formulas():
    """Padded and shifted windows, a map smaller than one, no square; images of a batch apart."""
    model = swin(prompt=P3)
    x = images(2, 3, 24, 40, dtype=torch.float64)
    for i, maps in enumerate(zip(*(plainly(model, image) for image in x), strict=True)):
        torch.testing.assert_close(model(x)[i], torch.stack(maps), **EXACT)


@with_prompts
@pytest.mark.parametrize('adapters', [None, [LORA]], ids=['', 'LoRA'])
def test_keys_and_values_say_all_where_outputs_are_discarded(prompt, adapters):
    x = images(2, 3, *SIZE, dtype=torch.float64)
    models = [swin(prompt=prompt, adapters=adapters, prompts_as=how)
              for how in ('keys_values', 'tokens')]  # fmt: skip
    assert models[1].keys_values_layers == []
    (outs, grads), (theirs, others) = (all_grads(model, x) for model in models)
    plain = swin()(x)
    for out, other, without in zip(outs, theirs, plain, strict=True):
        torch.testing.assert_close(out, other, **EXACT)
        assert out.shape == without.shape
    assert not torch.allclose(outs[-1], plain[-1])
    assert grads.keys() == others.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, others[name], **EXACT)
        assert grad.abs().sum() > 0, name


@with_prompts
def test_images_of_a_batch_do_not_mix(prompt):
    model, x = swin(prompt=prompt), images(3, 3, *SIZE, dtype=torch.float64)
    for i, out in enumerate(model(x)):
        torch.testing.assert_close(out, torch.cat([model(image[None])[i] for image in x]), **EXACT)


@pytest.mark.parametrize('how', ['keys_values', 'tokens'])
@pytest.mark.parametrize('recompute', [dict(with_cp=True), dict(memory='lean')], ids=str)
@pytest.mark.parametrize('prompt', [None, P3, dict(**DEEP, dropout=0.5)], ids=['', 'P3', 'deep'])
def test_recomputing_changes_nothing_and_keeps_less(recompute, prompt, how):
    x = images(2, 3, *SIZE, dtype=torch.float64)
    results, kept = [], []
    for options in ({}, recompute):
        model = swin(prompt=prompt, adapters=[LORA], prompts_as=how, **options).train()
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outs = model(x)
        kept.append(sum(sizes))
        torch.manual_seed(1)
        results.append(all_grads(model, x))
        for out, again in zip(outs, results[-1][0], strict=True):
            torch.testing.assert_close(out, again, **EXACT)  # the same dropout
    (outs, grads), (theirs, others) = results
    for one, other in zip((*outs, *grads.values()), (*theirs, *others.values()), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    assert kept[1] < 0.6 * kept[0]


def test_some_stages_may_be_recomputed():
    stages = [dict(block_cfgs=dict(with_cp=s == 1)) for s in range(4)]
    model = swin(stage_cfgs=stages)
    assert [block.module.recompute for block in model.block_list()] == [
        'block' if block.name.startswith('stages.1.') else None for block in model.block_list()]
    assert all(block.module.with_cp for block in swin(with_cp=True).block_list())


@pytest.mark.parametrize('options', [{}, dict(with_cp=True), dict(memory='lean')], ids=str)
def test_without_prompts_it_is_upstream_bit_for_bit(options):
    """At sizes that need padding, with outputs after merging and stochastic depth too."""
    common = dict(out_after_downsample=True, use_abs_pos_embed=True, drop_path_rate=0.5)
    theirs, ours = randomise(build(True, **common)), build(**common, **options)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for model in (theirs, ours):
        torch.manual_seed(2)
        model.train()  # upstream's returns None
        outs, grads = all_grads(model, images(2, 3, *SIZE))
        results.append([*outs, *grads.values()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_prompts_pass_the_merging_that_comes_before_an_output():
    x = images(2, 3, *SIZE, dtype=torch.float64)
    before, after = (swin(prompt=P3, out_indices=(3,), out_after_downsample=late)(x)
                     for late in (False, True))  # fmt: skip
    assert torch.equal(before[0], after[0])
    model = swin(prompt=P3, out_indices=(0, 3), out_after_downsample=True)
    assert [tuple(out.shape) for out in model(x)] == [(2, 32, 9, 13), (2, 128, 3, 4)]
    assert model.map_strides() == [(8, 8), (32, 32)]


def test_a_small_map_needs_padding():
    with pytest.raises(ValueError, match=r'map of 2x2 patches .* 4; set backbone\.pad_small_map='):
        build(prompt=DEEP, pad_small_map=False)(images(1, 3, 64, 64))


# --- the parameters --------------------------------------------------------------------------


def tokens(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters() if n.startswith('prompt.')}


@pytest.mark.parametrize('prompt, shapes', [
    (DEEP, {s: (2, 3, 16 * 2**s) for s in range(4)}),
    (P3, {0: (1, 3, 16)}),
    (dict(**P3, layer_range=(5, None)), {2: (1, 3, 64)}),
    (dict(**DEEP, layer_range=(-3, None)), {2: (1, 3, 64), 3: (2, 3, 128)}),
    (dict(**DEEP, layer_range=(2, 4), shared=True), {1: (1, 3, 32)}),
], ids=str)  # fmt: skip
def test_one_parameter_a_stage(prompt, shapes):
    assert tokens(build(prompt=prompt)) == {
        f'prompt.stages.{s}.tokens': shape for s, shape in shapes.items()}


def test_every_stage_has_a_projection_that_is_used():
    prompt = dict(**DEEP, project_dims=6, layer_range=(0, 4))
    model = build(prompt=prompt)
    assert tokens(model) == {
        f'prompt.stages.{s}.{name}': shape
        for s, width in ((0, 16), (1, 32))
        for name, shape in {'tokens': (2, 3, 6), 'project.weight': (width, 6),
                            'project.bias': (width,)}.items()}  # fmt: skip
    _, grads = all_grads(model.double(), images(2, 3, 64, 64, dtype=torch.float64))
    assert grads.keys() == tokens(model).keys() and all(g.any() for g in grads.values())


@pytest.mark.parametrize('dims', [None, 24], ids=['', 'projected'])
def test_all_stages_start_with_the_bound_of_the_first(dims):
    model = build(prompt=dict(DEEP, num_tokens=200, project_dims=dims), patch_size=2)
    bound = math.sqrt(6 / (3 * 2 * 2 + (dims or 16)))
    for stage in model.prompt.stages.values():
        largest = stage.tokens.abs().max().item()
        assert 0.99 * bound < largest <= bound
        assert stage.tokens.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize('options, message', [
    (dict(prompt=dict(**DEEP, shared=True)),
     r'prompt\.shared=True needs layers of one width.* 0\.\.7, more than the stage 0\.\.1'),
    (dict(prompt=dict(**DEEP, layer_range=(0, 9))), r'prompt\.layer_range .* 8 layers.*\(0, 9\)'),
    (dict(prompt=dict(DEEP, num_tokens=0)), r'prompt\.num_tokens must be .* 0'),
    (dict(prompt=dict(type='vpt_dense.FoldedPrompt', layers=[0], num_tokens=1)),
     r'prompt: FoldedPrompt needs blocks that are all of one width, SwinTransformer has none'),
    (dict(prompt=DEEP, prompts_as='keys'), r"prompts_as must be 'keys_values' or 'tokens'"),
    (dict(out_indices=(0, -1)), r'out_indices must be .* integers from 0 to 3, found \(0, -1\)'),
    (dict(out_indices=()), r'out_indices must be .* found \(\)'),
    (dict(img_size=(64, 64, 64)), r'img_size must be a positive integer or a pair .* \(64, 64, 64'),
    (dict(memory='least'), r"memory must be 'default' or 'lean', found 'least'"),
    (dict(memory='lean', with_cp=True), r"memory='lean' and with_cp=True exclude each other"),
], ids=str)  # fmt: skip
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# --- adapters --------------------------------------------------------------------------------


@MODELS.register_module(name='test_swin.Witness', force=True)
class Witness(Adapter):
    """Tells where it was called, and with what."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.calls: list[tuple] = []

    def note(self, place: str, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        self.calls.append((place, layer, tuple(x.shape), layout))
        return x

    def before_block(self, x, layer, layout):
        return self.note('before', x, layer, layout)

    def after_attention(self, x, before, layer, layout):
        assert before.shape == x.shape
        return self.note('inside', x, layer, layout)

    def after_mlp(self, x, before, layer, layout):
        assert before.shape == x.shape
        return self.note('behind', x, layer, layout)

    def after_block(self, x, layer, layout):
        return self.note('after', x, layer, layout)

    def after_backbone(self, outs, images):
        self.calls.append((tuple(images.shape), [tuple(out.shape) for out in outs]))
        return outs


@pytest.mark.parametrize('deep', [True, False])
def test_adapters_are_called_in_every_block_of_every_stage(deep):
    model = swin(prompt=dict(P3, deep=deep), adapters=[dict(type='test_swin.Witness')],
                 trainable=[r'^prompt\.'])  # fmt: skip
    model(images(2, 3, *SIZE, dtype=torch.float64))
    *calls, last = model.adapters[0].calls
    grids = [(18, 25), (9, 13), (5, 7), (3, 4)]
    assert last == ((2, 3, *SIZE), [(2, 16 * 2**s, *grid) for s, grid in enumerate(grids)])
    expected = []
    for layer in range(8):
        grid, width = grids[layer // 2], 16 * 2 ** (layer // 2)
        flow = 0 if deep else 3
        (rows, columns), entering = grid, flow if layer else 0
        many, few = rows * columns + flow, rows * columns + entering
        expected += [
            ('before', layer, (2, few, width), TokenLayout(0, entering, grid)),
            ('inside', layer, (2, many, width), TokenLayout(0, flow, grid)),
            ('behind', layer, (2, many, width), TokenLayout(0, flow, grid)),
            ('after', layer, (2, many, width), TokenLayout(0, flow, grid)),
        ]
    assert calls == expected


# --- configs ---------------------------------------------------------------------------------

#: Widths of the stages, 2, 2, 18 and 2 blocks deep; heads are 32 wide, windows 7x7.
WIDTHS = {size: [width * 2**s for s in range(4)] for size, width in (('b', 128), ('l', 192))}


def wanted_of_backbone(size: str, method: str, backbone: dict, dense: bool) -> int:
    """What trains of a backbone, in numbers, by the formula of the method."""
    sizes = sizes_of_swin(
        WIDTHS[size], (2, 2, 18, 2), [width // 32 for width in WIDTHS[size]], 7,
        outputs=range(4) if dense else (-1,))
    found = count(formula_of(method), sizes, backbone)
    if dense and method != 'full':  # the norms train whatever the method
        found += sizes.norms // 2 if method == 'bias' else sizes.norms
    return found


@pytest.mark.parametrize('size', WIDTHS)
@pytest.mark.parametrize('method', ['full', 'head', 'deep', 'lora', 'adaptformer', 'bias'])
def test_counts_of_the_upernet_leaves(mmseg_scope, size, method):
    cfg = load(f'upernet_swin-{size}_ade20k {method}')
    backbone = cfg.model.backbone
    assert backbone.init_cfg.checkpoint.startswith(
        f'timm://swin_{backbone.arch}_patch4_window7_224')
    counts = params.count(building.build_model(cfg, 'meta'))
    trains = {part: trainable for part, (trainable, _) in counts.items()}
    heads = trains.pop('decode head') + trains.pop('auxiliary heads')
    assert sum(trains.values()) == wanted_of_backbone(size, method, backbone, dense=True)
    *others, c4 = WIDTHS[size]
    # Pooled, lateral, of the pyramid, bottlenecks; 512 channels, a norm behind every convolution.
    convolutions = [(1, c4, 4), (1, sum(others), 0), (9, 512, 3)]
    weights = sum(kernel * c * max(n, 1) * 512 for kernel, c, n in convolutions)
    weights += 9 * (c4 + 4 * 512) * 512 + 9 * 4 * 512 * 512
    assert heads == (
        weights + (4 + 3 + 3 + 2) * 2 * 512 + 513 * 150  # mmseg's UPerHead
        + 9 * others[-1] * 256 + 2 * 256 + 257 * 150)  # and FCNHead
    optimizer = cfg.optim_wrapper.optimizer
    if method == 'full':
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    assert cfg.param_scheduler[-1].eta_min == 0


@pytest.mark.parametrize('method', ['full', 'linear', 'bias', 'shallow', 'deep', 'lora'])
def test_counts_and_features_of_the_classification_leaves(mmpretrain_scope, method):
    cfg = load(f'swin-b_imagefolder {method}')
    counts = params.count(building.build_model(cfg, 'meta'))
    trains = {part: trainable for part, (trainable, _) in counts.items()}
    assert trains.pop('classification head') == 1025 * 1000
    assert sum(trains.values()) == wanted_of_backbone(
        'b', method, cfg.model.backbone, dense=False)

    cfg.model.backbone.update(arch=ARCH, init_cfg=None, img_size=64, window_size=4,
                              pad_small_map=True)  # fmt: skip
    cfg.model.head.update(in_channels=128, num_classes=3)
    model = randomise(MODELS.build(cfg.model)).eval()
    x = images(2, 3, 64, 96)
    logits = model(x, [DataSample() for _ in x])
    pooled = model.backbone(x)[0].mean((2, 3))
    torch.testing.assert_close(logits, model.head.fc(pooled))


@pytest.mark.parametrize('name, width', [('t', 768), ('s', 768), ('b', 1024), ('l', 1536)])
def test_models_of_every_size(mmpretrain_scope, name, width):
    cfg = Config.fromfile(CONFIGS / f'_base_/models/swin-{name}_cls.py')
    cfg.default_scope = 'mmpretrain'
    backbone = building.build_model(cfg, 'meta').backbone
    assert backbone.num_features[-1] == cfg.model.head.in_channels == width
    assert f'swin_{cfg.model.backbone.arch}_' in cfg.model.backbone.init_cfg.checkpoint


LEAF = """
_base_ = '{base}'
work_dir = '{folder}/work'
dataset = dict(data_root='{folder}/data')
_load = dict(type='LoadImageFromFile')
_train = [
    _load, dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(64, 64)), dict(type='PackSegInputs')]
_test = [_load, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]),
        img_size=(64, 64), window_size=4, init_cfg=dict(checkpoint='{folder}/base.pth')),
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=8),
    auxiliary_head=dict(in_channels=64, channels=8))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_train))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=_test))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=_test))
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1), logger=dict(interval=1))
"""


@pytest.mark.slow
def test_a_small_upernet_trains(tmp_path, capfd):
    """From weights that hold the last norm alone; what trains is what changes and is stored."""
    make_ade_folder(tmp_path / 'data')
    base = {n: t for n, t in swin().float().state_dict().items()
            if not n.startswith(('norm0', 'norm1', 'norm2'))}  # fmt: skip
    torch.save(base, tmp_path / 'base.pth')
    leaf = tmp_path / 'leaf.py'
    upernet = CONFIGS / 'vpt/upernet_swin-b_deep_ade20k.py'
    leaf.write_text(LEAF.format(base=upernet, folder=tmp_path))
    done = run_tool(capfd, 'train', leaf)
    assert done.code == 0, done.err
    first, second = (
        safe_files.read(str(tmp_path / f'work/iter_{i}.pth'))['state_dict'] for i in (1, 2))
    stored = {n.removeprefix('backbone.') for n in second if n.startswith('backbone.')}
    norms = {f'norm{s}.{kind}' for s in range(4) for kind in ('weight', 'bias')}
    prompts = {f'prompt.stages.{s}.tokens' for s in range(4)}
    assert stored == norms | prompts | {KEY}
    changed = {n for n in norms | prompts
               if not torch.equal(first[f'backbone.{n}'], second[f'backbone.{n}'])}  # fmt: skip
    assert changed == norms | prompts
    done = run_tool(capfd, 'count_params', leaf, '--json')
    (report,) = json.loads(done.out).values()
    trains = {part: line['trainable'] for part, line in report['parts'].items()}
    widths = 16 + 32 + 64 + 128
    assert (trains['backbone'], trains['prompt']) == (2 * widths, 10 * 2 * widths)
    done = run_tool(capfd, 'test', leaf, tmp_path / 'work/iter_2.pth')
    assert done.code == 0 and 'mIoU' in done.out

"""Learning rates that fall with depth: mmseg's and mmpretrain's constructors on our backbones."""

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor
from test_classification import VPT, make_image_folder, tiny_folder
from tool_helpers import forget_runs, run_tool, write_leaf
from tool_helpers import tiny_folder as tiny_masks
from torch import nn
from utils import tiny_vit

from vpt_dense import config, memory, run_setup
from vpt_dense.backbones import ConvNeXt, VisionTransformer
from vpt_dense.engine import layer_decay

DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)
LORA = dict(type='vpt_dense.LoRA', rank=2)
PAD = dict(type='vpt_dense.PadPrompt', width=32)
VIT = dict(
    type='vpt_dense.VisionTransformer', img_size=32, patch_size=8, num_registers=1,
    pre_norm=True, arch=dict(embed_dims=8, num_layers=4, num_heads=2, feedforward_channels=16),
    prompt=DEEP, adapters=[LORA, dict(type='vpt_dense.CVPT', num_tokens=2)], trainable=['.*'])
SWIN = dict(
    type='vpt_dense.SwinTransformer', img_size=32, window_size=2, use_abs_pos_embed=True,
    arch=dict(embed_dims=8, depths=[2, 2], num_heads=[2, 2]), out_indices=[0, 1],
    prompt=DEEP, adapters=[LORA], trainable=['.*'])
CONVNEXT = dict(type='vpt_dense.ConvNeXt', arch='tiny', trainable=['.*'])
#: Backbone -> number of depths, and the depth of names, with the name of the model's part.
DEPTHS = {
    'vit': (VIT, 6, {
        'patch_embed.projection.weight': 0, 'cls_token': 0, 'register_tokens': 0, 'pos_embed': 0,
        'pre_norm.weight': 0, 'layers.0.ln1.weight': 1, 'layers.3.attn.qkv.bias': 4,
        'ln1.weight': 5, 'prompt.tokens': 5, 'adapters.0.updates.0.up': 5,
        'adapters.1.prompts.0': 5,
    }),
    'swin': (SWIN, 6, {
        'patch_embed.projection.weight': 0, 'absolute_pos_embed': 0,
        'stages.0.blocks.1.attn.w_msa.relative_position_bias_table': 2,
        'stages.0.downsample.reduction.weight': 2, 'stages.1.blocks.1.norm1.weight': 4,
        'norm0.weight': 5, 'norm1.bias': 5, 'prompt.stages.0.tokens': 5,
        'adapters.0.updates.3.up': 5,
    }),
    'convnext': (dict(CONVNEXT, image_prompt=PAD), 8, {
        'downsample_layers.0.0.weight': 0, 'stages.0.0.norm.weight': 1, 'norm3.weight': 7,
        'image_prompt.top_bottom': 7,
    }),
}


@pytest.mark.parametrize('kind', DEPTHS)
def test_every_parameter_has_its_depth(kind):
    backbone, number, depths = DEPTHS[kind]
    backbone = MODELS.build(backbone)
    names = dict(backbone.named_parameters())
    for name, depth in depths.items():
        assert name in names
        assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, number), name
    assert backbone.get_layer_depth('decode_head.x', 'backbone.') == (number - 1, number)


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.decode_head = backbone, nn.Linear(3, 2)


def rates(wrapper):
    """(rate, weight decay) of each parameter, by its identity."""
    return {p: (group['lr'], group['weight_decay'])
            for group in wrapper.optimizer.param_groups for p in group['params']}


def optim(constructor, weight_decay=0.1, **paramwise):
    return dict(type='OptimWrapper', constructor=constructor, paramwise_cfg=paramwise,
                optimizer=dict(type='AdamW', lr=1.0, weight_decay=weight_decay))


@pytest.mark.parametrize(('backbone', 'layers'), [
    (type('MAE', (VisionTransformer,), {}), 4), (ConvNeXt, 6)])
@pytest.mark.parametrize('name', layer_decay._MMSEG)
def test_the_groups_are_mmsegs(backbone, layers, name):
    """Of backbones that mmseg's constructor knows by the names of their classes."""
    given = VIT if layers == 4 else CONVNEXT
    given = {key: value for key, value in given.items() if key not in (
        'type', 'prompt', 'adapters', 'num_registers', 'pre_norm')}
    model = Model(backbone(**given))
    key = 'layer_decay_rate' if name.startswith('LayerDecay') else 'decay_rate'
    theirs = rates(build_optim_wrapper(model, optim(
        LearningRateDecayOptimizerConstructor, num_layers=layers, decay_rate=0.5)))
    ours = rates(build_optim_wrapper(model, layer_decay.known(
        optim(name, num_layers=layers, **{key: 0.5}), model)))
    assert ours == theirs and len({rate for rate, _ in ours.values()}) == layers + 2


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    return tiny_masks(tmp_path_factory.mktemp('masks'))


PARTS = """
_optim = dict(
    _delete_=True, constructor='{}', optimizer=dict(type='SGD', lr=0.5, weight_decay=0.1),
    paramwise_cfg={})
optim_wrapper = _optim
model['backbone'].update(trainable=['.*'])
"""
CUSTOM = "custom_keys={'head': dict(lr_mult=4.0), 'conv_seg': dict(decay_mult=0.0)}"


@pytest.mark.slow
def test_a_segmentation_run(tmp_path, masks, capfd):
    leaf = write_leaf(tmp_path, masks, PARTS.format(
        'LearningRateDecayOptimizerConstructor', f'dict(num_layers=2, decay_rate=0.5, {CUSTOM})'))
    forget_runs()
    cfg = config.load(str(leaf))
    runner = run_setup.start(cfg, 'train', None)
    found = rates(runner.build_optim_wrapper(cfg.optim_wrapper))
    wanted = {
        'backbone.pos_embed': (0.5 * 0.5**3, 0.1), 'backbone.layers.0.ln1.bias': (0.5 * 0.5**2, 0),
        'backbone.layers.1.attn.qkv.weight': (0.5 * 0.5, 0.1), 'backbone.prompt.tokens': (0.5, 0.1),
        'decode_head.conv_seg.weight': (0.5, 0), 'decode_head.norm.weight': (2.0, 0),
        'auxiliary_head.0.up_convs.0.0.conv.weight': (2.0, 0.1),
    }
    for name, parameter in runner.model.named_parameters():
        if name in wanted:
            assert found[parameter] == pytest.approx(wanted.pop(name)), name
    assert not wanted
    assert memory.estimate(config.load(str(leaf)))['megabytes']['gradients'] > 0
    assert run_tool(capfd, 'train', leaf).code == 0


def test_a_classification_run(tmp_path):
    flowers = make_image_folder(tmp_path / 'flowers')
    cfg = config.load(
        str(VPT / 'vit-b_deep_imagefolder.py'), tiny_folder(tmp_path / 'run', flowers))
    cfg.model.backbone.trainable = ['.*']
    cfg.optim_wrapper = optim('LearningRateDecayOptimWrapperConstructor', layer_decay_rate=0.5)
    runner = run_setup.start(cfg, 'train', None)
    found = rates(runner.build_optim_wrapper(cfg.optim_wrapper))
    named = dict(runner.model.named_parameters())
    for name, power in (('backbone.cls_token', 5), ('backbone.layers.3.ln2.bias', 1),
                        ('backbone.prompt.tokens', 0), ('head.fc.weight', 0)):
        assert found[named[name]][0] == 0.5**power
    runner.train()


@pytest.mark.parametrize(('constructor', 'paramwise', 'told'), [
    ('LearningRateDecayOptimizerConstructor', 'dict(num_layers=12, decay_rate=0.5)',
     'paramwise_cfg.num_layers is 12, but the backbone has 2 layers; set it to 2'),
    ('LearningRateDecayOptimizerConstructor', 'dict(num_layers=2)',
     'paramwise_cfg.decay_rate must be a number above 0, 1 at most, found None'),
    ('LayerDecayOptimizerConstructor', 'dict(num_layers=2, decay_rate=0.5, norm_decay_mult=0)',
     'paramwise_cfg.norm_decay_mult does nothing where rates fall by layers'),
    ('LearningRateDecayOptimizerConstructor',
     "dict(num_layers=2, decay_rate=0.5, decay_type='stage_wise')",
     "decay_type='stage_wise' is for ConvNeXt, the backbone is a VisionTransformer"),
    ('mmpretrain.LearningRateDecayOptimWrapperConstructor',
     f'dict(layer_decay_rate=0.5, {CUSTOM})', 'custom_keys.head.lr_mult does nothing with the'),
])
def test_what_would_do_nothing_is_refused(tmp_path, masks, capfd, constructor, paramwise, told):
    outcome = run_tool(
        capfd, 'train', write_leaf(tmp_path, masks, PARTS.format(constructor, paramwise)))
    assert outcome.code == 2 and outcome.err.count('\n') == 1
    assert outcome.err.startswith('error: optim_wrapper.') and told in outcome.err


def test_a_backbone_without_counted_layers_is_refused():
    resnet = MODELS.build(dict(type='vpt_dense.ResNet', depth=18, trainable=['.*']))
    with pytest.raises(ValueError, match=r'optim_wrapper\.constructor: mmpretrain counts no'):
        resnet.get_layer_depth('backbone.conv1.weight', 'backbone.')


def test_other_constructors_and_backbones_stay_as_they_are():
    plain = optim('DefaultOptimWrapperConstructor')
    assert layer_decay.known(plain, Model(tiny_vit())) is plain
    other = optim('LearningRateDecayOptimizerConstructor')
    assert layer_decay.known(other, Model(nn.Linear(1, 1))) is other

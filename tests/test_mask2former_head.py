"""Mask2Former as a decode head: mmseg's own, and a run."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from tool_helpers import run_tool
from utils import CONFIGS, ROOT, in_scope, make_ade_folder, randomise

from vpt_dense import building, config

RECIPE = """
_base_ = '{configs}/vpt/mask2former_vit-s_dinov2_segfolder.py'
work_dir = '{folder}/work'
dataset = dict(data_root='{folder}/data', classes=['a', 'b', 'c'])
img_size = 32
batch_size = 2
iters = 2
_loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = _loader
val_dataloader = _loader
test_dataloader = _loader
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
_dim = dict(embed_dims=16)
_layer = dict(self_attn_cfg=_dim, ffn_cfg=dict(feedforward_channels=16, **_dim))
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2,
                  feedforward_channels=64),
        patch_size=8, out_indices=[1], layer_scale_init_value=0.0, init_cfg=None),
    neck=dict(in_channels=32, out_channels=16),
    decode_head=dict(
        in_channels=[16] * 4, feat_channels=16, out_channels=16, num_queries=12,
        positional_encoding=dict(num_feats=8),
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=4), positional_encoding=dict(num_feats=8),
            encoder=dict(num_layers=1, layer_cfg=_layer)),
        transformer_decoder=dict(num_layers=2, layer_cfg=dict(cross_attn_cfg=_dim, **_layer)),
        train_cfg=dict(num_points=64)))
"""


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp('semantic')
    make_ade_folder(folder / 'data', 2)
    path = folder / 'recipe.py'
    path.write_text(RECIPE.format(configs=CONFIGS, folder=folder))
    return path


def test_a_run(recipe, capfd):
    """Trained with prompts, tested alike; the weights of the loss follow the classes."""
    told = run_tool(capfd, 'train', recipe, '--method', 'deep')
    assert told.code == 0, told.err
    work = recipe.parent / 'work'
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['metric'] == 'mIoU' and summary['task'] == 'segmentation'
    assert summary['params']['parts']['backbone']['trainable'] == 0
    tested = run_tool(capfd, 'test', recipe, work / 'iter_2.pth', '--method', 'deep')
    assert tested.code == 0, tested.err
    measured = json.loads((work / 'test.json').read_text())['metrics']
    assert measured['mIoU'] == pytest.approx(summary['last']['metrics']['mIoU'], abs=1e-9)


#: mmseg's head knows mmdet only where that was imported first, hence a process of its own.
THEIRS = """
import sys, torch, vpt_dense
import mmdet.models
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads import Mask2FormerHead
DefaultScope.get_instance('x', scope_name='mmseg')
content = torch.load(sys.argv[1], weights_only=False)
cfg = content['cfg']
number = cfg['num_classes']
cfg['loss_cls'] = cfg['loss_cls'].copy()
cfg['loss_cls']['class_weight'] = [1.0] * number + [0.1]
head = Mask2FormerHead(**cfg)
head.load_state_dict(content['state'])
torch.manual_seed(1)
losses = head.loss(content['maps'], content['samples'], None)
scores = head.eval().predict(content['maps'], [each.metainfo for each in content['samples']], None)
torch.save(dict(losses=losses, scores=scores), sys.argv[1])
"""


@pytest.mark.slow
def test_losses_and_scores_are_mmsegs(recipe, tmp_path):
    """The same weights: equal losses, and logarithms of equal scores; an ignored label too."""
    in_scope('mmseg')
    cfg = config.load(str(recipe), None, 'head').model.decode_head
    head = randomise(MODELS.build(cfg))
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 16, side, side, generator=generator) for side in (16, 8, 4, 2)]
    samples = []
    for _ in range(2):
        labels = torch.randint(0, 2, (1, 32, 32), generator=generator)
        labels[:, :4] = 255
        samples.append(SegDataSample(
            gt_sem_seg=PixelData(data=labels), metainfo=dict(
                img_shape=(32, 32), pad_shape=(32, 32), ori_shape=(32, 32))))
    torch.manual_seed(1)
    losses = head.loss(maps, samples)
    with torch.no_grad():
        scores = head.eval().predict(maps, [each.metainfo for each in samples], {})
    plain = {key: value for key, value in cfg.items() if key != 'type'}
    file = tmp_path / 'both.pth'
    torch.save(dict(cfg=type(cfg)(plain), state=head.state_dict(), maps=maps, samples=samples),
               file)
    subprocess.run([sys.executable, '-c', THEIRS, str(file)], check=True, cwd=ROOT)
    theirs = torch.load(file, weights_only=False)
    assert losses.keys() == theirs['losses'].keys() and len(losses) == 9
    for key, value in losses.items():
        torch.testing.assert_close(value, theirs['losses'][key])
    torch.testing.assert_close(scores.exp(), theirs['scores'])


@pytest.mark.parametrize(('options', 'message'), [
    ({'model.decode_head.align_corners': True}, 'align_corners'),
    ({'model.decode_head.loss_cls.class_weight': [1.0] * 4}, 'loss_cls.class_weight follows'),
])
def test_what_cannot_be(recipe, options, message):
    with pytest.raises(ValueError, match=message):
        building.build_model(config.load(str(recipe), options, 'head'))

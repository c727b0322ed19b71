"""A pretrained classifier whose classes stand for those of the data."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from test_classification import make_image_folder, tiny_folder
from tool_helpers import forget_runs
from utils import CONFIGS, randomise

from vpt_dense import config, safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.engine.runner import Runner
from vpt_dense.errors import UserError
from vpt_dense.hooks import label_mapping_hook

LEAF = CONFIGS / 'vpt' / 'resnet-50_lor-vp-ilm_imagefolder.py'


def head(**kwargs):
    cfg = dict(type='vpt_dense.LabelMappingHead', num_classes=3, in_channels=4,
               num_source_classes=6)
    return MODELS.build({**cfg, **kwargs})


def by_hand(counts: np.ndarray) -> list[int]:
    """All pairs by count, largest first; each class once."""
    pairs = [(-counts[t, s], t, s) for t, s in np.ndindex(counts.shape)]
    mapping = {}
    for _, target, source in sorted(pairs):
        if target not in mapping and source not in mapping.values():
            mapping[target] = source
    return [mapping[target] for target in range(len(counts))]


@pytest.mark.parametrize('seed', range(5))
def test_the_mapping_is_greedy_and_one_to_one(seed):
    counts = np.random.default_rng(seed).integers(0, 6, (5, 8))  # with many equal ones
    counts[2] = 0
    model = head(num_classes=5, num_source_classes=8)
    model.set_mapping(torch.from_numpy(counts))
    assert model.mapping.tolist() == by_hand(counts)
    assert len(set(model.mapping.tolist())) == 5


def test_a_class_gives_way_to_one_that_is_seen_more_often():
    model = head()
    model.set_mapping(torch.tensor([[0, 5, 4, 0, 0, 0], [0, 9, 0, 0, 0, 0], [1, 0, 4, 0, 0, 0]]))
    assert model.mapping.tolist() == [2, 1, 0]
    feats = (torch.randn(2, 4),)
    assert torch.equal(model(feats), model.fc(feats[0])[:, [2, 1, 0]])
    assert not any(p.requires_grad for p in model.parameters())
    other = head()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(feats), model(feats))


def test_without_a_mapping_it_says_what_is_missing():
    with pytest.raises(UserError, match=r'has no mapping: .* custom_hooks = \[dict\(type='):
        head().predict((torch.randn(2, 4),))


def test_the_classifier_is_found_by_its_shape(tmp_path):
    tensors = {'module.fc.weight': torch.randn(6, 4), 'module.fc.bias': torch.randn(6),
               'module.neck.weight': torch.randn(4, 4), 'module.neck.bias': torch.randn(4)}
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=tensors), path)
    model = head(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    assert torch.equal(model.fc.weight, tensors['module.fc.weight'])
    assert torch.equal(model.fc.bias, tensors['module.fc.bias'])
    torch.save({**tensors, 'b.weight': torch.ones(6, 4), 'b.bias': torch.zeros(6)}, path)
    with pytest.raises(UserError, match=r'2 linear layers of 4 features and 6 classes \(module'):
        model.init_weights()
    model = head(init_cfg=dict(type='Pretrained', checkpoint=str(path), name='b'))
    model.init_weights()
    assert (model.fc.weight == 1).all()
    model = head(num_source_classes=7, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(UserError, match=r'0 linear layers of 4 features and 7 classes \(none\)'):
        model.init_weights()


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(mode='once'), r"head\.mode must be 'iterative' or 'frequency', found 'once'"),
    (dict(num_source_classes=2), r'head\.num_source_classes must be at least the 3 classes'),
    (dict(num_source_classes=None), r'head\.num_source_classes must be an integer of .* None'),
    (dict(num_classes=0), r'head\.num_classes must be an integer of at least 1, found 0'),
    (dict(in_channels=2.0), r'head\.in_channels must be an integer of at least 1, found 2\.0'),
    (dict(init_cfg=dict(type='Normal', layer='Linear')),
     r"head\.init_cfg must be dict\(type='Pretrained', .* found \{'type': 'Normal'"),
    (dict(init_cfg=dict(type='Pretrained')), r'head\.init_cfg must be dict\(.*, checkpoint='),
])  # fmt: skip
def test_bad_options_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        head(**kwargs)


def overrides(tmp_path, **more) -> dict:
    """A tiny ResNet with a classifier of 7 classes, on an image folder of three."""
    data, weights = tmp_path / 'data', tmp_path / 'r.pth'
    if not data.exists():
        make_image_folder(data)
        net = randomise(MODELS.build(dict(type='vpt_dense.ResNet', depth=18, base_channels=4,
                                          stem_channels=4)))
        state = {**net.state_dict(), 'fc.weight': torch.randn(7, 32), 'fc.bias': torch.zeros(7)}
        torch.save(state, weights)
    options = tiny_folder(tmp_path / 'run', data)
    for key in ('arch', 'patch_size', 'init_cfg'):
        del options[f'model.backbone.{key}']
    return {
        **options,
        'model.backbone.depth': 18, 'model.backbone.base_channels': 4,
        'model.backbone.stem_channels': 4,
        'model.backbone.init_cfg.checkpoint': str(weights),
        'model.head.in_channels': 32, 'model.head.num_source_classes': 7,
        'model.head.init_cfg.checkpoint': str(weights),
        'auto_scale_lr.enable': False, 'optim_wrapper.optimizer.lr': 1.0,
        **more,
    }  # fmt: skip


def run(tmp_path, **more):
    """Train; the runner and what it logged about the mapping."""
    forget_runs()  # a run of the same second would log into the other's file
    cfg = config.load(str(LEAF), overrides(tmp_path, **more))
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = next(Path(cfg.work_dir).glob('*/*.log')).read_text()
    return runner, re.findall(r'label mapping: (\d+) of (\d+)', log)


@pytest.mark.parametrize(('mode', 'times'), [('iterative', 2), ('frequency', 1)])
def test_training_finds_the_mapping_and_keeps_it(tmp_path, mode, times):
    """Counted by hand over the training images with the prompt at its start."""
    runner, found = run(tmp_path, **{'train_cfg.max_epochs': 2, 'model.head.mode': mode})
    assert len(found) == times and {int(of) for _, of in found} == {12}
    model = runner.model
    mapping = model.head.mapping.tolist()
    assert min(mapping) >= 0 and len(set(mapping)) == 3
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        'backbone.image_prompt.left', 'backbone.image_prompt.right'}
    assert model.backbone.image_prompt.left.any()  # it has moved
    path = tmp_path / 'run' / 'epoch_2.pth'
    state = safe_files.read(str(path))['state_dict']
    assert state['head.mapping'].tolist() == mapping
    assert not any(name.startswith('backbone.layer') for name in state)


@pytest.mark.slow
def test_the_frequencies_are_those_of_the_training_images(tmp_path, monkeypatch):
    """With a pipeline that draws nothing: the hook's counts are those of plain forward passes."""
    seen = []
    monkeypatch.setattr('vpt_dense.classifiers.LabelMappingHead.set_mapping',
                        lambda self, counts: (seen.append(counts.clone()),
                                              self.mapping.copy_(torch.arange(3))))
    plain = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32)),
             dict(type='PackInputs')]
    runner, _ = run(tmp_path, **{'train_dataloader.dataset.pipeline': plain,
                                 'optim_wrapper.optimizer.lr': 0.0})
    model = runner.model.eval()
    counts = torch.zeros(3, 7, dtype=torch.int64)
    dataset = runner.train_dataloader.dataset
    for i in range(len(dataset)):
        sample = dataset[i]
        with torch.no_grad():
            x = model.data_preprocessor(dict(inputs=[sample['inputs']]))['inputs']
            counts[sample['data_samples'].gt_label, model.head.fc(
                model.extract_feat(x)[-1]).argmax()] += 1
    assert len(seen) == 1 and torch.equal(seen[0], counts)
    assert counts.sum() == 12 and (counts.sum(1) == 4).all()
    # Each of two processes counts half of the images, and maps by what both have counted.
    monkeypatch.setattr(label_mapping_hook, 'get_world_size', lambda: 2)
    own = []
    monkeypatch.setattr(label_mapping_hook, 'all_reduce',
                        lambda part: (own.append(part.clone()), part.copy_(counts)))
    for rank in (0, 1):
        monkeypatch.setattr(label_mapping_hook, 'get_rank', lambda rank=rank: rank)
        label_mapping_hook.LabelMappingHook().find(runner)
    assert own[0].sum() == own[1].sum() == 6 and torch.equal(own[0] + own[1], counts)
    assert torch.equal(seen[1], counts) and torch.equal(seen[2], counts)


@pytest.mark.parametrize(('epoch', 'iteration', 'finds'), [
    (0, 0, True), (2, 20, True), (2, 25, False),
    (2, 45, True), (3, 55, True), (2, 5, True), (3, 15, True),  # begun by more or fewer processes
])  # fmt: skip
def test_an_epoch_finds_its_mapping_unless_it_goes_on(monkeypatch, epoch, iteration, finds):
    found = []
    hook = label_mapping_hook.LabelMappingHook()
    monkeypatch.setattr(hook, 'find', found.append)
    runner = SimpleNamespace(model=SimpleNamespace(head=head()), epoch=epoch, iter=iteration,
                             train_dataloader=range(10))
    hook.before_train_epoch(runner)
    assert found == [runner] * finds


@pytest.mark.parametrize(('model', 'message'), [
    (SimpleNamespace(head=torch.nn.Linear(2, 2)), r'LabelMappingHead as model\.head, found Linear'),
    (SimpleNamespace(decode_head=None), r'LabelMappingHead as model\.head, found NoneType'),
    (SimpleNamespace(head=head()), r"model\.head\.mode='iterative' .* train_cfg counts iterations"),
], ids=str)  # fmt: skip
def test_a_run_that_the_hook_does_not_fit_is_refused(model, message):
    hook = label_mapping_hook.LabelMappingHook()
    with pytest.raises(UserError, match=message):
        hook.before_train(SimpleNamespace(model=model, iter=0, train_loop=None))


@pytest.mark.slow
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    """From the end of an epoch, and from its middle, where no mapping is to be found."""
    often = {'train_cfg.max_epochs': 2, 'default_hooks.checkpoint.interval': 2,
             'default_hooks.checkpoint.by_epoch': False,
             'default_hooks.checkpoint.max_keep_ckpts': -1}
    whole, found = run(tmp_path, **often)
    assert len(found) == 2
    for iteration, times in ((4, 0), (2, 1)):  # an epoch is three iterations
        forget_runs()
        folder = tmp_path / f'from_{iteration}'
        again, found = run(tmp_path, **often, **{
            'resume': True, 'load_from': str(tmp_path / 'run' / f'iter_{iteration}.pth'),
            'work_dir': str(folder)})  # fmt: skip
        assert len(found) == times
        state = again.model.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in whole.model.state_dict().items())


def test_a_checkpoint_holds_prompt_head_and_mapping(tmp_path, mmpretrain_scope):
    cfg = config.load(str(LEAF), overrides(tmp_path))
    model = MODELS.build(cfg.model)
    model.init_weights()
    checkpoint = dict(state_dict=model.state_dict())
    said = deltas.reduce(model, checkpoint)
    assert said.startswith('checkpoints hold')
    assert {n for n in checkpoint['state_dict'] if not n.startswith('backbone.')} == {
        'head.fc.weight', 'head.fc.bias', 'head.mapping'}

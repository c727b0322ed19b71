"""Ensembles: members train as if alone, predict together, and come from one run or from deltas."""

import contextlib
import copy
import json

import mmengine.dataset.sampler
import pytest
import torch
from methods import ROWS, build_at_start
from mmengine import Config
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from resume_runs import differences, final, settings, train
from test_deltas import leaf_of, save_base
from test_deltas import train as train_leaf
from tool_helpers import run_tool, tiny_folder
from utils import CONFIGS, TINY_ARCH, images, make_ade_folder, randomise, tiny_vit

from vpt_dense import config, safe_files, seeding
from vpt_dense.checkpoints import assembly, deltas
from vpt_dense.ensemble import settings as ensemble_settings
from vpt_dense.ensemble.heads import mean_probability
from vpt_dense.ensemble.sampler import EnsembleSampler
from vpt_dense.errors import UserError
from vpt_dense.weights.base import KEY

CLASSES = 4
DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)


def model_config(task: str) -> Config:
    """A tiny model with a deep prompt, as configured; cross entropy before upsampling included."""
    backbone = dict(
        type='vpt_dense.VisionTransformer', arch=TINY_ARCH, img_size=32, patch_size=8,
        prompt=DEEP)
    if task == 'cls':
        return Config(dict(
            type='mmpretrain.ImageClassifier', backbone=dict(backbone, out_type='cls_token'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=CLASSES, in_channels=64,
                      cal_acc=True)))
    head = dict(
        type='vpt_dense.SETRUPHead', in_channels=64, channels=8, num_convs=1, up_scale=4,
        kernel_size=1, num_classes=CLASSES, dropout_ratio=0, norm_cfg=dict(type='BN'),
        loss_decode=dict(type='mmseg.CrossEntropyLoss'))
    return Config(dict(
        type='vpt_dense.EncoderDecoder',
        backbone=dict(backbone, out_type='featmap', out_indices=[1, 3]),
        decode_head=dict(head, in_index=1), auxiliary_head=[dict(head, in_index=0)],
        test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(24, 24))))


def build_model(task: str, seeds=None, seed: int = 0):
    """The model, or its ensemble; every parameter has a value of its own."""
    cfg = model_config(task)
    if seeds is not None:
        ensemble_settings.wrap(cfg, seeds)
    return randomise(MODELS.build(cfg._cfg_dict), seed)


def shown(model) -> dict:
    """Everything that a state dict holds but the counters of batch-norm."""
    return {n: t for n, t in model.state_dict().items() if not n.endswith('num_batches_tracked')}


def give(member: int, ensemble, single) -> None:
    """Give a plain model the weights of a member."""
    state = ensemble.state_dict()
    single.load_state_dict({n: state[assembly._name(n, member)] for n in single.state_dict()})


def take(member: int, single, ensemble) -> None:
    """Make a plain model's weights those of a member."""
    state = ensemble.state_dict()
    state.update({assembly._name(n, member): t for n, t in single.state_dict().items()})
    ensemble.load_state_dict(state)


def samples(task: str, number: int, seed: int, size: int = 32) -> list:
    """Data samples with random labels."""
    generator = torch.Generator().manual_seed(seed)
    if task == 'cls':
        from mmpretrain.structures import DataSample

        labels = torch.randint(0, CLASSES, (number,), generator=generator)
        return [DataSample().set_gt_label(label[None]) for label in labels]
    from mmseg.structures import SegDataSample

    labels = torch.randint(0, CLASSES, (number, 1, size, size), generator=generator)
    meta = dict(img_shape=(size, size), ori_shape=(size, size))
    return [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=meta)
            for label in labels]


def probabilities(task: str, model, batch) -> torch.Tensor:
    """What the model predicts for images (B, 3, h, w): (B, classes, ...)."""
    model.eval()
    with torch.no_grad():
        found = model.predict(batch)
    if task == 'cls':
        return torch.stack([sample.pred_score for sample in found])
    for sample in found:
        assert torch.equal(
            sample.pred_sem_seg.data, sample.seg_logits.data.argmax(0, keepdim=True))
    return torch.stack([sample.seg_logits.data.softmax(0) for sample in found])


# --- training --------------------------------------------------------------------------------


OPTIMIZERS = {
    'sgd': lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01),
    'adamw': lambda parameters: torch.optim.AdamW(parameters, 0.01, weight_decay=0.1),
}


def optimise(model, batches, optimizer: str) -> list[dict]:
    """Take a step on each batch; return the losses as they are logged."""
    model.train()
    stepper = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    logged = []
    for inputs, labels in batches:
        losses = model.loss(inputs, labels)
        stepper.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        stepper.step()
        logged.append({
            name: sum(value).detach().squeeze() if isinstance(value, list)
            else value.detach().squeeze() for name, value in losses.items()})
    return logged


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('task', ['cls', 'seg'])
def test_an_ensemble_trains_as_its_members_do_alone(task, optimizer):
    k, number = 3, 2
    ensemble = build_model(task, list(range(k))).double()
    singles = [build_model(task).double() for _ in range(k)]
    data = []
    for j, single in enumerate(singles):
        give(j, ensemble, single)
        data.append([
            (images(number, 3, 32, 32, seed=10 * j + i, dtype=torch.float64),
             samples(task, number, 10 * j + i)) for i in range(4)
        ])
    before = copy.deepcopy(shown(ensemble))
    joined = [
        (torch.cat([inputs for inputs, _ in step]), sum((labels for _, labels in step), []))
        for step in zip(*data, strict=True)
    ]
    together = optimise(ensemble, joined, optimizer)
    after = shown(ensemble)
    alone = [optimise(single, batches, optimizer)
             for single, batches in zip(singles, data, strict=True)]
    for j, single in enumerate(singles):
        for name, tensor in shown(single).items():
            own = assembly._name(name, j)
            torch.testing.assert_close(after[own], tensor, atol=1e-10, rtol=1e-8, msg=own)
            trains = own.startswith(('backbone.prompt', 'head', 'decode_head', 'auxiliary_head'))
            assert torch.equal(before[own], tensor) != trains, own
    # Each loss is logged for each member, and their mean, which does not count.
    for step, log in enumerate(together):
        for name in alone[0][step]:
            figures = [log[_logged(name, f'm{j}.')] for j in range(k)]
            for j, figure in enumerate(figures):
                torch.testing.assert_close(figure, alone[j][step][name], msg=name)
            mean = log[name.replace('loss', 'mean')]
            torch.testing.assert_close(mean, torch.stack(figures).mean())
        assert len(log) == (k + 1) * len(alone[0][step])


def _logged(name: str, member: str) -> str:
    part, dot, figure = name.rpartition('.')
    return f'{part}{dot}{member}{figure}'


@pytest.mark.parametrize('task', ['cls', 'seg'])
def test_a_member_starts_by_its_seed_alone(task):
    def start(seeds, run_seed):
        torch.manual_seed(run_seed)
        cfg = model_config(task)
        ensemble_settings.wrap(cfg, seeds)
        model = MODELS.build(cfg._cfg_dict)
        model.init_weights()
        return model.state_dict()

    pair, single, other = start([3, 7], 0), start([7], 1), start([8], 1)
    tuned = [n for n in single if '.members.' in n]
    drawn = [n for n in tuned if single[n].ndim > 1]
    assert len(drawn) >= 2
    for name in tuned:
        assert torch.equal(pair[name.replace('members.0', 'members.1')], single[name]), name
    for name in drawn:
        assert not torch.equal(pair[name], single[name]), name
        assert not torch.equal(other[name], single[name]), name


def test_a_member_starts_by_its_seed_on_a_gpu_too(monkeypatch):
    """Where the model is on the GPU before it is initialised, the GPU's generator draws."""
    seeds, drawn = [], []
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'manual_seed', seeds.append)
    monkeypatch.setattr(torch.random, 'fork_rng', contextlib.nullcontext)
    for members in ([3, 7], [7]):
        cfg = model_config('cls')
        ensemble_settings.wrap(cfg, members)
        model = MODELS.build(cfg._cfg_dict)
        seeds.clear()
        model.head.init_weights()
        drawn.append(list(seeds))
    assert drawn[0][1:] == drawn[1] and len(set(drawn[0])) == 2


def test_heads_of_one_member_start_differently():
    cfg = model_config('seg')
    cfg.auxiliary_head.append(dict(cfg.auxiliary_head[0], in_index=1))
    ensemble_settings.wrap(cfg, [0])
    model = MODELS.build(cfg._cfg_dict)
    model.init_weights()
    first, second = (head.members[0].conv_seg.weight for head in model.auxiliary_head)
    assert first.shape == second.shape and not torch.equal(first, second)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_ade_folder(tmp_path_factory.mktemp('data'), num_images=7, size=(48, 48))


#: Dropout draws from what an iteration of the whole run draws from.
NO_DROPOUT = {'model.backbone.prompt.dropout': 0.0, 'model.auxiliary_head.0.dropout_ratio': 0.0}


@pytest.mark.parametrize('loop', ['iter', pytest.param('epoch', marks=pytest.mark.slow)])
def test_a_run_of_two_equals_two_runs(tmp_path, data, loop):
    """Same starts, same images in the same order with the same augmentation, same schedule."""
    short = {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 100,
             'default_hooks.checkpoint.interval': 4} if loop == 'iter' else {}
    for name, seeds in (('both', [5, 3]), ('5', [5]), ('3', [3])):
        options = {'ensemble.seeds': seeds, **NO_DROPOUT, **short}
        train(settings(tmp_path / name, data, loop, **options))
    last = 'iter_4.pth' if short else 'iter_8.pth'
    both, *singles = (
        safe_files.read(tmp_path / name / last)['state_dict'] for name in ('both', '5', '3'))
    for j, single in enumerate(singles):
        compared = 0
        for name, tensor in single.items():
            own = name.replace('members.0', f'members.{j}')
            torch.testing.assert_close(both[own], tensor, atol=1e-6, rtol=1e-5)
            compared += '.members.' in name
        assert compared > 5
    assert not torch.equal(singles[0]['backbone.prompt.members.0.tokens'],
                           singles[1]['backbone.prompt.members.0.tokens'])


@pytest.mark.parametrize(('loop', 'stop', 'workers'), [('iter', 5, 2), ('epoch', 6, 0)])
@pytest.mark.slow
def test_a_resumed_ensemble_ends_where_the_uninterrupted_one_does(
        tmp_path, data, loop, stop, workers):
    def run(name, workers=0, **kwargs):
        train(settings(tmp_path / name, data, loop, workers, **{'ensemble.seeds': [5, 3]}),
              **kwargs)

    run('whole')
    run('cut', stop=stop)
    run('cut', workers, resume=str(tmp_path / f'cut/iter_{stop}.pth'))
    assert not differences(final(tmp_path / 'whole'), final(tmp_path / 'cut'))


def positions(sampler, number: int | None = None) -> list[tuple]:
    found = []
    for position in sampler:
        found.append((int(position), position.key))
        if len(found) == number:
            break
    return found


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('kind', ['DefaultSampler', 'InfiniteSampler'])
def test_members_see_what_runs_of_their_seeds_see(monkeypatch, kind, rank):
    monkeypatch.setattr(mmengine.dataset.sampler, 'get_dist_info', lambda: (rank, 2))
    monkeypatch.setattr(seeding, 'get_rank', lambda: rank)
    dataset = range(11)
    inner = dict(type=kind, shuffle=True)
    number = 6 if kind == 'DefaultSampler' else 20  # of a process in an epoch

    def ensemble():
        sampler = dict(type='vpt_dense.EnsembleSampler', sampler=inner, seeds=[4, 9], batch_size=4)
        sampler = seeding.PositionSampler(sampler, dataset, 0)
        sampler.set_epoch(3)
        return sampler

    alone = []
    for seed in (4, 9):
        sampler = seeding.PositionSampler(dict(inner), dataset, seed)
        sampler.set_epoch(3)
        alone.append(positions(sampler, number))
    expected = []
    for start in range(0, number, 4):
        expected += alone[0][start:start + 4] + alone[1][start:start + 4]
    found = ensemble()
    assert found.is_infinite == (kind == 'InfiniteSampler')
    assert positions(found, 2 * number) == expected
    if kind == 'DefaultSampler':
        assert len(found) == 2 * number
    resumed = ensemble()
    resumed.start_at(8)  # a batch
    assert positions(resumed, 2 * number - 8) == expected[8:]


# --- prediction ------------------------------------------------------------------------------


@pytest.mark.parametrize('task', ['cls', 'seg'])
def test_equal_members_predict_what_one_does(task):
    """Sliding windows and resizing included: images of 41 pixels, windows of 32."""
    single = build_model(task)
    ensemble = build_model(task, [0, 1, 2])
    for j in range(3):
        take(j, single, ensemble)
    batch = images(2, 3, 32 if task == 'cls' else 41, 32, seed=1)
    torch.testing.assert_close(
        probabilities(task, ensemble, batch), probabilities(task, single, batch),
        atol=1e-6, rtol=0)


@pytest.mark.parametrize('task', ['cls', 'seg'])
def test_the_order_of_members_does_not_matter(task):
    one, other = build_model(task, [0, 1, 2]), build_model(task, [0, 1, 2])
    single = build_model(task)
    for j, k in ((0, 2), (1, 0), (2, 1)):
        give(j, one, single)
        take(k, single, other)
    batch = images(2, 3, 32 if task == 'cls' else 41, 32, seed=1)
    found = probabilities(task, one, batch)
    torch.testing.assert_close(probabilities(task, other, batch), found, atol=1e-6, rtol=0)
    assert not torch.allclose(probabilities(task, single, batch), found, atol=1e-3)


@pytest.mark.parametrize('task', ['cls', 'seg'])
def test_the_mean_of_the_members_softmax_is_predicted(task):
    ensemble = build_model(task, [0, 1, 2])
    single = build_model(task)
    batch = images(2, 3, 32, 32, seed=1)
    each = []
    for j in range(3):
        give(j, ensemble, single)
        each.append(probabilities(task, single, batch))
    assert (each[0] - each[1]).abs().max() > 1e-2
    expected = torch.stack(each).mean(0)
    for _ in range(2):  # keys and values are cached for the second
        torch.testing.assert_close(
            probabilities(task, ensemble, batch), expected, atol=1e-6, rtol=0)


def test_test_time_augmentation_takes_an_ensemble():
    from mmseg.structures import SegDataSample

    from vpt_dense.segmentors import SegTTAModel

    single, ensemble = build_model('seg'), build_model('seg', [0, 1])
    for j in range(2):
        take(j, single, ensemble)
    found = []
    for model in (single, ensemble):
        # Images as they are, without a preprocessor.
        model.data_preprocessor.forward = lambda data, training=False: dict(
            inputs=torch.stack(data['inputs']), data_samples=data['data_samples'])
        meta = [dict(img_shape=(40, 40), ori_shape=(40, 40), flip=flip,
                     flip_direction='horizontal' if flip else None) for flip in (False, True)]
        image = images(3, 40, 40)
        data = dict(inputs=[[image], [image.flip(2)]],
                    data_samples=[[SegDataSample(metainfo=m)] for m in meta])
        with torch.no_grad():
            found.append(SegTTAModel(model.eval()).average(data)[0][0])
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=0)


def test_mean_probability_of_extreme_logits_is_finite():
    a = torch.tensor([[500.0, -500.0, 0.0]])
    b = torch.tensor([[-500.0, -500.0, 300.0]])
    found = mean_probability([a, b])
    assert found.isfinite().all()
    torch.testing.assert_close(found.softmax(1), torch.tensor([[0.5, 0.0, 0.5]]))
    half = mean_probability([a.half(), b.half()])
    assert half.dtype == torch.float32


def test_one_channel_is_a_sigmoid():
    logits = images(3, 2, 1, 4, 4) * 3
    found = mean_probability(logits)
    torch.testing.assert_close(found.sigmoid(), logits.sigmoid().mean(0))
    torch.testing.assert_close(mean_probability(logits[:1]), logits[0])


# --- every kind of prompt --------------------------------------------------------------------


PROMPTS = [
    name for name, row in ROWS.items()
    if row.tuning.get('prompt') and 'vit' in row.fits and not row.tuning.get('adapters')
    and row.tuning.get('trainable', [r'^prompt\.']) == [r'^prompt\.']
]
MORE = {
    'middle': dict(prompt=dict(**DEEP, layer_range=(1, 2), keep_outputs=False)),
    'shallow, late': dict(prompt=dict(**{**DEEP, 'deep': False}, layer_range=(2, None))),
    'tokens': dict(prompt=DEEP, prompts_as='tokens'),
    'lean': dict(prompt=DEEP, memory='lean'),
}


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('name', [*PROMPTS, *MORE])
def test_an_ensemble_computes_what_its_members_do(name, training):
    row = ROWS.get(name)
    tuning = MORE[name] if row is None else row.tuning
    task = 'seg' if row is None else row.tasks[-1]
    if 'dropout' in str(tuning):
        tuning = copy.deepcopy(tuning)
        for key in [key for key in tuning['prompt'] if key.startswith('dropout')]:
            tuning['prompt'][key] = 0.0
    wrapped = dict(type='vpt_dense.PromptEnsemble', seeds=[0, 1], prompt=tuning['prompt'])
    ensemble = randomise(build_at_start({**tuning, 'prompt': wrapped}, 'vit', task))
    singles = []
    for j in range(2):
        single = build_at_start(tuning, 'vit', task)
        state = ensemble.state_dict()
        single.load_state_dict({
            n: state[assembly._name(f'backbone.{n}', j).removeprefix('backbone.')]
            for n in single.state_dict()})
        singles.append(single.train(training))
    ensemble.train(training)
    for module in [m for model in (ensemble, *singles) for m in model.modules()]:
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, 'dropout') and isinstance(module.dropout, float):
            module.dropout = 0.0
    batch = images(6, 3, 32, 32)
    with torch.set_grad_enabled(training):
        found = ensemble(batch if training else batch[:3])
        each = [
            single(batch[3 * j:3 * j + 3] if training else batch[:3])
            for j, single in enumerate(singles)
        ]
    assert len(found) == len(each[0])
    for level, outs in enumerate(found):
        expected = torch.cat([outs[level] for outs in each])
        assert outs.shape == expected.shape
        torch.testing.assert_close(outs, expected, atol=1e-5, rtol=1e-5)


def test_keys_and_values_are_computed_once_for_all_images():
    ensemble = tiny_vit(prompt=dict(type='vpt_dense.PromptEnsemble', seeds=[0, 1], prompt=DEEP))
    ensemble.eval()
    made = []
    attn = ensemble.layers[1].attn
    run = attn._split_heads
    attn._split_heads = lambda tokens: made.append(tokens.shape) or run(tokens)
    with torch.no_grad():
        out = ensemble(images(3, 3, 32, 32))[0]
    assert made == [(6, 17, 2 * 64), (6, 17, 64), (2, 3, 2 * 64)] and len(out) == 6


def test_the_patch_embedding_is_computed_once():
    ensemble = tiny_vit(prompt=dict(type='vpt_dense.PromptEnsemble', seeds=[0, 1], prompt=dict(
        **DEEP, layer_range=(2, None))), out_indices=[0, 3]).eval()
    sizes = []
    for module in (ensemble.patch_embed, ensemble.layers[1], ensemble.layers[2]):
        module.register_forward_hook(lambda m, inputs, out: sizes.append(len(inputs[0])))
    with torch.no_grad():
        outs = ensemble(images(3, 3, 32, 32))
    assert sizes == [3, 3, 6]
    assert [len(out) for out in outs] == [6, 6]
    assert torch.equal(outs[0][:3], outs[0][3:]) and not torch.equal(outs[1][:3], outs[1][3:])


def test_necks_are_members_too():
    neck = MODELS.build(dict(
        type='vpt_dense.EnsembleNeck', seeds=[0, 1], neck=dict(
            type='mmseg.MLANeck', in_channels=[8, 8], out_channels=4)))
    feats = [images(6, 8, 4, 4, seed=i) for i in range(2)]
    neck.eval()
    outs = neck(feats)
    for j, member in enumerate(neck.members):
        own = member([feat[3 * j:3 * j + 3] for feat in feats])
        for level, out in enumerate(own):
            assert torch.equal(outs[level][3 * j:3 * j + 3], out)


# --- configs ---------------------------------------------------------------------------------


LEAVES = ('vpt/setr_vit-l_deep-ensemble-5_ade20k', 'vpt/vit-b_deep-ensemble-5_imagefolder',
          'demo/setr_deep-ensemble-5_digits')


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_says_it_once(name):
    single = config.load(str(CONFIGS / f'{name}.py'.replace('deep-ensemble-5', 'deep')))
    cfg = config.load(str(CONFIGS / f'{name}.py'))
    assert 'ensemble' not in cfg
    assert cfg.model.backbone.prompt.prompt == single.model.backbone.prompt
    for one, several in zip(config.heads(single.model), config.heads(cfg.model), strict=True):
        assert one == several
    loader, alone = cfg.train_dataloader, single.train_dataloader
    assert (loader.batch_size, loader.sampler.batch_size) == (5 * alone.batch_size,
                                                              alone.batch_size)
    assert loader.sampler.sampler == alone.sampler
    if 'auto_scale_lr' in cfg:
        assert cfg.auto_scale_lr.base_batch_size == 5 * single.auto_scale_lr.base_batch_size
    written = Config(cfg.to_dict())
    config.resolve(written)  # what a run has written is as good
    assert written.to_dict() == cfg.to_dict()


def place(seeds=(0, 1), **changes) -> Config:
    """Resolve a small config of an ensemble, changed."""
    cfg = Config(dict(
        model=model_config('seg').to_dict(), ensemble=dict(seeds=list(seeds)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        train_dataloader=dict(batch_size=2, sampler=dict(type='InfiniteSampler'), dataset={})))
    cfg.merge_from_dict(changes)
    ensemble_settings.place(cfg)
    return cfg


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(ensemble=dict(seeds=[])), r'ensemble\.seeds must be a list .* at least one, found \[\]'),
    ({'ensemble.seeds': 5}, r'ensemble\.seeds must be a list .* found 5'),
    ({'ensemble.seeds': [0, -1]}, r'ensemble\.seeds must be a list .* found \[0, -1\]'),
    ({'ensemble.seeds': [0, 1, 0]}, r'ensemble\.seeds has 0 twice'),
    ({'ensemble.size': 5}, r'ensemble must be dict\(seeds=\[0, 1, \.\.\.\]\), found'),
    ({'model.backbone.prompt': None}, r'ensemble: the config has no model\.backbone\.prompt'),
    ({'optim_wrapper.clip_grad': dict(max_norm=1.0)}, r'optim_wrapper\.clip_grad clips the norm'),
    ({'model.train_cfg': dict(augments=dict(type='Mixup'))}, r'model\.train_cfg\.augments mixes'),
    ({'model.data_preprocessor': dict(batch_augments=dict(augments=dict(type='Mixup')))},
     r'model\.data_preprocessor\.batch_augments mixes images of different members'),
    (dict(custom_hooks=[dict(type='vpt_dense.PromptStartHook', source='samples')]),
     r'custom_hooks: vpt_dense\.PromptStartHook starts one set of prompts'),
    ({'train_dataloader.batch_sampler': dict(type='X')}, r'train_dataloader needs a sampler'),
    *(({'train_dataloader.batch_size': size},
       rf'train_dataloader\.batch_size must be an integer of at least 1, found {size!r}')
      for size in (None, 0, 1.5, '2')),
    (dict(auto_scale_lr=dict(base_batch_size=None)),
     r'auto_scale_lr\.base_batch_size must be an integer of at least 1, found None'),
])
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        place(**changes)


def test_written_configs_are_checked():
    cfg = place()
    cfg.ensemble = dict(seeds=[0])
    with pytest.raises(UserError, match='ensemble: the model is one already'):
        ensemble_settings.place(cfg)
    cfg = place()
    cfg.train_dataloader.batch_size = 6
    with pytest.raises(UserError, match=r'train_dataloader: batch_size 6 is not that of 2 members'):
        ensemble_settings.place(cfg)
    cfg = place()
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    with pytest.raises(UserError, match=r'train_dataloader\.sampler must be of type vpt_dense\.En'):
        ensemble_settings.place(cfg)
    assert place(**{'optim_wrapper.clip_grad': dict(type='value', clip_value=1.0)})
    assert place(**{'optim_wrapper.clip_grad': 1.0})  # no dict: the optimizer's wrapper says so


@pytest.mark.parametrize(('change', 'message'), [
    ({'decode_head.seeds': [0, 1, 2]},
     r'model\.decode_head is one of the seeds \[0, 1, 2\], but .*prompt is one of .* \[0, 1\]'),
    ({'backbone.prompt': dict(DEEP, _delete_=True)},
     r'model\.decode_head is one of the seeds \[0, 1\], but .*backbone\.prompt is no ensemble'),
    ({'auxiliary_head': [dict(type='mmseg.FCNHead')]},
     r'model\.auxiliary_head is no ensemble, but model\.backbone\.prompt is one of the seeds'),
])
def test_all_parts_are_of_the_same_members(change, message):
    cfg = place()
    cfg.merge_from_dict({f'model.{key}': value for key, value in change.items()})
    with pytest.raises(UserError, match=message):
        ensemble_settings.place(cfg)


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(prompt=dict(seeds=[])), 'seeds must be a list of whole numbers'),
    (dict(prompt=dict(prompt=None)), r'prompt\.prompt must be the config of a member, .* None'),
    (dict(prompt=dict(num_tokens=7)), r"PromptEnsemble.* argument 'num_tokens'"),
    (dict(prompt=dict(prompt=dict(DEEP, num_tokens=0))), r'prompt\.num_tokens must be an integer'),
    (dict(prompt=dict(prompt=dict(type='vpt_dense.PromptEnsemble', seeds=[0], prompt=DEEP))),
     r'prompt\.prompt must be a prompt, found PromptEnsemble'),
    (dict(prompt=dict(prompt=dict(type='vpt_dense.PixelPrompt', num_tokens=2, in_channels=4))),
     r'prompt\.in_channels is 4, but the patch embedding takes images of 3'),
    (dict(adapters=[dict(type='vpt_dense.LoRA', rank=2)]), 'adapters: members of an ensemble'),
    (dict(trainable=[r'^prompt\.', 'bias$']), r'also trains .*bias, which the members'),
])
def test_bad_backbones_are_refused(changes, message):
    prompt = dict(type='vpt_dense.PromptEnsemble', seeds=[0, 1], prompt=DEEP)
    prompt.update(changes.get('prompt', {}))
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_vit(**{**changes, 'prompt': prompt})


def test_other_backbones_refuse_an_ensemble():
    swin = dict(type='vpt_dense.SwinTransformer', arch='tiny', img_size=32, patch_size=4,
                prompt=dict(type='vpt_dense.PromptEnsemble', seeds=[0], prompt=DEEP))
    with pytest.raises((ValueError, TypeError), match='PromptEnsemble needs .* one width'):
        MODELS.build(swin)


def test_bad_heads_and_batches_are_refused(mmpretrain_scope):
    head = dict(type='MultiLabelLinearClsHead', in_channels=4, num_classes=2)
    with pytest.raises(ValueError, match=r'model\.head\.head must be a ClsHead'):
        MODELS.build(dict(type='vpt_dense.EnsembleClsHead', seeds=[0], head=head))
    model = build_model('cls', [0, 1])
    with pytest.raises(ValueError, match=r'a batch of 3 does not divide among the 2 members'):
        model.loss(images(3, 3, 32, 32), samples('cls', 3, 0))


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(batch_size=0), r'sampler\.batch_size must be an integer of at least 1, found 0'),
    (dict(seeds=[1, 1]), r'sampler\.seeds has 1 twice'),
    (dict(sampler=dict(type='InfiniteSampler', seed=1)), r'sampler\.sampler must be the config'),
])
def test_bad_samplers_are_refused(changes, message):
    good = dict(sampler=dict(type='InfiniteSampler'), seeds=[0, 1], batch_size=2)
    with pytest.raises(ValueError, match=message):
        EnsembleSampler(**{**good, **changes}, dataset=range(4))


# --- from deltas -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def members(tmp_path_factory):
    """Two deltas of one base, trained with other seeds, and their leaf."""
    folder = tmp_path_factory.mktemp('members')
    base = save_base(folder / 'base.pth')
    leaf = leaf_of(folder, 'deep', tiny_folder(folder / 'data'))
    paths = []
    for seed in (1, 2):
        work = folder / f'work{seed}'
        train_leaf(leaf, work_dir=str(work), randomness__seed=seed,
                   optim_wrapper__optimizer__lr=0.5)
        paths.append(folder / f'member{seed}.safetensors')
        deltas.write(deltas.extract(str(work / 'iter_2.pth')), str(paths[-1]))
    return base, paths


def logits_of(path, batch) -> torch.Tensor:
    checkpoint = deltas.read(str(path))
    cfg = deltas.stored_config.parse(checkpoint['meta']['cfg'], str(path))
    model = deltas.load(cfg, checkpoint, str(path))
    return probabilities('seg', model, batch)


@pytest.mark.slow
def test_an_ensemble_is_made_of_deltas(members, tmp_path, capfd):
    _, paths = members
    out = tmp_path / 'all.safetensors'
    done = run_tool(capfd, 'ensemble', out, *paths)
    assert done.code == 0, done.err
    assert '2 members' in done.out and str(out.with_suffix('.py')) in done.out
    batch = images(2, 3, 32, 32)
    each = [logits_of(path, batch) for path in paths]
    assert (each[0] - each[1]).abs().max() > 1e-3
    torch.testing.assert_close(
        logits_of(out, batch), torch.stack(each).mean(0), atol=1e-6, rtol=0)
    # It holds the sets and the heads, and the identity of the rest once.
    sizes = [sum(t.numel() for n, t in deltas.read(str(p))['state_dict'].items()
                 if not n.endswith(KEY)) for p in (out, *paths)]
    assert sizes[0] == sizes[1] + sizes[2]
    meta = deltas.read(str(out))['meta']
    assert [member['seed'] for member in meta['members']] == [1, 2]
    tested = run_tool(capfd, 'test', out.with_suffix('.py'), out, '--work-dir', tmp_path / 'test')
    assert tested.code == 0, tested.err
    assert 'mIoU' in json.loads((tmp_path / 'test/test.json').read_text())['metrics']
    # The state of a run made of it is that of an ensemble trained in one run.
    cfg = config.load(str(out.with_suffix('.py')))
    assert ensemble_settings.is_ensemble(cfg.model) and cfg.train_dataloader.batch_size == 4
    # What it writes goes beside no member's run.
    assert deltas.stored_config.parse(deltas.read(str(paths[0]))['meta']['cfg'], '').work_dir
    assert not {'work_dir', 'load_from', 'resume'} & set(cfg)
    # Nothing is written over: not a member whose name comes first by mistake.
    before = paths[0].read_bytes()
    for there in (paths[0], out.with_suffix('.other')):
        done = run_tool(capfd, 'ensemble', there, *paths[1:])
        assert done.code == 2 and 'is there already; name another, or overwrite' in done.err
    assert paths[0].read_bytes() == before


def test_equal_deltas_make_one(members, tmp_path):
    _, paths = members
    out = tmp_path / 'same.safetensors'
    deltas.write(assembly.assemble([str(paths[0])] * 3), str(out))
    batch = images(1, 3, 32, 32)
    torch.testing.assert_close(
        logits_of(out, batch), logits_of(paths[0], batch), atol=1e-6, rtol=0)


def changed(path, to, edit) -> str:
    delta = deltas.read(str(path))
    edit(delta)
    deltas.write(delta, str(to))
    return str(to)


def _other_text(delta):
    delta['meta']['cfg'] = delta['meta']['cfg'].replace('num_tokens=2', 'num_tokens=3')


def _no_prompt(delta):
    cfg = deltas.stored_config.parse(delta['meta']['cfg'], '')
    cfg.model.backbone.prompt = None
    delta['meta']['cfg'] = cfg.pretty_text


def _no_base(delta):
    del delta['state_dict'][f'backbone.{KEY}']


def _other_base(delta):
    record = deltas.Base.from_tensor(delta['state_dict'][f'backbone.{KEY}'])
    other = deltas.dataclasses.replace(record, sha256='0' * 64)
    delta['state_dict'][f'backbone.{KEY}'] = other.to_tensor()


def _other_classes(delta):
    delta['meta']['dataset_meta']['classes'] = delta['meta']['dataset_meta']['classes'][::-1]


@pytest.mark.parametrize(('edit', 'message'), [
    (_other_classes, "has other classes than .*, or in another order: 'flag' in place of 'wall'"),
    (_other_text, r'is not of the same model and method as .*: they differ in '
                  r'model\.backbone\.prompt\.num_tokens \(3 and 2\)'),
    (_no_prompt, 'has no prompt: only sets of prompts make an ensemble'),
    (_no_base, 'does not say which pretrained weights it builds on'),
    (_other_base, r'builds on other pretrained weights than .* is 0{64}, not [0-9a-f]{64}'),
])
def test_what_does_not_belong_together_is_refused(members, tmp_path, edit, message):
    _, paths = members
    odd = changed(paths[1], tmp_path / 'odd.safetensors', edit)
    with pytest.raises(UserError, match=message):
        assembly.assemble([str(paths[0]), odd])


def test_members_may_have_been_trained_as_an_ensemble_cannot(members, tmp_path):
    def edit(delta):
        cfg = deltas.stored_config.parse(delta['meta']['cfg'], '')
        cfg.model.train_cfg = dict(augments=dict(type='Mixup'))
        cfg.custom_hooks = [dict(type='vpt_dense.ReportHook'),
                            dict(type='vpt_dense.PromptStartHook', source='samples')]
        delta['meta']['cfg'] = cfg.pretty_text

    _, paths = members
    pair = [changed(path, tmp_path / path.name, edit) for path in paths]
    cfg = deltas.stored_config.parse(assembly.assemble(pair)['meta']['cfg'], '')
    assert cfg.custom_hooks == [dict(type='vpt_dense.ReportHook')]
    assert 'augments' not in cfg.model.train_cfg


def test_members_share_what_is_neither_prompt_nor_head(members, tmp_path):
    _, paths = members

    def edit(value):
        return lambda delta: delta['state_dict'].update({'backbone.x': torch.tensor([value])})

    pair = [changed(paths[i], tmp_path / f'{i}.safetensors', edit(float(i))) for i in range(2)]
    with pytest.raises(UserError, match=r'backbone\.x differs from that of .* share it'):
        assembly.assemble(pair)


def test_ensembles_are_no_members(members, tmp_path):
    _, paths = members
    out = str(tmp_path / 'all.safetensors')
    deltas.write(assembly.assemble([str(path) for path in paths]), out)
    with pytest.raises(UserError, match='is an ensemble already; name the deltas of its members'):
        assembly.assemble([out])
    with pytest.raises(UserError, match='an ensemble needs at least one delta'):
        assembly.assemble([])
    with pytest.raises(UserError, match='the 2 sets of PromptEnsemble have keys and values of'):
        deltas.fold(out)

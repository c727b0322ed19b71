"""Federated training without Flower: partitions, what moves, rounds, settings, the command."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import federated_data
import numpy as np
import pytest
import tomllib
import torch
from federated_data import CLASSES, RECIPE
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tool_helpers import run_tool, write_leaf
from utils import make_ade_folder

from vpt_dense import building, config
from vpt_dense.commands.federated import tell_outcome
from vpt_dense.datasets import few_images
from vpt_dense.errors import UserError
from vpt_dense.federated import local, moved, partitions
from vpt_dense.federated.settings import HISTORY, MODEL, Settings, numbers


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return federated_data.make(tmp_path_factory.mktemp('federated'))


@pytest.fixture(scope='module')
def options(data):
    return federated_data.options(data)


# --- partitions ------------------------------------------------------------------------------

LABELS = np.random.default_rng(3).integers(0, 5, 400).tolist()


@pytest.mark.parametrize('deal', [
    lambda seed: partitions.dirichlet(LABELS, 6, 0.5, seed, least=5),
    lambda seed: partitions.pathological(LABELS, 6, 2, seed),
    lambda seed: partitions.iid(len(LABELS), 6, seed),
], ids=['dirichlet', 'pathological', 'iid'])
def test_every_image_is_dealt_once_by_the_seed(deal):
    parts = deal(1)
    assert len(parts) == 6 and sorted(i for part in parts for i in part) == list(range(400))
    assert all(part == sorted(part) for part in parts)
    assert deal(1) == parts != deal(2)


def _spread(parts):
    """Mean over clients of the share of their largest class."""
    counts = [Counter(LABELS[i] for i in part) for part in parts]
    return np.mean([max(each.values()) / sum(each.values()) for each in counts])


def test_alpha_says_how_uneven_dirichlet_is():
    spreads = [_spread(partitions.dirichlet(LABELS, 5, alpha, 0)) for alpha in (0.1, 1, 1000)]
    assert spreads[0] > spreads[1] > spreads[2] and abs(spreads[2] - 0.2) < 0.06
    assert min(map(len, partitions.dirichlet(LABELS, 5, 0.3, 0, least=30))) >= 30


def test_dirichlet_is_the_distribution_that_it_says():
    """Shares of a class over clients: mean 1/K, variance (K - 1) / (K^2 (K alpha + 1))."""
    clients, alpha = 4, 0.7
    shares = np.array([[len(part) / 1000 for part in partitions.dirichlet(
        [0] * 1000, clients, alpha, seed)] for seed in range(400)])
    assert np.allclose(shares.mean(0), 1 / clients, atol=0.04)
    wanted = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert np.allclose(shares.var(0), wanted, rtol=0.25)


def test_shards_hold_few_classes():
    parts = partitions.pathological(sorted(LABELS), 10, 2, 0)
    assert max(len({sorted(LABELS)[i] for i in part}) for part in parts) <= 4
    assert {len(part) for part in parts} == {40}


def test_clients_by_the_names_of_images():
    names = ['0001TP_1.png', '0016E5_2.png', '0001TP_3.png', 'deep/0016E5_4.png']
    assert partitions.by_name(names) == {'0001TP': [0, 2], '0016E5': [1, 3]}
    assert partitions.by_name(names, r'_(\d)') == {'1': [0], '2': [1], '3': [2], '4': [3]}
    for pattern, message in (
        ('(', 'no regular'), ('a', 'no group'), (r'(\d{9})', 'finds no client'),
        (r'(_)', 'finds one client')):  # fmt: skip
        with pytest.raises(UserError, match=message):
            partitions.by_name(names, pattern)
    with pytest.raises(UserError, match=r"finds 'St. A' and 'St.+A', whose lists would both be"):
        partitions.by_name(['St. A_1.png', 'St.+A_2.png', 'B_3.png'])
    with pytest.raises(UserError, match=r"does not begin with a dot; found '\.\.'"):
        partitions.by_name(['a_..', 'b_c'], '_(.+)')


def test_no_list_of_a_client_is_that_of_what_another_holds_out(data, options, tmp_path):
    training = few_images.Training(config.load(RECIPE, options, 'deep'))
    parts = {'a': list(range(12)), 'a_test': list(range(12, 24))}
    clients = partitions.write(training, parts, tmp_path, {}, holdout=0.25)
    lists = [(tmp_path / each[key]).read_text().split() for each in clients
             for key in ('list', 'test')]
    assert [len(each) for each in lists] == [9, 3, 9, 3] and len(set(sum(lists, []))) == 24


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: partitions.dirichlet(LABELS, 6, 0, 0), '--alpha'),
    (lambda: partitions.dirichlet(LABELS, 6, 0.01, 0, 60), 'larger alpha'),
    (lambda: partitions.dirichlet(LABELS, 6, 1e308, 0), 'alpha 1e.308 is too large'),
    (lambda: partitions.dirichlet(LABELS[:9], 6, 0.05, 0, 0), '--least must be an integer of at'),
    (lambda: partitions.dirichlet(LABELS, 1, 1, 0), '--clients must be at least 2'),
    (lambda: partitions.pathological(LABELS, 201, 2, 0), 'too few'),
    (lambda: partitions.pathological(LABELS, 5, 0, 0), '--shards'),
    (lambda: partitions.iid(3, 4, 0), 'take fewer clients'),
])
def test_what_cannot_be_dealt_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_lists_of_clients_are_what_configs_take(data, options, tmp_path):
    training = few_images.Training(config.load(RECIPE, options, 'deep'))
    parts = partitions.deal(training, 'name')
    assert list(parts) == ['x', 'y', 'z']
    clients = partitions.write(training, parts, tmp_path, dict(by='name'), holdout=0.25)
    record = partitions.read(tmp_path)
    assert record['clients'] == clients and record['classes'] == CLASSES
    assert [each['images'] for each in clients] == [6, 6, 6]
    kept, held = (set((tmp_path / name).read_text().split()) for name in ('x.txt', 'test/x.txt'))
    assert len(kept) == 6 and len(held) == 2 and not kept & held
    assert all('/x_' in name for name in kept | held)
    assert sum(clients[0]['per_class']) == 6
    with pytest.raises(UserError, match='--holdout'):
        partitions.write(training, parts, tmp_path, {}, holdout=0.01)
    before = partitions.digest(tmp_path)
    (tmp_path / 'test/z.txt').write_text('a/z_0.png\n')
    assert partitions.digest(tmp_path) != before
    (tmp_path / 'test/z.txt').unlink()
    with pytest.raises(UserError, match='z.txt, a list of the partition, is not there'):
        partitions.digest(tmp_path)
    bad = [dict(record, clients=3), {'clients': record['clients']},
           dict(record, clients=[dict(record['clients'][0], name='../x')])]
    for text, message in ((json.dumps(bad[0]), 'is no partition'), ('{', 'is no partition'),
                          (json.dumps(bad[1]), 'is no partition'), (json.dumps(bad[2]), 'a dot')):
        (tmp_path / 'partition.json').write_text(text)
        with pytest.raises(UserError, match=message):
            partitions.read(tmp_path)
    with pytest.raises(UserError, match='nowhere/partition.json is no partition; make it'):
        partitions.read(tmp_path / 'nowhere')


def test_dense_images_are_dealt_by_name(tmp_path):
    root = make_ade_folder(tmp_path / 'data', size=(32, 32))
    training = few_images.Training(config.load(str(write_leaf(tmp_path, root))))
    assert training.dense
    with pytest.raises(UserError, match='dealt by name or iid'):
        partitions.deal(training, 'dirichlet', clients=2, alpha=1)
    parts = partitions.deal(training, 'iid', clients=2)
    clients = partitions.write(training, parts, tmp_path / 'lists', {})
    assert 'per_class' not in clients[0] and clients[0]['images'] == 1


# --- what moves, rounds ----------------------------------------------------------------------


@pytest.fixture(scope='module')
def job(options):
    return local.Job(RECIPE, 'deep', options, rounds=4, seed=5)


@pytest.fixture(scope='module')
def whole(job):
    return local.Global(job, CLASSES)


def test_only_what_trains_moves(whole):
    start = moved.take(whole.model)
    trained = {name for name, p in whole.model.named_parameters() if p.requires_grad}
    assert set(start) == trained == {'backbone.prompt.tokens', 'head.fc.weight', 'head.fc.bias'}
    assert moved.size(whole.kind.shapes) == sum(t.numel() * 4 for t in start.values())
    assert moved.size(whole.kind.shapes) < whole.bytes() / 4
    assert moved.Kind.from_text(whole.kind.to_text()) == whole.kind
    again = local.Global(whole.job, CLASSES)
    assert all(torch.equal(start[n], t) for n, t in moved.take(again.model).items())
    assert again.kind == whole.kind
    other = local.Global(local.Job(RECIPE, 'deep', whole.job.options, seed=6), CLASSES)
    assert other.kind == whole.kind
    assert not torch.equal(moved.take(other.model)['head.fc.weight'], start['head.fc.weight'])
    with pytest.raises(UserError, match='names no pretrained weights'):
        local.Global(local.Job(
            RECIPE, 'deep', (*whole.job.options, 'model.backbone.init_cfg=None')), CLASSES)


def test_running_statistics_move_and_counters_do_not():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    assert moved.names(model) == [
        '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var']
    assert moved.statistics(model) == ['1.running_mean', '1.running_var']
    assert moved.rest(model) == ['0.weight']
    model.register_buffer('vectors', torch.full((3,), torch.nan))  # of texts, as CLIP's heads have
    assert moved.rest(model) == ['vectors', '0.weight'] and 'vectors' not in moved.names(model)
    moved.compare(moved.kind(model, []), moved.kind(model, []))
    mark = moved.rest_mark(model)
    model.vectors[1] = 1
    assert moved.rest_mark(model) != mark


@pytest.mark.parametrize(('change', 'message'), [
    (lambda a: a.pop('x'), '1 tensors are missing .x'),
    (lambda a: a.update(z=a['x']), '1 tensors are too many .z'),
    (lambda a: a.update(x=np.zeros((3, 2), np.float32)), r'x has shape \(3, 2\) in place of'),
    (lambda a: a.update(x=np.zeros((2, 3))), 'of type float64'),
    (lambda a: a['x'].__setitem__((0, 1), np.nan), '1 of 6 numbers that are NaN or infinite'),
    (lambda a: a['y'].__setitem__(0, -np.inf), 'y holds 1 of 1'),
])
def test_what_must_not_come_into_a_mean_is_refused(change, message):
    arrays = dict(x=np.zeros((2, 3), np.float32), y=np.zeros(1, np.float32))
    shapes = dict(x=[2, 3], y=[1])
    moved.check(arrays, shapes)
    change(arrays)
    with pytest.raises(UserError, match=message):
        moved.check(arrays, shapes)


def test_members_must_be_of_one_kind(whole):
    kind = whole.kind
    for other, message in (
        (kind._replace(classes=['a', 'b']), 'set dataset.classes to these'),
        (kind._replace(classes=CLASSES[::-1]), 'in this order'),
        (kind._replace(bases={'backbone.': 'f' * 64}), 'same pretrained weights'),
        (kind._replace(shapes={}), 'trains what the federation|train what the federation'),
    ):
        with pytest.raises(UserError, match=message):
            moved.compare(other, kind)
    with pytest.raises(UserError, match='not of a federation of this version'):
        moved.Kind.from_text('{}')


def test_what_is_personal():
    names = ['backbone.prompt.tokens', 'head.fc.weight', 'head.fc.bias']
    assert moved.own('', names) == [] and moved.own(r'^head\.', names) == names[1:]
    for pattern, message in (
            (r'^nothing', 'matches none'), ('.', 'matches all'), ('(', 'no regular')):
        with pytest.raises(UserError, match=message):
            moved.own(pattern, names)


def _rounds(job, tensors, tmp_path, **kwargs):
    for number in range(1, job.rounds + 1):
        found = local.train(job, number, tensors, 'one', tmp_path / 'client', **kwargs)
        tensors = found.tensors
    return found


@pytest.mark.slow
@pytest.mark.parametrize('by', ['epochs', 'iterations'])
def test_rounds_of_one_client_are_a_training_to_the_bit(job, whole, options, tmp_path, by):
    """Schedule, order of images, augmentation and dropout go on where the round before ended."""
    if by == 'iterations':
        options = tuple(option for option in options if not option.startswith(('epochs', 'warmup')))
        options = (*options, 'iters=8', 'warmup=3')
        job = local.Job(RECIPE, 'deep', options, rounds=4, seed=5)
    start = moved.take(whole.model)
    cut = _rounds(job, start, tmp_path)
    whole_run = _rounds(local.Job(RECIPE, 'deep', options, rounds=1, seed=5), start, tmp_path)
    assert cut.images == whole_run.images == 24
    for name, tensor in whole_run.tensors.items():
        assert torch.equal(cut.tensors[name], tensor), name
        assert not torch.equal(start[name], tensor), name


def test_a_round_is_the_packages_own_training(job, whole, options, tmp_path, capfd):
    """``vpt-dense train`` from the same start with the client's seed ends at the same numbers."""
    start = moved.take(whole.model)
    whole.write(start, tmp_path / 'start.pth', 0)
    found = _rounds(local.Job(RECIPE, 'deep', options, rounds=1, seed=5), start, tmp_path)
    code, _, err = run_tool(
        capfd, 'train', RECIPE, '--method', 'deep', '--work-dir', tmp_path / 'run', '--seed',
        local.seed_of(5, 'one'), '--cfg-options', *options, f'load_from={tmp_path / "start.pth"}')
    assert code == 0, err
    state = torch.load(tmp_path / 'run/epoch_4.pth', weights_only=False)['state_dict']
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.tensors.items())


def test_the_proximal_term(job, whole, tmp_path):
    model = local.Global(job, CLASSES).model
    local.add_proximal(model, 0.5)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        trained[0].add_(0.1)
        trained[1].sub_(0.2)
    from mmpretrain.structures import DataSample

    batch = torch.zeros(2, 3, 32, 32), [DataSample().set_gt_label(i) for i in range(2)]
    losses = model(*batch, mode='loss')
    wanted = 0.25 * (0.01 * trained[0].numel() + 0.04 * trained[1].numel())
    assert losses['loss_proximal'].item() == pytest.approx(wanted, rel=1e-5)
    (gradient,) = torch.autograd.grad(losses['loss_proximal'], trained[:1])
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.05), rtol=1e-4, atol=1e-6)
    # The second of two steps of SGD is longer by lr * mu * (w1 - w0).
    options = [each for each in job.options if not each.startswith(('epochs', 'warmup'))]
    options += ['iters=2', 'param_scheduler=[]']
    start = moved.take(whole.model)
    first = local.train(
        local.Job(RECIPE, 'deep', options, 2, 5), 1, start, 'one', tmp_path / 'c').tensors
    free, held = (local.train(
        local.Job(RECIPE, 'deep', options, 1, 5), 1, start, 'one', tmp_path / 'c',
        proximal_mu=mu).tensors for mu in (0.0, 0.3))  # fmt: skip
    for name, tensor in held.items():
        wanted = free[name] - 0.5 * 0.3 * (first[name] - start[name])
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(tensor, free[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(('change', 'message'), [
    (('epochs=5',), 'rounds=4 does not divide train_cfg.max_epochs=5'),
    (("custom_hooks=[{'type': 'EMAHook'}]",), 'EMAHook has nothing to do'),
    (("custom_hooks=[{'type': 'vpt_dense.PromptStartHook', 'source': 'samples'}]",),
     'would replace what the server sends'),
    (("custom_hooks=[{'type': 'vpt_dense.LabelMappingHook'}]",), 'a LabelMappingHook sets a part'),
    (("custom_hooks=[{'type': 'vpt_dense.SparsePlacesHook', 'file': 'places.safetensors'}]",),
     'a SparsePlacesHook sets a part'),
    (("custom_hooks=[{'type': 'vpt_dense.MetricLossHook'}]",), 'a round is a piece of one'),
    (('load_from=other.pth',), 'a federation starts from the pretrained weights'),
    (('resume=True',), 'resume=True: a federation'),
    (('randomness.seed=7',), 'randomness.seed=7: the seed of a federation is a setting'),
])
def test_configs_that_are_no_rounds_are_refused(options, change, message):
    with pytest.raises(UserError, match=message):
        local.Job(RECIPE, 'deep', (*options, *change), rounds=4).load()


def test_what_else_a_config_says_of_randomness_holds(job):
    cfg = local.client_config(replace(job, options=(*job.options, 'randomness.deterministic=True')),
                              'one', 'folder')
    assert cfg.randomness == dict(seed=local.seed_of(5, 'one'), deterministic=True)


LORA = ("model.backbone.prompt=None", r"model.backbone.trainable=['\.up$']",
        "model.backbone.adapters=[{'type': 'vpt_dense.LoRA', 'targets': [r'\.qkv$'], 'rank': 2}]")


@HOOKS.register_module()
class DriftHook(Hook):
    """Changes what no gradient changes."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with torch.no_grad():
            runner.model.state_dict()[moved.rest(runner.model)[0]].add_(1)


@pytest.mark.slow
def test_what_is_drawn_and_does_not_train_is_the_same_in_all_members(job, tmp_path):
    """LoRA of which one factor trains (https://arxiv.org/abs/2403.12313); the other is drawn."""
    job = replace(job, options=(*job.options, *LORA), rounds=1)
    whole = local.Global(job, CLASSES)
    rest = moved.rest(whole.model)
    assert rest and all(name.endswith('.down') for name in rest)
    assert not set(rest) & set(whole.kind.shapes) and list(whole.kind.rest) == rest
    start, models = moved.take(whole.model), {}

    class Peek(Hook):
        def after_train(self, runner):
            models[runner.work_dir] = runner.model.state_dict()

    HOOKS.register_module(name='PeekHook', module=Peek, force=True)
    hooked = replace(job, options=(*job.options, "custom_hooks=[{'type': 'PeekHook'}]"))
    for name in ('one', 'two'):
        found = local.train(hooked, 1, start, name, tmp_path / name, wanted=whole.kind)
        assert found.kind == whole.kind
    for state in models.values():
        assert all(torch.equal(state[name], whole.model.state_dict()[name]) for name in rest)
    assert len(models) == 2
    other = local.Global(replace(job, seed=6), CLASSES).kind
    with pytest.raises(UserError, match='down, which neither trains nor is of the frozen part'):
        moved.compare(other, whole.kind)
    (name, own), *_ = whole.kind.rest.items()
    for change, ok in ((1e-7, True), (0.1, False)):  # as another machine rounds, or more
        apart = whole.kind._replace(rest={**whole.kind.rest, name: [x + change for x in own]})
        if ok:
            moved.compare(apart, whole.kind)
        else:
            with pytest.raises(UserError, match=name):
                moved.compare(apart, whole.kind)
    drifts = replace(job, options=(*job.options, "custom_hooks=[{'type': 'DriftHook'}]"))
    with pytest.raises(UserError, match='it changes in training and does not train by gradients'):
        local.train(drifts, 1, start, 'one', tmp_path / 'one', wanted=whole.kind)


def test_images_count_once(job, whole, data, tmp_path):
    """Also those that a wrapper repeats; ``indices`` of the whole set are none of a list."""
    file = tmp_path / 'list.txt'
    file.write_text(''.join(f'{label}/x_{i}.png\n' for label in CLASSES for i in (0, 3)))
    leaf = job.load().train_dataloader.dataset
    repeated = dict(leaf, indices=20)
    more = ('train_dataloader.dataset=' + repr(
        {'_delete_': True, 'type': 'RepeatDataset', 'times': 3, 'dataset': repeated}),
        'train_dataloader.dataset.dataset.indices=[1, 2, 4, 5, 7]')  # fmt: skip
    job = replace(job, options=(*job.options, *more))
    found = local.train(job, 1, moved.take(whole.model), 'one', tmp_path / 'c', file)
    assert found.images == 8
    cfg = job.load()
    assert local.test_on_list(cfg, file) == 8 and 'indices' not in cfg.test_dataloader.dataset
    file.write_text(file.read_text().rstrip('\n'))
    assert local.test_on_list(cfg, file) == 8
    with pytest.raises(UserError, match='a Subset would take a part of the images of each client'):
        local.use_list(job.load(['subset.share=0.5']), file)


def test_a_client_of_another_kind_refuses_to_train(job, whole, tmp_path):
    start = moved.take(whole.model)
    wanted = whole.kind._replace(bases={'backbone.': '0' * 64})
    with pytest.raises(UserError, match='that of the federation 0000'):
        local.train(job, 1, start, 'one', tmp_path / 'client', wanted=wanted)
    with pytest.raises(UserError, match='1 tensors are missing'):
        start.pop('head.fc.bias')
        local.train(job, 1, start, 'one', tmp_path / 'client', wanted=whole.kind)


def test_the_model_of_a_server_is_a_checkpoint(whole, tmp_path):
    start = moved.take(whole.model)
    changed = {name: tensor + 1 for name, tensor in start.items()}
    whole.write(changed, tmp_path / 'global.pth', 3)
    found, rounds, told = whole.read(tmp_path / 'global.pth')
    assert (rounds, told) == (3, {})
    assert all(torch.equal(found[name], tensor) for name, tensor in changed.items())
    metrics = whole.test(tmp_path / 'global.pth', tmp_path / 'test')
    assert 0 <= metrics['accuracy/top1'] <= 100


@pytest.mark.slow
def test_dense_clients_train_and_their_statistics_move(tmp_path):
    """Two sequences of a video as clients; batch norm of the heads is averaged too."""
    root = make_ade_folder(tmp_path / 'data', size=(32, 32))
    for split in ('training', 'validation'):
        for folder in ('images', 'annotations'):
            for i, file in enumerate(sorted((root / folder / split).iterdir())):
                file.rename(file.with_name(f'{"ab"[i % 2]}_{file.name}'))
    leaf = write_leaf(tmp_path, root)
    model = building.build_model(config.load(str(leaf)))
    torch.save(dict(state_dict={name: tensor for name, tensor in model.backbone.state_dict().items()
                                if not name.startswith('prompt')}), tmp_path / 'weights.pth')
    options = ["model.backbone.init_cfg={'type': 'Pretrained', 'checkpoint': '%s'}"
               % (tmp_path / 'weights.pth')]
    job = local.Job(str(leaf), '', options, rounds=2)
    training = few_images.Training(job.load())
    parts = partitions.deal(training, 'name')
    assert list(parts) == ['a', 'b']
    clients = partitions.write(training, parts, tmp_path / 'lists', {})
    whole = local.Global(job, training.classes)
    assert any('running_var' in name for name in moved.statistics(whole.model))
    start = moved.take(whole.model)
    sent = [local.train(job, 1, start, each['name'], tmp_path / 'out' / each['name'],
                        tmp_path / 'lists' / each['list'], wanted=whole.kind) for each in clients]
    assert [each.images for each in sent] == [1, 1]
    assert all(not torch.equal(sent[0].tensors[n], sent[1].tensors[n])
               for n in moved.statistics(whole.model))
    mean = {n: (sent[0].tensors[n] + sent[1].tensors[n]) / 2 for n in start}
    whole.write(mean, tmp_path / 'global.pth', 1)
    assert 0 <= whole.test(tmp_path / 'global.pth', tmp_path / 'test')['mIoU'] <= 100
    cfg, seen = job.load(), []  # on what a client has, and not on the test images

    class SeenHook(Hook):
        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.extend(sample.img_path for sample in outputs)

    HOOKS.register_module(module=SeenHook, force=True)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='SeenHook')]
    own = tmp_path / 'lists' / clients[1]['list']
    assert local.test_on_list(cfg, own) == 1
    score = local.test(cfg, tmp_path / 'global.pth', tmp_path / 'own', training.classes)['mIoU']
    assert 0 <= score <= 100
    (path,) = map(Path, seen)
    assert path.parent.name == 'training' and path.stem == own.read_text().strip()
    for text, message in (('', 'lists no image; give the client some'), ('c_nothing', 'c_nothing')):
        (tmp_path / 'lists/c.txt').write_text(text)
        with pytest.raises(UserError, match=message):
            local.train(job, 1, start, 'c', tmp_path / 'out/c', tmp_path / 'lists/c.txt')
    with pytest.raises(UserError, match='none.txt, the list of the images of a client, is not'):
        local.images_of(tmp_path / 'none.txt')
    with pytest.raises(UserError, match='are not those of the federation'):
        local.test(job.load(), tmp_path / 'global.pth', tmp_path / 'own', ['x'])


# --- settings and the command ----------------------------------------------------------------


@pytest.mark.parametrize(('given', 'message'), [
    (dict(confg='x'), 'did you mean|confg is no setting'), (dict(config=''), 'say which config'),
    (dict(rounds='3'), 'rounds must be a int'), (dict(rounds=0), 'at least 1'),
    (dict(fraction=0), 'above 0'), (dict(strategy='FedAvgg'), 'strategy must be'),
    (dict(privacy='x'), 'privacy must be'), ({'privacy-options': 'a=1'}, 'without privacy'),
    ({'strategy-options': 'mu'}, 'KEY=NUMBER'), (dict(timeout=-1.0), 'timeout'),
    (dict(classes=''), 'every client has data of its own'), (dict(partition='x'), 'leave one'),
    ({'min-clients': -1}, 'min-clients must not be negative'),
    ({'strategy-options': 'a=1 a=2'}, 'each key once'),
    ({'strategy': 'FedProx'}, 'FedProx without proximal_mu is FedAvg'),
    ({'strategy': 'FedAvgM', 'strategy-options': 'server_learning_rate=1'}, 'without server_mom'),
    *(({'strategy': name, 'privacy': 'server-fixed'}, f'and {name} makes something else')
      for name in ('FedMedian', 'Krum', 'FedAdam', 'SGPTLike')),
])
def test_settings_that_cannot_be_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Settings.read({'config': 'a.py', 'classes': 'a,b', **given})


def test_settings():
    found = Settings.read({'config': 'a.py', 'classes': 'a, b', 'options': "x=1 y='a b'",
                           'test-every': 2, 'fraction': 1})  # fmt: skip
    assert found.test_every == 2 and found.class_names() == ['a', 'b']
    assert found.job.options == ('x=1', 'y=a b') and found.clients() == 0
    assert numbers('a=1 b=-0.5', 'k') == dict(a=1, b=-0.5)
    client = found.client(dict(name='h', options="dataset.data_root='/d'", list='l.txt'))
    assert (client.name, str(client.list), client.options) == ('h', 'l.txt',
                                                              ('dataset.data_root=/d',))
    with pytest.raises(UserError, match='this node has no name'):
        found.client({'partition-id': 0, 'num-partitions': 2})
    for node, message in (({'name': '../up'}, 'does not begin with a dot'),
                          ({'name': 'a', 'option': 'x=1'}, 'option does nothing.*options')):
        with pytest.raises(UserError, match=message):
            found.client(node)


def test_the_command_writes_an_app(data, options, tmp_path, capfd):
    arguments = ['federated', RECIPE, '--method', 'deep', '--by', 'pathological', '--clients', 4,
                 '--shards', 1, '--rounds', 2, '--work-dir', tmp_path / 'app', '--cfg-options',
                 *options]  # fmt: skip
    code, out, err = run_tool(capfd, *arguments)
    assert code == 0, err
    assert 'flwr run' in out and 'num-supernodes=4' in out
    app = tomllib.loads((tmp_path / 'app/pyproject.toml').read_text())['tool']['flwr']['app']
    settings = Settings.read(app['config'])
    assert settings.rounds == 2 and settings.clients() == 4
    assert settings.class_names() == CLASSES and settings.job.options == options
    settings.job.load()
    client = settings.client({'partition-id': 3, 'num-partitions': 4})
    assert client.name == 'client_3' and client.list.is_file()
    with pytest.raises(UserError, match='none of the 4 clients'):
        settings.client({'partition-id': 4})
    with pytest.raises(UserError, match='list does nothing'):
        settings.client({'partition-id': 3, 'list': 'own.txt'})
    for more, message in (({'min-clients': 5}, 'has 4 clients, so no round'),
                          ({'test-every': 1, 'personal': '^head'}, 'hold out nothing'),
                          ({'test-every': 1, 'strategy': 'PFedPGLike'}, 'hold out nothing')):
        with pytest.raises(UserError, match=message):
            Settings.read({**app['config'], **more}).check_partition()
    record = json.loads((tmp_path / 'app/partition/partition.json').read_text())
    assert (record['by'], record['shards']) == ('pathological', 1)
    code, _, err = run_tool(capfd, *arguments)
    assert code == 2 and 'pyproject.toml' in err
    run = tmp_path / 'app/run'
    run.mkdir()
    for name in (HISTORY, MODEL):
        (run / name).write_text('of other images')
    assert run_tool(capfd, *arguments[:-1 - len(options)], '--force', *arguments[-1 - len(options):]
                    )[0] == 0  # fmt: skip
    assert not any(run.iterdir())


@pytest.mark.parametrize(('rounds', 'message'), [
    ([], '0 of 2 rounds were finished; what'),
    ([dict(trained=['x'], refused={'y': 'no'})], '1 of 2 rounds were finished; what'),
    ([dict(trained=[], refused={'y': 'no'})] * 2, '2 of 2 rounds were finished, and no client'),
])
def test_the_command_tells_what_became_of_a_run(rounds, message, tmp_path, capfd):
    file = tmp_path / 'history.json'
    if rounds:
        file.write_text(json.dumps(dict(rounds=rounds)))
    with pytest.raises(UserError, match=message):
        tell_outcome(file, 2)
    file.write_text(json.dumps(dict(rounds=[*rounds, dict(trained=['y'], refused={})])))
    tell_outcome(file, len(rounds) + 1)
    told = capfd.readouterr().out
    assert str(file) in told
    assert (f'y was left out of {len(rounds)} of {len(rounds) + 1} rounds: no' in told) == bool(
        rounds)


@pytest.mark.parametrize(('more', 'message'), [
    (['--by', 'iid'], '--by iid needs --clients'),
    (['--by', 'iid', '--clients', '3', '--alpha', '1'], '--alpha does nothing with --by iid'),
    (['--by', 'iid', '--clients', '3', '--rounds', '3'], 'rounds=3 does not divide'),
    (['--by', 'iid', '--clients', '3', '--strategy', 'X'], 'strategy must be'),
    (['--by', 'pathological', '--clients', '30', '--shards', '1', '--rounds', '2'], 'too few'),
    (['--by', 'iid', '--clients', '3', '--rounds', '2', '--cfg-options', 'subset.share=0.5'],
     'leave subset and class_split out'),
])
def test_the_command_refuses_in_one_line(options, tmp_path, capfd, more, message):
    code, _, err = run_tool(
        capfd, 'federated', RECIPE, '--method', 'deep', '--work-dir', tmp_path / 'app', *more,
        *(() if '--cfg-options' in more else ('--cfg-options',)), *options)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / 'app').exists()

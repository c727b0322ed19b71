"""Federated training on Flower: means to the bit, refusals, strategies; `flwr run` as a whole.

Most run the real apps with a grid that hands messages over in this process.
"""

import json
import os
import shlex
from pathlib import Path

import federated_data
import numpy as np
import pytest
import tomllib
import torch
from federated_data import CLASSES, RECIPE
from tool_helpers import run_tool
from utils import CONFIGS, ROOT

from vpt_dense import safe_files
from vpt_dense.errors import UserError
from vpt_dense.federated import local, moved
from vpt_dense.federated.settings import Settings

pytest.importorskip('flwr')
from flwr.app import (  # noqa: E402
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    RecordDict,
)
from flwr.serverapp import Grid  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from vpt_dense.federated import (  # noqa: E402
    client,
    pfedpg_like,
    server,
    sgpt_like,
    simulation,
    strategies,
)

NAMES = ['x', 'y', 'z']
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1  # as Flower's processes


class HereGrid(Grid):
    """Hands messages to the client app in this process, as nodes 100, 101, ...

    Args:
        settings: What clients read.
        change: Name of a client -> what becomes of its reply to ``train``; None: no reply.
        change_test: The same of ``evaluate``.
        apart: Name of a client -> settings of its own.
    """

    def __init__(self, settings, change=None, apart=None, backwards=False, change_test=None):
        self.settings, self.change, self.apart = settings, change or {}, apart or {}
        self.change_test = change_test or {}
        self.nodes = {100 + i: name for i, name in enumerate(NAMES)}
        self.contexts = {node: Context(
            run_id=1, node_id=node, node_config={'partition-id': i, 'num-partitions': 3},
            state=RecordDict(), run_config={**settings, **self.apart.get(name, {})})
            for i, (node, name) in enumerate(self.nodes.items())}  # fmt: skip
        self.sent, self.backwards = {}, backwards

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            message.metadata.__dict__['_message_id'] = f'{node}'
            reply = client.app(message, self.contexts[node])
            if kind == 'train':
                if self.nodes[node] in self.change:
                    reply = self.change[self.nodes[node]](reply)
                if reply is None:
                    continue
                if not reply.has_error():
                    self.sent[self.nodes[node]] = {'arrays': dict(reply.content['arrays'])}
            elif kind == 'evaluate' and self.nodes[node] in self.change_test:
                reply = self.change_test[self.nodes[node]](reply)
                if reply is None:
                    continue
            replies.append(reply)
        return replies[::-1] if self.backwards else replies

    def get_node_ids(self):
        return list(self.nodes)

    set_run = run = create_message = push_messages = pull_messages = None


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return federated_data.make(tmp_path_factory.mktemp('federated'))


@pytest.fixture(scope='module')
def options(data):
    return federated_data.options(data)


@pytest.fixture
def app(options, tmp_path, capfd):
    """The settings of an app of three clients, ``x``, ``y``, ``z``, with 3, 3 and 2 images each."""
    code, _, err = run_tool(
        capfd, 'federated', RECIPE, '--method', 'deep', '--by', 'name', '--rounds', 2,
        '--holdout', 0.25, '--work-dir', tmp_path / 'app', '--cfg-options', *options)
    assert code == 0, err
    text = (tmp_path / 'app/pyproject.toml').read_text()
    given = tomllib.loads(text)['tool']['flwr']['app']['config']
    lists = tmp_path / 'app/partition'
    kept = (lists / 'z.txt').read_text().splitlines()[:-2]
    (lists / 'z.txt').write_text('\n'.join(kept) + '\n')
    return given


def run(given, **kwargs):
    grid = HereGrid(given, **kwargs)
    return server.run(grid, Settings.read(given)), grid


def start_of(given):
    return moved.take(local.Global(Settings.read(given).job, CLASSES).model)


def result(given):
    whole = local.Global(Settings.read(given).job, CLASSES)
    return whole.read(Path(given['out']) / server.MODEL)[0]


# --- the mean --------------------------------------------------------------------------------


@pytest.mark.parametrize('backwards', [False, True])
def test_a_round_is_the_weighted_mean_to_the_bit(app, backwards):
    """Whoever answers first: weights are shares of the images, the sum goes by names."""
    app |= {'rounds': 1}
    history, grid = run(app, backwards=backwards)
    (entry,) = history['rounds']
    assert (entry['trained'], entry['refused'], entry['images']) == (NAMES, {}, 6 + 6 + 4)
    found = result(app)
    for name, tensor in found.items():
        wanted = 0
        for each, share in zip(NAMES, (6 / 16, 6 / 16, 4 / 16), strict=True):
            wanted = wanted + grid.sent[each]['arrays'][name].numpy() * share
        assert wanted.dtype == np.float32 and np.array_equal(tensor.numpy(), wanted), name
    bytes_moved = sum(tensor.numel() * 4 for tensor in found.values())
    assert history['bytes_moved'] == bytes_moved < history['bytes_model'] / 4
    assert entry['bytes_down'] == entry['bytes_up'] == 3 * (bytes_moved + 3 * 128)  # headers


def test_what_a_client_sends_is_a_round_of_its_own(app, tmp_path):
    app |= {'rounds': 1}
    _, grid = run(app)
    job = Settings.read(app).job
    alone = local.train(job, 1, start_of(app), 'y', tmp_path / 'y',
                        Path(app['partition']) / 'y.txt')
    for name, tensor in alone.tensors.items():
        assert np.array_equal(grid.sent['y']['arrays'][name].numpy(), tensor.numpy()), name


def test_a_part_of_the_clients(app):
    history, grid = run({**app, 'fraction': 0.7})
    for entry in history['rounds']:
        assert len(entry['trained']) == 2 and not entry['refused']
    assert len(grid.sent) in (2, 3)


# --- who is refused --------------------------------------------------------------------------


def _with(reply, change):
    arrays = {name: array.numpy().copy() for name, array in reply.content['arrays'].items()}
    change(arrays)
    reply.content['arrays'] = ArrayRecord({n: Array(np.asarray(a)) for n, a in arrays.items()})
    return reply


def _nan(reply):
    return _with(reply, lambda arrays: arrays['head.fc.bias'].__setitem__(1, np.nan))


def _shape(reply):
    return _with(reply, lambda arrays: arrays.update(
        {'head.fc.bias': np.zeros(7, np.float32)}))


def _base(reply):
    kind = moved.Kind.from_text(reply.content['member']['kind'])
    reply.content['member'] = ConfigRecord(
        {'kind': kind._replace(bases={'backbone.': 'f' * 64}).to_text()})
    return reply


def _died(reply):
    error = Error(0, 'Traceback\nActorDiedError: the actor died')
    return Message(error=error, metadata=reply.metadata)


def _garbage(reply):
    del reply.content['member']
    return reply


def _metric(name, value):
    def change(reply):
        reply.content['metrics'][name] = value
        return reply
    return change


def _kind(reply):
    """What can be read as a kind, with a list in place of names."""
    reply.content['member'] = ConfigRecord(
        {'kind': json.dumps(dict(bases=[], classes=CLASSES, shapes={}, rest={}))})
    return reply


def _two_records(reply):
    reply.content['more'] = ArrayRecord({'a': Array(np.zeros(2))})
    return reply


@pytest.mark.parametrize(('change', 'message'), [
    (_nan, '1 of 4 numbers that are NaN'), (_shape, r'shape (7,) in place of (4,)'),
    (_base, 'f' * 64), (_died, 'ActorDiedError'), (lambda reply: None, 'did not answer in time'),
    (_garbage, 'cannot be read'), (_kind, 'cannot be read (AttributeError'),
    (_metric('num-examples', -3), '1 clients with -3 images'),
    (_metric('clients', 9), '9 clients'), (_metric('loss', float('nan')), 'its loss is nan'),
    (_metric('more', 1), 'its metrics lack more'), (_two_records, 'more than one record'),
], ids=['nan', 'shape', 'base', 'died', 'silent', 'garbage', 'kind', 'images', 'clients', 'loss',
        'metric', 'records'])
def test_who_is_refused_is_named_and_the_round_goes_on(app, change, message):
    app |= {'rounds': 1}
    history, grid = run(app, change={'y': change})
    (entry,) = history['rounds']
    assert entry['trained'] == ['x', 'z'] and list(entry['refused']) == ['y']
    assert message in entry['refused']['y']
    found = result(app)
    for name, tensor in found.items():
        x, z = (grid.sent[each]['arrays'][name].numpy() for each in 'xz')
        assert np.array_equal(tensor.numpy(), x * (6 / 10) + z * (4 / 10)), name


def test_a_client_with_other_classes_says_the_way_out(app):
    other = app['options'] + " dataset.classes=\"['d','c','b','a']\""
    history, _ = run(app, apart={'z': {'options': other}})
    for entry in history['rounds']:
        assert entry['trained'] == ['x', 'y']
        assert entry['refused']['z'].startswith("classes ['d', 'c', 'b', 'a'] are not those of")
        assert 'set dataset.classes to these' in entry['refused']['z']


def test_a_client_on_another_base_refuses_itself(app, data):
    other = federated_data.options(data, seed=1)[-1]
    history, grid = run(app, apart={'x': {'options': f'{app["options"]} {other}'}})
    assert 'name the same pretrained weights' in history['rounds'][0]['refused']['x']
    assert 'x' not in grid.sent


def test_nodes_of_one_name_are_refused(app):
    """Its images would count twice."""
    grid = HereGrid(app)
    grid.contexts[102].node_config['partition-id'] = 1
    history = server.run(grid, Settings.read(app))
    for entry in history['rounds']:
        assert entry['trained'] == ['x'] and entry['images'] == 6
        assert list(entry['refused']) == ['y']
        assert '2 nodes say that they are it: give each a name' in entry['refused']['y']


def _score(value):
    def change(reply):
        reply.content['metrics']['score'] = value
        return reply
    return change


def _no_metrics(reply):
    del reply.content['metrics']
    return reply


@pytest.mark.parametrize(('change', 'message'), [
    (_score(float('nan')), 'its score is nan'), (_no_metrics, 'cannot be read'),
    (lambda reply: None, 'did not answer in time'), (_died, 'ActorDiedError'),
], ids=['nan', 'garbage', 'silent', 'died'])
def test_who_does_not_test_is_named_and_the_run_goes_on(app, change, message):
    history, _ = run({**app, 'personal': '^head', 'test-every': 1, 'rounds': 2},
                     change_test={'y': change})
    for entry in history['rounds']:
        assert sorted(entry['scores']) == ['x', 'z'] and list(entry['untested']) == ['y']
        assert message in entry['untested']['y'] and entry['trained'] == NAMES


def test_a_client_on_another_base_tests_nothing(app, data):
    other = federated_data.options(data, seed=1)[-1]
    history, _ = run({**app, 'personal': '^head', 'test-every': 2},
                     apart={'x': {'options': f'{app["options"]} {other}'}})
    assert 'same pretrained weights' in history['rounds'][1]['untested']['x']
    assert sorted(history['rounds'][1]['scores']) == ['y', 'z']


def test_a_client_tests_and_starts_with_what_its_node_says(app):
    """Where its pretrained weights lie, for one."""
    (right,) = [each for each in shlex.split(app['options']) if 'init_cfg.checkpoint' in each]
    given = {**app, 'personal': '^head', 'test-every': 2}
    grid = HereGrid(given, apart={
        'x': {'options': app['options'] + ' model.backbone.init_cfg.checkpoint=nowhere.pth'}})
    grid.contexts[100].node_config['options'] = right
    history = server.run(grid, Settings.read(given))
    assert [entry['trained'] for entry in history['rounds']] == [NAMES, NAMES]
    assert sorted(history['rounds'][1]['scores']) == NAMES


def test_what_diverged_does_not_stay_with_a_client(app, monkeypatch):
    """The personal part alone is not finite: the server would not see it, the next round would."""
    train = local.train

    def diverges(job, number, tensors, name, *args, **kwargs):
        found = train(job, number, tensors, name, *args, **kwargs)
        if (name, number) == ('y', 1):
            found.tensors['head.fc.bias'][0] = torch.nan
        return found

    monkeypatch.setattr(local, 'train', diverges)
    history, grid = run({**app, 'personal': '^head'})
    first, second = history['rounds']
    assert first['trained'] == ['x', 'z'] and 'NaN' in first['refused']['y']
    assert second['trained'] == NAMES
    for i, name in enumerate(NAMES):  # what is personal outlives the federation
        kept = safe_files.read(Path(app['out'], 'clients', name, client.FILE))['state_dict']
        state = grid.contexts[100 + i].state[client.PERSONAL]
        assert list(kept) == ['head.fc.bias', 'head.fc.weight']
        assert all(np.array_equal(kept[n].numpy(), state[n].numpy()) for n in kept)


def test_a_federation_in_which_nobody_can_train_ends(app):
    with pytest.raises(UserError, match='no client trained in any of 2 rounds; x: rounds=3'):
        run(app, apart={name: {'rounds': 3} for name in NAMES})


# --- what is kept ----------------------------------------------------------------------------


def test_a_run_goes_on_to_the_bit(app, monkeypatch):
    app |= {'rounds': 4}
    whole = {**app, 'out': app['out'] + '_whole'}
    run(whole)
    write, seen = local.Global.write, []

    def stops(self, tensors, file, rounds, told=None):
        write(self, tensors, file, rounds, told)
        seen.append(rounds)

    class Stop(Exception):
        pass

    class Breaking(HereGrid):
        def send_and_receive(self, messages, **kwargs):
            if len(seen) == 2:
                raise Stop
            return super().send_and_receive(messages, **kwargs)

    monkeypatch.setattr(local.Global, 'write', stops)
    with pytest.raises(Stop):
        server.run(Breaking(app), Settings.read(app))
    assert len(json.loads((Path(app['out']) / server.HISTORY).read_text())['rounds']) == 2
    with pytest.raises(UserError, match='resume=true goes on with it'):
        run(app)
    with pytest.raises(UserError, match="strategy was 'FedAvg' in the run"):
        run({**app, 'resume': True, 'strategy': 'FedMedian'})
    history, _ = run({**app, 'resume': True})
    assert [entry['round'] for entry in history['rounds']] == [1, 2, 3, 4]
    first, second = result(whole), result(app)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert run({**app, 'resume': True})[0]['rounds'] == history['rounds']  # nothing is left to do


@pytest.mark.parametrize('test_every', [0, 1])
def test_a_run_that_is_killed_between_its_files_trains_no_round_twice(
        app, monkeypatch, test_every):
    """The model of a round is written, its history not yet; a test lies between the two."""
    app |= {'rounds': 4, 'test-every': test_every}
    whole = {**app, 'out': app['out'] + '_whole'}
    wanted, _ = run(whole)
    write, seen = safe_files.write_text, []

    class Stop(Exception):
        pass

    def stops(path, text):
        if Path(path).name == server.HISTORY:
            seen.append(path)
            if len(seen) == 2:
                raise Stop
        write(path, text)

    monkeypatch.setattr(safe_files, 'write_text', stops)
    with pytest.raises(Stop):
        run(app)
    history, _ = run({**app, 'resume': True})
    assert [entry['round'] for entry in history['rounds']] == [1, 2, 3, 4]
    for found, entry in zip(history['rounds'], wanted['rounds'], strict=True):
        assert {k: v for k, v in found.items() if k != 'seconds'} == {
            k: v for k, v in entry.items() if k != 'seconds'}
    assert json.loads((Path(app['out']) / server.HISTORY).read_text()) == history
    first, second = result(whole), result(app)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_goes_on_with_what_it_began_with(app, data):
    """The same images, weights and model, or not at all."""
    run({**app, 'rounds': 1})
    out, again = Path(app['out']), {**app, 'rounds': 1, 'resume': True}
    history = json.loads((out / server.HISTORY).read_text())
    file = Path(app['partition']) / 'z.txt'
    text = file.read_text()
    file.write_text(text.splitlines()[0] + '\n')
    with pytest.raises(UserError, match='partition SHA-256 was'):
        run(again)
    file.write_text(text)
    history['bases'] = {'backbone.': 'f' * 64}
    (out / server.HISTORY).write_text(json.dumps(history))
    with pytest.raises(UserError, match='SHA-256 of the frozen tensors was'):
        run(again)
    history |= dict(bases=local.Global(Settings.read(app).job, CLASSES).kind.bases,
                    rounds=history['rounds'] * 4, settings=history['settings'] | {'rounds': 4})
    (out / server.HISTORY).write_text(json.dumps(history))
    with pytest.raises(UserError, match='has been through 1 rounds, and history.json tells of 4'):
        run({**again, 'rounds': 4})


def test_the_model_is_tested_as_told(app, capfd):
    history, _ = run({**app, 'test-every': 2})
    first, second = history['rounds']
    assert 'metrics' not in first and 0 <= second['metrics']['accuracy/top1'] <= 100
    code, out, err = run_tool(
        capfd, 'test', RECIPE, Path(app['out']) / server.MODEL, '--method', 'deep', '--work-dir',
        app['out'] + '/again', '--cfg-options', *Settings.read(app).job.options)
    assert code == 0, err
    again = json.loads(Path(app['out'], 'again/test.json').read_text())
    assert again['metrics']['accuracy/top1'] == pytest.approx(
        second['metrics']['accuracy/top1'], abs=0.01)


def test_what_is_personal_stays(app):
    history, grid = run({**app, 'personal': r'^backbone\.prompt', 'test-every': 2})
    assert history['personal'] == ['backbone.prompt.tokens']
    assert all(list(grid.sent[name]['arrays']) == ['head.fc.weight', 'head.fc.bias']
               for name in NAMES)
    own = [context.state[client.PERSONAL]['backbone.prompt.tokens'].numpy()
           for context in grid.contexts.values()]
    assert not np.array_equal(own[0], own[1])
    assert sorted(history['rounds'][1]['scores']) == NAMES
    assert 'scores' not in history['rounds'][0]


# --- strategies ------------------------------------------------------------------------------


def test_fedprox_reaches_the_clients(app):
    free, _ = run({**app, 'out': app['out'] + '_free'})
    run({**app, 'strategy': 'FedProx', 'strategy-options': 'proximal_mu=2.0'})
    gaps = [float((result(each)['head.fc.weight'] - start_of(app)['head.fc.weight']).norm())
            for each in (app, {**app, 'out': app['out'] + '_free'})]
    assert 0 < gaps[0] < gaps[1]


def test_fedadam_takes_adams_step(app):
    """Reddi et al., https://arxiv.org/abs/2003.00295, algorithm 2, as Flower corrects its bias."""
    app |= {'rounds': 1, 'strategy': 'FedAdam', 'strategy-options': 'eta=0.01 tau=0.001'}
    _, grid = run(app)
    start, found = start_of(app), result(app)
    for name, tensor in found.items():
        shares = zip(NAMES, (6 / 16, 6 / 16, 4 / 16), strict=True)
        mean = sum(grid.sent[n]['arrays'][name].numpy() * share for n, share in shares)
        change = mean - start[name].numpy()
        step = 0.01 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
        m, v = 0.1 * change, 0.01 * change**2
        wanted = start[name].numpy() + step * m / (np.sqrt(v) + 0.001)
        assert np.allclose(tensor.numpy(), wanted, atol=1e-6), name


def test_the_median_does_not_follow_one_client(app):
    def wild(reply):
        return _with(reply, lambda arrays: arrays['head.fc.bias'].__setitem__(slice(None), 1e6))

    _, grid = run({**app, 'rounds': 1, 'strategy': 'FedMedian'}, change={'y': wild})
    x, y, z = (grid.sent[name]['arrays']['head.fc.bias'].numpy() for name in NAMES)
    found = result(app)['head.fc.bias'].numpy()
    assert np.array_equal(found, np.median([x, y, z], axis=0)) and np.abs(found).max() < 10


@pytest.mark.parametrize(('strategy', 'said'), [
    ('FedAvgM', 'server_momentum=0.9'), ('FedAdagrad', ''), ('FedYogi', ''),
    ('FedTrimmedAvg', 'beta=0.34'), ('Krum', ''),
    ('MultiKrum', 'num_nodes_to_select=2'), ('Bulyan', ''), ('QFedAvg', 'client_learning_rate=0.1'),
])
def test_strategies_by_name(app, strategy, said):
    history, _ = run({**app, 'rounds': 1, 'strategy': strategy, 'strategy-options': said})
    assert history['rounds'][0]['trained'] == NAMES
    start, found = start_of(app), result(app)
    assert any(not torch.equal(start[name], found[name]) for name in found)


@pytest.mark.parametrize(('privacy', 'said', 'noise'), [
    ('server-fixed', 'noise_multiplier=0 clipping_norm=0.01', 0),
    ('client-fixed', 'noise_multiplier=0 clipping_norm=0.01', 0),
    ('server-fixed', 'noise_multiplier=0.6 clipping_norm=0.01', 0.006),
    ('client-fixed', 'noise_multiplier=0.6 clipping_norm=0.01', 0.006),
    # Andrew et al., https://arxiv.org/abs/1905.03871, theorem 1: (z^-2 - (2 sigma_b)^-2)^-1/2.
    *((way, 'noise_multiplier=0.6 initial_clipping_norm=0.01 clipped_count_stddev=1 '
       'clip_norm_lr=1e-6',
       0.01 * (0.6**-2 - 2.0**-2) ** -0.5) for way in ('server-adaptive', 'client-adaptive')),
])
def test_privacy_clips_and_adds_noise(app, privacy, said, noise):
    """A mean of changes of norm 0.01 at most, each client counting the same; noise beside it."""
    app |= {'rounds': 1, 'privacy': privacy, 'privacy-options': said}
    history, grid = run(app, change={'y': _nan})
    assert history['rounds'][0]['trained'] == ['x', 'z']
    start, found = start_of(app), result(app)
    names = list(found)
    changes = []
    for name in ('x', 'z'):
        own = np.concatenate([grid.sent[name]['arrays'][n].numpy().ravel()
                              - start[n].numpy().ravel() for n in names])
        changes.append(own * min(1, 0.01 / np.linalg.norm(own)))
        assert privacy.startswith('client') == (np.linalg.norm(own) < 0.0101)
    change = np.concatenate([(found[n] - start[n]).numpy().ravel() for n in names])
    rest = change - (changes[0] + changes[1]) / 2
    if noise:
        assert abs(rest.std() / (noise / 2) - 1) < 0.1 and abs(rest.mean()) < noise / 8
    else:
        assert np.abs(rest).max() < 1e-6


def test_a_strategy_that_makes_nothing_of_too_few_is_told(app):
    with pytest.raises(UserError, match='in any of 2 rounds; x: Bulyan makes nothing of 2 clients'):
        run({**app, 'strategy': 'Bulyan'}, change={'y': _nan})
    for entry in json.loads((Path(app['out']) / server.HISTORY).read_text())['rounds']:
        assert entry['trained'] == [] and sorted(entry['refused']) == NAMES
        assert 'NaN' in entry['refused']['y']


@pytest.fixture
def grouped(app):
    more = ['model.backbone.prompt.shared_layers=(0,1)', 'model.backbone.prompt.group_layers=(1,2)']
    return app | {
        'method': str(CONFIGS / 'federated/methods/sgpt_like.py'), 'strategy': 'SGPTLike',
        'strategy-options': 'momentum=0.25',
        'options': shlex.join([*shlex.split(app['options']), *more])}


def test_shared_and_group_prompts(grouped):
    history, grid = run({**grouped, 'rounds': 1})
    assert history['rounds'][0]['trained'] == NAMES
    sent = {n: [grid.sent[name]['arrays'][n].numpy() for name in NAMES] for n in start_of(grouped)}
    start, found = start_of(grouped), result(grouped)
    images = np.array([6, 6, 4]) / 16
    for name, tensor in found.items():
        if name == sgpt_like.KEYS:  # fewer than 50 images of a group
            mean = np.mean(sent[name], axis=0)
        else:
            mean = sum(each * share for each, share in zip(sent[name], images, strict=True))
        if name in (sgpt_like.KEYS, sgpt_like.GROUP):
            mean = 0.25 * start[name].numpy() + 0.75 * mean
        assert np.allclose(tensor.numpy(), mean, atol=1e-6), name
        assert not torch.equal(tensor, start[name]), name
    history, _ = run({**grouped, 'out': grouped['out'] + '_two'})  # pi of the first round goes out
    assert [entry['trained'] for entry in history['rounds']] == [NAMES, NAMES]


def test_keys_are_means_of_the_images_of_their_group():
    keys = np.arange(12.0).reshape(2, 3, 2)
    counts = np.array([[60, 10, 0], [20, 20, 0]])
    found = sgpt_like.mean_keys(keys, counts)
    wanted = [keys[0, 0] * 0.75 + keys[1, 0] * 0.25, keys[:, 1].mean(0), keys[:, 2].mean(0)]
    assert np.allclose(found, wanted)


def test_groups_that_are_none_are_refused(grouped, app):
    def odd(reply):
        reply.content['metrics']['group-counts'] = [1.0, 2.0]
        return reply

    history, _ = run({**grouped, 'rounds': 1}, change={'y': odd})
    assert 'not of 4' in history['rounds'][0]['refused']['y']
    for given, message in (
            ({**grouped, 'method': 'deep', 'options': app['options'], 'out': app['out'] + '2'},
             'trains a SharedGroupPrompt'),
            ({**grouped, 'strategy': 'FedAvg', 'strategy-options': '', 'out': app['out'] + '3'},
             'take SGPTLike'),
            ({**grouped, 'privacy': 'server-fixed'}, 'made for a mean')):
        with pytest.raises(UserError, match=message):
            run(given)


def test_prompts_of_each_client_are_generated(app):
    app |= {'strategy': 'PFedPGLike', 'personal': '^head', 'test-every': 2, 'rounds': 2}
    history, _ = run(app)
    assert [entry['trained'] for entry in history['rounds']] == [NAMES, NAMES]
    assert sorted(history['rounds'][1]['scores']) == NAMES
    file = Path(app['out']) / pfedpg_like.FILE
    own = safe_files.read(file)['state_dict']
    assert sorted(own) == [f'{name}.{pfedpg_like.PROMPT}' for name in NAMES]
    x, y, _ = own.values()
    assert x.shape == start_of(app)[pfedpg_like.PROMPT].shape and not torch.allclose(x, y)
    with pytest.raises(UserError, match='none move'):
        run({**app, 'personal': 'prompt', 'out': app['out'] + '2'})


def test_a_generator_begins_as_fedavg(app):
    app |= {'rounds': 1, 'strategy': 'PFedPGLike'}
    _, grid = run(app)
    for name, tensor in result(app).items():
        shares = zip(NAMES, (6 / 16, 6 / 16, 4 / 16), strict=True)
        mean = sum(grid.sent[n]['arrays'][name].numpy() * share for n, share in shares)
        assert np.allclose(tensor.numpy(), mean, atol=1e-6), name


def test_who_comes_late_has_prompts_of_its_own_name(app):
    """Nodes may connect while a round waits for them."""
    class Late(HereGrid):
        asked = 0

        def get_node_ids(self):
            self.asked += 1
            return list(self.nodes)[: 3 if self.asked > 1 else 0]

    given = {**app, 'strategy': 'PFedPGLike', 'test-every': 2}
    history = server.run(Late(given), Settings.read(given))
    assert [entry['trained'] for entry in history['rounds']] == [NAMES, NAMES]
    assert sorted(history['rounds'][1]['scores']) == NAMES  # of its prompts, and no other metric
    assert 'metrics' not in history['rounds'][1]
    own = safe_files.read(Path(app['out']) / pfedpg_like.FILE)['state_dict']
    assert sorted(own) == [f'{name}.{pfedpg_like.PROMPT}' for name in NAMES]


def test_clients_test_with_prompts_of_their_own(app, monkeypatch):
    tested, test = {}, local.test

    def noted(cfg, file, folder, classes=()):
        state = safe_files.read(file)['state_dict']
        tested[Path(file).parent.name] = state[pfedpg_like.PROMPT], state['head.fc.bias']
        return test(cfg, file, folder, classes)

    monkeypatch.setattr(local, 'test', noted)
    _, grid = run({**app, 'strategy': 'PFedPGLike', 'personal': '^head', 'test-every': 2})
    own = safe_files.read(Path(app['out']) / pfedpg_like.FILE)['state_dict']
    for i, name in enumerate(NAMES):
        prompt, bias = tested[name]
        assert torch.equal(prompt, own[f'{name}.{pfedpg_like.PROMPT}'])
        state = grid.contexts[100 + i].state[client.PERSONAL]
        assert np.array_equal(bias.numpy(), state['head.fc.bias'].numpy())


def test_a_generator_learns_what_clients_need():
    torch.manual_seed(0)
    generator = pfedpg_like.Generator(torch.randn(3, 2, 4), seed=1)
    assert torch.equal(generator('x'), generator('y'))
    wanted = {name: torch.randn(3, 2, 4) for name in NAMES}
    weights = dict(x=0.5, y=0.25, z=0.25)

    @torch.no_grad()
    def gap():
        return sum(float((generator(n) - wanted[n]).pow(2).sum()) * weights[n] for n in NAMES)

    mean = sum(wanted[n] * weights[n] for n in NAMES)
    best_of_one = sum(float((mean - wanted[n]).pow(2).sum()) * weights[n] for n in NAMES)
    before = gap()
    for _ in range(1500):
        generator.learn(wanted, weights, 0.03)
    assert gap() < 0.6 * best_of_one < before
    again = pfedpg_like.Generator(torch.zeros(3, 2, 4), seed=1)
    other = pfedpg_like.Generator(torch.zeros(3, 2, 4), seed=2)
    assert torch.equal(again.query, pfedpg_like.Generator(torch.zeros(3, 2, 4), seed=1).query)
    assert not torch.equal(again.query, other.query)


@pytest.mark.parametrize(('given', 'statistics', 'message'), [
    ({'strategy': 'FedProx', 'strategy-options': 'proximal_mu=1 mu=1'}, [],
     'mu is no number of FedProx'),
    ({'strategy': 'Krum', 'strategy-options': 'num_malicious_nodes=1', 'min-clients': 4}, [],
     'num_malicious_nodes=1 needs 5 clients, and 4 train'),
    ({'strategy': 'Bulyan', 'fraction': 0.5, 'min-clients': 4}, [], 'needs 3 clients, and 2 train'),
    ({'strategy': 'FedTrimmedAvg', 'min-clients': 4}, [], 'leaves out none of 4 clients'),
    ({'strategy-options': 'fraction_train=1'}, [], 'it takes none'),
    ({'privacy': 'server-fixed'}, [], 'privacy-options of DifferentialPrivacyServerSide'),
    ({'privacy': 'server-fixed', 'privacy-options': 'noise_multiplier=-1 clipping_norm=1'}, [],
     'non-negative'),
    ({'strategy': 'FedAdam'}, ['bn.running_var'], 'running statistics of batch norm'),
    ({'privacy': 'client-fixed'}, ['bn.running_var'], 'privacy adds noise'),
])
def test_options_that_are_none_are_refused(given, statistics, message):
    settings = Settings.read({'config': 'a.py', 'classes': 'a,b', **given})
    with pytest.raises(UserError, match=message):
        strategies.build(settings, statistics)


# --- as a whole ------------------------------------------------------------------------------


@pytest.mark.slow
def test_flwr_run(app, tmp_path, monkeypatch):
    """`flwr run` with processes of its own; one client's process is killed in the first round."""
    folder = Path(app['partition']).parent
    (tmp_path / 'deadly_hook.py').write_text(
        'import os, pathlib\n'
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n'
        '@HOOKS.register_module()\n'
        'class DeadlyHook(Hook):\n'
        '    def before_train_iter(self, runner, batch_idx, data_batch=None):\n'
        '        mark = pathlib.Path(runner.work_dir, "died")\n'
        '        if runner.work_dir.endswith("/y") and not mark.exists():\n'
        '            mark.write_text("")\n'
        '            os._exit(9)\n')
    more = ["custom_imports.imports=['deadly_hook']", "custom_hooks=[{'type': 'DeadlyHook'}]"]
    text = (folder / 'pyproject.toml').read_text()
    old = f'options = {json.dumps(app["options"])}'
    assert old in text
    new = f'options = {json.dumps(shlex.join([*shlex.split(app["options"]), *more]))}'
    (folder / 'pyproject.toml').write_text(text.replace(old, new))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(
        [str(ROOT), str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    log = tmp_path / 'log'
    with simulation.link() as env:
        simulation.run(folder, 3, env, jobs=2, log=log)
    told = log.read_text()
    history = json.loads((Path(app['out']) / server.HISTORY).read_text())
    assert [entry['round'] for entry in history['rounds']] == [1, 2], told
    for entry in history['rounds']:  # Flower's simulation does not replace the process that died
        assert 'y' in entry['refused'] and entry['trained'], told
        assert sorted([*entry['trained'], *entry['refused']]) == NAMES, told
    assert 'died' in history['rounds'][0]['refused']['y'], told


@pytest.mark.slow
def test_one_command_does_it_all(data, options, tmp_path, capfd, monkeypatch):
    """From the folder in which it was called, as paths in configs mean it."""
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    arguments = ['federated', RECIPE, '--method', 'deep', '--by', 'iid', '--clients', 2,
                 '--run', '--rounds', 1, '--work-dir', tmp_path / 'app', '--cfg-options',
                 *options, f'dataset.data_root={data.name}']  # fmt: skip
    code, out, err = run_tool(capfd, *arguments)
    assert code == 0, err
    history = json.loads((tmp_path / 'app/run/history.json').read_text())
    assert history['rounds'][0]['trained'] == ['client_0', 'client_1'], out
    # What is there is not taken for the outcome of a run that the server refuses.
    code, _, err = run_tool(capfd, *arguments[:2], '--force', '--strategy', 'SGPTLike',
                            *arguments[2:])  # fmt: skip
    assert code == 2 and 'history.json: 0 of 1 rounds were finished' in err

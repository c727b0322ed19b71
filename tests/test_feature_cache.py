"""Features of the frozen part that are computed once: exact, safe, or refused."""

import errno
import json

import pytest
import torch
from methods import FAMILIES
from mmengine import MODELS
from tool_helpers import run_tool, write_leaf
from utils import images, in_scope, make_ade_folder, randomise

from vpt_dense import safe_files, seeding
from vpt_dense.backbones.feature_cache import FeatureCache
from vpt_dense.errors import UserError

LORA = dict(type='vpt_dense.LoRA', rank=2, targets=[r'\.qkv$'])
PROMPT = dict(type='vpt_dense.TokenPrompt', num_tokens=2, deep=True)
#: What trains -> settings, and how many of four blocks are frozen in front of it; None: all, and
#: the outputs are kept.
METHODS = {
    'head': (dict(trainable=[]), None),
    'last block': (dict(trainable=['its name']), 3),
    'late prompts': (dict(prompt=dict(PROMPT, layer_range=(2, None))), 2),
    'late lora': (dict(adapters=[LORA]), 3),
}


def build(family, settings, **further):
    in_scope('mmseg')
    backbone = FAMILIES[family]
    own = backbone.tasks['seg'][0]
    torch.manual_seed(0)
    model = MODELS.build({**backbone.cfg, **own, **settings, **further})
    return randomise(model).train()


def last_block(family):
    name, _ = build(family, {}).named_blocks()[-1]
    return '^' + name.replace('.', r'\.') + r'\.'


def run(model, batch):
    """Outputs and gradients."""
    model.zero_grad(set_to_none=True)
    outs = model(batch)
    if any(out.requires_grad for out in outs):
        sum(out.square().mean() for out in outs).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return [out.detach() for out in outs], grads


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('family', ['vit', 'swin', 'dinov3'])
def test_found_features_are_those_that_are_computed(tmp_path, family, method):
    settings, frozen = METHODS[method]
    if method == 'last block':
        settings = dict(trainable=[last_block(family)])
    elif method == 'late lora':
        settings = dict(adapters=[dict(LORA, targets=[last_block(family) + r'.*qkv$'])])
    model = build(family, settings)
    batch = images(3, 3, *FAMILIES[family].size)
    expected, gradients = run(model, batch)
    cache = FeatureCache(model, tmp_path, pytest.fail)
    with cache.attached():
        run(model, batch)  # looks what acts, or computes and keeps
        run(model, batch)
        assert cache.computed == 3
        before = cache.found
        for order in ([0, 1, 2], [2, 0, 1]):
            outs, grads = run(model, batch[order])
            for out, like in zip(outs, expected, strict=True):
                torch.testing.assert_close(out, like[order], rtol=0, atol=1e-6)
            assert grads.keys() == gradients.keys()
            for name, grad in grads.items():
                torch.testing.assert_close(grad, gradients[name], rtol=1e-4, atol=1e-6)
        assert cache.found == before + 6 and cache.computed == 3
    assert cache.depth == frozen and cache.whole == (frozen is None)
    outs, _ = run(model, batch)  # without it, nothing is left of it
    assert all(map(torch.equal, outs, expected))
    assert 'forward' not in vars(model) and 'feature_cache' not in vars(model)


def test_frozen_blocks_are_not_run_again(tmp_path):
    model = build('vit', METHODS['late prompts'][0])
    batch = images(2, 3, 32, 32)
    with FeatureCache(model, tmp_path, pytest.fail).attached():
        run(model, batch)
        run(model, batch)
        ran = []
        for i, (_, block) in enumerate(model.named_blocks()):
            block.register_forward_hook(lambda *_, i=i: ran.append(i))
        run(model, batch)
    assert ran == [2, 3]


@pytest.mark.parametrize('change', [
    'pixels', 'frozen weight', 'precision', 'setting', 'size', 'tuned weight'])
def test_what_the_features_depend_on_is_part_of_the_key(tmp_path, change):
    settings = dict(METHODS['late prompts'][0])
    model, batch = build('vit', settings), images(2, 3, 32, 32)

    def fill(model, batch):
        cache = FeatureCache(model, tmp_path, pytest.fail)
        with cache.attached(), torch.autocast('cpu', enabled=change == 'precision' and late):
            run(model, batch)
            run(model, batch)
        return cache.found

    late = False
    assert fill(model, batch) == 0 and fill(model, batch) == 2
    late = True
    if change == 'pixels':
        batch = batch.clone()
        batch[:, 0, 0, 0] += 1e-6
    elif change == 'frozen weight':
        model.layers[0].ffn.layers[1].weight.data[0, 0] += 1e-7
    elif change == 'tuned weight':
        model.prompt.tokens.data += 1
    elif change == 'setting':
        model = build('vit', settings, interpolate_mode='bilinear')
    elif change == 'size':
        batch = images(2, 3, 40, 32)
    assert fill(model, batch) == (2 if change == 'tuned weight' else 0)


def test_a_damaged_file_is_computed_again(tmp_path):
    model, batch = build('vit', METHODS['head'][0]), images(2, 3, 32, 32)
    expected, _ = run(model, batch)
    for harm in (lambda f: f.write_bytes(f.read_bytes()[:-5]), lambda f: f.write_bytes(b''),
                 lambda f: f.write_bytes(f.read_bytes()[:-1] + b'\x99'), lambda f: f.unlink()):
        cache = FeatureCache(model, tmp_path, pytest.fail)
        with cache.attached():
            run(model, batch)
            files = sorted(tmp_path.rglob('*.safetensors'))
            assert len(files) == 2
            harm(files[0])
            outs, _ = run(model, batch)
        assert all(map(torch.equal, outs, expected))
        for file in files:
            file.unlink(missing_ok=True)


def test_a_full_disk_costs_time_alone(tmp_path, monkeypatch):
    model, batch = build('vit', METHODS['head'][0]), images(2, 3, 32, 32)
    expected, _ = run(model, batch)

    def full(path):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(safe_files, '_flush', full)
    told = []
    with FeatureCache(model, tmp_path, told.append).attached():
        for _ in range(2):
            outs, _ = run(model, batch)
            assert all(map(torch.equal, outs, expected))
    assert len(told) == 1 and 'keeps no more features' in told[0] and 'disk is full' in told[0]
    assert not [file for file in tmp_path.rglob('*') if file.is_file()]


@pytest.mark.parametrize(('family', 'settings', 'message'), [
    ('vit', dict(prompt=PROMPT), 'something that trains acts on the first block'),
    ('vit', dict(trainable=['.*']), 'something that trains acts on the first block'),
    ('vit', dict(prompt=dict(PROMPT, dropout=0.1), trainable=[]),
     'prompt has dropout and does not train'),
    ('resnet', dict(trainable=[r'^layer4\.']), 'only backbones of transformer blocks'),
])
def test_what_would_not_be_the_same_twice_is_refused(tmp_path, family, settings, message):
    model = build(family, settings)
    with pytest.raises(UserError, match=f'^feature_cache: .*{message}'):
        with FeatureCache(model, tmp_path, pytest.fail).attached():
            run(model, images(2, 3, *FAMILIES[family].size))


# --- draws -----------------------------------------------------------------------------------


class Drawing(torch.utils.data.Dataset):
    """Samples that are drawn."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index, torch.rand(()).item()


@pytest.mark.parametrize(('endless', 'processes'), [(False, 1), (True, 1), (True, 2)])
def test_draws_repeat_after_so_many_passes(monkeypatch, endless, processes):
    monkeypatch.setattr(seeding, 'get_world_size', lambda: processes)
    data = seeding.SeededDataset(Drawing())
    data.repeat(3)
    seen = []
    for epoch in range(6):
        passed = []
        for k in range(5):
            # An endless sampler goes on in epoch 0; its k-th index of all is of one of the ranks.
            where = 5 * epoch + k
            key = (7, where % processes, 0, where // processes) if endless else (7, 0, epoch, k)
            passed.append(data[seeding.Position((k + epoch) % 5, key)])
        seen.append(dict(passed))
    assert seen[:3] == seen[3:]
    assert len({seen[i][0] for i in range(3)}) == 3


# --- a run -----------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('draws', [None, 2])
def test_a_run_with_it_is_the_run_without(capfd, tmp_path, draws):
    size = (32, 32) if draws is None else (48, 48)
    data = make_ade_folder(tmp_path / 'data', size=size, num_images=4)
    path = write_leaf(tmp_path, data)
    losses = []
    for name in ('without', 'with'):
        options = ['model.backbone.prompt=None', 'model.backbone.trainable=[]']
        if name == 'with':
            options.append(f'feature_cache.folder={tmp_path / "f"}')
        if name == 'with' and draws:
            options.append(f'feature_cache.draws={draws}')
        outcome = run_tool(capfd, 'train', path, '--work-dir', tmp_path / name, '--cfg-options',
                           'iters=8', *options)
        assert outcome.code == 0, outcome.err
        file = next((tmp_path / name).glob('*/vis_data/scalars.json'))
        records = [json.loads(line) for line in file.read_text().splitlines()]
        losses.append([record['loss'] for record in records if 'loss' in record])
    files = list((tmp_path / 'f').rglob('*.safetensors'))
    # A validation image of 48x48 is looked at in four windows of 32x32.
    if draws is None:
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert 'Features of 12 images found' in outcome.err + outcome.out
    else:
        assert losses[0] != losses[1]
        assert len(files) == 4 * draws + 4 * 4


@pytest.mark.parametrize(('options', 'message'), [
    (['feature_cache.folder=x'], 'feature_cache: the training pipeline changes images at random'),
    (['feature_cache.draws=0'], 'feature_cache.draws must be an integer of at least 1'),
    (['feature_cache.drawz=2'], 'feature_cache: a dict of folder and draws was expected'),
    (['feature_cache=yes'], 'feature_cache: a dict of folder and draws was expected'),
])
def test_contradictions_are_refused(capfd, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    path = write_leaf(tmp_path, make_ade_folder(tmp_path / 'data', size=(48, 48)))
    outcome = run_tool(capfd, 'train', path, '--cfg-options', *options)
    assert outcome.code == 2
    assert outcome.err.strip().splitlines()[-1].startswith('error: ' + message)

"""Delta checkpoints: what runs leave out, how it comes back everywhere, files of deltas."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine import Config
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from tool_helpers import forget_runs, run_tool, tiny_folder, write_leaf
from utils import CONFIGS, images, in_scope, randomise, tiny_vit

from vpt_dense import building, config, params, safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.weights import stored_config
from vpt_dense.weights.base import KEY, Base, fingerprint

DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)
#: The backbone of tool_helpers.LEAF, in timm, on another grid of positions.
SIZES = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, num_classes=3)
#: More of the config -> what trains in the backbone.
METHODS = {
    'deep': '',
    'bias': "model['backbone'].update(prompt=None, trainable=['bias$'])",
    'head': "model['backbone'].update(prompt=None, trainable=[])",
    'full': "model['backbone'].update(prompt=None, trainable=['.*'])",
    'ema': "custom_hooks = [dict(type='EMAHook'), dict(type='vpt_dense.ReportHook')]",
    'half': "model['backbone'].update(frozen_dtype='bfloat16')",
}


def save_base(path: Path, seed: int = 0) -> Path:
    torch.save(
        randomise(timm.models.VisionTransformer(img_size=48, **SIZES), seed).state_dict(), path
    )
    return path


def leaf_of(folder: Path, method: str, data: Path) -> Path:
    init = f"dict(type='Pretrained', checkpoint='{folder / 'base.pth'}')"
    extra = f"\nmodel['backbone']['init_cfg'] = {init}\n{METHODS[method]}\n"
    return write_leaf(folder, data, extra)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data):
    """Trains a method once: folder with base.pth, leaf.py and work/, two iterations."""
    made = {}

    def get(method: str) -> Path:
        if method not in made:
            folder = made[method] = tmp_path_factory.mktemp(method)
            save_base(folder / 'base.pth')
            train(leaf_of(folder, method, data))
        return made[method]

    return get


def train(leaf: Path, **overrides):
    """Train in this process; return the runner."""
    from vpt_dense.engine.runner import Runner

    forget_runs()
    in_scope('mmseg')
    runner = Runner.from_cfg(config.load(str(leaf), {k.replace('__', '.'): v
                                                     for k, v in overrides.items()}))
    runner.train()
    return runner


@pytest.fixture
def run(runs, tmp_path):
    """A copy of a run, at another place; the base stays where it was."""

    def get(method: str) -> Path:
        return Path(shutil.copytree(runs(method), tmp_path / method))

    return get


@pytest.fixture(scope='module')
def whole(runs):
    """The whole state dict of a run's last checkpoint, completed by merging."""

    def get(method: str) -> dict:
        return deltas.merge(str(runs(method) / 'work/iter_2.pth'))['state_dict']

    return get


def frozen_part(path: Path) -> dict:
    """The frozen tensors by their names in the model, as they are when the base is loaded."""
    cfg = config.load(str(path / 'leaf.py'))
    model = building.build_model(cfg)
    model.backbone.load_base(str(path / 'base.pth'))
    return {
        f'backbone.{name}': tensor for name, tensor in model.backbone.state_dict().items()
        if name in model.backbone.frozen_names
    }


# --- what is written -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
def test_runs_write_what_trains_and_the_identity_of_the_rest(runs, method):
    folder = runs(method)
    checkpoint = safe_files.read(folder / 'work/iter_2.pth')
    model = building.build_model(config.load(str(folder / 'leaf.py')))
    names = set(model.state_dict())
    frozen = {
        f'backbone.{name}' for name, p in model.backbone.named_parameters() if not p.requires_grad
    }
    assert bool(frozen) == (method != 'full')
    expected = names - frozen | ({f'backbone.{KEY}'} if frozen else set())
    assert set(checkpoint['state_dict']) == expected
    assert checkpoint['state_dict']._metadata[''] == model.state_dict()._metadata['']
    trained = [p for p in model.parameters() if p.requires_grad]
    held = checkpoint['optimizer']['param_groups']
    assert sum(len(group['params']) for group in held) == len(trained)
    assert 'model = dict(' in checkpoint['meta']['cfg']
    if method == 'ema':
        averaged = {f'module.{name}' for name in expected} | {'steps'}
        assert set(checkpoint['ema_state_dict']) == averaged
    if frozen:
        base = Base.from_tensor(checkpoint['state_dict'][f'backbone.{KEY}'])
        assert (base.checkpoint, base.layout) == (str(folder / 'base.pth'), 'timm')
        assert base.tensors == len(frozen)
        parts = frozen_part(folder)
        assert base.parameters == sum(t.numel() for t in parts.values())
        if method != 'half':  # there the identity is that of the weights before rounding
            bare = {name.removeprefix('backbone.'): t for name, t in parts.items()}
            assert base.sha256 == fingerprint(bare)


def test_half_and_whole_precision_have_one_identity(runs):
    records = [
        Base.from_tensor(
            safe_files.read(runs(m) / 'work/iter_2.pth')['state_dict'][f'backbone.{KEY}'])
        for m in ('deep', 'half')
    ]
    assert records[0].sha256 == records[1].sha256


def test_the_size_is_said_once_with_the_whole_models(capfd, tmp_path, data):
    folder = tmp_path
    save_base(folder / 'base.pth')
    done = run_tool(capfd, 'train', leaf_of(folder, 'deep', data))
    assert done.code == 0
    lines = re.findall(r'checkpoints hold .*', done.out)
    assert lines == ['checkpoints hold 22 tensors, 0.0 MB (the whole model: 0.1 MB)']


@pytest.mark.parametrize('case', ['no base', 'changed'])
def test_what_cannot_be_rebuilt_is_written_whole_and_said(tmp_path, data, case, monkeypatch):
    save_base(tmp_path / 'base.pth')
    leaf = leaf_of(tmp_path, 'deep', data)
    options = {}
    if case == 'no base':
        options['model.backbone.init_cfg'] = None
    else:
        from vpt_dense.backbones import VisionTransformer as Vit

        def load_and_change(self, checkpoint, load=Vit.load_base):
            load(self, checkpoint)
            # Through .data, as hooks do: autograd's version counters do not see it.
            self.layers[1].attn.qkv.weight.data[3, 5] += 1e-6

        monkeypatch.setattr(Vit, 'load_base', load_and_change)
    runner = train(leaf, **options)
    reason = dict(changed='have changed since', **{'no base': 'init_cfg names no'})[case]
    assert 'hold the whole model' in runner._contents and reason in runner._contents
    state = safe_files.read(tmp_path / 'work/iter_2.pth')['state_dict']
    assert set(state) == set(runner.model.state_dict())
    own = runner.model.state_dict()
    assert all(torch.equal(state[name], own[name]) for name in own if 'backbone.layers' in name)


def test_a_changed_average_keeps_both_state_dicts_whole(tmp_path):
    """EMA exchanges them name by name when it resumes: one reduced alone would break that."""
    model, _ = backbone_with_base(tmp_path)
    state, averaged = model.state_dict(), model.state_dict()
    averaged['pos_embed'] = averaged['pos_embed'] + 1
    checkpoint = dict(
        state_dict=dict(state),
        ema_state_dict={f'module.{name}': tensor for name, tensor in averaged.items()},
    )
    assert 'have changed' in deltas.reduce(model, checkpoint)
    assert set(checkpoint['state_dict']) == set(state)
    assert len(checkpoint['ema_state_dict']) == len(state)


@pytest.fixture
def defaults():
    """torch.load as in a program that has imported torch alone: mmengine allows it some types."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.parametrize('method', ['deep', 'ema', 'full'])
def test_torch_loads_with_its_defaults_what_is_written(capfd, run, tmp_path, method, defaults):
    folder = run(method)
    written = [*(folder / 'work').glob('*.pth'), tmp_path / 'merged.pth']
    source = folder / 'work/iter_2.pth'
    assert run_tool(capfd, 'delta', 'merge', source, written[-1]).code == 0
    if method == 'deep':
        written.append(tmp_path / 'folded.pth')
        assert run_tool(capfd, 'delta', 'fold', source, written[-1]).code == 0
    for path in written:
        content = torch.load(path)  # the default, weights_only=True, is what is tested
        assert len(content['meta']['dataset_meta']['classes']) == 150
    content = torch.load(source)
    assert content['optimizer']['state'] and content['meta']['iter'] == 2
    own = safe_files.read(source)
    assert all(torch.equal(content['state_dict'][n], t) for n, t in own['state_dict'].items())
    # Ours gives the history of the log as mmengine has it.
    kept = content['message_hub']['log_scalars']['train/loss']
    history, counts = own['message_hub']['log_scalars']['train/loss'].data
    assert kept['log_history'].tolist() == history.tolist() and len(history) == 2
    assert kept['count_history'].tolist() == counts.tolist()


# --- how it comes back -----------------------------------------------------------------------


@pytest.mark.parametrize('method', [
    'ema', *(pytest.param(m, marks=pytest.mark.slow) for m in ('deep', 'bias', 'head', 'full'))])
def test_resuming_ends_like_the_uninterrupted_run(runs, tmp_path, data, method):
    folder = runs(method)
    through = train(folder / 'leaf.py', work_dir=str(tmp_path / 'a'), train_cfg__max_iters=3)
    # from a folder, by last_checkpoint
    shutil.copytree(folder / 'work', tmp_path / 'b')
    resumed = train(
        folder / 'leaf.py', work_dir=str(tmp_path / 'b'), train_cfg__max_iters=3, resume=True
    )
    assert resumed.iter == 3
    a, b = through.model.state_dict(), resumed.model.state_dict()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    if method == 'ema':
        a, b = (
            next(h for h in r.hooks if isinstance(h, EMAHook)).ema_model.state_dict()
            for r in (through, resumed)
        )
        assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize('method', [
    'deep', *(pytest.param(m, marks=pytest.mark.slow) for m in ('bias', 'ema'))])
def test_test_load_from_and_a_delta_file_give_the_runs_own_results(
    capfd, run, whole, tmp_path, method
):
    """tools/test.py on a delta, on the whole checkpoint and on the .safetensors are one."""
    folder = run(method)
    plain = tmp_path / 'whole.pth'
    torch.save(dict(state_dict=whole(method), meta={}), plain)
    delta = tmp_path / 'd.safetensors'
    deltas.write(deltas.extract(str(folder / 'work/iter_2.pth')), delta)
    found = []
    for name, path in (('a', folder / 'work'), ('b', plain), ('c', delta)):
        options = ['--work-dir', tmp_path / name]
        done = run_tool(capfd, 'test', folder / 'leaf.py', path, *options)
        assert (done.code, done.err) == (0, ''), done
        found.append(json.loads((tmp_path / name / 'test.json').read_text())['metrics'])
    found = [{k: v for k, v in m.items() if 'time' not in k} for m in found]
    assert found[0] == found[1] == found[2] and 'mIoU' in found[0]
    for path in (folder / 'work/iter_2.pth', delta):
        forget_runs()
        runner = train(
            folder / 'leaf.py', load_from=str(path), train_cfg__max_iters=1,
            work_dir=str(tmp_path / 'new'), optim_wrapper__optimizer__lr=0.0,
        )
        state = runner.model.state_dict()
        wanted = whole(method)
        moved = [n for n in wanted if not torch.equal(wanted[n], state[n]) and 'bn' not in n]
        assert [n for n in moved if 'norm' not in n] == []


def test_training_in_half_and_testing_in_whole_precision_and_the_reverse(runs, tmp_path):
    for trained, tested in (('half', 'deep'), ('deep', 'half')):
        state = safe_files.read(runs(trained) / 'work/iter_2.pth')
        model = building.build_model(config.load(str(runs(tested) / 'leaf.py')))
        model.load_state_dict(state['state_dict'])
        weight = model.backbone.layers[0].attn.qkv.weight
        expected = frozen_part(runs('deep'))['backbone.layers.0.attn.qkv.weight']
        assert weight.dtype == (torch.bfloat16 if tested == 'half' else torch.float32)
        assert torch.equal(weight, expected.to(weight.dtype))


def test_resuming_in_half_precision_takes_the_tensors_that_are_there(runs, tmp_path):
    folder = runs('half')
    model = building.build_model(config.load(str(folder / 'leaf.py')))
    model.backbone.load_base(str(folder / 'base.pth'))
    model.backbone.init_cfg = None
    state = safe_files.read(folder / 'work/iter_2.pth')['state_dict']
    record = Base.from_tensor(state[f'backbone.{KEY}'])
    gone = Base(**{**record.__dict__, 'checkpoint': 'gone.pth', 'path': ''})
    state[f'backbone.{KEY}'] = gone.to_tensor()
    model.load_state_dict(state)  # would raise if it had to read the base again


@pytest.mark.long
@pytest.mark.parametrize('kind', ['pth', 'safetensors'])
def test_a_fresh_interpreter_needs_no_import_of_ours(runs, whole, tmp_path, kind):
    path = runs('deep') / 'work/iter_2.pth'
    if kind == 'safetensors':
        path = tmp_path / 'd.safetensors'
        deltas.write(deltas.extract(str(runs('deep') / 'work/iter_2.pth')), path)
    code = (
        'import sys; from mmseg.apis import init_model; import torch; '
        "model = init_model(sys.argv[1], sys.argv[2], device='cpu'); "
        'torch.save(model.state_dict(), sys.argv[3])'
    )
    leaf = runs('deep') / 'work/leaf.py'
    subprocess.run([sys.executable, '-c', code, leaf, path, tmp_path / 'out.pth'], check=True)
    found = safe_files.read(tmp_path / 'out.pth')
    assert all(torch.equal(found[name], tensor) for name, tensor in whole('deep').items())


def segment(model) -> np.ndarray:
    from mmseg.apis import inference_model

    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    return inference_model(model, image).seg_logits.data.numpy()


@pytest.mark.parametrize('kind', ['checkpoint', 'delta'])
@pytest.mark.parametrize('config_from', ['leaf', 'work dir'])
def test_mmsegs_own_entries(runs, whole, tmp_path, kind, config_from):
    from mmseg.apis import MMSegInferencer, init_model

    folder = runs('deep')
    path = folder / 'work/iter_2.pth'
    if kind == 'delta':
        path = tmp_path / 'd.safetensors'
        deltas.write(deltas.extract(str(folder / 'work/iter_2.pth')), path)
    cfg = Config.fromfile(folder / ('leaf.py' if config_from == 'leaf' else 'work/leaf.py'))
    # the name for which init_model takes init_cfg away
    cfg.model.type = 'EncoderDecoder'
    cfg.test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    config.resolve(cfg)
    ours = init_model(cfg.copy(), str(path), device='cpu')
    expected = whole('deep')
    assert all(torch.equal(ours.state_dict()[name], expected[name]) for name in expected)
    assert len(ours.dataset_meta['classes']) == 150
    logits = segment(ours)
    assert np.isfinite(logits).all()

    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    forget_runs()
    cfg.dump(tmp_path / 'cfg.py')
    inferencer = MMSegInferencer(
        str(tmp_path / 'cfg.py'), weights=str(path), device='cpu', show_progress=False
    )
    found = inferencer(image)['predictions']
    assert np.array_equal(found, logits.argmax(0))


def classifier(folder: Path) -> Config:
    """A tiny classifier of mmpretrain with a prompted backbone."""
    backbone = dict(
        type='vpt_dense.VisionTransformer', img_size=32, patch_size=8,
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        out_type='cls_token', prompt=DEEP,
        init_cfg=dict(type='Pretrained', checkpoint=str(folder / 'base.pth')),
    )  # fmt: skip
    return Config(dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier', backbone=backbone,
            head=dict(type='LinearClsHead', num_classes=3, in_channels=32),
            data_preprocessor=dict(num_classes=3, mean=[0.0] * 3, std=[255.0] * 3),
        ),
        test_dataloader=dict(dataset=dict(pipeline=[
            dict(type='LoadImageFromFile'), dict(type='PackInputs')])),
    ))  # fmt: skip


def test_mmpretrains_own_entries(tmp_path, mmpretrain_scope):
    from mmpretrain import ImageClassificationInferencer, get_model

    save_base(tmp_path / 'base.pth')
    cfg = classifier(tmp_path)
    trained = MODELS.build(cfg.model)
    trained.backbone.load_base(str(tmp_path / 'base.pth'))
    randomise(trained.head)
    checkpoint = dict(
        state_dict=trained.state_dict(), meta=dict(dataset_meta=dict(classes=['a', 'b', 'c']))
    )
    assert deltas.reduce(trained, checkpoint).startswith('checkpoints hold 4 tensors')
    torch.save(checkpoint, tmp_path / 'delta.pth')
    cfg.dump(tmp_path / 'cfg.py')
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    trained.eval()
    with torch.no_grad():
        x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None] / 255
        expected = trained.head(trained.extract_feat(x.float())).softmax(1)[0].numpy()
    model = get_model(str(tmp_path / 'cfg.py'), str(tmp_path / 'delta.pth'), device='cpu')
    weights = trained.state_dict()
    assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items())
    inferencer = ImageClassificationInferencer(
        str(tmp_path / 'cfg.py'), pretrained=str(tmp_path / 'delta.pth'), device='cpu'
    )
    np.testing.assert_allclose(inferencer(image)[0]['pred_scores'], expected, atol=1e-5)


@pytest.mark.parametrize('allowed', [[], ['^norm0']])
def test_a_swin_completes_itself_too(tmp_path, allowed):
    """Its frozen part holds tables of indices; norms that no weights give are written."""
    arch = dict(embed_dims=16, depths=[1, 1], num_heads=[1, 2])
    cfg = dict(type='vpt_dense.SwinTransformer', arch=arch, img_size=32, patch_size=2,
               window_size=4, out_indices=(1,))
    torch.save(randomise(MODELS.build(cfg)).state_dict(), tmp_path / 'swin.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth'), allow_missing=allowed)
    cfg.update(init_cfg=init, trainable=['bias$'], out_indices=(0, 1) if allowed else (1,))
    model = MODELS.build(cfg)
    model.init_weights()
    if allowed:
        randomise(model.norm0)
    checkpoint = dict(state_dict=model.state_dict())
    deltas.reduce(model, checkpoint)
    kept = {name for name, p in model.named_parameters() if p.requires_grad}
    kept |= {'norm0.weight'} if allowed else set()
    assert set(checkpoint['state_dict']) == kept | {KEY}
    other = MODELS.build({**cfg, 'init_cfg': None})
    other.load_state_dict(checkpoint['state_dict'])
    own = model.state_dict()
    assert any('relative_position_index' in name for name in own)
    assert all(torch.equal(own[n], t) for n, t in other.state_dict().items())


# --- what is refused -------------------------------------------------------------------------


def backbone_with_base(folder: Path, seed: int = 0):
    """A frozen backbone with its base loaded, and that file."""
    path = save_base(folder / f'base{seed}.pth', seed)
    model = tiny_backbone(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    return model, path


def tiny_backbone(**kwargs):
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    return tiny_vit(**{**dict(arch=arch, prompt=DEEP), **kwargs})


def reduced(model) -> dict:
    checkpoint = dict(state_dict=model.state_dict())
    deltas.reduce(model, checkpoint)
    assert set(checkpoint['state_dict']) == {'prompt.tokens', KEY}
    return checkpoint['state_dict']


@pytest.mark.parametrize('place', ['config', 'record', 'path'])
def test_the_base_is_looked_for_in_the_config_then_in_the_record(tmp_path, monkeypatch, place):
    model, path = backbone_with_base(tmp_path)
    monkeypatch.chdir(tmp_path)
    state = reduced(model)
    record = Base.from_tensor(state[KEY])
    places = dict(checkpoint='gone.pth', path='/nowhere/gone.pth')
    if place == 'record':
        places['checkpoint'] = path.name
    elif place == 'path':
        places['path'] = str(path)
    state[KEY] = Base(**{**record.__dict__, **places}).to_tensor()
    init_cfg = dict(type='Pretrained', checkpoint=str(path)) if place == 'config' else None
    other = tiny_backbone(init_cfg=init_cfg)
    assert other.load_state_dict(state).missing_keys == []
    own = model.state_dict()
    assert all(torch.equal(own[n], t) for n, t in other.state_dict().items())
    assert set(reduced(other)) == set(state)  # and can be saved without the base again


def test_another_base_is_refused_with_both_fingerprints(tmp_path):
    model, _ = backbone_with_base(tmp_path)
    other, path = backbone_with_base(tmp_path, seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    state = reduced(model)
    shas = [model.base.sha256, other.base.sha256]
    with pytest.raises(UserError, match=f'{path}.*{shas[1]}.*{shas[0]}.*--base') as error:
        other.load_state_dict(state)
    assert '\n' not in str(error.value) and shas[0] != shas[1]
    assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())


def test_an_absent_base_names_the_places_looked_at(tmp_path):
    model, path = backbone_with_base(tmp_path)
    state = reduced(model)
    path.unlink()
    other = tiny_backbone(init_cfg=dict(type='Pretrained', checkpoint='elsewhere.pth'))
    with pytest.raises(UserError, match=rf'neither in elsewhere\.pth nor in {path}.*--base'):
        other.load_state_dict(state)


def test_a_random_backbone_is_refused(tmp_path):
    model, _ = backbone_with_base(tmp_path)
    state = {'prompt.tokens': model.prompt.tokens}
    with pytest.raises(UserError, match='lack 30 frozen tensors.*random start'):
        tiny_backbone().load_state_dict(state, strict=False)
    with pytest.raises(UserError, match='lack 30 frozen tensors.*random start'):
        from mmengine.runner import load_state_dict

        load_state_dict(tiny_backbone(), state)
    model.load_state_dict(state, strict=False)  # has its base


def test_a_broken_identity_is_refused(tmp_path):
    model, _ = backbone_with_base(tmp_path)
    good = json.loads(bytes(model.base.to_tensor().tolist()))
    other = json.dumps({**good, 'checkpoint': 7}).encode()
    for broken in (b'{', b'[]', b'{"sha256": "0"}', b'\xff', other):
        state = {**reduced(model), KEY: torch.tensor(list(broken), dtype=torch.uint8)}
        with pytest.raises(UserError, match=f'{KEY} that cannot be read'):
            tiny_backbone().load_state_dict(state)


def test_another_size_of_images_is_told(tmp_path):
    model, path = backbone_with_base(tmp_path)
    other = tiny_backbone(img_size=64, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(UserError, match='made for .* on 4x4 patches, this is .* on 8x8 patches'):
        other.load_state_dict(reduced(model))


def test_what_a_pseudo_inverse_made_stays_in(tmp_path):
    """Its last bits depend on the machine's libraries, and a fingerprint would too."""
    path = tmp_path / 'base.pth'
    sizes = {**SIZES, 'patch_size': 16}
    torch.save(
        randomise(timm.models.VisionTransformer(img_size=48, **sizes)).state_dict(), path
    )
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = tiny_backbone(init_cfg=init_cfg)
    model.init_weights()
    checkpoint = dict(state_dict=model.state_dict())
    deltas.reduce(model, checkpoint)
    kernel = 'patch_embed.projection.weight'
    assert set(checkpoint['state_dict']) == {'prompt.tokens', KEY, kernel}
    checkpoint['state_dict'][kernel] = checkpoint['state_dict'][kernel].nextafter(torch.tensor(1.0))
    other = tiny_backbone(init_cfg=init_cfg)
    other.load_state_dict(checkpoint['state_dict'])
    assert not torch.equal(other.state_dict()[kernel], model.state_dict()[kernel])
    for name, tensor in model.state_dict().items():
        assert name == kernel or torch.equal(other.state_dict()[name], tensor)


def test_what_trains_may_differ_when_it_is_loaded(tmp_path):
    """A bias-tuned delta in a backbone that would train everything, or nothing."""
    path = save_base(tmp_path / 'base.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = tiny_backbone(prompt=None, trainable=['bias$'], init_cfg=init_cfg)
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('bias'):
                parameter.add_(1)
    checkpoint = dict(state_dict=model.state_dict())
    deltas.reduce(model, checkpoint)
    assert sum('bias' in name for name in checkpoint['state_dict']) == (
        len(checkpoint['state_dict']) - 1)
    for trainable in (['.*'], []):
        other = tiny_backbone(prompt=None, trainable=trainable, init_cfg=init_cfg)
        other.load_state_dict(checkpoint['state_dict'])
        own = model.state_dict()
        assert all(torch.equal(own[n], t) for n, t in other.state_dict().items())
        again = dict(state_dict=other.state_dict())
        deltas.reduce(other, again)
        assert set(again['state_dict']) == set(own if trainable else checkpoint['state_dict'])


@pytest.mark.parametrize(('case', 'pattern'), [
    ('gone', r'iter_2\.pth: it holds only what was trained.*neither in \S+base\.pth.*--base'),
    ('other', r'iter_2\.pth: the pretrained weights \S+base\.pth are not those.*--base'),
    ('no file', r'absent\.pth: no such file'),
])
def test_tools_test_refuses_in_one_line(capfd, run, data, tmp_path, case, pattern):
    folder = run('deep')
    leaf = leaf_of(folder, 'deep', data)  # names the copy's base
    options = ['--work-dir', tmp_path / 't']
    checkpoint = folder / 'work/iter_2.pth'
    if case == 'gone':
        (folder / 'base.pth').unlink()
        content = torch.load(checkpoint, weights_only=False)
        name = f'backbone.{KEY}'
        record = Base.from_tensor(content['state_dict'][name])
        gone = Base(**{**record.__dict__, 'checkpoint': 'gone.pth', 'path': ''})
        content['state_dict'][name] = gone.to_tensor()
        torch.save(content, checkpoint)
    elif case == 'other':
        save_base(folder / 'base.pth', seed=1)
    else:
        options += ['--base', tmp_path / 'absent.pth']
    done = run_tool(capfd, 'test', leaf, checkpoint, *options)
    assert done.code in (1, 2) and len(done.err.strip().splitlines()) == 1, done
    assert re.search(pattern, done.err), done.err


@pytest.mark.slow
def test_base_option_of_test_and_train(capfd, run, data, tmp_path):
    folder = run('deep')
    leaf = leaf_of(folder, 'deep', data)
    moved = folder / 'moved.pth'
    (folder / 'base.pth').rename(moved)
    done = run_tool(capfd, 'test', leaf, folder / 'work', '--base', moved,
                    '--work-dir', tmp_path / 't')
    assert (done.code, done.err) == (0, '')
    done = run_tool(capfd, 'train', leaf, '--resume', '--base', moved, '--cfg-options',
                    'train_cfg.max_iters=3')
    assert (done.code, done.err) == (0, '')
    state = safe_files.read(folder / 'work/iter_3.pth')['state_dict']
    assert Base.from_tensor(state[f'backbone.{KEY}']).checkpoint == str(moved)


# --- files of deltas -------------------------------------------------------------------------


@pytest.mark.parametrize('method', METHODS)
def test_extract_of_merge_is_the_same_file(capfd, runs, tmp_path, method):
    names = [tmp_path / n for n in ('a.safetensors', 'whole.pth', 'b.safetensors')]
    for command, source, out in (
        ('extract', runs(method) / 'work/iter_2.pth', names[0]),
        ('merge', names[0], names[1]),
        ('extract', names[1], names[2]),
    ):
        done = run_tool(capfd, 'delta', command, source, out)
        assert (done.code, done.err) == (0, ''), done
    assert names[0].read_bytes() == names[2].read_bytes()
    run_state = safe_files.read(runs(method) / 'work/iter_2.pth')['state_dict']
    delta = safe_files.read(names[0])
    for name, tensor in run_state.items():
        if not name.endswith(KEY):
            assert torch.equal(delta['state_dict'][name], tensor), name
    whole = safe_files.read(names[1])['state_dict']
    model = building.build_model(config.load(str(runs(method) / 'leaf.py')))
    assert list(whole) == list(model.state_dict())
    meta = delta['meta']
    assert meta['format'] == deltas.FORMAT and meta['iter'] == 2
    assert 'mIoU' in meta['metric'] and len(meta['dataset_meta']['classes']) == 150
    assert meta['counts']['trainable'] == params.report(model)['trainable']
    assert meta['method']['trainable'] == model.backbone.trainable
    assert 'path' not in json.dumps(meta['bases']) or all(
        record['path'] == '' for record in meta['bases'].values())


#: Adapters with buffers, or that start from the weights, or share tensors, or are PEFT's.
LINEAR = {
    'dora': dict(type='vpt_dense.DoRA', rank=2), 'pissa': dict(type='vpt_dense.PiSSA', rank=2),
    'soma': dict(type='vpt_dense.SoMA', rank=2), 'vera': dict(type='vpt_dense.VeRA', rank=4),
    'fact': dict(type='vpt_dense.FacT', rank=2, form='tk'),
    'glora': dict(type='vpt_dense.GLoRA', rank=2),
    'peft': dict(type='vpt_dense.PEFT', config=dict(peft_type='BOFT', boft_block_size=4)),
    'peft-dora': dict(
        type='vpt_dense.PEFT', config=dict(peft_type='LORA', r=2, use_dora=True)),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in ('soma', 'vera') else pytest.mark.slow)
    for name in LINEAR])
def test_adapters_go_from_a_run_with_an_average_to_a_delta_and_into_the_weights(
        capfd, tmp_path, data, name):
    if 'peft' in name:
        pytest.importorskip('peft')
    save_base(tmp_path / 'base.pth')
    init = f"dict(type='Pretrained', checkpoint='{tmp_path / 'base.pth'}')"
    runner = train(write_leaf(
        tmp_path, data, f"\nmodel['backbone'].update(init_cfg={init}, prompt=None, "
        f"trainable=['^adapters'], adapters=[{LINEAR[name]!r}])\n"
        "custom_hooks = [dict(type='EMAHook')]\n"))
    work = tmp_path / 'work'
    state = safe_files.read(work / 'iter_2.pth')
    added = {n for n in runner.model.state_dict() if '.adapters.' in n}
    assert added <= state['state_dict'].keys()
    averaged = state['ema_state_dict']
    assert {f'module.{n}' for n in added} <= averaged.keys()
    if name in ('pissa', 'soma'):  # the start is that of the weights that were loaded
        update = runner.model.backbone.adapters[0].updates[-1]
        first = update.first_up @ update.first_down
        assert first.abs().max() > 1e-3 and not torch.equal(update.up, update.first_up)
        for n in (n for n in added if '.first_' in n):
            assert torch.equal(averaged[f'module.{n}'], state['state_dict'][n])
    for command, source, out in (
        ('extract', work / 'iter_2.pth', 'a.safetensors'), ('merge', 'a.safetensors', 'whole.pth'),
        ('extract', 'whole.pth', 'b.safetensors'), ('fold', 'a.safetensors', 'folded.pth'),
    ):
        done = run_tool(capfd, 'delta', command, tmp_path / source, tmp_path / out)
        assert (done.code, done.err) == (0, ''), done
    assert (tmp_path / 'a.safetensors').read_bytes() == (tmp_path / 'b.safetensors').read_bytes()
    checkpoint = deltas.read(str(tmp_path / 'a.safetensors'))
    model = deltas.load(stored_config.parse(checkpoint['meta']['cfg'], 'c'), checkpoint, 'c')
    cfg = Config.fromfile(tmp_path / 'folded.py')
    assert not cfg.model.backbone.get('adapters')
    folded = building.build_model(cfg).eval()
    folded.load_state_dict(safe_files.read(tmp_path / 'folded.pth')['state_dict'], strict=True)
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        for one, other in zip(folded.extract_feat(x), model.extract_feat(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_extract_from_a_foreign_whole_checkpoint(capfd, runs, whole, tmp_path):
    """Without identity and config inside: both come from the config file and the base."""
    plain = tmp_path / 'plain.pth'
    torch.save({f'module.{name}': t for name, t in whole('deep').items()}, tmp_path / 'bare.pth')
    torch.save(dict(state_dict={f'module.{n}': t for n, t in whole('deep').items()}), plain)
    leaf = runs('deep') / 'leaf.py'
    out = tmp_path / 'd.safetensors'
    done = run_tool(capfd, 'delta', 'extract', plain, out, '--config', leaf)
    assert (done.code, done.err) == (0, '')
    run_delta = deltas.extract(str(runs('deep') / 'work/iter_2.pth'))
    found = safe_files.read(out)
    assert set(found['state_dict']) == set(run_delta['state_dict'])
    assert all(torch.equal(found['state_dict'][n], t) for n, t in run_delta['state_dict'].items())
    before = out.read_bytes()
    done = run_tool(capfd, 'delta', 'extract', tmp_path / 'bare.pth', out, '--config', leaf,
                    '--force')
    assert (done.code, done.err) == (0, '') and out.read_bytes() == before
    done = run_tool(capfd, 'delta', 'extract', tmp_path / 'bare.pth', out, '--force')
    assert 'bare.pth holds no state_dict' in done.err and 'with --config' in done.err
    done = run_tool(capfd, 'delta', 'extract', plain, out, '--force')
    assert re.search(r'plain\.pth holds no config; name its config file', done.err)


def test_extract_refuses_frozen_tensors_of_another_base(capfd, runs, whole, tmp_path):
    plain = tmp_path / 'plain.pth'
    torch.save(dict(state_dict=whole('deep')), plain)
    other = save_base(tmp_path / 'other.pth', seed=1)
    done = run_tool(capfd, 'delta', 'extract', plain, tmp_path / 'd.safetensors', '--config',
                    runs('deep') / 'leaf.py', '--base', other)
    assert re.search(r'[0-9a-f]{64}.*not those of \S*other\.pth \([0-9a-f]{64}\)', done.err)
    assert not (tmp_path / 'd.safetensors').exists()


def test_extract_takes_the_metric_of_no_other_run(run, tmp_path):
    """Another run's evaluations, of the same iteration, lay beside the checkpoint."""
    folder = run('deep')
    path, records = folder / 'work/iter_2.pth', folder / 'work/evaluations.json'
    own = deltas.extract(str(path))['meta']
    assert own['run_id'] == safe_files.read(path)['meta']['run_id']
    (record,) = json.loads(records.read_text())
    assert own['metric']['mIoU'] == record['metrics']['mIoU']
    for change in (dict(run_id='0' * 32), dict(run_id=None), dict(iter=1)):
        other = {**record, **change, 'metrics': {'mIoU': 13.77}}
        records.write_text(json.dumps([other]))
        assert 'metric' not in deltas.extract(str(path))['meta']
        records.write_text(json.dumps([other, record]))
        assert deltas.extract(str(path))['meta']['metric'] == own['metric']
    # Of files without ids nobody knows.
    content = safe_files.read(path)
    del content['meta']['run_id'], record['run_id']
    safe_files.write(content, path)
    records.write_text(json.dumps([record]))
    assert 'metric' not in deltas.extract(str(path))['meta']


LORA = "model['backbone'].update(prompt=None, trainable=[r'^adapters\\.'], adapters=[dict(" \
       "type='vpt_dense.LoRA', rank=2, alpha={alpha}, targets=[r'\\.qkv$'])])"


@pytest.mark.slow
@pytest.mark.parametrize(('command', 'out'), [
    ('extract', 'x.safetensors'), ('merge', 'x.pth'), ('fold', 'x.pth')])
def test_another_config_than_the_trainings_is_refused(capfd, tmp_path, data, command, out):
    """Nothing in the tensors tells the alpha of LoRA: folded with another, it is another model."""
    save_base(tmp_path / 'base.pth')
    METHODS['lora'] = LORA.format(alpha=4)
    leaf = leaf_of(tmp_path, 'lora', data)
    cfg = config.load(str(leaf))
    model = randomise(building.build_model(cfg))
    model.backbone.load_base(str(tmp_path / 'base.pth'))
    safe_files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)),
                tmp_path / 'c.pth')
    METHODS['lora'] = LORA.format(alpha=8)
    other = leaf_of(tmp_path, 'lora', data)
    del METHODS['lora']
    arguments = [command, tmp_path / 'c.pth', tmp_path / out, '--config', other]
    done = run_tool(capfd, 'delta', *arguments)
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1
    assert re.search(r'--config .*leaf\.py is not what .*c\.pth was trained with: .*differ in '
                     r'model\.backbone\.adapters\.0\.alpha \(4 and 8\)', done.err)
    assert not (tmp_path / out).exists()
    # What leaves the weights what they are may differ.
    same = other.read_text().replace('alpha=8', 'alpha=4')
    other.write_text(f"{same}\nmodel['backbone']['memory'] = 'lean'\n"
                     "model['test_cfg'] = dict(mode='whole', _delete_=True)\n")
    done = run_tool(capfd, 'delta', *arguments)
    assert (done.code, done.err) == (0, '')


@pytest.mark.slow
def test_a_test_with_another_setting_says_so(capfd, tmp_path, data):
    save_base(tmp_path / 'base.pth')
    METHODS['lora'] = LORA.format(alpha=4)
    leaf = leaf_of(tmp_path, 'lora', data)
    del METHODS['lora']
    cfg = config.load(str(leaf))
    model = randomise(building.build_model(cfg))
    model.backbone.load_base(str(tmp_path / 'base.pth'))
    safe_files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)),
                tmp_path / 'c.pth')
    done = run_tool(capfd, 'test', leaf, tmp_path / 'c.pth')
    assert done.code == 0 and 'was trained with another' not in done.out + done.err
    done = run_tool(capfd, 'test', leaf, tmp_path / 'c.pth', '--cfg-options',
                    'model.backbone.adapters.0.alpha=8')
    assert done.code == 0
    told = r'c\.pth was trained with another model\.backbone\.adapters\.0\.alpha \(4 and 8\)'
    assert re.search(told, done.out + done.err)


def test_extract_compares_names_and_shapes(capfd, runs, tmp_path, data):
    """Of a checkpoint without a config, too, and of what trains: not only of what is frozen."""
    state = safe_files.read(runs('deep') / 'work/iter_2.pth')['state_dict']
    leaf, out = runs('deep') / 'leaf.py', tmp_path / 'd.safetensors'
    for change, told in (
        (lambda s: s.pop('decode_head.conv_seg.bias'),
         r'1 tensors lack \(decode_head\.conv_seg\.bias\)'),
        (lambda s: s.update({'decode_head.more': torch.zeros(1)}), r'1 tensors are too many \('),
        (lambda s: s.update({'backbone.prompt.tokens': torch.zeros(2, 3, 32)}),
         r'1 tensors are of other shapes \(backbone\.prompt\.tokens \(2, 3, 32\) instead of \('),
    ):
        changed = dict(state)
        change(changed)
        torch.save(changed, tmp_path / 'bare.pth')
        done = run_tool(capfd, 'delta', 'extract', tmp_path / 'bare.pth', out, '--config', leaf)
        assert done.code == 2 and re.search(f'not of this config: {told}', done.err), done.err
    assert not out.exists()
    torch.save(dict(state), tmp_path / 'bare.pth')
    done = run_tool(capfd, 'delta', 'extract', tmp_path / 'bare.pth', out, '--config', leaf)
    assert (done.code, done.err) == (0, '')


def test_a_merged_file_is_no_delta(capfd, runs, tmp_path):
    delta, merged = tmp_path / 'd.safetensors', tmp_path / 'whole.pth'
    deltas.write(deltas.extract(str(runs('deep') / 'work/iter_2.pth')), delta)
    assert run_tool(capfd, 'delta', 'merge', delta, merged).code == 0
    found = deltas.read(str(merged))
    assert deltas.is_delta(deltas.read(str(delta))) and not deltas.is_delta(found)
    assert 'whole checkpoint' in run_tool(capfd, 'delta', 'info', merged).out
    found['meta']['format'] = deltas.FORMAT  # as it was written before
    assert not deltas.is_delta(found)


STOCK = dict(type='mmpretrain.VisionTransformer', out_type='featmap', patch_size=8,
             out_indices=[0, 1], img_size=(32, 32), final_norm=False, interpolate_mode='bilinear',
             arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64))


@pytest.mark.parametrize('method', ['bias', 'head', 'full'])
def test_merged_checkpoints_fit_stock_classes_strictly(runs, tmp_path, method, mmseg_scope):
    """mmpretrain's ViT in mmseg's EncoderDecoder with mmseg's heads."""
    folder = runs(method)
    merged = deltas.merge(str(folder / 'work/iter_2.pth'))
    ours = building.build_model(config.load(str(folder / 'leaf.py')))
    ours.load_state_dict(merged['state_dict'])
    cfg = config.load(str(folder / 'leaf.py')).model.to_dict()
    cfg.update(type='mmseg.EncoderDecoder', backbone=STOCK)
    cfg['test_cfg'] = dict(mode='whole')
    for head in (cfg['decode_head'], *cfg['auxiliary_head']):
        head.update(type='mmseg.SETRUPHead')
    stock = MODELS.build(cfg)
    assert not any(type(m).__module__.startswith('vpt_dense') for m in stock.backbone.modules())
    stock.load_state_dict(merged['state_dict'], strict=True)
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        a, b = (m.eval().encode_decode(x, [dict(ori_shape=(32, 32), img_shape=(32, 32))])
                for m in (ours, stock))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_info_and_diff(capfd, runs, tmp_path):
    work = runs('deep') / 'work'
    delta = tmp_path / 'd.safetensors'
    deltas.write(deltas.extract(str(work / 'iter_2.pth')), delta)
    for file in (delta, work / 'iter_2.pth'):
        done = run_tool(capfd, 'delta', 'info', file, '--tensors')
        assert (done.code, done.err) == (0, '')
        for needed in ('num_tokens=2', 'timm layout', 'base.pth', 'backbone.prompt.tokens',
                       f'{fingerprint_of(file)} of 28 frozen tensors'):
            assert needed in done.out, needed
    done = run_tool(capfd, 'delta', 'diff', delta, delta)
    assert (done.code, done.out, done.err) == (0, 'no differences\n', '')
    changed = deltas.read(str(delta))
    changed['state_dict']['backbone.prompt.tokens'] += 0.5
    del changed['state_dict']['decode_head.conv_seg.bias']
    changed['meta']['cfg'] = changed['meta']['cfg'].replace('dropout=0.1', 'dropout=0.2')
    deltas.write(changed, tmp_path / 'e.safetensors')
    done = run_tool(capfd, 'delta', 'diff', delta, tmp_path / 'e.safetensors')
    assert (done.code, done.err) == (1, '')
    assert re.search(r'prompt\.tokens: differs by at most 0\.5 \(', done.out)
    assert f'conv_seg.bias: only in {delta}' in done.out
    assert re.search(r'cfg: -.*dropout=0\.1', done.out)
    assert re.search(r'cfg: \+.*dropout=0\.2', done.out)
    assert all('dropout' in line for line in done.out.splitlines()[:-2])


def test_diff_of_weights_alone_and_of_numbers_that_are_none(capfd, runs, tmp_path):
    work = runs('deep') / 'work'
    content = safe_files.read(work / 'iter_2.pth')
    name, other = 'decode_head.conv_seg.bias', 'backbone.prompt.tokens'
    content['state_dict'][name][3] = float('nan')
    safe_files.write(content, tmp_path / 'a.pth')
    # The same weights, another optimizer and other words about them.
    moment = next(k for k, s in content['optimizer']['state'].items() if s.get('momentum_buffer')
                  is not None)
    content['optimizer']['state'][moment]['momentum_buffer'] += 0.25
    content['optimizer']['param_groups'][0]['lr'] = 0.75
    content['meta']['seed'] = 99
    record = Base.from_tensor(content['state_dict'][f'backbone.{KEY}'])
    moved = dataclasses.replace(record, checkpoint='elsewhere.pth')
    content['state_dict'][f'backbone.{KEY}'] = moved.to_tensor()
    safe_files.write(content, tmp_path / 'b.pth')
    paths = [tmp_path / 'a.pth', tmp_path / 'b.pth']
    done = run_tool(capfd, 'delta', 'diff', *paths, '--weights-only')
    assert (done.code, done.out, done.err) == (0, 'no differences\n', '')
    done = run_tool(capfd, 'delta', 'diff', *paths)
    assert done.code == 1 and done.err == ''
    assert 'seed: +99' in done.out and 'elsewhere.pth' in done.out
    assert f'optimizer.state.{moment}.momentum_buffer: differs by at most 0.25' in done.out
    assert re.search(r'optimizer\.param_groups\.0\.lr: .* and 0\.75', done.out)
    content['state_dict'][name][4] = float('nan')
    content['state_dict'][other][0, 0, 0] += 0.5
    moved = dataclasses.replace(record, sha256='0' * 64)
    content['state_dict'][f'backbone.{KEY}'] = moved.to_tensor()
    safe_files.write(content, tmp_path / 'b.pth')
    done = run_tool(capfd, 'delta', 'diff', *paths, '--weights-only')
    lines = done.out.splitlines()
    assert done.code == 1 and len(lines) == 3, done
    assert f'{name}: differs, one is not finite where the other is' in lines
    assert any(line.startswith(f'{other}: differs by at most 0.5 (') for line in lines)
    assert any(line.startswith(f"backbone.{KEY}: sha256: '") for line in lines)


def test_versions_of_the_training_are_in_a_delta(capfd, runs, tmp_path):
    import mmengine
    import mmseg

    import vpt_dense

    delta = tmp_path / 'd.safetensors'
    deltas.write(deltas.extract(str(runs('deep') / 'work/iter_2.pth')), delta)
    versions = dict(vpt_dense=vpt_dense.__version__, torch=torch.__version__,
                    mmengine=mmengine.__version__, mmseg=mmseg.__version__, timm=timm.__version__)
    assert versions.items() <= deltas.read(str(delta))['meta']['versions'].items()
    done = run_tool(capfd, 'delta', 'info', delta)
    for name, version in versions.items():
        assert re.search(rf'^versions .*{name}={re.escape(version)}', done.out, re.MULTILINE)
    # Older checkpoints know two of them.
    old = safe_files.read(runs('deep') / 'work/iter_2.pth')
    del old['meta']['versions']
    safe_files.write(old, tmp_path / 'old.pth')
    found = deltas.extract(str(tmp_path / 'old.pth'))['meta']['versions']
    assert found == {name: versions[name] for name in ('mmengine', 'vpt_dense')}


def fingerprint_of(file: Path) -> str:
    return Base.from_tensor(deltas.read(str(file))['state_dict'][f'backbone.{KEY}']).sha256


@pytest.mark.parametrize(('arguments', 'pattern'), [
    (['extract', '{ckpt}', 'x.pth'], r'x\.pth: deltas are \.safetensors files'),
    (['merge', '{ckpt}', 'x.safetensors'], r'x\.safetensors: a whole checkpoint is a \.pth'),
    (['merge', 'absent.safetensors', 'x.pth'], r'absent\.safetensors: no such file'),
    (['info', '{base}'], r'base\.pth holds no state_dict'),
    (['fold', '{head}', 'x.pth'], r'has no prompt to fold and no adapters'),
])
def test_tool_refuses_in_one_line(capfd, runs, tmp_path, monkeypatch, arguments, pattern):
    monkeypatch.chdir(tmp_path)
    paths = dict(ckpt=runs('deep') / 'work/iter_2.pth', base=runs('deep') / 'base.pth',
                 head=runs('head') / 'work/iter_2.pth')
    done = run_tool(capfd, 'delta', *[a.format(**paths) for a in arguments])
    assert done.code in (1, 2) and len(done.err.strip().splitlines()) == 1
    assert re.search(pattern, done.err), done.err
    assert list(tmp_path.iterdir()) == []


# --- the config inside -----------------------------------------------------------------------


@pytest.mark.parametrize('name', [
    'vpt/setr_vit-l_deep_ade20k', 'vpt/setr_vit-l_bias_ade20k', 'vpt/vit-b_deep_cifar100',
    'vpt/upernet_swin-b_full_ade20k', 'demo/setr_deep-bias_digits'])  # keys that are no names
def test_stored_configs_are_read_as_mmengine_reads_them(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    found = stored_config.parse(cfg.pretty_text, 'x.pth')
    theirs = Config.fromstring(cfg.pretty_text, '.py')
    assert found.to_dict() == theirs.to_dict()


@pytest.mark.parametrize('text', [
    "model = dict(type=__import__('os').system('touch ran'))",
    "import os\nmodel = dict()",
    "model = [open('ran', 'w') for _ in range(1)]",
    "model = dict(type='os.system', command='touch ran')",
    "model = dict(backbone=dict(type='vpt_dense.X.Y'))",
    "model = dict(**{'type': 'subprocess.Popen'})",
    "model = dict({'type': open('ran', 'w')})",
    "model = dict([('type', 'X')])",
    'model = (',
])
def test_stored_configs_run_no_code(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'x\.pth: the config in it is not plain data.*name its'):
        stored_config.parse(text, 'x.pth')
    assert list(tmp_path.iterdir()) == []


# --- folding ---------------------------------------------------------------------------------

PROMPTS = {
    'deep': DEEP,
    'first layers': dict(DEEP, layer_range=(0, 1), keep_outputs=False),
    'last layers': dict(DEEP, layer_range=(-1, None)),
    'shared': dict(DEEP, shared=True),
    'projection': dict(DEEP, project_dims=8),
}
NOT_FOLDED = {
    'shallow': dict(DEEP, deep=False),
    'kept': dict(DEEP, layer_range=(0, 1)),
}


def prompted(folder: Path, prompt: dict, **kwargs) -> Path:
    """A checkpoint with random weights of the tiny classifier with a prompt."""
    cfg = classifier(folder)
    cfg.model.backbone.update(prompt=prompt, init_cfg=None, **kwargs)
    model = randomise(building.build_model(cfg))
    safe_files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)),
                folder / 'c.pth')
    return folder / 'c.pth'


@pytest.mark.parametrize(('name', 'half'), [*((p, None) for p in PROMPTS), ('deep', 'bfloat16')])
def test_folded_prompts_give_the_same_outputs(capfd, tmp_path, name, half):
    path = prompted(tmp_path, PROMPTS[name], frozen_dtype=half)
    done = run_tool(capfd, 'delta', 'fold', path, tmp_path / 'folded.pth')
    assert (done.code, done.err) == (0, '')
    checkpoint = deltas.read(str(path))
    model = deltas.load(stored_config.parse(checkpoint['meta']['cfg'], 'c'), checkpoint, 'c')
    cfg = Config.fromfile(tmp_path / 'folded.py')
    assert cfg.model.backbone.prompt.type == 'vpt_dense.FoldedPrompt'
    folded = building.build_model(cfg)
    state = safe_files.read(tmp_path / 'folded.pth')['state_dict']
    assert not any('tokens' in n and 'prompt' in n for n in state)
    folded.load_state_dict(state, strict=True)
    assert not any(p.requires_grad for p in folded.backbone.parameters())
    for size in (32, 48):
        x = images(2, 3, size, size)
        with torch.no_grad():
            a, b = (m.eval().extract_feat(x)[0] for m in (model, folded))
            plain = tiny_backbone(prompt=None, out_type='cls_token')
            plain.load_state_dict(
                {n.removeprefix('backbone.'): t.float() for n, t in state.items()
                 if n.startswith('backbone.') and '.prompt.' not in n})
            c = plain.eval()(x)[0]
        tolerance = 1e-6 if half is None else 2e-2
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert (a - c).abs().max() > 0.05  # prompts matter


@pytest.mark.parametrize('name', NOT_FOLDED)
def test_prompts_that_flow_on_are_not_folded(capfd, tmp_path, name):
    path = prompted(tmp_path, NOT_FOLDED[name])
    done = run_tool(capfd, 'delta', 'fold', path, tmp_path / 'folded.pth')
    assert re.search('block 0 flow on.*merge', done.err) and done.code in (1, 2)
    assert not (tmp_path / 'folded.pth').exists()


# --- published sizes -------------------------------------------------------------------------


def test_setr_vpt_deep_takes_54_megabytes_instead_of_1270():
    """13,389,400 trained parameters; the rest of what is kept are batch-norm statistics."""
    cfg = config.load(str(CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py'))
    model = building.build_model(cfg, 'meta')
    state = model.state_dict()
    kept = {
        n: t for n, t in state.items()
        if n.removeprefix('backbone.') not in model.backbone.frozen_names
    }
    names = dict(model.named_parameters())
    assert sum(t.numel() for n, t in kept.items() if n in names) == 13_389_400
    assert all(n.split('.')[-1] in ('running_mean', 'running_var', 'num_batches_tracked')
               for n in kept if n not in names)
    assert round(deltas.size(kept) / 1e6, 1) == 53.6
    assert round(deltas.size(state) / 1e6, -1) == 1270

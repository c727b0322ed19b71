"""vpt_dense.MultiTask: mixed batches are each task alone, in one pass over the frozen weights."""

import copy
import math
import threading
from contextlib import nullcontext
from pathlib import Path

import methods
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods import BACKBONES, CASES
from mmengine.registry import DefaultScope
from plain_models import FAMILIES, SMALL
from test_deltas import classifier, leaf_of, save_base
from test_predict import picture
from tool_helpers import forget_runs, tiny_folder
from torch.overrides import TorchFunctionMode
from utils import images, randomise

import vpt_dense
from vpt_dense import building, config, safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.multitask import lockstep, structures
from vpt_dense.multitask import model as multitask_model
from vpt_dense.multitask.model import MultiTask, parse_bytes

OPTIONS = dict(img_size=64, model_options=SMALL, pretrained=False)
#: One of each kind: what flows on, keys and values, hooks, places in blocks, images, own weights.
SOME = ('linear', 'shallow', 'deep', 'deep, last 2', 'prefix', 'lora', 'lora-qv', 'adaptformer',
        'ssf', 'rein', 'pad', 'bias', 'layernorm', 'partial-1')  # fmt: skip
OF_CONVOLUTIONS = ('linear', 'bias', 'pad', 'partial-1_convnext-b', 'lor-vp')


def on(base: torch.nn.Module, model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A tuned backbone at random, with the frozen weights of another."""
    randomise(model, seed).eval()
    state, frozen = model.state_dict(), base.state_dict()
    with torch.no_grad():
        for name in model.frozen_names:
            if name in frozen and frozen[name].shape == state[name].shape:
                state[name].copy_(frozen[name])
    return model


def check_table(family: str, task: str, rows: tuple[str, ...]) -> None:
    """A batch over many methods, in any order, against each method alone."""
    base = methods.build('linear', family, task).double()
    together, alone, batch = MultiTask(base), {}, []
    for k, name in enumerate(rows):
        model = on(base, methods.build(name, family, task).double(), k + 1)
        pixels = images(1 + k % 2, 3, *BACKBONES[family].size, seed=k).double()
        with torch.no_grad():
            alone[name] = model(pixels)
        together.add(name, model)
        if k < 3:  # one task is bit for bit itself
            for i, outs in enumerate(together(pixels, [name] * len(pixels))):
                assert all(map(torch.equal, outs, [each[i] for each in alone[name]])), name
        batch += [(name, i, pixels[i]) for i in range(len(pixels))]
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0)).tolist()
    batch = [batch[i] for i in order]
    stacked, names = torch.stack([image for *_, image in batch]), [name for name, *_ in batch]
    for enough, allowed in (math.inf, 1e-10), (0, 1e-12):  # in lockstep, in turn
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(multitask_model, 'ENOUGH_PIXELS', enough)
            found = together(stacked, names)
        for (name, i, _), outs in zip(batch, found, strict=True):
            assert len(outs) == len(alone[name])
            for out, expected in zip(outs, alone[name], strict=True):
                assert (out - expected[i]).abs().max() < allowed, name


@pytest.mark.parametrize('family, task, rows', [
    ('vit', 'cls', SOME), ('dinov3', 'seg', SOME), ('swin', 'seg', SOME),
    ('convnext', 'cls', OF_CONVOLUTIONS)], ids=lambda each: each if isinstance(each, str) else '')
def test_a_mixed_batch_is_each_task_alone(family, task, rows):
    check_table(family, task, rows)


@pytest.mark.slow
@pytest.mark.parametrize('family, task', [
    ('vit', 'seg'), ('swin', 'cls'), ('dinov3', 'cls'), ('convnext', 'seg')])
def test_all_methods_in_one_batch(family, task):
    rows = [name for name, *other in CASES if other == [family, task] and name != 'full']
    assert len(rows) > 5
    check_table(family, task, tuple(rows))


class Counter(TorchFunctionMode):
    """Counts products with shared weights, and their rows."""

    def __init__(self, together: MultiTask) -> None:
        super().__init__()
        self.places, self.calls, self.rows = together.frozen.places, 0, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and args[1].untyped_storage().data_ptr() in self.places:
            self.calls += 1
            self.rows += args[0].numel() // args[0].shape[-1]
        return func(*args, **(kwargs or {}))


def plain(method: str, base: torch.nn.Module | None = None, seed: int = 0, **options):
    model = vpt_dense.create_backbone(FAMILIES['dinov3'], method, **OPTIONS, **options)
    return randomise(model, seed).eval() if base is None else on(base, model, seed)


@pytest.fixture(scope='module')
def base():
    return plain('head')


@pytest.mark.parametrize('method', ['deep', 'shallow', 'lora', 'ssf', 'bias'])
def test_each_frozen_weight_is_multiplied_once(base, method):
    together = MultiTask(base, {str(i): plain(method, base, i) for i in range(4)})
    pixels = images(4, 3, 64, 64)
    with Counter(together) as alone, torch.no_grad():
        together._find('0').structure.any()(pixels)
    with Counter(together) as mixed:
        together(pixels, ['0', '1', '2', '3'])
    assert alone.calls > 10
    assert mixed.calls == alone.calls
    # A task's own keys and values of prompts are few rows more.
    assert alone.rows <= mixed.rows <= 1.4 * alone.rows


def test_one_image_passes_common_blocks_once(base):
    """Four blocks; the last one is tuned."""
    rows = {}
    for k in (1, 4):
        tasks = {str(i): plain('deep', base, i, layer_range=(3, None)) for i in range(k)}
        together, pixels = MultiTask(base, tasks), images(1, 3, 64, 64)
        with Counter(together) as seen:
            (found,) = together(pixels, [list(tasks)])
        rows[k] = seen.rows
        for name, model in tasks.items():
            with torch.no_grad():
                assert (found[name] - model(pixels)[0]).abs().max() < 1e-5
        assert {plan.first_block for plan in together.plan([list(tasks)]).values()} == {3}
    common = 3 * 4 * 21  # blocks, layers of one, tokens
    assert rows[4] == common + 4 * (rows[1] - common)
    assert len({tuple(each.tolist()) for each in found.values()}) == 4


@pytest.mark.parametrize('enough', [4 * 64 * 64, 4 * 64 * 64 + 1], ids=['in turn', 'lockstep'])
def test_tasks_of_many_pixels_wait_for_nobody(base, enough, monkeypatch):
    """Four images for each task; three of four blocks are common to all."""
    monkeypatch.setattr(multitask_model, 'ENOUGH_PIXELS', enough)
    tasks = {name: plain(name, base, 1, **options) for name, options in {
        'deep': dict(layer_range=(3, None)), 'lora': dict(targets=[r'blocks\.3\..*fc2$']),
        'head': {}}.items()}
    together, pixels, passed = MultiTask(base, tasks), images(4, 3, 64, 64), []
    kind = type(base.blocks[0].mlp)
    forward = kind.forward
    monkeypatch.setattr(kind, 'forward', lambda self, *args, **kwargs: (
        passed.append(threading.get_ident()), forward(self, *args, **kwargs))[1])
    cut, convolve = [], F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *args, **kwargs: (
        cut.append(1), convolve(*args, **kwargs))[1])
    # As one tensor, and as a list of images.
    for batch in (pixels, [each.clone() for each in pixels]):
        passed.clear(), cut.clear()
        found = together(batch, [list(tasks)] * 4)
        assert len(passed) == 3 + 3  # the common ones, and the last one of each task
        assert len(cut) == 1 or enough > 4 * 64 * 64
        assert (set(passed) == {threading.get_ident()}) == (enough == 4 * 64 * 64)
        for name, tuned in tasks.items():
            with torch.no_grad():
                alone = tuned(pixels)
            same = [torch.equal(out[name], each) for out, each in zip(found, alone, strict=True)]
            gaps = [(out[name] - each).abs().max() for out, each in zip(found, alone, strict=True)]
            assert all(same) if enough == 4 * 64 * 64 else max(gaps) < 1e-5


@pytest.mark.parametrize('half', [False, True])
def test_tasks_in_turn_are_watched_where_weights_may_be_cast(base, half, monkeypatch):
    monkeypatch.setattr(multitask_model, 'ENOUGH_PIXELS', 0)
    frozen = copy.deepcopy(base)
    if half:
        frozen.to(torch.bfloat16)
    together = MultiTask(frozen, {name: plain(name, frozen, 1) for name in ('deep', 'lora')})
    watched = []
    monkeypatch.setattr(lockstep, 'Watch', lambda meeting: (watched.append(1), nullcontext())[1])
    together(images(1, 3, 64, 64).to(torch.bfloat16 if half else torch.float32), [['deep', 'lora']])
    assert bool(watched) == half


def test_sharing_sees_what_acts_early(base):
    """Blocks are shared up to the first that a task changes, by whatever means."""
    tuned = {
        'head': 4, 'deep': 0, 'lora': 0, 'ssf': 0, 'bias': 0, 'partial-1': 3, 'lor-vp': 0, 'add': 0,
        'rein': 0, 'prefix': 0}  # fmt: skip
    together = MultiTask(base, {name: plain(name, base, 1) for name in tuned})
    together.add('late', plain('lora', base, 2, targets=[r'blocks\.2\..*fc2$']))
    plan = together.plan([[*tuned, 'late']])
    assert {name: part.first_block for name, part in plan.items()} == {**tuned, 'late': 2}
    assert plan['partial-1'].own_layers and not plan['deep'].own_layers
    assert all(name.startswith('blocks.3.') for name in plan['partial-1'].own_layers)


def test_images_of_any_sizes_and_half_precision(base):
    tasks = {name: plain(name, base, i) for i, name in enumerate(('deep', 'lora', 'bias', 'ssf'))}
    together = MultiTask(base, tasks)
    mixed = [images(1, 3, 64, 16 * (2 + i), seed=i)[0] for i in range(4)]
    for half in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            found = together(mixed, list(tasks))
            for image, out, model in zip(mixed, found, tasks.values(), strict=True):
                with torch.no_grad():
                    expected = model(image[None])[0]
                scale = expected.abs().max()
                assert (out - expected).abs().max() <= (2e-2 if half else 1e-5) * scale
        assert not torch.is_autocast_enabled('cpu')


def test_nothing_of_the_backbone_is_copied(base):
    pointers = {t.data_ptr() for t in base.state_dict().values()}
    together = MultiTask(base)
    before = together.nbytes
    model = plain('deep', base, 1)
    own = model.prompt.tokens.nbytes
    together.add('a', model)
    assert together.nbytes - before == own
    held = {t.data_ptr() for n, t in model.state_dict().items() if not n.startswith('prompt')}
    assert held == pointers


# --- files -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Files of a segmentor, a classifier and a backbone; the weights are in a file too."""
    folder = tmp_path_factory.mktemp('plain')
    weights = str(folder / 'base.pth')
    torch.save(plain('head').state_dict(), weights)
    options = dict(OPTIONS, pretrained=True, checkpoint=weights)
    name = FAMILIES['dinov3']
    for key, model in dict(
        roads=vpt_dense.create_segmentor(name, 4, 'deep', indices=[1, 3], **options),
        cells=vpt_dense.create_segmentor(name, 2, 'deep', indices=[1, 3], **options),
        brain=vpt_dense.create_classifier(name, 3, 'lora', **options),
        heart=vpt_dense.create_classifier(name, 3, 'lora', **options),
        plain=vpt_dense.create_backbone(name, 'bias', **options),
    ).items():
        randomise_tuned(model, len(key))
        vpt_dense.save_delta(model, folder / f'{key}.safetensors')
    return folder


def randomise_tuned(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def names_of(folder: Path) -> dict[str, str]:
    return {path.stem: str(path) for path in sorted(folder.glob('*.safetensors'))}


@pytest.mark.slow
def test_files_of_plain_pytorch(files, monkeypatch):
    pixels = images(5, 3, 64, 64)
    paths = names_of(files)
    alone = {name: vpt_dense.load(path) for name, path in paths.items()}
    together = MultiTask(paths['plain'], paths)
    with torch.no_grad():
        for name, out in zip(paths, together(pixels, list(paths)), strict=True):
            (expected,) = alone[name](pixels[list(paths).index(name)][None])
            assert out.shape == expected.shape and (out - expected).abs().max() < 1e-5
    arrays = [np.random.default_rng(i).integers(0, 256, (70, 60, 3)).astype(np.uint8)
              for i in range(4)]  # fmt: skip
    found = together.predict(arrays, ['brain', 'roads', ['cells', 'roads'], 'heart'])
    assert torch.equal(found[1], alone['roads'].predict(arrays[1]))
    assert torch.equal(found[2]['cells'], alone['cells'].predict(arrays[2]))
    assert torch.equal(found[2]['roads'], alone['roads'].predict(arrays[2]))
    for i, name in ((0, 'brain'), (3, 'heart')):
        assert (found[i] - alone[name].predict(arrays[i])).abs().max() < 1e-6
    with pytest.raises(UserError, match=r"task plain: a VisionTransformer|task plain: a Eva"):
        together.predict(arrays[:1], ['plain'])
    # Tasks of one structure are lent the same model, or as many as run together.
    (of_two,) = {id(together._find(name).structure) for name in ('brain', 'heart')}
    assert of_two != id(together._find('roads').structure)


@pytest.mark.slow
def test_a_cache_reads_again_what_was_let_go(files, tmp_path):
    paths = names_of(files)
    alone = {name: vpt_dense.load(path) for name, path in paths.items()}
    sizes = {name: MultiTask(paths['plain'], {name: path}).cache_info()['bytes']
             for name, path in paths.items()}  # fmt: skip
    limit = sizes['roads'] + sizes['brain'] + sizes['heart']
    moved = tmp_path / 'heart.safetensors'
    moved.write_bytes(Path(paths['heart']).read_bytes())
    together = MultiTask(paths['plain'], cache=limit)
    together.add('roads', paths['roads'], pinned=True)
    for name in ('brain', 'cells'):
        together.add(name, paths[name])
    together.add('heart', moved)
    pixels = images(1, 3, 64, 64)
    for name in ('heart', 'brain', 'cells', 'heart', 'roads', 'brain'):
        with torch.no_grad():
            assert (together(pixels, [name])[0] - alone[name](pixels)[0]).abs().max() < 1e-5
        info = together.cache_info()
        assert info['bytes'] <= info['limit'] == limit
    assert together._tasks['roads'].task is not None
    assert info['misses'] and info['hits'] and info['misses'] + info['hits'] == 6
    for name in ('brain', 'cells'):
        together(pixels, [name])
    moved.unlink()
    with pytest.raises(UserError, match=r'heart\.safetensors'):
        for _ in range(2):
            together(pixels, ['cells'])
            together(pixels, ['brain'])
            together(pixels, ['heart'])
    with pytest.raises(UserError, match='more than cache=10; give it more, or pin less'):
        MultiTask(paths['plain'], cache=10).add('a', paths['brain'], pinned=True)


def test_bytes():
    assert [parse_bytes(each) for each in ('512MB', '1.5 GB', '2KB', 7)] == [
        512 * 10**6, 15 * 10**8, 2000, 7]
    for wrong in ('512', '1TB', -1, 2.5, True):
        with pytest.raises(UserError, match='cache must be a number of bytes'):
            parse_bytes(wrong)


@pytest.fixture(scope='module')
def configured(tmp_path_factory):
    """Checkpoints of runs of two configs on the same weights, and images."""
    folder = tmp_path_factory.mktemp('configured')
    data = tiny_folder(folder / 'data')
    save_base(folder / 'base.pth')
    head = leaf_of(folder, 'head', data)
    cfgs = dict(roads=config.load(str(leaf_of(folder, 'deep', data))), flowers=classifier(folder))
    (folder / 'other').mkdir()
    save_base(folder / 'other/base.pth', seed=1)
    cfgs['other'] = classifier(folder / 'other')
    cfgs['bias'] = config.load(str(head), dict(
        model=dict(backbone=dict(trainable=['bias$']))))
    for k, (name, cfg) in enumerate(cfgs.items()):
        model = building.build_model(cfg)
        model.init_weights()
        randomise_tuned(model, k)
        meta = dict(cfg=cfg.pretty_text, iter=2)
        if name in ('flowers', 'other'):
            meta['dataset_meta'] = dict(classes=['iris', 'lily', 'rose'])
        checkpoint = dict(state_dict=model.state_dict(), meta=meta)
        deltas.reduce(model, checkpoint)
        safe_files.write(checkpoint, folder / f'{name}.pth')
    forget_runs()
    for i in range(3):
        picture(folder / 'pictures' / f'{i}.png', (32, 32), i)
    return folder


@pytest.mark.slow
def test_tasks_of_configs(configured):
    names = ('roads', 'flowers', 'bias')
    paths = {name: str(configured / f'{name}.pth') for name in names}
    pictures = [str(configured / 'pictures' / f'{i}.png') for i in range(3)]
    alone = {name: vpt_dense.load(path) for name, path in paths.items()}
    scope = dict(DefaultScope._instance_dict)
    together = MultiTask(paths['flowers'], paths)
    found = together.predict(pictures, ['roads', list(names), 'flowers'], probabilities=True)
    assert DefaultScope._instance_dict == scope
    for i, name, result in (
        (0, 'roads', found[0]), (1, 'roads', found[1]['roads']), (1, 'bias', found[1]['bias'])):
        expected = alone[name].predict(pictures[i], probabilities=True)
        assert np.abs(result.probabilities - expected.probabilities).max() < 1e-5
        assert (result.labels == expected.labels).mean() > 0.999
        assert result.classes == expected.classes
    for i, result in ((1, found[1]['flowers']), (2, found[2])):
        expected = alone['flowers'].predict(pictures[i])
        assert result.label == expected.label and result.classes == ('iris', 'lily', 'rose')
        np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-6)
    assert np.ptp(found[0].probabilities, axis=(1, 2)).max() > 1e-4  # places differ
    assert len(expected.probabilities) == 3
    pixels = images(2, 3, 32, 32)
    labels, scores = together(pixels, ['roads', 'flowers'])
    assert labels.shape[1:] == (32, 32) and scores.shape == (3,)
    with pytest.raises(UserError, match='no such file'):
        together.predict(['absent.png', pictures[0]], ['roads', 'flowers'])
    assert together.predict(pictures[:1], ['flowers'])[0].classes == ('iris', 'lily', 'rose')


def test_images_of_one_size_pass_together(configured, tmp_path, monkeypatch):
    """In their order, whatever stands between them; a message has their own numbers."""
    path = str(configured / 'roads.pth')
    alone, together = vpt_dense.load(path), MultiTask(path, dict(roads=path))
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*size, 3), dtype=np.uint8)
              for size in ((32, 40), (40, 32), (32, 40), (40, 32), (32, 40))]
    sizes, step = [], type(alone.model).test_step
    monkeypatch.setattr(type(alone.model), 'test_step', lambda self, data: sizes.append(
        len(data['inputs'])) or step(self, data))
    found = together.predict(arrays, ['roads'] * 5, probabilities=True)
    assert sizes == [3, 2]
    wanted = alone.predict(arrays, probabilities=True)
    assert sizes == [3, 2, 1, 1, 1, 1, 1]  # the batch size of the config
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
        assert (one.labels == other.labels).mean() > 0.999 and one.labels.shape in (
            (32, 40), (40, 32))
    monkeypatch.setattr('vpt_dense.predicting.model.PLAIN_BYTES', 4 * 150 * 32 * 40 * 4 * 2)
    sizes.clear()
    together.predict(arrays, ['roads'] * 5)
    assert sizes == [2, 1, 2]  # so many fit
    with pytest.raises(UserError, match=r'images\[4\]: arrays and tensors must be uint8'):
        together.predict([*arrays[:4], arrays[4] / 255], ['roads'] * 5)


@pytest.mark.slow
def test_a_task_of_a_config_predicts_by_scores_from_elsewhere(configured):
    picture = str(configured / 'pictures/0.png')
    for name in ('roads', 'flowers'):
        path = str(configured / f'{name}.pth')
        together, alone = MultiTask(path, {name: path}), vpt_dense.load(path)
        task = together._find(name)

        def scores(pixels: torch.Tensor, task=task) -> torch.Tensor:
            assert pixels.shape == (1, 3, 32, 32)
            with task.model() as model, torch.no_grad():
                return task.scores(model, pixels)

        (found,) = task.predicting_by(scores)([picture], True)
        expected = alone.predict(picture, probabilities=True)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
        (other,) = task.predicting_by(lambda pixels, s=scores: -s(pixels))([picture], True)
        assert np.abs(other.probabilities - expected.probabilities).max() > 1e-3


def test_other_weights_are_refused(configured, files):
    together = MultiTask(str(configured / 'flowers.pth'))
    with pytest.raises(UserError, match=r'task other .* was tuned on other weights .*SHA-256 of '
                       r'its \d+ frozen tensors is [0-9a-f]{64}, those of this backbone .* have '
                       r'[0-9a-f]{64}'):
        together.add('other', configured / 'other.pth')
    with pytest.raises(UserError, match='was tuned on other weights'):
        MultiTask(plain('head')).add('a', plain('deep', seed=3))
    assert together.tasks == ()


# --- tasks come and go -----------------------------------------------------------------------


def test_refused_in_one_line(base):
    together = MultiTask(base, {'roads': plain('deep', base)})
    pixels = images(2, 3, 64, 64)
    for tasks, told in (
        (['roads', 'road'], r"there is no task 'road'.*roads"),
        (['roads'], 'must be a list of 2 names'),
        ('roads', 'must be a list of 2 names'),
        (['roads', []], r'tasks\[1\] must be a name'),
        (['roads', ['roads', 'roads']], r'tasks\[1\] must be a name'),
    ):
        with pytest.raises(UserError, match=told):
            together(pixels, tasks)
    with pytest.raises(UserError, match='task full: all of its backbone was tuned'):
        together.add('full', plain('full', base))
    with pytest.raises(UserError, match='0 tuned backbones'):
        together.add('other', torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="there is no task 'brain'"):
        together.remove('brain')
    assert together.tasks == ('roads',)


def test_an_error_of_one_task_ends_the_pass_and_nothing_stays(base):
    together = MultiTask(base, {'a': plain('deep', base), 'b': plain('lora', base)})
    before = threading.active_count()
    with pytest.raises(UserError, match='patches of 16x16 do not divide'):
        together([images(1, 3, 64, 64)[0], images(1, 3, 60, 64)[0]], ['a', 'b'])
    assert threading.active_count() == before
    assert len(together(images(2, 3, 64, 64), ['a', 'b'])) == 2


def test_tasks_come_and_go_while_it_runs(base):
    pixels = images(2, 3, 64, 64)
    kept, first, second = (plain('deep', base, seed) for seed in (1, 2, 3))
    with torch.no_grad():
        expected = [model(pixels) for model in (kept, first, second)]
    together = MultiTask(base, {'kept': kept, 'changed': first})
    problems, stop = [], threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                one, two = together(pixels, ['kept', 'changed'])
            except UserError as error:
                if "no task 'changed'" not in str(error):
                    problems.append(error)
                continue
            gaps = [(two - each[1]).abs().max() for each in expected[1:]]
            if (one - expected[0][0]).abs().max() > 1e-5 or min(gaps) > 1e-5:
                problems.append((one, two))

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for model in (second, first) * 4:
        together.add('changed', model)
        together.remove('changed')
        together.add('changed', model)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems


def test_a_model_is_built_without_memory():
    with structures.without_weights():
        model = vpt_dense.create_segmentor(FAMILIES['dinov3'], 3, 'deep', **OPTIONS)
        other = []
        thread = threading.Thread(target=lambda: other.append(torch.nn.Linear(2, 2)))
        thread.start()
        thread.join()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert not other[0].weight.is_meta and not torch.nn.Linear(2, 2).weight.is_meta


def exported(path: Path):
    module = torch.export.load(path).module()
    return lambda pixels, number: module(pixels, torch.tensor(number))


@pytest.mark.slow
def test_tasks_are_exported_with_the_task_as_an_input(base, tmp_path):
    """Methods of each kind, one twice: stacked there, branches else; the frozen weights once."""
    together = MultiTask(base)
    rows = dict(deep=3, lora=4, bias=2)
    for k, (method, classes) in enumerate((*rows.items(), ('lora', 4))):
        model = vpt_dense.create_classifier(FAMILIES['dinov3'], classes, method, **OPTIONS)
        on(base, model.backbone, k)
        randomise_tuned(model.head, k)
        together.add(f'{method}{k}', model)
    names = together.tasks
    card = together.export(tmp_path / 'tasks.pt2', 64)
    assert card['tasks'] == list(names) and card['channels'] == [3, 4, 2, 4]
    pixels, run = images(4, 3, 64, 64), exported(tmp_path / 'tasks.pt2')
    for number, name in enumerate(names):
        scores = run(pixels, number)
        expected = torch.stack(together(pixels, [name] * 4))
        assert (scores[:, :expected.shape[1]] - expected).abs().max() < 1e-5
        assert scores.shape == (4, 4) and scores[:, expected.shape[1]:].eq(-torch.inf).all()
    held = torch.export.load(tmp_path / 'tasks.pt2').state_dict.values()
    assert sum(tensor.nbytes for tensor in held) < 1.02 * together.nbytes
    with pytest.raises((IndexError, RuntimeError)):
        run(pixels, len(names))


@pytest.mark.slow
def test_tasks_of_one_structure_are_stacked(files, configured, tmp_path):
    paths = {name: str(files / f'{name}.safetensors') for name in ('brain', 'heart', 'roads')}
    together = MultiTask(paths['brain'], paths)
    together.export(tmp_path / 'two.pt2', (64, 64), ['heart', 'brain'])
    assert {path.name for path in tmp_path.iterdir()} == {'two.pt2'}
    graph = torch.export.load(tmp_path / 'two.pt2')
    assert not any(node.target is torch.ops.higher_order.cond for node in graph.graph.nodes)
    pixels, run = images(3, 3, 64, 64), exported(tmp_path / 'two.pt2')
    for number, name in enumerate(('heart', 'brain')):
        expected = torch.stack(together(pixels, [name] * 3))
        assert (run(pixels, number) - expected).abs().max() < 1e-5
    for said, words in (
        (dict(), r'task brain are one for each class, those of roads maps of 64x64; write'),
        (dict(tasks=['braim']), "no task 'braim'.*brain"), (dict(tasks='brain'), 'different names'),
        (dict(size=0), 'size must be'), (dict(out='x.pth'), r'ending .onnx or .pt2'),
        (dict(tasks=[]), 'there are no tasks')):
        said = dict(dict(out='x.pt2', size=64), **said)
        with pytest.raises(UserError, match=words):
            together.export(tmp_path / said.pop('out'), **said)
    assert {path.name for path in tmp_path.iterdir()} == {'two.pt2'}


@pytest.mark.slow
def test_tasks_of_configs_are_exported(configured, tmp_path):
    names = ('roads', 'bias')
    together = MultiTask(str(configured / 'roads.pth'), {
        name: str(configured / f'{name}.pth') for name in names})
    with pytest.raises(UserError, match=r'windows of 32x32 pixels .*; take size=\(32, 32\)'):
        together.export(tmp_path / 'tasks.pt2', 48)
    together.export(tmp_path / 'tasks.pt2', 32)
    pixels, run = images(2, 3, 32, 32), exported(tmp_path / 'tasks.pt2')
    for number, name in enumerate(names):
        expected = torch.stack(together(pixels, [name] * 2))
        assert expected.ndim == 4
        assert (run(pixels, number) - expected).abs().max() < 1e-5

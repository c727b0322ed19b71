"""Method x backbone x task: what holds for every row of the table in tests/methods.py."""

import copy
import functools
import re

import pytest
import torch
from methods import (
    BACKBONES,
    CASES,
    COLUMNS_ARE_LONG,
    FAMILIES,
    GRAPH_PARAMS,
    KIN,
    OF_VARIANTS,
    ROWS,
    TIMM,
    build,
    build_at_start,
    few_blocks,
)
from mmengine.config import Config
from mmengine.registry import MODELS
from safetensors.torch import save_file
from torch import nn
from utils import CONFIGS, images, randomise

from vpt_dense import safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.tuning import ADDED, is_added
from vpt_dense.weights.base import KEY


def params(cases: list[tuple[str, str, str]], quick: bool = False) -> list:
    """These rows. Of timm's first family one task is quick; of all of them with ``quick``, which
    leaves the other task of every family but the first to the slow ones. Of :data:`KIN` few are.
    """
    def is_slow(name: str, family: str, task: str) -> bool:
        last = task == ROWS[name].tasks[-1]
        if name in KIN and family != 'vit' and (family != 'swin' or not last):
            return True
        if quick:
            return family != 'vit' and not last
        return family in TIMM and not (last and family not in COLUMNS_ARE_LONG)

    def mark(name: str, family: str, task: str) -> object:
        later = pytest.mark.long if family in COLUMNS_ARE_LONG else pytest.mark.slow
        return later if is_slow(name, family, task) else ()

    return [pytest.param(*c, marks=mark(*c)) for c in cases]


def rows(*args, **kwargs) -> pytest.MarkDecorator:
    """A mark: the :func:`params`."""
    return pytest.mark.parametrize(('name', 'family', 'task'), params(*args, **kwargs))


def share(rows: list) -> pytest.MarkDecorator:
    """A mark: these rows, each with its model, for tests that leave it as it is.

    They run one after the other for a row, so that it is built once, and not first one of them for
    all rows.
    """
    return pytest.mark.parametrize(
        'built', [pytest.param(p.values, marks=p.marks, id='-'.join(p.values)) for p in rows],
        indirect=True)


@pytest.fixture(scope='module')
def built(request):
    """A row, and its model in float64."""
    return *request.param, build(*request.param).double()


case, shared = rows(CASES), share(params(CASES))
TRAINED = [c for c in CASES if ROWS[c[0]].counts(*c[1:]) != {0}]
OF_TIMM = [c for c in CASES if c[1] in TIMM]
PLAIN = [(family, task) for family, kind in FAMILIES.items() for task in kind.tasks]


def batch(family: str, number: int = 2, **kwargs) -> torch.Tensor:
    return images(number, 3, *BACKBONES[family].size, **kwargs)


def total(outs: tuple[torch.Tensor, ...], seed: int = 5) -> torch.Tensor:
    """A number that depends on every output, as a loss does."""
    generator = torch.Generator().manual_seed(seed)
    return sum(
        (out * torch.randn(out.shape, generator=generator).to(out)).sum() / len(out)
        for out in outs
    )


def penalty(model: nn.Module) -> torch.Tensor | float:
    """What the prompt of a model adds to its loss."""
    prompt = getattr(model, 'prompt', None)
    return 0.0 if prompt is None else sum(prompt.penalties().values())


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@share(params(CASES) + [
    pytest.param(*c, marks=pytest.mark.long if c[0] in KIN else ()) for c in OF_VARIANTS])
def test_gradients_are_exactly_on_what_trainable_names(built):
    name, family, task, model = built
    row = ROWS[name]
    model.train().zero_grad()
    added = {n.split('.')[0] for n, _ in model.named_parameters() if is_added(n)}
    patterns = row.tuning.get('trainable')
    if patterns is None:
        patterns = [rf'^{part}\.' for part in added]
    names = {n for n, _ in model.named_parameters()}
    wanted = {n for n in names if any(re.search(p, n) for p in patterns)}
    if any(p.startswith(('last:', 'partial:')) for p in patterns):  # test_adapters.py names them
        wanted = set(parameters(model))
    assert parameters(model).keys() == wanted
    assert row.counts(family, task) == {sum(p.numel() for p in parameters(model).values())}
    outs = model(batch(family, dtype=torch.float64))
    assert all(out.isfinite().all() for out in outs)
    if wanted:
        (total(outs) + penalty(model)).backward()
    else:
        assert not any(out.requires_grad for out in outs)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == wanted
    dead = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    for n, p in parameters(model).items():  # of every block, where one parameter holds all
        if is_added(n) and p.ndim > 2 and '.features.' not in n:  # AlexNet's ReLUs may be shut
            dead += [f'{n}[{i}]' for i, own in enumerate(p.grad) if not own.any()]
    assert dead == []


@shared
def test_a_batch_of_three_is_three_batches_of_one(built):
    _, family, _, model = built
    model.eval()
    x = batch(family, 3, dtype=torch.float64)
    single = [model(image[None]) for image in x]
    for i, whole in enumerate(model(x)):
        torch.testing.assert_close(whole, torch.cat([outs[i] for outs in single]))


@functools.cache
def plain_shapes(family: str, task: str, *size: int) -> list[torch.Size]:
    plain = build_at_start({}, family, task).eval()
    return [out.shape for out in plain(images(2, 3, *size))]


@shared
def test_maps_and_vectors_have_the_shapes_of_the_plain_backbone(built):
    _, family, task, model = built
    height, width = BACKBONES[family].size
    sizes = [(height, width)] if task == 'cls' else [(height, width), (2 * height, width)]
    for size in sizes:
        x = images(2, 3, *size, dtype=torch.float64)
        assert [out.shape for out in model.eval()(x)] == plain_shapes(family, task, *size)


@shared
def test_the_frozen_base_stays_in_eval_mode(built):
    *_, model = built
    assert model.train() is model and model.training
    frozen = any(not p.requires_grad for n, p in model.named_parameters() if not is_added(n))
    assert model.base_is_frozen == frozen
    assert not any(map(is_added, model.frozen_names))  # a checkpoint holds them, trained or not
    for child, module in model.named_children():
        modes = {part.training for part in module.modules()}
        # timm's augmentation of places is of the training, not of the weights: it knows none.
        assert modes == {child in ADDED or child == 'rope' or not frozen}, child
    assert model.eval() is model and not any(module.training for module in model.modules())


# Not where weights are rounded: a step of this size moves few to another level.
@rows([c for c in TRAINED if c[0] != 'bi-lora'])
def test_one_step_lowers_the_loss(name, family, task):
    model = build(name, family, task).double().train()
    trained = parameters(model)
    x = batch(family, dtype=torch.float64)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)  # the same dropout masks
        return total(model(x)) + penalty(model)

    before = loss()
    before.backward()
    norm = torch.stack([p.grad.norm() for p in trained.values()]).norm()
    assert norm > 0
    with torch.no_grad():
        for parameter in trained.values():
            parameter -= 1e-5 * parameter.grad / norm
    fall = (before - loss()).item()
    assert fall == pytest.approx(1e-5 * norm.item(), rel=0.1)


@case
def test_bf16_autocast_forward(name, family, task):
    model = build(name, family, task).eval()
    x = batch(family)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            rounded = model(x)
    for one, other in zip(exact, rounded, strict=True):
        assert other.isfinite().all()
        assert (other - one).norm() / one.norm() < 0.06


@pytest.mark.parametrize(('name', 'family', 'task'), GRAPH_PARAMS)
def test_compiled_forward(name, family, task):
    model = build(name, family, task, **few_blocks(family, task, name))
    model = model.double().eval()  # large random features round too much
    x = batch(family, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend='aot_eager')
    # A graph with gradients has all that one without has, and families share what decides it.
    for train in (False, True) if family == 'vit' else (True,):
        with torch.set_grad_enabled(train):
            for one, other in zip(model(x), compiled(x), strict=True):
                torch.testing.assert_close(one, other)


@rows([c for c in CASES if ROWS[c[0]].starts_equal])
def test_it_starts_as_the_backbone_without_it(name, family, task):
    plain = randomise(build_at_start({}, family, task)).eval()
    model = build_at_start(ROWS[name].tuning, family, task).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert all(map(is_added, missing)) and not unexpected
    x = batch(family)
    for one, other in zip(plain(x), model(x), strict=True):
        # Of parts of queries, keys and values the products are others: rounding.
        if family == 'dinov3' and name in ('lora-qv', 'pissa-qv', 'soma', 'vera'):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        else:
            assert torch.equal(one, other)


@rows([c for c in CASES if ROWS[c[0]].merges], quick=True)
def test_merged_it_is_equal_and_adds_nothing(name, family, task):
    model = build(name, family, task).eval()
    if name in FAMILIES[family].unmergeable:
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=FAMILIES[family].unmergeable[name]):
            model.adapters[0].merge(model)
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        return
    x = batch(family)
    with torch.no_grad():
        before = model(x)
        for adapter in model.adapters:
            adapter.merge(model)
        merged = {n: t for n, t in model.state_dict().items() if not is_added(n)}
        plain = build_at_start({}, family, task).eval()
        plain.load_state_dict(merged)  # strictly: no tensor more or less
        for one, other in zip(before, plain(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    exact = build(name, family, task).double().eval()
    x = x.double()
    with torch.no_grad():
        before = exact(x)
        for adapter in exact.adapters:
            adapter.merge(exact)
        for one, other in zip(before, exact(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


#: How the same is computed in another way.
WAYS = dict(tokens=dict(prompts_as='tokens'), lean=dict(memory='lean'), block=dict(with_cp=True))


@rows(OF_TIMM)
def test_every_way_to_compute_is_equal_and_leaves_the_frozen_base_alone(name, family, task):
    """Features, gradients; and weights after a step of training, by the way that the run takes."""
    x, results = batch(family, dtype=torch.float64), {}
    for way, how in dict(plain={}, **WAYS).items():
        if way == 'tokens' and 'prompt' not in ROWS[name].tuning:
            continue
        model = build(name, family, task, drop_path_rate=0.2, **how).double().train()
        if model.prompt is not None:
            model.prompt.dropout = 0.0  # of tokens, masks would be drawn in another order
        before = copy.deepcopy(model.state_dict()) if way == 'plain' else {}
        torch.manual_seed(3)
        outs = model(x)
        if trained := parameters(model):
            (total(outs) + penalty(model)).backward()
            torch.optim.AdamW(trained.values(), lr=0.1, weight_decay=0.1).step()
        results[way] = outs, {n: p.grad for n, p in trained.items()}
        moved = {n for n, t in before.items() if not torch.equal(t, model.state_dict()[n])}
        assert way != 'plain' or moved == trained.keys()
    for found in results.values():
        torch.testing.assert_close(found, results['plain'], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('family', 'task'), [f for f in PLAIN if FAMILIES[f[0]].upstream])
def test_without_a_method_it_is_upstream_bit_for_bit(family, task):
    ours = randomise(build_at_start({}, family, task))
    kind = FAMILIES[family]
    cfg = {**kind.cfg, **kind.tasks[task][0], 'type': kind.upstream}
    if family in ('resnet', 'convnext'):
        del cfg['img_size']  # which an image prompt alone needs
    theirs = MODELS.build(cfg)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for model in (theirs, ours):
        model.train()
        x = batch(family).requires_grad_()
        torch.manual_seed(5)
        outs = model(x)
        total(outs).backward()
        results.append([*outs, x.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize(('name', 'family'), [(n, f) for f in FAMILIES for n in FAMILIES[f].unfit])
def test_what_does_not_fit_says_so(name, family):
    for task in ROWS[name].tasks:
        with pytest.raises(ValueError, match=FAMILIES[family].unfit[name]):
            build(name, family, task)


# --- deltas ----------------------------------------------------------------------------------


class Model(nn.Module):
    """A backbone by the name that it has in classifiers and segmentors."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
    """Pretrained weights of every family and task, under mmpretrain's names."""
    folder = tmp_path_factory.mktemp('bases')
    paths = {}
    for family, task in PLAIN:
        plain = randomise(build_at_start({}, family, task), seed=3)
        paths[family, task] = folder / f'{family}_{task}.safetensors'
        save_file({f'backbone.{n}': t for n, t in plain.state_dict().items()}, paths[family, task])
    return paths


@rows(CASES, quick=True)
def test_a_checkpoint_holds_what_was_tuned_and_comes_back(name, family, task, bases, tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=str(bases[family, task]))
    if 'concat-channel' in name:
        init_cfg['allow_missing'] = []

    def fresh() -> Model:
        return Model(build_at_start(ROWS[name].tuning, family, task, init_cfg=init_cfg))

    model = fresh()
    model.backbone.init_weights()
    with torch.no_grad():
        for parameter in parameters(model.backbone).values():
            parameter += 0.1
    whole = {n: t.clone() for n, t in model.state_dict().items()}
    checkpoint = dict(state_dict=model.state_dict(), meta={})
    deltas.reduce(model, checkpoint)
    stored = set(checkpoint['state_dict'])
    tuned = {n for n in whole if is_added(n.removeprefix('backbone.'))}
    tuned |= {f'backbone.{n}' for n in parameters(model.backbone)}
    if model.backbone.frozen_names:
        assert stored - tuned - {f'backbone.{KEY}'} <= whole.keys() - {
            f'backbone.{n}' for n in model.backbone.frozen_names}  # buffers of what trains
        assert tuned <= stored and f'backbone.{KEY}' in stored
    else:
        assert stored == whole.keys()
    safe_files.write(checkpoint, str(tmp_path / 'a.pth'))
    other = fresh()
    other.load_state_dict(safe_files.read(str(tmp_path / 'a.pth'))['state_dict'])
    for n, tensor in other.state_dict().items():
        assert torch.equal(tensor, whole[n]), n
    x = batch(family)
    model.eval(), other.eval()
    for one, again in zip(model.backbone(x), other.backbone(x), strict=True):
        assert torch.equal(one, again)


# --- configs ---------------------------------------------------------------------------------

METHOD_FILES = CONFIGS / '_base_/methods'


def test_every_method_file_is_in_the_table():
    named = [name for row in ROWS.values() for name in row.files]
    assert {path.stem for path in METHOD_FILES.glob('*.py')} == set(named)


@pytest.mark.parametrize('name', [name for name, row in ROWS.items() if row.files])
def test_method_files_are_what_their_row_tests(name):
    def method(tuning) -> dict:
        parts = {k: tuning.get(k) or [] for k in ADDED}
        kinds = {k: [part['type'] for part in (found if isinstance(found, list) else [found])]
                 for k, found in parts.items()}
        added = [rf'^{part}\.' for part in ADDED if kinds[part]]
        return {**kinds, 'trainable': tuning.get('trainable', added),
                **{k: tuning.get(k) for k in ('out_type', 'pool')}}

    for file in ROWS[name].files:
        cfg = Config.fromfile(METHOD_FILES / f'{file}.py').to_dict()
        assert method(cfg['method']) == method(ROWS[name].tuning), file

"""The functions for plain PyTorch: every method, in place and back, files, options, threads."""

import copy
import io
import json
import pickle
import threading
from typing import Any

import method_options
import pytest
import timm
import torch
from plain_models import FAMILIES, SMALL, gradients, of_another_library, plain, step, tuned
from torch import nn
from utils import images, randomise

import vpt_dense
from vpt_dense.backbones.in_place import Adopted
from vpt_dense.errors import UserError
from vpt_dense.plain import files, methods, tasks
from vpt_dense.tuning import is_added

#: Methods without meaning on a backbone -> what they say.
UNFIT = {('siglip', 'cls-token'): r"pattern .*cls_token.* matches none"}
CASES = [(family, method) for family in FAMILIES for method in vpt_dense.list_methods()
         if (family, method) not in UNFIT]  # fmt: skip
#: One of each kind: tokens, keys and values, hooks, places in blocks, images, the base's own.
SOME = ('deep', 'shallow', 'prefix', 'lora', 'ssf', 'adaptformer', 'rein', 'lor-vp', 'bias',
        'partial-1')  # fmt: skip

case = pytest.mark.parametrize('family, method', CASES, ids=['-'.join(each) for each in CASES])
#: All methods on one family, on the others one of each kind.
quick_case = pytest.mark.parametrize('family, method', [
    pytest.param(*each, marks=() if each[0] == 'vit' or each[1] in SOME else pytest.mark.slow)
    for each in CASES], ids=['-'.join(each) for each in CASES])
some = pytest.mark.parametrize('method', SOME)
family_ = pytest.mark.parametrize('family', FAMILIES)


def create(method: Any = 'deep', family: str = 'dinov3', **options: Any) -> nn.Module:
    """By name, with weights that depend on nothing."""
    options = {'img_size': 64, 'model_options': SMALL, 'pretrained': False, **options}
    return vpt_dense.create_backbone(FAMILIES[family], method, **options)


def look(model: nn.Module) -> dict[str, Any]:
    """All of a model that tuning could leave changed."""
    return dict(
        state={name: tensor.clone() for name, tensor in model.state_dict().items()},
        trains={name: p.requires_grad for name, p in model.named_parameters()},
        modules={name: (type(m), m.training, sorted(vars(m)), list(m._forward_hooks.values()),
                        list(m._forward_pre_hooks.values())) for name, m in model.named_modules()},
    )  # fmt: skip


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = look(model)
    assert list(after['state']) == list(before['state'])
    for name, tensor in before['state'].items():
        assert torch.equal(after['state'][name], tensor), name
    assert after['trains'] == before['trains']
    assert after['modules'] == before['modules']


# --- every method ----------------------------------------------------------------------------


@case
def test_there_and_back(family, method):
    """Names, values, gradients wanted, modes, hooks, classes and attributes are what they were."""
    model = plain(family)
    model.blocks[0].norm1.weight.requires_grad_(False)
    model.blocks[1].train()
    seen = []
    model.norm.register_forward_hook(lambda *_: seen.append(1))
    before, pixels = look(model), images(2, 3, 64, 64)
    expected = model(pixels)
    assert vpt_dense.tune(model, method) is model
    assert isinstance(model, timm.models.Eva if family == 'dinov3'
                      else timm.models.VisionTransformer)  # fmt: skip
    assert {n for n in model.state_dict() if not is_added(n)} == set(before['state'])
    assert method in vpt_dense.list_methods(model)
    model.train()(pixels)
    assert vpt_dense.untune(model) is model
    assert_same(model, before)
    assert torch.equal(model(pixels), expected)
    assert len(seen) == 3


@case
def test_a_step_changes_what_trains_and_nothing_else(family, method):
    model = tuned(family, method).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model, images(2, 3, 64, 64))
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    # Of some the gradient is too small to be seen.
    moved = {n for n in trains if model.get_parameter(n).grad.abs().max() > 1e-6}
    assert moved <= changed <= trains and len(moved) >= len(trains) / 2
    patterns = methods.resolve(method, {}).get('trainable')
    if patterns == [r'^prompt\.']:
        assert all(name.startswith('prompt.') for name in trains)
    assert vpt_dense.count(model)['trainable'] == sum(
        model.get_parameter(name).numel() for name in trains)


@quick_case
def test_files_give_equal_outputs(family, method, tmp_path):
    model, pixels = tuned(family, method), images(2, 3, 64, 64)
    model.train()
    step(model, pixels)
    model.eval()
    size = vpt_dense.save_delta(model, tmp_path / 'a.safetensors')
    assert size == (tmp_path / 'a.safetensors').stat().st_size
    vpt_dense.save_delta(copy.deepcopy(model), tmp_path / 'b.safetensors')
    assert (tmp_path / 'a.safetensors').read_bytes() == (tmp_path / 'b.safetensors').read_bytes()
    expected = model(pixels)
    fresh = vpt_dense.load_delta(plain(family), tmp_path / 'a.safetensors')
    assert torch.equal(fresh(pixels), expected)
    assert json.loads(json.dumps(fresh.settings)) == json.loads(json.dumps(model.settings))
    again = vpt_dense.load_delta(vpt_dense.tune(plain(family), method), tmp_path / 'a.safetensors')
    assert torch.equal(again.eval()(pixels), expected)


@pytest.mark.parametrize('family, method', UNFIT)
def test_what_does_not_fit_is_refused_and_nothing_changes(family, method):
    model = plain(family)
    before = look(model)
    with pytest.raises(UserError, match=UNFIT[family, method]):
        vpt_dense.tune(model, method)
    assert_same(model, before)
    assert method not in vpt_dense.list_methods(tuned(family))


@quick_case
def test_copies_compute_the_same(family, method):
    """Copies are of their own: training one leaves the other alone."""
    model, pixels = tuned(family, method), images(2, 3, 64, 64)
    expected = model(pixels)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)),
                  torch.load(stream, weights_only=False)):  # fmt: skip
        assert type(other) is type(model) and torch.equal(other(pixels), expected)
        step(other.train(), pixels)
        assert torch.equal(model(pixels), expected)
        step(other, pixels)
        vpt_dense.untune(other)
        assert not any(isinstance(module, Adopted) for module in other.modules())


@pytest.mark.parametrize('name', ['DINOv3ViTModel', 'ViTModel', 'torchvision'])
@some
def test_models_of_other_libraries(name, method, tmp_path):
    """There and back, a step, a file, a copy."""

    def out(model: nn.Module) -> torch.Tensor:
        found = model(images(2, 3, 64, 64))
        return found if name == 'torchvision' else found.last_hidden_state

    model = of_another_library(name)
    before, expected = look(model), out(model)
    vpt_dense.tune(model, method)
    assert method in vpt_dense.list_methods(model)
    out(model.train())
    vpt_dense.untune(model)
    assert_same(model, before)
    assert torch.equal(out(model), expected)
    vpt_dense.tune(model, method).train()
    groups = vpt_dense.parameter_groups(model, 1.0, layer_decay=0.9)
    out(model).square().mean().backward()
    torch.optim.SGD(groups).step()
    expected = out(model.eval())
    assert torch.equal(out(copy.deepcopy(model)), expected)
    vpt_dense.save_delta(model, tmp_path / 'a.safetensors')
    again = vpt_dense.load_delta(of_another_library(name), tmp_path / 'a.safetensors')
    assert torch.equal(out(again), expected)
    with pytest.raises(UserError, match='is of a model of your own: build it'):
        vpt_dense.load(tmp_path / 'a.safetensors')


# --- loading from nothing ----------------------------------------------------------------------


@family_
@some
def test_load_builds_the_model(family, method, tmp_path):
    weights = tmp_path / 'w.pth'
    torch.save(plain(family).state_dict(), weights)
    model = create(method, family, checkpoint=str(weights)).train()
    pixels = images(2, 3, 64, 64)
    step(model, pixels)
    vpt_dense.save_delta(model, tmp_path / 'a.safetensors')
    found = vpt_dense.load(tmp_path / 'a.safetensors')
    assert not found.training and torch.equal(found(pixels), model.eval()(pixels))
    weights.rename(tmp_path / 'moved.pth')
    with pytest.raises(UserError, match='weights not found'):
        vpt_dense.load(tmp_path / 'a.safetensors')
    found = vpt_dense.load(tmp_path / 'a.safetensors', base=str(tmp_path / 'moved.pth'))
    assert torch.equal(found(pixels), model(pixels))
    torch.save(randomise(plain(family), 5).state_dict(), tmp_path / 'other.pth')
    with pytest.raises(UserError, match='was tuned on other weights'):
        vpt_dense.load(tmp_path / 'a.safetensors', base=str(tmp_path / 'other.pth'))


def test_load_refuses_what_configs_know_and_models_of_ones_own(tmp_path):
    file = tmp_path / 'a.safetensors'
    vpt_dense.save_delta(tuned(), file)
    with pytest.raises(UserError, match='is of a model of your own: build it'):
        vpt_dense.load(file)
    with pytest.raises(UserError, match="load: tta=True is for the checkpoints and deltas of"):
        vpt_dense.load(file, tta=True)


# --- errors ------------------------------------------------------------------------------------


def _damaged(path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _no_records(path) -> None:
    content = files.read(path)
    meta = dict(format=files.FORMAT, backbones='{}')
    files.safe_files.write_tensors(content['state_dict'], path, meta)


#: What is done to a file, the model it is loaded into, what is said.
BAD = dict(
    base=(None, lambda: randomise(tuned(), 5), 'was tuned on other weights'),
    untuned_base=(None, lambda: randomise(plain(), 5), 'was tuned on other weights'),
    method=(None, lambda: tuned(method='lora'),
            r'does not fit the model: 8 missing \(adapters.*1 too many'),
    tokens=(None, lambda: tuned(num_tokens=3), r'1 of another shape \(prompt\.tokens \(4, 10, 32'),
    trains_more=(None, lambda: tuned(train_also=['bias$']), 'was tuned on other weights'),
    architecture=(None, lambda: plain('vit'), 'was tuned on other weights'),
    width=(None, lambda: plain(embed_dim=48), 'was tuned on other weights'),
    no_transformer=(None, lambda: nn.Linear(2, 2), 'Linear cannot be tuned'),
    prefix=(None, lambda: nn.Sequential(tuned()), r"of tuned backbones \[''\], .*\['0\.'\]"),
    damaged=(_damaged, tuned, 'is damaged'),
    cut=(lambda path: path.write_bytes(path.read_bytes()[:-20]), tuned, 'truncated or damaged'),
    absent=(lambda path: path.unlink(), tuned, 'no such file'),
    other=(lambda path: torch.save({}, path), tuned, 'is no delta that vpt_dense.save_delta'),
    records=(_no_records, tuned, 'does not say which backbones'),
)  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_files_that_do_not_fit_change_nothing(name, tmp_path):
    change, build, message = BAD[name]
    path = tmp_path / 'a.safetensors'
    vpt_dense.save_delta(tuned(), path)
    if change is not None:
        change(path)
    model = build()
    before = look(model)
    with pytest.raises(UserError, match=message) as caught:
        vpt_dense.load_delta(model, path)
    assert str(path) in str(caught.value) or name == 'no_transformer'
    assert_same(model, before)


def test_saving_is_checked(tmp_path):
    with pytest.raises(UserError, match='deltas are .safetensors files, give it that ending'):
        vpt_dense.save_delta(tuned(), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='nothing of this Eva is tuned; call vpt_dense.tune'):
        vpt_dense.save_delta(plain(), tmp_path / 'a.safetensors')
    with pytest.raises(UserError, match='save_delta: told must be plain data'):
        vpt_dense.save_delta(tuned(), tmp_path / 'a.safetensors', classes={1, 2})
    assert list(tmp_path.iterdir()) == []
    vpt_dense.save_delta(tuned(), tmp_path / 'a.safetensors', classes=['cat', 'dog'])
    assert files.read(tmp_path / 'a.safetensors')['meta']['told'] == dict(classes=['cat', 'dog'])


@pytest.mark.parametrize('method, options, message', [
    ('dep', {}, "method 'dep' is not known; did you mean 'deep'"),
    ('partial-1_resnet-50', {}, 'is not known'),
    ('deep', dict(num_token=3), "method deep: there is no option 'num_token'; did you mean 'num_t"),
    ('deep', dict(rank=3), "method deep: there is no option 'rank'"),
    ('deep', dict(num_tokens=0), 'num_tokens'),
    ('deep', dict(num_tokens='3'), 'num_tokens'),
    ('lora', dict(targets=['nothing']), 'nothing'),
    ('deep', dict(trainable=['nothing']), "pattern 'nothing' matches none"),
    ('deep', dict(trainable='bias'), 'trainable'),
    ('deep', dict(train_also=['nothing']), "pattern 'nothing' matches none"),
    ('deep', dict(prompts_as='token'), "prompts_as.*'token'"),
    ('deep', dict(memory='little'), "memory.*'little'"),
    ('deep', dict(memory='lean', with_cp=True), 'exclude each other'),
    ('deep', dict(frozen_dtype='float8'), "frozen_dtype.*'float8'"),
    ('full', dict(frozen_dtype='bfloat16'), 'leaves no weight .* frozen'),
    (dict(prompts={}), {}, "method: there is no 'prompts'; did you mean 'prompt'"),
    (dict(prompt=dict(type='TokenPromt')), dict(num_tokens=2), "there is no type 'TokenPromt'"),
    (dict(prompt=dict(type='TokenPromt')), {}, 'TokenPromt'),
    (dict(adapters=[dict(type='TokenPrompt', num_tokens=2)]), {}, 'list it under `prompt`'),
    (dict(adapters=[dict(type='LoRA', rank=2), dict(type='LoRA', rank=2)]), dict(rank=3),
     "LoRA and LoRA both have an option 'rank'"),
    (dict(image_prompt=dict(type='PadPrompt', width=16)), {}, 'PadPrompt changes the size'),
])  # fmt: skip
def test_options_are_checked_and_nothing_changes(method, options, message):
    model = plain()
    before = look(model)
    with pytest.raises(UserError, match=message):
        vpt_dense.tune(model, method, **options)
    assert_same(model, before)


def test_every_option_is_taken():
    """Those of the page for users: said as they are, they change nothing."""
    for name in vpt_dense.list_methods():
        usual = method_options.options(name)
        model = vpt_dense.tune(plain(), name, **usual)
        plainly = vpt_dense.tune(plain(), name)
        assert vpt_dense.count(model) == vpt_dense.count(plainly), name
        assert str(model) == str(plainly), name


@pytest.mark.parametrize('options, message', [
    (dict(name='vit_small_dinov3'), "backbone 'vit_small_dinov3' is not known"),
    (dict(name='resnet18'), 'ResNet cannot be tuned|it is neither'),
    (dict(img_size=60), 'no multiple of its patches|timm refuses'),
    (dict(model_options=dict(depht=3)), 'timm refuses'),
    (dict(checkpoint='nowhere.pth'), 'weights not found: nowhere.pth'),
    (dict(method='lorra'), "did you mean 'lora'"),
])
def test_names_and_sizes_are_checked(options, message):
    options = {'name': FAMILIES['dinov3'], 'pretrained': False, **options}
    with pytest.raises(UserError, match=message):
        vpt_dense.create_backbone(**options)


def test_tuning_twice_and_untuning_what_is_not_tuned():
    model = tuned()
    with pytest.raises(UserError, match='is tuned already; call vpt_dense.untune'):
        vpt_dense.tune(model)
    with pytest.raises(UserError, match='this Eva is not tuned'):
        vpt_dense.untune(vpt_dense.untune(model))


def test_a_block_is_not_called_by_itself():
    model, pixels = tuned(), images(2, 3, 64, 64)
    tokens = torch.randn(2, 21, 32)
    with pytest.raises(RuntimeError, match='call the model, or do it within'):
        model.blocks[0](tokens)
    with pytest.raises(UserError, match='patches of 16x16 do not divide them'):
        model(images(2, 3, 60, 64))
    with model.forward_pass(pixels):
        assert model.blocks[0](tokens).shape == tokens.shape
    assert model(pixels).shape == (2, 32)  # nothing is left of all that


# --- heads, and models that hold a backbone ----------------------------------------------------


@family_
def test_a_classifier_of_timm(family, tmp_path):
    model = vpt_dense.tune(plain(family, num_classes=5), 'deep', train_also=[r'^head\.'])
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {'prompt.tokens', 'head.weight', 'head.bias'}
    pixels = images(2, 3, 64, 64)
    step(model.train(), pixels)
    vpt_dense.save_delta(model, tmp_path / 'a.safetensors')
    assert set(files.read(tmp_path / 'a.safetensors')['state_dict']) == trains
    again = vpt_dense.load_delta(plain(family, num_classes=5), tmp_path / 'a.safetensors')
    assert torch.equal(again(pixels), model.eval()(pixels))


def test_a_head_that_came_after_tuning_stays():
    model = tuned()
    model.reset_classifier(3)
    assert vpt_dense.untune(model).head.weight.requires_grad
    assert model(images(1, 3, 64, 64)).shape == (1, 3)


class Own(nn.Module):
    """A user's model: two backbones, and a head with a batch norm."""

    def __init__(self, method: str = 'deep') -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(dict(left=tuned(method=method), right=plain('vit')))
        self.head = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 3))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([each(pixels) for each in self.encoder.values()], dim=1))


def test_a_model_that_holds_a_backbone(tmp_path):
    model, pixels = Own().train(), images(4, 3, 64, 64)
    step(model, pixels)
    file = tmp_path / 'a.safetensors'
    vpt_dense.save_delta(model, file)
    state = files.read(file)['state_dict']
    assert 'encoder.left.prompt.tokens' in state and 'head.0.running_mean' in state
    assert not any(name.startswith('encoder.left.blocks') for name in state)
    assert any(name.startswith('encoder.right.blocks') for name in state)  # nobody froze it
    torch.manual_seed(3)
    other = vpt_dense.load_delta(Own(), file)
    assert torch.equal(other.eval()(pixels), model.eval()(pixels))
    with pytest.raises(UserError, match=r"has a backbone 'encoder\.left\.', which the model lacks"):
        vpt_dense.load_delta(nn.Sequential(plain()), file)


def test_wrapped_models_are_saved_and_loaded_as_what_they_hold(tmp_path):
    model = tuned()
    vpt_dense.save_delta(model, tmp_path / 'a.safetensors')
    for wrap in (nn.DataParallel, torch.compile):
        vpt_dense.save_delta(wrap(model), tmp_path / 'b.safetensors')
        first, second = (tmp_path / f'{name}.safetensors' for name in 'ab')
        assert first.read_bytes() == second.read_bytes()
        wrapped = wrap(plain())
        assert vpt_dense.load_delta(wrapped, first) is wrapped
        pixels = images(2, 3, 64, 64)
        assert torch.equal(files.unwrapped(wrapped)(pixels), model(pixels))


def test_parameter_groups():
    model = Own('deep-bias')
    for parameter in model.encoder['right'].parameters():
        parameter.requires_grad_(False)
    groups = vpt_dense.parameter_groups(model, 0.1, 0.01, head_lr=1.0, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in groups for p in group['params']}
    left = model.encoder['left']
    expected = {
        'encoder.left.prompt.tokens': (0.1, 0.01), 'encoder.left.patch_embed.proj.bias':
        (0.1 * 0.5 ** 5, 0.0), 'encoder.left.norm.bias': (0.1, 0.0),
        'head.0.weight': (1.0, 0.0), 'head.0.bias': (1.0, 0.0), 'head.1.weight': (1.0, 0.01),
        'head.1.bias': (1.0, 0.0)}
    for i in range(4):
        for name, _ in left.blocks[i].named_parameters():
            if name.endswith('bias'):
                expected[f'encoder.left.blocks.{i}.{name}'] = (0.1 * 0.5 ** (4 - i), 0.0)
    assert found.keys() == expected.keys()
    for name, rates in expected.items():
        assert found[name] == pytest.approx(rates), name
    assert len(groups) == len({(g['lr'], g['weight_decay']) for g in groups})
    torch.optim.AdamW(groups)


def test_parameter_groups_without_options():
    (group,) = vpt_dense.parameter_groups(tuned(), 0.1, 0.01)
    assert (group['lr'], group['weight_decay']) == (0.1, 0.01)
    full = vpt_dense.tune(plain('vit'), 'full')
    spared = {id(p) for g in vpt_dense.parameter_groups(full, 0.1, 0.01)
              if not g['weight_decay'] for p in g['params']}  # fmt: skip
    assert {n for n, p in full.named_parameters() if id(p) in spared} == {
        n for n, p in full.named_parameters() if p.ndim <= 1 or n in ('pos_embed', 'cls_token')}


# --- memory --------------------------------------------------------------------------------------


@family_
@some
def test_lean_and_checkpointed_gradients(family, method):
    pixels = images(2, 3, 64, 64)
    expected = gradients(tuned(family, method), pixels)
    checkpointed = tuned(family, method)
    checkpointed.set_grad_checkpointing()
    for model in (tuned(family, method, memory='lean'), tuned(family, method, with_cp=True),
                  checkpointed):  # fmt: skip
        found = gradients(model, pixels)
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-6 * grad.abs().max())
    checkpointed.set_grad_checkpointing(False)
    assert all(block.recompute is None for block in checkpointed.blocks)
    lean = tuned(family, method, memory='lean')
    lean.set_grad_checkpointing()
    lean.set_grad_checkpointing(False)
    assert all(block.recompute == 'halves' for block in lean.blocks)


@some
def test_frozen_weights_in_half_precision(method, tmp_path):
    """Files fit models in either precision, and untuning gives the weights as they came."""
    model = plain()
    before, pixels = look(model), images(2, 3, 64, 64)
    whole = vpt_dense.tune(copy.deepcopy(model), method)
    vpt_dense.tune(model, method, frozen_dtype='bfloat16')
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    out = model(pixels)
    assert out.dtype in (torch.float32, torch.bfloat16)
    torch.testing.assert_close(out.float(), whole(pixels), rtol=0.1, atol=0.1)
    vpt_dense.save_delta(model, tmp_path / 'a.safetensors')
    vpt_dense.load_delta(whole, tmp_path / 'a.safetensors')
    vpt_dense.save_delta(whole, tmp_path / 'b.safetensors')
    vpt_dense.load_delta(model, tmp_path / 'b.safetensors')
    vpt_dense.untune(model)
    assert_same(model, before)


# --- several at once -----------------------------------------------------------------------------


def test_teacher_and_student_in_one_forward():
    """A tuned model that is called while another one runs."""
    student, teacher = (tuned(method=method) for method in ('shallow', 'deep'))
    pixels = images(2, 3, 64, 64)
    expected = student(pixels), teacher(images(2, 3, 32, 32))
    seen = []
    student.blocks[1].register_forward_pre_hook(
        lambda *_: seen.append(teacher(images(2, 3, 32, 32))))
    assert torch.equal(student(pixels), expected[0])
    assert torch.equal(seen[0], expected[1])


@some
def test_threads(method):
    """Images of different sizes at the same time in one model."""
    model = tuned(method=method)
    batches = [images(2, 3, side, 64, seed=side) for side in (64, 96)]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
    wrong, start = [], threading.Barrier(2)

    @torch.no_grad()
    def work(i: int) -> None:
        start.wait()
        for _ in range(15):
            if not torch.equal(model(batches[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- classifier and segmentor --------------------------------------------------------------------

BUILT = dict(
    classifier=lambda **o: vpt_dense.create_classifier(FAMILIES['vit'], 3, 'deep', **o),
    segmentor=lambda **o: vpt_dense.create_segmentor(
        FAMILIES['dinov3'], 3, 'lora', indices=[1, -1], **o))
built = pytest.mark.parametrize('task', BUILT)


def of_task(task: str, folder) -> nn.Module:
    """A model after a step, on weights in a file."""
    family = dict(classifier='vit', segmentor='dinov3')[task]
    torch.save(plain(family).state_dict(), folder / 'w.pth')
    model = BUILT[task](checkpoint=str(folder / 'w.pth'), img_size=64, model_options=SMALL)
    step(model.train(), images(2, 3, 64, 64))
    return model.eval()


@built
def test_tasks_come_back_from_files_and_folders(task, tmp_path):
    model, pixels = of_task(task, tmp_path), images(2, 3, 64, 64)
    expected = model(pixels)
    assert expected.shape == ((2, 3) if task == 'classifier' else (2, 3, 64, 64))
    vpt_dense.save_delta(model, tmp_path / 'a.safetensors')
    assert torch.equal(vpt_dense.load(tmp_path / 'a.safetensors')(pixels), expected)
    model.save_pretrained(tmp_path / 'folder')
    found = type(model).from_pretrained(tmp_path / 'folder')
    assert type(found) is type(model) and torch.equal(found(pixels), expected)
    (tmp_path / 'w.pth').rename(tmp_path / 'moved.pth')
    found = type(model).from_pretrained(tmp_path / 'folder', base=str(tmp_path / 'moved.pth'))
    assert torch.equal(found(pixels), expected)
    other = tasks.Segmentor if task == 'classifier' else tasks.Classifier
    with pytest.raises(UserError, match=f'holds a {type(model).__name__}, no {other.__name__}'):
        other.from_pretrained(tmp_path / 'folder', base=str(tmp_path / 'moved.pth'))


@built
def test_predictions_leave_modes_alone(task, tmp_path):
    from PIL import Image

    model = of_task(task, tmp_path).train()
    modes = {name: module.training for name, module in model.named_modules()}
    photo = (images(50, 70, 3).sigmoid() * 255).byte().numpy()
    found = model.predict(photo)
    assert {name: module.training for name, module in model.named_modules()} == modes
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    for same in (tmp_path / 'photo.png', str(tmp_path / 'photo.png'), Image.fromarray(photo)):
        assert torch.equal(model.predict(same), found)
    if task == 'classifier':
        assert found.shape == (3,) and abs(found.sum().item() - 1) < 1e-6
    else:
        assert found.shape == (50, 70) and found.dtype == torch.int64 and found.max() < 3
    with pytest.raises(UserError, match=r'an image is an RGB array .* found float64 \(5, 5\)'):
        model.predict(torch.zeros(5, 5).double().numpy())


@built
def test_images_of_one_size_pass_together(task, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, 'TOGETHER', 2)
    model, passed = of_task(task, tmp_path).double(), []
    model.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    photos = [(images(height, 70, 3, seed=i).sigmoid() * 255).byte().numpy()
              for i, height in enumerate((50, 30, 50, 50, 30))]
    found = model.predict_batch(photos)
    # A classifier resizes all to one size.
    assert passed == ([2, 2, 1] if task == 'classifier' else [1, 1, 2, 1])
    for one, photo in zip(found, photos, strict=True):
        assert (model.predict(photo) - one).abs().max() < 1e-10
    assert model.predict_batch([]) == []


@pytest.mark.parametrize('options, message', [
    (dict(num_classes=0), 'num_classes'), (dict(head='setr'), "head.*'setr'"),
    (dict(indices=[4]), r'indices must name some of the 4 blocks, found \[4\]'),
    (dict(indices=[]), r'found \[\]'),
])
def test_segmentors_are_checked(options, message):
    options = {'num_classes': 3, **options}
    with pytest.raises(ValueError, match=message):
        vpt_dense.create_segmentor(
            FAMILIES['dinov3'], pretrained=False, img_size=64, model_options=SMALL, **options)


def test_masks_are_refused_where_prompts_are_among_the_tokens():
    model = tuned('vit', 'shallow')
    with pytest.raises(UserError, match='masks do not know prompts'):
        model(images(1, 3, 64, 64), is_causal=True)


def test_prompts_of_pixels_need_patches_of_one_convolution():
    with pytest.raises(UserError, match='needs a patch embedding that is one convolution'):
        vpt_dense.create_backbone('vit_tiny_r_s16_p8_224', 'pixel', pretrained=False)

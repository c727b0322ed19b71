"""Tuned models in what PyTorch has for modules: compiled, exported, shared by processes."""

import copy
from typing import Any

import pytest
import torch
from plain_models import gradients, plain, tuned
from processes import run_two
from torch import nn
from torch.export import Dim
from torch.nn.parallel import DistributedDataParallel
from utils import images

import vpt_dense
from vpt_dense.backbones import in_place
from vpt_dense.errors import UserError

PIXELS = (4, 3, 64, 64)
slow = pytest.mark.slow
#: Adapters of linear layers that share tensors, read the layer's weights or are PEFT's.
LINEAR = ('dora', 'pissa', 'fact-tk', 'vera', 'glora', 'peft')
COMPILED = [
    *(pytest.param('dinov3', method, 'aot_eager', marks=slow) for method in ('deep', 'lora')),
    *(pytest.param('vit', method, 'aot_eager', marks=slow) for method in ('glora', 'peft')),
    *(pytest.param('vit', method, 'aot_eager', marks=pytest.mark.long)
      for method in ('deep', 'lora', *LINEAR[:4])),
    *(pytest.param('dinov3', method, 'inductor', marks=pytest.mark.long) for method in
      ('deep', 'lora', 'shallow', 'prefix', 'ssf', 'adaptformer', 'bias')),
    *(pytest.param('vit', method, 'inductor', marks=pytest.mark.long) for method in
      ('deep', 'shallow', 'prefix', 'lora', 'ssf', 'adaptformer', 'bias'))]  # fmt: skip


@pytest.mark.parametrize('family, method, backend', COMPILED)
def test_compiled_in_one_graph(family, method, backend):
    """The forward pass, the backward pass, and the plain model afterwards, at another size."""
    torch.compiler.reset()
    # A compiled graph draws other numbers.
    model = without_dropout(tuned(family, method))
    pixels = images(*PIXELS)
    expected, gradient = model(pixels), gradients(model, pixels)
    model.eval().zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(pixels), expected, rtol=1e-5, atol=1e-5)
    for name, found in gradients(compiled, pixels).items():
        known = gradient[name.removeprefix('_orig_mod.')]
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5 * known.abs().max())
    assert in_place._NOW.flow is None
    assert torch.equal(model.eval()(pixels), expected)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(getattr(module, 'dropout', None), float):
            module.dropout = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.slow
@pytest.mark.parametrize('family, method', [
    (family, method) if (family, method) in (('dinov3', 'deep'), ('vit', 'lora')) else
    pytest.param(family, method, marks=slow) for family in ('dinov3', 'vit', 'siglip')
    for method in ('deep', 'lora', 'dora', 'peft')])
def test_exported_for_any_batch(family, method):
    model = tuned(family, method)
    batch = dict(x={0: Dim('batch')})
    with torch.no_grad():
        program = torch.export.export(model, (images(2, 3, 64, 64),), dynamic_shapes=batch)
        for number in (1, 3):
            pixels = images(number, 3, 64, 64, seed=number)
            torch.testing.assert_close(program.module()(pixels), model(pixels))


@pytest.mark.parametrize('method', ['deep', 'prefix', 'lora', 'ssf', 'bias', *LINEAR])
def test_functional_call_and_grad(method):
    model, pixels = tuned(method=method), images(*PIXELS)
    expected = gradients(model, pixels)
    parameters = {name: model.get_parameter(name).detach() for name in expected}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (pixels,)).square().sum()

    torch.manual_seed(7)
    found = torch.func.grad(loss)(parameters)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    moved = {name: parameter + 0.1 for name, parameter in parameters.items()}
    assert loss(moved) != loss(parameters)


@pytest.mark.parametrize(
    'method', ['deep', 'prefix', 'lora', 'ssf', 'adaptformer', 'bias', *LINEAR])
def test_autocast(method):
    """Close to float32; parameters and their gradients stay float32."""
    model, pixels = without_dropout(tuned(method=method)), images(*PIXELS)
    expected = gradients(model, pixels)
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(pixels).float().square().sum()
    loss.backward()
    for name, gradient in expected.items():
        found = model.get_parameter(name).grad
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found.flatten(), gradient.flatten(), 0) > 0.98, name


# --- two processes -------------------------------------------------------------------------------


def with_head(method: str, **options: Any) -> nn.Module:
    """A tuned backbone and a head."""
    torch.manual_seed(0)
    return nn.Sequential(without_dropout(tuned(method=method, **options)), nn.Linear(32, 3))


def mean_gradients(model: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()(pixels).square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


SHARED = ('deep', 'lora', 'bias')


def ddp(rank: int, found: list) -> None:
    torch.distributed.init_process_group('gloo')
    for method in SHARED:
        model = DistributedDataParallel(with_head(method, memory='lean'))
        grads = mean_gradients(model, images(*PIXELS).chunk(2)[rank])
        found.append((rank, method, {n.removeprefix('module.'): g for n, g in grads.items()}))


@pytest.mark.filterwarnings('ignore')
def test_gradients_of_two_processes_are_those_of_one():
    found = run_two(ddp)
    assert len(found) == 2 * len(SHARED)
    for _, method, grads in found:
        expected = mean_gradients(with_head(method), images(*PIXELS))
        assert grads.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(grads[name], gradient, rtol=1e-4, atol=1e-6)


def fsdp(rank: int, folder: str, found: list) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group('gloo')
    mesh = init_device_mesh('cpu', (2,))
    for method in SHARED:
        model = with_head(method)
        for block in model[0].blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        groups = vpt_dense.parameter_groups(model, lr=0.1, head_lr=0.2)
        optimizer = torch.optim.SGD(groups)
        mean_gradients(model, images(*PIXELS).chunk(2)[rank])
        optimizer.step()
        with pytest.raises(UserError, match='spread over processes .* gather what trains'):
            vpt_dense.save_delta(model, f'{folder}/sharded.safetensors')
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = get_model_state_dict(model, options=options)
        if rank == 0:
            whole = with_head(method)
            whole.load_state_dict(state, strict=False)
            vpt_dense.save_delta(whole, f'{folder}/{method}.safetensors')
            found.append((method, sorted(state)))


@pytest.mark.filterwarnings('ignore')
def test_a_sharded_step_is_that_of_one_process(tmp_path):
    """FSDP2; what was tuned is gathered, and saved as always."""
    found = run_two(fsdp, str(tmp_path))
    assert [method for method, _ in found] == list(SHARED)
    for method, names in found:
        model = with_head(method)
        mean_gradients(model, images(*PIXELS))
        torch.optim.SGD(vpt_dense.parameter_groups(model, lr=0.1, head_lr=0.2)).step()
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trains <= set(names)
        other = vpt_dense.load_delta(with_head(method), tmp_path / f'{method}.safetensors')
        for name in trains:
            torch.testing.assert_close(
                other.get_parameter(name), model.get_parameter(name), rtol=1e-4, atol=1e-6)


# --- accelerate, where it is installed -----------------------------------------------------------


@pytest.mark.parametrize('precision', ['no', 'bf16'])
def test_accelerate(precision, tmp_path, monkeypatch):
    accelerate = pytest.importorskip('accelerate')
    monkeypatch.delenv('LOCAL_RANK', raising=False)  # our tools set it, and accelerate would wait
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    model = with_head('deep')
    before = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(vpt_dense.parameter_groups(model, lr=0.1))
    model, optimizer = accelerator.prepare(model, optimizer)
    loss = model.train()(images(*PIXELS)).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    own = accelerator.unwrap_model(model)
    assert not torch.equal(own[0].prompt.tokens, before[0].prompt.tokens)
    assert torch.equal(own[0].blocks[0].norm1.weight, before[0].blocks[0].norm1.weight)
    vpt_dense.save_delta(own, tmp_path / 'a.safetensors')
    again = vpt_dense.load_delta(nn.Sequential(plain(), nn.Linear(32, 3)),
                                 tmp_path / 'a.safetensors')  # fmt: skip
    fresh = accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    assert torch.equal(again.eval()(images(*PIXELS)), fresh(images(*PIXELS)))

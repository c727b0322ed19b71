"""torchvision's vision transformer, tuned in place: timm's model of the same weights is judge."""

import copy
import pickle
from functools import partial

import pytest
import torch
from methods import ROWS
from timm.models import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import ConvStemConfig
from utils import images, randomise

import vpt_dense
from vpt_dense.adapters import merge_adapters
from vpt_dense.backbones.hosts import host_of
from vpt_dense.backbones.torchvision_vit import TorchvisionBackbone
from vpt_dense.errors import UserError

DEEP = ROWS['deep'].tuning['prompt']


def build(**settings) -> nn.Module:
    """A model of torchvision, random and in float64."""
    sizes = dict(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64,
        num_classes=5)
    return randomise(VisionTransformer(**{**sizes, **settings})).double().eval()


def tune(model: nn.Module, **method) -> nn.Module:
    """Tune it in place, every added parameter with a value of its own."""
    host_of(model).take_over(model, **method)
    for part in ('prompt', 'adapters'):
        if getattr(model, part) is not None:
            randomise(getattr(model, part), seed=1)
    return model


def pictures() -> Tensor:
    return images(2, 3, 32, 32).double()


def timm_twin(model: nn.Module) -> nn.Module:
    """timm's model with the same weights."""
    twin = TimmVisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2, num_classes=5,
        norm_layer=partial(nn.LayerNorm, eps=1e-6))
    renamed = {}
    for name, tensor in model.state_dict().items():
        for old, new in {
            'encoder.layers.encoder_layer_': 'blocks.', 'ln_1': 'norm1', 'ln_2': 'norm2',
            'self_attention.in_proj_': 'attn.qkv.', 'self_attention.out_proj': 'attn.proj',
            'mlp.0': 'mlp.fc1', 'mlp.3': 'mlp.fc2', 'encoder.ln': 'norm', 'heads.head': 'head',
            'encoder.pos_embedding': 'pos_embed', 'class_token': 'cls_token',
            'conv_proj': 'patch_embed.proj',
        }.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    twin.double().load_state_dict(renamed)
    return twin.eval()


METHODS = {
    **{row: ROWS[row].tuning for row in (
        'bias', 'partial-1', 'shallow', 'deep', 'prefix', 'e2vpt', 'gated', 'residual', 'vapt',
        'pixel', 'add-deep', 'lora', 'lora-qv', 'lora-all', 'cvpt', 'adapter', 'adaptformer',
        'rep-adapter', 'ssf', 'mona', 'convpass', 'deep-lora', 'dora', 'dora-qv', 'pissa', 'soma',
        'fact-tt', 'fact-tk', 'vera', 'glora', 'peft')},
    'deep, as tokens': dict(prompt=DEEP, prompts_as='tokens'),
    'deep, SSF and RepAdapter': dict(prompt=DEEP, adapters=[
        *ROWS['ssf'].tuning['adapters'], *ROWS['rep-adapter'].tuning['adapters']]),
}


@pytest.mark.parametrize('method', METHODS)
def test_a_method_does_what_it_does_at_timms_twin(method):
    plain = build()
    twin, before = timm_twin(plain), plain(pictures())
    assert_close(twin(pictures()), before)
    names = set(plain.state_dict())
    tune(plain, **METHODS[method])
    tune(twin, **METHODS[method])
    added = {name for name, _ in plain.named_parameters()} - names
    assert added == {name for name, _ in twin.named_parameters() if name.startswith(
        ('prompt.', 'adapters.'))}
    assert {name for name in plain.state_dict() if name.split('.')[0] not in (
        'prompt', 'adapters')} == names
    direction = images(2, 5, seed=5).double()
    for model in (plain, twin):
        out = model(pictures())
        assert method in ('bias', 'partial-1') or (out - before).abs().max() > 1e-5
        (out * direction).sum().backward()
    assert_close(plain(pictures()), twin(pictures()))
    grads, theirs = (
        [p.grad for p in model.parameters() if p.requires_grad] for model in (plain, twin))
    for found in theirs:  # in another order where the base trains
        near = [g for g in grads if g.shape == found.shape
                and torch.allclose(g, found, rtol=1e-10, atol=1e-10)]
        assert near
    assert len(grads) == len(theirs) and any(g.abs().max() > 1e-4 for g in grads)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_without_a_method_it_is_torchvisions():
    plain, tuned = (build(dropout=0.2, attention_dropout=0.3) for _ in range(2))
    tune(tuned)
    assert type(tuned).__name__ == 'VisionTransformer' and isinstance(tuned, TorchvisionBackbone)
    for mode in (False, True):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                outs = []
                for model in (plain.train(mode), tuned.train(mode)):
                    torch.manual_seed(0)
                    outs.append(model(pictures()))
                assert torch.equal(*outs)
    assert not torch.equal(tuned(pictures()), outs[0])


def test_adapters_without_gradient_are_not_passed_by():
    """PyTorch's attention has a fast way for inference that calls no layer."""
    model = tune(build(), **METHODS['lora-all'])
    expected = model(pictures())
    with torch.inference_mode():
        assert_close(model(pictures()), expected)


@pytest.mark.parametrize('method', [
    'lora', 'lora-qv', 'lora-all', 'rep-adapter', 'ssf', 'dora', 'dora-qv', 'pissa',
    'fact-tk', 'vera', 'glora', 'peft'])
def test_merged_adapters_compute_the_same(method):
    model = tune(build(), **METHODS[method])
    expected, weight = model(pictures()), model.encoder.layers[0].self_attention.in_proj_weight
    before = weight.clone()
    merge_adapters(model)
    assert not torch.equal(weight, before) and weight is not before
    assert_close(model(pictures()), expected)
    plain = model.give_back()
    assert type(plain) is VisionTransformer
    assert_close(plain(pictures()), expected)


def test_it_is_given_back_as_it_was():
    model = build()
    expected, tensors = model(pictures()), copy.deepcopy(model.state_dict())
    before = [(n, type(m), vars(m).keys(), len(m._forward_hooks)) for n, m in model.named_modules()]
    for method in ('deep, SSF and RepAdapter', 'lora-all', 'shallow'):
        tune(model, **METHODS[method])
        model(pictures())
        assert model.give_back() is model
        assert before == [
            (n, type(m), vars(m).keys(), len(m._forward_hooks)) for n, m in model.named_modules()]
        assert torch.equal(model(pictures()), expected)
    assert all(map(torch.equal, model.state_dict().values(), tensors.values()))
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match='adapters.targets'):
        tune(model, adapters=[dict(type='vpt_dense.LoRA', targets=['nowhere'])])
    assert torch.equal(model(pictures()), expected)
    assert type(model) is VisionTransformer and 'qkv' not in dict(model.named_modules())


def test_the_plain_interface_tunes_it(tmp_path):
    for method in ('deep', 'lor-vp', 'lora'):
        model = build()
        before = model(pictures())
        vpt_dense.tune(model, method, train_also=[r'^heads\.'])
        for part in model.parameters():
            if part.requires_grad:
                nn.init.normal_(part, std=0.1)
        vpt_dense.save_delta(model, tmp_path / 'delta.safetensors')
        again = vpt_dense.load_delta(build(), tmp_path / 'delta.safetensors')
        assert torch.equal(again(pictures()), model(pictures()))
        assert not torch.equal(again(pictures()), before)


def test_a_copy_is_of_its_own_and_a_pickle_is_the_model():
    model = tune(build(), **METHODS['deep-lora'])
    expected = model(pictures())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(pictures()), expected)
        with torch.no_grad():
            other.encoder.layers[0].self_attention.in_proj_weight.zero_()
        assert not torch.equal(other(pictures()), expected)
        assert torch.equal(model(pictures()), expected)


def test_recomputing_and_half_precision():
    grads = []
    for further in (dict(), dict(with_cp=True), dict(memory='lean')):
        model = tune(build(), **METHODS['deep-lora'], **further)
        model(pictures()).sum().backward()
        grads.append(model.prompt.tokens.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])
    plain = build().float()
    expected = tune(copy.deepcopy(plain), prompt=DEEP)(images(2, 3, 32, 32))
    model = tune(plain, prompt=DEEP, frozen_dtype='bfloat16')
    assert_close(model(images(2, 3, 32, 32)).float(), expected, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['deep', 'lora'])
def test_the_graph_is_whole(method):
    model = tune(build(), **METHODS[method])
    expected = model(pictures())
    torch.compiler.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    assert_close(compiled(pictures()), expected, 1e-12)


def test_what_cannot_be_tuned_is_told():
    assert host_of(build()) is TorchvisionBackbone
    stem = [ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 4)]
    other = build()
    other.encoder.layers[1] = nn.Identity()
    for model, message in (
        (build(conv_stem_configs=stem), 'VisionTransformer cannot be tuned: conv_proj is no'),
        (other, r'encoder.layers.encoder_layer_1 is no EncoderBlock'),
        (nn.Sequential(build()), r'tune model\.0, a VisionTransformer, instead'),
    ):
        with pytest.raises(UserError, match=message):
            host_of(model)
    with pytest.raises(ValueError, match='needs maps or vectors of its own to put out'):
        tune(build(), **ROWS['side'].tuning)


def test_depths_of_parameters():
    model = tune(build(), prompt=DEEP)
    for name, depth in {
        'class_token': 0, 'encoder.pos_embedding': 0, 'conv_proj.weight': 0,
        'encoder.layers.encoder_layer_2.mlp.0.weight': 3, 'encoder.ln.weight': 4,
        'heads.head.weight': 4, 'prompt.tokens': 4,
    }.items():
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 5)
    assert model.describe() == 'VisionTransformer of width 32 on 4x4 patches'

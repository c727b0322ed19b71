"""PEFT's own layers on our backbones: PEFT itself is the judge, kind by kind."""

import builtins
import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from utils import images, randomise, tiny_vit

import vpt_dense
from vpt_dense.adapters.peft import KINDS
from vpt_dense.backbones.hosts import host_of
from vpt_dense.errors import UserError
from vpt_dense.prompts import PrefixPrompt
from vpt_dense.tuning import is_added

peft = pytest.importorskip('peft', '0.21')  # older ones have fewer kinds

#: Kind -> what it needs, or what is tried of it.
SETTINGS = {
    **{kind: dict(peft_type=kind) for kind in KINDS},
    'BOFT': dict(peft_type='BOFT', boft_block_size=4),
    'OFT': dict(peft_type='OFT', oft_block_size=8),
    'GRALORA': dict(peft_type='GRALORA', r=4, gralora_k=2), 'MISS': dict(peft_type='MISS', r=4),
    'LORA': dict(peft_type='LORA', r=3, lora_alpha=5, use_rslora=True),
    'LORA, magnitudes': dict(peft_type='LORA', r=3, lora_alpha=5, use_dora=True),
    'LORA, patterns': dict(peft_type='LORA', r=3, rank_pattern={'fc1': 2}),
    'LORA, gaussian': dict(peft_type='LORA', init_lora_weights='gaussian'),
    'IA3, inputs': dict(peft_type='IA3', feedforward_modules=[r'\.fc1$']),
}  # fmt: skip
TARGETS = [r'^blocks.*\.(qkv|proj|fc1|fc2)$']
every_kind = pytest.mark.parametrize('name', SETTINGS)


def build() -> nn.Module:
    return randomise(timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)).eval()


def tuned(config: dict, targets=TARGETS, **how) -> nn.Module:
    model = build()
    torch.manual_seed(1)
    adapter = dict(type='vpt_dense.PEFT', config=config, targets=targets)
    return host_of(model).take_over(model, adapters=[adapter], **how)


def by_peft(config: dict) -> nn.Module:
    names = [name for name, module in build().named_modules() if isinstance(module, nn.Linear)]
    further = {key: value for key, value in config.items() if key != 'peft_type'}
    if config['peft_type'] == 'IA3':
        inputs = [name for name in names if name.endswith('fc1')]
        further['feedforward_modules'] = inputs if further.get('feedforward_modules') else []
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[config['peft_type']]
    return peft.get_peft_model(build(), kind(target_modules=names, **further))


def move(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for index, parameter in enumerate(model.adapters.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def pixels(**kwargs) -> Tensor:
    return images(2, 3, 32, 32, **kwargs)


@every_kind
def test_it_computes_what_peft_does(name):
    """Outputs and gradients, in float64, of a model that PEFT has changed itself."""
    config = SETTINGS[name]
    ours, theirs = move(tuned(config)).double(), by_peft(config).double()
    layers = dict(zip(ours.adapters[0].names, ours.adapters[0].updates, strict=True))
    pairs = []
    for layer, update in layers.items():
        own = update.layer.state_dict()
        other = theirs.base_model.model.get_submodule(layer)
        missing, unexpected = other.load_state_dict(own, strict=False)
        assert not unexpected and all(key.startswith('base_layer.') for key in missing)
        pairs += [(p, other.get_parameter(key)) for key, p in update.layer.named_parameters()]
    x = pixels(dtype=torch.float64)
    out, wanted = ours.train()(x), theirs.train()(x)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    assert (out - build().double()(x)).abs().max() > 1e-3
    out.square().sum().backward()
    wanted.square().sum().backward()
    assert pairs and all(own.grad.any() for own, _ in pairs)
    for own, other in pairs:
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-8, atol=1e-8)


@every_kind
def test_it_starts_at_the_backbone_and_leaves_it_alone(name):
    plain, model = build(), tuned(SETTINGS[name])
    torch.testing.assert_close(model(pixels()), plain(pixels()), rtol=0, atol=1e-5)
    names = {n: t for n, t in move(model).state_dict().items() if not is_added(n)}
    assert names.keys() == plain.state_dict().keys()
    assert all(torch.equal(t, names[n]) for n, t in plain.state_dict().items())
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trains == {n for n, _ in model.named_parameters() if is_added(n)}
    vpt_dense.untune(model)
    assert torch.equal(model(pixels()), plain(pixels()))


@every_kind
def test_it_merges_and_comes_back_from_a_file(name, tmp_path):
    model = move(vpt_dense.tune(build(), 'peft', config=SETTINGS[name], targets=TARGETS)).eval()
    expected = model(pixels())
    vpt_dense.save_delta(model, tmp_path / 'a.safetensors')
    again = vpt_dense.load_delta(build(), tmp_path / 'a.safetensors').eval()
    assert torch.equal(again(pixels()), expected)
    other = copy.deepcopy(model)
    move(other)
    assert torch.equal(model(pixels()), expected)
    with torch.no_grad():
        model.double().adapters[0].merge(model)
    torch.testing.assert_close(model(pixels(dtype=torch.float64)), again.double()(
        pixels(dtype=torch.float64)), rtol=1e-10, atol=1e-10)  # fmt: skip
    plain = build().double()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not is_added(n)})
    torch.testing.assert_close(plain(pixels().double()), model(pixels().double()))


@every_kind
def test_memory_and_half_precision(name):
    results = []
    for how in ({}, dict(memory='lean'), dict(with_cp=True)):
        model = move(tuned(SETTINGS[name], **how)).double().train()
        model(pixels(dtype=torch.float64)).square().sum().backward()
        results.append([p.grad for p in model.adapters.parameters()])
    for found in results[1:]:
        torch.testing.assert_close(found, results[0])
    exact = move(tuned(SETTINGS[name]))
    half = tuned(SETTINGS[name], frozen_dtype='bfloat16')
    start = half(pixels())
    assert (start - build()(pixels())).norm() / start.norm() < 0.03
    half.adapters.load_state_dict(exact.adapters.state_dict())
    out, wanted = half(pixels()), exact(pixels())
    assert (out - wanted).norm() / wanted.norm() < 0.06
    with pytest.raises(ValueError, match='is held in bfloat16'):
        half.adapters[0].merge(half)


@pytest.mark.parametrize('name', ['LORA, magnitudes', 'DELORA'])
def test_what_starts_from_weights_starts_from_those_that_are_loaded(name, tmp_path):
    base = tmp_path / 'base.pth'
    plain = randomise(tiny_vit(), seed=4).eval()
    torch.save({f'backbone.{n}': t for n, t in plain.state_dict().items()}, base)
    adapter = dict(type='vpt_dense.PEFT', config=SETTINGS[name])
    model = tiny_vit(
        adapters=[adapter], init_cfg=dict(type='Pretrained', checkpoint=str(base))).eval()
    model.init_weights()
    torch.testing.assert_close(model(pixels())[0], plain(pixels())[0], rtol=0, atol=1e-5)


def test_prompts_start_from_what_a_started_adapter_computes(tmp_path, monkeypatch):
    """Keys of a prefix are what the layer makes of tokens when its magnitudes are right."""
    def take_tokens(self, tokens, backbone):
        taken.append(tokens)
        return real(self, tokens, backbone)

    taken, real = [], PrefixPrompt.take_tokens
    monkeypatch.setattr(PrefixPrompt, 'take_tokens', take_tokens)
    base = tmp_path / 'base.pth'
    plain = randomise(tiny_vit(), seed=4)
    torch.save({f'backbone.{n}': t for n, t in plain.state_dict().items()}, base)
    model = tiny_vit(
        prompt=dict(type='vpt_dense.PrefixPrompt', num_tokens=3),
        adapters=[dict(type='vpt_dense.PEFT', config=SETTINGS['LORA, magnitudes'])],
        init_cfg=dict(type='Pretrained', checkpoint=str(base)))
    model.init_weights()
    (tokens,) = taken
    for i, block in enumerate(plain.block_list()):
        keys, values = block.keys_values(block.norm1(tokens[i : i + 1]))
        torch.testing.assert_close(model.prompt.keys[i], keys[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.prompt.values[i], values[0], rtol=1e-4, atol=1e-5)


def test_dropout_of_peft_follows_the_mode():
    model = move(tuned(dict(peft_type='LORA', lora_dropout=0.5)))
    assert torch.equal(model(pixels()), model(pixels()))
    model.train()
    assert not torch.equal(model(pixels()), model(pixels()))


@pytest.mark.parametrize(('config', 'message'), [
    (None, r"adapters\.config needs a dict with PEFT's peft_type, .* found None"),
    (dict(r=8), r'adapters\.config needs a dict with PEFT'),
    (dict(peft_type='LORRA'), r"peft_type='LORRA' cannot be used here; did you mean 'LORA'"),
    (dict(peft_type='VERA'), r"peft_type='VERA' cannot be used here; use vpt_dense\.VeRA \(known"),
    (dict(peft_type='GLORA'), r"peft_type='GLORA' cannot be used here; use vpt_dense\.GLoRA"),
    (dict(peft_type='ADALORA'), r"adapters\.config\.peft_type='ADALORA' cannot be used here"),
    (dict(peft_type='PROMPT_TUNING'), r"peft_type='PROMPT_TUNING' cannot be used here"),
    (dict(peft_type='FOURIERFT'), r"peft_type='FOURIERFT' cannot be used here"),
    (dict(peft_type='LORA', target_modules=['q']), r'target_modules=.* adapters\.targets names'),
    (dict(peft_type='LORA', bias='all'), r"adapters\.config\.bias='all' trains biases of"),
    (dict(peft_type='LORA', modules_to_save=['head']), r'modules_to_save=.* heads train always'),
    (dict(peft_type='LORA', init_lora_weights='pissa'), r"init_lora_weights='pissa' changes .*PiS"),
    (dict(peft_type='LORA', rank=8), r"adapters\.config: .*unexpected keyword argument 'rank'"),
    (dict(peft_type='LORA', r=0), r'adapters\.config: .*r'),
    (dict(peft_type='IA3', feedforward_modules=['nothing']),
     r"adapters\.config\.feedforward_modules: pattern 'nothing' matches no linear layer"),
])  # fmt: skip
def test_what_is_refused(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        tuned(config)
    assert '\n' not in str(caught.value)


def test_it_comes_before_what_changes_outputs():
    adapter = dict(type='vpt_dense.PEFT', config=dict(peft_type='IA3'))
    lora = dict(type='vpt_dense.LoRA')
    tiny_vit(adapters=[adapter, lora])
    with pytest.raises(ValueError, match='adapters: PEFT must act on .* list PEFT before it'):
        tiny_vit(adapters=[lora, adapter])


def test_without_the_package_one_line_says_so(monkeypatch):
    def fail(name, *args, **kwargs):
        if name == 'peft':
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, '__import__', fail)
    with pytest.raises(UserError, match=r'needs peft: pip install vpt_dense\[peft\]$'):
        tuned(dict(peft_type='LORA'))


@every_kind
def test_it_is_built_without_memory(name):
    """As where a delta is made of a checkpoint."""
    with torch.device('meta'):
        config = dict(SETTINGS[name], **(
            dict(feedforward_modules=[r'\.qkv$']) if 'inputs' in name else {}))
        model = tiny_vit(adapters=[dict(type='vpt_dense.PEFT', config=config)])
    real = tiny_vit(adapters=[dict(type='vpt_dense.PEFT', config=config)])
    shapes = {n: p.shape for n, p in real.named_parameters()}
    assert shapes == {n: p.shape for n, p in model.named_parameters()}
    assert all(p.is_meta for p in model.parameters())


def test_memory_is_not_estimated_and_one_line_says_so():
    adapter = dict(type='vpt_dense.PEFT', config=dict(peft_type='IA3'))
    with FakeTensorMode(), pytest.raises(UserError, match='memory cannot be estimated with vpt_de'):
        tiny_vit(adapters=[adapter])


def test_folders_of_peft_do_not_take_them(tmp_path):
    with pytest.raises(UserError, match='no place for PEFT; keep a delta'):
        vpt_dense.save_peft(tuned(dict(peft_type='LORA')), tmp_path)

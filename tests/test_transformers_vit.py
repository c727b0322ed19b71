"""transformers' vision transformers, tuned in place: timm's model of the same weights is judge."""

import copy
import inspect
import itertools
import pickle
import re
from functools import partial

import pytest
import torch
import transformers
from methods import ROWS
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn
from utils import images, randomise

import vpt_dense
from vpt_dense.adapters import SSF
from vpt_dense.adapters.updates import LinearUpdates
from vpt_dense.backbones.hosts import host_of
from vpt_dense.backbones.timm_vit import TimmBackbone
from vpt_dense.backbones.transformers_vit import FAMILIES, TransformersBackbone
from vpt_dense.errors import UserError

_SIZES = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32,
    patch_size=8)
#: What a model has beside these sizes.
_OWN = {
    'Dinov2Model': dict(mlp_ratio=2, layerscale_value=0.5),
    'Dinov2WithRegistersModel': dict(mlp_ratio=2, num_register_tokens=2),
    'DINOv3ViTModel': dict(num_register_tokens=2, key_bias=False, pos_embed_rescale=None),
}
_OWN['DINOv3ViTBackbone'] = _OWN['DINOv3ViTModel']

TOKENS = dict(type='vpt_dense.TokenPrompt', num_tokens=3)
DEEP = dict(TOKENS, deep=True)


def build(name: str, **settings) -> nn.Module:
    """A model of transformers, random and in float64."""
    kind = getattr(transformers, name)
    config = kind.config_class(**{**_SIZES, **_OWN.get(name, {}), **settings})
    return randomise(kind(config)).double().eval()


#: The models that this version of transformers has; of CLIP and SigLIP they were in others once.
NAMES = [
    name for name in FAMILIES
    if hasattr(transformers, name) and hasattr(build(name), 'embeddings')]


def tune(model: nn.Module, **method) -> nn.Module:
    """Tune it in place, every added parameter with a value of its own."""
    host_of(model).take_over(model, **method)
    for part in ('prompt', 'image_prompt', 'adapters'):
        if getattr(model, part) is not None:
            randomise(getattr(model, part), seed=1)
    return model


def pictures(size: int = 32) -> Tensor:
    return images(2, 3, size, size).double()


def features(model: nn.Module, **further) -> Tensor:
    return model(pictures(), **further).last_hidden_state


# --- without a method ---------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_without_a_method_it_is_transformers(name):
    plain, tuned = build(name), tune(build(name))
    assert type(tuned).__name__ == name and isinstance(tuned, type(plain))
    for mode, further in (
        (False, {}), (False, dict(output_hidden_states=True)), (False, dict(return_dict=False)),
        (True, dict(output_hidden_states=True, output_attentions=True)),
    ):
        for model in (plain, tuned):
            model.train(mode)
            model.set_attn_implementation('eager' if mode else 'sdpa')
        torch.manual_seed(0)
        expected = plain(pictures(), **further)
        torch.manual_seed(0)
        found = tuned(pixel_values=pictures(), **further)
        assert_same(found, expected)
    assert 'attentions' in expected and len(expected.attentions) == 3


def assert_same(found, expected):
    """Equal bit for bit, in form too."""
    if isinstance(expected, dict):
        assert type(found) is type(expected) and found.keys() == expected.keys()
        found, expected = tuple(found.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_dropout_and_drop_path_as_transformers_has_them():
    for name, settings in (
        ('ViTModel', dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)),
        ('DINOv3ViTModel', dict(drop_path_rate=0.5, attention_dropout=0.2, use_gated_mlp=True)),
        ('Dinov2Model', dict(drop_path_rate=0.5, use_swiglu_ffn=True)),
    ):
        plain, tuned = build(name, **settings), tune(build(name, **settings))
        for model in (plain, tuned):
            model.train()
            model.set_attn_implementation('eager')
        torch.manual_seed(0)
        expected = features(plain)
        torch.manual_seed(0)
        assert torch.equal(features(tuned), expected), name
        assert not torch.equal(features(tuned), expected), 'nothing is random'


# --- timm's model of the same weights -----------------------------------------------------------

#: timm's name -> transformers', of the parts of a block.
_PARTS = {
    'norm1': ('layernorm_before', 'norm1'), 'norm2': ('layernorm_after', 'norm2'),
    'attn.proj': ('attention.o_proj', 'attention.output.dense'),
    'mlp.fc1': ('mlp.fc1', 'mlp.up_proj', 'intermediate.dense'),
    'mlp.fc2': ('mlp.fc2', 'mlp.down_proj', 'output.dense'), 'ls1.gamma': ('layer_scale1.lambda1',),
    'ls2.gamma': ('layer_scale2.lambda1',), 'gamma_1': ('layer_scale1.lambda1',),
    'gamma_2': ('layer_scale2.lambda1',),
}
TWINS = ('ViTModel', 'Dinov2Model', 'Dinov2WithRegistersModel', 'DINOv3ViTModel')


def timm_twin(model: nn.Module) -> nn.Module:
    """timm's model with the weights of one of transformers."""
    name, own = type(model).__name__, model.state_dict()
    common = dict(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2, num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=model.config.layer_norm_eps), global_pool='token',
        init_values=None if name == 'ViTModel' else 1.0)
    (layers,) = [n for n, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    older = any('.attention.attention.' in key for key in own)
    linears = [f'attention.{each}' for each in ('query', 'key', 'value')] if older else [
        f'{each}_proj' for each in 'qkv']
    norm = 'norm' if 'norm.weight' in own else 'layernorm'
    patches, registers = FAMILIES[name].patches, own.get('embeddings.register_tokens')
    weights = {'cls_token': own['embeddings.cls_token'], 'reg_token': registers}
    if name == 'DINOv3ViTModel':
        twin = Eva(
            **common, use_rot_pos_emb=True, use_abs_pos_emb=False, rope_type='dinov3',
            rope_temperature=100.0, rope_rotate_half=True, num_reg_tokens=2,
            use_fc_norm=False)
    else:
        twin = VisionTransformer(**common, reg_tokens=0 if registers is None else 2)
        positions = own['embeddings.position_embeddings']  # registers have none
        none = positions.new_zeros(1, twin.pos_embed.shape[1] - positions.shape[1], 32)
        weights['pos_embed'] = torch.cat((positions[:, :1], none, positions[:, 1:]), 1)
    for end in ('weight', 'bias'):
        weights[f'norm.{end}'] = own[f'{norm}.{end}']
        weights[f'patch_embed.proj.{end}'] = own[f'{patches}.{end}']
        for i in range(3):
            parts = [
                own.get(f'{layers}.{i}.attention.{linear}.{end}', torch.zeros(32).double())
                for linear in linears]
            weights[f'blocks.{i}.attn.qkv.{end}'] = torch.cat(parts)
            weights[f'blocks.{i}.attn.q_bias'], weights[f'blocks.{i}.attn.v_bias'] = (
                parts[0], parts[2])  # the last that are written are the biases
    for i, (theirs, names) in itertools.product(range(3), _PARTS.items()):
        for here, end in itertools.product(names, ('', '.weight', '.bias')):
            if f'{layers}.{i}.{here}{end}' in own:
                weights[f'blocks.{i}.{theirs}{end}'] = own[f'{layers}.{i}.{here}{end}']
    twin.double().load_state_dict({key: weights[key] for key in twin.state_dict()
                                   if not key.endswith('k_bias')}, strict=False)
    if name == 'DINOv3ViTModel':  # computed in float32 by both, in another order
        cosine, sine = model.rope_embeddings(pictures())
        twin.rope.pos_embed_cached.copy_(torch.cat((sine, cosine), -1))
    return twin.eval()


def pairs(ours: nn.Module, twins: nn.Module) -> list[tuple[list[Tensor], Tensor]]:
    """What a method adds, there and at timm's twin, where fused layers have one for three."""
    found = []
    for one, other in zip(ours.adapters, twins.adapters, strict=True):
        if isinstance(one, LinearUpdates):  # of DINOv3 keys come first
            block = re.compile(r'(.*?\.\d+)\.')
            ends = ('q_proj', 'query'), ('k_proj', 'key'), ('v_proj', 'value')
            here = sorted(
                zip(one.names, one.updates, strict=True), key=lambda each: (
                    block.match(each[0])[1],
                    next((i for i, end in enumerate(ends) if each[0].endswith(end)), 3)))
            for (_, a), b in zip(here, other.updates, strict=True):
                found += [([p], q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
        elif isinstance(one, SSF):
            modules = iter(one.affines)
            for name, b in zip(other.names, other.affines, strict=True):
                group = [next(modules) for _ in range(3 if name.endswith('qkv') else 1)]
                found.append(([a.gamma for a in group], b.gamma))
                found.append(([a.beta for a in group], b.beta))
        else:
            found += [([p], q) for p, q in zip(one.parameters(), other.parameters(), strict=True)]
    if ours.prompt is not None:
        found += [([p], q) for p, q in zip(
            ours.prompt.parameters(), twins.prompt.parameters(), strict=True)]
    return found


_METHODS = {
    **{row: ROWS[row].tuning for row in (
        'shallow', 'deep', 'prefix', 'e2vpt', 'vfpt', 'gated', 'residual', 'vapt', 'pixel',
        'add-deep',
        'deep, first 2', 'deep, projected', 'shallow, in the middle', 'lora-qv', 'cvpt', 'adapter',
        'adaptformer', 'rep-adapter', 'ssf', 'rein', 'mona', 'convpass', 'dora-qv', 'pissa-qv',
        'soma', 'vera')},
    'deep, as tokens': dict(prompt=DEEP, prompts_as='tokens'),
    'shallow and all weights': dict(prompt=TOKENS, trainable=['.*']),
    'deep and LoRA': dict(prompt=DEEP, adapters=ROWS['lora-qv'].tuning['adapters']),
    'deep, SSF and RepAdapter': dict(
        prompt=DEEP, adapters=[
            *ROWS['ssf'].tuning['adapters'], *ROWS['rep-adapter'].tuning['adapters']]),
    'LoRA of all but q, k, v': dict(
        adapters=[dict(type='vpt_dense.LoRA', rank=2, targets=[r'\.(proj|fc1|fc2)$'])]),
}


@pytest.mark.parametrize('method', [name for name in _METHODS if 'all weights' not in name])
@pytest.mark.parametrize('name', TWINS)
def test_a_method_does_what_it_does_at_timms_twin(name, method):
    plain = build(name)
    twin = timm_twin(plain)
    before = features(plain)
    assert_close(twin.forward_features(pictures()), before)
    ours = tune(plain, **_METHODS[method])
    TimmBackbone.take_over(twin, **_METHODS[method])
    matched = pairs(ours, twin)
    assert len(matched) == sum(p.requires_grad for p in twin.parameters())
    with torch.no_grad():
        for here, there in matched:
            there.copy_(torch.cat(here) if len(here) > 1 else here[0])
    out = features(ours)
    assert (out - before).abs().max() > 1e-4
    assert_close(twin.forward_features(pictures()), out)
    direction = images(*out.shape, seed=5).double()
    (features(ours) * direction).sum().backward()
    (twin.forward_features(pictures()) * direction).sum().backward()
    for here, there in matched:
        grads = [each.grad for each in here]
        assert_close(torch.cat(grads) if len(here) > 1 else grads[0], there.grad)
    assert any(there.grad.abs().max() > 1e-4 for _, there in matched)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_prompts_as_keys_and_values_are_tokens(name):
    """And neither way are they among what transformers returns, whatever attends."""
    plain = build(name)(pictures(), output_hidden_states=True)
    found = []
    for prompts_as in ('keys_values', 'tokens'):
        model = tune(build(name), prompt=DEEP, prompts_as=prompts_as)
        assert model.keys_values_layers == ([0, 1, 2] if prompts_as == 'keys_values' else [])
        for kind in ('sdpa', 'eager'):
            model.set_attn_implementation(kind)
            found.append(model(pictures(), output_hidden_states=True))
            assert found[-1].keys() == plain.keys()
    for key in plain:
        for one, eager, other, _ in zip(*(out[key] for out in found), strict=True):
            assert_close(other, one, 1e-12)
            assert_close(eager, one, 1e-6)  # some take the softmax in float32 there
        for before, now in zip(plain[key], found[0][key], strict=True):
            assert now.shape == before.shape
    assert (found[0].hidden_states[-1] - plain.hidden_states[-1]).abs().max() > 1e-4


def test_prompts_that_flow_on_are_not_returned():
    for name in NAMES[3:]:
        model = tune(build(name), prompt=TOKENS)
        seen = []
        first = model.named_blocks()[1][1]  # the block gets no prompts, its attention does
        attention = getattr(first, first.names[0])
        first.register_forward_hook(lambda _, args, out, seen=seen: seen.append((args[0], out)))
        attention.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        out = model(pictures(), output_hidden_states=True)
        tokens = model.num_first + 16
        assert [len(h[0]) for h in out.hidden_states] == [tokens] * 4
        inside, (came, went) = seen
        assert inside.shape[1] == tokens + 3 and came.shape[1] == went.shape[1] == tokens
        known = dict(SiglipVisionModel=0, CLIPVisionModel=1, Dinov2WithRegistersBackbone=5)
        assert model.num_first == known.get(name, 3)


def test_weights_of_attention_have_columns_for_prompts():
    model = tune(build('DINOv3ViTModel'), prompt=DEEP)
    model.set_attn_implementation('eager')
    weights = model(pictures(), output_attentions=True).attentions
    assert [w.shape for w in weights] == [(2, 4, 19, 22)] * 3
    assert_close(weights[0].sum(-1), torch.ones(2, 4, 19).double(), 1e-12)


def test_images_of_other_sizes():
    for name in set(NAMES) & {'ViTModel', 'Dinov2Model', 'DINOv3ViTModel', 'SiglipVisionModel'}:
        further = {} if 'DINO' in name.upper() else dict(interpolate_pos_encoding=True)
        big = pictures(48)[..., :40, :]
        outs = [
            tune(build(name), prompt=DEEP, prompts_as=way)(big, **further).last_hidden_state
            for way in ('keys_values', 'tokens')]
        assert outs[0].shape[1] == 5 * 6 + (1, 0)['Sig' in name] + 2 * ('v3' in name)
        assert_close(*outs, 1e-12)
        plain = build(name)
        expected = plain(big, **further).last_hidden_state
        assert torch.equal(tune(plain)(big, **further).last_hidden_state, expected)


@pytest.mark.skipif(
    'attention_mask' not in inspect.signature(transformers.ViTModel.forward).parameters,
    reason='transformers takes no mask for images')
def test_a_mask_that_knows_no_prompts_is_refused():
    mask = torch.ones(2, 17)
    mask[:, 5] = 0
    for way in ('keys_values', 'tokens'):
        model = tune(build('ViTModel'), prompt=DEEP, prompts_as=way)
        with pytest.raises(UserError, match='leave attention_mask out'):
            model(pictures(), attention_mask=mask)
    plain = build('ViTModel')
    expected = plain(pictures(), attention_mask=mask).last_hidden_state
    found = tune(plain)(pictures(), attention_mask=mask).last_hidden_state
    assert torch.equal(found, expected) and not torch.equal(found, features(plain))


# --- checkpointing ------------------------------------------------------------------------------


@pytest.mark.parametrize('before', [False, True], ids=['switched on later', 'on before'])
@pytest.mark.parametrize('method', ['deep', 'shallow', 'lora-qv', 'shallow and all weights'])
def test_checkpointing_is_ours(method, before):
    """transformers' would run a block again without the prompts that flowed into it."""
    grads = []
    for checkpointing in (False, True):
        model = build('DINOv3ViTModel')
        if before and checkpointing:
            model.gradient_checkpointing_enable()
        tune(model, **_METHODS[method]).train()
        if not before and checkpointing:
            model.gradient_checkpointing_enable()
        layers = [block for _, block in model.named_blocks()]
        assert {block.recompute for block in layers} == {'block' if checkpointing else None}
        assert model.is_gradient_checkpointing == checkpointing
        runs = []
        layers[0].mlp.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        features(model).square().sum().backward()
        assert len(runs) == 1 + checkpointing
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
        model.gradient_checkpointing_disable()
        assert {block.recompute for block in layers} == {None}
    assert all(map(torch.equal, *grads)) and grads[0]


@pytest.mark.skipif(
    not hasattr(transformers.PreTrainedModel, 'activation_checkpointing_enable'),
    reason='transformers moves no tensors')
def test_checkpointing_that_moves_tensors_is_refused():
    model = tune(build('ViTModel'), prompt=DEEP)
    with pytest.raises(UserError, match='leave offload out'):
        model.activation_checkpointing_enable(offload=True)


# --- copies, files, and back --------------------------------------------------------------------


def state(model: nn.Module) -> list:
    """All that a model is: classes, attributes, hooks, modes, tensors and what trains."""
    return [
        (name, type(module), module.training, vars(module).keys(),
         [hook for hooks in (module._forward_hooks, module._forward_pre_hooks)
          for hook in hooks.values()],
         [(n, p.requires_grad, p.dtype) for n, p in module.named_parameters(recurse=False)])
        for name, module in model.named_modules()]


@pytest.mark.parametrize('name', NAMES)
def test_it_is_given_back_as_it_was(name):
    model = build(name)
    model.set_attn_implementation('eager')
    next(model.parameters()).requires_grad_(False)
    before, tensors = state(model), copy.deepcopy(model.state_dict())
    expected = model(pictures(), output_hidden_states=True)
    hooked = state(model)
    for method in ('deep, SSF and RepAdapter', 'lora-qv', 'shallow'):
        tune(model, **_METHODS[method])
        model(pictures(), output_hidden_states=True, output_attentions=True)
        assert model.give_back() is model
        assert state(model) == hooked
    assert [each[:3] for each in before] == [each[:3] for each in hooked]
    assert all(map(torch.equal, model.state_dict().values(), tensors.values()))
    assert_same(model(pictures(), output_hidden_states=True), expected)


def test_outputs_that_were_first_recorded_while_tuned_are_recorded_once_afterwards():
    for name in ('ViTModel', 'Dinov2Model'):
        model = tune(build(name), prompt=DEEP)
        model(pictures(), output_hidden_states=True)
        out = model.give_back()(pictures(), output_hidden_states=True)
        assert len(out.hidden_states) == 4


def test_places_stay_in_training_unless_asked_for():
    """transformers' released configs vary the places of DINOv3 whenever the model trains."""
    model = build('DINOv3ViTModel', pos_embed_rescale=2.0).train()
    assert not torch.equal(features(model), features(model))
    tune(model, prompt=DEEP).train()
    assert torch.equal(features(model), features(model))
    model.rope_embeddings.train()
    assert not torch.equal(features(model), features(model))


@pytest.mark.parametrize('name', ['ViTModel', 'DINOv3ViTModel'])
def test_the_plain_interface_tunes_them(tmp_path, name):
    """By names of methods, prompts in images too; with a delta for another copy of the model."""
    for method in ('deep', 'lor-vp', 'bias'):
        model = build(name)
        before = features(model)
        vpt_dense.tune(model, method)
        for part in model.parameters():
            if part.requires_grad:
                nn.init.normal_(part, std=0.1)
        assert not torch.equal(features(model), before)
        vpt_dense.save_delta(model, tmp_path / 'delta.safetensors')
        again = vpt_dense.load_delta(build(name), tmp_path / 'delta.safetensors')
        assert torch.equal(features(again), features(model))
        if method != 'bias':
            assert torch.equal(features(vpt_dense.untune(again)), before)


def test_a_copy_is_of_its_own_and_a_pickle_is_the_model():
    model = tune(build('DINOv3ViTModel'), **_METHODS['deep, SSF and RepAdapter'])
    expected = features(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and torch.equal(features(other), expected)
        with torch.no_grad():
            other.prompt.tokens.zero_()
            other.adapters[0].affines[0].gamma.zero_()
        assert not torch.equal(features(other), expected)
        assert torch.equal(features(model), expected)
        assert type(other.give_back()) is transformers.DINOv3ViTModel


def test_save_pretrained_holds_everything(tmp_path):
    model = tune(build('ViTModel'), **_METHODS['deep and LoRA'])
    expected = features(model)
    model.save_pretrained(tmp_path)
    plain, told = transformers.ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert plain.config.architectures == ['ViTModel'] and not told['missing_keys']
    assert all(key.startswith(('prompt.', 'adapters.')) for key in told['unexpected_keys'])
    # Products may round otherwise where tensors that were read are not aligned as others are.
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    close(features(plain.eval()), features(copy.deepcopy(model).give_back()))
    again = tune(plain, **_METHODS['deep and LoRA'])
    again.load_state_dict(model.state_dict())
    close(features(again), expected)


def test_a_forward_that_was_replaced_is_refused_and_never_passed_by():
    for place in ('', 'encoder.layer.1', 'encoder.layer.1.attention'):
        model = build('Dinov2Model')
        module = model.get_submodule(place)
        expected = features(tune(copy.deepcopy(model), prompt=DEEP))
        module.forward = module.forward  # as transformers 5.0 leaves it when outputs are recorded
        assert torch.equal(features(tune(model, prompt=DEEP)), expected)
        model.give_back()
        before = state(model)
        module.forward = partial(module.forward)
        with pytest.raises(UserError, match='its forward was replaced'):
            tune(model, prompt=DEEP)
        del module.forward
        assert state(model) == before


def test_inside_of_a_model_with_a_head():
    config = transformers.ViTConfig(**_SIZES, num_labels=5)
    model = randomise(transformers.ViTForImageClassification(config)).double().eval()
    with pytest.raises(UserError, match=r'Classification .* tune model\.vit, a ViTModel'):
        host_of(model)
    tune(model.vit, prompt=DEEP)
    with pytest.raises(UserError, match='its part vit, a ViTModel, is tuned already'):
        host_of(model)
    out = model(pictures(), labels=torch.tensor([0, 1]), output_hidden_states=True)
    out.loss.backward()
    assert model.vit.prompt.tokens.grad.abs().sum() > 0 and len(out.hidden_states) == 4
    assert model.vit.block_list()[0].fc2.weight.grad is None


def test_frozen_weights_in_half_precision():
    for name in ('ViTModel', 'DINOv3ViTModel'):
        plain = build(name).float()
        expected = tune(copy.deepcopy(plain), prompt=DEEP)(images(2, 3, 32, 32))
        model = tune(plain, prompt=DEEP, frozen_dtype='bfloat16')
        found = model(images(2, 3, 32, 32)).last_hidden_state
        assert_close(found, expected.last_hidden_state, 0.1)
        assert not torch.equal(found, expected.last_hidden_state)
        found.sum().backward()
        assert model.prompt.tokens.grad.dtype == torch.float32
        assert model.give_back().dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize('method', ['deep', 'lora-qv'])
def test_the_graph_is_whole(method):
    model = tune(build('DINOv3ViTModel'), **ROWS[method].tuning)
    expected = features(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    assert_close(features(compiled), expected, 1e-12)


# --- which class tunes which model --------------------------------------------------------------


def test_hosts():
    for name in NAMES:
        assert host_of(build(name)) is TransformersBackbone
    assert host_of(VisionTransformer(depth=1)) is TimmBackbone
    for model, message in (
        (nn.Linear(1, 1), "Linear cannot be tuned: supported are timm's VisionTransformer"),
        (nn.Sequential(nn.ReLU(), build('ViTModel')), r'tune model\.1, a ViTModel, instead'),
        (tune(build('ViTModel')), 'ViTModel cannot be tuned: it is tuned already'),
        (transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(
            **{**_SIZES, 'num_patches': 16})),
         "Siglip2VisionModel cannot be tuned: it is none of transformers' ViTModel"),
    ):
        with pytest.raises(UserError, match=message):
            host_of(model)
    other = build('ViTModel')
    (layers,) = [module for module in other.modules() if isinstance(module, nn.ModuleList)]
    layers[1] = nn.Identity()
    with pytest.raises(UserError, match=r'\.1 is no ViTLayer but Identity'):
        host_of(other)
    layers[0] = layers[2] = nn.Identity()
    with pytest.raises(UserError, match='has no embeddings and list of ViTLayer of its own'):
        host_of(other)


def test_depths_of_parameters():
    model = tune(build('DINOv3ViTModel'), prompt=DEEP)
    for name, depth in {
        'embeddings.cls_token': 0, f'{model.path}.0.norm1.weight': 1,
        f'{model.path}.2.norm1.weight': 3, 'norm.weight': 4, 'prompt.tokens': 4,
    }.items():
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 5)
    assert model.get_layer_depth('decode_head.conv_seg.weight', 'backbone.') == (4, 5)
    assert model.patch_resolution == (4, 4)
    assert model.describe() == 'DINOv3ViTModel of width 32 on 4x4 patches'

"""PEFT's folders of LoRA: PEFT itself is the judge, where it is installed."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from utils import images, randomise

import vpt_dense
from vpt_dense.backbones.hosts import host_of
from vpt_dense.checkpoints import peft_format
from vpt_dense.errors import UserError

#: The names of its layers are those of 5.9 and later here.
transformers = pytest.importorskip('transformers', '5.9')

_SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
    patch_size=8)


def build(name: str) -> nn.Module:
    """A random model: of transformers, of timm, or one of transformers with a head."""
    if name == 'timm':
        model = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)
    elif name == 'head':
        model = transformers.ViTForImageClassification(
            transformers.ViTConfig(**_SIZES, num_labels=3))
    else:
        kind = getattr(transformers, name)
        model = kind(kind.config_class(**_SIZES))
    return randomise(model).eval()


def backbone_of(model: nn.Module) -> nn.Module:
    return getattr(model, 'vit', model)


def tune(model: nn.Module, *adapters: dict, **method) -> nn.Module:
    """Tune its backbone, every adapter with values of its own."""
    own = backbone_of(model)
    adapters = [dict(dict(type='vpt_dense.LoRA'), **each) for each in adapters]
    host_of(own).take_over(own, adapters=adapters, **method)
    randomise(own.adapters, seed=1)
    return model


def read(folder, model: nn.Module, **further) -> nn.Module:
    """Tune a plain model as a folder says."""
    own = backbone_of(model)
    host_of(own).take_over(own, adapters=peft_format.adapters(folder, model, own))
    peft_format.load(folder, model, **further)
    return model


def features(model: nn.Module) -> Tensor:
    out = model(images(2, 3, 32, 32))
    if isinstance(out, Tensor):
        return out
    return out.logits if 'logits' in out else out.last_hidden_state


def assert_close(found: Tensor, expected: Tensor):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


#: Our LoRA -> a model and the adapters.
_OURS = {
    'ViT, queries and values': ('ViTModel', [dict(rank=2, alpha=3, parts=['q', 'v'])]),
    'ViT, all layers': ('ViTModel', [dict(rank=3, targets=[r'\.(qkv|proj|fc1|fc2)$'])]),
    'ViT, two ranks': ('ViTModel', [
        dict(rank=2, alpha=5, parts=['q', 'k']),
        dict(rank=4, alpha=1, targets=[r'\.(fc1|proj)$'])]),
    'ViT, the last block': ('ViTModel', [dict(rank=2, targets=[r'^layers\.1\..*q_proj$'])]),
    'ViT with a head': ('head', [dict(rank=2, parts=['q', 'v'])]),
    'DINOv3': ('DINOv3ViTModel', [dict(rank=2, alpha=3, targets=[r'\.(q|v|fc1|fc2)$'])]),
    'timm': ('timm', [dict(rank=2, alpha=3, targets=[r'\.(qkv|fc1)$'])]),
    'rank-stabilised': ('ViTModel', [dict(rank=3, alpha=5, rslora=True, parts=['q', 'v'])]),
    'DoRA': ('ViTModel', [
        dict(type='vpt_dense.DoRA', rank=2, alpha=3, targets=[r'\.(qkv|fc1)$'])]),
    'DoRA, timm': ('timm', [
        dict(type='vpt_dense.DoRA', rank=2, alpha=3, rslora=True),
        dict(type='vpt_dense.DoRA', rank=4, targets=[r'\.fc2$'])]),
}  # fmt: skip
#: Keys of PEFT's LoraConfig -> a model.
_THEIRS = {
    'ends': ('ViTModel', dict(r=2, lora_alpha=3, target_modules=['q_proj', 'v_proj'])),
    'a regex': ('ViTModel', dict(r=2, target_modules=r'layers\.1\..*(k_proj|fc\d)')),
    'all linear layers': ('ViTModel', dict(r=2, target_modules='all-linear')),
    'rank-stabilised': ('ViTModel', dict(
        r=4, lora_alpha=3, target_modules=['fc1'], use_rslora=True)),
    'patterns': ('ViTModel', dict(
        r=4, lora_alpha=3, target_modules=['fc1', 'q_proj'], rank_pattern={'fc1': 2},
        alpha_pattern={r'layers\.0\..*q_proj': 9})),
    'some layers': ('head', dict(
        r=2, target_modules=['fc1'], layers_to_transform=[1], layers_pattern='layers')),
    'DINOv3': ('DINOv3ViTModel', dict(
        r=2, lora_alpha=3, target_modules=['q_proj', 'up_proj', 'o_proj'], lora_dropout=0.1)),
    'timm': ('timm', dict(r=2, lora_alpha=3, target_modules=['qkv', 'fc2'])),
    'DoRA': ('ViTModel', dict(
        r=2, lora_alpha=3, target_modules=['q_proj', 'fc2'], use_dora=True, use_rslora=True)),
    'a head': ('head', dict(
        r=2, target_modules=['q_proj', 'v_proj'], modules_to_save=['classifier'])),
}  # fmt: skip


@pytest.mark.parametrize('case', _OURS)
def test_what_is_written_is_read(tmp_path, case):
    name, adapters = _OURS[case]
    model = tune(build(name), *adapters)
    peft_format.write(model, tmp_path)
    again = read(tmp_path, build(name))
    assert_close(features(again), features(model))
    assert (features(again) - features(build(name))).abs().max() > 1e-3
    ours, others = ({p.shape for p in backbone_of(m).adapters.parameters()} for m in (model, again))
    assert ours == others
    assert len(backbone_of(again).adapters) == len(adapters)


@pytest.mark.parametrize('case', _OURS)
def test_peft_computes_the_same_from_what_is_written(tmp_path, case):
    peft = pytest.importorskip('peft')
    name, adapters = _OURS[case]
    model = tune(build(name), *adapters)
    peft_format.write(model, tmp_path, heads=['classifier'] if name == 'head' else [])
    plain = build(name)
    if name == 'head':  # the file has the head too
        nn.init.zeros_(plain.classifier.weight)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    assert_close(features(theirs), features(model))
    layers = sum(type(module).__name__ == 'Linear' and hasattr(module, 'lora_A')
                 for module in theirs.modules())
    assert layers == sum(len(adapter.names) for adapter in backbone_of(model).adapters)


@pytest.mark.parametrize('case', _THEIRS)
def test_what_peft_trained_computes_the_same_here(tmp_path, case):
    peft = pytest.importorskip('peft')
    name, settings = _THEIRS[case]
    theirs = peft.get_peft_model(build(name), peft.LoraConfig(**settings))
    optimizer = torch.optim.SGD((p for p in theirs.parameters() if p.requires_grad), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        features(theirs).square().mean().backward()
        optimizer.step()
    theirs.save_pretrained(tmp_path)
    theirs.eval()
    assert (features(theirs) - features(build(name))).abs().max() > 1e-5
    model = read(tmp_path, build(name), heads=name == 'head')
    assert_close(features(model), features(theirs))
    trained = [n for n, p in theirs.named_parameters() if p.requires_grad and 'lora_' in n]
    assert len(trained) == len(list(backbone_of(model).adapters.parameters()))
    dropouts = {u.p for u in backbone_of(model).adapters.modules() if isinstance(u, nn.Dropout)}
    assert dropouts == {settings.get('lora_dropout', 0.0)}


def test_names_are_short_where_they_can_be(tmp_path):
    for case, expected in {
        'ViT, queries and values': ['q_proj', 'v_proj'],
        'ViT, the last block': ['layers.1.attention.q_proj'], 'timm': ['fc1', 'qkv'],
    }.items():
        name, adapters = _OURS[case]
        peft_format.write(tune(build(name), *adapters), tmp_path)
        config = json.loads((tmp_path / 'adapter_config.json').read_text())
        assert config['target_modules'] == expected
        assert config['lora_alpha'] == (2 if 'last' in case else 3) and config['r'] == 2
    assert set(load_file(tmp_path / 'adapter_model.safetensors')) >= {
        'base_model.model.blocks.0.attn.qkv.lora_A.weight'}


def test_what_has_no_place_in_the_format_is_told(tmp_path):
    lora = dict(rank=2)
    deep = dict(type='vpt_dense.TokenPrompt', num_tokens=2, deep=True)
    for model, message in (
        (tune(build('ViTModel'), lora, prompt=deep), 'no place for TokenPrompt; keep a delta'),
        (tune(build('ViTModel'), lora, dict(type='vpt_dense.SSF')), 'no place for SSF'),
        (tune(build('ViTModel'), lora, trainable=[r'^adapters\.', 'bias$']),
         r'no place for \d+ tensors of the backbone that train \(.*bias, ...\), as biases do'),
        (tune(build('timm'), dict(rank=2, parts=['q', 'v'])),
         r'adapters.parts: blocks.0.attn.qkv makes .* leave parts out'),
        (tune(build('ViTModel'), lora, lora), 'has two LoRA, PEFT takes one a layer'),
        (tune(build('ViTModel'), dict(lora, type='vpt_dense.DoRA'), dict(
            rank=2, targets=['fc1'])), 'one use_dora for all layers, found LoRA and DoRA'),
        (tune(build('ViTModel'), dict(rank=2, parts=['q'], dropout=0.1), dict(
            rank=2, parts=['k'])), r'one lora_dropout for all layers, found \[0.0, 0.1\]'),
        (tune(build('ViTModel'), trainable=[]), 'ViTModel has no LoRA'),
        (build('ViTModel'), 'holds 0 tuned backbones'),
    ):
        with pytest.raises(UserError, match=message):
            peft_format.write(model, tmp_path)
    for head in ('vit', 'vit.layers', 'vit.layers.0', 'nowhere', ''):
        with pytest.raises(UserError, match=f'heads: {head} is no head of ViTForImage'):
            peft_format.write(tune(build('head'), lora), tmp_path, heads=[head])
    assert not list(tmp_path.iterdir())


def test_what_is_not_known_here_is_told(tmp_path):
    peft_format.write(tune(build('head'), dict(rank=2, parts=['q'])), tmp_path)
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    for settings, message in (
        (dict(use_dora=True), 'use_dora=True, but adapter_model.safetensors lacks vit.layers.0.*q'),
        (dict(use_qalora=True), 'use_qalora=True is not known here'),
        (dict(fan_in_fan_out=True), 'fan_in_fan_out=True'), (dict(bias='all'), "bias='all'"),
        (dict(peft_type='IA3'), "peft_type is 'IA3', LORA alone"),
        (dict(init_lora_weights='pissa'), "init_lora_weights='pissa' has changed the base"),
        (dict(target_modules=['q_proj', 'v_proj']),
         'target_modules names vit.layers.0.attention.v_proj, but'),
        (dict(lora_bias=True), 'lora_bias=True'),
    ):
        (tmp_path / 'adapter_config.json').write_text(json.dumps(config | settings))
        with pytest.raises(UserError, match=message):
            read(tmp_path, build('head'))
    (tmp_path / 'adapter_config.json').write_text('{')
    with pytest.raises(UserError, match='adapter_config.json is no JSON'):
        read(tmp_path, build('head'))
    (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='vit.layers.0.attention.q_proj is no linear layer of ViTM'):
        read(tmp_path, build('ViTModel'))
    for change, message in (
        (lambda t, k: t.pop(k), 'has lora_A and lora_B of shapes'),
        (lambda t, k: t.update({k: t[k][:1]}), 'has lora_A and lora_B of shapes'),
        (lambda t, k: t.update({k.replace('lora_A', 'lora_magnitude_vector'): t[k].clone()}),
         'lora_magnitude_vector.weight is not known here'),
    ):
        peft_format.write(tune(build('head'), dict(rank=2, parts=['q'])), tmp_path)
        tensors = load_file(tmp_path / 'adapter_model.safetensors')
        change(tensors, min(key for key in tensors if 'lora_A' in key))
        save_file(tensors, tmp_path / 'adapter_model.safetensors')
        with pytest.raises(UserError, match=message):
            read(tmp_path, build('head'))
    (tmp_path / 'adapter_model.safetensors').unlink()
    with pytest.raises((UserError, FileNotFoundError), match='adapter_model.safetensors'):
        read(tmp_path, build('head'))


@pytest.mark.parametrize('kind', ['PiSSA', 'SoMA'])
def test_what_started_from_components_is_a_lora_of_twice_the_rank(tmp_path, kind):
    peft = pytest.importorskip('peft')
    model = build('ViTModel')
    host_of(model).take_over(model, adapters=[dict(type=f'vpt_dense.{kind}', rank=2)])
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    peft_format.write(model, tmp_path)
    plain = features(build('ViTModel'))
    assert (features(model) - plain).abs().max() > 1e-3
    theirs = peft.PeftModel.from_pretrained(build('ViTModel'), tmp_path).eval()
    torch.testing.assert_close(features(theirs), features(model), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        features(read(tmp_path, build('ViTModel'))), features(model), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r'is updated by PiSSA or SoMA, .* model with LoRA'):
        peft_format.load(tmp_path, model)
    if kind == 'SoMA':
        with pytest.raises(UserError, match=r'SoMA: blocks.0.attn.qkv makes .* or keep a delta'):
            peft_format.write(tune(build('timm'), dict(type='vpt_dense.SoMA', rank=2)), tmp_path)


def test_a_dora_is_not_taken_for_a_lora(tmp_path):
    dora = dict(type='vpt_dense.DoRA', rank=2, parts=['q'])
    for name, (one, other) in dict(a=(dora, dict(rank=2, parts=['q'])),
                                   b=(dict(rank=2, parts=['q']), dora)).items():
        peft_format.write(tune(build('ViTModel'), one), tmp_path / name)
        model = tune(build('ViTModel'), other)
        before = features(model)
        with pytest.raises(UserError, match=r'q_proj has a DoRA there or in the model, not in bot'):
            peft_format.load(tmp_path / name, model)
        assert torch.equal(features(model), before)


def test_heads_are_loaded_when_they_are_asked_for(tmp_path):
    model = tune(build('head'), dict(rank=2, parts=['q']))
    nn.init.ones_(model.classifier.weight)
    peft_format.write(model, tmp_path, heads=['classifier'])
    plain = build('head')
    with pytest.raises(UserError, match=r"modules_to_save=\['classifier'\] .* heads=True"):
        read(tmp_path, plain)
    assert not torch.equal(plain.classifier.weight, model.classifier.weight)
    peft_format.load(tmp_path, plain, heads=True)
    assert_close(features(plain), features(model))
    with pytest.raises(UserError, match='has a LoRA there or in the model, not in both'):
        peft_format.load(tmp_path, tune(build('head'), dict(rank=2, parts=['v'])), heads=True)
    with pytest.raises(UserError, match=r'shape \(2, 32\), the model \(3, 32\)'):
        peft_format.load(tmp_path, tune(build('head'), dict(rank=3, parts=['q'])), heads=True)


def test_a_head_that_the_library_has_in_its_backbone(tmp_path):
    def build_timm() -> nn.Module:
        return randomise(timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=3)).eval()

    model = tune(build_timm(), dict(rank=2), trainable=[r'^adapters\.', r'^head\.'])
    nn.init.ones_(model.head.weight)
    with pytest.raises(UserError, match=r'2 tensors of the backbone that train \(head.weight'):
        peft_format.write(model, tmp_path)
    peft_format.write(model, tmp_path, heads=['head'])
    plain = build_timm()
    host_of(plain).take_over(
        plain, adapters=peft_format.adapters(tmp_path, plain),
        trainable=[r'^adapters\.', r'^head\.'])
    peft_format.load(tmp_path, plain, heads=True)
    assert_close(features(plain), features(model))
    peft = pytest.importorskip('peft')
    theirs = peft.PeftModel.from_pretrained(build_timm(), tmp_path).eval()
    assert_close(features(theirs), features(model))


def test_the_plain_functions(tmp_path):
    """A folder of a whole model, whose backbone is a part of it."""
    model, plain = build('head'), build('head')
    vpt_dense.tune(backbone_of(model), 'lora', rank=2)
    nn.init.ones_(backbone_of(model).adapters[0].updates[0].up)
    vpt_dense.save_peft(model, tmp_path)
    name = next(n for n, m in plain.named_modules() if m is backbone_of(plain))
    assert vpt_dense.load_peft(plain, tmp_path, backbone=name) is plain
    assert_close(features(plain.eval()), features(model.eval()))
    other = build('head')
    vpt_dense.tune(backbone_of(other), 'lora', rank=2, parts=['v'])
    with pytest.raises(UserError, match='has a LoRA there or in the model, not in both'):
        vpt_dense.load_peft(other, tmp_path, backbone=name)
    bare = build('head')
    with pytest.raises(UserError, match='nowhere'):
        vpt_dense.load_peft(bare, tmp_path / 'nowhere', backbone=name)
    assert type(backbone_of(bare)) is type(backbone_of(build('head')))

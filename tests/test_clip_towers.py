"""CLIP's towers on our blocks: equal to open_clip's and transformers', in each layout."""

import json

import pytest
import torch
from clip_models import (
    CONTEXT,
    SIZE,
    backbone_config,
    open_clip_model,
    text_config,
    transformers_model,
    vocab_size,
    write_tokenizer,
)
from mmengine.registry import MODELS
from safetensors.torch import save_file
from utils import images, randomise

from vpt_dense.errors import UserError
from vpt_dense.tokenizing import Tokenizer

TOLERANCE = dict(rtol=1e-5, atol=1e-5)
TEXTS = ['a photo of a red dog.', 'sky', 'a photo of a zebra.']


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp('tokenizer'))


def towers(path, tokenizer, **kwargs):
    start = dict(type='Pretrained', checkpoint=str(path))
    vision = MODELS.build(backbone_config(init_cfg=start, trainable=[], **kwargs))
    text = MODELS.build(text_config(tokenizer, init_cfg=start, **kwargs))
    for tower in (vision, text):
        randomise(tower, 5)
        tower.init_weights()
    return vision.eval(), text.eval()


def padded(text, texts):
    """Tokens as the home libraries take them: as long as the context."""
    ids, ends = text.tokenize(texts)
    whole = torch.zeros(len(ids), CONTEXT, dtype=torch.int64)
    whole[:, : ids.shape[1]] = ids
    return ids, ends, whole


@pytest.mark.parametrize('quick_gelu', [True, False])
@pytest.mark.parametrize('layout', ['plain', 'module.', 'custom_text'])
def test_open_clip(tmp_path, tokenizer, quick_gelu, layout):
    theirs = open_clip_model(vocab_size(tokenizer), quick_gelu)
    state = theirs.state_dict()
    if layout == 'module.':
        state = {f'module.{name}': tensor for name, tensor in state.items()}
    if layout == 'custom_text':
        state = {name if name.startswith(('visual.', 'logit_scale')) else f'text.{name}': tensor
                 for name, tensor in state.items()}
    save_file(state, tmp_path / 'a.safetensors')
    vision, text = towers(tmp_path / 'a.safetensors', tokenizer, quick_gelu=quick_gelu)
    x = images(2, 3, SIZE, SIZE)
    ids, ends, whole = padded(text, TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(vision(x)[0], theirs.encode_image(x), **TOLERANCE)
        torch.testing.assert_close(text(ids, ends), theirs.encode_text(whole), **TOLERANCE)
    assert text.logit_scale == 1.5 and theirs.encode_image(x).std() > 0.01


@pytest.mark.parametrize('quick_gelu', [True, False])
def test_transformers(tmp_path, tokenizer, quick_gelu):
    theirs = transformers_model(vocab_size(tokenizer), quick_gelu)
    theirs.save_pretrained(tmp_path / 'hf')
    vision, text = towers(tmp_path / 'hf/model.safetensors', tokenizer, quick_gelu=quick_gelu)
    x = images(2, 3, SIZE, SIZE)
    ids, ends, whole = padded(text, TEXTS)
    whole[torch.arange(CONTEXT) > ends[:, None]] = vocab_size(tokenizer) - 1
    with torch.no_grad():
        found = theirs(input_ids=whole, pixel_values=x)
        ours = [torch.nn.functional.normalize(each, dim=-1) for each in (
            vision(x)[0], text(ids, ends))]
        torch.testing.assert_close(ours[0], found.image_embeds, **TOLERANCE)
        torch.testing.assert_close(ours[1], found.text_embeds, **TOLERANCE)
        scores = text.logit_scale.exp() * ours[0] @ ours[1].T
        torch.testing.assert_close(scores, found.logits_per_image, **TOLERANCE)


@pytest.mark.parametrize(('name', 'content'), [
    ('config.json', dict(model_type='clip', vision_config=dict(hidden_act='gelu'))),
    ('config.json', dict(model_type='clip', vision_config={})),
    ('open_clip_config.json', dict(model_cfg=dict(embed_dim=24))),
    ('open_clip_config.json', dict(model_cfg=dict(quick_gelu=True))),
], ids=['transformers', 'their default', 'open_clip', 'open_clip, quick'])  # fmt: skip
def test_the_activation_that_the_weights_were_trained_with(tmp_path, tokenizer, name, content):
    save_file(open_clip_model(vocab_size(tokenizer)).state_dict(), tmp_path / 'a.safetensors')
    (tmp_path / 'config.json').write_text('{"architecture": "of timm"}')
    (tmp_path / name).write_text(json.dumps(content))
    quick = 'quick_gelu' in str(content) or 'vision_config' in content and not content[
        'vision_config']
    towers(tmp_path / 'a.safetensors', tokenizer, quick_gelu=quick)
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.safetensors'))
    for cfg in (backbone_config(), text_config(tokenizer)):
        with pytest.raises(UserError, match=f'quick_gelu is {not quick}, but the weights .*{name}'):
            MODELS.build(dict(cfg, init_cfg=start, quick_gelu=not quick)).init_weights()


def test_a_text_is_not_changed_by_longer_ones_beside_it(tokenizer):
    text = randomise(MODELS.build(text_config(tokenizer))).double().eval()
    ids, ends = text.tokenize(TEXTS)
    short, end = text.tokenize([TEXTS[1]])
    assert short.shape[1] == 3 < ids.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(
            text(short, end)[0], text(ids, ends)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('part', [
    dict(prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=2, deep=True)),
    dict(prompt=dict(type='vpt_dense.ResidualPrompt', num_tokens=2)),
    dict(prompt=dict(type='vpt_dense.GatedPrompt', num_tokens=2)),
    dict(prompt=dict(type='vpt_dense.SelfEnhancedPrompt', num_tokens=2, select='next')),
    *(dict(adapters=[dict(type=f'vpt_dense.{name}')]) for name in (
        'AdaptFormer', 'BottleneckAdapter', 'CVPT', 'LoRA', 'Rein', 'RepAdapter')),
], ids=lambda part: str(part).split('vpt_dense.')[1].split("'")[0])  # fmt: skip
def test_nor_with_what_is_tuned(tokenizer, part):
    text = randomise(MODELS.build({**text_config(tokenizer), **part})).double().eval()
    ids, ends = text.tokenize(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(text(*text.tokenize(TEXTS[1:2]))[0], text(ids, ends)[1],
                                   rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('part', [
    *(dict(prompt=dict(type=f'vpt_dense.{name}', num_tokens=2)) for name in (
        'VAPTPrompt', 'LSPTLikePrompt', 'IVPTLikePrompt')),
    *(dict(adapters=[dict(type=f'vpt_dense.{name}')]) for name in (
        'AddPrompt', 'Convpass', 'Mona', 'SSF')),
], ids=lambda part: str(part).split('vpt_dense.')[1].split("'")[0])  # fmt: skip
def test_what_reads_a_grid_of_patches_is_refused(tokenizer, part):
    """LSPT and iVPT would pool the padding behind a text."""
    with pytest.raises(ValueError, match='needs patches of images, on a grid, CLIPText'):
        MODELS.build({**text_config(tokenizer), **part})


def test_out_types(tokenizer):
    """Maps and vector of 'embeddings' are the projected tokens of 'raw'."""
    cfg = dict(trainable=[])
    raw = randomise(MODELS.build(backbone_config(**cfg, out_type='raw'))).eval()
    dense = MODELS.build(backbone_config(
        **cfg, out_type='embeddings', out_indices=[1, 3])).eval()
    dense.load_state_dict({**dense.state_dict(), **raw.state_dict()})
    x = images(2, 3, SIZE, 24)
    middle = MODELS.build(backbone_config(**cfg, out_type='featmap', out_indices=[1])).eval()
    middle.load_state_dict(raw.state_dict())
    with torch.no_grad():
        tokens = raw(x)[0]
        maps, embeddings, vector = dense(x)
        torch.testing.assert_close(vector, tokens[:, 0] @ dense.proj.weight.T, **TOLERANCE)
        torch.testing.assert_close(
            embeddings.flatten(2).transpose(1, 2), tokens[:, 1:] @ dense.proj.weight.T, **TOLERANCE)
        torch.testing.assert_close(maps, middle(x)[0], **TOLERANCE)
    assert embeddings.shape == (2, 24, 4, 3) and maps.shape == (2, 64, 4, 3)


def test_values_of_the_last_block(tokenizer):
    """MaskCLIP's patches by hand: the last block with the value of each place in its own place."""
    cfg = backbone_config(trainable=[], out_type='embeddings', dense_from='values')
    tower = randomise(MODELS.build(cfg)).double().eval()
    before = MODELS.build(backbone_config(trainable=[], out_type='featmap', out_indices=[2]))
    before.double().eval().load_state_dict(
        {k: v for k, v in tower.state_dict().items() if k != 'proj.weight'})
    x = images(2, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        tokens = before(x)[0].flatten(2).transpose(1, 2)
        block = tower.layers[3]
        normed = torch.nn.functional.layer_norm(
            tokens, (64,), block.ln1.weight, block.ln1.bias, 1e-5)
        weight, bias = block.attn.qkv.weight[128:], block.attn.qkv.bias[128:]
        tokens = tokens + block.attn.proj(normed @ weight.T + bias)
        hidden = block.ln2(tokens) @ block.ffn.layers[0][0].weight.T + block.ffn.layers[0][0].bias
        tokens = tokens + block.ffn.layers[1](hidden * torch.sigmoid(1.702 * hidden))
        expected = tower.ln1(tokens) @ tower.proj.weight.T
        found = tower(x)[0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_open_clips_tokenizer():
    open_clip = pytest.importorskip('open_clip')
    theirs = open_clip.get_tokenizer('ViT-B-16')(TEXTS)
    ids, ends = Tokenizer()(TEXTS, 77, 49408)
    assert torch.equal(theirs[:, : ids.shape[1]], ids) and not theirs[:, ids.shape[1] :].any()
    assert torch.equal(theirs.argmax(1), ends)


@pytest.mark.parametrize(('texts', 'most', 'vocabulary', 'message'), [
    (['red ' * 9], 10, 99, r'has 11 tokens with its start and end, 10 are left'),
    (['red'], 10, 30, r"has the token \d+, the model knows 30 \(text.vocab_size\)"),
    (['red'], 10, 999, r'ends a text with the token \d+, CLIP with its last, 998'),
    (['a дом.'], 20, None, "the text 'a дом.' has letters that text.tokenizer does not know"),
    (['a <|endoftext|>.'], 20, None, 'has letters that text.tokenizer does not know'),
])  # fmt: skip
def test_texts_that_do_not_fit(tokenizer, texts, most, vocabulary, message):
    with pytest.raises(UserError, match=message):
        Tokenizer(str(tokenizer))(texts, most, vocabulary or vocab_size(tokenizer))


def test_a_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match='has neither tokenizer.json nor vocab.json'):
        Tokenizer(str(tmp_path))(['a'], 77, 49408)
    with pytest.raises(ValueError, match=r"text.tokenizer must be 'open_clip' or"):
        Tokenizer(3)


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(project_dims=0), 'project_dims must be an integer of at least 1'),
    (dict(dense_from='queries'), "dense_from must be 'tokens' or 'values'"),
    (dict(dense_from='values'), "dense_from='values' is for out_type='embeddings'"),
    (dict(out_indices=[1]), 'projects the tokens behind the last block 3'),
    (dict(out_indices=[1, 3]), "out_type='embedding' puts out one vector"),
    (dict(final_norm=False), 'final_norm=False: out_type='),
    (dict(norm_prompts='no'), 'norm_prompts must be True or False'),
    (dict(norm_prompts=True), 'norm_prompts=True is for a prompt, and there is none'),
    (dict(layer_cfgs=dict(act_cfg=dict(type='ReLU'))), 'layer_cfgs.act_cfg: quick_gelu says'),
    (dict(with_cls_token=False), "with_cls_token=False: out_type='embedding' projects"),
    (dict(out_type='embeddings',
          image_prompt=dict(type='vpt_dense.PadPrompt', width=8)), 'image_prompt: out_type='),
])  # fmt: skip
def test_bad_options_of_the_image_tower(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(backbone_config(**kwargs))


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(arch='huge'), 'text.arch must be one of base, large or a dict of'),
    (dict(context_length=0), 'text.context_length must be an integer of at least 1'),
    (dict(prompt=dict(type='vpt_dense.PrefixPrompt', num_tokens=2)), 'needs keys and values|needs'),
    (dict(prompt=dict(type='vpt_dense.PixelPrompt', num_tokens=2)), 'PixelPrompt needs'),
    (dict(prompt=dict(type='vpt_dense.ContextPrompt', depth=9)), 'prompt.depth is 9, but the text'),
])  # fmt: skip
def test_bad_options_of_the_text_tower(tokenizer, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({**text_config(tokenizer), **kwargs})

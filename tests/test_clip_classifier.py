"""CoOp, CoCoOp, VPT, MaPLe and SEP: each against its formula in float64, and what surrounds them.

The reference below is a CLIP of its own in a few lines, on the tensors of the file: it shares no
code with the package.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from clip_models import (
    CONTEXT,
    PATCH,
    SIZE,
    TEXT,
    VISION,
    classifier_config,
    open_clip_model,
    vocab_size,
    write_tokenizer,
)
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from safetensors.torch import load_file, save_file
from utils import images, in_scope, randomise

from vpt_dense.errors import UserError
from vpt_dense.vision_language.class_texts import check_templates

CLASSES = ['dog', 'red cat', 'sky', 'big_road']
EXACT = dict(rtol=1e-10, atol=1e-10)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp('clip') / 'clip.safetensors'
    save_file(open_clip_model(vocab_size(tokenizer), seed=3).state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def scope():
    in_scope('mmpretrain')


# --- the reference ---------------------------------------------------------------------------


def norm(x, weights, name):
    centred = x - x.mean(-1, keepdim=True)
    centred = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def block(x, weights, name, heads, causal):
    """A residual attention block, (N, C), written out."""
    width, length = x.shape[1], len(x)
    qkv = norm(x, weights, f'{name}.ln_1') @ weights[f'{name}.attn.in_proj_weight'].T
    q, k, v = (qkv + weights[f'{name}.attn.in_proj_bias']).split(width, 1)
    parts = []
    for part in torch.arange(width).split(width // heads):
        scores = q[:, part] @ k[:, part].T / math.sqrt(width // heads)
        if causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        parts.append(scores.softmax(1) @ v[:, part])
    out = torch.cat(parts, 1) @ weights[f'{name}.attn.out_proj.weight'].T
    x = x + out + weights[f'{name}.attn.out_proj.bias']
    h = norm(x, weights, f'{name}.ln_2') @ weights[f'{name}.mlp.c_fc.weight'].T
    h = h + weights[f'{name}.mlp.c_fc.bias']
    h = h / (1 + torch.exp(-1.702 * h))
    return x + h @ weights[f'{name}.mlp.c_proj.weight'].T + weights[f'{name}.mlp.c_proj.bias']


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def image_embedding(image, weights, prompts=None):
    """Of one image (3, H, W). prompts: (block, tokens (N, C) in front of it) -> (P, C) or None.

    They stand behind the patches, as in MaPLe's and SEP's code; those of the first block go through
    the norm with the rest.
    """
    rows = [image[:, i : i + PATCH, j : j + PATCH].reshape(-1)
            for i in range(0, SIZE, PATCH) for j in range(0, SIZE, PATCH)]
    x = torch.stack(rows) @ weights['visual.conv1.weight'].flatten(1).T
    x = torch.cat((weights['visual.class_embedding'][None], x))
    x = x + weights['visual.positional_embedding']
    count = len(x)
    for i in range(VISION['num_layers']):
        own = prompts(i, x) if prompts else None
        if own is not None:
            x = torch.cat((x[:count], own))
        if i == 0:
            x = norm(x, weights, 'visual.ln_pre')
        x = block(x, weights, f'visual.transformer.resblocks.{i}', VISION['num_heads'], False)
    return norm(x[:1], weights, 'visual.ln_post')[0] @ weights['visual.proj']


def text_embedding(words, end, weights, prompts=None):
    """Of one text: its tokens' embeddings (L, C); prompts as above, behind the start.

    prompts(0, ...) may return the whole sequence as (tokens, number of prompts).
    """
    x, count = words, 0
    for i in range(TEXT['num_layers']):
        own = prompts(i, x) if prompts else None
        if isinstance(own, tuple):
            x, count = own
        elif own is not None:
            x, count = torch.cat((x[:1], own, x[1 + count :])), len(own)
        if i == 0:
            x = x + weights['positional_embedding'][: len(x)]
        x = block(x, weights, f'transformer.resblocks.{i}', TEXT['num_heads'], True)
    return norm(x[end + count], weights, 'ln_final') @ weights['text_projection']


# --- the models ------------------------------------------------------------------------------

CONTEXT_3 = dict(type='vpt_dense.ContextPrompt', num_tokens=3)
DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)
METHODS = {
    'zero-shot': {},
    'vpt': dict(backbone=dict(prompt=DEEP, trainable=[r'^prompt\.'], norm_prompts=True)),
    'coop': dict(text=dict(prompt=CONTEXT_3)),
    'coop, per class': dict(text=dict(prompt=dict(CONTEXT_3, per_class=True))),
    'coop, middle': dict(text=dict(prompt=dict(CONTEXT_3, position='middle'))),
    'coop, front': dict(text=dict(prompt=dict(CONTEXT_3, position='front'))),
    'cocoop': dict(text=dict(prompt=dict(type='vpt_dense.ConditionalContext', num_tokens=4,
                                            reduction=4))),
    'maple': dict(
        backbone=dict(prompt=dict(type='vpt_dense.CoupledPrompt'), trainable=[r'^prompt\.'],
                      norm_prompts=True),
        text=dict(prompt=dict(CONTEXT_3, words='a photo of a', depth=2))),
    'sep': dict(
        backbone=dict(prompt=dict(type='vpt_dense.SelfEnhancedPrompt', num_tokens=4,
                                  hidden_dims=16), trainable=[r'^prompt\.'], norm_prompts=True),
        text=dict(prompt=dict(type='vpt_dense.SelfEnhancedPrompt', num_tokens=3, select='next',
                              hidden_dims=16)),
        type='vpt_dense.SEPHead'),
}


def build(name, tokenizer, checkpoint, started=False, **more):
    """A model with weights loaded and what trains at random values."""
    cfg = classifier_config(tokenizer, checkpoint, CLASSES, **{**METHODS[name], **more})
    model = MODELS.build(cfg)
    model.init_weights()
    if not started:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def samples(*labels):
    return [DataSample().set_gt_label(label) for label in labels]


def fusing(prompt, selected, module, heads=1):
    """SEP's module, by hand."""
    state = {k: v.detach() for k, v in module.state_dict().items()}
    s1, s2 = state['scales']
    q, kv = norm(prompt, state, 'norm_prompt'), norm(selected, state, 'norm_tokens')
    width = q.shape[1]
    weight, bias = state['attention.in_proj_weight'], state['attention.in_proj_bias']
    q, k, v = (each @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width]
               for i, each in enumerate((q, kv, kv)))
    out = (q @ k.T / math.sqrt(width)).softmax(1) @ v
    out = out @ state['attention.out_proj.weight'].T + state['attention.out_proj.bias']
    fused = s1 * selected + (1 - s1) * out
    hidden = norm(fused, state, 'norm') @ state['fc1.weight'].T
    hidden = hidden / (1 + torch.exp(-1.702 * hidden))
    return s2 * fused + (1 - s2) * hidden @ state['fc2.weight'].T


class Reference:
    """Scores and losses of a method by its formula."""

    def __init__(self, model, name, checkpoint):
        self.weights = {k: v.double() for k, v in load_file(checkpoint).items()}
        self.model, self.name = model, name
        self.vision, self.text = model.backbone.prompt, getattr(model.head.text, 'prompt', None)

    def words(self, text):
        """Embeddings of a text's tokens, zeros of the vocabulary behind its end, and its end."""
        tokenizer = self.model.head._config['tokenizer']
        from transformers import CLIPTokenizer

        ids = CLIPTokenizer.from_pretrained(tokenizer)(text)['input_ids']
        padded = torch.tensor(ids + [0] * (CONTEXT - 6 - len(ids)))
        return self.weights['token_embedding.weight'][padded], len(ids) - 1

    def vision_prompts(self, i, x):
        if self.name == 'vpt':
            return self.vision.tokens[i]
        if self.name == 'maple':
            if i > 1:
                return None
            layer = self.vision.project[i]
            return self.text.tokens[i] @ layer.weight.T + layer.bias
        if self.name == 'sep':
            if i == 0:
                return self.vision.tokens[0]
            own = x[:17]
            chosen = own.square().mean(1).argsort(descending=True)[:4]
            return fusing(x[17:], own[chosen], self.vision.fusing[i - 1])

    def text_prompts(self, label, end, image):
        def prompts(i, x):
            if self.name == 'coop, per class':
                return self.text.tokens[label] if i == 0 else None
            if self.name.startswith('coop,') and i == 0:
                v, name = self.text.tokens[0], x[1 : end - 1]
                half = 0 if self.name == 'coop, front' else 1
                return torch.cat((x[:1], v[:half], name, v[half:], x[end - 1 :])), 3
            if self.name == 'coop':
                return self.text.tokens[0] if i == 0 else None
            if self.name == 'cocoop' and i == 0:
                first, _, last = self.text.meta
                h = (image @ first.weight.T + first.bias).clamp(min=0)
                return self.text.tokens[0] + h @ last.weight.T + last.bias
            if self.name == 'maple':
                return self.text.tokens[i] if i < 2 else None
            if self.name == 'sep':
                if i == 0:
                    return self.text.tokens[0]
                return fusing(x[1:4], x[4:7], self.text.fusing[i - 1])
        return prompts

    def texts(self, image=None, plain=False):
        found = []
        for label, name in enumerate(CLASSES):
            name = name.replace('_', ' ')
            words, end = self.words(
                f'{name}.' if self.text is not None and not plain else f'a photo of a {name}.')
            prompts = None if self.text is None or plain else self.text_prompts(label, end, image)
            found.append(text_embedding(words, end, self.weights, prompts))
        return unit(torch.stack(found))

    def run(self, x, labels):
        """Scores (B, classes) and the sum of the losses."""
        scores, extra, scale = [], 0, self.weights['logit_scale'].exp()
        f0s, f1s = [], []
        for image in x:
            f = unit(image_embedding(image, self.weights, self.vision and self.vision_prompts))
            t = self.texts(f if self.name == 'cocoop' else None)
            if self.name == 'sep':
                f0, t0 = unit(image_embedding(image, self.weights)), self.texts(plain=True)
                f0s.append(f0)
                f1s.append(f)
                scores.append(scale * unit(t + t0) @ unit(f + f0))
            else:
                scores.append(scale * t @ f)
        scores, labels = torch.stack(scores), torch.tensor(labels)

        def entropy(logits):
            return -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()

        if self.name == 'sep':
            f0s, f1s, w = torch.stack(f0s), torch.stack(f1s), unit(self.model.head.prototypes)
            extra = 8 * (1 - (t * t0).sum(1)).mean() + 6 * (1 - (f0s * f1s).sum(1)).mean()
            extra = extra + 0.5 * (entropy(10 * f1s @ w.T) + entropy(10 * f0s @ w.T))
        return scores, entropy(scores) + extra


@pytest.mark.parametrize('name', METHODS)
def test_the_formula(name, tokenizer, checkpoint):
    model = build(name, tokenizer, checkpoint).double()
    if model.head.text is None:  # what is computed once is held in float32
        with torch.no_grad():
            model.head.class_vectors = model.head.embed_texts(
                model.head.build_tower().double(), model.head.templates)
    elif name == 'sep':
        from vpt_dense.vision_language.class_texts import without_prompt
        with without_prompt(model.head.text) as tower:
            model.head.frozen_vectors = model.head.embed_texts(tower, ['a photo of a {}.'])
    x = images(3, 3, SIZE, SIZE, dtype=torch.float64)
    labels = [0, 2, 1]
    with torch.no_grad():
        expected, loss = Reference(model, name, checkpoint).run(x, labels)
        feats = model.extract_feat(x)
        torch.testing.assert_close(model.head(feats), expected, **EXACT)
        losses = model.head.loss(feats, samples(*labels))
    torch.testing.assert_close(sum(losses.values()), loss, **EXACT)
    assert expected.std() > 0.05
    predicted = model.predict(x, None)
    assert [int(each.pred_label) for each in predicted] == expected.argmax(1).tolist()


@pytest.mark.parametrize('name', METHODS)
def test_what_trains(name, tokenizer, checkpoint):
    """Prompts and what makes them get gradients, and nothing else does; the loss falls."""
    model = build(name, tokenizer, checkpoint, started=True).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if name == 'zero-shot':
        assert not trained
        with pytest.raises(UserError, match='nothing of the model trains: neither model.backbone'):
            model.loss(images(1, 3, SIZE, SIZE), samples(0))
        return
    assert all('prompt' in n or n == 'head.prototypes' for n in trained)
    x, labels = images(4, 3, SIZE, SIZE), samples(0, 1, 2, 3)
    frozen = {n: p.clone() for n, p in model.named_parameters() if n not in trained}
    optimizer = torch.optim.SGD(trained.values(), lr=0.02)
    seen = []
    for _ in range(6):
        loss = sum(model.loss(x, labels).values())
        optimizer.zero_grad()
        loss.backward()
        seen.append(loss.item())
        assert all(p.grad is not None and p.grad.any() for n, p in trained.items()
                   if not n.endswith(('in_proj_bias', 'meta.0.weight', 'meta.0.bias')))
        optimizer.step()
    assert seen[-1] < seen[0]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize('name', METHODS)
def test_a_checkpoint_without_frozen_tensors(name, tokenizer, checkpoint):
    """What a delta holds: the rest comes from the file; another start does not matter."""
    from vpt_dense.checkpoints import deltas

    model = build(name, tokenizer, checkpoint)
    state = dict(state_dict={k: v.clone() for k, v in model.state_dict().items()})
    deltas.reduce(model, state)
    names = set(state['state_dict'])
    assert not any('layers.' in n or 'token_embedding' in n for n in names)
    assert ('head.class_vectors' in names) == (name in ('zero-shot', 'vpt'))
    other = MODELS.build(classifier_config(tokenizer, checkpoint, CLASSES, **METHODS[name])).eval()
    deltas.complete(other, state, 'x')
    other.load_state_dict(state['state_dict'])
    x = images(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(other.head(other.extract_feat(x)), model.head(model.extract_feat(x)))


def test_frozen_texts_are_computed_once_and_the_tower_goes(tokenizer, checkpoint):
    model = build('vpt', tokenizer, checkpoint)
    assert model.head.text is None and model.head.class_vectors.shape == (4, 24)
    assert not any('token_embedding' in n for n in model.state_dict())
    vectors = model.head.class_vectors.clone()
    model.train().loss(images(2, 3, SIZE, SIZE), samples(0, 1))['loss'].backward()
    assert torch.equal(model.head.class_vectors, vectors)


def test_trained_texts_are_computed_once_a_test(tokenizer, checkpoint, monkeypatch):
    """And again as soon as a number has changed, by whatever way."""
    model = build('coop', tokenizer, checkpoint)
    calls = []
    forward = model.head.text.forward
    monkeypatch.setattr(
        model.head.text, 'forward', lambda *args: (calls.append(1), forward(*args))[1])
    x = images(2, 3, SIZE, SIZE)
    with torch.no_grad():
        first = [model.head(model.extract_feat(x)) for _ in range(3)]
        assert len(calls) == 1 and torch.equal(first[0], first[2])
        tokens = model.head.text.prompt.tokens.data
        tokens.copy_(tokens.flip(-1))
        second = model.head(model.extract_feat(x))
        assert len(calls) == 2 and not torch.allclose(first[0], second)
        model.head.among = [0, 1]
        model.head(model.extract_feat(x))
        assert len(calls) == 3
        with torch.autocast('cpu', torch.bfloat16):  # not what was computed without
            model.head(model.extract_feat(x))
        assert len(calls) == 4
        model.train()
        model.head(model.extract_feat(x))
        model.head(model.extract_feat(x))
        assert len(calls) == 6


def test_the_texts_of_several_images_at_once(tokenizer, checkpoint):
    """As graphs have it, where those of one image after the other are computed elsewhere."""
    model = build('cocoop', tokenizer, checkpoint).double()
    head, x = model.head, F.normalize(images(3, 24, dtype=torch.float64), dim=-1)
    with torch.no_grad():
        expected = head.embeddings(None, x)
        found = head._encode(None, x)
    assert expected.shape == (3, 4, 24) and not torch.allclose(expected[0], expected[1])
    torch.testing.assert_close(found.unflatten(0, (3, 4)), expected, rtol=1e-12, atol=1e-12)


def test_among(tokenizer, checkpoint):
    whole, some = (build('coop', tokenizer, checkpoint, among=among) for among in (None, [3, 1]))
    x = images(2, 3, SIZE, SIZE)
    with torch.no_grad():
        all_scores, scores = (m.head(m.extract_feat(x)) for m in (whole, some))
    torch.testing.assert_close(scores[:, [1, 3]], all_scores[:, [1, 3]])
    assert torch.isinf(scores[:, [0, 2]]).all()
    labels = samples(1, 3)
    loss = some.loss(x, labels)['loss']
    expected = F.cross_entropy(all_scores[:, [1, 3]], torch.tensor([0, 1]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert some.head.text.prompt.tokens.grad.isfinite().all()
    # Soft labels too: the others' minus infinity takes no part.
    shares = torch.tensor([[0, 0.3, 0, 0.7], [0, 1, 0, 0]])
    mixed = some.loss(x, [DataSample().set_gt_score(each) for each in shares])['loss']
    wanted = -(shares[:, [1, 3]] * all_scores[:, [1, 3]].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixed, wanted)
    with pytest.raises(ValueError, match=r"class 2 \('sky'\), which is not in head.among"):
        some.loss(x, samples(1, 2))


def test_other_classes(tokenizer, checkpoint):
    """As if it had been built for them."""
    names = ['blue car', 'cat', 'green sky']
    for name in ('vpt', 'coop', 'cocoop', 'sep'):
        model = build(name, tokenizer, checkpoint)
        model.head.set_classes(names)
        cfg = classifier_config(tokenizer, checkpoint, names, **METHODS[name])
        other = MODELS.build(cfg)
        other.init_weights()
        state = {k: v for k, v in model.state_dict().items() if 'prompt' in k}
        other.load_state_dict(state, strict=False)
        x = images(2, 3, SIZE, SIZE)
        with torch.no_grad():
            found = model.eval().predict(x)
            expected = other.eval().predict(x)
        assert found[0].pred_score.shape == (3,)
        torch.testing.assert_close(found[1].pred_score, expected[1].pred_score)
    model = build('coop, per class', tokenizer, checkpoint)
    with pytest.raises(UserError, match=r'head.text.prompt.per_class: the words that were learnt'):
        model.head.set_classes(names)
    with pytest.raises(ValueError, match="classes names 'sky' alone: the score of one class is"):
        model.head.set_classes(['sky'])


def test_other_classes_come_from_the_same_tower(tokenizer, checkpoint, tmp_path):
    """Other weights, another tokenizer, and learnt words that became constants are told."""
    names, message = ['blue car', 'cat'], 'does not give the embeddings of the classes of training'
    other = tmp_path / 'other.safetensors'
    save_file(open_clip_model(vocab_size(tokenizer), seed=8).state_dict(), other)
    model = build('vpt', tokenizer, checkpoint)
    with pytest.raises(UserError, match=message):
        model.head.set_classes(names, str(other))
    model.head.set_classes(names, str(checkpoint))
    model = build('coop', tokenizer, checkpoint)
    assert model.head.fold_texts()
    with pytest.raises(UserError, match=message):
        model.head.set_classes(names)
    model = build('coop', tokenizer, checkpoint)
    model.head.text_ids[0, 1] += 1  # as another tokenizer would have it
    with pytest.raises(UserError, match='does not give the tokens that the classes had'):
        model.head.set_classes(names)


def test_both_towers_have_one_activation(tokenizer, checkpoint):
    """The text tower takes that of the backbone, whose file it reads."""
    model = build('coop', tokenizer, checkpoint, backbone=dict(quick_gelu=False))
    assert isinstance(model.head.text.layers[0].ffn.layers[0][1], torch.nn.GELU)
    with pytest.raises(ValueError, match='model.backbone.quick_gelu is False, that of the text'):
        build('coop', tokenizer, checkpoint, backbone=dict(quick_gelu=False),
              text=dict(METHODS['coop']['text'], quick_gelu=True))


@pytest.mark.parametrize('name', ['zero-shot', 'coop'])
def test_a_text_tower_needs_weights(name, tokenizer, checkpoint):
    cfg = classifier_config(tokenizer, checkpoint, CLASSES, **METHODS[name])
    cfg['head']['text']['init_cfg'] = None
    with pytest.raises(UserError, match='model.head.text.init_cfg names no weights of the text t'):
        MODELS.build(cfg).init_weights()


def test_templates_are_averaged(tokenizer, checkpoint):
    both = build('zero-shot', tokenizer, checkpoint, templates=['{}', 'a red {}.']).head
    one, two = (build('zero-shot', tokenizer, checkpoint, templates=each).head
                for each in ('{}', 'a red {}.'))
    torch.testing.assert_close(
        both.class_vectors, F.normalize(one.class_vectors + two.class_vectors, dim=-1))


def test_words_start_the_context(tokenizer, checkpoint):
    prompt = dict(CONTEXT_3, words='a photo of a', depth=2)
    model = build('coop', tokenizer, checkpoint, started=True, text=dict(prompt=prompt))
    text = model.head.text
    ids, _ = text.tokenizer(['a photo of'], CONTEXT, vocab_size(tokenizer))
    assert torch.equal(text.prompt.tokens[0], text.token_embedding.weight[ids[0, 1:4]])
    assert 0.01 < text.prompt.tokens[1].std() < 0.03
    with pytest.raises(UserError, match=r"prompt.words='a photo' are 2 tokens, prompt.num_tokens"):
        build('coop', tokenizer, checkpoint, text=dict(prompt=dict(CONTEXT_3, words='a photo')))


def test_adapters_on_the_text_tower(tokenizer, checkpoint):
    model = build('coop', tokenizer, checkpoint, started=True,
                  text=dict(adapters=[dict(type='vpt_dense.LoRA', rank=2)]))
    assert model.head.templates == ['a photo of a {}.']
    plain = build('zero-shot', tokenizer, checkpoint)
    x = images(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            model.head(model.extract_feat(x)), plain.head(plain.extract_feat(x)))
    randomise(model.head.text.adapters)
    with torch.no_grad():
        assert not torch.allclose(model.head(model.extract_feat(x)),
                                  plain.head(plain.extract_feat(x)), atol=1e-3)


def test_salient_tokens_of_a_batch(tokenizer, checkpoint):
    """With per_image a prediction does not depend on the rest of its batch; without it may."""
    x = images(6, 3, SIZE, SIZE)
    x[1:] *= 3
    for per_image in (True, False):
        prompt = dict(METHODS['sep']['backbone']['prompt'], per_image=per_image)
        backbone = dict(METHODS['sep']['backbone'], prompt=prompt)
        model = build('sep', tokenizer, checkpoint, backbone=backbone)
        with torch.no_grad():
            alone, beside = model.backbone(x[:1])[0], model.backbone(x)[0][:1]
        assert torch.allclose(alone, beside, atol=1e-5) == per_image


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(classes=['a', 'b']), 'head.classes are 2 names, the data have 4'),
    (dict(classes=['a', 'b', 'c', 'a']), "head.classes: 'a' is there twice"),
    (dict(classes=['a', 'b', 'c', '']), 'head.classes must be a list of names'),
    (dict(templates='a dog'), r'head.templates must be a text with one \{\}'),
    (dict(among=[0, 4]), 'head.among must be labels from 0 to 3'),
    (dict(among=[0, 0]), 'head.among must be labels from 0 to 3, none twice'),
    (dict(text=dict(prompt=CONTEXT_3), templates=['{}', 'a {}']), 'trains there is one, found 2'),
    (dict(text=dict(prompt=dict(CONTEXT_3, position='front')), templates='{}'),
     "head.templates must end with"),
    (dict(text=dict(prompt=dict(CONTEXT_3, per_class=True)), among=[0, 1]), 'head.among leaves'),
    (dict(text=dict(prompt=dict(CONTEXT_3, per_class=True, depth=2))), 'prompt.per_class is for'),
    (dict(text=dict(prompt=dict(CONTEXT_3, position='back'))), 'prompt.position must be'),
    (dict(backbone=dict(prompt=dict(type='vpt_dense.CoupledPrompt'))), 'CoupledPrompt is made of'),
    (dict(backbone=dict(out_type='cls_token')), "out_type must be 'embedding'"),
    (dict(backbone=dict(project_dims=16)), 'model.backbone.project_dims is 16, model.head.text'),
    (dict(type='vpt_dense.SEPHead'), 'SEPHead compares a text tower with its prompt'),
    *((dict(METHODS['sep'], backbone=change), 'model.backbone: SEPHead compares') for change in (
        dict(adapters=[dict(type='vpt_dense.LoRA', rank=1)]),
        dict(METHODS['sep']['backbone'], trainable=[r'^prompt\.', 'bias$']),
        dict(METHODS['sep']['backbone'],
             image_prompt=dict(type='vpt_dense.PadPrompt', width=8)))),
    (dict(METHODS['sep'], text=dict(METHODS['sep']['text'], trainable=[r'^prompt\.', 'bias$'])),
     'model.head.text: SEPHead compares'),
    (dict(METHODS['maple'], backbone=dict(prompt=dict(type='vpt_dense.CoupledPrompt', depth=1))),
     'model.backbone.prompt.depth is 1, but follows from'),
    *((dict(METHODS['maple'], text=dict(prompt=prompt)), 'CoupledPrompt is made of') for prompt in (
        dict(CONTEXT_3, per_class=True),
        dict(type='vpt_dense.ConditionalContext', num_tokens=4),
        dict(type='vpt_dense.TokenPrompt', num_tokens=4))),
    (dict(text=dict(prompt=dict(CONTEXT_3, num_classes=9))), 'head.text.prompt.num_classes is 9'),
    (dict(text=dict(prompt=dict(type='vpt_dense.SelfEnhancedPrompt', num_tokens=3))),
     "prompt.select='salient' is for images, this is a CLIPText"),
    (dict(backbone=dict(prompt=dict(type='vpt_dense.SelfEnhancedPrompt', select='next'))),
     "prompt.select='next' is for texts, this is a CLIPVision"),
    (dict(among=[0, 1], loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=4)),
     'head.loss.num_classes is 4, but head.among tells 2 classes'),
    (dict(classes=['big_road', 'a', 'Big  road', 'b']), "'big_road' and 'Big  road' are one text"),
    (dict(classes=['_', 'a', 'b', 'c']), 'head.classes must be a list of names'),
    (dict(type='LinearClsHead', in_channels=24, classes=None), 'TextHead|unexpected'),
])  # fmt: skip
def test_bad_options(tokenizer, checkpoint, kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MODELS.build(classifier_config(tokenizer, checkpoint, CLASSES, **{
            k: v for k, v in kwargs.items() if k != 'classes'}) | {} if 'classes' not in kwargs
            else _with_head(classifier_config(tokenizer, checkpoint, CLASSES), **kwargs))


def _with_head(cfg, **head):
    cfg['head'].update(head)
    return cfg


def test_a_template_needs_a_place():
    assert check_templates(['{}'], 'k') == ['{}']
    with pytest.raises(ValueError, match='k must be a text with one'):
        check_templates([], 'k')


def test_a_missing_tokenizer_and_texts_that_were_never_made(tokenizer, checkpoint, tmp_path):
    cfg = classifier_config(tokenizer, checkpoint, CLASSES, text=dict(prompt=CONTEXT_3))
    model = MODELS.build(cfg)
    plain = MODELS.build(classifier_config(tokenizer, checkpoint, CLASSES))
    for each in (model, plain):
        with pytest.raises(UserError, match='head: the texts of the classes are not known'):
            each.predict(images(1, 3, SIZE, SIZE))
    cfg['head']['text']['tokenizer'] = str(tmp_path)
    with pytest.raises(UserError, match='has neither tokenizer.json'):
        MODELS.build(cfg).init_weights()


def test_names_that_are_not_known(tokenizer, checkpoint):
    """A model can be built and counted without them; nothing is computed."""
    for name in ('zero-shot', 'coop', 'sep'):
        cfg = _with_head(classifier_config(tokenizer, checkpoint, CLASSES, **METHODS[name]),
                         classes=None)
        model = MODELS.build(cfg)
        with pytest.raises(UserError, match='model.head.classes: the names of the classes are'):
            model.init_weights()
        model.head.set_classes(CLASSES)
        assert model.head.classes == CLASSES


def test_weights_of_other_texts_are_refused(tokenizer, checkpoint):
    """Their classes would be those of the training under other names."""
    for name in ('vpt', 'coop'):
        state = build(name, tokenizer, checkpoint).state_dict()
        for change in (dict(classes=CLASSES[::-1]), dict(templates='a red {}.')):
            cfg = _with_head(classifier_config(tokenizer, checkpoint, CLASSES, **METHODS[name]),
                             **change)
            with pytest.raises(UserError, match='of other texts than model.head.classes and temp'):
                MODELS.build(cfg).load_state_dict(state)
        unknown = MODELS.build(_with_head(classifier_config(
            tokenizer, checkpoint, CLASSES, **METHODS[name]), classes=None))
        unknown.load_state_dict(state)


def test_a_copy_is_coupled_with_its_own_text_tower(tokenizer, checkpoint):
    import copy

    model = build('maple', tokenizer, checkpoint)
    other = copy.deepcopy(model)
    assert other.backbone.prompt._source[0] is other.head.text.prompt
    with torch.no_grad():
        model.head.text.prompt.tokens.add_(images(3, 32)[:, :])
        x = images(1, 3, SIZE, SIZE)
        assert not torch.allclose(model.backbone(x)[0], other.backbone(x)[0])


@pytest.mark.parametrize('name', ['vpt', 'coop', 'cocoop', 'maple', 'sep'])
def test_half_precision_leaves_the_scores_whole(name, tokenizer, checkpoint):
    """Under autocast cosines are float32: near those without."""
    model = build(name, tokenizer, checkpoint)
    x = images(2, 3, SIZE, SIZE)
    with torch.no_grad():
        plain = model.head(model.extract_feat(x))
        with torch.autocast('cpu', torch.bfloat16):
            half = model.head(model.extract_feat(x))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0.1)

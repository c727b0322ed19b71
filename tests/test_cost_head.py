"""The head after CAT-Seg: its parts by their formulas in float64, and a run."""

import math

import numpy as np
import pytest
import torch
from clip_models import (
    WIDTH,
    backbone_config,
    open_clip_model,
    text_config,
    vocab_size,
    write_tokenizer,
)
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from safetensors.torch import save_file
from test_zegclip import CLASSES, write_recipe
from tool_helpers import run_tool, tiny_folder
from utils import images, in_scope, randomise

import vpt_dense
from vpt_dense.vision_language.cost_head import ClassAggregation, WindowAggregation

EXACT = dict(rtol=1e-10, atol=1e-10)
DOUBLE = dict(dtype=torch.float64)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('cost')
    write_tokenizer(root / 'tokenizer')
    state = open_clip_model(vocab_size(root / 'tokenizer')).state_dict()
    save_file(state, root / 'clip.safetensors')
    tiny_folder(root / 'data', num_classes=3)
    return root


@pytest.fixture(autouse=True)
def scope():
    in_scope('mmseg')


def config(root, **kwargs):
    start = dict(type='Pretrained', checkpoint=str(root / 'clip.safetensors'))
    return {**dict(
        type='vpt_dense.CostHead', in_channels=WIDTH, guide_channels=10, num_classes=4,
        classes=CLASSES, hidden_dims=16, guide_dims=8, num_heads=2, window=4,
        text=text_config(root / 'tokenizer', init_cfg=start)), **kwargs}


def head(root, **kwargs):
    built = MODELS.build(config(root, **kwargs))
    built.init_weights()
    return randomise(built).eval()


def norm(x, module):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * module.weight + module.bias


def linear(x, module):
    return x @ module.weight.T + module.bias


@pytest.mark.parametrize('size', [(8, 8), (5, 7), (3, 3), (4, 9)], ids=str)
@pytest.mark.parametrize('shift', [0, 2])
def test_windows(size, shift):
    """Place by place: who is in whose window, by where windows lie."""
    block = randomise(WindowAggregation(6, 3, 2, 4, shift)).double().eval()
    x, guide = images(2, *size, 6, **DOUBLE), images(2, *size, 3, seed=1, **DOUBLE)
    places = [(i, j) for i in range(size[0]) for j in range(size[1])]

    def window(i, j):
        return (i - shift) // 4, (j - shift) // 4

    with torch.no_grad():
        expected = torch.empty_like(x)
        for n in range(2):
            for i, j in places:
                others = [p for p in places if window(*p) == window(i, j)]
                own = norm(torch.stack([x[n][p] for p in others]), block.norm1)
                both = torch.cat((own, torch.stack([guide[n][p] for p in others])), 1)
                me = others.index((i, j))
                q = linear(both[me : me + 1], block.queries)
                k, v = linear(both, block.keys), linear(own, block.values)
                parts = []
                for h in (slice(0, 3), slice(3, 6)):
                    scores = (q[:, h] @ k[:, h].T / math.sqrt(3)).softmax(1)
                    parts.append(scores @ v[:, h])
                y = x[n, i, j] + linear(torch.cat(parts, 1), block.proj)[0]
                hidden = linear(norm(y, block.norm2), block.mlp[0])
                hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
                expected[n, i, j] = y + linear(hidden, block.mlp[2])
        torch.testing.assert_close(block(x, guide), expected, **EXACT)


def test_classes_attend_to_each_other():
    block = randomise(ClassAggregation(6, 3, 2)).double().eval()
    x, guide = images(3, 5, 6, **DOUBLE), images(5, 3, seed=1, **DOUBLE)
    with torch.no_grad():
        expected = torch.empty_like(x)
        for n in range(3):
            own = norm(x[n], block.norm1)
            both = torch.cat((own, guide), 1)
            q, k = (torch.where(z > 0, z + 1, z.exp()) for z in (
                linear(both, block.queries), linear(both, block.keys)))
            v = linear(own, block.values)
            out = torch.zeros_like(v)
            for a in range(5):
                for h in (slice(0, 3), slice(3, 6)):
                    weights = torch.stack([q[a, h] @ k[b, h] for b in range(5)])
                    out[a, h] = (weights[:, None] * v[:, h]).sum(0) / (
                            weights.sum() + 1e-6)
            y = x[n] + linear(out, block.proj)
            expected[n] = y + linear(linear(norm(y, block.norm2), block.mlp[0]).clamp(min=0),
                                     block.mlp[2])
        torch.testing.assert_close(block(x, guide), expected, **EXACT)


def test_no_weight_at_all_is_no_division_by_zero():
    """phi(x) is exactly 0 for what lies far below 0."""
    block = randomise(ClassAggregation(6, 3, 2))
    with torch.no_grad():
        block.queries.bias.fill_(-40)
        assert block(images(3, 5, 6), images(5, 3)).isfinite().all()


def test_costs_are_cosines_of_each_template(root):
    model = head(root, templates=['{}', 'a red {}.'])
    assert model.class_vectors.shape == (4, 2, WIDTH) and model.embed.in_channels == 2
    maps = images(2, WIDTH, 3, 4)
    found = model.costs(maps, model.class_vectors)
    for b, k, t, y, x in ((0, 0, 0, 0, 0), (1, 3, 1, 2, 3), (0, 2, 1, 1, 0)):
        expected = torch.nn.functional.cosine_similarity(
            maps[b, :, y, x], model.class_vectors[k, t], dim=0)
        torch.testing.assert_close(found[b, k, t, y, x], expected)
    plain = head(root, templates='a red {}.')
    torch.testing.assert_close(plain.class_vectors[:, 0], model.class_vectors[:, 1])


def feats(batch=2):
    return (images(batch, 10, 5, 6), images(batch, 10, 5, 6, seed=1),
            images(batch, WIDTH, 5, 6, seed=2), images(batch, WIDTH, seed=3))


def test_the_order_of_classes_and_images_does_not_matter(root):
    """Another order of either gives the same maps in that order."""
    model = head(root)
    with torch.no_grad():
        found = model(feats())
        assert found.shape == (2, 4, 20, 24) and found.std() > 1e-3
        order = [2, 0, 3, 1]
        model.class_vectors = model.class_vectors[order]
        torch.testing.assert_close(model(feats()), found[:, order], rtol=1e-4, atol=1e-5)
        flipped = model(tuple(each.flip(0) for each in feats()))
        torch.testing.assert_close(flipped.flip(0), found[:, order], rtol=1e-4, atol=1e-5)


def test_the_whole_head(root):
    """Its parts in their order, with other ways of putting the axes."""
    model = head(root).double()
    early, late, maps, image = (each.double() for each in feats(1))
    with torch.no_grad():
        texts = model.class_vectors[:, 0]
        unit = maps / maps.square().sum(1, keepdim=True).sqrt()
        cost = torch.stack([(unit[0] * t[:, None, None]).sum(0) for t in texts])  # (K, h, w)
        each = [model.embed(one[None, None])[0].permute(1, 2, 0) for one in cost]
        guide = model.image_guide(maps)[0].permute(1, 2, 0)
        words = linear(texts / texts.square().sum(1, keepdim=True).sqrt(),
                       model.text_guide[0]).clamp(min=0)
        for spatial, among in zip(model.spatial, model.among, strict=True):
            for block in spatial:
                each = [block(one[None], guide[None])[0] for one in each]
            stacked = torch.stack(each)
            for y in range(5):
                for x in range(6):
                    stacked[:, y, x] = among(stacked[:, y, x][None].clone(), words)[0]
            each = list(stacked)
        expected = torch.cat([model.classify(model.up2(model.up1(
            one.permute(2, 0, 1)[None], late, 1), early, 1))[0] for one in each])[None]
        torch.testing.assert_close(model((early, late, maps, image)), expected, **EXACT)


def test_the_loss(root):
    model = head(root)
    logits = images(2, 4, 3, 3)
    labels = torch.randint(0, 4, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    labels[0, :2] = 255
    found = model.loss_by_feat(
        logits, [SegDataSample(gt_sem_seg=PixelData(data=each[None])) for each in labels])
    large = torch.nn.functional.interpolate(logits, (6, 6), mode='bilinear')
    total, number = 0.0, 0
    for b in range(2):
        for y in range(6):
            for x in range(6):
                if labels[b, y, x] == 255:
                    continue
                for k in range(4):
                    p = 1 / (1 + math.exp(-float(large[b, k, y, x])))
                    total -= math.log(p if labels[b, y, x] == k else 1 - p)
                    number += 1
    assert found['loss_bce'].item() == pytest.approx(total / number, rel=1e-5)


def test_a_label_that_is_no_class(root):
    labels = torch.full((1, 6, 6), 7)
    with pytest.raises(RuntimeError, match='Class values must be smaller than num_classes'):
        head(root).loss_by_feat(
            images(1, 4, 3, 3), [SegDataSample(gt_sem_seg=PixelData(data=labels))])


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(threshold=0.3), 'decode_head.threshold would change nothing: CostHead has'),
    (dict(hidden_dims=18), 'decode_head.hidden_dims is 18; a multiple of 4'),
    (dict(window=1), 'decode_head.window must be an integer of at least 2'),
    (dict(in_channels=26), 'decode_head.text.project_dims is 24'),
    (dict(num_layers=0), 'decode_head.num_layers must be'),
])  # fmt: skip
def test_bad_options(root, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(config(root, **kwargs))


@pytest.mark.parametrize(('backbone', 'message'), [
    (dict(out_indices=[1, 3]), 'reads maps of two blocks before the last; .* found 2'),
    (dict(out_indices=[0, 1, 3]), 'guide_channels is 10, the blocks of model.backbone have the wi'),
    (dict(out_indices=[0, 1, 3], project_dims=26), 'model.backbone.project_dims is 26, model.dec'),
])  # fmt: skip
def test_a_backbone_that_does_not_fit(root, backbone, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(
            type='vpt_dense.CLIPSegmentor', decode_head=config(root),
            backbone=backbone_config(trainable=[], out_type='embeddings', **backbone)))


def write_cat_seg(root):
    """A tiny recipe of it."""
    recipe = write_recipe(
        root, 'cat-seg_vit-b_segfolder', 'guide_channels=64, hidden_dims=16, window=4,', 'cat')
    text = recipe.read_text().replace('out_indices=[3]', 'out_indices=[0, 1, 3]')
    recipe.write_text(text.replace('_base_ =', 'img_size = None\n_base_ ='))
    return recipe


@pytest.mark.slow
def test_a_run(root, tmp_path, capfd):
    recipe = write_cat_seg(root)
    out = run_tool(capfd, 'train', recipe, '--method', 'deep', '--work-dir', tmp_path / 'run')
    assert out.code == 0, out.err[-2000:]
    image = str(root / 'data/images/validation/000.jpg')
    found = vpt_dense.load(str(tmp_path / 'run/iter_3.pth')).predict(image, probabilities=True)
    np.testing.assert_array_equal(found.probabilities.argmax(0), found.labels)
    other = vpt_dense.load(str(tmp_path / 'run/iter_3.pth'), classes=['dog', 'sky']).predict(image)
    assert other.classes == ('dog', 'sky') and set(np.unique(other.labels)) <= {0, 1}

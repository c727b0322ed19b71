"""Segmentation by the texts of classes: ZegCLIP's head by its formula, seen and unseen classes."""

import json
import math
import re

import numpy as np
import pytest
import torch
from clip_models import (
    CONTEXT,
    PATCH,
    TEXT,
    VISION,
    WIDTH,
    open_clip_model,
    text_config,
    vocab_size,
    write_tokenizer,
)
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from safetensors.torch import save_file
from tool_helpers import run_tool, tiny_folder
from utils import CONFIGS, images, in_scope, randomise

import vpt_dense
from vpt_dense import config, safe_files
from vpt_dense.vision_language.zegclip_head import mask_losses

CLASSES = ['road', 'sky', 'red car', 'dog']
EXACT = dict(rtol=1e-10, atol=1e-10)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('zegclip')
    write_tokenizer(root / 'tokenizer')
    state = open_clip_model(vocab_size(root / 'tokenizer')).state_dict()
    save_file(state, root / 'clip.safetensors')
    tiny_folder(root / 'data', num_classes=3)  # labels 0 to 3
    return root


@pytest.fixture(autouse=True)
def scope():
    in_scope('mmseg')


def head(root, **kwargs):
    start = dict(type='Pretrained', checkpoint=str(root / 'clip.safetensors'))
    built = MODELS.build({**dict(
        type='vpt_dense.ZegCLIPHead', in_channels=WIDTH, num_classes=4, classes=CLASSES,
        num_heads=2, text=text_config(root / 'tokenizer', init_cfg=start)), **kwargs})
    built.init_weights()
    vectors = built.class_vectors.clone()
    randomise(built)
    assert torch.equal(built.class_vectors, vectors)
    return built.eval()


def by_hand(head, maps, image):
    """The masks of all layers, (B, K, h, w) each: image by image, class by class, head by head."""
    s = {k: v.detach() for k, v in head.state_dict().items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * s[f'{name}.weight'] + s[f'{name}.bias']

    def linear(x, name):
        return x @ s[f'{name}.weight'].T + s[f'{name}.bias']

    layers = [[] for _ in head.layers]
    for one, g in zip(maps, image, strict=True):
        patches = one.flatten(1).T
        patches = patches / patches.square().sum(1, keepdim=True).sqrt()
        patches = norm(linear(patches, 'project'), 'norm')
        masks = [[] for _ in head.layers]
        for t in s['class_vectors']:
            q = linear(torch.cat((g * t, t))[None], 'describe')
            for i in range(len(head.layers)):
                name, half = f'layers.{i}', WIDTH // 2
                parts = [linear(x, f'{name}.{which}').split(half, 1) for x, which in (
                    (q, 'queries'), (patches, 'keys'))]
                scores = [a @ b.T / math.sqrt(half) for a, b in zip(*parts, strict=True)]
                masks[i].append((sum(scores) / 2)[0].unflatten(0, one.shape[1:]))
                if i == len(head.layers) - 1:
                    break
                values = linear(patches, f'{name}.values').split(half, 1)
                out = torch.cat([a.softmax(1) @ c for a, c in zip(scores, values, strict=True)], 1)
                q = norm(q + linear(out, f'{name}.proj'), f'{name}.norm1')
                hidden = linear(q, f'{name}.fc1').clamp(min=0)
                q = norm(q + linear(hidden, f'{name}.fc2'), f'{name}.norm2')
        for layer, own in zip(layers, masks, strict=True):
            layer.append(torch.stack(own))
    return [torch.stack(layer) for layer in layers]


def test_the_formula(root):
    model = head(root).double()
    maps, image = images(2, WIDTH, 3, 5, dtype=torch.float64), images(
        2, WIDTH, seed=1, dtype=torch.float64)
    with torch.no_grad():
        found, expected = model.masks((maps, image)), by_hand(model, maps, image)
        assert len(found) == 3
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, **EXACT)
        torch.testing.assert_close(model((maps, image)), expected[2], **EXACT)
    assert expected[2].std() > 1e-3


def losses_by_hand(logits, target):
    """Pixel by pixel."""
    focal, number, dices = 0.0, 0, []
    for b in range(len(logits)):
        for k in range(logits.shape[1]):
            both = ps = ts = 0.0
            for y in range(logits.shape[2]):
                for x in range(logits.shape[3]):
                    label = int(target[b, y, x])
                    if label < 0:
                        continue
                    p = 1 / (1 + math.exp(-float(logits[b, k, y, x])))
                    right = p if label == k else 1 - p
                    alpha = 0.25 if label == k else 0.75
                    focal -= alpha * (1 - right) ** 2 * math.log(right)
                    number += 1
                    both, ps, ts = both + p * (label == k), ps + p, ts + (label == k)
            dices.append(1 - (2 * both + 1) / (ps + ts + 1))
    return focal / number, sum(dices) / len(dices)


def test_the_losses():
    logits = 2 * images(2, 3, 4, 5, dtype=torch.float64)
    target = torch.randint(-1, 3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    focal, dice = mask_losses(logits, target)
    expected = losses_by_hand(logits, target)
    assert focal.item() == pytest.approx(expected[0], abs=1e-12)
    assert dice.item() == pytest.approx(expected[1], abs=1e-12)
    nothing = mask_losses(logits, torch.full_like(target, -1))
    assert nothing[0] == 0 and torch.isfinite(nothing[1])


def samples(labels):
    return [SegDataSample(gt_sem_seg=PixelData(data=each[None])) for each in labels]


def test_unseen_classes_take_no_part_in_training(root):
    """Neither their pixels nor their texts: another unseen class has the same loss."""
    model = head(root, unseen=['dog'])
    feats = images(2, WIDTH, 3, 3), images(2, WIDTH, seed=1)
    labels = torch.randint(0, 4, (2, 12, 12), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = 255
    losses = model.loss(feats, samples(labels), {})
    assert {name.rpartition('_')[0] for name in losses if name != 'acc_seg'} == {
        'loss_focal', 'loss_dice'}
    target = torch.where((labels == 3) | (labels == 255), -1, labels)
    for i, mask in enumerate(model.masks(feats)):
        whole = torch.nn.functional.interpolate(mask, (12, 12), mode='bilinear')[:, :3]
        focal, dice = mask_losses(whole, target)
        torch.testing.assert_close(losses[f'loss_focal_{i}'], 100 * focal)
        torch.testing.assert_close(losses[f'loss_dice_{i}'], dice)
    model.class_vectors[3] = torch.nn.functional.normalize(images(WIDTH), dim=0)
    again = model.loss(feats, samples(labels), {})
    assert all(torch.equal(losses[name], again[name]) for name in losses)


def test_every_weight_of_the_head_trains(root):
    """One without a gradient would stop a run of several processes."""
    model = head(root)
    losses = model.loss((images(2, WIDTH, 3, 3), images(2, WIDTH, seed=1)),
                        samples(torch.zeros(2, 6, 6, dtype=torch.int64)), {})
    sum(each for name, each in losses.items() if 'loss' in name).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_unseen_classes_get_a_bonus(root):
    feats = images(1, WIDTH, 3, 3), images(1, WIDTH, seed=1)
    metas = [dict(img_shape=(12, 12))]
    plain, split = head(root), head(root, unseen=['sky', 'dog'], unseen_bonus=0.3)
    with torch.no_grad():
        one, other = (each.predict(feats, metas, {}) for each in (plain, split))
    mask = torch.nn.functional.interpolate(plain(feats), (12, 12), mode='bilinear').sigmoid()
    torch.testing.assert_close(one.exp(), mask)
    torch.testing.assert_close(one.softmax(1), mask / mask.sum(1, keepdim=True))
    bonus = torch.tensor([0, 0.3, 0, 0.3])[:, None, None]
    torch.testing.assert_close(other.exp(), mask + bonus)
    # The authors subtract it from the seen ones: the same labels.
    assert torch.equal(other.argmax(1), (mask - (0.3 - bonus)).argmax(1))


def test_other_classes(root):
    model = head(root, unseen=['dog'])
    masks = model.masks(feats := (images(1, WIDTH, 3, 3), images(1, WIDTH, seed=1)))[-1]
    model.set_classes(['blue cat', 'road'])
    assert model.unseen == {'blue cat'} and model.num_classes == model.out_channels == 2
    torch.testing.assert_close(model.masks(feats)[-1][:, 1], masks[:, 0])
    # Seen is what training has seen, whatever was asked for before.
    model.set_classes(['sky', 'dog', 'Red_car'])
    assert model.unseen == {'dog'}


def test_more_classes_than_a_byte_has_values(root):
    letters = 'abcdefghijklmnopqrst'
    model = head(root, num_classes=300, classes=[a + b for a in letters for b in letters][:300])
    feats = images(1, WIDTH, 3, 3), images(1, WIDTH, seed=1)
    labels = torch.full((1, 6, 6), 299)
    focal, dice = mask_losses(torch.nn.functional.interpolate(
        model(feats), (6, 6), mode='bilinear'), labels)
    losses = model.loss(feats, samples(labels), {})
    torch.testing.assert_close(losses['loss_focal_2'], 100 * focal)
    torch.testing.assert_close(losses['loss_dice_2'], dice)


@pytest.mark.parametrize('label', [4, 200, -1])
def test_a_label_that_is_no_class(root, label):
    """It was ignored, and the loss was 0."""
    feats = images(1, WIDTH, 3, 3), images(1, WIDTH, seed=1)
    with pytest.raises(IndexError):
        head(root).loss(feats, samples(torch.full((1, 6, 6), label)), {})


def test_half_precision_leaves_scores_and_losses_whole(root):
    model = head(root, unseen=['dog'])
    feats = images(1, WIDTH, 3, 3), images(1, WIDTH, seed=1)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert model.masks(feats)[-1].dtype == torch.bfloat16
        assert model.predict(feats, [dict(img_shape=(6, 6))], {}).dtype == torch.float32
        losses = model.loss(feats, samples(torch.zeros(1, 6, 6, dtype=torch.int64)), {})
    assert {each.dtype for each in losses.values()} == {torch.float32}


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(unseen=['moon']), "decode_head.unseen must be names among the classes, found"),
    (dict(unseen='dog'), 'decode_head.unseen must be names among the classes'),
    (dict(unseen=CLASSES), 'some classes must be seen'),
    (dict(in_channels=26), 'decode_head.text.project_dims is 24'),
    (dict(num_heads=7), 'decode_head.num_heads is 7, which does not divide'),
    (dict(num_layers=0), 'decode_head.num_layers must be an integer of at least 1'),
    (dict(unseen_bonus=-0.1), 'decode_head.unseen_bonus must not be negative'),
    (dict(focal_weight='much'), 'decode_head.focal_weight must be a'),
    (dict(classes=None, unseen=['dog']), 'decode_head.unseen: the names of the classes are not'),
    (dict(loss_decode=dict(type='FocalLoss')), 'decode_head.loss_decode would change nothing'),
    (dict(dropout_ratio=0.5), 'decode_head.dropout_ratio would change nothing'),
    (dict(text=dict(prompt=dict(type='vpt_dense.ConditionalContext'))),
     'decode_head.text.prompt: ConditionalContext makes texts for the embedding of each image'),
])  # fmt: skip
def test_bad_options(root, kwargs, message):
    cfg = dict(type='vpt_dense.ZegCLIPHead', in_channels=WIDTH, num_classes=4, classes=CLASSES,
               num_heads=2, text=text_config(root / 'tokenizer'))
    with pytest.raises(ValueError, match=message):
        MODELS.build({**cfg, **kwargs})


# --- runs ------------------------------------------------------------------------------------

RECIPE = """
_base_ = '{base}'
work_dir = '{root}/work'
dataset = dict(data_root='{root}/data', classes={classes}, img_suffix='.jpg')
_start = dict(type='Pretrained', checkpoint='{root}/clip.safetensors')
_load = dict(type='LoadImageFromFile')
_train = [_load, dict(type='vpt_dense.LoadMask'),
          dict(type='RandomCrop', crop_size=(32, 32)), dict(type='PackSegInputs')]
_test = [_load, dict(type='vpt_dense.LoadMask'), dict(type='PackSegInputs')]
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(arch={vision}, img_size=(32, 32), patch_size={patch}, project_dims={width},
                  out_indices=[3], init_cfg=_start),
    decode_head=dict(
        in_channels={width}, num_heads=2, {extra}
        text=dict(arch={text}, project_dims={width}, vocab_size={vocabulary},
                  context_length={context}, tokenizer='{root}/tokenizer')),
    test_cfg=dict(crop_size=(32, 32), stride=(21, 21)))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_train))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=_test))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=_test))
train_cfg = dict(max_iters=3, val_interval=3)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
"""


def write_recipe(root, base='zegclip_vit-b_segfolder', extra='', name='recipe'):
    file = root / f'{name}.py'
    file.write_text(RECIPE.format(
        base=CONFIGS / f'clip/{base}.py', root=root, classes=CLASSES, patch=PATCH, width=WIDTH,
        vision=dict(VISION, _delete_=True), text=dict(TEXT, _delete_=True), context=CONTEXT,
        vocabulary=vocab_size(root / 'tokenizer'), extra=extra))
    return file


@pytest.fixture
def run(root, tmp_path, capfd):
    """The folder of a run of three steps."""
    recipe, folder = write_recipe(root, extra="unseen=['dog'],"), tmp_path / 'run'
    out = run_tool(capfd, 'train', recipe, '--method', 'deep', '--work-dir', folder)
    assert out.code == 0, out.err[-2000:]
    return folder


@pytest.mark.slow
def test_a_graph(run, tmp_path, capfd):
    out = run_tool(capfd, 'export', run / 'iter_3.pth', '--out', tmp_path / 'a.pt2')
    assert out.code == 0 and 'largest difference from the model' in out.out, out.err


def test_a_run_its_delta_and_other_classes(root, run, tmp_path, capfd):
    evaluation, = json.loads((run / 'evaluations.json').read_text())
    assert {'mIoU', 'mIoU_seen', 'mIoU_unseen', 'hIoU'} <= set(evaluation['metrics'])
    state = safe_files.read(str(run / 'iter_3.pth'))['state_dict']
    assert state['decode_head.class_vectors'].shape == (4, WIDTH)
    assert not any('token_embedding' in name or name.startswith('backbone.layers')
                   for name in state)
    delta = tmp_path / 'a.safetensors'
    assert run_tool(capfd, 'delta', 'extract', run / 'iter_3.pth', delta).code == 0
    image = str(root / 'data/images/validation/000.jpg')
    one, two = (vpt_dense.load(str(path)).predict(image, probabilities=True)
                for path in (run / 'iter_3.pth', delta))
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.probabilities.sum(0), 1, rtol=1e-3)
    np.testing.assert_array_equal(one.probabilities.argmax(0), one.labels)
    # The texts of other names are computed from the file of CLIP.
    out = run_tool(capfd, 'predict', delta, image, '--out', tmp_path / 'out', '--classes',
                   'road, green sky', '--overlay')
    assert out.code == 0, out.err
    found = vpt_dense.load(str(delta), classes=['road', 'green sky']).predict(image)
    assert set(np.unique(found.labels)) <= {0, 1} and found.classes == ('road', 'green sky')
    same = vpt_dense.load(str(delta), classes=CLASSES).predict(image)
    np.testing.assert_array_equal(same.labels, one.labels)
    metrics = json.loads((run / 'evaluations.json').read_text())
    assert 'mIoU' in metrics[-1]['metrics']


def test_windows_average_logarithms_of_scores(root):
    """Two windows of one image by hand."""
    cfg = config.load(str(write_recipe(root)), method='deep')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.eval()
    x = images(1, 3, 32, 53)
    metas = [dict(img_shape=(32, 53), ori_shape=(32, 53), pad_shape=(32, 53))]
    with torch.no_grad():
        total, count = torch.zeros(1, 4, 32, 53), torch.zeros(53)
        for start in (0, 21):
            part = x[..., start : start + 32]
            mask = model.decode_head(model.extract_feat(part))
            total[..., start : start + 32] += torch.nn.functional.interpolate(
                mask, (32, 32), mode='bilinear').sigmoid().log()
            count[start : start + 32] += 1
        torch.testing.assert_close(model.slide_inference(x, metas), total / count)


def test_the_leaf_is_the_recipe_with_a_method():
    recipe, leaf = (str(CONFIGS / f'clip/zegclip_vit-b_{name}ade20k.py') for name in ('', 'deep_'))
    cfg = config.load(recipe, method='deep')
    assert cfg.to_dict() == config.load(leaf).to_dict()
    assert cfg.optim_wrapper.optimizer.lr == 2e-5


def test_another_head_is_refused(root):
    cfg = config.load(str(write_recipe(root)), method='deep').model
    cfg.decode_head = dict(type='FCNHead', in_channels=WIDTH, channels=8, num_classes=4, in_index=0)
    with pytest.raises(ValueError, match='needs a head that knows classes by texts, found a FCN'):
        MODELS.build(cfg)


def test_another_backbone_is_refused(root):
    cfg = config.load(str(write_recipe(root)), method='deep').model
    cfg.backbone.out_type = 'featmap'
    cfg.backbone.pop('project_dims')
    with pytest.raises(ValueError, match=re.escape("needs a CLIPVisionTransformer with out_type=")):
        MODELS.build(cfg)

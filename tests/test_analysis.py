"""What tools/analyse.py computes, on cases whose answer is known."""

import csv
import json
import re
import runpy
from types import SimpleNamespace

import cv2
import pytest
import torch
from methods import build_at_start
from mmengine.config import Config
from tool_helpers import run_tool, write_leaf
from utils import CONFIGS, images, in_scope, make_ade_folder, randomise, tiny_vit

from vpt_dense import building, config, memory
from vpt_dense.analysis import (
    attention,
    cost,
    curves,
    errors_of,
    features,
    importance,
    sensitivity,
)
from vpt_dense.commands import analyse
from vpt_dense.errors import UserError

PROMPT = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)


def model(**further):
    torch.manual_seed(0)
    in_scope('mmpretrain')
    return randomise(tiny_vit(**{'prompt': PROMPT, **further})).eval()


# --- attention -------------------------------------------------------------------------------


@pytest.mark.parametrize('prompts_as', ['keys_values', 'tokens'])
@pytest.mark.parametrize('deep', [True, False])
def test_even_attention_gives_prompts_their_share(prompts_as, deep):
    vit = model(prompt=dict(PROMPT, deep=deep), prompts_as=prompts_as)
    for block in vit.layers:
        torch.nn.init.zeros_(block.attn.qkv.weight)  # all scores are equal
    found = attention.attention(vit, images(2, 3, 32, 32))
    assert [each.block for each in found] == list(range(len(vit.layers)))
    for each in found:
        tokens = 1 + 3 + 16
        assert (each.prompts, each.keys) == (3, tokens) and each.even == 3 / tokens
        torch.testing.assert_close(each.to_prompts, torch.full_like(each.to_prompts, 3 / tokens))
        torch.testing.assert_close(each.map, torch.full((2, 4, 4), 3 / tokens))
        torch.testing.assert_close(each.of_prompts, torch.full((2, 3, 4, 4), 1 / tokens))
        torch.testing.assert_close(each.of_cls, torch.full((2, 4, 4), 1 / tokens))


def test_a_prompt_with_the_only_large_key_gets_all_attention():
    vit = model()
    block, dims = vit.layers[1], vit.embed_dims
    torch.nn.init.zeros_(block.attn.qkv.weight)
    torch.nn.init.zeros_(block.attn.qkv.bias)
    # Queries are constant, keys are what the norm leaves of the tokens; the second prompt of the
    # second block is a sawtooth that no other token is.
    saw = torch.tensor([1.0, -1.0]).repeat(dims // 2)
    vit.prompt.tokens.data[1] = 0
    vit.prompt.tokens.data[1, 1] = saw
    block.ln1.weight.data.fill_(1)
    block.ln1.bias.data.zero_()
    block.attn.qkv.bias.data[:dims] = 1000 * saw
    block.attn.qkv.weight.data[dims : 2 * dims] = torch.outer(saw, saw) / dims
    found = attention.attention(vit, images(1, 3, 32, 32))[1]
    assert found.to_prompts.min() > 0.999 and found.of_cls.max() < 1e-3


def test_prefixes_are_prompts_without_queries():
    vit = model(prompt=dict(type='vpt_dense.PrefixPrompt', num_tokens=5))
    for block in vit.layers:
        torch.nn.init.zeros_(block.attn.qkv.weight)
    vit.prompt.requires_grad_(False)
    for parameter in vit.prompt.parameters():
        parameter.zero_()
    torch.nn.init.zeros_(vit.layers[0].attn.qkv.bias)
    found = attention.attention(vit, images(1, 3, 32, 32))[0]
    assert (found.prompts, found.keys, found.of_prompts) == (5, 1 + 16 + 5, None)
    torch.testing.assert_close(found.to_prompts, torch.full_like(found.to_prompts, 5 / 22))


def test_watching_changes_nothing():
    vit = model().train()
    batch = images(2, 3, 32, 32)
    layers, before = vit.keys_values_layers, vit.eval()(batch)
    attention.attention(vit.train(), batch)
    attention.prompts(vit, batch)
    assert vit.training and vit.keys_values_layers == layers and layers
    assert all(map(torch.equal, vit.eval()(batch), before))


def test_backbones_without_such_attention_are_refused():
    from methods import FAMILIES
    from mmengine import MODELS

    in_scope('mmseg')
    swin = MODELS.build(dict(FAMILIES['swin'].cfg, prompt=PROMPT))
    with pytest.raises(UserError, match='SwinTransformer is no plain vision transformer'):
        attention.attention(swin, images(1, 3, 32, 32))


def test_prompts_are_those_of_the_blocks():
    vit = model()
    found = attention.prompts(vit, images(2, 3, 32, 32))
    assert list(found) == list(range(len(vit.layers)))
    for i, tokens in found.items():
        torch.testing.assert_close(tokens, vit.prompt.tokens[i])


def test_similarity():
    e = torch.eye(4)
    found = attention.similarity({
        0: 3 * e[:2], 1: torch.stack([e[0], e[0]]), 4: -e[:1], 5: e[3:] + e[2:3]})
    r = 0.5**0.5
    expected = torch.tensor([
        [0, 0.5, -0.5, 0], [0.5, 1, -1, 0], [-0.5, -1, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(found, expected)
    mixed = attention.similarity({0: e[:1], 1: (e[0] + e[1])[None]})
    torch.testing.assert_close(mixed, torch.tensor([[1, r], [r, 1]]))


# --- features --------------------------------------------------------------------------------


def test_neighbours():
    far = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.05], [0, 1], [0.1, 0.9], [0.05, 0.8]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert features.knn_accuracy(far, labels, 2) == 100
    # The third point is of another class than its neighbours, and the nearest one of both.
    assert features.knn_accuracy(far, torch.tensor([0, 0, 1, 1, 1, 1]), 1) == 50
    with pytest.raises(UserError, match='neighbours of 1 points'):
        features.knn_accuracy(far[:1], labels[:1])


def test_the_plane_keeps_clusters_apart():
    pytest.importorskip('sklearn')
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 16, generator=generator) * 0.05
    points[:20, 0] += 1
    points[20:, 1] += 1
    where = features.plane(points)
    assert where.shape == (40, 2)
    inside = max(torch.cdist(part, part).max() for part in (where[:20], where[20:]))
    assert torch.cdist(where[:20], where[20:]).min() > 0.3 * inside
    assert torch.equal(where, features.plane(points))


def test_pixels_are_of_the_places_of_their_labels():
    output = torch.arange(4.0).reshape(1, 1, 2, 2)
    labels = torch.zeros(6, 6, dtype=torch.long)
    labels[:3, 3:], labels[3:, :3], labels[3:, 3:] = 1, 1, 255
    vectors, classes = features.of_pixels(output, labels, 255, 9, torch.Generator())
    assert sorted(zip(vectors[:, 0].tolist(), classes.tolist(), strict=True)) == [
        (0, 0), (1, 1), (2, 1)]
    vectors, classes = features.of_pixels(output, labels, 255, 1, torch.Generator())
    assert classes.tolist() == [0, 1]


# --- errors ----------------------------------------------------------------------------------


def test_confusion():
    found = errors_of.Errors(3)
    found.add('a', torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 1, 1, 2]]), 255)
    found.add('b', torch.tensor([[1, 1, 9]]), torch.tensor([[1, 1, 0]]), 255)
    assert found.matrix.tolist() == [[1, 1, 0], [0, 3, 0], [0, 0, 0]]
    scores = errors_of.iou(found.matrix)
    assert scores[:2].tolist() == [50, 75] and scores[2].isnan()
    assert errors_of.mean_iou(found.matrix) == 62.5
    assert errors_of.accuracy(found.matrix) == 80
    assert found.worst() == [('a', 50.0), ('b', 100.0)]


# --- curves and cost -------------------------------------------------------------------------


def write_run(folder, method, tokens, scores):
    for seed, score in enumerate(scores):
        run = folder / f'{method}_seed{seed}'
        run.mkdir(parents=True)
        (run / 'run.json').write_text(json.dumps(dict(
            method=method, seed=seed, metrics=dict(mIoU=score, aAcc=1.0),
            backbone_trainable=100 * tokens)))
        cfg = dict(model=dict(backbone=dict(prompt=dict(num_tokens=tokens), out_indices=[1, 2])))
        (run / 'leaf.py').write_text(Config(cfg).pretty_text)


def test_curves(tmp_path):
    write_run(tmp_path / 'a', 'deep', 5, [10.0, 14.0])
    write_run(tmp_path / 'b', 'deep', 50, [20.0])
    (tmp_path / 'b/begun').mkdir()
    (tmp_path / 'b/begun/run.json').write_text('{"fingerprint": "x"}')
    found = curves.read([tmp_path / 'a', tmp_path / 'b'], 'model.backbone.prompt.num_tokens')
    assert found == [
        dict(method='deep', x=5, mean=12.0, std=pytest.approx(8**0.5), seeds=2, metric='mIoU'),
        dict(method='deep', x=50, mean=20.0, std=None, seeds=1, metric='mIoU')]
    assert [p['x'] for p in curves.read([tmp_path / 'a'], 'backbone_trainable')] == [500]
    assert [p['x'] for p in curves.read([tmp_path / 'a'], 'model.backbone.out_indices')] == [2]
    assert curves.read([tmp_path / 'a'], 'backbone_trainable', 'aAcc')[0]['mean'] == 1
    for x, metric, message in (
            ('no.such', None, 'no run has it'),
            ('backbone_trainable', 'mDice', '--metric mDice: .* has mIoU, aAcc')):
        with pytest.raises(UserError, match=message):
            curves.read([tmp_path / 'a'], x, metric)
    with pytest.raises(UserError, match='no finished run'):
        curves.read([tmp_path], 'backbone_trainable')


@pytest.mark.slow
def test_operations_are_counted(tmp_path):
    recipe = str(CONFIGS / 'vpt/linear_vit-s_dinov2_segfolder.py')
    options = ['dataset.classes=[a,b]', 'img_size=56', 'model.backbone.init_cfg=None']

    def of(method, *further):
        return cost.flops(config.load(recipe, [*options, *further], method))

    head, few = of('head'), of('deep', f'{cost.TOKENS}=10')
    # Keys and values of 10 prompts in each of 12 blocks, and attention of 1 + 16 tokens to them.
    dims, prompts, tokens = 384, 10, 17
    added = 12 * (2 * prompts * dims * 2 * dims + 2 * 2 * tokens * prompts * dims)
    assert few - head == pytest.approx(added / 1e9, rel=1e-6)
    assert of('deep', f'{cost.TOKENS}=30') - head == pytest.approx(3 * added / 1e9, rel=1e-6)


# --- sensitivity -----------------------------------------------------------------------------


def test_sensitivities_are_squared_gradients(tmp_path):
    path = write_leaf(tmp_path, make_ade_folder(tmp_path / 'data', size=(32, 32), num_images=4))
    cfg = config.load(str(path))
    cfg.model.backbone.update(prompt=None, trainable=['.*'])
    torch.manual_seed(0)
    whole = building.build_model(cfg)
    batches = [memory.synthetic_batch(cfg, 2, (32, 32)) for _ in range(2)]
    for i, batch in enumerate(batches):
        for image in batch['inputs']:
            image.random_(0, 256)
        for sample in batch['data_samples']:
            sample.gt_sem_seg.data[:, :16] = 3 + i
    found = sensitivity.measure(whole, batches)
    assert all(p.grad is None for p in whole.parameters())
    name, wanted = 'layers.1.attn.qkv.weight', 0.0
    for batch in batches:
        data = whole.data_preprocessor(batch, True)
        loss, _ = whole.parse_losses(whole(**data, mode='loss'))
        parameter = whole.backbone.get_parameter(name)
        wanted = wanted + torch.autograd.grad(loss, parameter)[0] ** 2
    torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-9)
    assert found[name].any() and set(found) == {
        n for n, _ in whole.backbone.named_parameters() if n.startswith('layers.')}


def scores_of(backbone):
    found = {n: torch.full_like(p, 1e-6) for n, p in backbone.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for name in found:  # no two are equal
        found[name] *= 1 + torch.rand(found[name].shape, generator=generator)
    return found


def test_what_is_sensitive_trains():
    backbone = model(prompt=None)
    dims, scores = backbone.embed_dims, scores_of(backbone)
    scores['layers.1.attn.qkv.weight'][dims : 2 * dims] = 1.0  # the keys, all of them
    scores['layers.2.attn.proj.weight'].view(-1)[[3, 70, 71]] = 2.0
    scores['layers.0.attn.qkv.weight'][2 * dims, 5] = 3.0  # of the values
    scores['layers.0.ln1.bias'][:] = 4.0
    low_rank = 2 * 2 * dims
    found = sensitivity.choose(backbone, scores, low_rank + 3 + 1 + dims, rank=2)
    assert found.low_rank == [('layers.1.attn.qkv', 'k')]
    assert found.vectors == ['layers.0.ln1.bias']
    assert {name: places.tolist() for name, places in found.single.items()} == {
        'layers.2.attn.proj': [3, 70, 71], 'layers.0.attn.qkv': [2 * dims * dims + 5]}
    assert found.number == low_rank + 4 + dims
    less = sensitivity.choose(backbone, scores, 4 + dims, rank=2)
    assert not less.low_rank and less.number == 4 + dims
    whole = sensitivity.choose(backbone, scores, low_rank + 4 + dims, rank=2, single=False)
    assert not whole.single and whole.number == low_rank + dims
    with pytest.raises(UserError, match=f'a budget of 3 .* the smallest vector has {dims}'):
        sensitivity.choose(backbone, scores, 3, rank=2, single=False)


def test_a_choice_is_a_method(tmp_path):
    backbone = model(prompt=None)
    scores = scores_of(backbone)
    scores['layers.1.attn.qkv.weight'][:] = 1.0
    scores['layers.3.ffn.layers.1.weight'][2, :30] = 2.0
    scores['layers.2.ln2.weight'][:] = 3.0
    choice = sensitivity.choose(backbone, scores, 2_000, rank=2)
    text = sensitivity.method_file(choice, 2, tmp_path / 'places.safetensors', 'A note.')
    found = runpy.run_path(str((tmp_path / 'method.py').resolve())) if (
        (tmp_path / 'method.py').write_text(text)) else {}
    tuned = model(prompt=None, **found['method'])
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == choice.number
    (hook,) = found['method_hooks']
    assert hook['type'] == 'vpt_dense.SparsePlacesHook' and found['optim_group'] == 'adapters'
    rows = sensitivity.table(backbone, scores, choice)
    trained = sum(row[4] for row in rows if isinstance(row[4], int))
    assert trained == sum(len(places) for places in choice.single.values())
    assert {('layers.1.attn.qkv', part) for part in 'qkv'} <= set(choice.low_rank)
    assert sum(row[4] == 'LoRA' for row in rows) == len(choice.low_rank)


@pytest.mark.slow
def test_what_is_sensitive_is_found_and_trained(capfd, tmp_path):
    from vpt_dense import safe_files

    data = make_ade_folder(tmp_path / 'data', size=(32, 32), num_images=4)
    path = write_leaf(tmp_path, data)
    text = path.read_text().replace('setr_vit-l_deep_ade20k', 'setr_vit-l_ade20k').replace(
        '        prompt=dict(num_tokens=2)),', '        ),')
    path.write_text(text)
    options = ['--cfg-options', 'model.backbone.init_cfg=None']
    out = tmp_path / 'out'
    ask = ['analyse', 'sensitivity', path, '--out', out, '--images', 3, '--budget', 700, '--rank',
           1, *options]  # fmt: skip
    outcome = run_tool(capfd, *ask)
    assert outcome.code == 0, outcome.err
    printed = outcome.out
    outcome = run_tool(capfd, *ask)
    assert outcome.code == 2 and 'method.py is there already' in outcome.err
    work = tmp_path / 'work'
    outcome = run_tool(capfd, 'train', path, '--method', out / 'method.py', '--work-dir', work,
                       *options)
    assert outcome.code == 0, outcome.err
    report = json.loads((work / 'params.json').read_text())
    parts = report['parts']
    number = sum(parts[p]['trainable'] for p in ('backbone', 'adapters') if p in parts)
    assert f'{number} parameters: LoRA on ' in printed and 0 < number <= 700
    places = safe_files.read(out / 'places.safetensors')['state_dict']
    saved = safe_files.read(work / 'iter_2.pth')['state_dict']
    stored = [v for k, v in saved.items() if k.endswith('.places')]
    assert [len(v) for v in stored] == [len(v) for v in places.values()]
    assert all(any(torch.equal(a, b) for b in places.values()) for a in stored)
    places.popitem()
    safe_files.write_tensors(places, out / 'places.safetensors', {})
    outcome = run_tool(capfd, 'train', path, '--method', out / 'method.py', '--work-dir',
                       tmp_path / 'other', *options)
    assert outcome.code == 2 and 'is only in the model' in outcome.err.splitlines()[-1]


# --- importance of prompts ---------------------------------------------------------------------


class Judged(torch.nn.Module):
    """A model as runs have them: losses of images by their labels."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples, mode):
        assert mode == 'loss'
        out = self.backbone(inputs)[0].flatten(1)
        return dict(loss=(out.tanh().mean(1) * data_samples).square().mean())

    def parse_losses(self, losses):
        return losses['loss'], losses


E2VPT = dict(type='vpt_dense.E2VPTPrompt', num_tokens=3, num_kv_tokens=2)


def test_importance_is_what_the_loss_moves_with_masks():
    judged = Judged(model(prompt=E2VPT).double())
    prompt, start = judged.backbone.prompt, judged.backbone.prompt.tokens.detach().clone()
    batches = [dict(inputs=images(1, 3, 32, 32, seed=i, dtype=torch.float64),
                    data_samples=torch.tensor([1.0 + i])) for i in range(3)]
    found = importance.importance(judged, batches)
    assert found.tokens.shape == (4, 3) and found.pieces.shape == (4, 3, 16)
    tokens, pieces = torch.zeros(4, 3).double(), torch.zeros(4, 3, 16).double()
    name = 'backbone.prompt.tokens'
    for batch in batches:
        masks = torch.ones(4, 3, 1).double().requires_grad_()
        fine = torch.ones(4, 3, 16).double().requires_grad_()
        masked = start * masks * fine.repeat_interleave(64 // 16, -1)
        out = torch.func.functional_call(judged, {name: masked}, kwargs=dict(batch, mode='loss'))
        out['loss'].backward()
        tokens += masks.grad[..., 0].abs() / 3
        pieces += fine.grad.abs() / 3
    torch.testing.assert_close(found.tokens, tokens)
    torch.testing.assert_close(found.pieces, pieces)
    assert torch.equal(prompt.tokens, start) and prompt.tokens.grad is None


def test_what_stays_has_the_highest_scores():
    pieces = torch.arange(2 * 3 * 16.0).reshape(2, 3, 16)
    pieces[1, 0, 5], pieces[1, 1] = 1000, 0
    tokens = torch.tensor([[1.0, 3.0, 2.0], [9.0, 1.0, 2.0]])
    found = importance.Importance(tokens, pieces)
    assert importance.choose(found, 1, 1) == [[0xffff] * 3] * 2
    assert importance.choose(found, 2 / 3, 0.5) == [
        [0, 0, 0xffff], [1 << 5, 0, 0xfffe]]
    assert importance.choose(found, 0.01, 0.01) == [[0, 1 << 15, 0], [1 << 5, 0, 0]]


def test_importance_of_a_swin():
    prompt = dict(E2VPT, num_tokens=2)
    swin = randomise(build_at_start(dict(prompt=prompt), 'swin', 'cls')).double().eval()
    batch = dict(inputs=images(1, 3, 32, 32, dtype=torch.float64), data_samples=torch.ones(1))
    found = importance.importance(Judged(swin), [batch])
    assert found.tokens.shape == (4, 2) and (found.pieces > 0).all()
    kept = importance.choose(found, 0.5, 0.75)
    pruned = build_at_start(dict(prompt=dict(prompt, kept=kept)), 'swin', 'cls')
    for name, width in (('0', 1), ('1', 2)):
        assert pruned.prompt.stages[name].tokens.shape == (2 * 12, width)


@pytest.mark.parametrize(('prompt', 'message'), [
    (None, 'of --method e2vpt, this model has none'),
    (PROMPT, 'of --method e2vpt, this model has TokenPrompt'),
    (dict(E2VPT, shared=True), 'leave model.backbone.prompt.kept, shared and project_dims out'),
    (dict(E2VPT, kept=[[1, 1, 1]] * 4), 'leave model.backbone.prompt.kept'),
])
def test_what_has_no_importance(prompt, message):
    with pytest.raises(UserError, match=message):
        importance.importance(Judged(model(prompt=prompt)), [])
    with pytest.raises(UserError, match='without images'):
        importance.importance(Judged(model(prompt=E2VPT)), [])


# --- the command -----------------------------------------------------------------------------


def rows(file):
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.mark.slow
def test_the_command(capfd, tmp_path):
    path = write_leaf(tmp_path, make_ade_folder(tmp_path / 'data', size=(32, 32), num_images=4))
    options = ['--cfg-options', 'model.backbone.init_cfg=None']
    outcome = run_tool(capfd, 'train', path, *options)
    assert outcome.code == 0, outcome.err
    work, out = tmp_path / 'work', tmp_path / 'out'

    def analyse(kind, *further):
        outcome = run_tool(capfd, 'analyse', kind, path, work, '--out', out, *further, *options)
        assert outcome.code == 0, outcome.err
        assert all((tmp_path / line).stat().st_size for line in outcome.out.splitlines()
                   if line.startswith(str(out)))
        return outcome.out

    analyse('attention')
    found = rows(out / 'attention.csv')
    assert [row['block'] for row in found] == ['0', '1']
    for row in found:
        heads = [float(row['head 0']), float(row['head 1'])]
        assert float(row['share']) == pytest.approx(sum(heads) / 2)
        assert float(row['even share']) == pytest.approx(2 / (1 + 2 + 16))
    assert {'to_prompts.png', 'of_prompts.png', 'attention.png'} <= {
        file.name for file in out.iterdir()}
    analyse('prompts')
    found = rows(out / 'similarity.csv')
    assert float(found[0]['1']) == pytest.approx(float(found[1]['0']))
    printed = analyse('errors', '--against', work, '--worst', 2)
    outcome = run_tool(capfd, 'test', path, work, '--work-dir', tmp_path / 'test', *options)
    metrics = json.loads((tmp_path / 'test/test.json').read_text())['metrics']
    assert f'model: mIoU {metrics["mIoU"]:.2f}, accuracy {metrics["aAcc"]:.2f}' in printed
    assert f'against: mIoU {metrics["mIoU"]:.2f}' in printed
    assert {float(row['gain']) for row in rows(out / 'classes.csv')
            if row['gain'] != 'nan'} == {0.0}
    height, width = cv2.imread(str(out / 'worst.png')).shape[:2]
    assert width > 2.4 * height  # two rows of six square pictures: of both models
    scores = [float(row['mIoU']) for row in rows(out / 'images.csv')]
    assert len(scores) == 4 and scores == sorted(scores)
    pytest.importorskip('sklearn')
    printed = analyse('features', '--neighbours', 3)
    assert printed.startswith('before: ') and 'after: ' in printed
    found = rows(out / 'features.csv')
    assert len(found) % 2 == 0 and {row['weights'] for row in found} == {'before', 'after'}


@pytest.mark.slow
def test_prompts_are_pruned_and_train_again(capfd, tmp_path):
    prompt = dict(_delete_=True, type='vpt_dense.E2VPTPrompt', num_tokens=4, num_kv_tokens=2)
    path = write_leaf(tmp_path, make_ade_folder(tmp_path / 'data', size=(32, 32), num_images=4),
                      f"model['backbone']['prompt'] = {prompt!r}\nrandomness = dict(seed=5)\n")
    options = ['--cfg-options', 'model.backbone.init_cfg=None']
    work, out = tmp_path / 'work', tmp_path / 'out'
    assert run_tool(capfd, 'train', path, *options).code == 0
    outcome = run_tool(capfd, 'analyse', 'pruning', path, work, '--out', out, '--images', 3,
                       '--keep-tokens', 0.75, '--keep-pieces', 0.25, *options)
    assert outcome.code == 0, outcome.err
    assert re.match('[2-6] of 8 prompts stay, and 24 of all 128 pieces\n', outcome.out)
    found = rows(out / 'importance.csv')
    assert len(found) == 8 and sum(int(row['kept']).bit_count() for row in found) == 24
    for layer in ('0', '1'):
        own = sorted((float(row['score']), int(row['kept']) > 0)
                     for row in found if row['layer'] == layer)
        assert own[0][1] is False
    assert (out / 'importance.png').stat().st_size
    cfg = Config.fromfile(out / 'pruned.py')
    assert cfg.work_dir == f'{work}_pruned' and cfg.randomness.seed == 5
    outcome = run_tool(capfd, 'train', out / 'pruned.py')
    assert outcome.code == 0, outcome.err
    state = torch.load(tmp_path / 'work_pruned/iter_2.pth', weights_only=False)['state_dict']
    assert state['backbone.prompt.tokens'].shape == (24, 2)
    outcome = run_tool(capfd, 'test', out / 'pruned.py', tmp_path / 'work_pruned')
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(('arguments', 'message'), [
    (['pruning', 'c', 'k', '--keep-tokens', '0'], '--keep-tokens must be above 0 and at most 1'),
    (['errors', 'c', 'k', '--against-config', 'x'], 'does nothing without --against'),
    (['attention', 'c', 'k', '--images', '-1'], '--images must be at least 0'),
    (['curves', '.'], 'no finished run in .'),
    (['sensitivity', 'c', '--ratio', '0'], '--ratio must be above 0'),
    (['sensitivity', 'c', '--budget', '0'], '--budget must be at least 1'),
    (['cost', 'vpt_dense::setr_vit-l_ade20k', '--tokens', '-1'], '--tokens must not be negative'),
])
def test_mistakes_end_in_one_line(capfd, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c').write_text('')
    outcome = run_tool(capfd, 'analyse', *arguments)
    assert outcome.code == 2 and message in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(('number', 'indices'), [(3, [0, 3, 6]), (0, list(range(10)))])
def test_images_from_all_over_a_split(monkeypatch, number, indices):
    """Those of one class may come first."""
    samples = [dict(data_samples=SimpleNamespace(img_path=f'{i}.png')) for i in range(10)]
    monkeypatch.setattr('mmengine.registry.DATASETS.build', lambda cfg: samples)
    predictor = SimpleNamespace(cfg=Config(dict(train_dataloader=dict(dataset=dict(type='x')))))
    args = SimpleNamespace(split='train', images=number)
    found = [name for name, _ in analyse._batches(predictor, args, spread=True)]
    assert found == [f'{i}.png' for i in indices]
    if number:
        first = [name for name, _ in analyse._batches(predictor, args)]
        assert first == ['0.png', '1.png', '2.png']

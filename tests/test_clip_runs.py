"""Whole runs of CLIP on folders of images: training, deltas, predicting, base to new classes."""

import functools
import json
import re

import numpy as np
import pytest
from clip_models import (
    CONTEXT,
    PATCH,
    SIZE,
    TEXT,
    VISION,
    WIDTH,
    open_clip_model,
    vocab_size,
    write_tokenizer,
)
from PIL import Image
from safetensors.torch import save_file
from tool_helpers import in_process, run_tool
from utils import CONFIGS

import vpt_dense
from vpt_dense import config, safe_files
from vpt_dense.comparison import base_to_new, runs
from vpt_dense.continual.class_split import labels_of
from vpt_dense.errors import UserError

COLOURS = dict(blue=(40, 40, 200), cat=(200, 200, 60), green=(40, 200, 40), red=(200, 40, 40))

LEAF = """
_base_ = '{base}'
work_dir = '{root}/work'
dataset = dict(data_root='{root}/data')
_start = dict(type='Pretrained', checkpoint='{root}/clip.safetensors')
model = dict(
    backbone=dict(arch={vision}, img_size={size}, patch_size={patch}, project_dims={width},
                  init_cfg=_start),
    head=dict(text=dict(arch={text}, project_dims={width}, vocab_size={vocabulary},
                        context_length={context}, tokenizer='{root}/tokenizer')))
_small = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=({size}, {size})),
          dict(type='PackInputs')]
train_dataloader = dict(num_workers=0, dataset=dict(pipeline=_small))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=_small))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=_small))
epochs = 2
batch_size = 4
default_hooks = dict(checkpoint=dict(interval=1))
"""


def with_delete(arch):
    return dict(arch, _delete_=True)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Data, weights, a tokenizer and a recipe; do not write into it."""
    root = tmp_path_factory.mktemp('clip')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name, colour in COLOURS.items():
            folder = root / 'data' / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = np.array(colour) + rng.integers(-30, 30, (40, 40, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f'{i}.png')
    write_tokenizer(root / 'tokenizer')
    vocabulary = vocab_size(root / 'tokenizer')
    save_file(open_clip_model(vocabulary).state_dict(), root / 'clip.safetensors')
    (root / 'recipe.py').write_text(LEAF.format(
        base=CONFIGS / 'clip/clip_vit-b_imagefolder.py', root=root, vision=with_delete(VISION),
        text=with_delete(TEXT), size=SIZE, patch=PATCH, width=WIDTH, vocabulary=vocabulary,
        context=CONTEXT))
    return root


SMALL = {
    'coop': ['model.head.text.prompt.num_tokens=3'],
    'cocoop': ['model.head.text.prompt.num_tokens=3'],
    'vpt': [], 'deep': ['model.backbone.prompt.num_tokens=3'], 'lora': [],
    'maple': ['model.head.text.prompt.depth=2'],
    'sep': ['model.backbone.prompt.hidden_dims=8', 'model.head.text.prompt.hidden_dims=8'],
}  # fmt: skip


@pytest.fixture(scope='module')
def trained(root, tmp_path_factory):
    """Method -> its folder, trained once."""
    known = {}

    def train(method, capfd):
        if method not in known:
            known[method] = tmp_path_factory.mktemp(method)
            out = run_tool(capfd, 'train', root / 'recipe.py', '--method', method, '--work-dir',
                           known[method], '--cfg-options', 'epochs=2', *SMALL[method])
            assert out.code == 0, out.err[-2000:]
        return known[method]

    return train


@pytest.mark.slow
@pytest.mark.parametrize('method', SMALL)
def test_a_run_its_delta_and_predictions(method, root, trained, tmp_path, capfd):
    folder = trained(method, capfd)
    checkpoint = folder / 'epoch_2.pth'
    state = safe_files.read(str(checkpoint))['state_dict']
    assert not any('.layers.' in name or 'token_embedding' in name for name in state
                   if 'adapters' not in name)
    assert ('head.class_vectors' in state) == (method in ('vpt', 'deep', 'lora'))
    delta = tmp_path / 'a.safetensors'
    out = run_tool(capfd, 'delta', 'extract', checkpoint, delta)
    assert out.code == 0, out.err
    images = sorted((root / 'data/val/red').glob('*.png'))
    found = [vpt_dense.load(str(path)).predict(list(map(str, images)))
             for path in (checkpoint, delta)]
    for one, other in zip(*found, strict=True):
        assert one.classes == tuple(sorted(COLOURS))
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_names_come_from_the_data_and_go_into_the_config(root):
    cfg = config.load(str(root / 'recipe.py'), method='coop')
    assert cfg.model.head.classes == sorted(COLOURS) and cfg.model.head.num_classes == 4
    named = config.load(str(root / 'recipe.py'), [
        "model.head.classes=['sky','a cat','grass','fire']"], 'coop')
    assert named.model.head.classes == ['sky', 'a cat', 'grass', 'fire']
    with pytest.raises(UserError, match=r'model.head.classes has the names of the data in another'):
        config.load(str(root / 'recipe.py'), [
            "model.head.classes=['red','green','cat','blue']"], 'coop')


@pytest.mark.slow
def test_base_and_new(root, tmp_path, capfd, monkeypatch):
    """The tables are those of the tests, which are of the classes of each half."""
    calls = []
    monkeypatch.setattr(runs, 'call', in_process(capfd, calls))
    arguments = [root / 'recipe.py', '--methods', 'zero-shot', 'coop', 'vpt', 'coop',
                 '--shots', 2, '--seeds', 5, 6, '--work-dir', tmp_path, '--amp', 'off',
                 '--cfg-options', 'epochs=1']
    out = run_tool(capfd, 'base_to_new', *arguments)
    assert out.code == 0, out.err
    assert calls.count('train') == 4 and calls.count('test') == 12
    table = json.loads((tmp_path / 'table.json').read_text())
    for method, found in table['results'].items():
        for seed, run in zip((5, 6), found, strict=True):
            parts = {}
            for part in ('base', 'new'):
                text = (tmp_path / f'{method}_seed{seed}' / part / 'test.json').read_text()
                test = json.loads(text)
                support = {each['class']: each['support'] for each in test['per_class']}
                names = ('blue', 'cat') if part == 'base' else ('green', 'red')
                assert support == {name: 4 if name in names else 0 for name in COLOURS}
                parts[part] = test['metrics']['accuracy/top1']
            base, new = parts['base'], parts['new']
            assert run['H'] == pytest.approx(2 / (1 / base + 1 / new) if base and new else 0)
    plain = table['results']['zero-shot']
    assert list(table['results']) == ['zero-shot', 'coop', 'vpt'] and plain[0] == plain[1]
    assert 'harmonic mean' in (tmp_path / 'table.md').read_text()
    calls.clear()
    assert run_tool(capfd, 'base_to_new', *arguments).code == 0 and not calls
    out = run_tool(capfd, 'base_to_new', *[3 if each == 2 else each for each in arguments])
    assert out.code == 2 and 'is a run of other settings or data' in out.err


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--cfg-options', 'class_split.part=new'], '--cfg-options class_split.part: trainings are of'),
    (['--cfg-options', 'subset.per_class=3'], 'subset.per_class: .* say --shots'),
    (['--seeds', 1, 1], '--seeds must be different'),
])  # fmt: skip
def test_bad_arguments_of_base_to_new(arguments, message, root, capfd):
    out = run_tool(capfd, 'base_to_new', root / 'recipe.py', '--methods', 'coop', *arguments)
    assert out.code == 2 and re.search(message, out.err), out.err


def test_images_are_those_of_open_clip(tmp_path):
    """The recipe's test: size, middle, interpolation, mean and deviation."""
    open_clip = pytest.importorskip('open_clip')
    from mmengine.dataset import Compose
    from mmengine.registry import MODELS
    from utils import in_scope

    in_scope('mmpretrain')
    cfg = config.load(
        str(CONFIGS / 'clip/clip_vit-b_imagefolder.py'), ["dataset.classes=['a','b']"], 'coop')
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    theirs = open_clip.image_transform(224, is_train=False)
    for size in ((251, 333), (100, 77)):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'a.png')
        data = Compose(list(cfg.test_dataloader.dataset.pipeline))(
            dict(img_path=str(tmp_path / 'a.png')))
        found = preprocess(
            dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))['inputs'][0]
        np.testing.assert_allclose(found, theirs(Image.open(tmp_path / 'a.png')), atol=1e-5)


def test_few_images_of_the_base_train(root):
    """So many of each base class, and none of others; the head tells these apart alone."""
    from mmengine.registry import DATASETS
    from utils import in_scope

    in_scope('mmpretrain')
    cfg = config.load(str(root / 'recipe.py'), [
        'class_split.part=base', 'subset.per_class=2', 'subset.seed=3'], 'coop')
    train = DATASETS.build(cfg.train_dataloader.dataset)
    labels = [int(train[i]['data_samples'].gt_label) for i in range(len(train))]
    assert sorted(labels) == [0, 0, 1, 1] and cfg.model.head.among == [0, 1]
    new = config.load(str(root / 'recipe.py'), ['class_split.part=new'], 'coop')
    test = DATASETS.build(new.test_dataloader.dataset)
    assert {int(test[i]['data_samples'].gt_label) for i in range(len(test))} == {2, 3}
    assert new.model.head.among == [2, 3]


def test_halves():
    names = list('abcde')
    assert labels_of('base', names) == [0, 1, 2] and labels_of('new', names) == [3, 4]
    assert labels_of('base', names, ['a', 'd']) == [1, 2, 4]
    for new, message in ((['z'], "no class 'z'"), ([], '0 of the 5'), (names, '5 of the 5')):
        with pytest.raises(UserError, match=message):
            labels_of('new', names, new)


@pytest.mark.parametrize(('base', 'new', 'expected'), [
    (82.69, 63.22, 71.66), (50.0, 50.0, 50.0), (0.0, 80.0, 0.0), (0.0, 0.0, 0.0)])
def test_harmonic_mean(base, new, expected):
    """The first: CoOp's means over 11 data sets as CoCoOp's authors publish them (Table 1)."""
    assert base_to_new.harmonic_mean(base, new) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(('options', 'method', 'message'), [
    (["class_split.part='old'"], 'coop', r"class_split.part must be 'base' or 'new'"),
    (["class_split=3"], 'coop', r"class_split: 'base', 'new' or a dict"),
    (["class_split.part=base", "class_split.new=['pink']"], 'coop', "have no class 'pink'"),
    (["model.head.text.prompt.nr=3"], 'coop', None),
])  # fmt: skip
def test_bad_settings(root, options, method, message):
    if message is None:
        cfg = config.load(str(root / 'recipe.py'), options, method)
        from vpt_dense import building
        with pytest.raises(TypeError, match='nr'):
            building.build_model(cfg, 'meta')
        return
    with pytest.raises(UserError, match=message):
        config.load(str(root / 'recipe.py'), options, method)


@pytest.mark.parametrize('method', ['coop', 'maple'])
def test_methods_of_texts_are_refused_without_texts(method):
    with pytest.raises(UserError, match=r'model.head of .* has no text; take a recipe of configs'):
        config.load(str(CONFIGS / 'vpt/vit-b_imagefolder.py'), method=method)
    with pytest.raises(UserError, match=r'class_split: it is for classifiers that know classes'):
        config.load(str(CONFIGS / 'vpt/vit-b_imagefolder.py'),
                    ['class_split.part=base', "dataset.classes=['a','b']"], 'deep')


@pytest.mark.parametrize('method', ['vpt', 'maple'])
def test_there_is_no_ensemble(method, root):
    with pytest.raises(UserError, match='ensemble: there is none of models that know classes by'):
        config.load(str(root / 'recipe.py'), ['ensemble.seeds=[1, 2]'], method)


#: What trains, of ViT-B/16 with 11 classes. CoOp's and CoCoOp's are published (arXiv 2203.05557,
#: Table 10 counts 2,048 of four words, and 35,360), MaPLe's 3.55 million too.
COUNTS = {'coop': 16 * 512, 'cocoop': 35_360, 'vpt': 12 * 8 * 768,
          'maple': 9 * (2 * 512 + 512 * 768 + 768)}  # fmt: skip


@pytest.mark.parametrize('method', ['coop', 'cocoop', 'vpt', 'maple', 'sep'])
def test_leaves_are_the_recipe_with_a_method(method):
    from vpt_dense import building, params

    recipe, leaf = (str(CONFIGS / f'clip/clip_vit-b_{name}imagefolder.py')
                    for name in ('', f'{method}_'))
    names = "dataset.classes=['a','b','c','d','e','f','g','h','i','j','k']"
    cfg = config.load(recipe, [names], method)
    assert cfg.to_dict() == config.load(leaf, [names]).to_dict()
    trainable, _ = params.add_up(params.count(building.build_model(cfg, 'meta')))
    if method in COUNTS:
        assert trainable == COUNTS[method]


# --- other classes ---------------------------------------------------------------------------


@pytest.mark.parametrize('method', ['coop', 'vpt'])
def test_predicting_other_classes(method, root, trained, tmp_path, capfd):
    """The scores are those of a head that was built with these names."""
    folder = trained(method, capfd)
    image = root / 'data/val/red/0.png'
    out = run_tool(capfd, 'predict', folder / 'epoch_2.pth', image, '--out', tmp_path / 'a',
                   '--classes', 'road, car,sky')
    assert out.code == 0, out.err
    line = json.loads((tmp_path / 'a/predictions.jsonl').read_text().splitlines()[0])
    predictor = vpt_dense.load(str(folder / 'epoch_2.pth'), classes=['road', 'car', 'sky'])
    found = predictor.predict(str(image))
    assert line['class'] == found.name and {each['class'] for each in line['top']} == {
        'road', 'car', 'sky'}
    plain = vpt_dense.load(str(folder / 'epoch_2.pth'))
    assert plain.predict(str(image)).classes == tuple(sorted(COLOURS))
    again = vpt_dense.load(
        str(folder / 'epoch_2.pth'), classes=[*sorted(COLOURS)]).predict(str(image))
    np.testing.assert_allclose(
        again.probabilities, plain.predict(str(image)).probabilities, rtol=1e-5)
    names = tmp_path / 'names.txt'
    names.write_text('road\ncar\n\nsky\n')
    out = run_tool(capfd, 'predict', folder / 'epoch_2.pth', image, '--out', tmp_path / 'b',
                   '--classes', names)
    assert out.code == 0 and (tmp_path / 'b/predictions.jsonl').read_text() == (
        tmp_path / 'a/predictions.jsonl').read_text()


@pytest.mark.parametrize(('names', 'message'), [
    (',', "--classes ',' names no class"), ('a,b,a', "--classes: 'a' is there twice"),
    ('no.txt', '--classes no.txt: '),
])  # fmt: skip
def test_bad_classes(names, message, root, trained, tmp_path, capfd):
    out = run_tool(capfd, 'predict', trained('coop', capfd) / 'epoch_2.pth',
                   root / 'data/val/red/0.png', '--out', tmp_path / 'a', '--classes', names)
    assert out.code == 2 and message in out.err and len(out.err.splitlines()) < 3


@pytest.mark.parametrize('method', [
    *(pytest.param(method, marks=pytest.mark.slow) for method in ('coop', 'maple')),
    *(pytest.param(method, marks=pytest.mark.long) for method in ('cocoop', 'vpt', 'sep'))])
def test_folding_and_exporting(method, root, trained, tmp_path, capfd):
    """Trained texts become constants; nothing of the text tower is left."""
    checkpoint, image = trained(method, capfd) / 'epoch_2.pth', str(root / 'data/val/red/0.png')
    expected = vpt_dense.load(str(checkpoint)).predict(image).probabilities
    out = run_tool(capfd, 'export', checkpoint, '--out', tmp_path / 'a.pt2')
    assert out.code == 0, out.err  # what it computes was compared with the model
    told = {'cocoop': 'texts of the classes are computed for each image', 'vpt': ''}
    assert told.get(method, 'texts of the classes made constants') in out.out
    assert 'largest difference from the model' in out.out
    out = run_tool(capfd, 'delta', 'fold', checkpoint, tmp_path / 'folded.pth')
    if method in ('cocoop', 'maple', 'sep'):
        refused = 'makes texts for each image' if method == 'cocoop' else 'use tools/delta.py merge'
        assert out.code == 2 and refused in out.err, out.err
        return
    assert out.code == 0, out.err
    state = safe_files.read(str(tmp_path / 'folded.pth'))['state_dict']
    assert 'head.class_vectors' in state and not any('head.text.' in name for name in state)
    found = vpt_dense.load(str(tmp_path / 'folded.pth')).predict(image).probabilities
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Names of their own: texts of a frozen tower come from its file, learnt words are gone.
    again = functools.partial(
        vpt_dense.load, str(tmp_path / 'folded.pth'), classes=sorted(COLOURS))
    if method == 'vpt':
        np.testing.assert_allclose(again().predict(image).probabilities, expected, rtol=1e-5)
    else:
        with pytest.raises(UserError, match='words that were learnt have become constants'):
            again()

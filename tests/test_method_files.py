"""Recipes and method files: what ``--method`` makes of them, and what it refuses."""

import functools
import json
from pathlib import Path

import pytest
import torch
from methods import ROWS, later
from safetensors.torch import save_file
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import CONFIGS, LEAVES, RECIPES, ROOT, make_ade_folder

from vpt_dense import building, config, config_files, method_files, params, preflight
from vpt_dense.backbones.timm_vit import create
from vpt_dense.errors import UserError

SETR, VIT = (str(CONFIGS / f'vpt/{name}.py') for name in ('setr_vit-l_ade20k', 'vit-b_imagefolder'))
#: Its optimizers have a rate of their own for the head.
LINEAR = str(CONFIGS / 'vpt/linear_vit-s_dinov2_segfolder.py')
#: A recipe of every kind of backbone and optimizer.
KINDS = ('vpt/setr_vit-l_ade20k.py', 'vpt/vit-b_imagefolder.py', 'vpt/upernet_swin-b_ade20k.py',
         'vpt/resnet-50_imagefolder.py', 'demo/setr_digits.py')
#: Methods whose models are built for every recipe: each sets another part.
BUILT = ('head', 'bias', 'deep', 'lora', 'pad')


@functools.cache
def is_timms(recipe: str) -> bool:
    return any(f'/{path.stem}.py' in (CONFIGS / recipe).read_text() and 'Timm' in path.read_text()
               for path in (CONFIGS / '_base_/backbones').glob('*.py'))


#: Recipes of models of timm that take every method; for the others one will do.
OF_TIMM = ('vpt/linear_vit-s_dinov3_ade20k.py', 'vpt/vit-b_siglip2_imagefolder.py')


#: Recipes of every class of backbone and task: with every method, as its class may refuse it.
CLASSES = (*KINDS, *OF_TIMM, 'vpt/swin-b_imagefolder.py', 'vpt/convnext-b_imagefolder.py',
           'vpt/upernet_convnext-b_ade20k.py')
#: On the other recipes a method of every group: the group is all that a recipe tells of methods.
OF_GROUPS = (*BUILT, 'full', 'partial-1', 'concat-channel', 'deep-bias', 'deep-lora', 'gated')


def test_a_method_of_every_group_is_on_every_recipe():
    groups = {name: config_files.parse(str(method_files.find(name))).optim_group
              for name in method_files.names()}
    assert {groups[name] for name in OF_GROUPS} == set(groups.values())


def slow(recipe: str, method: str) -> bool:
    first = recipe in KINDS[:2]  # of each task; the others with a method of every group
    return not first and (recipe not in KINDS or method not in OF_GROUPS) and (
        recipe, method in BUILT) != (OF_TIMM[0], True)


def leaves_of(recipe: str) -> list[Path]:
    """The leaves that put a method on a recipe and say nothing else."""
    name = Path(recipe).name
    return [path for path in (CONFIGS / leaf for leaf in LEAVES)
            if f"['./{name}', '../_base_/methods/" in path.read_text()]


@pytest.mark.parametrize('recipe', [recipe for recipe in RECIPES if recipe.startswith('vpt')])
def test_a_leaf_is_its_recipe_with_a_method(recipe):
    leaves = leaves_of(recipe)
    assert leaves or is_timms(recipe)
    for leaf in leaves:
        text = leaf.read_text()
        # These change the head too, that one how much is copied.
        if any(word in leaf.stem for word in ('mlp-3', 'ilm', 'vit-l_dinov2_vit-split')):
            continue
        method = text.partition('_base_/methods/')[2].partition('.py')[0].removesuffix('_cls')
        made = config.load(str(CONFIGS / recipe), method=method)
        assert made.to_dict() == config.load(str(leaf)).to_dict(), leaf


@pytest.mark.parametrize(('recipe', 'method'), [
    pytest.param(recipe, method, marks=() if not slow(recipe, method) else
                 pytest.mark.slow if method == 'deep' else later(i, j))
    for i, recipe in enumerate(RECIPES) for j, method in enumerate(method_files.names())
    if recipe in CLASSES or method == 'deep' or method in OF_GROUPS and not is_timms(recipe)])
def test_every_method_on_every_recipe(recipe, method):
    """It is a run, or one line says why not."""
    try:
        cfg = config.load(str(CONFIGS / recipe), method=method)
        preflight.check_model(cfg.model)
        preflight.check_optimizer(cfg.optim_wrapper, cfg.default_scope)
        assert not method_files.VARIABLES & set(cfg)
        if recipe not in (*KINDS, *OF_TIMM) and method not in BUILT:
            return
        counts = params.count(building.build_model(cfg, 'meta'))
    except UserError as error:
        assert '\n' not in str(error)
        vit = 'vit-' in recipe or 'demo' in recipe
        assert not vit or method in (
            'partial-1_resnet-50', 'partial-1_convnext-b', 'pool-both', 'pool-image', 'full',
            'pool-prompts', 'prototypes') or is_timms(recipe) and method in ('pad', 'l2p'), error
        return
    except (ValueError, TypeError) as error:  # of a class that refuses its arguments
        patch = 'dinov2' in recipe and method == 'pad'  # a border of 16, patches of 14
        patch |= 'siglip2' in recipe and method == 'cls-token'  # which it has none of
        # No query, and nothing that hides prompts.
        patch |= is_timms(recipe) and method in ('l2p', 'dualprompt', 'coda-prompt', 'tcpa')
        patch |= 'dinov3' in recipe and method == 'da-vpt-plus'  # no biases there
        patch |= method == 'vit-split' and any(  # no map; timm's blocks
            why in str(error) for why in ("set backbone.out_type='featmap'", 'blocks whose copies'))
        patch |= method == 'tcpa' and "it needs out_type='cls_token'" in str(error)
        assert patch or 'vit-' not in recipe or 'partial-1_' in method or 'pool' in method, error
        return
    assert 0 < params.add_up(counts)[0] <= params.add_up(counts)[1]


def test_the_optimizer_of_a_method_goes_over_its_groups():
    rein = config.load(SETR, method='rein').optim_wrapper
    assert (rein.optimizer.type, rein.optimizer.lr, rein.optimizer.weight_decay) == (
        'AdamW', 1e-4, 0.05)
    pixels = config.load(SETR, method='lor-vp').optim_wrapper
    assert (pixels.optimizer.lr, pixels.get('paramwise_cfg')) == (0.02, None)


@pytest.mark.parametrize('method', ['rein', 'ssf', 'lor-vp', 'deep'])
@pytest.mark.parametrize('recipe', [SETR, LINEAR])
def test_rates_that_are_said_once_go_over_a_methods_own(recipe, method):
    cfg = config.load(recipe, ['lr=0.3', 'head_lr=0.6', 'weight_decay=0.2'], method)
    wrapper = cfg.optim_wrapper
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (0.3, 0.2)
    assert wrapper.paramwise_cfg.custom_keys.head.lr_mult == 2


def test_a_methods_rate_leaves_the_heads_where_it_is():
    lora, rein = (config.load(LINEAR, method=name).optim_wrapper for name in ('lora', 'rein'))
    assert (lora.optimizer.lr, rein.optimizer.lr) == (3e-3, 1e-4)
    for wrapper in (lora, rein):
        factor = wrapper.paramwise_cfg.custom_keys.head.lr_mult
        assert factor * wrapper.optimizer.lr == pytest.approx(1e-2)
    assert rein.paramwise_cfg.custom_keys['.tokens.'].decay_mult == 0


@pytest.mark.parametrize('method', ['rein', 'ssf', 'lor-vp', 'samples', 'lora', 'full'])
@pytest.mark.parametrize('recipe', [SETR, LINEAR, SETR.replace('setr_vit-l', 'upernet_swin-b')])
def test_three_lines_are_a_leaf_of_every_method(tmp_path, recipe, method):
    """With the method's own optimizer and what the recipe trains beside it."""
    leaf, above = tmp_path / 'leaf.py', tmp_path / 'above.py'
    leaf.write_text(
        f"_base_ = ['{recipe}', '{method_files.find(method)}']\n"
        'model = dict(backbone=_base_.method)\n'
        'optim_wrapper = _base_.optim[_base_.optim_group]\n')
    above.write_text(
        "_base_ = './leaf.py'\noptim_wrapper = dict(optimizer=dict(lr=0.003, weight_decay=0.7))\n")
    made = config.load(recipe, method=method)
    assert config.load(str(leaf)).to_dict() == made.to_dict()
    cfg = config.load(str(above))
    made.optim_wrapper.optimizer.update(lr=0.003, weight_decay=0.7)  # 0.003: as the recipe, too
    assert cfg.to_dict() == made.to_dict()
    written = tmp_path / 'written.py'
    config.load(str(leaf)).dump(written)
    assert config.load(str(written)).to_dict() == config.load(str(leaf)).to_dict()


def test_an_optimizer_that_a_leaf_writes_is_its_own(tmp_path):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f"_base_ = ['{LINEAR}', '{method_files.find('rein')}']\n"
        "model = dict(backbone=dict(_base_.method, trainable=['bias$']))\n"
        "optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.003))\n")
    cfg = config.load(str(leaf))
    assert cfg.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.003))
    assert cfg.model.backbone.trainable == ['bias$']


def test_what_a_config_on_a_recipe_says_goes_over_both(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        f"_base_ = '{SETR}'\noptim_wrapper = dict(optimizer=dict(lr=0.5))\n"
        "dataset = dict(type='vpt_dense.SegFolder', data_root='d', classes=['a', 'b'])\n")
    cfg = config.load(str(path), ['optim_wrapper.optimizer.momentum=0.8'], 'deep')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum) == ('SGD', 0.5, 0.8)
    assert cfg.model.decode_head.num_classes == 2
    cfg = config.load(str(path), ['model.backbone.prompt.num_tokens=7'], 'deep')
    assert cfg.model.backbone.prompt.num_tokens == 7


def test_a_recipe_of_ones_own_has_its_optimizers(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        f"_base_ = '{SETR}'\noptim = dict(adapters=dict(optimizer=dict(lr=0.25)))\n"
        "also_trainable = [r'^pos_embed$']\n")
    cfg = config.load(str(path), method='lora')
    assert cfg.optim_wrapper.optimizer.lr == 0.25
    assert cfg.model.backbone.trainable == [r'^adapters\.', r'^pos_embed$']


def test_a_method_file_of_ones_own(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "method = dict(trainable=[r'^pos_embed$'])\noptim_group = 'blocks'\n"
        "method_hooks = [dict(type='EMAHook')]\n")
    cfg = config.load(VIT, method=str(path))
    assert cfg.model.backbone.trainable == [r'^pos_embed$']
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.custom_hooks[-1].type == 'EMAHook'


@pytest.mark.parametrize('key', ['custom_hooks', 'method_hooks'])
@pytest.mark.parametrize('value', ['3', '[3]'])
def test_hooks_are_a_list_of_settings(tmp_path, key, value):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{SETR.replace('_ade', '_deep_ade')}'\n{key} = {value}\n")
    with pytest.raises(UserError, match=rf'{key}: a list of dict\(type=\.\.\.\) was expected'):
        config.load(str(path))


def test_some_methods_have_other_sizes_in_classification():
    tokens = [config.load(path, method='shallow').model.backbone.prompt.num_tokens
              for path in (SETR, VIT)]
    assert tokens == [50, 10]


@pytest.mark.parametrize(('text', 'method', 'said'), [
    ("_base_ = '{setr}'", None, r'is a recipe: add --method NAME \(adapter, .*vit-split\)'),
    ("_base_ = '{setr}'", 'loar', "--method loar is not known; did you mean 'lora'"),
    ("_base_ = '{setr}'", 'gone.py', '--method gone.py: no such file'),
    ("_base_ = '{setr}'", '{folder}/config.py', 'config.py is no method file: it has no method'),
    ("_base_ = '{leaf}'", 'lora', 'is no recipe, it says what trains'),
    ("_base_ = '{setr}'\nmodel = dict(backbone=dict(trainable=['x']))", 'deep',
     r'sets model\.backbone\.trainable, which a method sets'),
    ("_base_ = '{upernet}'", 'full', r'has no optimizer for it; add optim = dict\(all=...\)'),
    ("_base_ = '{leaf}'\noptim = dict(prompts=dict())", None, "'optim' is a variable of a base"),
])
def test_what_is_refused(tmp_path, text, method, said):
    path = tmp_path / 'config.py'
    path.write_text(text.format(
        setr=SETR, leaf=SETR.replace('_ade', '_deep_ade'), upernet=SETR.replace('setr', 'upernet')))
    with pytest.raises(UserError, match=said):
        config.load(str(path), method=method and method.format(folder=tmp_path))


#: What every tool says of a recipe on its own.
TOOLS = {
    'train': ['{recipe}'], 'test': ['{recipe}', 'gone.pth'], 'print_config': ['{recipe}'],
    'count_params': ['{recipe}'], 'predict': ['{recipe}', '{weights}', '{recipe}', '--out', 'o'],
    'export': ['{recipe}', '{weights}', '--out', 'a.pt2'],
    'delta': ['extract', '{weights}', 'a.safetensors', '--config', '{recipe}'],
}


@pytest.mark.parametrize('tool', TOOLS)
def test_tools_ask_for_a_method(tool, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=dict(x=torch.zeros(1)), meta=dict(cfg='')), tmp_path / 'w.pth')
    arguments = [part.format(recipe=SETR, weights=tmp_path / 'w.pth') for part in TOOLS[tool]]
    done = run_tool(capfd, tool, *arguments)
    assert done.code == 2 and 'is a recipe: add --method NAME' in done.err.splitlines()[-1]
    done = run_tool(capfd, tool, *arguments, '--method', 'loar')
    assert done.code == 2 and "did you mean 'lora'" in done.err.splitlines()[-1]


def test_a_run_of_a_recipe(tmp_path, capfd, monkeypatch):
    """Trained and tested; its folder is called by both names."""
    monkeypatch.chdir(tmp_path)
    data = make_ade_folder(tmp_path / 'data', size=(48, 64))
    leaf = write_leaf(tmp_path, data, name='tiny_ade20k')
    text = leaf.read_text().replace('setr_vit-l_deep_ade20k.py', 'setr_vit-l_ade20k.py')
    assert 'prompt=dict(num_tokens=2)' in text and "work_dir = '" in text
    lines = [line for line in text.splitlines() if not line.startswith('work_dir')]
    leaf.write_text('\n'.join(lines).replace('prompt=dict(num_tokens=2)', ''))
    for arguments in (['train', leaf], ['test', leaf, 'work_dirs/tiny_ade20k_lora']):
        done = run_tool(capfd, *arguments, '--method', 'lora')
        assert done.code == 0, done.err
    folder = tmp_path / 'work_dirs/tiny_ade20k_lora'
    assert json.loads((folder / 'test.json').read_text())['metrics']


@pytest.mark.slow
def test_a_run_of_a_recipe_of_timm(tmp_path, capfd, monkeypatch):
    """DINOv3's linear protocol with a tiny model: three iterations, what is kept, the licence."""
    monkeypatch.chdir(tmp_path)
    data = tiny_folder(tmp_path / 'data', num_images=4)
    tiny = dict(embed_dim=32, depth=2, num_heads=2, patch_size=8)
    save_file(create('vit_small_patch16_dinov3', 32, options=tiny).state_dict(), 'w.safetensors')
    options = [
        *(f'model.backbone.{key}={value}' for key, value in tiny.items()),
        'model.backbone.img_size=(32,32)', 'model.backbone.out_indices=[1]',
        'model.backbone.init_cfg.checkpoint=w.safetensors', 'model.decode_head.in_channels=32',
        'model.data_preprocessor.size=(32,32)',
        'model.test_cfg.crop_size=(32,32)', 'model.test_cfg.stride=(21,21)',
        f'dataset.data_root={data}', 'train_dataloader.dataset.pipeline.2.scale=(64,32)',
        'train_dataloader.dataset.pipeline.3.crop_size=(32,32)',
        'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
        'train_cfg.max_iters=3', 'train_cfg.val_interval=3', 'default_hooks.checkpoint.interval=3',
        'default_hooks.logger.interval=1', 'work_dir=work']
    recipe = CONFIGS / 'vpt/linear_vit-s_dinov3_ade20k.py'
    done = run_tool(capfd, 'train', recipe, '--method', 'deep', '--cfg-options', *options)
    assert done.code == 0, done.err
    assert 'Iter(train) [3/3]' in done.out and 'mIoU' in done.out
    assert done.out.count('vit_small_patch16_dinov3.lvd1689m: dinov3-license (use and') == 1
    state = torch.load(tmp_path / 'work/iter_3.pth', weights_only=False)['state_dict']
    assert state['backbone.prompt.tokens'].shape[::2] == (2, 32)
    assert not any(name.startswith('backbone.blocks') for name in state)


def test_count_params_takes_several_methods(capfd):
    done = run_tool(capfd, 'count_params', SETR, '--method', 'head', 'deep', '--json')
    found = json.loads(done.out)
    assert [name.rpartition(' ')[2] for name in found] == ['head', 'deep']
    assert len({report['trainable'] for report in found.values()}) == 2


def test_data_tools_need_no_method(capfd, tmp_path):
    done = run_tool(capfd, 'check_dataset', SETR, '--cfg-options', f'dataset.data_root={tmp_path}')
    assert 'recipe' not in done.err and str(tmp_path) in done.err + done.out


def test_every_method_of_the_table_has_a_name():
    named = {name for row in ROWS.values() for name in row.files}
    assert set(method_files.names()) == {name for name in named if not name.endswith('_cls')}
    assert (ROOT / 'configs/_base_/methods') == method_files.FOLDER

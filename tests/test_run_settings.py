"""img_size, epochs, iters, lr and others are said once: what follows, what contradicts."""

import json

import pytest
from mmengine import Config
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import CONFIGS

from vpt_dense import config, tree
from vpt_dense.errors import UserError


def read(cfg, place):
    return tree.get(cfg, place)


def pipeline(split, index, key):
    return f'{split}_dataloader.dataset.pipeline.{index}.{key}'


def sizes(crop, scale, preprocessor=None, test_cfg=None, backbone=None, stride=None):
    """The places of a segmentation recipe that follow img_size=crop."""
    windows = {} if stride is None else {
        'model.test_cfg.crop_size': crop, 'model.test_cfg.stride': stride}  # fmt: skip
    return {
        pipeline('train', 2, 'scale'): scale, pipeline('train', 3, 'crop_size'): crop,
        pipeline('val', 1, 'scale'): scale, pipeline('test', 1, 'scale'): scale,
        'test_pipeline.1.scale': scale, 'model.backbone.img_size': crop,
        'tta_pipeline.1.transforms.0.0.scale': (scale[0] // 2, scale[1] // 2),
        'tta_pipeline.1.transforms.0.2.scale': scale,
        'model.data_preprocessor.size': crop, 'model.data_preprocessor.test_cfg': preprocessor,
        'model.test_cfg.mode': 'slide' if windows else 'whole', **windows,
    }  # fmt: skip


def edges(crop, edge, backbone=None):
    """The same of a classification recipe; crops at random are (height, width), others turned."""
    turned = crop if isinstance(crop, int) else crop[::-1]
    return {
        pipeline('train', 1, 'scale'): edge, pipeline('train', 2, 'crop_size'): crop,
        **{pipeline(split, 1, 'scale'): edge for split in ('val', 'test')},
        **{pipeline(split, 2, 'crop_size'): turned for split in ('val', 'test')},
        'model.backbone.img_size': crop, 'model.data_preprocessor.size': None,
    }  # fmt: skip


#: Recipe, options, what the finished config has. Numbers by hand: 512 x 2048 becomes 256 x 1024;
#: a wide image's long side follows the crop's; 341 of 512 stays two thirds.
SIZES = {
    'setr': ('vpt/setr_vit-l_deep_ade20k', 'img_size=256',
             sizes((256, 256), (1024, 256), dict(size_divisor=16), stride=(171, 171))),
    'setr wide': ('vpt/setr_vit-l_deep_segfolder', 'img_size=(256,384)',
                  sizes((256, 384), (1536, 256), dict(size_divisor=16), stride=(171, 256))),
    'setr as it is': ('vpt/setr_vit-l_deep_ade20k', 'img_size=512',
                      sizes((512, 512), (2048, 512), stride=(341, 341))),
    'linear': ('vpt/linear_vit-l_dinov2_head_ade20k', 'img_size=252,336',
               sizes((252, 336), (1344, 252), dict(size_divisor=14), stride=(168, 224))),
    'segmenter': ('vpt/segmenter_vit-b_deep_ade20k', 'img_size=[384,256]',
                  sizes((384, 256), (1536, 256), dict(size_divisor=16), stride=(360, 240))),
    'upernet swin': ('vpt/upernet_swin-b_deep_ade20k', 'img_size=256',
                     sizes((256, 256), (1024, 256))),
    'upernet convnext': ('vpt/upernet_convnext-b_bias_ade20k', 'img_size=256',
                         sizes((256, 256), (1024, 256), stride=(171, 171))),
    'vit': ('vpt/vit-b_deep_imagefolder', 'img_size=448', edges(448, 512)),
    'vit named': ('vpt/vit-b_dinov2_deep_imagefolder', 'img_size=252,336', edges((252, 336), 384)),
    'vit resized': ('vpt/vit-b_deep_cifar100', 'img_size=(96,128)', {
        pipeline('train', 0, 'scale'): (128, 96), pipeline('test', 0, 'scale'): (128, 96),
        'model.backbone.img_size': (96, 128)}),
    'swin': ('vpt/swin-b_deep_imagefolder', 'img_size=448', edges(448, 512)),
    'convnext': ('vpt/convnext-b_pad_imagefolder', 'img_size=112', edges(112, 128)),
    'resnet': ('vpt/resnet-50_pad_imagefolder', 'img_size=112', edges(112, 128)),
    'demo': ('demo/setr_deep_digits', 'img_size=48', {
        pipeline('train', 2, 'scale'): (48, 48), pipeline('train', 3, 'crop_size'): (48, 48),
        'model.backbone.img_size': (48, 48), 'model.data_preprocessor.size': (48, 48)}),
}  # fmt: skip


@pytest.mark.parametrize('recipe', SIZES)
def test_the_image_size_moves_all_that_follows(recipe):
    path, option, expected = SIZES[recipe]
    cfg = config.load(str(CONFIGS / f'{path}.py'), [option])
    assert {place: read_or_none(cfg, place) for place in expected} == expected
    assert 'img_size' not in cfg


def read_or_none(cfg, place):
    try:
        return read(cfg, place)
    except (KeyError, AttributeError, IndexError, TypeError):
        return None


def schedule(cfg):
    """(type, begin, end, T_max, whether it counts epochs, in parts of them) of each schedule."""
    return [(part['type'], part.get('begin'), part.get('end'), part.get('T_max'),
             part.get('by_epoch', True), part.get('convert_to_iter_based', False))
            for part in cfg.param_scheduler]  # fmt: skip


def line(begin, end, *more):
    return ('LinearLR', begin, end, None, *(more or (False, False)))


def poly(begin, end, *more):
    return ('PolyLR', begin, end, None, *(more or (False, False)))


SETR, LINEAR, CLS = (f'vpt/{name}' for name in (
    'setr_vit-l_deep_ade20k', 'linear_vit-l_dinov2_head_ade20k', 'vit-b_deep_imagefolder'))
BY_EPOCH, IN_PARTS = (True, False), (True, True)
#: Recipe, options, loop (type, length, validation), saving and logging (interval, by epoch; both),
#: schedules.
LENGTHS = {
    'iterations': (SETR, ['iters=2000'], ('Iter', 2000, 200), (200, False, 50), [poly(0, 2000)]),
    'few': (LINEAR, ['iters=20'], ('Iter', 20, 2), (2, False, 1), [line(0, 1), poly(1, 20)]),
    'a warm-up': (SETR, ['iters=2000', 'warmup=100'], ('Iter', 2000, 200), (200, False, 50),
                  [line(0, 100), poly(100, 2000)]),
    'a warm-up alone': (LINEAR, ['warmup=3000'], ('Iter', 40000, 4000), (4000, False, 50),
                        [line(0, 3000), poly(3000, 40000)]),
    'no warm-up': (LINEAR, ['warmup=0'], ('Iter', 40000, 4000), (4000, False, 50),
                   [poly(0, 40000)]),
    'epochs of iterations': (LINEAR, ['epochs=20'], ('Epoch', 20, 2), (2, True, 50),
                             [line(0, 0.75, *IN_PARTS), poly(0.75, 20, *IN_PARTS)]),
    'a warm-up of epochs of iterations': (
        SETR, ['epochs=10', 'warmup=2'], ('Epoch', 10, 1), (1, True, 50),
        [line(0, 2, *IN_PARTS), poly(2, 10, *IN_PARTS)]),
    'epochs': (CLS, ['epochs=20'], ('Epoch', 20, 1), (1, None, 50),
               [line(0, 2, *BY_EPOCH), ('CosineAnnealingLR', 2, 20, 18, *BY_EPOCH)]),
    'an epoch': (CLS, ['epochs=1'], ('Epoch', 1, 1), (1, None, 50),
                 [('CosineAnnealingLR', 0, 1, 1, *BY_EPOCH)]),
    'epochs, a warm-up': (CLS, ['epochs=30', 'warmup=5'], ('Epoch', 30, 1), (1, None, 50),
                          [line(0, 5, *BY_EPOCH), ('CosineAnnealingLR', 5, 30, 25, *BY_EPOCH)]),
    'iterations of epochs': (CLS, ['iters=500'], ('Iter', 500, 50), (50, False, 25),
                             [line(0, 50), ('CosineAnnealingLR', 50, 500, 450, False, False)]),
}  # fmt: skip


@pytest.mark.parametrize('case', LENGTHS)
def test_the_length_moves_loop_schedule_and_intervals(case):
    path, options, loop, (saves, by_epoch, logs), schedules = LENGTHS[case]
    cfg = config.load(str(CONFIGS / f'{path}.py'), options)
    kind, length, val = loop
    key = 'max_iters' if kind == 'Iter' else 'max_epochs'
    assert cfg.train_cfg == {'type': f'{kind}BasedTrainLoop', key: length, 'val_interval': val}
    assert schedule(cfg) == schedules
    hooks = cfg.default_hooks
    assert (hooks.checkpoint.interval, hooks.checkpoint.get('by_epoch')) == (saves, by_epoch)
    assert hooks.logger.interval == logs
    assert hooks.logger.get('log_metric_by_epoch', True) == (kind == 'Epoch')
    assert cfg.log_processor.by_epoch == (kind == 'Epoch')
    endless = cfg.train_dataloader.sampler.type == 'InfiniteSampler'
    assert not (endless and kind == 'Epoch')
    assert not {'epochs', 'iters', 'warmup'} & set(cfg)


@pytest.mark.parametrize(
    ('path', 'batches'),
    [(SETR, [8, 1, 1]), (CLS, [8, 8, 8]), ('demo/setr_deep_digits', [8, 25, 25]),
     ('vpt/vit-b_deep-ensemble-5_imagefolder', [40, 8, 8])],
)  # fmt: skip
def test_the_batch_moves_the_loaders_that_had_it(path, batches):
    cfg = config.load(str(CONFIGS / f'{path}.py'), ['batch_size=8'])
    assert [cfg[name].batch_size for name in config.DATALOADERS] == batches


# --- who says it -----------------------------------------------------------------------------


def leaf(folder, text, base=SETR, name='leaf.py'):
    path = folder / name
    if path.suffix == '.json':
        path.write_text(json.dumps({'_base_': f'{CONFIGS / base}.py', **text}))
    else:
        path.write_text(f"_base_ = '{CONFIGS / base}.py'\n{text}\n")
    return str(path)


HEAD = 'optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult'
LR, DECAY = 'optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay'
ETA = 'param_scheduler.0.eta_min'
#: Recipe, method, options, what the finished config has. SETR's own: 1e-3, ten times that for the
#: heads, down to 1e-4.
RATES = [
    ('setr_vit-l_ade20k', 'deep', ['lr=0.01'], {LR: 0.01, HEAD: 10.0, ETA: 1e-3}),
    ('setr_vit-l_ade20k', 'deep', ['head_lr=0.05'], {LR: 1e-3, HEAD: 50.0, ETA: 1e-4}),
    ('setr_vit-l_ade20k', 'deep', ['lr=0.1', 'head_lr=0.05', 'weight_decay=0.2'],
     {LR: 0.1, HEAD: 0.5, ETA: 0.01, DECAY: 0.2}),
    ('setr_vit-l_ade20k', 'deep',
     ['lr=0.1', "param_scheduler=[{type: PolyLR, eta_min: 1e-5, end: 160000, by_epoch: False}]"],
     {LR: 0.1, ETA: 1e-5}),
    ('linear_vit-s_dinov2_segfolder', 'lora', ['head_lr=0.03'], {LR: 0.003, HEAD: 10.0}),
    ('vit-b_imagefolder', 'deep', ['lr=5', 'head_lr=1'], {LR: 5, HEAD: 0.2}),
    ('upernet_vit-b_ade20k', 'deep', ['head_lr=0.02'], {
        HEAD: 20.0, 'optim_wrapper.paramwise_cfg.custom_keys.neck.lr_mult': 20.0}),
]  # fmt: skip


@pytest.mark.parametrize(('recipe', 'method', 'said', 'expected'), RATES)
def test_the_rates_go_into_the_optimizer(tmp_path, recipe, method, said, expected):
    path = f'{CONFIGS / "vpt" / recipe}.py'
    cfg = config.load(path, said, method)
    file = tmp_path / 'leaf.py'
    plain = [option for option in said if not option.startswith('param_scheduler')]
    file.write_text('\n'.join([f'_base_ = {path!r}', *plain]))
    written = config.load(str(file), [o for o in said if o not in plain], method)
    for place, value in expected.items():
        assert read(cfg, place) == pytest.approx(value)
        assert read(written, place) == pytest.approx(value)
    assert 'optim_wrapper' not in config.load(str(file), trains=False)  # to look at its data
    finished = tmp_path / 'finished.py'
    cfg.dump(str(finished))
    assert read(config.load(str(finished)), LR) == expected.get(LR, read(cfg, LR))


def test_each_way_of_saying_it_is_the_same(tmp_path):
    options = ['img_size=(256,320)', 'iters=200', 'warmup=20', 'batch_size=4']
    wanted = config.load(f'{CONFIGS / SETR}.py', options)
    said = dict(img_size=(256, 320), iters=200, warmup=20, batch_size=4)
    text = '\n'.join(f'{key} = {value!r}' for key, value in said.items())
    files = [leaf(tmp_path, text), leaf(tmp_path, said, name='leaf.json')]
    (tmp_path / 'small.py').write_text(text)  # a fragment beside the recipe
    files.append(str(tmp_path / 'joined.py'))
    (tmp_path / 'joined.py').write_text(f"_base_ = ['{CONFIGS / SETR}.py', 'small.py']\n")
    for file in files:
        assert config.load(file)._cfg_dict == wanted._cfg_dict
    script = Config.fromfile(f'{CONFIGS / SETR}.py')
    script.update(said)
    for cfg in (script, Config.fromfile(files[0])):
        cfg.of_the_script = 1
        config.resolve(cfg)  # as Runner.from_cfg does
        config.drop_variables(cfg)
        assert cfg.pop('of_the_script') == 1
        for key in ('model', 'train_cfg', 'train_dataloader', 'val_dataloader', 'param_scheduler',
                    'default_hooks', 'test_pipeline', 'tta_pipeline', 'test_dataloader'):
            assert cfg[key] == wanted[key], key
        (tmp_path / 'written.py').write_text(cfg.pretty_text)
        assert config.load(str(tmp_path / 'written.py'))._cfg_dict == wanted._cfg_dict


def test_a_finished_config_stays_and_takes_another_size(tmp_path):
    first = config.load(f'{CONFIGS / LINEAR}.py', ['img_size=(252,336)', 'epochs=20'])
    path = tmp_path / 'dumped.py'
    path.write_text(first.pretty_text)
    again = config.load(str(path))
    assert again.pretty_text == first.pretty_text
    path.with_name('again.py').write_text(again.pretty_text)
    assert config.load(str(path.with_name('again.py'))).pretty_text == first.pretty_text
    other = config.load(str(path), ['img_size=518', 'iters=40000'])
    expected = sizes((518, 518), (2072, 518), dict(size_divisor=14), stride=(345, 345))
    del expected['tta_pipeline.1.transforms.0.0.scale']  # 126 is 259 * 252 / 518 rounded down
    assert {place: read_or_none(other, place) for place in expected} == expected
    assert schedule(other) == [line(0, 1500), poly(1500, 40000)]


@pytest.mark.parametrize('base, said, twice', [
    (SETR, 'iters = 20', 'train_cfg = dict(max_iters=20)'),
    (SETR, 'epochs = 20',
     "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=20, val_interval=2)"),
    (CLS, 'epochs = 20', 'train_cfg = dict(max_epochs=20)'),
])
def test_a_length_said_twice_moves_the_schedule_too(tmp_path, base, said, twice):
    once = leaf(tmp_path, said, base, 'a.py')
    both = leaf(tmp_path, f'{said}\n{twice}', base, 'b.py')
    expected, found = config.load(once), config.load(both)
    for key in ('param_scheduler', 'train_cfg', 'default_hooks'):
        assert found[key] == expected[key]


def test_what_is_said_above_wins(tmp_path):
    first = leaf(tmp_path, 'img_size = 256\nepochs = 20\nwarmup = 2', name='first.py')
    top = tmp_path / 'top.py'
    top.write_text(f"_base_ = '{first}'\niters = 100\n"
                   'model = dict(test_cfg=dict(stride=(128, 128)))\n')  # fmt: skip
    cfg = config.load(str(top))
    assert cfg.train_cfg.max_iters == 100 and schedule(cfg) == [line(0, 10), poly(10, 100)]
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(256, 256), stride=(128, 128))
    cfg = config.load(str(top), ['img_size=320', 'epochs=4', 'model.test_cfg.crop_size=(640,640)'])
    assert cfg.train_cfg.max_epochs == 4 and cfg.model.backbone.img_size == (320, 320)
    assert cfg.model.test_cfg.crop_size == (640, 640)


def test_what_is_said_beside_a_length_is_of_that_length(tmp_path):
    """Of 200 iterations with a validation after 100, 60 of another file have one after 30."""
    said = ('iters = 200\nwarmup = 20\ntrain_cfg = dict(val_interval=100)\n'
            'default_hooks = dict(checkpoint=dict(interval=50))')
    first = leaf(tmp_path, said, name='first.py')
    own = config.load(first)
    assert own.train_cfg.val_interval == 100 and own.default_hooks.checkpoint.interval == 50
    top, upmost = tmp_path / 'top.py', tmp_path / 'upmost.py'
    top.write_text(f"_base_ = '{first}'\niters = 60\n")
    upmost.write_text(f"_base_ = '{top}'\niters = 120\ntrain_cfg = dict(val_interval=7)\n")
    for cfg in config.load(first, ['iters=60']), config.load(str(top)):
        assert cfg.train_cfg.max_iters == 60 and schedule(cfg) == [line(0, 6), poly(6, 60)]
        assert cfg.train_cfg.val_interval == 30 and cfg.default_hooks.checkpoint.interval == 15
    cfg = config.load(str(upmost))
    assert cfg.train_cfg.val_interval == 7 and cfg.default_hooks.checkpoint.interval == 30
    assert cfg.train_cfg.max_iters == 120 and schedule(cfg) == [line(0, 12), poly(12, 120)]
    cfg = config.load(str(upmost), ['iters=240', 'train_cfg.val_interval=9'])
    assert cfg.train_cfg.val_interval == 9 and cfg.default_hooks.checkpoint.interval == 60
    cfg = config.load(first, ['epochs=4'])  # half of the training, a quarter of it
    assert cfg.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=2)
    assert cfg.default_hooks.checkpoint.interval == 1


def test_what_is_said_beside_a_size_is_of_that_size(tmp_path):
    """Windows and pipelines of a file are of its size, those of its base of the base's."""
    crop = "dict(type='RandomCrop', crop_size=(256, 256))"
    said = ('img_size = 256\nmodel = dict(test_cfg=dict(stride=(192, 192)))\n'
            + OWN.format(crop=crop))
    first = leaf(tmp_path, said, name='first.py')
    top = tmp_path / 'top.py'
    top.write_text(f"_base_ = '{first}'\nimg_size = 128\n")
    once, plain = config.load(first), config.load(leaf(tmp_path, 'img_size = 128', name='b.py'))
    assert once.model.test_cfg == dict(mode='slide', crop_size=(256, 256), stride=(192, 192))
    for cfg in config.load(first, ['img_size=128']), config.load(str(top)):
        assert cfg.model.test_cfg == dict(mode='slide', crop_size=(128, 128), stride=(96, 96))
        assert read(cfg, pipeline('train', 2, 'scale')) == (450, 150)
        assert read(cfg, pipeline('train', 3, 'crop_size')) == (128, 128)
        assert cfg.tta_pipeline == plain.tta_pipeline and cfg.test_pipeline == plain.test_pipeline


def test_a_schedule_beside_a_length_is_of_that_length(tmp_path):
    own = "param_scheduler = [dict(type='PolyLR', begin=0, end=200, by_epoch=False)]"
    first = leaf(tmp_path, f'iters = 200\n{own}', name='first.py')
    assert schedule(config.load(first)) == [poly(0, 200)]
    assert schedule(config.load(first, ['iters=60'])) == [poly(0, 60)]


OWN = """
_train = [
    dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(900, 300), ratio_range=(0.5, 2.0), keep_ratio=True),
    {crop}, dict(type='PackSegInputs')]
train_dataloader = dict(dataset=dict(pipeline=_train))
"""


def test_transforms_of_ones_own_stay_those_of_the_base_move(tmp_path):
    own = OWN.format(crop="dict(type='RandomCrop', crop_size=(256, 256))")
    cfg = config.load(leaf(tmp_path, f'img_size = 256\n{own}'))
    assert read(cfg, pipeline('train', 2, 'scale')) == (900, 300)
    assert read(cfg, pipeline('val', 1, 'scale')) == (1024, 256)
    parts = OWN.format(crop='_base_.train_pipeline[3]')
    cfg = config.load(leaf(tmp_path, f'img_size = 256\n{parts}'))
    assert read(cfg, pipeline('train', 2, 'scale')) == (900, 300)
    assert read(cfg, pipeline('train', 3, 'crop_size')) == (256, 256)


def test_a_copy_of_the_bases_transform_is_said_too(tmp_path):
    copied = [dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadMask'), dict(
        type='RandomResize', scale=[2048, 512], ratio_range=[0.5, 2.0], keep_ratio=True),
        dict(type='RandomCrop', crop_size=[256, 256]), dict(type='PackSegInputs')]  # fmt: skip
    said = dict(img_size=256, train_dataloader=dict(dataset=dict(pipeline=copied)))
    cfg = config.load(leaf(tmp_path, said, name='leaf.json'))
    assert read(cfg, pipeline('train', 2, 'scale')) == (2048, 512)
    assert read(cfg, pipeline('val', 1, 'scale')) == (1024, 256)


SAID = 'said beside it'
CASES = [
    # the command line
    (SETR, ['img_size=250'], r'img_size \(250, 250\) is not a multiple of .*patch_size 16.*240 or'),
    (LINEAR, ['img_size=252,330'], r'patch_size 14: .*; use 322 or 336 in place of 330'),
    ('vpt/swin-b_deep_imagefolder', ['img_size=96'], 'last map of the Swin would be 3 .* 193'),
    (SETR, ['img_size=256.5'], r'img_size \(pixels, .* found 256\.5'),
    (SETR, ['img_size=(256,256,3)'], 'img_size .* found'),
    (SETR, ['epochs=0'], 'epochs must be an integer of at least 1, found 0'),
    (SETR, ['warmup=-1'], 'warmup must be an integer'),
    (SETR, ['batch_size=two'], "batch_size must be an integer of at least 1, found 'two'"),
    (SETR, ['epochs=2', 'iters=20'], 'epochs=2 and iters=20 are both said'),
    (SETR, ['iters=20', 'warmup=20'], 'warmup is 20, but the training has 20 iters'),
    (SETR, ['iters=20', 'train_cfg.max_iters=30'], rf'train_cfg\.max_iters is 30, {SAID}'),
    (SETR, ['epochs=2', 'train_cfg.max_iters=160000'], rf'max_iters is 160000, {SAID}'),
    (SETR, ['img_size=256', 'model.backbone.img_size=512'], rf'backbone\.img_size is 512, {SAID}'),
    (SETR, ['img_size=256', 'model.data_preprocessor={size: [512,512]}'],
     rf'data_preprocessor\.size is \[512, 512\], {SAID}'),
    (SETR, ['img_size=256', f'{pipeline("train", 3, "crop_size")}=(512,512)'],
     rf'pipeline\.3\.crop_size is \(512, 512\), {SAID}'),
    (CLS, ['batch_size=8', 'train_dataloader.batch_size=64'], rf'batch_size is 64, {SAID}'),
    (CLS, ['warmup=3', 'param_scheduler.0.by_epoch=True'], rf'param_scheduler is {SAID}'),
    (SETR, ['max_iters=20'], "no top-level key 'max_iters'; iters sets all"),
    (SETR, ['crop_size=20'], "'crop_size' is a variable .*; img_size sets all"),
    ('pretrain/vit-demo_formula', ['img_size=48'], 'no transform of train_dataloader crops'),
    # a config: its own words contradict, the same words below it do not
    (SETR, 'img_size = 256\n' + OWN.format(crop="dict(type='RandomCrop', crop_size=(512, 512))"),
     rf'pipeline\.3\.crop_size is \(512, 512\), {SAID}'),
    (SETR, 'img_size = 256\nmodel = dict(backbone=dict(img_size=(512, 512)))',
     rf'model\.backbone\.img_size is \(512, 512\), {SAID}'),
    (SETR, 'img_size = 256\ncrop_size = (512, 512)', "'crop_size' is a variable of a base .*img_"),
    (SETR, 'epochs = 20\niters = 3', 'epochs=20 and iters=3 are both said'),
    (SETR, 'epochs = 20\ntrain_cfg = dict(max_iters=160000)', rf'max_iters is 160000, {SAID}'),
    (SETR, "iters = 10\nparam_scheduler = [dict(type='PolyLR', end=160000, by_epoch=False)]",
     rf'param_scheduler\.0\.end is 160000, {SAID}'),
    (SETR, 'img_size = 256\n' + OWN.format(
        crop="dict(type='RandomCrop', crop_size=(256, 256)), dict(type='Albu', size=300)"), None),
    (SETR, 'lr = 0.1\noptim_wrapper = dict(optimizer=dict(lr=0.01))',
     rf'optimizer\.lr is 0\.01, {SAID}'),
    (SETR, 'head_lr = 0.1\noptim_wrapper = dict(paramwise_cfg=dict(custom_keys='
     'dict(head=dict(lr_mult=3.0))))', rf'head\.lr_mult is 3\.0, {SAID}'),
    (SETR, "lr = 'fast'", "lr must be a number above 0, found 'fast'"),
    (SETR, 'weight_decay = -0.1', 'weight_decay must not be negative'),
    (SETR, 'learning_rate = 0.1', "'learning_rate'; lr sets all that follows"),
    (CLS, 'batch_size = 8\ntrain_dataloader = dict(batch_size=64)', rf'batch_size is 64, {SAID}'),
]  # fmt: skip


@pytest.mark.parametrize(('base', 'said', 'message'), CASES)
def test_contradictions_are_refused_by_key(tmp_path, base, said, message):
    def load():
        if isinstance(said, list):
            return config.load(f'{CONFIGS / base}.py', said)
        return config.load(leaf(tmp_path, said, base))

    if message is None:
        load()
        return
    with pytest.raises(UserError, match=message) as caught:
        load()
    assert '\n' not in str(caught.value)


def test_a_run_over_epochs_of_a_recipe_over_iterations(capfd, tmp_path):
    path = write_leaf(tmp_path, tiny_folder(tmp_path / 'data', num_images=3))
    outcome = run_tool(capfd, 'train', path, '--cfg-options', 'img_size=40', 'epochs=2',
                       'warmup=1', 'batch_size=1')  # fmt: skip
    assert outcome.code == 0, outcome.err
    records = json.loads((tmp_path / 'work/evaluations.json').read_text())
    assert [record['iter'] for record in records] == [6]
    cfg = Config.fromfile(tmp_path / 'work/leaf.py')
    assert cfg.model.backbone.img_size == (40, 40) and cfg.train_cfg.max_epochs == 2
    outcome = run_tool(capfd, 'train', tmp_path / 'work/leaf.py', '--cfg-options', 'epochs=3',
                       '--work-dir', tmp_path / 'work', '--resume')  # fmt: skip
    assert outcome.code == 0, outcome.err

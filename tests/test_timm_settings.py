"""What a config and its files take over from timm: statistics, licence, sizes of images."""

from contextlib import nullcontext

import huggingface_hub
import pytest
import timm
import torch
from mmengine.config import Config
from safetensors.torch import save_file
from test_deltas import SIZES, train
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import randomise

from vpt_dense import config, preflight, pretraining
from vpt_dense.checkpoints import deltas, hub
from vpt_dense.errors import UserError

DINOV3 = 'vit_small_patch16_dinov3'
BACKBONE = {'type': 'vpt_dense.TimmVisionTransformer', pretraining.NAME_KEY: DINOV3}
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SEG = dict(type='EncoderDecoder', decode_head=dict(type='FCNHead'))
CLS = dict(type='ImageClassifier', head=dict(type='LinearClsHead'))


def resolved(task: dict, preprocessor, backbone=BACKBONE, **more) -> Config:
    cfg = Config(dict(model=dict(task, backbone=backbone), **more))
    if preprocessor is not None:
        cfg.model.data_preprocessor = preprocessor
    config.resolve(cfg)
    return cfg


@pytest.mark.parametrize('said', [{}, dict(mean=None, std=None), dict(mean=None)])
@pytest.mark.parametrize('task, kind, order', [
    (SEG, 'SegDataPreProcessor', 'bgr_to_rgb'), (SEG, 'mmseg.SegDataPreProcessor', 'bgr_to_rgb'),
    (CLS, 'ClsDataPreprocessor', 'to_rgb')])  # fmt: skip
def test_statistics_that_are_left_out(task, kind, order, said):
    found = resolved(task, dict(type=kind, size=(64, 64), **said)).model.data_preprocessor
    assert found.to_dict() == {
        'type': kind, 'size': (64, 64), 'mean': MEAN, 'std': STD, order: True}


def test_statistics_of_the_weights_that_are_loaded():
    init_cfg = dict(type='Pretrained', checkpoint='timm://vit_large_patch16_dinov3.sat493m')
    found = resolved(SEG, dict(type='SegDataPreProcessor'), {**BACKBONE, 'init_cfg': init_cfg})
    expected = timm.models.get_pretrained_cfg('vit_large_patch16_dinov3.sat493m')
    assert found.model.data_preprocessor.mean == [round(255 * x, 6) for x in expected.mean]


def test_where_a_classifier_says_nothing():
    assert resolved(CLS, None).model.data_preprocessor.to_dict() == dict(
        type='ClsDataPreprocessor', mean=MEAN, std=STD, to_rgb=True)
    cfg = resolved(CLS, None, data_preprocessor=dict(to_rgb=False))  # the runner hands it on
    assert 'data_preprocessor' not in cfg.model
    assert cfg.data_preprocessor.mean == MEAN and cfg.data_preprocessor.to_rgb is False


def test_what_is_said_stays():
    said = dict(type='SegDataPreProcessor', mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=False)
    assert resolved(SEG, dict(said)).model.data_preprocessor.to_dict() == said
    bare = dict(type='SegDataPreProcessor')
    other = resolved(SEG, dict(bare), dict(type='vpt_dense.VisionTransformer'))
    assert other.model.data_preprocessor.to_dict() == bare
    bands = resolved(SEG, dict(bare), {**BACKBONE, 'in_channels': 13})
    assert bands.model.data_preprocessor.to_dict() == bare
    steps = [dict(type='vpt_dense.LoadBands', mean=MEAN, std=STD)]
    loader = dict(dataset=dict(type='vpt_dense.SegFolder', pipeline=steps))
    normalised = resolved(SEG, dict(bare), train_dataloader=loader)
    assert normalised.model.data_preprocessor.to_dict() == bare


def test_prompts_of_pixels_follow():
    prompt = dict(type='vpt_dense.PixelPrompt', mean=None, std=None)
    found = resolved(SEG, dict(type='SegDataPreProcessor'), {**BACKBONE, 'prompt': prompt})
    assert found.model.backbone.prompt.mean == MEAN


def notes(backbone=BACKBONE, **preprocessor) -> list[str]:
    return pretraining.notes(dict(backbone={**backbone, 'pretrained': True}), preprocessor)


def test_notes():
    sized = {**BACKBONE, 'img_size': 256}
    (licence,) = notes(sized, mean=MEAN, std=STD)
    assert licence == pretraining.licence_note(pretraining.of(DINOV3))
    assert notes(sized) == notes(sized, mean=None, std=None) == [licence]
    _, mean, std = notes(sized, mean=[127.5] * 3, std=[127.5] * 3)
    assert mean == ('model.data_preprocessor.mean is [127.5, 127.5, 127.5], in the pretraining of '
                    f'{DINOV3}.lvd1689m it was {MEAN}; None takes that')
    assert 'std is' in std and str(STD) in std
    _, size = notes({**BACKBONE, 'img_size': (512, 640)})
    assert '512x640' in size and '256x256' in size
    _, size = notes(size=(512, 512))
    assert 'images of 512x512 pixels' in size
    assert notes(dict(type='vpt_dense.VisionTransformer')) == []
    assert notes({**BACKBONE, pretraining.NAME_KEY: 'no_such_model'}) == []
    assert pretraining.notes(dict(backbone=BACKBONE), {}) == []  # random weights


@pytest.mark.parametrize('name, side, refused', [
    (DINOV3, 518, True), (DINOV3, 512, False), ('vit_base_patch14_dinov2', 518, False),
    ('vit_base_patch14_dinov2.lvd142m', 512, True)])  # fmt: skip
def test_sizes_of_images_and_patches(name, side, refused):
    backbone = {**BACKBONE, pretraining.NAME_KEY: name, 'img_size': side}
    with pytest.raises(UserError, match='not a multiple') if refused else nullcontext():
        preflight.check_model(dict(SEG, backbone=backbone))


# --- a run, its delta, its card ----------------------------------------------------------------

MAE = 'vit_base_patch16_224.mae'
NOTE = f'licence of the pretrained weights {MAE}: cc-by-nc-4.0 (no commercial use)'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run on weights that timm names, its log and the hub's cache; a tiny model, no network."""
    folder = tmp_path_factory.mktemp('licence')
    snapshot = folder / 'hub' / f'models--timm--{MAE}' / 'snapshots' / '0'
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / 'refs').mkdir()
    (snapshot.parent.parent / 'refs' / 'main').write_text('0')
    state = randomise(timm.models.VisionTransformer(img_size=48, **SIZES)).state_dict()
    save_file(state, snapshot / 'model.safetensors')
    data = tiny_folder(tmp_path_factory.mktemp('data'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(folder / 'hub'))
        patch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
        init = f"dict(type='Pretrained', checkpoint='timm://{MAE}')"
        train(write_leaf(folder, data, f"\nmodel['backbone']['init_cfg'] = {init}\n"))
        yield folder


def test_the_note_is_said_once_when_training_starts(run):
    (log,) = (run / 'work').glob('*/*.log')
    assert log.read_text().count(NOTE) == 1


def test_the_note_goes_with_a_delta(run, tmp_path, capfd):
    out = tmp_path / 'tuned.safetensors'
    deltas.write(deltas.extract(str(run / 'work/iter_2.pth')), str(out))
    assert deltas.read(str(out))['meta']['licence'] == NOTE
    done = run_tool(capfd, 'delta', 'info', out)
    assert done.code == 0 and NOTE in done.out
    card = hub.card(deltas.read(str(out)), 'me/vit')
    assert f'| licence of the base | {NOTE} |' in card
    # The pretrained weights elsewhere, or a delta of a delta: the note stays.
    again = deltas.extract(str(out))
    assert again['meta']['licence'] == NOTE


def test_the_note_is_in_an_exported_file(run, tmp_path):
    from vpt_dense.deploy import exporting

    predictor = exporting.load(str(run / 'work/iter_2.pth'))
    module = exporting.Exportable(predictor, False, False)
    assert exporting.describe(predictor, module, (32, 32), 3)['licence'] == NOTE
    assert torch.is_tensor(module.prepare.mean)

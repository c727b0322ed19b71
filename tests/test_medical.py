"""Slices of NIfTI volumes and DICOM files; `make test-medical` has what they need."""

import re
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from PIL import Image
from scipy import ndimage
from test_datasets import EXAMPLES, run, tiny
from tool_helpers import run_tool
from utils import in_scope

from vpt_dense import config
from vpt_dense.datasets import checks, medical, raster
from vpt_dense.errors import UserError

nibabel = pytest.importorskip('nibabel')
pydicom = pytest.importorskip('pydicom')
RNG = np.random.default_rng(0)
#: (right, front, head), in which index grows to the right, to the front and to the head.
VOLUME = RNG.integers(-1000, 1000, (9, 8, 7)).astype(np.int16)


def save(path, array, axes='RAS'):
    """Write an array that is in RAS order with another order of axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 3, 1]))
    start = nibabel.io_orientation(image.affine)
    end = nibabel.orientations.axcodes2ornt(axes)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(start, end))
    nibabel.save(image, path)


@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'ASL', 'PIR', 'SRA', 'IPL'])
@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz'])
def test_slices_are_axial_whatever_the_order_of_axes(axes, suffix, tmp_path):
    save(tmp_path / f'scan{suffix}', VOLUME, axes)
    paths = medical.slices(str(tmp_path / f'scan{suffix}'))
    assert paths[0] == f'{tmp_path}/scan#0{suffix}' and len(paths) == 7
    for index, path in enumerate(paths):
        image, info = raster.read(path)
        # Rows from the front to the back, columns from left to right.
        assert np.array_equal(image[..., 0], VOLUME[:, ::-1, index].T)
        assert (info.height, info.width, info.bands, info.dtype) == (8, 9, 1, np.int16)
    assert np.array_equal(raster.read_window(path, 1, 2, 3, 4), image[1:4, 2:6])


def test_the_fourth_axis_is_bands_and_slope_and_intercept_are_applied(tmp_path):
    volume = np.stack([VOLUME, -VOLUME], 3)
    save(tmp_path / 'a.nii.gz', volume, 'LPS')
    image = raster.read_image(tmp_path / 'a#3.nii.gz', [2])
    assert np.array_equal(image[..., 0], -VOLUME[:, ::-1, 3].T)
    scaled = nibabel.Nifti1Image(VOLUME, np.eye(4))  # written as it is, with slope and intercept
    scaled.header.set_slope_inter(2, -24)
    nibabel.save(scaled, tmp_path / 'b.nii')
    image, info = raster.read(tmp_path / 'b#3.nii')
    assert image.dtype == info.dtype == np.float64
    np.testing.assert_allclose(image[..., 0], VOLUME[:, ::-1, 3].T * 2.0 - 24)


def dicom(path, pixels, **more):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    data.PhotometricInterpretation = 'RGB' if pixels.ndim == 3 else 'MONOCHROME2'
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == 'i')
    data.PixelData = pixels.tobytes()
    for key, value in more.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize('name', ['a.dcm', 'a'])
def test_dicom_files_are_in_their_units(name, tmp_path):
    stored = RNG.integers(0, 3000, (6, 5)).astype(np.int16)
    dicom(tmp_path / name, stored, RescaleSlope=2, RescaleIntercept=-1024, PixelPaddingValue=-3)
    image, info = raster.read(tmp_path / name)
    np.testing.assert_array_equal(image[..., 0], stored * 2.0 - 1024)
    assert (info.height, info.width, info.bands, info.dtype) == (6, 5, 1, np.float64)
    assert info.nodata == -3 * 2 - 1024
    plain = RNG.integers(0, 3000, (6, 5)).astype(np.uint16)
    colours = RNG.integers(0, 255, (6, 5, 3)).astype(np.uint8)
    for array in (plain, colours):
        dicom(tmp_path / name, array)
        image, info = raster.read(tmp_path / name)
        assert np.array_equal(image.squeeze(), array) and image.dtype == info.dtype == array.dtype


def volumes(root, labels=None, change=lambda labels: labels):
    """A folder of volumes with 64x64 slices; labels by thirds, stored as floats."""
    labels = np.zeros((64, 64, 3), np.float32)
    labels[:, 20:40], labels[:, 40:] = 1, 2
    for split in ('training', 'validation'):
        image = labels * 100 + RNG.normal(0, 10, labels.shape)
        save(root / f'images/{split}/a.nii.gz', image.astype(np.int16), 'LPS')
        save(root / f'annotations/{split}/a.nii.gz', change(labels), 'LPS')
    return root


def test_the_example_trains_on_volumes(tmp_path, capfd):
    root = volumes(tmp_path / 'data')
    cfg = config.load(str(EXAMPLES / 'ct_slices.py'), tiny(root, tmp_path / 'work', 3))
    report = checks.check_config(cfg, stats=True)
    train = report['splits']['train']
    assert report['ok'] and train['images'] == 3 and train['labels'] == [0, 2]
    assert train['class_pixels'] == {'other': 3 * 64 * 20, 'liver': 3 * 64 * 20,
                                     'tumour': 3 * 64 * 24}  # fmt: skip
    assert 60 < train['statistics']['mean'][0] < 140
    runner, _ = run(cfg)
    names = {runner.train_dataloader.dataset[i]['data_samples'].img_path for i in range(3)}
    assert names == {f'{root}/images/training/a#{i}.nii.gz' for i in range(3)}
    sample = runner.val_dataloader.dataset[1]
    assert sample['inputs'].shape == (1, 64, 64)
    # The lower part of the picture is the back, where the labels are 0.
    assert sample['data_samples'].gt_sem_seg.data[0, [0, 63], 5].tolist() == [2, 0]
    path = next((tmp_path / 'work').glob('*.py'))
    weights = next((tmp_path / 'work').glob('iter_*.pth'))
    outcome = run_tool(capfd, 'predict', path, weights, root / 'images/validation',
                       '--out', tmp_path / 'out')  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / 'out').rglob('a#*.png'))) >= 3
    # And as a volume that lies upon its image.
    written = nibabel.load(tmp_path / 'out/volumes/a.nii.gz')
    source = nibabel.load(root / 'images/validation/a.nii.gz')
    np.testing.assert_allclose(written.affine, source.affine)
    assert written.shape == source.shape and written.get_data_dtype() == np.uint8
    for i in range(3):
        labels = np.asarray(Image.open(tmp_path / f'out/labels/a#{i}.nii.png'))
        slice_ = raster.read_image(str(tmp_path / f'out/volumes/a#{i}.nii.gz'))[..., 0]
        np.testing.assert_array_equal(slice_, labels)
    nibabel.save(source, tmp_path / 'b.nii')  # not compressed
    outcome = run_tool(capfd, 'predict', path, weights, tmp_path / 'b.nii', '--out',
                       tmp_path / 'other')  # fmt: skip
    assert outcome.code == 0, outcome.err
    (other,) = (tmp_path / 'other/volumes').iterdir()
    assert other.name == 'b.nii.gz'
    np.testing.assert_array_equal(nibabel.load(other).dataobj, written.dataobj)


@pytest.mark.parametrize('change, line', [
    (lambda labels: labels[..., :2], 'a.nii.gz has not the slices of .*images/training/a.nii.gz'),
    (lambda labels: labels + 0.5, 'holds float32 values; class ids are integers'),
])  # fmt: skip
def test_masks_that_do_not_fit_are_told(change, line, tmp_path):
    root = volumes(tmp_path, change=change)
    try:
        problems = checks.check_folder(root)['splits']['training']['problems']
    except UserError as error:
        problems = [str(error)]
    assert re.search(line, problems[0])


def test_what_cannot_be_read_is_one_line(tmp_path):
    save(tmp_path / 'a.nii.gz', VOLUME)
    for name in ('a.nii.gz', 'a#7.nii.gz'):
        with pytest.raises(ValueError, match=r'the volume has slices 0 to 6; name one of them'):
            raster.read_image(tmp_path / name)
    with pytest.raises(ValueError, match='b#1.nii.gz cannot be read'):
        raster.read_image(tmp_path / 'b#1.nii.gz')
    (tmp_path / 'c.nii.gz').write_bytes((tmp_path / 'a.nii.gz').read_bytes()[:500])
    with pytest.raises(ValueError, match='c#6.nii.gz cannot be read'):
        raster.read_image(tmp_path / 'c#6.nii.gz')
    (tmp_path / 'd.nii.gz').write_text('no volume')
    with pytest.raises(UserError, match='d.nii.gz cannot be read'):
        medical.slices(str(tmp_path / 'd.nii.gz'))
    (tmp_path / 'e.dcm').write_text('no DICOM')
    with pytest.raises(ValueError, match='e.dcm cannot be read'):
        raster.read_image(tmp_path / 'e.dcm')
    stored = np.zeros((6, 5), np.uint16)
    dicom(tmp_path / 'f.dcm', stored, NumberOfFrames=4)
    with pytest.raises(ValueError, match='f.dcm has 4 frames; split it'):
        raster.read_image(tmp_path / 'f.dcm')


def test_a_file_may_be_named_like_a_slice(tmp_path):
    save(tmp_path / 'a#1.nii.gz', VOLUME)
    paths = medical.slices(str(tmp_path / 'a#1.nii.gz'))
    assert paths[2] == f'{tmp_path}/a#1#2.nii.gz'
    assert np.array_equal(raster.read_image(paths[2])[..., 0], VOLUME[:, ::-1, 2].T)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / 'b#1.png')
    assert raster.exists(tmp_path / 'b#1.png') and not raster.exists(tmp_path / 'b#2.png')


# --- volumes ---------------------------------------------------------------------------------


@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'ASL', 'SRA', 'IPL'])
def test_a_volume_of_labels_lies_upon_its_image(axes, tmp_path):
    save(tmp_path / 'scan.nii.gz', VOLUME, axes)
    paths = medical.slices(str(tmp_path / 'scan.nii.gz'))
    slices = [raster.read_image(path)[..., 0].astype(np.uint16) % 300 for path in paths]
    medical.write_volume(tmp_path / 'out.nii.gz', str(tmp_path / 'scan.nii.gz'), slices)
    written, source = (nibabel.load(tmp_path / name) for name in ('out.nii.gz', 'scan.nii.gz'))
    np.testing.assert_allclose(written.affine, source.affine)
    np.testing.assert_array_equal(  # nibabel's own orientation is the oracle
        nibabel.as_closest_canonical(written).get_fdata(),
        nibabel.as_closest_canonical(source).get_fdata().astype(np.uint16) % 300)
    assert written.get_data_dtype() == np.uint16
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.nii.gz', 'scan.nii.gz']


def test_spacing_is_that_of_the_file(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, np.diag([0.7, 0.8, 3, 1]))
    start = nibabel.io_orientation(image.affine)
    end = nibabel.orientations.axcodes2ornt('SLP')
    nibabel.save(image.as_reoriented(nibabel.orientations.ornt_transform(start, end)),
                 tmp_path / 'a.nii')
    found = medical.spacing(str(tmp_path / 'a.nii'), 2)
    np.testing.assert_allclose(found, [3, 0.8, 0.7], rtol=1e-6)
    dicom(tmp_path / 'a.dcm', np.zeros((6, 5), np.uint16), PixelSpacing=[0.5, 0.25])
    assert medical.spacing(str(tmp_path / 'a.dcm'), -1) == (0.5, 0.25)
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / 'a.png')
    assert medical.spacing(str(tmp_path / 'a.png'), -1) is None


def hausdorff(prediction, label, spacing) -> float:
    """The formula, in float64: surfaces are what an erosion by the nearest neighbours takes."""
    points = []
    for mask in (prediction, label):
        surface = mask & ~ndimage.binary_erosion(mask)
        points.append(np.argwhere(surface) * np.asarray(spacing, np.float64))
    distances = np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(-1))
    return max(np.percentile(distances.min(axis), 95) for axis in (0, 1))


def metric(classes=('other', 'liver', 'tumour'), **kwargs):
    pytest.importorskip('monai')
    in_scope('mmseg')
    found = METRICS.build(dict(type='vpt_dense.VolumeMetric', **kwargs))
    found.dataset_meta = dict(classes=classes)
    return found


def give(found, path, predictions, labels, numbers=None):
    samples = [dict(
        img_path=path if numbers is None else path.replace('.nii', f'#{i}.nii'),
        **{key: dict(data=torch.from_numpy(array[0 if numbers is None else i])[None])
           for key, array in (('pred_sem_seg', predictions), ('gt_sem_seg', labels))})
        for i in (numbers if numbers is not None else [0])]
    found.process({}, samples)


def test_dice_and_hd95_are_their_formulas(tmp_path):
    spacing, found = (3.0, 0.8, 0.7), metric()
    volumes = []
    for case in range(2):
        shape = (6 + case, 20, 24)
        name = str(tmp_path / f'case{case}.nii')
        nibabel.save(nibabel.Nifti1Image(
            np.zeros(shape[::-1], np.int16), np.diag([*spacing[::-1], 1])), name)
        label = ndimage.zoom(RNG.integers(0, 3, (2, 4, 4)), [n / m for n, m in zip(
            shape, (2, 4, 4), strict=True)], order=0)  # fmt: skip
        prediction = np.roll(label, (1, 2), (0, 2))
        label[:, :2] = 255
        if case:
            prediction[prediction == 2] = 0  # class 2 is missed
        volumes.append((prediction, label))
        give(found, name, prediction, label, RNG.permutation(shape[0]))
    dice, distances = np.full((2, 2), np.nan), np.full((2, 2), np.nan)
    for case, (prediction, label) in enumerate(volumes):
        for number in (1, 2):
            p, t = ((each == number) & (label != 255) for each in (prediction, label))
            dice[case, number - 1] = 100 * 2 * (p & t).sum() / (p.sum() + t.sum())
            if p.any():
                distances[case, number - 1] = hausdorff(p, t, spacing)
    result = found.evaluate(13)
    assert dice[1, 1] == 0 and result['HD95_undefined'] == 1
    assert result['mDice'] == pytest.approx(dice.mean(0).mean(), abs=0.006)
    assert result['mHD95'] == pytest.approx(np.nanmean(distances, 0).mean(), abs=0.006)
    for number, row in enumerate(found.per_class):
        assert row['Dice'] == pytest.approx(dice[:, number].mean(), abs=0.006)
        assert row['HD95'] == pytest.approx(np.nanmean(distances[:, number]), abs=0.006)


def test_images_that_are_no_volumes_are_cases(tmp_path):
    found = metric(('other', 'vessel'), spacing=(2.0, 0.5))
    label, prediction = np.zeros((2, 1, 12, 12), np.uint8)
    label[0, 2:6, 2:6], prediction[0, 5:9, 2:6] = 1, 1  # three rows of 2 mm further down
    give(found, 'a.png', prediction, label)
    give(found, 'b.png', label * 0, label * 0)  # the class is in neither
    result = found.evaluate(2)
    assert result == dict(mDice=25.0, mHD95=6.0, HD95_undefined=0)
    found = metric(('other', 'vessel'), hd95=False)
    give(found, 'b.png', label * 0, label * 0)
    assert np.isnan(found.evaluate(1)['mDice'])


def test_a_volume_that_lacks_a_slice_is_told():
    found = metric()
    label = np.ones((4, 8, 8), np.uint8)
    give(found, 'scan.nii', label, label, [0, 1, 3])
    with pytest.raises(ValueError, match='scan.nii is evaluated without its slice 2'):
        found.evaluate(3)
    with pytest.raises(ValueError, match='spacing must be'):
        metric(spacing=[1, 0])


def test_without_monai_the_way_to_it_is_told(monkeypatch):
    in_scope('mmseg')
    monkeypatch.setitem(sys.modules, 'monai', None)
    with pytest.raises(UserError, match=r"pip install 'vpt-dense\[medical\]'"):
        METRICS.build(dict(type='vpt_dense.VolumeMetric'))


def test_synapse_pairs_volumes_of_other_names_and_eight_organs(tmp_path):
    for number, size in (('0001', 3), ('0005', 2)):
        labels = RNG.integers(0, 14, (16, 16, size)).astype(np.uint8)
        save(tmp_path / f'img/img{number}.nii.gz', labels.astype(np.int16) * 10)
        save(tmp_path / f'label/label{number}.nii.gz', labels)
    (tmp_path / 'train.txt').write_text('img0005\n')
    in_scope('mmseg')
    build = dict(type='vpt_dense.PublicSet', name='synapse', split='all', data_root=str(tmp_path))
    whole, train = DATASETS.build(build), DATASETS.build(dict(build, ann_file='train.txt'))
    assert (len(whole), len(train)) == (5, 2)
    organs = dict(spleen=1, gallbladder=4, liver=6, stomach=7, aorta=8, pancreas=11)
    organs |= {'right kidney': 2, 'left kidney': 3}
    load = TRANSFORMS.build(dict(type='vpt_dense.LoadMask'))
    for i in range(2):
        sample = train.get_data_info(i)
        assert sample['img_path'].endswith(f'img0005#{i}.nii.gz')
        raw = raster.read_image(sample['img_path'])[..., 0] // 10
        found = load(sample)['gt_seg_map']
        for name, number in organs.items():
            np.testing.assert_array_equal(
                found == train.metainfo['classes'].index(name), raw == number)
        np.testing.assert_array_equal(found == 0, ~np.isin(raw, list(organs.values())))

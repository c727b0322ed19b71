"""Images of every kind, read by one function with the file's own values."""

import sys
import warnings

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image, ImageOps
from rasterio.transform import from_origin

from vpt_dense.datasets import raster
from vpt_dense.errors import UserError

RNG = np.random.default_rng(0)
SHAPE = 37, 53  # no multiple of a tile


def values(bands, dtype):
    """(H, W, bands) of a type's whole range."""
    dtype = np.dtype(dtype)
    if dtype.kind == 'f':
        return RNG.normal(0, 1000, (*SHAPE, bands)).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, (*SHAPE, bands), dtype, endpoint=True)


def write(path, array, **profile):
    """Write (H, W, bands) by rasterio itself."""
    height, width, bands = array.shape
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with rasterio.open(path, 'w', driver='GTiff', height=height, width=width, count=bands,
                           dtype=array.dtype, **profile) as file:
            file.write(np.moveaxis(array, 2, 0))


TILES = dict(tiled=True, blockxsize=16, blockysize=32)
TIFFS = {
    'RGB': (3, 'uint8', dict(photometric='RGB')),
    'alpha': (4, 'uint8', dict(photometric='RGB', alpha='yes')),
    'premultiplied': (4, 'uint8', dict(photometric='RGB', alpha='premultiplied')),
    'no alpha': (4, 'uint8', dict(photometric='RGB', alpha='unspecified')),
    'two': (2, 'uint8', {}),
    'six by band': (6, 'uint16', dict(interleave='band', compress='lzw', predictor=2)),
    'thirteen tiles': (13, 'uint16', dict(interleave='band', compress='deflate', **TILES)),
    'thirteen by pixel': (13, 'uint16', dict(interleave='pixel', compress='zstd', **TILES)),
    'float by band': (4, 'float32', dict(interleave='band')),
    'float by pixel': (4, 'float32', dict(interleave='pixel', compress='deflate', predictor=3)),
    'double': (5, 'float64', dict(compress='lerc', **TILES)),
    'signed': (1, 'int16', {}),
    'wide': (2, 'int32', dict(bigtiff='yes', **TILES)),
    'wide, high byte first': (2, 'uint16', dict(bigtiff='yes', endianness='big')),
    'bytes': (7, 'int8', {}),
    'huge': (1, 'uint32', dict(compress='packbits')),
    'white is zero': (1, 'uint8', dict(photometric='MINISWHITE')),
}


@pytest.mark.parametrize('case', TIFFS)
def test_tiffs_are_read_as_they_were_written(case, tmp_path):
    bands, dtype, profile = TIFFS[case]
    stored, path = values(bands, dtype), tmp_path / 'a.tif'
    write(path, stored, **profile)
    image = raster.read_image(path)
    assert image.dtype == stored.dtype and np.array_equal(image, stored)
    info = raster.image_info(path)
    assert (info.height, info.width, info.bands, info.dtype) == (*stored.shape, stored.dtype)
    order = [bands, 1]
    chosen = stored[..., [bands - 1, 0]]
    assert np.array_equal(raster.read_image(path, order), chosen)
    assert np.array_equal(raster.read_window(path, 5, 40, 20, 13, order), chosen[5:25, 40:])
    together = np.concatenate([part for _, part in raster.strips(path, order)])
    assert np.array_equal(together, chosen)


def test_strips_are_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, '_STRIP', 13 * 53 * 33)
    stored = values(13, 'uint16')
    write(tmp_path / 'a.tif', stored, **TILES)
    parts = list(raster.strips(tmp_path / 'a.tif'))
    assert [(top, len(part)) for top, part in parts] == [(0, 32), (32, 5)]
    assert np.array_equal(np.concatenate([part for _, part in parts]), stored)


def pictures():
    """{name: (writes the file, what is read)}."""
    grey, colours = values(1, 'uint8'), values(3, 'uint8')
    deep_grey, deep = values(1, 'uint16'), values(3, 'uint16')
    alpha, deep_alpha = values(4, 'uint8'), values(4, 'uint16')
    palette = Image.fromarray(colours).quantize(16)
    seen = np.array(palette.convert('RGB'))
    bits = grey > 100
    two = alpha[..., :2].copy()
    def save(array):
        return lambda path: Image.fromarray(array.squeeze()).save(path)

    def bgr(array):
        order = [2, 1, 0, 3][: array.shape[2]] if array.shape[2] > 1 else [0]
        return lambda path: cv2.imwrite(str(path), array[..., order])

    return {
        'grey.png': (save(grey), grey), 'grey.tif': (save(grey), grey),
        'grey.bmp': (save(grey), grey), 'grey.pgm': (save(grey), grey),
        'bits.png': (save(bits), bits), 'bits.tif': (save(bits), bits),
        'colours.png': (save(colours), colours), 'colours.bmp': (save(colours), colours),
        'colours.ppm': (save(colours), colours), 'two.png': (save(two), two),
        'colours.webp': (lambda p: Image.fromarray(colours).save(p, lossless=True), colours),
        'alpha.png': (save(alpha), alpha), 'alpha.tif': (save(alpha), alpha),
        'deep-grey.png': (save(deep_grey), deep_grey), 'deep-grey.pgm': (bgr(deep_grey), deep_grey),
        'deep.png': (bgr(deep), deep), 'deep.tif': (bgr(deep), deep), 'deep.ppm': (bgr(deep), deep),
        'deep-alpha.png': (bgr(deep_alpha), deep_alpha),
        'palette.png': (palette.save, seen), 'palette.gif': (palette.save, seen),
        'palette.tif': (palette.save, seen), 'palette.bmp': (palette.save, seen),
    }  # fmt: skip


PICTURES = pictures()


@pytest.mark.parametrize('name', PICTURES)
def test_pictures_are_read_as_they_were_written(name, tmp_path):
    save, stored = PICTURES[name]
    save(tmp_path / name)
    image, info = raster.read(tmp_path / name)
    assert image.dtype == (np.uint8 if stored.dtype == bool else stored.dtype)
    assert np.array_equal(image, stored)
    assert (info.height, info.width, info.bands) == image.shape and info.dtype == image.dtype
    assert np.array_equal(raster.read_window(tmp_path / name, 1, 2, 3, 4, [1]),
                          image[1:4, 2:6, :1])  # fmt: skip


@pytest.mark.parametrize('suffix', ['jpg', 'tif'])
def test_cmyk_becomes_the_colours_that_the_default_loader_sees(suffix, tmp_path):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(cv2.resize(values(4, 'uint8'), (8, 8)), 'CMYK').save(path)
    assert raster.image_info(path).bands == 3
    seen = cv2.imread(str(path))[..., ::-1].astype(int)
    assert abs(raster.read_image(path) - seen).max() <= 3


@pytest.mark.parametrize('mode', ['LAB', 'YCbCr'])
def test_colours_that_gdal_converts_come_without_an_alpha_of_its_own(mode, tmp_path):
    path = tmp_path / 'a.tif'
    Image.fromarray(cv2.resize(values(3, 'uint8'), (8, 8)), mode).save(path)
    assert raster.image_info(path).bands == raster.read_image(path).shape[2] == 3


@pytest.mark.parametrize('turn', range(1, 9))
def test_turned_images_are_upright(turn, tmp_path):
    """All readers agree with Pillow's own turn; so does the ordinary loader."""
    exif = Image.Exif()
    exif[274] = turn
    stored = values(3, 'uint8')
    upright = np.rot90(stored, {3: 2, 6: 3, 8: 1}[turn]) if turn in (3, 6, 8) else None
    for name in ('a.png', 'a.tif', 'a.webp'):
        Image.fromarray(stored).save(tmp_path / name, exif=exif, **{'lossless': True})
        image = raster.read_image(tmp_path / name)
        with Image.open(tmp_path / 'a.png') as picture:  # Pillow 10 turns TIFF twice
            assert np.array_equal(image, np.array(ImageOps.exif_transpose(picture)))
        assert upright is None or np.array_equal(image, upright)
        info = raster.image_info(tmp_path / name)
        assert (info.height, info.width) == image.shape[:2]
        window = raster.read_window(tmp_path / name, 3, 4, 10, 5, [2])
        assert np.array_equal(window, image[3:13, 4:9, 1:2])
    deep = values(1, 'uint16')
    for name in ('deep.png', 'deep.tif'):
        Image.fromarray(deep[..., 0]).save(tmp_path / name, exif=exif)
        assert np.array_equal(raster.read_image(tmp_path / name), raster._turned(deep, turn))
    Image.fromarray(stored).save(tmp_path / 'a.jpg', exif=exif)
    jpeg = raster.read_image(tmp_path / 'a.jpg')
    assert np.abs(jpeg - cv2.imread(str(tmp_path / 'a.jpg'))[..., ::-1].astype(int)).max() <= 3


def test_georeference_and_nodata(tmp_path):
    transform = from_origin(500_000, 5_000_000, 10, 10)
    path = tmp_path / 'a.tif'
    write(path, values(2, 'uint16'), crs='EPSG:32633', transform=transform, nodata=0)
    info = raster.image_info(path)
    assert info.crs.to_epsg() == 32633 and info.transform == transform and info.nodata == 0
    labels = values(1, 'uint8')[..., 0]
    out = tmp_path / 'new/labels.tif'
    raster.write_raster(out, labels, like=path, nodata=255)
    info = raster.image_info(out)
    assert info.crs.to_epsg() == 32633 and info.transform == transform and info.nodata == 255
    assert np.array_equal(raster.read_image(out)[..., 0], labels)
    for array in (values(3, 'float32'), values(1, 'float64'), values(1, 'uint8') > 9,
                  values(2, 'int64')):  # fmt: skip
        raster.write_raster(out, array)
        assert np.array_equal(raster.read_image(out), array)
    assert raster.image_info(out).crs is None and raster.image_info(out).transform is None
    with pytest.raises(ValueError, match=r'labels.tif would be 53x36, but .*a.tif.* is 53x37'):
        raster.write_raster(out, labels[:-1], like=path)
    assert [file.name for file in out.parent.iterdir()] == ['labels.tif']


def test_a_raster_is_written_whole_or_not_at_all(small_disk):
    path = small_disk / 'a.tif'
    with pytest.raises(UserError, match='cannot write .*a.tif: .*disk is full|is the disk full'):
        raster.write_raster(path, RNG.integers(0, 255, (2000, 2000), np.uint8))
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize('dtype, nodata, expected', [
    ('uint16', 0, [[True, False], [False, False]]),
    ('uint8', -9999, [[False, False], [False, False]]),
    ('uint8', 0.5, [[False, False], [False, False]]),
    ('float32', -3.4028234663852886e38, [[False, False], [True, True]]),
    ('float32', None, [[False, False], [False, True]]),
    ('uint16', (None, 7), [[False, True], [False, False]]),
])  # fmt: skip
def test_what_means_no_data(dtype, nodata, expected):
    image = np.array([[0, 7], [5, 9]], dtype)
    if dtype == 'float32':
        image[1] = [-3.4028235e38, np.nan]
    assert raster.is_nodata(image, nodata).tolist() == expected


def text(path):
    path.write_text('not an image')


def cut(path):
    write(path, values(3, 'uint16'))
    path.write_bytes(path.read_bytes()[:2000])


def cut_header(path):
    path.write_bytes(b'II*\0\xff\xff\xff\x7f')


def cut_picture(path):
    Image.fromarray(values(3, 'uint8')).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def complex_values(path):
    write(path, values(1, 'float32').astype('complex64'))


@pytest.mark.parametrize('name, make, line', [
    ('a.tif', text, 'cannot be read'),
    ('a.png', text, 'cannot be read'),
    ('a.jp2', text, 'cannot be read'),
    ('a.tif', cut, 'cannot be read'),
    ('a.tif', cut_header, 'cannot be read'),
    ('a.png', cut_picture, 'cannot be read'),
    ('a.tif', lambda path: path.mkdir(), 'cannot be read: is a directory'),
    ('a.tif', lambda path: None, 'cannot be read: no such file'),
    ('a.tif', complex_values, 'holds complex64 values'),
])  # fmt: skip
def test_files_that_cannot_be_read_are_named(name, make, line, tmp_path):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf'image .*{name} {line}') as error:
        raster.read_image(tmp_path / name)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('bands', [[0], [4], [-1], [], [1, 7], ['R'], [1.5]])
@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_wrong_bands_are_named(bands, name, tmp_path):
    Image.fromarray(values(3, 'uint8')).save(tmp_path / name)
    with pytest.raises(ValueError, match=rf'{name} has bands 1 to 3, but bands=\['):
        raster.read_image(tmp_path / name, bands)
    with pytest.raises(ValueError, match=rf'{name} is 53x37: no window of 9x9 at row 30 and'):
        raster.read_window(tmp_path / name, 30, 0, 9, 9)
    assert raster.read_image(tmp_path / name, [1, 1, 1]).shape == (*SHAPE, 3)


def test_other_rasters(tmp_path):
    """A virtual raster of two files, and JPEG 2000."""
    stored = values(2, 'uint16')
    write(tmp_path / 'a.tif', stored, nodata=7)
    (tmp_path / 'a.vrt').write_text(
        f'<VRTDataset rasterXSize="{SHAPE[1]}" rasterYSize="{SHAPE[0]}">' + ''.join(
            f'<VRTRasterBand dataType="UInt16" band="{i + 1}">'
            + ('<NoDataValue>7</NoDataValue>' if i else '') +
            '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
            f'<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>'
            for i, band in enumerate((2, 1, 2))) + '</VRTDataset>')
    assert np.array_equal(raster.read_image(tmp_path / 'a.vrt'), stored[..., [1, 0, 1]])
    assert raster.image_info(tmp_path / 'a.vrt').nodata == (None, 7, 7)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with rasterio.open(tmp_path / 'a.jp2', 'w', driver='JP2OpenJPEG', width=SHAPE[1],
                           height=SHAPE[0], count=2, dtype='uint16', REVERSIBLE='YES',
                           QUALITY='100') as file:
            file.write(np.moveaxis(stored, 2, 0))
    assert np.array_equal(raster.read_image(tmp_path / 'a.jp2'), stored)
    assert [file.name for file in tmp_path.glob('*.aux.xml')] in ([], ['a.jp2.aux.xml'])


@pytest.mark.parametrize('name, library', [('scan#3.nii.gz', 'nibabel'), ('a.dcm', 'pydicom')])
def test_medical_images_without_the_extra_say_what_they_need(name, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    for path in (tmp_path / 'scan.nii.gz', tmp_path / 'a.dcm'):
        path.write_bytes(b'')
    with pytest.raises(UserError, match=rf"{name}: .* needs {library}; pip install 'vpt-dense\[m"):
        raster.read_image(tmp_path / name)


def test_a_header_is_read_without_the_pixels(tmp_path, monkeypatch):
    from PIL import ImageFile

    exif = Image.Exif()
    exif[274] = 6
    for name in ('a.png', 'a.jpg', 'a.webp'):
        Image.fromarray(values(3, 'uint8')).save(tmp_path / name, exif=exif)
    late = (tmp_path / 'a.png').read_bytes()  # the tag may come behind the pixels
    start = late.index(b'eXIf') - 4
    end = start + 12 + int.from_bytes(late[start : start + 4], 'big')
    at = late.index(b'IEND') - 4
    (tmp_path / 'late.png').write_bytes(late[:start] + late[end:at] + late[start:end] + late[at:])
    assert np.array_equal(*(raster.read_image(tmp_path / n) for n in ('late.png', 'a.png')))

    def forbidden(*_):
        raise AssertionError('decoded')

    monkeypatch.setattr(ImageFile.ImageFile, 'load', forbidden)
    for name in ('a.png', 'late.png', 'a.jpg', 'a.webp'):
        info = raster.image_info(tmp_path / name)
        assert (info.height, info.width) == SHAPE[::-1]

"""Pictures of labels: what covers the image, what the legend names, what an image becomes."""

import numpy as np
import pytest

from vpt_dense.visualization import (
    Panel,
    draw_captions,
    draw_labels,
    draw_panels,
    drawing,
    make_palette,
    to_picture,
)

CLASSES = ['road', 'sky', 'tree']
PALETTE = [[0, 0, 200], [200, 0, 0], [0, 200, 0]]
GREY = np.full((300, 400, 3), 100, np.uint8)


def labels(*values):
    """As many columns as there are values."""
    return np.repeat(values, 400 // len(values))[None].repeat(300, 0)


@pytest.fixture
def legend(monkeypatch):
    """The entries of the last legend: (name, its colour or the two of its stripes)."""
    found = []
    drawn = drawing._legend

    def spy(entries, *args):
        found[:] = entries
        return drawn(entries, *args)

    monkeypatch.setattr(drawing, '_legend', spy)
    return found


#: Labels, ignored label -> names in the legend.
LEGENDS = {
    'what occurs': ((1, 1), 255, ['sky']),
    'ignored': ((2, 0, 255, 255), 255, ['road', 'tree', 'ignored']),
    'a class is ignored': ((1, 2), 2, ['sky', 'ignored']),
    'nothing is ignored': ((1, 2), None, ['sky', 'tree']),
    'labels that are no class': ((0, 7, 255, 0), 0, ['ignored', 'no class: 7, 255']),
}


@pytest.mark.parametrize('case', LEGENDS)
def test_the_legend_names_what_occurs(legend, case):
    values, ignored, names = LEGENDS[case]
    drawn = draw_labels(GREY, labels(*values), CLASSES, PALETTE, ignored, title='truth')
    assert [name for name, _ in legend] == names
    for name, colour in legend:
        if name in CLASSES:
            assert colour.tolist() == PALETTE[CLASSES.index(name)]
            assert (drawn[-20:] == colour).all(-1).any()  # and it is in the picture
    assert drawn.shape[1] == 400 and drawn.shape[0] > 300 and drawn.dtype == np.uint8


def test_colours_cover_the_image_and_stripes_what_is_ignored():
    drawn = draw_labels(GREY, labels(1, 255, 2, 9), CLASSES, PALETTE, alpha=0.5, legend=False)
    assert drawn.shape == GREY.shape  # no text: nothing around it
    assert (drawn[:, :100] == [150, 50, 50]).all() and (drawn[:, 200:300] == [50, 150, 50]).all()
    for part, pair in ((drawn[:, 100:200], drawing._IGNORED), (drawn[:, 300:], drawing._NO_CLASS)):
        found = {tuple(colour) for colour in np.unique(part.reshape(-1, 3), axis=0).tolist()}
        assert found == {tuple(round((c + 100) / 2) for c in colour) for colour in pair}


def test_panels_stand_side_by_side_with_one_legend(legend):
    panels = [Panel('image'), Panel('truth', labels(0, 255)), Panel('prediction', labels(2), None)]
    drawn = draw_panels(GREY, panels, CLASSES)
    assert [name for name, _ in legend] == ['road', 'tree', 'ignored']
    assert drawn.shape[1] > 1200
    top = draw_panels(GREY, panels, CLASSES, legend=False).shape[0] - 300
    assert (drawn[top : top + 300, :400] == 100).all()
    assert (drawn[top : top + 300, -400:] == drawn[top, -1]).all()
    titles = [(drawn[:top, x : x + 400] < 128).sum() for x in (0, 404, 808)]
    assert min(titles) > 0 and titles[2] > titles[1]  # 'prediction' has more ink than 'truth'


def test_small_images_are_enlarged_and_long_legends_have_rows(legend):
    small = draw_labels(GREY[:30, :40], labels(1)[:30, :40], CLASSES, PALETTE, title='truth')
    assert small.shape[1] == 320  # eight times
    names = [f'class {i} of many' for i in range(60)]
    wide = np.arange(60)[None].repeat(300, 0).repeat(6, 1)
    drawn = draw_labels(GREY[:, :360], wide, names, title=None)
    assert len(legend) == 60 and drawn.shape[0] > 300 + 20 * 20
    name = 'x' * 500
    assert draw_labels(GREY, labels(0), [name], [[1, 2, 3]]).shape[1] == 400
    with pytest.raises(ValueError, match='over an image of'):
        draw_labels(GREY, labels(0)[:10], CLASSES)
    with pytest.raises(ValueError, match='2 colours for 3 classes'):
        draw_labels(GREY, labels(0), CLASSES, PALETTE[:2])


def test_captions_stand_above_the_image():
    for text, width in (('truth: a', 400), ('prediction: ' + 40 * 'long ', 1200)):
        drawn = draw_captions(GREY, [(text, None), ('prediction: b', False)])
        assert 400 <= drawn.shape[1] <= width
        assert (drawn[-300:, :400] == 100).all() and (drawn[:-300, -5:] == 255).all()
        red = (drawn[:-300, :, 0] > 180) & (drawn[:-300, :, 1] < 20)
        assert red.any()
    assert draw_captions(GREY, []).shape == GREY.shape


def test_made_up_colours_are_always_the_same():
    state = np.random.get_state()[1].copy()
    assert make_palette(3) == make_palette(5)[:3] == [[102, 179, 92], [14, 106, 71], [188, 20, 102]]
    assert (np.random.get_state()[1] == state).all()


def test_any_image_becomes_a_picture():
    bands = np.zeros((2, 2, 4), np.uint16)
    bands[0, 0] = [60000, 30000, 0, 9]
    assert to_picture(bands)[0, 0].tolist() == [255, 127, 0]
    assert to_picture(bands, swap=True)[0, 0].tolist() == [0, 127, 255]
    assert to_picture(np.full((2, 2), 7, np.uint8))[1, 1].tolist() == [7, 7, 7]
    assert to_picture(np.array([[[-1.0], [1.0]]])).tolist() == [[[0] * 3, [255] * 3]]

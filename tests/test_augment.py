"""Augmentation gives the samples that the stack's own gives, from the same random numbers."""

import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import TRANSFORMS
from utils import CONFIGS


def blocks(rng, shape, ids):
    """Labels (H, W) uint8 in blocks of 16 pixels, the first id in most of them."""
    small = np.where(rng.random((8, 8)) < 0.7, ids[0], rng.choice(ids, (8, 8)))
    return np.kron(small, np.ones((16, 16))).astype(np.uint8)[: shape[0], : shape[1]]


@pytest.mark.parametrize('ignore_index', [255, 4, -1])
@pytest.mark.parametrize('ids', [[3], [255], [3, 4, 255], [255, 4], [3, 4, 5, 6]], ids=str)
@pytest.mark.parametrize('ratio', [0.75, 1.0])
def test_crops_are_those_of_mmseg(ratio, ids, ignore_index, mmseg_scope):
    rng = np.random.default_rng(0)
    crops = {'RandomCrop': [], 'vpt_dense.RandomCrop': []}
    for shape in [(128, 100), (32, 90), (20, 20)] * 5:
        image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        labels = blocks(rng, shape, ids)
        for name, found in crops.items():
            crop = TRANSFORMS.build(
                dict(type=name, crop_size=(32, 48), cat_max_ratio=ratio, ignore_index=ignore_index)
            )
            np.random.seed(len(found))
            results = crop(dict(img=image, gt_seg_map=labels, seg_fields=['gt_seg_map']))
            state = np.random.random()  # as many numbers were drawn
            found.append((results['img'], results['gt_seg_map'], results['img_shape'], state))
    for ours, theirs in zip(crops['vpt_dense.RandomCrop'], crops['RandomCrop'], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize('name', ['ade20k_512', 'segfolder_512'])
def test_configs_crop_with_it(name):
    cfg = Config.fromfile(CONFIGS / f'_base_/datasets/{name}.py')
    types = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert 'vpt_dense.RandomCrop' in types

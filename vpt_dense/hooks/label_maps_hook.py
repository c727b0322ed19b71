"""Predicted label maps as files."""

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense.datasets import label_maps
from vpt_dense.datasets.in_test_set import InTestSet
from vpt_dense.datasets.label_maps import annotation_ids, ignored_id
from vpt_dense.datasets.names import image_names, leaves
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class LabelMapsHook(Hook):
    """Writes what a test predicts for each image, in the ids of the annotations.

    ``OUT_DIR/city0/frame.png`` for the image ``city0/frame.jpg`` of the data folder: one channel of
    8 bits, in the size of the image. Read as the data set reads masks (``reduce_zero_label``,
    ``label_map``) it is the prediction again, and ignored where the image has no data. Every
    process writes its own images.

    Args:
        out_dir: The folder.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def before_test(self, runner: Runner) -> None:
        """Know names and ids."""
        dataset = runner.test_loop.dataloader.dataset
        self._name_of = image_names(dataset)
        self._ids, self._ignored = {}, {}
        first = next(iter(leaves(dataset)))
        for leaf in leaves(dataset):
            name = _set_of(leaf)
            meta = (first if name is None else leaf).metainfo
            reduced, label_map = meta.get('reduce_zero_label', False), meta.get('label_map')
            ids = annotation_ids(len(meta['classes']), reduced, label_map)
            ignored = getattr(first if name is None else leaf, 'ignore_index', None)
            self._ids[name] = ids
            self._ignored[name] = ignored_id(ids, reduced, ignored, label_map)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the label maps of a batch."""
        for sample in outputs:
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
            name = self._name_of(sample.img_path).with_suffix('.png')
            part = sample.get('test_set')
            label_maps.write(
                self.out_dir / name, labels, self._ids[part], self._ignored[part],
                sample.get('no_data'))


def _set_of(leaf: Any) -> str | None:
    """The name that a data set has among several test sets."""
    steps = getattr(getattr(leaf, 'pipeline', None), 'transforms', [])
    return next((step.name for step in steps if isinstance(step, InTestSet)), None)

"""Predicted label maps as files."""

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense.datasets import label_maps
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
        meta = dataset.metainfo
        self._name_of = image_names(dataset)
        reduced, label_map = meta.get('reduce_zero_label', False), meta.get('label_map')
        self._ids = annotation_ids(len(meta['classes']), reduced, label_map)
        labels = [getattr(leaf, 'ignore_index', None) for leaf in leaves(dataset)]
        self._ignored = ignored_id(self._ids, reduced, labels[0], label_map)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the label maps of a batch."""
        for sample in outputs:
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
            name = self._name_of(sample.img_path).with_suffix('.png')
            label_maps.write(
                self.out_dir / name, labels, self._ids, self._ignored, sample.get('no_data'))

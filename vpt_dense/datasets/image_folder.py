"""A classification data set made of folders of images, one folder for each class."""

from mmpretrain.datasets import BaseDataset

from vpt_dense.datasets.checks import find_classes, list_class_files, list_images
from vpt_dense.registry import DATASETS


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images in one sub-folder for each class: ``train/<class>/*.jpg``, ``val/<class>/*.jpg``.

    Unlike mmpretrain's ``CustomDataset``, every split takes its labels from the classes of the
    training split: a class that the validation split lacks does not shift the labels.

    Args:
        data_root: Folder with the splits.
        data_prefix: The split: 'train', 'val' or 'test'.
        metainfo: ``classes``; found in ``data_root``/train if left out.
        ann_file: A text file, relative to ``data_root``, with the names of the images to take, one
            a line, relative to the split's folder ('rose/a.jpg'; 'rose/a' and 'rose/a.jpg 2',
            with the label behind, too). Without it all.
        with_label: False for images to predict: all below the split's folder, in whatever
            sub-folders.
        **kwargs: See ``mmpretrain.datasets.BaseDataset``.

    Raises:
        UserError: A folder is absent or empty, the split has a class that is not among the
            classes, or ``ann_file`` is absent, empty, or has a name twice or one that is no image.
    """

    def __init__(
        self,
        data_root: str,
        data_prefix: str = 'train',
        metainfo: dict | None = None,
        ann_file: str = '',
        with_label: bool = True,
        **kwargs,
    ) -> None:
        self.with_label = with_label
        metainfo = dict(metainfo or {})
        if 'classes' not in metainfo:  # to know them, the folder need not be there
            metainfo['classes'] = find_classes(data_root)
        super().__init__(
            ann_file=ann_file, data_root=data_root, data_prefix=data_prefix, metainfo=metainfo,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Lists [dict(img_path, gt_label)], or without labels [dict(img_path)]."""
        if not self.with_label:
            return [dict(img_path=path) for path in list_images(self.img_prefix, self.ann_file)]
        samples = list_class_files(self.img_prefix, self.CLASSES, self.ann_file)
        return [dict(img_path=path, gt_label=label) for path, label in samples]

"""Says of a sample which of several test sets it is of."""

from mmcv.transforms import BaseTransform

from vpt_dense.registry import TRANSFORMS


@TRANSFORMS.register_module()
class InTestSet(BaseTransform):
    """Notes ``test_set`` in the data samples of an image, its augmented ones too.

    The last step of a pipeline; ``test_sets`` of a config puts it there.

    Args:
        name: Of the set.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def transform(self, results: dict) -> dict:
        """Change ``results['data_samples']``, one or a list."""
        samples = results['data_samples']
        for sample in samples if isinstance(samples, list) else [samples]:
            sample.set_metainfo(dict(test_set=self.name))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r})'

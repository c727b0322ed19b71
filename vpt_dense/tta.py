"""Test-time augmentation: as a config sets it, or the default of a classifier."""

from mmengine.config import Config, ConfigDict

from vpt_dense import tasks, tree
from vpt_dense.errors import UserError


def parts(cfg: Config, pipeline: list[dict], where: str, way: str) -> tuple[dict, list[dict]]:
    """The model that goes around a model, and the pipeline that goes with it.

    A classifier's config may lack them: then the scores of an image and its mirror image are
    averaged.

    Args:
        cfg: The config.
        pipeline: Of a test without augmentation.
        where: What that is called, for a message.
        way: What can be done without augmentation, for a message.

    Returns:
        The config of the model, without its ``module``, and the pipeline.

    Raises:
        UserError: If a segmentation config, or one of several labels an image, lacks either; or
            the pipelines read images in different ways.
    """
    default = tasks.need(cfg.model, '--tta').tta_model
    model, augmented = cfg.get('tta_model'), cfg.get('tta_pipeline')
    if model is None and default:
        if any('MultiLabel' in tree.kind_of(head) for head in tree.heads(cfg.model)):
            raise UserError(
                '--tta: with several labels an image, say in tta_model how they are merged')
        model = ConfigDict(type=default)
    if not augmented and default:
        augmented = _mirrored(pipeline)
    for key, value in (('tta_model', model), ('tta_pipeline', augmented)):
        if not value:
            raise UserError(f'--tta: the config has no {key}; add it, or {way} without --tta')
    loads, others = _loaders(pipeline), _loaders(augmented)
    if loads != others:
        raise UserError(
            f'--tta: tta_pipeline reads images with {others}, {where} with {loads}; set '
            'tta_pipeline to read them alike')
    return model, augmented


def _mirrored(pipeline: list[dict]) -> list[dict]:
    """A classifier's test pipeline that packs each image as it is and mirrored."""
    *load, pack = pipeline
    flips = [ConfigDict(type='RandomFlip', prob=prob, direction='horizontal')
             for prob in (0.0, 1.0)]  # fmt: skip
    return [*load, ConfigDict(type='TestTimeAug', transforms=[flips, [pack]])]


def _loaders(pipeline: list[dict]) -> str:
    """The transforms that read an image, which come before all others."""
    names = [tree.kind_of(step) for step in pipeline]
    first = next((i for i, name in enumerate(names) if not name.startswith('Load')), len(names))
    # Before LoadBands stands one that reads nothing, see vpt_dense.datasets.loading.
    left_out = ('LoadAnnotations', 'LoadMask', 'LoadDepth', 'LoadNormals',
                'LoadPanopticAnnotations', 'LoadTasks',
                *['LoadImageFromFile'] * ('LoadBands' in names))
    return ', '.join(name for name in names[:first] if name not in left_out)

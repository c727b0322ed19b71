"""Registries of vpt_dense: children of mmengine's, under the scope ``vpt_dense``.

Each names the modules that hold its classes (``locations``). mmengine imports
``vpt_dense.registry`` by itself when a config says ``type='vpt_dense.X'``, and the registry then
imports its locations: no ``custom_imports`` is needed, whatever the default scope.

A location is imported as a whole, so what one task alone needs (mmseg) is imported on demand.
"""

import importlib

from mmengine import registry as _mmengine

from vpt_dense.parts import PARTS


class _Registry(_mmengine.Registry):
    """Imports some modules only when one of their classes is asked for.

    Args:
        on_demand: Module -> names of its classes. The attribute is the reverse: class -> module.
        *args: As in :class:`mmengine.Registry`.
        **kwargs: As in :class:`mmengine.Registry`.
    """

    def __init__(self, *args, on_demand: dict[str, list[str]], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.on_demand = {name: module for module, names in on_demand.items() for name in names}

    def get(self, key: str):
        """See :meth:`mmengine.Registry.get`."""
        name = key.removeprefix(f'{self.scope}.')
        if name in self.on_demand:
            importlib.import_module(self.on_demand[name])
        return super().get(key)

    def import_from_location(self) -> None:
        """See :meth:`mmengine.Registry.import_from_location`; methods register without mmengine."""
        super().import_from_location()
        if self.name == _mmengine.MODELS.name:
            self._module_dict.update(PARTS)


def _child(name: str, *locations: str, **on_demand: list[str]) -> _mmengine.Registry:
    parent = getattr(_mmengine, name)
    return _Registry(
        parent.name, parent=parent, scope='vpt_dense', locations=list(locations),
        on_demand=on_demand,
    )


MODELS = _child(
    'MODELS', 'vpt_dense.prompts', 'vpt_dense.image_prompts', 'vpt_dense.adapters',
    'vpt_dense.engine', 'vpt_dense.ensemble.prompt', 'vpt_dense.ensemble.heads',
    **{
        **{
            f'vpt_dense.backbones.{module}': names
            for module, names in dict(
                clip_text=['CLIPTextTransformer'], clip_vision=['CLIPVisionTransformer'],
                convnext=['ConvNeXt'], eva02=['EVA02VisionTransformer'], resnet=['ResNet'],
                swin=['SwinTransformer'], timm_vision_transformer=['TimmVisionTransformer'],
                vision_transformer=['VisionTransformer', 'PromptedVisionTransformer'],
            ).items()
        },
        'vpt_dense.heads': [
            'DPTDepthHead', 'DPTNormalHead', 'DeconvHead', 'EdgeLoss', 'EoMTHead', 'FCNHead',
            'GradientLoss', 'LinearDepthHead', 'LinearDistanceHead', 'LinearEdgeHead', 'LinearHead',
            'LinearNormalHead', 'MapL1Loss', 'NormalLoss', 'PlainMaskHead', 'SETRMLAHead',
            'SETRUPHead', 'SegmenterMaskTransformerHead', 'SigLoss', 'UPerHead',
        ],
        'vpt_dense.classifiers': ['AverageClsScoreTTA', 'LabelMappingHead'],
        'vpt_dense.continual.head': ['StepHead'],
        'vpt_dense.detection.pyramid': ['SimpleFeaturePyramid'],
        'vpt_dense.detection.semantic_head': ['Mask2FormerHead'],
        'vpt_dense.detection.query_detector': [
            'EoMTInstanceHead', 'EoMTPanopticHead', 'PlainMaskInstanceHead',
            'PlainMaskPanopticHead', 'QueryDetector'],
        'vpt_dense.continual.segmentor': ['StepEncoderDecoder'],
        'vpt_dense.vision_language.classifier': ['CLIPClassifier'],
        'vpt_dense.vision_language.cost_head': ['CostHead'],
        'vpt_dense.vision_language.segmentor': ['CLIPSegmentor'],
        'vpt_dense.vision_language.text_head': ['SEPHead', 'TextHead'],
        'vpt_dense.vision_language.zegclip_head': ['ZegCLIPHead'],
        'vpt_dense.federated.shared_group_prompt': ['SharedGroupPrompt'],
        'vpt_dense.segmentors': [
            'DepthEstimator', 'EncoderDecoder', 'MapTTAModel', 'MultiTaskEstimator',
            'NormalEstimator', 'SegTTAModel'],
    },
)
DATASETS = _child(
    'DATASETS',
    **{
        'vpt_dense.datasets.map_folder': ['DepthFolder', 'NormalFolder'],
        'vpt_dense.datasets.task_folder': ['NYUDv2', 'PASCALContext', 'TaskFolder'],
        'vpt_dense.datasets.seg_folder': ['SegFolder'],
        'vpt_dense.datasets.public_set': ['PublicSet'],
        'vpt_dense.datasets.eurosat': ['EuroSAT'],
        'vpt_dense.datasets.torchgeo_classes': ['TorchGeoClasses'],
        'vpt_dense.datasets.torchgeo_masks': ['TorchGeo'],
        'vpt_dense.continual.class_subset': ['ClassSubset'],
        'vpt_dense.detection.coco_folder': ['CocoFolder'],
        'vpt_dense.detection.panoptic_folder': ['PanopticFolder'],
        'vpt_dense.datasets.image_folder': ['ImageFolder'],
        'vpt_dense.datasets.image_list': ['FGVC', 'ImageList', 'VTAB'],
        'vpt_dense.datasets.subset': ['Subset'],
    },
)
TRANSFORMS = _child(
    'TRANSFORMS', 'vpt_dense.datasets.loading',
    **{
        'vpt_dense.continual.keep_labels': ['KeepLabels'],
        'vpt_dense.datasets.augment': ['RandomCrop'],
        'vpt_dense.datasets.in_test_set': ['InTestSet'],
        'vpt_dense.detection.panoptic_folder': ['LoadPanopticAnnotations'],
        'vpt_dense.datasets.map_folder': ['KITTICrop', 'LoadDepth', 'LoadNormals', 'PackNormals'],
        'vpt_dense.datasets.task_targets': ['LabelTargets', 'LoadTasks', 'PackTasks'],
        'vpt_dense.demo.stride_labels': ['StrideLabels'],
    },
)
DATA_SAMPLERS = _child('DATA_SAMPLERS', 'vpt_dense.ensemble.sampler')
HOOKS = _child(
    'HOOKS', 'vpt_dense.hooks',
    **{
        'vpt_dense.continual.null_space': ['NullSpaceHook'],
        'vpt_dense.demo.vit_start_hook': ['ViTStartHook'],
        'vpt_dense.hooks.seg_visualization_hook': ['SegVisualizationHook'],
        'vpt_dense.hooks.visualization_hook': ['VisualizationHook'],
        'vpt_dense.hooks.det_visualization_hook': ['DetVisualizationHook'],
        'vpt_dense.hooks.boxes_hook': ['BoxesHook', 'SegmentsHook'],
        'vpt_dense.hooks.maps_hook': ['MapVisualizationHook', 'MapsHook'],
    },
)
METRICS = _child(
    'METRICS',
    **{
        'vpt_dense.evaluation': [
            'DepthMetric', 'EdgeMetric', 'IoUMetric', 'MapErrorMetric', 'MultiTaskMetric',
            'NormalMetric'],
        'vpt_dense.evaluation.volume_metric': ['VolumeMetric'],
        'vpt_dense.sets_metric': ['SetsMetric'], 'vpt_dense.classifiers': ['Accuracy'],
        'vpt_dense.detection.coco_metric': ['CocoMetric'],
        'vpt_dense.detection.panoptic_metric': ['PanopticMetric'],
    },
)
OPTIMIZERS = _child('OPTIMIZERS', **{'vpt_dense.demo.muon': ['MuonAdamW']})
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'vpt_dense.engine')
VISUALIZERS = _child(
    'VISUALIZERS',
    **{
        'vpt_dense.visualization.segmentation': ['SegLocalVisualizer'],
        'vpt_dense.visualization.classification': ['UniversalVisualizer'],
        'vpt_dense.visualization.detection': ['DetLocalVisualizer'],
        'vpt_dense.visualization.maps': ['MapLocalVisualizer'],
    },
)

__all__ = [
    'DATASETS', 'DATA_SAMPLERS', 'HOOKS', 'METRICS', 'MODELS', 'OPTIMIZERS', 'OPTIM_WRAPPERS',
    'TRANSFORMS', 'VISUALIZERS',
]

"""Tasks, one record each; to add a task, add a record (CONTRIBUTING.md).

The records name classes and functions, and import none of them.
"""

import contextlib
import importlib
import importlib.util
import io
import pkgutil
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from vpt_dense.errors import UserError

#: The key of the heads that help in training alone, whatever the task.
AUXILIARY = 'auxiliary_head'


@dataclass(frozen=True)
class Task:
    """A task. A function is named ``package.module:function``; what is left out, it does not have.

    Attributes:
        name: ``segmentation``: what predictions, reports and messages call it.
        head: The key of a model that holds its head, by which the task is known.
        part: What counts of parameters call that head.
        parts: Further keys of heads, by any of which the task is known too -> what counts of
            parameters call them.
        chosen: Whether a model with its heads (its config, or its parts by name) is of this task,
            where another task has these heads too; None: nothing is asked.
        metric: The name, among the results of an evaluation, of what a run is judged by.
        label: That in a sentence; empty: the name.
        less_is_better: Whether the smallest value is the best.
        fine: Metrics whose values below 10 are told with three decimals, not two.
        scope: The default scope of its configs, the package of its models and data sets.
        packages: Modules that register the classes of that scope.
        extra: What installs them (``pip install vpt-dense[EXTRA]``), if the package does not.
        short: Method files ``NAME_SHORT.py`` are for this task.
        dense: Whether it predicts maps, of images of any size.
        regions: Whether it finds any number of things in images of any size.
        classes: Whether its head tells classes apart.
        labels: The key of ``data_prefix`` that says where the labels are; empty: the data set's own
            ``with_label``.
        tag: The Hugging Face hub's.
        ensemble: The type of its head in an ensemble.
        tta_model: The type of the model that averages an image and its mirror image, where a config
            has no ``tta_model``.
        visualizer: Config of what draws a prediction, for ``--show-dir``.
        drawing: Config of the hook that has all of a test drawn, without its ``out_dir``.
        shown: Function: (data sample, the data set's ``metainfo``, ignored label) -> what reports
            show of an image, see :mod:`vpt_dense.report.samples`.
        store: The type of the hook that writes the predictions of a test, for ``--out``.
        store_suffixes: Of the file that it writes (``out_file``); empty: a folder (``out_dir``).
        exports: Whether ``tools/export.py`` knows what its graph puts out.
        sample: Function: (config, (height, width)) -> a labelled sample of that size, to measure
            what a training step costs.
        check_sample: Function: (sample, head, ignored label) -> None, or whether anything of it is
            labelled; raises a UserError that names the file if the label cannot be.
        check_data: Function: (data set, split, arguments) -> what ``tools/check_dataset.py``
            tells of it, see :func:`vpt_dense.datasets.checks.check_config`.
        predict: Function: (predictor, samples of the pipeline, whether with probabilities) ->
            results, for ``vpt_dense.load`` and ``tools/predict.py``.
        writer: Class that writes them, see :mod:`vpt_dense.predicting.writing`.
    """

    name: str
    head: str
    part: str
    metric: str
    label: str = ''
    parts: Mapping[str, str] = field(default_factory=dict)
    chosen: Callable[[Mapping[str, Any]], bool] | None = None
    less_is_better: bool = False
    fine: tuple[str, ...] = ()
    scope: str = 'mmengine'
    packages: tuple[str, ...] = ()
    extra: str = ''
    short: str = ''
    dense: bool = False
    regions: bool = False
    classes: bool = True
    labels: str = ''
    tag: str = ''
    ensemble: str = ''
    tta_model: str = ''
    visualizer: Mapping[str, Any] = field(default_factory=dict)
    drawing: Mapping[str, Any] = field(default_factory=dict)
    shown: str = ''
    store: str = ''
    store_suffixes: tuple[str, ...] = ()
    exports: bool = False
    sample: str = ''
    check_sample: str = ''
    check_data: str = ''
    predict: str = ''
    writer: str = 'vpt_dense.predicting.writing:Lines'

    @property
    def heads(self) -> tuple[str, ...]:
        """The keys of its heads."""
        return self.head, *self.parts

    def function(self, key: str, asked: str) -> Callable:
        """The function that an attribute of the record names.

        Args:
            key: The attribute.
            asked: What the user wants with it, for the message.

        Raises:
            UserError: If the task has none.
        """
        return pkgutil.resolve_name(self.has(key, asked))

    def has(self, key: str, asked: str) -> Any:
        """An attribute of the record.

        Raises:
            UserError: If the task has none.
        """
        value = getattr(self, key)
        if not value:
            raise UserError(f'{asked}: not for the task {self.name}, whose record has no {key}')
        return value


#: Name -> record.
TASKS: dict[str, Task] = {}


def add(task: Task) -> None:
    """Make a task known; a config does so by ``custom_imports`` of the module that calls this.

    Raises:
        ValueError: If another has its name or its head.
    """
    for other in TASKS.values():
        shared = set(other.heads) & set(task.heads)
        apart = other.name != task.name and (other.chosen or task.chosen)
        if other != task and (other.name == task.name or shared) and not apart:
            head = min(shared, default=other.head)
            raise ValueError(f'there is a task {other.name} with model.{head} already')
    TASKS[task.name] = task


def of(parts: Container[str]) -> Task | None:
    """The task of a model.

    Args:
        parts: What holds the names of its parts: its config, or themselves by name. Of names alone
            tasks are not found that share their heads with others and are ``chosen``.
    """
    found = [task for task in TASKS.values() if any(head in parts for head in task.heads)]
    chosen = (task for task in found
              if task.chosen and isinstance(parts, Mapping) and task.chosen(parts))
    return next(chosen, next((task for task in found if not task.chosen), None))


def need(parts: Container[str], asked: str) -> Task:
    """The task of a model.

    Args:
        parts: As in :func:`of`.
        asked: What the user wants with it, for the message.

    Raises:
        UserError: If it is of none.
    """
    task = of(parts)
    if task is None:
        known = ', '.join(f'model.{each.head} ({each.name})' for each in TASKS.values())
        raise UserError(f'{asked}: the model has no head of a task that is known: {known}')
    return task


def is_dense(parts: Container[str]) -> bool:
    """Whether a model predicts maps."""
    task = of(parts)
    return task is not None and task.dense


def is_of_images(parts: Container[str]) -> bool:
    """Whether a model predicts something of an image as a whole."""
    task = of(parts)
    return task is not None and not task.dense and not task.regions


def heads() -> tuple[str, ...]:
    """The keys of models that hold heads, those for training alone last."""
    found = (head for task in TASKS.values() for head in task.heads)
    return (*dict.fromkeys(found), AUXILIARY)


def metrics() -> dict[str, Task]:
    """Name of the metric that runs of a task are judged by -> the task."""
    return {task.metric: task for task in TASKS.values()}


def decimals(metric: str, value: float, usual: int = 2) -> int:
    """With how many decimals people are told a metric: 3 below 10 where its task says so.

    Args:
        metric: Its name, perhaps behind that of a test set (``night/rmse``).
        value: Its value.
        usual: Of all others.
    """
    fine = any(metric.rpartition('/')[2] in task.fine for task in TASKS.values())
    return 3 if fine and abs(value) < 10 else usual


def told(metric: str, value: float) -> str:
    """A value of a metric as text, see :func:`decimals`."""
    return f'{value:.{decimals(metric, value)}f}'


def scopes() -> tuple[str, ...]:
    """The scopes of the tasks."""
    return tuple(dict.fromkeys(task.scope for task in TASKS.values()))


def import_packages(scope: str) -> None:
    """Import what registers the classes of a default scope.

    mmseg and mmpretrain print about an optional service meanwhile, which nobody is shown.

    Raises:
        UserError: If an extra that brings it along is not installed.
    """
    check_installed(scope)
    with contextlib.redirect_stdout(io.StringIO()):
        for task in TASKS.values():
            for name in task.packages if task.scope == scope else ():
                importlib.import_module(name)


def check_installed(scope: str) -> None:
    """Check that the package of a scope is there, where an extra brings it along.

    Raises:
        UserError: If not.
    """
    for task in TASKS.values():
        if task.scope == scope and task.extra and importlib.util.find_spec(scope) is None:
            raise UserError(
                f'{task.name} needs {scope}, which is not installed: pip install '
                f"'vpt-dense[{task.extra}]' (docs/{task.extra}.md)")


def _is_panoptic(parts: Mapping[str, Any]) -> bool:
    """Whether a detector's queries are put together to one map: mmdet's ``panoptic_on``."""
    head = parts.get('panoptic_fusion_head')
    settings = parts.get('test_cfg') if isinstance(head, Mapping) else getattr(
        head, 'test_cfg', None)
    return head is not None and bool((settings or {}).get('panoptic_on', True))


add(Task(
    'segmentation', 'decode_head', 'decode head', 'mIoU', scope='mmseg', short='seg',
    packages=('mmseg.datasets', 'mmseg.models'), dense=True, labels='seg_map_path',
    tag='image-segmentation', ensemble='vpt_dense.EnsembleDecodeHead',
    visualizer=dict(type='vpt_dense.SegLocalVisualizer'),
    drawing=dict(type='vpt_dense.SegVisualizationHook', draw=True),
    shown='vpt_dense.report.samples:segmentation',
    store='vpt_dense.LabelMapsHook', exports=True,
    sample='vpt_dense.memory:mask_sample',
    check_sample='vpt_dense.hooks.data_check_hook:check_mask',
    check_data='vpt_dense.datasets.checks:check_masks_of',
    predict='vpt_dense.predicting.model:segment',
    writer='vpt_dense.predicting.writing:Labels',
))
add(Task(
    'classification', 'head', 'classification head', 'accuracy/top1', 'accuracy',
    scope='mmpretrain', short='cls', packages=('mmpretrain.datasets', 'mmpretrain.models'),
    tag='image-classification', ensemble='vpt_dense.EnsembleClsHead',
    tta_model='vpt_dense.AverageClsScoreTTA',
    visualizer=dict(type='vpt_dense.UniversalVisualizer'),
    drawing=dict(type='vpt_dense.VisualizationHook', enable=True, interval=1),
    shown='vpt_dense.report.samples:classification',
    store='vpt_dense.PredictionsHook', store_suffixes=('.json', '.jsonl', '.pkl'), exports=True,
    sample='vpt_dense.memory:class_sample',
    check_sample='vpt_dense.hooks.data_check_hook:check_label',
    check_data='vpt_dense.datasets.checks:check_classes_of',
    predict='vpt_dense.predicting.model:classify',
))
add(Task(
    'detection', 'bbox_head', 'box head', 'coco/bbox_mAP', 'box AP', scope='mmdet',
    parts={
        'roi_head': 'region heads', 'rpn_head': 'proposal head', 'mask_head': 'mask head',
        'panoptic_head': 'query head', 'panoptic_fusion_head': 'fusion head'},
    short='det', packages=('mmdet.datasets', 'mmdet.models', 'mmdet.evaluation'),
    extra='detection', regions=True, tag='object-detection',
    visualizer=dict(type='vpt_dense.DetLocalVisualizer'),
    drawing=dict(type='vpt_dense.DetVisualizationHook', draw=True),
    shown='vpt_dense.report.samples:detection',
    store='vpt_dense.BoxesHook', store_suffixes=('.json',), exports=True,
    sample='vpt_dense.memory:box_sample',
    check_sample='vpt_dense.hooks.data_check_hook:check_boxes',
    check_data='vpt_dense.datasets.coco:check_boxes_of',
    predict='vpt_dense.predicting.model:detect',
    writer='vpt_dense.predicting.writing:Boxes',
))
add(Task(
    'panoptic', 'panoptic_head', 'query head', 'coco_panoptic/PQ', 'PQ', scope='mmdet',
    parts={'panoptic_fusion_head': 'fusion head'}, chosen=_is_panoptic, short='pan',
    packages=('mmdet.datasets', 'mmdet.models', 'mmdet.evaluation'),
    extra='detection', regions=True, tag='image-segmentation',
    visualizer=dict(type='vpt_dense.DetLocalVisualizer'),
    drawing=dict(type='vpt_dense.DetVisualizationHook', draw=True),
    shown='vpt_dense.report.samples:panoptic', store='vpt_dense.SegmentsHook', exports=True,
    sample='vpt_dense.memory:segment_sample',
    check_sample='vpt_dense.hooks.data_check_hook:check_segments',
    check_data='vpt_dense.datasets.panoptic:check_segments_of',
    predict='vpt_dense.predicting.model:find_segments',
    writer='vpt_dense.predicting.writing:Segments',
))
add(Task(
    'depth', 'depth_head', 'depth head', 'rmse', less_is_better=True,
    fine=('rmse', 'rmse_log', 'abs_rel', 'sq_rel', 'log10', 'silog', 'd1', 'd2', 'd3'),
    scope='mmseg', short='depth', dense=True, classes=False, labels='depth_map_path',
    tag='depth-estimation',
    tta_model='vpt_dense.MapTTAModel',
    visualizer=dict(type='vpt_dense.MapLocalVisualizer'),
    drawing=dict(type='vpt_dense.MapVisualizationHook', draw=True),
    shown='vpt_dense.report.samples:depth', store='vpt_dense.MapsHook', exports=True,
    sample='vpt_dense.memory:depth_sample',
    check_sample='vpt_dense.hooks.data_check_hook:check_depth',
    check_data='vpt_dense.datasets.map_checks:check_depth_of',
    predict='vpt_dense.predicting.model:measure_depth',
    writer='vpt_dense.predicting.writing:Maps',
))
add(Task(
    'normals', 'normal_head', 'normal head', 'mean_angle', 'mean angle', less_is_better=True,
    fine=('mean_angle', 'median_angle', 'a11.25', 'a22.5', 'a30'),
    scope='mmseg', short='normals', dense=True, classes=False, labels='normal_map_path',
    tag='image-feature-extraction', tta_model='vpt_dense.MapTTAModel',
    visualizer=dict(type='vpt_dense.MapLocalVisualizer'),
    drawing=dict(type='vpt_dense.MapVisualizationHook', draw=True),
    shown='vpt_dense.report.samples:normals', store='vpt_dense.MapsHook', exports=True,
    sample='vpt_dense.memory:normal_sample',
    check_sample='vpt_dense.hooks.data_check_hook:check_normals',
    check_data='vpt_dense.datasets.map_checks:check_normals_of',
    predict='vpt_dense.predicting.model:find_normals',
    writer='vpt_dense.predicting.writing:Maps',
))
add(Task(
    'multitask', 'task_heads', 'task heads', 'delta_m', 'mean gain of tasks', scope='mmseg',
    short='tasks', dense=True, classes=False, tag='image-segmentation',
    sample='vpt_dense.memory:tasks_sample',
    check_sample='vpt_dense.hooks.data_check_hook:check_tasks',
    check_data='vpt_dense.datasets.task_folder:check_tasks_of',
))

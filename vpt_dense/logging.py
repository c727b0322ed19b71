"""Chooses what is shown on the console. The log file of the run gets everything."""

import logging
import re
import sys
import warnings
from collections.abc import Sequence

from vpt_dense import live

#: As many classes have a table of results on the console; files have those of all.
MAX_TABLE_CLASSES = 20

#: Warnings of the stack that no user can act on (beginnings or parts of their text).
STRAY_WARNINGS = (
    r'Fail to import ``MultiScaleDeformableAttention``',  # the pure-Python mmcv has no such op
    r'Could not import OneDL',  # printed by the forks for an optional service
    r'Default ``avg_non_ignore`` is False',  # SETR's published setting
    r'``?reduce_zero_label``? will be deprecated',  # raised by mmseg's own ADE20K pipelines
    r'Please pay attention your ground truth segmentation map',  # DataCheckHook stops there
    r'The draw is False',  # the visualisation hook is off by default
    r'For binary segmentation, we suggest using',  # two classes and softmax is what we mean
    r'The shape of value will convert from',  # raised by mmseg's test-time augmentation
    r'The prefix is not set in metric class',  # IoUMetric names its results itself
    r'"FileClient" will be deprecated',  # raised by mmengine's own hooks
    r'is skipped since its requires_grad=False',  # one line a frozen tensor; the table counts them
    r'"HardDiskBackend" is the alias',
    r'"?file_client_args"? will be deprecated',
    r'The .*dump_config.* is deprecated',
    r'Setting OMP_NUM_THREADS environment variable',
    r'Setting MKL_NUM_THREADS environment variable',
    r'.*torch\.utils\.checkpoint: the use_reentrant parameter',
    r'Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`',
    r'is not a meaningful config when',
    r'.*pin_memory.* argument is set as true but no accelerator',
    r'`broadcast_buffers` is deprecated',
    r'This DataLoader will create \d+ worker',  # fewer cores than the config has workers: harmless
    r'Detected pickle protocol',
    r'The verbose parameter is deprecated',
    r'`?torch\.\w*\.?amp\.\w+\(args\.\.\.\)`? is deprecated',
    r'faster_coco_eval is not installed',  # a metric of mmdet that nothing here uses
    r'Profiler function .* will be ignored',
)
_STRAY = re.compile('|'.join(STRAY_WARNINGS))


class StrayFilter(logging.Filter):
    """Drops the log records of :data:`STRAY_WARNINGS`; before others the live line goes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show the record."""
        shown = not _STRAY.search(record.getMessage())
        if shown:
            live.clear()
        return shown


def filter_warnings() -> None:
    """Silence the stray warnings that go through Python's ``warnings``, in this process."""
    for pattern in STRAY_WARNINGS:
        warnings.filterwarnings('ignore', message=f'.*{pattern}')


def quiet(logger: logging.Logger | None = None) -> None:
    """Let only warnings and errors through to the console, until :func:`loud`.

    Args:
        logger: The run's logger; mmengine's current one by default. Its file handler is left
            alone.
    """
    filter_warnings()
    for handler in _console(logger):
        handler.setLevel(max(handler.level, logging.WARNING))
        if not any(isinstance(f, StrayFilter) for f in handler.filters):
            handler.addFilter(StrayFilter())


def loud(logger: logging.Logger | None = None) -> None:
    """Let the console of the main process show progress (level INFO) again."""
    from mmengine.dist import is_main_process

    if is_main_process():
        for handler in _console(logger):
            handler.setLevel(logging.INFO)


def tell(line: str) -> None:
    """Log a line: in a run of mmengine in its current logger, else in that of this package."""
    stack = sys.modules.get('mmengine.logging')
    if stack is None:
        logging.getLogger('vpt_dense').info(line)
    else:
        stack.print_log(line, logger='current')


def tell_classes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Log a table of results by class, unless it is too long for a console.

    Args:
        header: Names of the columns.
        rows: Texts, a class each.
    """
    from mmengine.logging import MMLogger

    from vpt_dense import tables

    if len(rows) <= MAX_TABLE_CLASSES:
        logger = MMLogger.get_current_instance()
        logger.info('Results by class in percent:\n%s', tables.text(header, rows))


def _console(logger: logging.Logger | None) -> list[logging.Handler]:
    if logger is None:
        from mmengine.logging import MMLogger

        logger = MMLogger.get_current_instance()
    return [
        handler
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
    ]

"""The log of several processes: means of the losses and accuracies of all of them."""

from mmengine.dist import all_gather_object, get_world_size
from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor as _LogProcessor
from mmengine.runner import Runner


class LogProcessor(_LogProcessor):
    """mmengine's, whose losses and accuracies of training are means over all processes.

    mmengine logs those of process 0. They are brought together when a line is logged, not in
    every iteration. Learning rates, times and memory stay those of process 0.
    """

    def _collect_scalars(
        self, custom_cfg: list[dict], runner: Runner, mode: str, reserve_prefix: bool = False
    ) -> dict:
        tag = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        if mode != 'train' or get_world_size() == 1:
            return tag
        own = {'time', 'data_time', *runner.optim_wrapper.get_lr()}
        values = {k: v for k, v in tag.items() if k.rpartition('/')[2] not in own}
        everywhere = all_gather_object(values)
        for key in values:
            there = [found[key] for found in everywhere if key in found]
            tag[key] = sum(there) / len(there)
        return tag


def build(config: dict | None) -> _LogProcessor:
    """Build a log processor; in place of mmengine's, ours."""
    config = dict(config or {})
    if config.get('type', 'LogProcessor') in ('LogProcessor', 'mmengine.LogProcessor'):
        config['type'] = LogProcessor
    return LOG_PROCESSORS.build(config)

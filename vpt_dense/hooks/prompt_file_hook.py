"""Prompts and adapters that start from those of another task."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense.errors import UserError
from vpt_dense.params import unwrap
from vpt_dense.registry import HOOKS
from vpt_dense.tuning import is_added
from vpt_dense.weights import checkpoints


@HOOKS.register_module()
class PromptFileHook(Hook):
    """Starts what tuning adds to the backbone from a file, and nothing else: no head, no base.

    As SPoT starts a target's prompt from a source's (T. Vu et al., ACL 2022,
    https://arxiv.org/abs/2110.07904). Nothing is done when a run is resumed or begins with
    ``load_from``.

    Args:
        path: A checkpoint or delta of a model with the same method.

    Raises:
        UserError: Before training, if the file holds none, or others than the model has.
    """

    priority = 'HIGH'  # behind what starts the backbone

    def __init__(self, path: str) -> None:
        self.path = path

    def before_train(self, runner: Runner) -> None:
        """Overwrite the start."""
        if runner.iter > 0 or runner._has_loaded:
            return
        content = checkpoints.read(self.path)
        found = {name.removeprefix('backbone.'): tensor
                 for name, tensor in content.get('state_dict', content).items()
                 if name.startswith('backbone.') and is_added(name.removeprefix('backbone.'))}
        backbone = unwrap(runner.model).backbone
        own = {name: tensor for name, tensor in backbone.state_dict().items() if is_added(name)}
        if not found or not own:
            where = self.path if not found else 'the model'
            raise UserError(f'PromptFileHook.path {self.path}: {where} has neither prompts nor '
                            'adapters')
        for name in sorted(own.keys() | found.keys()):
            shapes = [tuple(each[name].shape) if name in each else None for each in (found, own)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f'PromptFileHook.path {self.path}: backbone.{name} is {shapes[0]} there, '
                    f'{shapes[1]} in the model; take the same method and backbone')
        for name, tensor in found.items():
            own[name].copy_(tensor)  # it is the backbone's own
        runner.logger.info('%d tensors of prompts and adapters start as in %s', len(found),
                           self.path)

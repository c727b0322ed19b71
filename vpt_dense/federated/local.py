"""What one member computes: a round of a client by the package's own runner, a start, a test.

A run of a config in R rounds is R pieces of its training: round r of a client is iterations (or
epochs, as the loop counts) (r - 1) n / R to r n / R, at the learning rates that the schedule has
there, and with the images that an uninterrupted run of this client would see then. Only the state
of the optimizer begins anew.
"""

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from vpt_dense import building, config, params, run_setup, safe_files, seeding, tasks, tree
from vpt_dense.argument_checks import is_number
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.federated import moved
from vpt_dense.weights.base import frozen_bases

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner


#: Hooks that have nothing to do in a round: a report of a run, a checkpoint when it is asked to go.
_OF_WHOLE_RUNS = ('ReportHook', 'PreemptionHook')


@dataclass(frozen=True)
class Job:
    """A training in rounds.

    Attributes:
        config: A config or a recipe.
        method: Put on the recipe; empty: the config says what trains.
        options: Overrides, ``KEY=VALUE``.
        rounds: That the training is cut into.
        seed: Of the start, and of what clients draw.
    """

    config: str
    method: str = ''
    options: Sequence[str] = ()
    rounds: int = 1
    seed: int = 0

    def load(self, further: Sequence[str] = ()) -> 'Config':
        """The config, checked and resolved, with further overrides.

        Raises:
            UserError: If something is wrong with it, or its length is not so many rounds.
        """
        cfg = config.load(self.config, [*self.options, *further], self.method or None)
        for key in ('load_from', 'resume'):
            if cfg.get(key):
                raise UserError(
                    f'{key}={cfg[key]!r}: a federation starts from the pretrained weights and its '
                    'seed, and goes on by its own setting resume; leave it out')
        said = (cfg.get('randomness') or {}).get('seed')
        if said not in (None, 0, self.seed):
            raise UserError(
                f'randomness.seed={said}: the seed of a federation is a setting of its own, '
                f'which is {self.seed} (--seed); set both to one, or leave this one out')
        key, length = _length(cfg)
        if length % self.rounds:
            raise UserError(
                f'rounds={self.rounds} does not divide {key}={length}, the length of the training '
                'that the rounds are pieces of; set one of them')
        for hook in cfg.get('custom_hooks') or []:
            kind = str(hook.get('type')).rpartition('.')[2]
            if kind in ('EMAHook', 'EarlyStoppingHook'):
                raise UserError(
                    f'custom_hooks: a {kind} has nothing to do in a round of a federation, which '
                    'sends what was trained last; leave it out')
            if kind in ('PromptStartHook', 'LabelMappingHook', 'SparsePlacesHook'):
                raise UserError(
                    f'custom_hooks: a {kind} sets a part of the model when a training begins, '
                    'which would replace what the server sends; take another method')
            if kind == 'MetricLossHook':
                raise UserError(
                    'custom_hooks: a MetricLossHook deals classes to prompts by what it has seen '
                    'of a whole training, a round is a piece of one; take another method')
        return cfg


def _length(cfg: 'Config') -> tuple[str, int]:
    loop = cfg.get('train_cfg') or {}
    for key in ('max_iters', 'max_epochs'):
        if loop.get(key):
            return f'train_cfg.{key}', loop[key]
    raise UserError('train_cfg: it has neither max_iters nor max_epochs, so no length')


@dataclass(frozen=True)
class Trained:
    """What came of a round.

    Attributes:
        tensors: What moves, float32 on the CPU, by name.
        kind: What the client is.
        images: Of the client.
        loss: Mean over the iterations of the round.
        seconds: Of the training alone.
        counts: Images of each group, with :class:`Stages`; else empty.
    """

    tensors: dict[str, Tensor]
    kind: moved.Kind
    images: int
    loss: float
    seconds: float
    counts: tuple[float, ...] = ()


class Round(Hook):
    """Makes a training a round of a federation: where it begins and ends, and with what.

    Args:
        number: From 1.
        job: Of the federation, with what this client overrides.
        tensors: What it begins with.
        wanted: What the client must be; None: anything.
        proximal_mu: Weight of FedProx' term.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self, number: int, job: Job, tensors: Mapping[str, Tensor],
        wanted: moved.Kind | None = None, proximal_mu: float = 0.0,
    ) -> None:  # fmt: skip
        self.number, self.job, self.rounds = number, job, job.rounds
        self.tensors, self.wanted, self.proximal_mu = tensors, wanted, proximal_mu
        self.losses: list[float] = []
        self.seconds = 0.0
        self.kind: moved.Kind | None = None

    def before_train(self, runner: 'Runner') -> None:
        """Check the client, load what came, and go to the iteration that the round begins at."""
        loop, model = runner.train_loop, params.unwrap(runner.model)
        if rest := moved.rest(model):  # a client draws by a seed of its own
            state, start = model.state_dict(), Global(self.job, []).model.state_dict()
            for name in rest:
                state[name].copy_(start[name])
        self.kind = moved.kind(model, _classes(loop.dataloader.dataset))
        self.rest = moved.rest_mark(model)
        if self.wanted is not None:
            moved.compare(self.kind, self.wanted)
        moved.put(model, self.tensors)
        self.by_epoch = hasattr(loop, '_max_epochs') and not hasattr(loop, 'dataloader_iterator')
        length = loop._max_epochs if self.by_epoch else loop._max_iters
        begin, self.end = (length * n // self.rounds for n in (self.number - 1, self.number))
        each = len(loop.dataloader) if self.by_epoch else 1
        _step_schedules(runner, begin * each, each if self.by_epoch else None)
        loop._iter = begin * each
        if self.by_epoch:
            loop._epoch = begin
        # A last group of accumulated batches that is not full takes its step, as at a run's end.
        runner.optim_wrapper.initialize_count_status(runner.model, loop._iter, self.end * each)
        if self.proximal_mu:
            add_proximal(model, self.proximal_mu)
        self._began = time.perf_counter()

    def after_train_iter(
        self, runner: 'Runner', batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Note the loss; end where the round does."""
        if outputs and 'loss' in outputs:
            self.losses.append(float(outputs['loss'].detach()))
        if not self.by_epoch and runner.iter + 1 >= self.end:
            runner.train_loop.stop_training = True

    def after_train_epoch(self, runner: 'Runner') -> None:
        """End where the round does."""
        if self.by_epoch and runner.epoch + 1 >= self.end:
            runner.train_loop.stop_training = True

    def after_train(self, runner: 'Runner') -> None:
        """Note the time."""
        self.seconds = time.perf_counter() - self._began


class Stages(Hook):
    """Block coordinate descent of a round of SGPT (https://arxiv.org/abs/2310.18285).

    In the first half of the round's iterations shared prompts and head train, without groups; in
    the second half group prompts, keys and head do, and the losses get ``loss_keys``, minus the
    mean similarity of queries and chosen keys.

    Args:
        round_: Says where the round begins and ends; it has been asked before.
        share: pi, of each group.
    """

    priority = 'HIGH'  # behind Round

    def __init__(self, round_: Round, share: Sequence[float]) -> None:
        self.round, self.share = round_, share
        self.counts: tuple[float, ...] = ()

    def before_train(self, runner: 'Runner') -> None:
        """Find the prompt, and the iteration between the stages."""
        model = params.unwrap(runner.model)
        self.prompt = shared_group_prompt(model)
        if len(self.share) != len(self.prompt.keys):
            raise UserError(
                f'the server knows {len(self.share)} groups, the prompt {len(self.prompt.keys)}')
        loop = runner.train_loop
        each = len(loop.dataloader) if self.round.by_epoch else 1
        steps = self.round.end * each - loop.iter
        if steps < 2:
            raise UserError(
                f'a round of {steps} iteration has no two stages; take fewer rounds')
        self.middle = loop.iter + steps // 2
        self.prompt.share.copy_(torch.tensor(self.share))
        self.prompt.counts.zero_()
        prompt = self.prompt

        def add(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            if kwargs.get('mode') == 'loss' and prompt.similarity is not None:
                output = {**output, 'loss_keys': -prompt.similarity}
            return output

        model.register_forward_hook(add, with_kwargs=True)

    def before_train_iter(
        self, runner: 'Runner', batch_idx: int, data_batch: Any = None
    ) -> None:
        """Choose what trains."""
        second = runner.iter >= self.middle
        self.prompt.selects = second
        self.prompt.shared.requires_grad_(not second)
        self.prompt.group.requires_grad_(second)
        self.prompt.keys.requires_grad_(second)

    def after_train(self, runner: 'Runner') -> None:
        """All is as before; note the groups."""
        self.prompt.selects = True
        for parameter in self.prompt.parameters():
            parameter.requires_grad_(True)
        self.counts = tuple(self.prompt.counts.tolist())


def shared_group_prompt(model: nn.Module) -> nn.Module:
    """The prompt of a model that strategy ``SGPTLike`` trains.

    Raises:
        UserError: If it has another one, or none.
    """
    from vpt_dense.federated.shared_group_prompt import SharedGroupPrompt

    prompt = getattr(getattr(model, 'backbone', None), 'prompt', None)
    if not isinstance(prompt, SharedGroupPrompt):
        raise UserError(
            'strategy SGPTLike trains a SharedGroupPrompt, and this model has '
            f'{"no prompt" if prompt is None else f"a {type(prompt).__name__}"}: --method '
            'configs/federated/methods/sgpt_like.py')
    return prompt


def _step_schedules(runner: 'Runner', iterations: int, epoch: int | None) -> None:
    """Bring the learning rates to where a training is behind so many iterations.

    Args:
        runner: With schedules at their start.
        iterations: That are left out.
        epoch: Iterations of an epoch; None: the loop counts none.
    """
    found = runner.param_schedulers or []
    found = [each for group in found.values() for each in group] if isinstance(found, dict) \
        else list(found)
    for schedule in found:
        if hasattr(schedule, 'monitor'):
            raise UserError(
                f'param_scheduler: {type(schedule).__name__} follows a metric, and a client of a '
                'federation does not validate; take one that follows iterations or epochs')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that no step of the optimizer came before
        for i in range(iterations):
            ends = epoch is not None and (i + 1) % epoch == 0
            for schedule in found:
                if not schedule.by_epoch:
                    schedule.step()
            for schedule in found:
                if schedule.by_epoch and ends:
                    schedule.step()


def add_proximal(model: nn.Module, mu: float) -> None:
    """Add FedProx' term to the losses of a model: mu / 2 norm(w - w0)^2 over what trains.

    (https://arxiv.org/abs/1812.06127, section 3.2.) w0 are the values that the parameters have now.

    Args:
        model: Its ``forward(mode='loss')`` returns losses by name; it gets ``loss_proximal``.
        mu: Above 0.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]

    def add(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        if kwargs.get('mode') == 'loss' and isinstance(output, dict):
            gap = sum((p - s).float().pow(2).sum() for p, s in zip(trained, start, strict=True))
            output = {**output, 'loss_proximal': mu / 2 * gap}
        return output

    model.register_forward_hook(add, with_kwargs=True)


def _classes(dataset: Any) -> list[str]:
    meta = getattr(dataset, 'metainfo', None) or {}
    return [str(name) for name in meta.get('classes') or ()]


def use_list(cfg: 'Config', file: str | Path) -> None:
    """Make a config train on the images of a list.

    Raises:
        UserError: If it has several data sets, or one that takes a part of its images.
    """
    parts = tree.leaf_datasets(cfg.get('train_dataloader'))
    if len(parts) != 1:
        raise UserError(f'train_dataloader: one data set was expected, found {len(parts)}')
    for _, node in tree.walk(cfg.train_dataloader.get('dataset'), ''):
        if tree.kind_of(node) in ('Subset', 'KFoldDataset'):
            raise UserError(
                f'train_dataloader.dataset: a {tree.kind_of(node)} would take a part of the images '
                'of each client, which has a list of its own; leave subset out')
    parts[0].pop('indices', None)  # which count in the whole set; lists are made of what they leave
    parts[0]['ann_file'] = str(Path(file).resolve())


def images_of(file: str | Path) -> int:
    """How many images a list names.

    Raises:
        UserError: If it is absent, or names none.
    """
    if not Path(file).is_file():
        raise UserError(f'{file}, the list of the images of a client, is not there')
    lines = Path(file).read_text(encoding='utf-8').splitlines()
    number = sum(bool(line.strip()) for line in lines)
    if not number:
        raise UserError(f'{file} lists no image; give the client some, or leave it out')
    return number


def number_of_images(dataset: Any) -> int:
    """Images of a data set; those that a wrapper repeats count once."""
    if hasattr(dataset, 'datasets'):
        return sum(map(number_of_images, dataset.datasets))
    inner = getattr(dataset, 'dataset', None)
    return len(dataset) if inner is None else min(len(dataset), number_of_images(inner))


def seed_of(seed: int, name: str) -> int:
    """The seed of a client, below 2**31, so that clients do not draw the same augmentations."""
    return seeding.mix('client', seed, name)[0] >> 33


def client_config(
    job: Job, name: str, folder: str | Path, file: str | Path | None = None,
    further: Sequence[str] = (),
) -> 'Config':  # fmt: skip
    """The config that a client trains with.

    Args:
        job: Of the federation.
        name: Of the client.
        folder: For its log.
        file: The list of its images; None: all of its config.
        further: Overrides of this client's own.
    """
    cfg = job.load(further)
    if file is not None:
        images_of(file)
        use_list(cfg, file)
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed_of(job.seed, name))
    cfg.work_dir = str(folder)
    cfg.launcher, cfg.load_from, cfg.resume = 'none', None, False
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks['checkpoint'] = None
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or []
                        if str(hook.get('type')).rpartition('.')[2] not in _OF_WHOLE_RUNS]
    return cfg


def train(
    job: Job, number: int, tensors: Mapping[str, Tensor], name: str, folder: str | Path,
    file: str | Path | None = None, further: Sequence[str] = (),
    wanted: moved.Kind | None = None, proximal_mu: float = 0.0,
    share: Sequence[float] = (),
) -> Trained:  # fmt: skip
    """Train a round of a client.

    Args:
        job: Of the federation.
        number: Of the round, from 1.
        tensors: What it begins with, all that moves, by name.
        name: Of the client.
        folder: For its log.
        file: The list of its images; None: all of its config.
        further: Overrides of this client's own.
        wanted: What it must be.
        proximal_mu: Weight of FedProx' term.
        share: Of each group, for :class:`Stages`; empty: the round has no stages.

    Raises:
        UserError: If it is something else, or the training fails.
    """
    cfg = client_config(job, name, folder, file, further)
    own = replace(job, options=(*job.options, *further))
    hook = Round(number, own, tensors, wanted, proximal_mu)
    with _forgotten(cfg, f'{name}_{number}'):
        runner = run_setup.start(cfg, 'train', None)
        runner.register_hook(hook, hook.priority)
        stages = Stages(hook, share) if share else None
        if stages:
            runner.register_hook(stages, stages.priority)
        model = params.unwrap(runner.train())
        if moved.rest_mark(model) != hook.rest:
            raise UserError(
                f'{", ".join(moved.rest(model)[:3])}: it changes in training and does not train by '
                'gradients, so it would not move; take another method')
        images = number_of_images(runner.train_dataloader.dataset)
    loss = sum(hook.losses) / max(1, len(hook.losses))
    return Trained(moved.take(model), hook.kind, images, loss, hook.seconds,
                   stages.counts if stages else ())


@contextlib.contextmanager
def _forgotten(cfg: 'Config', name: str) -> Any:
    """Give a run a name of its own, and free what mmengine keeps under it."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.visualization import Visualizer

    digest = hashlib.sha256(f'{name} {time.time_ns()}'.encode()).hexdigest()[:12]
    cfg.experiment_name = f'{name}_{digest}'
    try:
        yield
    finally:
        for kind in (MMLogger, MessageHub, Visualizer):
            for key in [key for key in kind._instance_dict if digest in key]:
                found = kind._instance_dict.pop(key)
                for handler in list(getattr(found, 'handlers', ())):
                    if isinstance(getattr(handler, 'baseFilename', None), str):
                        handler.close()


# --- the server's part -----------------------------------------------------------------------


class Global:
    """The model of the server.

    Args:
        job: Of the federation.
        classes: Names of its classes.

    Attributes:
        cfg: Its config.
        model: With its pretrained weights, its start drawn with the job's seed.
        kind: What all members must be.

    Raises:
        UserError: If something is frozen and there are no pretrained weights.
    """

    def __init__(self, job: Job, classes: Sequence[str]) -> None:
        from mmengine.runner import set_random_seed

        self.job = job
        self.cfg = job.load()
        building.import_packages(self.cfg)
        set_random_seed(job.seed)
        self.model = building.build_model(self.cfg)
        self.model.init_weights()
        for prefix, backbone in frozen_bases(self.model):
            if backbone.frozen_names and backbone.base is None:
                raise UserError(
                    f'model.{prefix}init_cfg names no pretrained weights, so every client would '
                    'have other frozen tensors, drawn at random; name some, or train all '
                    '(--method full)')
        self.kind = moved.kind(self.model, classes)

    def bytes(self) -> int:
        """Bytes of the whole model."""
        return deltas.size(self.model.state_dict())

    def write(
        self, tensors: Mapping[str, Tensor], file: Path, rounds: int,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint as a run does, which ``vpt-dense test`` and ``delta`` take.

        Args:
            tensors: What moves.
            file: ``.pth``; it is written whole or not at all.
            rounds: That were done.
            told: What happened in the last one, plain data.
        """
        moved.put(self.model, tensors)
        checkpoint = dict(
            state_dict=dict(self.model.state_dict()),
            meta=dict(cfg=self.cfg.pretty_text, seed=self.job.seed, rounds=rounds,
                      round=json.dumps(dict(told or {})),
                      dataset_meta=dict(classes=self.kind.classes)))
        deltas.reduce(self.model, checkpoint)
        safe_files.write(checkpoint, file)

    def read(self, file: Path) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
        """Read a checkpoint of :meth:`write`.

        Returns:
            What moves, how many rounds were done, and what happened in the last one.

        Raises:
            UserError: If it is of another model, or none of a federation.
        """
        checkpoint = deltas.read(str(file))
        state, meta = checkpoint['state_dict'], checkpoint['meta']
        if not {'rounds', 'round'} <= meta.keys():
            raise UserError(f'{file} is no model of a federation; name another folder, out')
        lacking = [name for name in self.kind.shapes if name not in state]
        if lacking:
            raise UserError(f'{file} lacks {lacking[0]}: it is of another model or method')
        return ({name: state[name] for name in self.kind.shapes}, meta['rounds'],
                json.loads(meta['round']))

    def test(self, file: Path, folder: Path) -> dict[str, float]:
        """Test a checkpoint on the test images of the config.

        Returns:
            The metrics, by name.
        """
        return test(self.job.load(), file, folder)


def test_on_list(cfg: 'Config', file: str | Path) -> int:
    """Make a config test on some of its training images, by the pipeline of its tests.

    Args:
        cfg: A whole config, in place.
        file: A list of them.

    Returns:
        How many they are.
    """
    sides = [tree.leaf_datasets(cfg.get(f'{split}_dataloader')) for split in ('train', 'test')]
    if [len(side) for side in sides] != [1, 1]:
        raise UserError('train_dataloader, test_dataloader: one data set each was expected')
    (train,), (test,) = sides
    for key in ('type', 'data_root', 'data_prefix', 'split'):
        if key in train:
            test[key] = train[key]
        else:
            test.pop(key, None)
    test.pop('indices', None)
    test['ann_file'] = str(Path(file).resolve())
    return images_of(file)


def test(
    cfg: 'Config', file: Path, folder: Path, classes: Sequence[str] = ()
) -> dict[str, float]:
    """Test a checkpoint.

    Args:
        cfg: A whole config.
        file: The checkpoint.
        folder: For the log.
        classes: That the images must have, in this order; empty: any.

    Returns:
        The metrics that are numbers, by name.

    Raises:
        UserError: If the images have other classes.
    """
    cfg.work_dir, cfg.load_from, cfg.resume = str(folder), str(file), False
    cfg.launcher = 'none'
    with _forgotten(cfg, 'test'):
        runner = run_setup.start(cfg, 'test', str(file))
        found = _classes(runner.test_loop.dataloader.dataset)
        if classes and found != list(classes):
            raise UserError(f'classes {found} are not those of the federation, {list(classes)}')
        metrics = runner.test()
    return {name: float(value) for name, value in metrics.items()
            if is_number(value, finite=False) and not name.endswith('time')}


def headline(cfg: 'Config') -> str:
    """The name of the metric that a config's task is judged by."""
    return tasks.need(cfg.model, 'a federation').metric

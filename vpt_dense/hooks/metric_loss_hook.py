"""Pulls each prompt to the classes that are its own: DA-VPT."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_number
from vpt_dense.backbones.beside import quietly
from vpt_dense.errors import UserError
from vpt_dense.params import unwrap
from vpt_dense.prompts import TokenPrompt
from vpt_dense.registry import HOOKS

#: What checkpoints call what this hook has to know to go on.
_KEY = 'metric_loss'


@HOOKS.register_module()
class MetricLossHook(Hook):
    """DA-VPT (Ren et al., CVPR 2025, https://arxiv.org/abs/2505.23694): a metric loss on prompts.

    The prompts of the last block are the proxies of a Proxy-Anchor loss (Kim et al., CVPR 2020,
    https://arxiv.org/abs/2003.13911, equation 4): with q_p the query of prompt p, X samples of
    features and s the cosine,

    L(X) = mean over p with positives of log(1 + sum over its x of exp(-scale (s(x, q_p) - margin)))
    + mean over all p of log(1 + sum over other x of exp(scale (s(x, q_p) + margin)))

    The loss gets weight L(patches) + cls_weight L(class tokens), both as they enter the last block.
    A sample of patches is the mean over those of one class in one image: of classification all
    patches of the image, of segmentation those whose middle has the label. A class token is of all
    classes of its image.

    Which prompt a class belongs to: its own if there are as many prompts as classes; else k-means
    of the means of the classes' samples, with as many centres as prompts. It is made anew after
    every ``interval`` iterations from the samples of these, from the centres before; until the
    first time there is no such loss.

    Args:
        weight: Of the patches.
        cls_weight: Of the class tokens; 0 for backbones without one.
        scale: See above.
        margin: See above.
        interval: None: an epoch.
        seed: Of the k-means.

    Raises:
        ValueError: If an argument is out of its range.
        UserError: Before training, if the prompt, the backbone or the model does not fit; at a
            batch whose labels are mixed or several.
    """

    needs = frozenset({'tokens', 'one width', 'parts'})  # of a backbone, as prompts say it

    def __init__(
        self,
        weight: float = 0.02,
        cls_weight: float = 0.02,
        scale: float = 32.0,
        margin: float = 0.1,
        interval: int | None = None,
        seed: int = 0,
    ) -> None:
        for key, value in dict(weight=weight, cls_weight=cls_weight, margin=margin).items():
            if check_number(value, f'MetricLossHook.{key}') < 0:
                raise ValueError(f'MetricLossHook.{key} must not be negative, found {value}')
        self.weight, self.cls_weight, self.margin = weight, cls_weight, margin
        self.scale = check_number(scale, 'MetricLossHook.scale', positive=True)
        if interval is not None:
            check_count(interval, 'MetricLossHook.interval')
        self.interval = interval
        self.seed = check_count(seed, 'MetricLossHook.seed', 0)
        self._handles: list[Any] = []
        self._seen: tuple | None = None
        self._restored: dict[str, Tensor] = {}

    # --- a run -------------------------------------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Watch the last prompts, and add to the model's losses."""
        model = unwrap(runner.model)
        prompt = self._check(model)
        self._block = model.backbone.block_list()[-1]
        head = model.head if hasattr(model, 'head') else model.decode_head
        self._ignored = getattr(head, 'ignore_index', None)
        number, device = head.num_classes, prompt.tokens.device
        dims = prompt.tokens.shape[-1]
        same = number <= prompt.num_tokens
        start = torch.arange(number) if same else torch.full((number,), -1)
        self._state = dict(
            owners=start.to(device), sums=torch.zeros(number, dims, device=device),
            counts=torch.zeros(number, device=device), centres=torch.zeros(0, dims, device=device))
        self._groups = not same
        for name, value in self._restored.items():
            if name != 'centres' and value.shape != self._state[name].shape:
                raise UserError(
                    f'MetricLossHook: the checkpoint is of {len(self._restored["owners"])} '
                    f'classes, this run has {number}')
            self._state[name] = value.to(device)
        self._every = self.interval or max(len(runner.train_dataloader), 1)

        def watch(module: nn.Module, args: tuple, out: Tensor | None) -> None:
            if args[1] == len(model.backbone.block_list()) - 1 and model.training:
                self._seen = args[0], args[3], out

        def add(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
            mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
            if mode != 'loss':
                return out
            samples = kwargs.get('data_samples', args[1] if len(args) > 1 else None)
            return {**out, **self._terms(samples)}

        self._handles = [
            prompt.register_forward_hook(watch),
            model.register_forward_hook(add, with_kwargs=True)]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Deal classes to prompts anew when it is time."""
        if self._groups and (runner.iter + 1) % self._every == 0:
            self._deal(unwrap(runner.model).backbone.prompt.num_tokens)

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what a resumed run goes on with."""
        if self._handles:
            checkpoint[_KEY] = {name: value.cpu() for name, value in self._state.items()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Find it again, where a run is resumed."""
        if runner._resume:
            self._restored = checkpoint.get(_KEY, {})

    # --- its parts ---------------------------------------------------------------------------

    def _check(self, model: nn.Module) -> TokenPrompt:
        """Return the prompt, or say what does not fit."""
        backbone = getattr(model, 'backbone', None)
        prompt = getattr(backbone, 'prompt', None)
        if not isinstance(prompt, TokenPrompt) or not self.needs <= backbone.offers:
            found = 'None' if prompt is None else type(prompt).__name__
            raise UserError(
                'MetricLossHook is for a TokenPrompt of a vision transformer; model.backbone is '
                f'{type(backbone).__name__}, its prompt {found}')
        blocks = backbone.block_list()
        if not prompt._inserts(len(blocks) - 1):
            raise UserError(
                'MetricLossHook takes the prompts of the last block, and there are none; set '
                'model.backbone.prompt.deep=True, without layer_range')
        if blocks[-1].head_dims * blocks[-1].num_heads != blocks[-1].embed_dims:
            raise UserError(
                f'MetricLossHook compares queries with tokens; in {type(backbone).__name__} they '
                'differ in width')
        if self.cls_weight and not backbone.num_first:
            raise UserError(
                'MetricLossHook.cls_weight needs a class token, the backbone has none; set it to 0')
        segments = getattr(getattr(model, 'decode_head', None), 'num_classes', None) is not None
        if not hasattr(model, 'head') and not segments:
            raise UserError(
                f'MetricLossHook needs class labels of images or pixels; {type(model).__name__} '
                'has none')
        return prompt

    def _terms(self, samples: list) -> dict[str, Tensor]:
        """The two terms of the batch that has just passed, and its share of the means."""
        x, layout, tokens = self._seen
        self._seen = None
        x = _wide(x)
        patches = layout.patches(x)  # (B, N, C)
        number = len(self._state['owners'])
        labels = torch.stack([self._labels(sample, layout.grid) for sample in samples])  # (B, N)
        labels = labels.to(patches.device)
        of_class = F.one_hot(labels + 1, number + 1)[..., 1:].to(patches.dtype)  # (B, N, K)
        counts = of_class.sum(1)  # (B, K)
        present = counts > 0
        means = of_class.transpose(1, 2) @ patches / counts.clamp_min(1)[..., None]  # (B, K, C)
        images, classes = present.nonzero(as_tuple=True)
        self._add(means.detach()[images, classes], classes)
        owners = self._state['owners']
        proxies = self._queries(tokens)  # (P, C)
        members = F.one_hot(owners + 1, len(proxies) + 1)[:, 1:].bool()  # (K, P)
        known = owners[classes] >= 0
        found = means[images[known], classes[known]]
        terms = dict(loss_metric=self.weight * self._loss(
            found, members[classes[known]], proxies))
        if self.cls_weight:
            positive = (present.float() @ members.float()).bool()  # (B, P)
            some = positive.any(1)
            terms['loss_metric_cls'] = self.cls_weight * self._loss(
                x[some, 0], positive[some], proxies)
        return terms

    def _labels(self, sample: Any, grid: tuple[int, int]) -> Tensor:
        """Of each patch of an image its class, -1 where that is none, (N,)."""
        if 'gt_score' in sample:
            raise UserError(
                'MetricLossHook needs one label for each image, and Mixup or CutMix mixes them; '
                'leave batch_augments out')
        rows, columns = grid
        if 'gt_sem_seg' not in sample:
            label = sample.gt_label.flatten()
            if len(label) != 1:
                raise UserError(f'MetricLossHook needs one label for each image, found {label}')
            return label.expand(rows * columns)
        labels = sample.gt_sem_seg.data[0]
        height, width = labels.shape
        down = ((torch.arange(rows) + 0.5) * height / rows).long().to(labels.device)
        right = ((torch.arange(columns) + 0.5) * width / columns).long().to(labels.device)
        labels = labels[down][:, right].flatten().long()
        outside = (labels < 0) | (labels >= len(self._state['owners']))
        if self._ignored is not None:
            outside |= labels == self._ignored
        return labels.masked_fill(outside, -1)

    def _queries(self, tokens: Tensor) -> Tensor:
        """Queries of the prompts in the last block, (P, C); tokens: (B or 1, P, C)."""
        block = self._block
        mean = _wide(tokens).mean(0, keepdim=True)
        if block.prenorm:  # a frozen one may be held in half precision
            mean = quietly(block.norm1, mean.to(next(block.norm1.parameters()).dtype))
        queries = block.queries(mean.to(block.weights('q')[0].dtype))  # (1, heads, P, d)
        return _wide(queries.transpose(1, 2).flatten(2)[0])

    def _loss(self, samples: Tensor, positive: Tensor, proxies: Tensor) -> Tensor:
        """Proxy-Anchor loss of samples (m, C), of which prompts positive (m, P) they are."""
        cosines = F.normalize(samples, dim=-1) @ F.normalize(proxies, dim=-1).T  # (m, P)
        zero = cosines.new_zeros(1, len(proxies))

        def log_sum(exponents: Tensor, where: Tensor) -> Tensor:
            return torch.cat((exponents.masked_fill(~where, -torch.inf), zero)).logsumexp(0)

        pulled = log_sum(-self.scale * (cosines - self.margin), positive)
        pushed = log_sum(self.scale * (cosines + self.margin), ~positive)
        return pulled.sum() / positive.any(0).sum().clamp_min(1) + pushed.mean()

    def _add(self, samples: Tensor, classes: Tensor) -> None:
        """Add samples of all processes to the sums of their classes."""
        if not self._groups:
            return
        sums = torch.zeros_like(self._state['sums'])
        sums = sums.index_add(0, classes, samples.to(sums))
        counts = torch.bincount(classes, minlength=len(sums)).to(sums)
        dist.all_reduce(sums)
        dist.all_reduce(counts)
        self._state['sums'] += sums
        self._state['counts'] += counts

    @torch.no_grad()
    def _deal(self, number: int) -> None:
        """Deal the classes that were seen to the prompts, and forget what it was made from."""
        from sklearn.cluster import KMeans  # takes a second, and every run imports this module

        state = self._state
        seen = (state['counts'] > 0).nonzero()[:, 0]
        if not len(seen):
            return
        means = F.normalize(state['sums'][seen] / state['counts'][seen, None], dim=-1)
        number = min(number, len(seen))
        centres = means.new_zeros(number, means.shape[1])
        owners = torch.full_like(state['owners'], -1)
        if dist.get_rank() == 0:
            before = state['centres']
            start = before.cpu().numpy() if len(before) == number else 'k-means++'
            found = KMeans(number, init=start, n_init=1, random_state=self.seed).fit(
                means.cpu().numpy())
            centres.copy_(torch.from_numpy(found.cluster_centers_))
            owners[seen] = torch.from_numpy(found.labels_).to(owners)
        dist.broadcast(centres)
        dist.broadcast(owners)
        state.update(centres=centres, owners=owners)
        state['sums'].zero_()
        state['counts'].zero_()


def _wide(tensor: Tensor) -> Tensor:
    """In single precision at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

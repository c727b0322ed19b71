"""Prompts that change where earlier classes do not look: NSP2."""

import math
from pathlib import Path

import torch
from mmengine import dist
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from vpt_dense import safe_files
from vpt_dense.argument_checks import check_number
from vpt_dense.errors import UserError
from vpt_dense.params import unwrap
from vpt_dense.prompts import TokenPrompt
from vpt_dense.registry import HOOKS
from vpt_dense.seeding import Position

#: What a step leaves in its work dir.
FILE = 'null_space.safetensors'


def projection(covariance: Tensor, eta: float) -> Tensor:
    """The projection that keeps updates out of what a covariance holds.

    With its singular values in falling order, those from the largest second difference on count as
    zero, and U are their R vectors: ``eta U U^T / norm(U U^T) + (1 - eta) I`` (NSP2,
    https://arxiv.org/abs/2406.05658, section 4 and appendix). Nothing is smoothed before, as the
    authors' code does with many values.

    Args:
        covariance: (D, D), symmetric.
        eta: 1: strictly; 0: updates stay as they are.

    Returns:
        (D, D).
    """
    size = len(covariance)
    identity = torch.eye(size, dtype=covariance.dtype)
    vectors, values, _ = torch.linalg.svd(covariance)
    if size < 3:
        rank = int(torch.linalg.matrix_rank(covariance))
    else:
        second = values[:-2] - 2 * values[1:-1] + values[2:]
        rank = int(second.argmax()) + 2
    null = vectors[:, rank:]
    strict = null @ null.T
    norm = torch.linalg.matrix_norm(strict)
    return eta * (strict / norm if norm > 0 else strict) + (1 - eta) * identity


def covariances(block: nn.Module, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """What a block asks of its prompts, and what its tokens take from them.

    Args:
        block: With ``ln1`` and ``attn.qkv``, as mmpretrain's.
        x: Tokens that enter it, (B, N, C).
        prompts: (P, C).

    Returns:
        J1^T J1 (C, C) and J2^T J2 (P, P), means over the B images. Rows of J1 are those queries
        times the weights of keys and of the norm, of all heads and tokens; J2 the attention to the
        prompts, each divided by the spread that the norm divides it by.
    """
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    heads, width = block.attn.num_heads, x.shape[-1]
    size = width // heads

    def split(tokens: Tensor, part: int) -> Tensor:  # (..., heads, size)
        rows = slice(part * width, (part + 1) * width)
        out = tokens @ weight[rows].T + (0 if bias is None else bias[rows])
        return out.unflatten(-1, (heads, size))

    normed, own = block.ln1(x), block.ln1(prompts)
    query, keys = split(normed, 0), split(normed, 1)  # (B, N, heads, size)
    asked = split(own, 1)  # (P, heads, size)
    scale = 1 / math.sqrt(size)
    scores = torch.cat([
        torch.einsum('bnhs,phs->bhnp', query, asked),
        torch.einsum('bnhs,bmhs->bhnm', query, keys)], dim=-1) * scale
    shares = scores.softmax(-1)[..., : len(prompts)]  # (B, heads, N, P)
    spread = torch.sqrt(prompts.var(-1, unbiased=False) + block.ln1.eps)  # (P,)
    taken = (shares / spread).flatten(0, 2)
    key_weight = (weight[width : 2 * width] * block.ln1.weight).unflatten(0, (heads, size))
    queries = torch.einsum('bnhs,bnht->hst', query, query)
    first = torch.einsum('hsc,hst,htd->cd', key_weight, queries, key_weight)
    return first / len(x), taken.T @ taken / len(x)


@HOOKS.register_module()
class NullSpaceHook(Hook):
    """NSP2 (Lu et al., NeurIPS 2024, https://arxiv.org/abs/2406.05658) for VPT-deep on a ViT.

    After each step of the optimizer the change of each block's prompts becomes B2 change B1, where
    B1 and B2 (:func:`projection`) leave out the directions in which the images of earlier steps of
    the stream would notice; and the loss gets the difference of mean and spread of the prompts from
    those of the step before. In the end the run's own images are added
    (:func:`covariances`), and all is written to ``null_space.safetensors`` in the work dir, for the
    next step. Two things are ours: the weights of the block's norm are part of B1, and its spread
    of B2, so that what is strictly projected changes nothing to first order.

    Args:
        null_space: The file of the step before; None: this is the first.
        eta: See :func:`projection`.
        invariance: Weight of the difference of mean and spread.

    Raises:
        UserError: Before training, if the model has no VPT-deep prompts as keys and values on a ViT
            with one product for queries, keys and values, or the file does not fit.
    """

    priority = 'VERY_HIGH'  # before a checkpoint is written, and before the run counts as ended

    def __init__(
        self, null_space: str | None = None, eta: float = 0.97, invariance: float = 1.0
    ) -> None:
        if not 0 <= check_number(eta, 'continual.eta') <= 1:
            raise UserError(f'continual.eta must be between 0 and 1, found {eta}')
        if check_number(invariance, 'continual.invariance') < 0:
            raise UserError(f'continual.invariance must not be negative, found {invariance}')
        self.null_space, self.eta, self.invariance = null_space, eta, invariance
        self._before = self._handle = None

    def before_train(self, runner: Runner) -> None:
        """Read what earlier steps have left."""
        self._backbone = backbone = unwrap(runner.model).backbone
        prompt = backbone.prompt
        blocks = [block for _, block in backbone.named_blocks()]
        fits = type(prompt) is TokenPrompt and prompt.deep and not prompt.shared and isinstance(
            prompt.project, nn.Identity) and len(prompt.tokens) == len(blocks)
        if not fits or len(backbone.keys_values_layers) < len(blocks) or not all(
                hasattr(block, 'ln1') and hasattr(getattr(block, 'attn', None), 'qkv')
                for block in blocks):
            raise UserError(
                'continual.strategy=nsp2 needs VPT-deep (--method deep) in all blocks of a '
                "vpt_dense.VisionTransformer, without projection, and prompts_as='keys_values'")
        self._prompt, self._left = prompt.tokens, None
        other = next((name for name, parameter in unwrap(runner.model).named_parameters()
                      if parameter.requires_grad and parameter is not self._prompt
                      and not name.startswith('head.')), None)
        if other is not None:
            raise UserError(
                'continual.strategy=nsp2 keeps changes of prompts from earlier images, but '
                f'{other} trains too; take a method that trains prompts alone (--method deep)')
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise UserError(
                'continual.strategy=nsp2 looks at the prompts of the last iteration, but EMAHook '
                'keeps means of all; leave it out of custom_hooks')
        if self.null_space is None:
            return
        self._left = left = _read(self.null_space)
        for key, shape in _shapes(self._prompt).items():
            if key not in left or left[key].shape != shape:
                raise UserError(
                    f'continual.null_space: {self.null_space} is of another backbone or number of '
                    f'prompts ({key} {tuple(left[key].shape) if key in left else "is missing"}, '
                    f'here {tuple(shape)})')
        where = dict(device=self._prompt.device, dtype=self._prompt.dtype)
        self._by_width, self._by_number = (
            torch.stack([projection(each, self.eta) for each in left[key]]).to(**where)
            for key in ('width', 'number'))
        self._old = left['prompt'].to(**where)
        if self.invariance:
            self._handle = self._prompt.register_hook(self._add_invariance)

    def _add_invariance(self, gradient: Tensor) -> Tensor:
        """Add the gradient of the sum of |mean - old mean| + |spread - old spread|."""
        with torch.enable_grad():
            tokens = self._prompt.detach().requires_grad_()
            difference = sum(
                (one - other).abs().sum() for one, other in (
                    (tokens.mean(-1), self._old.mean(-1)),
                    (tokens.std(-1, unbiased=False), self._old.std(-1, unbiased=False))))
            (own,) = torch.autograd.grad(difference, tokens)
        return gradient + self._scale() * self.invariance * own

    def _scale(self) -> float:
        """What mixed precision and accumulation multiply gradients by."""
        wrapper = self._wrapper
        scaler = getattr(wrapper, 'loss_scaler', None)
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        return float(wrapper.scale_loss(torch.tensor(scale)))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict = None) -> None:
        """Keep the prompts as they are."""
        if self._left is not None:
            self._wrapper = runner.optim_wrapper
            self._before = self._prompt.detach().clone()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict = None, outputs: dict = None
    ) -> None:
        """Project their change."""
        if self._left is None:
            return
        with torch.no_grad():
            change = self._prompt - self._before
            self._prompt.copy_(self._before + self._by_number @ change @ self._by_width)

    def after_train(self, runner: Runner) -> None:
        """Look at the run's images, and write what is known now."""
        if self._handle is not None:
            self._handle.remove()
        loader = runner.train_dataloader
        seed = runner.seed or 0
        shares = [  # what augmentation draws follows from them, wherever the run has been
            Position(i, (seed, 0, 0, i))
            for i in range(dist.get_rank(), len(loader.dataset), dist.get_world_size())]
        once = torch.utils.data.DataLoader(  # the run's own may never end
            loader.dataset, loader.batch_size, sampler=shares, collate_fn=loader.collate_fn)
        found = _look(self._backbone, unwrap(runner.model), once)
        if self._left is not None:
            for key in ('width', 'number'):
                found[key] += self._left[key]
        if dist.is_main_process():
            safe_files.write_tensors(found, Path(runner.work_dir, FILE), {})
        dist.barrier()


def _shapes(prompt: Tensor) -> dict[str, torch.Size]:
    layers, number, width = prompt.shape
    return dict(width=torch.Size((layers, width, width)),
                number=torch.Size((layers, number, number)), prompt=prompt.shape)


def _read(path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f'continual.null_space: {path} cannot be read: {error}') from error


@torch.no_grad()
def _look(backbone: nn.Module, model: nn.Module, loader: torch.utils.data.DataLoader) -> dict:
    """The covariances of all blocks, means over the images of a loader, in float64."""
    layers, number, width = backbone.prompt.tokens.shape
    found = dict(width=torch.zeros(layers, width, width, dtype=torch.float64),
                 number=torch.zeros(layers, number, number, dtype=torch.float64))
    images = 0

    def look(layer: int, block: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs['x']
        first, second = covariances(block, x, backbone.prompt.tokens[layer])
        found['width'][layer] += len(x) * first.double().cpu()
        found['number'][layer] += len(x) * second.double().cpu()

    handles = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs, layer=i: look(layer, module, args, kwargs),
            with_kwargs=True)
        for i, (_, block) in enumerate(backbone.named_blocks())]
    training = model.training
    model.eval()
    try:
        for batch in loader:
            data = model.data_preprocessor(batch, training=False)
            images += len(data['inputs'])
            backbone(data['inputs'])
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for key in ('width', 'number'):
        whole = found[key].to(backbone.prompt.tokens.device)
        dist.all_reduce(whole)
        found[key] = whole.cpu()
    count = torch.tensor(float(images), device=backbone.prompt.tokens.device)
    dist.all_reduce(count)
    for key in ('width', 'number'):
        found[key] /= count.item()
    return {**found, 'prompt': backbone.prompt.tokens.detach().clone().cpu()}

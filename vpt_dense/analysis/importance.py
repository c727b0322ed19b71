"""Which prompts, and which pieces of them, a trained model needs: E2VPT's pruning."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vpt_dense.errors import UserError
from vpt_dense.prompts import E2VPTPrompt, StagePrompts
from vpt_dense.prompts.e2vpt_prompt import PIECES


class Importance(NamedTuple):
    """Scores of the prompts of a model.

    Attributes:
        tokens: Of each token of each layer, (L, P).
        pieces: Of each piece of it, (L, P, 16).
    """

    tokens: Tensor
    pieces: Tensor


def importance(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Importance:
    """Score prompts by how much the loss would move with masks of them.

    Han et al., ICCV 2023 (https://arxiv.org/abs/2307.13770), section 3.3: with a factor rho = 1 in
    front of each token, its score is the mean over images of the size of d loss / d rho; likewise
    with a factor for each piece of a token. The derivative is the sum of p * d loss / d p over the
    channels p of the token or piece, so that no mask is needed.

    Args:
        model: With ``backbone.prompt``, trained, in eval mode.
        batches: What the model's data preprocessor makes of images, best one by one.

    Returns:
        The scores, float64 on the CPU.

    Raises:
        UserError: If its prompts are others than those of ``E2VPTPrompt`` as it is, or there are no
            images.
    """
    parts = [part.tokens.requires_grad_() for part in _prompts(model)]
    tokens, pieces = ([torch.zeros(()) for _ in parts] for _ in range(2))
    number = 0
    for batch in batches:
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        for i, grad in enumerate(torch.autograd.grad(loss, parts)):
            moves = (grad.double() * parts[i].detach().double()).cpu()  # (layers, P, C)
            moves = moves.unflatten(-1, (PIECES, -1)).sum(-1)
            tokens[i] = tokens[i] + moves.sum(-1).abs()
            pieces[i] = pieces[i] + moves.abs()
        number += 1
    if not number:
        raise UserError('prompts cannot be judged without images')
    return Importance(torch.cat(tokens) / number, torch.cat(pieces) / number)


def _prompts(model: nn.Module) -> list[E2VPTPrompt]:
    """The prompts of the stages of a model, or its prompt."""
    prompt = getattr(model.backbone, 'prompt', None)
    parts = list(prompt.stages.values()) if isinstance(prompt, StagePrompts) else [prompt]
    for part in parts:
        if not isinstance(part, E2VPTPrompt):
            raise UserError(
                f'importance is that of the prompts of --method e2vpt, this model has '
                f'{"none" if part is None else type(part).__name__}')
        if part.kept is not None or part.shared or not isinstance(part.project, nn.Identity):
            raise UserError(
                'importance is that of prompts as learnt; leave model.backbone.prompt.kept, shared '
                'and project_dims out')
        if part.tokens.shape[-1] % PIECES:
            raise UserError(
                f'{PIECES} pieces of a prompt: they do not divide the width '
                f'{part.tokens.shape[-1]} of the backbone')
    return parts


def choose(found: Importance, tokens: float, pieces: float) -> list[list[int]]:
    """What stays: the highest scores of each layer.

    Args:
        found: The scores.
        tokens: Share of the tokens of a layer that stay, rounded, but at least one.
        pieces: Share of the pieces of these tokens that stay, likewise, over all of a layer's.

    Returns:
        ``kept`` of :class:`vpt_dense.prompts.E2VPTPrompt`.
    """
    kept = []
    for of_tokens, of_pieces in zip(*found, strict=True):
        number = max(1, round(tokens * len(of_tokens)))
        stay = of_tokens.topk(number).indices.sort().values
        number = max(1, round(pieces * PIECES * len(stay)))
        best = of_pieces[stay].flatten().topk(number).indices.tolist()
        row = [0] * len(of_tokens)
        for place in best:
            row[int(stay[place // PIECES])] |= 1 << place % PIECES
        kept.append(row)
    return kept

"""Prompt tokens of which a share is the Fourier transform of what is learnt: VFPT."""

import math

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_number
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site, without_autocast
from vpt_dense.prompts.token_prompt import TokenPrompt


@register
class FourierPrompt(TokenPrompt):
    """Visual Fourier prompt tuning, VFPT (Zeng et al., NeurIPS 2024).

    https://arxiv.org/abs/2411.01327, section 3.2: VPT-deep whose first m = alpha P tokens p of a
    layer (m, C) enter as

        Re F[u, v] = sum over n, k of p[n, k] cos(2 pi (u n / m + v k / C)),

    the real part of the Fourier transform over the channels and then over these m tokens, without
    a factor. The others enter as they are learnt. It is a fixed linear map: no parameter more, and
    nothing depends on the image, so that keys and values can be folded. The cosine is even: p[n, k]
    and p[-n, -k] act through their sum alone, and tokens u and m - u are mirrored.

    Args:
        num_tokens: Number P of tokens of a layer, at least 1.
        fourier_share: alpha, 0 (VPT-deep) to 1; alpha P is rounded. The paper searches it for each
            data set.
        site: Filled in by the backbone.
        **kwargs: As in :class:`vpt_dense.prompts.TokenPrompt`, but for ``deep``. With
            ``project_dims`` the projected tokens are transformed; ``dropout`` comes behind.

    Raises:
        ValueError: If an argument is out of its range, or the share is of less than half a token;
            the message names it.
    """

    #: Arguments of the parent that are settled here.
    settled = ('deep',)

    def __init__(
        self, site: Site, num_tokens: int, fourier_share: float = 0.5, **kwargs
    ) -> None:
        super().__init__(site, num_tokens, deep=True, **kwargs)
        if not 0 <= check_number(fourier_share, 'prompt.fourier_share') <= 1:
            raise ValueError(
                f'prompt.fourier_share must be a number from 0 to 1, found {fourier_share!r}')
        number = round(fourier_share * num_tokens)
        if fourier_share and not number:
            raise ValueError(
                f'prompt.fourier_share={fourier_share!r} of prompt.num_tokens={num_tokens} is no '
                'token; raise one of them, or set fourier_share=0 for VPT-deep')
        self.project = nn.Sequential(self.project, Fourier(number))


class Fourier(nn.Module):
    """Transforms the first ``number`` of P tokens, (S, P, C), of each of S layers."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (S, P, C) to (S, P, C)."""
        if not self.number:
            return tokens
        own = tokens[:, : self.number]
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        # Graphs of ONNX have no complex numbers, and compiled ones are slow with them.
        by_products = torch.jit.is_tracing() or torch.compiler.is_compiling()
        found = real_transform(own) if by_products else torch.fft.fft2(own).real
        return torch.cat((found.to(tokens.dtype), tokens[:, self.number :]), dim=1)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'number={self.number}'


def real_transform(x: Tensor) -> Tensor:
    """The real part of the Fourier transform over the last two axes, without complex numbers.

    cos(a + b) = cos a cos b - sin a sin b: two products with a matrix for each axis.

    Args:
        x: Real, (..., m, C).

    Returns:
        The same shape.
    """
    (rows_cos, rows_sin), (cos, sin) = (_waves(n, x) for n in x.shape[-2:])
    with without_autocast(x):
        return rows_cos @ (x @ cos) - rows_sin @ (x @ sin)


def _waves(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi i k / n, both (n, n)."""
    places = torch.arange(int(n), device=like.device)
    turns = torch.outer(places, places) % int(n)  # whole numbers: angles are exact
    angles = turns.to(like.dtype) * (2 * math.pi / int(n))
    return angles.cos(), angles.sin()

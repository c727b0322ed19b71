"""Context words that are learnt, for the text tower of CLIP: CoOp, CoCoOp, MaPLe's texts."""

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_choice, check_count, check_flag
from vpt_dense.errors import UserError
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site
from vpt_dense.prompts.token_prompt import TokenPrompt

_POSITIONS = ('end', 'middle', 'front')


@register
class ContextPrompt(TokenPrompt):
    """CoOp: learnt vectors in place of the words around the name of a class.

    K. Zhou et al., IJCV 2022, https://arxiv.org/abs/2109.01134, section 3.2. With a ``depth``
    above 1 fresh vectors take the place of what comes out of each block but the last of them, the
    text side of MaPLe (M. U. Khattak et al., CVPR 2023, https://arxiv.org/abs/2210.03117, section
    3.2.1).

    Args:
        num_tokens: Number of context vectors P.
        words: What they start as, for instance 'a photo of a': the first P of its tokens, of the
            first block alone. Empty: they all start from N(0, 0.02^2).
        depth: Blocks that fresh vectors enter, from the first on.
        per_class: Vectors of its own for each class (with a depth of 1).
        position: Where the name of the class stands: 'end', [start V name . end]; 'middle', half of
            V, the name, the other half and the dot; 'front', the name, V and the dot. The text must
            end with a dot for the latter two.
        num_classes: Filled in by the head.
        site: Filled in by the text tower.
        dropout: As in :class:`TokenPrompt`.
        init_cfg: As there.

    Raises:
        ValueError: If an argument is out of its range, or two exclude each other.
    """

    needs = frozenset({'tokens', 'texts'})
    fills = frozenset({'num_classes'})

    def __init__(
        self,
        site: Site,
        num_tokens: int = 16,
        words: str = '',
        depth: int = 1,
        per_class: bool = False,
        position: str = 'end',
        num_classes: int | None = None,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        check_count(depth, 'prompt.depth')
        check_flag(per_class, 'prompt.per_class')
        check_choice(position, 'prompt.position', _POSITIONS)
        if depth > site.num_layers:
            raise ValueError(
                f'prompt.depth is {depth}, but the text tower has {site.num_layers} blocks')
        for key, given in dict(per_class=per_class, position=position != 'end').items():
            if given and depth > 1:
                raise ValueError(f'prompt.{key} is for prompt.depth=1, found {depth}')
        if not isinstance(words, str):
            raise ValueError(f'prompt.words must be a text, found {words!r}')
        super().__init__(
            site, num_tokens, deep=depth > 1, layer_range=(0, depth if depth > 1 else None),
            dropout=dropout, init_cfg=init_cfg)
        self.words, self.position, self.per_class = words, position, per_class
        if per_class:
            check_count(num_classes, 'prompt.num_classes')
            self.tokens = nn.Parameter(self.tokens.new_empty(num_classes, num_tokens, site.dims))
        nn.init.normal_(self.tokens, std=0.02)

    def start_from(self, backbone: nn.Module) -> None:
        """See ``Part.start_from``: take the embeddings of the words.

        Raises:
            UserError: If they are fewer tokens than there are vectors.
        """
        if not self.words:
            return
        ids, ends = backbone.tokenizer(
            [self.words], backbone.context_length, len(backbone.token_embedding.weight))
        found = int(ends[0]) - 1
        if found < self.num_tokens:
            raise UserError(
                f'prompt.words={self.words!r} are {found} tokens, prompt.num_tokens is '
                f'{self.num_tokens}; take fewer vectors or more words')
        with torch.no_grad():
            weight = backbone.token_embedding.weight
            start = weight[ids[0, 1 : 1 + self.num_tokens].to(weight.device)]
            self.tokens[:1 if not self.per_class else None] = start

    def prepare(self, embed: object = None) -> tuple[Tensor, ...]:
        """All sets of vectors, each (1, P, C); those of the classes are one set (classes, P, C)."""
        return (self.tokens,) if self.per_class else super().prepare()

    def forward(self, x: Tensor, layer: int, prepared: object = None, layout=None) -> Tensor | None:
        """See :meth:`Prompt.forward`."""
        if self.per_class and layer == 0 and len(x) != len(self.tokens):
            raise ValueError(
                f'prompt.per_class: vectors of {len(self.tokens)} classes, but {len(x)} texts')
        if self.per_class and prepared is None:
            prepared = self.prepare()
        return super().forward(x, layer, prepared, layout)

    def order(self, length: int, ends: Tensor) -> Tensor | None:
        """See :meth:`Prompt.order`."""
        if self.position == 'end':
            return None
        number, places = self.num_tokens, torch.arange(length, device=ends.device)
        before = 0 if self.position == 'front' else number // 2
        names = (ends - 2)[:, None]  # tokens of the name: without start, dot and end
        places = places.expand(len(ends), -1)
        name = places - 1 - before  # the how manieth token of the name stands there
        in_name = (name >= 0) & (name < names)
        late = (name >= names) & (name < names + number - before)
        source = torch.where(in_name, 1 + number + name, places)
        return torch.where(late, 1 + before + name - names, source)


@register
class ConditionalContext(ContextPrompt):
    """CoCoOp: context vectors to which what a small network makes of the image is added.

    K. Zhou et al., CVPR 2022, https://arxiv.org/abs/2203.05557, section 3.2: v_m(x) = v_m + pi(x),
    pi a linear layer to a sixteenth of the width, ReLU, and a linear layer to the width of words.
    The texts of all classes are computed for every image.

    Args:
        num_tokens: As in :class:`ContextPrompt`.
        words: As there.
        reduction: What the width of the image's embedding is divided by.
        image_dims: That width; filled in by the head.
        site: As there.
        init_cfg: As there.
    """

    fills = frozenset({'image_dims'})
    reads_image = True

    def __init__(
        self,
        site: Site,
        num_tokens: int = 4,
        words: str = 'a photo of a',
        reduction: int = 16,
        image_dims: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        check_count(reduction, 'prompt.reduction')
        check_count(image_dims, 'prompt.image_dims')
        super().__init__(site, num_tokens, words, init_cfg=init_cfg)
        hidden = max(image_dims // reduction, 1)
        self.meta = nn.Sequential(
            nn.Linear(image_dims, hidden), nn.ReLU(), nn.Linear(hidden, site.dims))

    def prepare_for(self, image: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Prompt.prepare_for`."""
        return tuple(tokens + self.meta(image)[..., None, :] for tokens in super().prepare())

    def prepare(self, embed: object = None) -> tuple[Tensor, ...]:
        """Refuse to do without an image.

        Raises:
            TypeError: Always.
        """
        raise TypeError('ConditionalContext makes its vectors for an image')

"""The base of all backbones of this package: prompts, adapters, and which parameters train."""

import re
from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from vpt_dense.adapters import Adapter, Block
from vpt_dense.argument_checks import is_list
from vpt_dense.image_prompts import ImagePrompt
from vpt_dense.parts import build, find
from vpt_dense.prompts import Prompt
from vpt_dense.tuning import ADDED, OFFERS, is_added, select_trainable
from vpt_dense.weights.base import FrozenBase

#: Key of a backbone's config -> what a part that is listed there must be.
_PARTS = dict(prompt=Prompt, image_prompt=ImagePrompt, adapters=Adapter)


class TunedBackbone(FrozenBase):
    """A backbone with a choice of prompt, image prompt, adapters, and what trains.

    To be listed before the class of the family among the parents. A subclass builds its parts with
    :meth:`build_image_prompt` (before its parent's ``__init__``) and :meth:`tune` (at the end of
    its own), and calls the adapters where :class:`vpt_dense.adapters.Adapter` says.

    Attributes:
        output_norm: What the names of the norms behind the blocks begin with, a pattern: ``ln1`` of
            a ViT that has a final norm, ``norm3`` of a Swin.
        stem: Children and parameters in front of the blocks that mmpretrain's ``get_layer_depth``
            does not know.
        weights_family: Which formats of pretrained weights fit.
        offers: What it has for methods, of :data:`vpt_dense.tuning.OFFERS`.
        prompt: The token prompt, or None.
        image_prompt: The prompt in image space, or None.
        adapters: The adapters, a ``ModuleList``.
        trainable: The patterns of what trains.
        base_is_frozen: Whether anything but prompts and adapters is frozen.
        guest: The head whose queries pass its last blocks, in a tuple, where it is no submodule.
    """

    guest: tuple[nn.Module, ...] = ()

    weights_family: str
    offers: frozenset[str] = frozenset({'images', 'open sizes', 'outputs'})
    stem: tuple[str, ...] = ()
    output_norm = r'(ln|norm)\d+\.'

    @staticmethod
    def refuse_frozen_stages(kwargs: dict, least: int, way_out: str) -> None:
        """Refuse mmpretrain's way to say what trains.

        Raises:
            ValueError: If ``frozen_stages`` among the parent's arguments is ``least`` or more, from
                where on it freezes something; ``way_out`` is an example of ``trainable``.
        """
        found = kwargs.get('frozen_stages', -1)
        if found >= least:
            raise ValueError(
                f'frozen_stages={found} and `trainable` are two ways to say the same: name what '
                f'trains, for instance {way_out}')

    @abstractmethod
    def block_list(self) -> list[Block]:
        """The transformer blocks in order; none in a convolutional network."""

    def patch_layers(self) -> list[nn.Module]:
        """The convolution that makes patches, and its norm if there is one."""
        embed = self.patch_embed
        return [embed.projection, *([] if embed.norm is None else [embed.norm])]

    def output_norms(self) -> list[nn.Module]:
        """The norms behind the blocks."""
        return [
            module for name, module in self.named_children()
            if re.match(self.output_norm, f'{name}.') and list(module.parameters())]

    @abstractmethod
    def map_strides(self) -> list[tuple[int, int]]:
        """Pixels (height, width) of one place of each map that it puts out; empty: no maps."""

    def crop_border(self, outs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Cut the border of the image prompt off what the backbone puts out, if those are maps."""
        strides = self.map_strides()
        if self.image_prompt is None or not strides:
            return tuple(outs)
        return self.image_prompt.crop(outs, strides)

    def build_image_prompt(
        self, config: dict | None, img_size: Sequence[int], in_channels: int
    ) -> ImagePrompt | None:
        """Build the prompt in image space; the parent's ``__init__`` needs to know its sizes."""
        if config is None:
            return None
        served = dict(img_size=tuple(img_size), in_channels=in_channels)
        self.check_part('image_prompt', config)
        return build(config, **served)

    def tune(
        self,
        prompt: nn.Module | None,
        image_prompt: ImagePrompt | None,
        adapters: Sequence[dict] | None,
        trainable: Sequence[str] | None,
    ) -> None:
        """Add the parts of tuning and freeze what does not train.

        Args:
            prompt: The token prompt, built.
            image_prompt: The prompt in image space, built.
            adapters: Configs of adapters.
            trainable: Patterns; None: all that tuning adds, or everything if it adds nothing.

        Raises:
            ValueError: If a part does not fit this backbone, or a pattern matches no parameter;
                the message names the key.
        """
        listed = adapters or []
        if not is_list(listed) or not all(isinstance(config, dict) for config in listed):
            raise ValueError(
                f'adapters must be a list of dicts, one for each adapter, found {adapters!r}'
            )
        self.prompt = prompt
        self.image_prompt = image_prompt
        if image_prompt is not None:
            image_prompt.check_strides(self.map_strides())
            image_prompt.start_in(self)
        for config in adapters or ():
            self.check_part('adapters', config)
        built = [build(c, backbone=self) for c in adapters or ()]
        self.adapters = nn.ModuleList(built)
        if trainable is None:
            added = {name.split('.')[0] for name, _ in self.named_parameters() if is_added(name)}
            trainable = [rf'^{name}\.' for name in ADDED if name in added] or ['.*']
        select_trainable(self, trainable)
        self.trainable = list(trainable)
        self.base_is_frozen = any(
            not parameter.requires_grad
            for name, parameter in self.named_parameters()
            if not is_added(name)
        )
        self.note_frozen()
        if prompt is not None:
            prompt.check(self)

    def invite(self, head: nn.Module) -> None:
        """Let the queries of a head pass the last blocks.

        Args:
            head: A :class:`vpt_dense.heads.EoMTHead`.

        Raises:
            ValueError: If they cannot; the message names the key.
        """
        if 'hidden tokens' not in self.offers:
            raise ValueError(
                f'decode_head: {type(head).__name__} needs {OFFERS["hidden tokens"]}, '
                f'{type(self).__name__} has none')
        self.guest = (head,)

    def check_part(self, key: str, config: dict) -> None:
        """Refuse a part of tuning, before it is built, that does not belong into this backbone.

        Args:
            key: Of the backbone's config that the part is listed under.
            config: Of the part.

        Raises:
            ValueError: If it is no config, of another key, or needs what this backbone does not
                offer; the message names the key.
        """
        if not isinstance(config, dict) or 'type' not in config:
            raise ValueError(f"{key} needs a dict with a 'type', found {config!r}")
        kind = config['type']
        part = find(kind)
        if part is None:
            return  # building it says so
        name = getattr(part, '__name__', kind)
        right = [k for k, c in _PARTS.items() if isinstance(part, type) and issubclass(part, c)]
        if key not in right:
            way_out = f'list it under `{right[0]}`' if right else 'it is no method of tuning'
            raise ValueError(f'{key}: {name} does not belong here; {way_out}')
        lacking = part.needs - self.offers
        lacking = {'tokens'} if 'tokens' in lacking else lacking  # the others follow
        if lacking:
            lacking = [OFFERS.get(need, need) for need in sorted(lacking)]
            raise ValueError(
                f'{key}: {name} needs {" and ".join(lacking)}, {type(self).__name__} has none')

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for learning rates that fall with it.

        Args:
            param_name: Its name, in the model.
            prefix: Of this backbone's parameters there.

        Returns:
            Depth and number of depths, as in mmpretrain: 0 for the stem, tokens and positions too,
            the last one for what is behind the blocks and for prompts and adapters, which start
            anew as a head does.

        Raises:
            ValueError: If mmpretrain counts no layers of such a backbone.
        """
        try:
            depth, number = super().get_layer_depth(param_name, prefix)
        except NotImplementedError as error:
            raise ValueError(
                f'optim_wrapper.constructor: mmpretrain counts no layers of this '
                f'{type(self).__name__}, rates cannot fall by them; leave the constructor out'
            ) from error
        name = param_name.removeprefix(prefix)
        own = param_name.startswith(prefix)
        if own and is_added(name):
            return number - 1, number
        return (0 if own and name.split('.')[0] in self.stem else depth), number

    def init_weights(self) -> None:
        """Load the pretrained weights or start at random, then start what tuning adds."""
        super().init_weights()
        for part in (*self.adapters, self.prompt):  # prompts may start from what these compute
            if part is not None:
                part.start_from(self)

    def train(self, mode: bool = True) -> 'TunedBackbone':
        """Switch the mode; what surrounds prompts and adapters stays in eval mode while frozen."""
        super().train(mode)
        if self.base_is_frozen:
            for name, child in self.named_children():
                if name not in ADDED:
                    child.eval()
        return self

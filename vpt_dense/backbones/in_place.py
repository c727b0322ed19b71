"""Vision transformers of other libraries, tuned in place: their own forward, blocks of ours.

Nothing of such a model is copied or renamed. The class of the model, of its blocks and of their
attention becomes a subclass of what it was (:func:`adopt`), which :func:`release` takes back. The
model's own loop goes on calling its blocks with the tokens that it knows: a block puts its prompts
among them, and takes those that flow on (VPT-shallow) out again. So whatever the library does
between blocks, before and behind them stays right: intermediate features, hooks, pooling, heads.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vpt_dense.backbones.beside import is_adapters
from vpt_dense.backbones.half_precision import hold_frozen_in
from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.backbones.tuned_block import TunedBlock
from vpt_dense.errors import UserError
from vpt_dense.image_prompts import ImagePrompt
from vpt_dense.prompts import TokenLayout
from vpt_dense.tuning import ADDED
from vpt_dense.weights.base import KEY


class _Now(threading.local):
    """The forward pass that this thread is in."""

    flow: 'Flow | None' = None


_NOW = _Now()


class Flow:
    """What one forward pass carries from block to block beside the library's tokens.

    Args:
        backbone: The model.
        images: What its patch embedding gets, (B, C, H, W).

    Attributes:
        prompts: Prompts that the block before has left, (B, P, C); None: none.
    """

    def __init__(self, backbone: 'InPlaceBackbone', images: Tensor) -> None:
        self.backbone = backbone
        self.layout = TokenLayout(backbone.num_first, 0, backbone.patch_grid(images))
        prompt = backbone.prompt
        self.prepared = None if prompt is None else prompt.prepare(backbone.embed_patches)
        self.prompts: Tensor | None = None
        self.guests = backbone.guests()
        cache = backbone.feature_cache
        self.kept = None if cache is None else cache.open(images)

    def through(
        self, run: Callable[..., Tensor], i: int, x: Tensor, arguments: tuple, further: dict
    ) -> Tensor:
        """Let tokens pass a block.

        Args:
            run: The block.
            i: Its index.
            x: The library's tokens, (B, F + N, C).
            arguments: What the library gives beside them.
            further: Likewise.

        Returns:
            The library's tokens, (B, F + N, C).
        """
        backbone, layout = self.backbone, self.layout
        if self.prompts is not None:
            x, layout = layout.replace(x, self.prompts)  # (B, F + P + N, C)
        if self.guests is not None:
            x, layout = self.guests.enter(x, i, layout)  # (B, F + Q + P + N, C)
        x, layout, own = backbone.enter_block(x, i, layout, self.prepared)
        if self.guests is not None:
            own |= self.guests.arguments(layout)
        masked = further.get('attn_mask') is not None or further.get('is_causal')
        if layout.num_prompts and masked:
            refuse(backbone, 'masks do not know prompts; leave attn_mask and is_causal out')
        through = partial(self._through, run, i, layout, arguments, dict(further, **own))
        x = through(x) if self.kept is None else self.kept.through(i, x, partial(through, x))
        self.prompts = None
        if self.guests is not None:
            x, layout = self.guests.leave(x, i, layout)
        if layout.num_prompts:
            self.prompts = layout.prompts(x)
            x, _ = layout.replace(x, None)  # (B, F + N, C)
        return x

    def _through(
        self, run: Callable[..., Tensor], i: int, layout: TokenLayout, arguments: tuple,
        further: dict, x: Tensor,
    ) -> Tensor:  # fmt: skip
        """Let tokens pass a block, and what acts behind it."""
        x = run(x, *arguments, **further)
        for change in self.backbone.changes():
            x = change.after_block(x, i, layout)
        return x


class InPlaceBlock(TunedBlock):
    """The base of blocks that other libraries call."""

    def forward(self, x: Tensor, *arguments: Any, **further: Any) -> Tensor:
        """The block, with its prompts and adapters.

        Raises:
            RuntimeError: If it is called outside of a forward pass of its model.
        """
        if _NOW.flow is None:
            raise RuntimeError(
                'a block of a tuned backbone was called by itself: prompts depend on the whole '
                'pass; call the model, or do it within `with model.forward_pass(images):`')
        return _NOW.flow.through(super().forward, self.index, x, arguments, further)


class InPlaceBackbone(TokenTuning):
    """The base of models of other libraries that were tuned in place.

    A library's class names the blocks and what else is asked here; its public ways in are called
    through :meth:`run`. Objects come to be by :meth:`take_over`, never by a constructor.

    Attributes:
        num_first: F, class, register and other tokens in front of the patches.
        frozen_dtype: As ``frozen_dtype`` says, what the model computes in; None: as it is.
        settings: The method, as configured.
        origin: What the model was built from, plain data; None: it was there.
    """

    offers = TokenTuning.offers - {'outputs'}
    num_first: int
    weights_family = ''
    init_cfg: dict | None = None
    settings: dict[str, Any] = {}
    origin: dict[str, Any] | None = None
    frozen_dtype: torch.dtype | None = None

    @staticmethod
    def check(model: nn.Module) -> None:
        """Refuse a model that cannot be tuned.

        Raises:
            UserError: If so; the message names the part.
        """

    @staticmethod
    def image_size(model: nn.Module) -> dict[str, Any]:
        """``img_size`` (height, width) and ``in_channels`` of a model, for prompts in images."""
        refuse(model, 'prompts in images do not know the size of its images')

    @abstractmethod
    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images (B, C, H, W)."""

    @classmethod
    def take_over(
        cls,
        model: nn.Module,
        prompt: dict | None = None,
        image_prompt: ImagePrompt | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        prompts_as: str = 'keys_values',
        memory: str = 'default',
        with_cp: bool = False,
        frozen_dtype: str | None = None,
    ) -> 'InPlaceBackbone':
        """Tune a model in place, and start what is added from its weights.

        Args:
            model: The model; one that cannot be tuned is left as it was.
            prompt: As in :meth:`.TokenTuning.tune`.
            image_prompt: As there.
            adapters: As there.
            trainable: As there.
            prompts_as: As there.
            memory: As there.
            with_cp: As there.
            frozen_dtype: As in :class:`vpt_dense.backbones.VisionTransformer`.

        Returns:
            The same object.

        Raises:
            ValueError: If an argument is out of its range, or the model lacks what a part needs.
        """
        before = {name: p.requires_grad for name, p in model.named_parameters()}
        floats = [p for p in model.parameters() if p.is_floating_point()]
        modes = {name: module.training for name, module in model.named_modules()}
        adopt(cls, model)
        model._before = (before, modes, {})
        try:
            model.tune(prompt, image_prompt, adapters, trainable, prompts_as, memory, with_cp)
            place = next(iter(floats), torch.empty(0))
            for name in ADDED:  # as the model is held, and where
                if getattr(model, name) is not None:
                    getattr(model, name).to(device=place.device, dtype=place.dtype)
            model.start()
            if frozen_dtype is not None:
                model.hold_frozen_in(frozen_dtype)
        except BaseException:
            model.give_back()
            raise
        return model.train(model.training)

    def start(self) -> None:
        """Start what tuning adds from the weights, also from others that have come later.

        Nothing happens where they have no memory ('meta').
        """
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        for part in (*self.adapters, self.prompt):  # prompts may start from what these compute
            if part is not None:
                part.start_from(self)

    def hold_frozen_in(self, name: str) -> None:
        """See ``frozen_dtype`` of :class:`vpt_dense.backbones.VisionTransformer`."""
        kept = {n: parameter.data for n, parameter in self.named_parameters()}
        self.frozen_dtype = hold_frozen_in(name, self)
        self._before[2].update(
            (n, kept[n].cpu()) for n, p in self.named_parameters() if p.dtype != kept[n].dtype)

    def as_given(self) -> dict[str, Tensor]:
        """Weights that are held in another type now, as they came: name -> tensor on the CPU."""
        return self._before[2]

    def give_back(self) -> nn.Module:
        """Undo :meth:`take_over`: the model is what it was, bit for bit, if no weight has trained.

        Returns:
            The same object.
        """
        requires_grad, modes, weights = self._before
        for module in self.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, hook in hooks.items() if is_adapters(hook)]:
                    # As the handle's remove(), which not every adapter keeps.
                    for further in ('with_kwargs', 'always_called'):
                        getattr(module, f'_forward_hooks_{further}', {}).pop(key, None)
                    del hooks[key]
        for module in list(self.modules()):
            if module is not self and isinstance(module, Adopted):
                release(module)
        for name in ADDED:
            self._modules.pop(name, None)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(requires_grad.get(name, parameter.requires_grad))
            if name in weights:
                parameter.data = weights[name].to(parameter.device)
        for name, module in self.named_modules():
            module.training = modes.get(name, module.training)
        return release(self)

    def run(self, function: Callable, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call one of the library's ways in with images (B, C, H, W), in a forward pass."""
        if _NOW.flow is not None and _NOW.flow.backbone is self:  # one way in calls another
            return function(images, *args, **kwargs)
        outer = _NOW.flow
        if self.image_prompt is not None:
            images = self.image_prompt(images)
        _NOW.flow = Flow(self, images)
        try:
            if self.frozen_dtype is None or torch.is_autocast_enabled(images.device.type):
                return function(images, *args, **kwargs)
            with torch.autocast(images.device.type, self.frozen_dtype):
                return function(images, *args, **kwargs)
        finally:
            _NOW.flow = outer

    def of_guests(self) -> tuple[Tensor, ...]:
        """What :meth:`.Guests.outputs` says in the forward pass that runs; nothing without any."""
        guests = _NOW.flow.guests
        return () if guests is None else guests.outputs()

    @contextmanager
    def forward_pass(self, images: Tensor) -> Iterator[None]:
        """Let code of one's own call the blocks: ``with model.forward_pass(images): ...``.

        Args:
            images: What the patch embedding gets, (B, C, H, W).
        """
        outer, _NOW.flow = _NOW.flow, Flow(self, images)
        try:
            yield
        finally:
            _NOW.flow = outer

    def complete(self, state_dict: dict[str, Tensor], prefix: str = '') -> None:
        """See :meth:`.FrozenBase.complete`; a model with weights may load a part of them."""
        if prefix + KEY in state_dict:
            super().complete(state_dict, prefix)

    def out_dims(self) -> list[int]:
        """See :meth:`.TokenTuning.out_dims`: what it puts out is the library's business."""
        return []

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`.TunedBackbone.map_strides`."""
        return []

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in backward from its input, or not; timm's name for it.

        timm's own way would run a block again outside of the forward pass that it belongs to.
        """
        for _, block in self.named_blocks():
            block.recompute = 'block' if enable else self.recompute


class Adopted(nn.Module):
    """An object whose class was changed, see :func:`adopt`."""

    original: type[nn.Module]
    by: type[nn.Module]

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Copies and files name the two classes, not the one that is made of them."""
        return _new, (self.by, self.original), self.__dict__


def adopt(
    by: type[nn.Module], module: nn.Module, original: type[nn.Module] | None = None
) -> None:
    """Make a module an object of a class ``by`` as well, which comes before its own.

    Args:
        by: The class.
        module: The module.
        original: Its own class; None: that of the object.

    Raises:
        UserError: If the module has a forward of its own, which would go before that of ``by``.
    """
    forward = vars(module).get('forward')
    if forward is not None and getattr(forward, '__func__', None) is not type(module).forward:
        refuse(module, 'its forward was replaced, as accelerate does for device_map; load it '
                       'without, or tune it first')
    vars(module).pop('forward', None)  # its class's, put there by older releases of transformers
    vars(module)['_own'] = frozenset(vars(module))
    module.__class__ = _combined(by, type(module) if original is None else original)


def release(module: nn.Module) -> nn.Module:
    """Undo :func:`adopt`; attributes that came since go. Returns the module."""
    for name in vars(module).keys() - vars(module)['_own']:
        del vars(module)[name]
    module.__class__ = type(module).original
    return module


@cache
def _combined(by: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    return type(
        original.__name__, (Adopted, by, original),
        dict(original=original, by=by, __module__=original.__module__, __doc__=by.__doc__))


def _new(by: type[nn.Module], original: type[nn.Module]) -> nn.Module:
    kind = _combined(by, original)
    return kind.__new__(kind)


def refuse(model: nn.Module, reason: str) -> NoReturn:
    """Refuse a model that cannot be tuned.

    Raises:
        UserError: Always.
    """
    raise UserError(f'{type(model).__name__} cannot be tuned: {reason}')


"""Backbones by name, and tuning of models that are there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from vpt_dense import parts, pretraining
from vpt_dense.backbones.hosts import host_of
from vpt_dense.backbones.in_place import Adopted, InPlaceBackbone
from vpt_dense.backbones.timm_vit import create, names
from vpt_dense.errors import UserError
from vpt_dense.plain import methods
from vpt_dense.tuning import is_added


def list_backbones(filter: str = '', pretrained: bool = False) -> list[str]:
    """Names that :func:`create_backbone` takes.

    Args:
        filter: As in ``timm.list_models``: ``'*dinov3*'``; a word alone is looked for anywhere.
        pretrained: Only names with pretrained weights, with their tags.

    Example:
        >>> import vpt_dense
        >>> vpt_dense.list_backbones('deit_tiny')
        ['deit_tiny_distilled_patch16_224', 'deit_tiny_patch16_224']
    """
    return names(filter, pretrained)


def list_methods(backbone: nn.Module | None = None) -> list[str]:
    """Names of methods.

    Args:
        backbone: A model that :func:`tune` or :func:`create_backbone` returned: only methods that
            fit it. None: all.

    Example:
        >>> import vpt_dense
        >>> [name for name in vpt_dense.list_methods() if name.startswith('partial')]
        ['partial-1', 'partial-2', 'partial-4']
    """
    return methods.names(backbone)


def create_backbone(
    name: str,
    method: str | Mapping[str, Any] = 'deep',
    *,
    pretrained: bool = True,
    checkpoint: str | None = None,
    img_size: int | Sequence[int] | None = None,
    in_chans: int = 3,
    train_also: Sequence[str] = (),
    prompts_as: str = 'keys_values',
    memory: str = 'default',
    with_cp: bool = False,
    frozen_dtype: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> InPlaceBackbone:
    """Build one of timm's vision transformers, with a method of tuning.

    ``model(images)`` gives pooled features (B, C), ``model.forward_features(images)`` tokens,
    ``model.forward_intermediates(images, indices=[...])`` maps, as timm's models do. Images may be
    of any size that the patches divide.

    Args:
        name: timm's name, with or without a tag: ``vit_base_patch16_dinov3.lvd1689m``.
        method: A method's name (:func:`list_methods`), or its settings, see
            :func:`vpt_dense.plain.methods.resolve`.
        pretrained: Load the weights that timm names, from the hub's cache or the hub.
        checkpoint: A local file or address with other weights, in timm's, the authors' or Hugging
            Face's format.
        img_size: Height and width in pixels that position embeddings are made for, where there are
            any; None: those of pretraining.
        in_chans: Channels of the images.
        train_also: Patterns of names of parameters that train beside the method's.
        prompts_as: 'keys_values' or 'tokens', see :class:`vpt_dense.backbones.VisionTransformer`.
        memory: 'default' or 'lean': what backward keeps; see there.
        with_cp: Recompute every block in backward.
        frozen_dtype: 'bfloat16' or 'float16': hold frozen weights so, and compute under autocast.
        model_options: Further arguments of ``timm.create_model``: ``drop_path_rate``, ...
        **options: Of the method, over its usual values: ``num_tokens=50``.

    Returns:
        timm's model, tuned in place (:func:`tune`), in eval mode.

    Raises:
        UserError: If there is no such name, method or option, the weights do not fit, or the model
            cannot be tuned.

    Example:
        >>> import torch, vpt_dense
        >>> model = vpt_dense.create_backbone(
        ...     'deit_tiny_patch16_224', 'deep', pretrained=False, num_tokens=5)
        >>> model.prompt.tokens.shape  # blocks, tokens, width
        torch.Size([12, 5, 192])
        >>> model(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 192])
    """
    settings = methods.resolve(method, options)
    model = create(name, img_size, in_chans, model_options).eval()
    take_over(model, settings, train_also, prompts_as=prompts_as, memory=memory, with_cp=with_cp,
              frozen_dtype=None)  # fmt: skip
    if checkpoint is not None or pretrained:
        model.load_base(pretraining.address(model) if checkpoint is None else checkpoint)
        model.start()
    if frozen_dtype is not None:
        model.hold_frozen_in(frozen_dtype)
    model.origin = dict(
        library='timm', name=name, in_chans=in_chans,
        img_size=list(model.patch_embed.img_size), options=dict(model_options or {}))
    return model.eval()


def tune(
    model: nn.Module,
    method: str | Mapping[str, Any] = 'deep',
    *,
    train_also: Sequence[str] = (),
    prompts_as: str = 'keys_values',
    memory: str = 'default',
    with_cp: bool = False,
    frozen_dtype: str | None = None,
    **options: Any,
) -> InPlaceBackbone:
    r"""Tune a vision transformer that you have, in place.

    Names of its own parameters stay what they are; what the method adds is below ``prompt`` and
    ``adapters``. What does not train is frozen, and stays in eval mode.

    Args:
        model: timm's VisionTransformer or Eva, transformers' or torchvision's vision transformers,
            with its weights.
        method: As in :func:`create_backbone`.
        train_also: Patterns of names of parameters that train beside the method's, for instance
            ``[r'^head\.']`` for the classifier of a timm model.
        prompts_as: As there.
        memory: As there.
        with_cp: As there.
        frozen_dtype: As there.
        **options: As there.

    Returns:
        The same object.

    Raises:
        UserError: If the model is of another kind or is tuned already, or there is no such method
            or option; the model is then what it was.

    Example:
        >>> import timm, vpt_dense
        >>> model = timm.create_model('deit_tiny_patch16_224', num_classes=3)  # yours, with weights
        >>> model is vpt_dense.tune(model, 'lora', train_also=[r'^head\.'])
        True
        >>> sorted({name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad})
        ['adapters', 'head']
    """
    settings = methods.resolve(method, options)
    take_over(model, settings, train_also, prompts_as=prompts_as, memory=memory, with_cp=with_cp,
              frozen_dtype=frozen_dtype)  # fmt: skip
    return model


def untune(model: nn.Module) -> nn.Module:
    """Give a model back as it was before :func:`tune`, bit for bit unless its own weights trained.

    Returns:
        The same object.

    Raises:
        UserError: If it is not tuned.

    Example:
        >>> import timm, vpt_dense
        >>> model = timm.create_model('deit_tiny_patch16_224')
        >>> type(vpt_dense.untune(vpt_dense.tune(model, 'deep'))).__name__
        'VisionTransformer'
    """
    if not isinstance(model, Adopted) or not isinstance(model, InPlaceBackbone):
        raise UserError(f'untune: this {type(model).__name__} is not tuned')
    return model.give_back()


def take_over(
    model: nn.Module, settings: Mapping[str, Any], train_also: Sequence[str] = (), **how: Any
) -> None:
    """Tune a model in place by the settings of a method.

    Args:
        model: Its weights are there, or come later (:meth:`.InPlaceBackbone.start`).
        settings: As :func:`vpt_dense.plain.methods.resolve` returns them.
        train_also: As in :func:`tune`.
        **how: ``prompts_as``, ``memory``, ``with_cp``, ``frozen_dtype``.

    Raises:
        UserError: See :func:`tune`.
    """
    if isinstance(model, Adopted):
        raise UserError('tune: this model is tuned already; call vpt_dense.untune(model) first')
    host = host_of(model)
    host.check(model)
    settings = dict(settings)
    trainable = settings.get('trainable')
    if train_also:
        added = [rf'^{key}\.' for key in ('prompt', 'image_prompt', 'adapters')
                 if settings.get(key)]  # fmt: skip
        trainable = [*(added if trainable is None else trainable), *train_also]
    try:
        front = settings.get('image_prompt')
        if front is not None:
            front = parts.build(_normalised(front, model), **host.image_size(model))
            if not front.keeps_size:
                raise UserError(
                    f'tune: {type(front).__name__} changes the size or channels of the images, '
                    'which only the backbones of configs know')
        prompt = settings.get('prompt')
        host.take_over(
            model, prompt=None if prompt is None else _normalised(prompt, model),
            image_prompt=front, adapters=settings.get('adapters'), trainable=trainable, **how)
    except (ValueError, TypeError, KeyError) as error:
        raise error if isinstance(error, UserError) else UserError(f'tune: {error}') from error
    model.settings = {**settings, 'trainable': list(model.trainable)}


def _normalised(config: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A part's config; where it leaves mean and std open, those that the model was trained with."""
    told = getattr(model, 'pretrained_cfg', None) or {}
    return {
        key: [255 * each for each in told[key]]
        if key in ('mean', 'std') and value is None and told.get(key) else value
        for key, value in config.items()
    }


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    head_lr: float | None = None,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimizer of PyTorch: only what trains.

    Biases, norms, scales and what the model's ``no_weight_decay()`` names have no weight decay.

    Args:
        model: A tuned model, or one that holds some (a head beside a backbone).
        lr: The rate of what trains in backbones.
        weight_decay: Of matrices and prompts.
        head_lr: The rate of all that is outside of tuned backbones; None: ``lr``.
        layer_decay: Factor by which the rates of a backbone's own weights fall from block to block,
            from its end to its beginning; prompts and adapters have the full rate. None: 1.

    Returns:
        Dicts with ``params``, ``lr`` and ``weight_decay``.

    Example:
        >>> import torch, vpt_dense
        >>> model = vpt_dense.create_classifier('deit_tiny_patch16_224', 3, pretrained=False)
        >>> groups = vpt_dense.parameter_groups(model, lr=1e-3, weight_decay=0.01, head_lr=1e-2)
        >>> [(group['lr'], group['weight_decay']) for group in groups]
        [(0.001, 0.01), (0.01, 0.01), (0.01, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    backbones = {name: m for name, m in model.named_modules() if isinstance(m, InPlaceBackbone)}
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = max((f'{p}.' if p else '' for p in backbones if not p or name.startswith(f'{p}.')),
                     key=len, default=None)  # fmt: skip
        rate, spared = lr, parameter.ndim <= 1
        if prefix is None:
            rate = lr if head_lr is None else head_lr
        else:
            backbone, own = backbones[prefix.rstrip('.')], name.removeprefix(prefix)
            told = getattr(backbone, 'no_weight_decay', set)()
            spared = spared or any(own == each or own.startswith(f'{each}.') for each in told)
            if layer_decay is not None and not is_added(own):
                depth, number = backbone.get_layer_depth(own)
                rate = lr * layer_decay ** (number - 1 - depth)
        groups.setdefault((rate, 0.0 if spared else weight_decay), []).append(parameter)
    return [dict(params=p, lr=rate, weight_decay=decay) for (rate, decay), p in groups.items()]


def count(model: nn.Module) -> dict[str, float]:
    """Parameters that train, all of them, and the share in percent.

    Example:
        >>> import vpt_dense
        >>> model = vpt_dense.create_backbone('deit_tiny_patch16_224', 'deep', pretrained=False)
        >>> vpt_dense.count(model)['trainable']  # 12 blocks x 10 tokens x 192
        23040
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(_trained(model.parameters()))
    return dict(trainable=trained, total=total, percent=100 * trained / max(total, 1))


def _trained(parameters: Iterable[nn.Parameter]) -> Iterable[int]:
    return (parameter.numel() for parameter in parameters if parameter.requires_grad)

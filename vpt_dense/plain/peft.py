"""Folders of HF PEFT: LoRA and DoRA trained there go on here, and the other way round."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vpt_dense.backbones.in_place import Adopted
from vpt_dense.checkpoints import peft_format
from vpt_dense.plain import models


def save_peft(model: nn.Module, folder: str | Path, heads: Sequence[str] = ()) -> None:
    """Write the LoRA or DoRA of a tuned model as HF PEFT's ``PeftModel.from_pretrained`` reads it.

    Args:
        model: A tuned backbone, or a model with one in it; names in the files are this model's.
        folder: It is made if it is absent.
        heads: Modules of ``model`` that are written whole, for PEFT's ``modules_to_save``.

    Raises:
        UserError: If something was tuned that has no place in that format; the message names it.
    """
    peft_format.write(model, folder, heads)


def load_peft(
    model: nn.Module, folder: str | Path, backbone: str = '', heads: bool = False
) -> nn.Module:
    """Tune a model with a LoRA or DoRA that HF PEFT has written, and load it; all or nothing.

    Args:
        model: The model that names in the folder are of.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        backbone: Name of the vision transformer in ``model``; empty: ``model`` is it.
        heads: Whether heads in the folder (``modules_to_save``) are loaded too.

    Returns:
        The same object.

    Raises:
        UserError: If the folder is damaged, does not fit or asks for what LoRA here does not do;
            the model is then what it was.
    """
    part = model.get_submodule(backbone)
    here = not isinstance(part, Adopted)
    if here:
        models.take_over(part, dict(adapters=peft_format.adapters(folder, model, part)))
    try:
        peft_format.load(folder, model, heads)
    except BaseException:
        if here:
            part.give_back()
        raise
    return model

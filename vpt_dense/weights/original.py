"""A whole model of the original visual prompt tuning: backbone, prompts and classifier."""

from mmengine.logging import print_log
from torch import nn

from vpt_dense.errors import UserError
from vpt_dense.weights.pretrained import compute
from vpt_dense.weights.reading import read_state_dict

_HEAD = 'head.last_layer.'


def load_vpt(model: nn.Module, checkpoint: str) -> str:
    """Load a checkpoint of https://github.com/KMnP/vpt into a classifier, completely or not at all.

    Args:
        model: An ``ImageClassifier`` with a ViT backbone of this package, with a
            ``vpt_dense.TokenPrompt`` if the checkpoint has prompts, and a ``LinearClsHead``.
        checkpoint: Path or address of what the original's ``Checkpointer`` saved.

    Returns:
        The report, one line; it is logged too.

    Raises:
        UserError: If the file cannot be read or does not fit; the model is then unchanged.
    """
    state = read_state_dict(checkpoint)
    prompted = any(name.endswith('prompt_embeddings') for name in state)
    if prompted and model.backbone.prompt is None:
        raise UserError(
            f'{checkpoint} has prompts, the model has none: set model.backbone.prompt'
        )
    converted = compute(
        model.backbone, checkpoint, {'prompts': model.backbone.prompt is not None}
    )
    parts = {}
    for kind, own in (('weight', model.head.fc.weight), ('bias', model.head.fc.bias)):
        found = [tensor for name, tensor in state.items() if name.endswith(f'{_HEAD}{kind}')]
        if len(found) != 1 or any('head.projection.' in name for name in state):
            raise UserError(
                f'{checkpoint}: a linear classifier was expected at {_HEAD}{kind} (a head of '
                'several layers has no counterpart here)'
            )
        if found[0].shape != own.shape:
            raise UserError(
                f'{checkpoint}: {_HEAD}{kind} is {tuple(found[0].shape)}, the head takes '
                f'{tuple(own.shape)}; set model.head.num_classes'
            )
        parts[kind] = found[0].float()
    model.backbone.load_state_dict(converted.tensors, strict=False)
    model.head.fc.load_state_dict(parts)
    report = f'{converted.report}; classifier of {len(parts["bias"])} classes'
    print_log(report, logger='current')
    return report

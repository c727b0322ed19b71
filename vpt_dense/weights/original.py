"""A whole model of the original visual prompt tuning: backbone, prompts and classifier."""

from torch import nn

from vpt_dense.errors import UserError
from vpt_dense.weights.reading import read_state_dict

_HEAD = 'head.last_layer.'


def load_vpt(model: nn.Module, checkpoint: str) -> str:
    """Load a checkpoint of https://github.com/KMnP/vpt into a classifier, completely or not at all.

    Args:
        model: An ``ImageClassifier`` with a ViT backbone of this package, with a
            ``vpt_dense.TokenPrompt`` if the checkpoint has prompts, and a ``LinearClsHead``.
        checkpoint: Path or address of what the original's ``Checkpointer`` saved.

    Returns:
        What was done, one line.

    Raises:
        UserError: If the file cannot be read or does not fit; the model is then unchanged.
    """
    state = read_state_dict(checkpoint)
    prompted = any(name.endswith('prompt_embeddings') for name in state)
    if prompted and model.backbone.prompt is None:
        raise UserError(
            f'{checkpoint} has prompts, the model has none: set model.backbone.prompt'
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
    report = model.backbone.load_base(checkpoint, {'prompts': model.backbone.prompt is not None})
    model.head.fc.load_state_dict(parts)
    return f'{report}; classifier of {len(parts["bias"])} classes'

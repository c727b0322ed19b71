"""Tokens of texts, by the tokenizers of open_clip and transformers."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpt_dense.errors import UserError


class Tokenizer:
    """Makes tokens of texts, with a start and an end around them, as CLIP has it.

    Args:
        source: 'open_clip': CLIP's own, which comes along with open_clip. Else a folder with the
            files of a ``CLIPTokenizer`` of transformers (``vocab.json`` and ``merges.txt``, or
            ``tokenizer.json``), or its name on the Hugging Face hub.
    """

    def __init__(self, source: str = 'open_clip') -> None:
        if not isinstance(source, str) or not source:
            raise ValueError(
                f"text.tokenizer must be 'open_clip' or a folder or name of a tokenizer of "
                f'transformers, found {source!r}')
        self.source = source
        self._encode: Any = None

    def __call__(
        self, texts: Sequence[str], most: int, vocab_size: int, least: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Turn texts into numbers of tokens.

        Args:
            texts: T of them.
            most: Tokens of a text, start and end among them.
            vocab_size: Number of tokens that the model knows.
            least: Tokens of the longest text.

        Returns:
            (T, L), int64, zeros behind the end; and where each end is, (T,), int64.

        Raises:
            UserError: If a text is too long or has what is no token, or what is needed is not
                there.
        """
        if self._encode is None:
            self._encode = _open_clip() if self.source == 'open_clip' else _hub(self.source)
        found = [self._encode(text) for text in texts]
        for text, ids in zip(texts, found, strict=True):
            if len(ids) > most:
                raise UserError(
                    f'the text {text!r} has {len(ids)} tokens with its start and end, '
                    f'{max(most, 0)} are left beside the prompts; shorten head.templates or the '
                    'name of the class, or take fewer prompts')
            if max(ids) >= vocab_size:
                raise UserError(
                    f'the text {text!r} has the token {max(ids)}, the model knows {vocab_size} '
                    '(text.vocab_size): text.tokenizer is of another model')
            # CLIP's end is its last token: most readers of its weights look for the largest.
            if ids[-1] != vocab_size - 1:
                raise UserError(
                    f'text.tokenizer ends a text with the token {ids[-1]}, CLIP with its last, '
                    f'{vocab_size - 1} (text.vocab_size - 1): it is of another model')
            if {ids[0], ids[-1]} & set(ids[1:-1]):
                raise UserError(
                    f'the text {text!r} has letters that text.tokenizer does not know; they would '
                    'be left out: name the class in others (head.classes)')
        table = torch.zeros(len(found), max([least, *map(len, found)]), dtype=torch.int64)
        for row, ids in zip(table, found, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return table, torch.tensor([len(ids) - 1 for ids in found])


def _open_clip() -> Any:
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise UserError(
            "text.tokenizer='open_clip': open_clip is not installed (pip install "
            "'vpt-dense[clip]'); or name a folder with vocab.json and merges.txt") from error
    own = SimpleTokenizer()
    return lambda text: [own.sot_token_id, *own.encode(text.strip().lower()), own.eot_token_id]


def _hub(source: str) -> Any:
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise UserError(
            f'text.tokenizer={source!r}: transformers is not installed, which reads it; install it '
            "or take text.tokenizer='open_clip'") from error
    if os.path.isdir(source):
        names = set(os.listdir(source))
        if 'tokenizer.json' not in names and not {'vocab.json', 'merges.txt'} <= names:
            raise UserError(
                f'text.tokenizer: {source} has neither tokenizer.json nor vocab.json and '
                'merges.txt')
    try:
        own = CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise UserError(
            f'text.tokenizer: {source} is no folder of a CLIPTokenizer and cannot be fetched '
            f"({reason[:150]}); 'open_clip' comes along with open_clip") from error
    return lambda text: own(text)['input_ids']

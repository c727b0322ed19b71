"""A tiny CLIP with a vocabulary of its own, as its home libraries make it."""

import json
from pathlib import Path

import torch
from torch import nn
from utils import randomise

#: Words that are one token; all others are made of letters.
WORDS = ('a', 'photo', 'of', 'red', 'green', 'blue', 'dog', 'cat', 'road', 'sky', 'car', '.')
LETTERS = 'abcdefghijklmnopqrstuvwxyz.'
VISION = dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256)
TEXT = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=128)
CONTEXT, WIDTH, SIZE, PATCH = 28, 24, 32, 8


def write_tokenizer(folder: Path) -> Path:
    """The files of a CLIPTokenizer of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    merges, pieces = [], [*LETTERS, *(f'{letter}</w>' for letter in LETTERS)]
    for word in WORDS:
        letters = [*word[:-1], f'{word[-1]}</w>']
        while len(letters) > 1:
            pair = letters[:2]
            if ' '.join(pair) not in merges:
                merges.append(' '.join(pair))
                pieces.append(''.join(pair))
            letters = [''.join(pair), *letters[2:]]
    pieces = [*dict.fromkeys(pieces), '<|startoftext|>', '<|endoftext|>']
    vocab = {piece: i for i, piece in enumerate(pieces)}
    (folder / 'vocab.json').write_text(json.dumps(vocab))
    (folder / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n')
    return folder


def vocab_size(folder: Path) -> int:
    return len(json.loads((folder / 'vocab.json').read_text()))


def open_clip_model(vocabulary: int, quick_gelu: bool = True, seed: int = 0) -> nn.Module:
    """A tiny CLIP of open_clip, whose names are OpenAI's, in eval mode."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        layers=VISION['num_layers'], width=VISION['embed_dims'], head_width=16, patch_size=PATCH,
        image_size=SIZE)
    text = CLIPTextCfg(
        context_length=CONTEXT, vocab_size=vocabulary, width=TEXT['embed_dims'],
        heads=TEXT['num_heads'], layers=TEXT['num_layers'])
    model = randomise(CLIP(WIDTH, vision, text, quick_gelu=quick_gelu), seed).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    return model


def transformers_model(vocabulary: int, quick_gelu: bool = True) -> nn.Module:
    """The same of transformers."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    act = 'quick_gelu' if quick_gelu else 'gelu'
    text = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=TEXT['embed_dims'], intermediate_size=128,
        num_hidden_layers=TEXT['num_layers'], num_attention_heads=TEXT['num_heads'],
        max_position_embeddings=CONTEXT, hidden_act=act, projection_dim=WIDTH,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1)
    vision = CLIPVisionConfig(
        hidden_size=VISION['embed_dims'], intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, image_size=SIZE, patch_size=PATCH, hidden_act=act,
        projection_dim=WIDTH)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    model = randomise(CLIPModel(config)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    return model


def backbone_config(**kwargs) -> dict:
    return {**dict(type='vpt_dense.CLIPVisionTransformer', arch=VISION, img_size=SIZE,
                   patch_size=PATCH, project_dims=WIDTH), **kwargs}  # fmt: skip


def text_config(tokenizer: Path, **kwargs) -> dict:
    return dict(type='vpt_dense.CLIPTextTransformer', arch=TEXT, project_dims=WIDTH,
                vocab_size=vocab_size(tokenizer), context_length=CONTEXT,
                tokenizer=str(tokenizer), **kwargs)  # fmt: skip


def classifier_config(
    tokenizer: Path, checkpoint: Path, classes: list[str], backbone: dict | None = None,
    text: dict | None = None, **head,
) -> dict:  # fmt: skip
    """A whole classifier that loads a file of a whole CLIP."""
    start = dict(type='Pretrained', checkpoint=str(checkpoint))
    return dict(
        type='vpt_dense.CLIPClassifier',
        backbone=backbone_config(init_cfg=start, **{'trainable': [], **(backbone or {})}),
        head={'type': 'vpt_dense.TextHead', 'num_classes': len(classes), 'classes': classes,
              'text': text_config(tokenizer, **(text or {})), **head})

"""Prompts to embeddings, through the text encoder that the checkpoint declares.

Letters: B prompts, L text length, E encoder width.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import ftfy
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TEXT_LENGTH = 512
"""Tokens of a prompt, padding included (published pipelines); a tokenizer may ask for fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCondition:
    """Encoded prompts: `embeds` [B, 1, L, E] and `mask` int64 [B, L], non-zero where there is text."""

    embeds: torch.Tensor
    mask: torch.Tensor


def clean_prompt(prompt: str) -> str:
    """The prompt with mended Unicode, no HTML entities and single spaces (published order)."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text.strip()).strip()


class PromptEncoder:
    """A tokenizer and a UMT5 or Qwen2.5-VL encoder that lives in main memory and works on `device`.

    Its layers visit the device one by one, so a card that is full of the transformer has room for it. With `visits`
    False it stays where it is, and whoever put it there takes it to the device.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: PreTrainedModel,
        device: torch.device,
        *,
        visits: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.max_length = min(MAX_TEXT_LENGTH, tokenizer.model_max_length)
        self._device = device
        if visits and device.type != "cpu":
            _visit_in_turn(encoder, device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Last hidden states of `prompts`, padded to the full length; padded rows are not zeroed here."""
        tokens = self.tokenizer(
            [clean_prompt(p) for p in prompts],
            max_length=self.max_length,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(self._device)
        # The table of tokens is large and read at few places: it stays in main memory.
        table = cast(nn.Embedding, self.encoder.get_input_embeddings())
        embedded = table(tokens.input_ids.to(table.weight.device)).to(self._device)
        states = self.encoder(inputs_embeds=embedded, attention_mask=mask)
        return TextCondition(embeds=states.last_hidden_state.unsqueeze(1), mask=mask)


def _visit_in_turn(encoder: PreTrainedModel, device: torch.device) -> None:
    """Weights of a layer go to `device` for its call and are forgotten there afterwards; small parts stay there."""
    stack = getattr(encoder, "encoder", encoder)
    layers = cast(nn.ModuleList, stack.block if encoder.config.model_type == "umt5" else stack.layers)
    for part in stack.children():
        if part is not layers and not isinstance(part, nn.Embedding):
            part.to(device)
    for layer in layers:
        tensors = [*layer.parameters(), *layer.buffers()]
        homes = [tensor.data for tensor in tensors]
        layer.register_forward_pre_hook(partial(_arrive, tensors, device))
        layer.register_forward_hook(partial(_leave, tensors, homes), always_call=True)


def _arrive(tensors: list[torch.Tensor], device: torch.device, *_: object) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.to(device)


def _leave(tensors: list[torch.Tensor], homes: list[torch.Tensor], *_: object) -> None:
    for tensor, home in zip(tensors, homes, strict=True):
        tensor.data = home

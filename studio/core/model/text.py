"""Prompts to embeddings, through the text encoder that the checkpoint declares.

Letters: B prompts, L text length, E encoder width.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import ftfy
import torch
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
    """A tokenizer and a UMT5 or Qwen2.5-VL encoder."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.max_length = min(MAX_TEXT_LENGTH, tokenizer.model_max_length)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Last hidden states of `prompts`, padded to the full length; padded rows are not zeroed here."""
        device = self.encoder.device
        tokens = self.tokenizer(
            [clean_prompt(p) for p in prompts],
            max_length=self.max_length,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        states = self.encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return TextCondition(embeds=states.last_hidden_state.unsqueeze(1), mask=tokens.attention_mask)

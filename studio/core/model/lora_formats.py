"""The layouts in which a LoRA lies in a file, each to and from one plain layout.

Plain: keys `<module>.lora_A.weight` [R, inputs] and `<module>.lora_B.weight` [outputs, R], and a scale for each module:
the weights change by scale B A. What is written here takes plain tensors of scale 1 (`with_scales`).

- diffusers: `transformer.<module>.lora_A.weight`; alpha, if any, in the metadata of the file.
- peft: `base_model.model.<module>.lora_A.weight`; alpha in `adapter_config.json`.
- ComfyUI: `diffusion_model.<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`; scale alpha / R.
- kohya: the same under `lora_unet_<module, dots as underscores>`.
- published, as LongCat-Video's own two LoRAs: `lora___lorahyphen___<module, dots as ___lorahyphen___>` with
  `.lora_down.weight`, `.lora_up.weight` and `.alpha_scale`, which is the scale itself. A linear that computes n things
  at once has `.lora_up.blocks.{i}.weight` [outputs / n, R], of which part i belongs to rows i R to (i + 1) R of
  `.lora_down.weight` [n R, inputs].

Source of the published layout: `longcat_video/modules/lora_utils.py` of meituan-longcat/LongCat-Video.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch

from studio.core.errors import AdapterError

State = Mapping[str, torch.Tensor]

PREFIXES = ("transformer.", "base_model.model.", "diffusion_model.")
"""Of diffusers, peft and ComfyUI."""
KOHYA = "lora_unet_"
PUBLISHED = "lora___lorahyphen___"
HYPHEN = "___lorahyphen___"

LONGEST_CLAUSE = 240
"""Characters; the longest key of the published layout has 130."""

_PUBLISHED_PARTS = re.compile(r"\.(lora_down\.weight|lora_up(?:\.blocks\.\d+)?\.weight|alpha_scale)$")
_UPS_AND_DOWNS = {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"}


def to_diffusers(state: State) -> dict[str, torch.Tensor]:
    """A plain LoRA for `load_lora_weights` of diffusers; needs no alpha."""
    return {f"transformer.{name}": tensor for name, tensor in state.items()}


def to_peft(state: State) -> dict[str, torch.Tensor]:
    """A plain LoRA for peft's `adapter_model.safetensors`; `lora_alpha` must be `r` in its `adapter_config.json`."""
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def to_comfyui(state: State) -> dict[str, torch.Tensor]:
    """A plain LoRA for the LoRA loader of ComfyUI, over a model whose modules have the published names."""
    out: dict[str, torch.Tensor] = {}
    for module, (a, b) in _pairs(state).items():
        stem = f"diffusion_model.{module}"
        out[f"{stem}.lora_down.weight"], out[f"{stem}.lora_up.weight"] = a, b
        out[f"{stem}.alpha"] = torch.tensor(float(len(a)))
    return out


def to_published(state: State) -> dict[str, torch.Tensor]:
    """A plain LoRA for `dit.load_lora(path, key, lora_network_dim=R)` of the published code.

    Where a linear has n parts, each gets its own copy of A, because the layout knows no shared one.
    """
    out: dict[str, torch.Tensor] = {}
    for module, (a, b) in _pairs(state).items():
        stem, count = PUBLISHED + module.replace(".", HYPHEN), num_parts(module)
        out[f"{stem}.alpha_scale"] = torch.tensor(1.0)
        out[f"{stem}.lora_down.weight"] = a.repeat(count, 1)
        if count == 1:
            out[f"{stem}.lora_up.weight"] = b
        else:
            out |= {f"{stem}.lora_up.blocks.{i}.weight": up.contiguous() for i, up in enumerate(b.chunk(count))}
    return out


def with_scales(state: State, scales: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """A plain LoRA of scale 1: the scales of its modules, 1 where none is given, are multiplied into B."""
    end = ".lora_B.weight"
    return {
        name: tensor * scales.get(name.removesuffix(end), 1.0) if name.endswith(end) else tensor
        for name, tensor in state.items()
    }


def to_plain(
    tensors: State, modules: Iterable[str], alphas: Mapping[str, float] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(plain LoRA in fp32, scale by module) of any of the layouts; keys that belong to none are kept as they are.

    Args:
        tensors: what the file holds.
        modules: names of the linears of the model, to read underscores as dots.
        alphas: alpha by module, and under "" that of all others, where it is said beside the tensors. Without any
            the scale is 1.

    Raises:
        AdapterError: a file of the published layout lacks a part, or its parts do not fit one another.
    """
    if any(name.startswith(PUBLISHED) for name in tensors):
        return _from_published(tensors)
    kohya = {KOHYA + module.replace(".", "_"): module for module in modules}
    plain: dict[str, torch.Tensor] = {}
    scales = dict(alphas or {})
    for name, tensor in tensors.items():
        stem, dot, rest = name.partition(".")
        name = f"{kohya[stem]}{dot}{rest}" if stem in kohya else name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        for theirs, ours in _UPS_AND_DOWNS.items():
            name = name.removesuffix(theirs) + ours if name.endswith(theirs) else name
        if name.endswith(".alpha") and tensor.numel() == 1:
            scales[name.removesuffix(".alpha")] = float(tensor)
        else:
            plain[name] = tensor.float()
    ranks = {module: len(a) for module, (a, _) in _pairs(plain).items() if a.dim() == 2}
    given = {module: scales.get(module, scales.get("", rank)) for module, rank in ranks.items()}
    return plain, {module: given[module] / rank for module, rank in ranks.items() if rank}


def first_three(problems: Sequence[str]) -> str:
    """The first of many clauses, each cut to a line or two, and how many more there are."""
    shown = (
        problem if len(problem) <= LONGEST_CLAUSE else problem[:LONGEST_CLAUSE] + "..." for problem in problems[:3]
    )
    return "; ".join(shown) + (f", and {len(problems) - 3} more" if len(problems) > 3 else "")


def num_parts(module: str) -> int:
    """How many things a linear computes at once: q, k and v, or shifts, scales and gates."""
    if module == "final_layer.adaLN_modulation.1":
        return 2
    ends = {"attn.qkv": 3, "cross_attn.kv_linear": 2, "adaLN_modulation.1": 6}
    return next((count for end, count in ends.items() if module.endswith(end)), 1)


def _pairs(state: State) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) by module, of the modules that have both."""
    modules = [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]
    pairs = {module: (state[f"{module}.lora_A.weight"], state.get(f"{module}.lora_B.weight")) for module in modules}
    return {module: (a, b) for module, (a, b) in pairs.items() if b is not None}


def _from_published(tensors: State) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    strangers = []
    for name, tensor in tensors.items():
        found = _PUBLISHED_PARTS.search(name)
        if found is None or not name.startswith(PUBLISHED):
            strangers.append(f"{name} is of another layout")
        else:
            parts[name[: found.start()]][found[1]] = tensor.float()
    problems = strangers + [problem for stem, own in parts.items() for problem in _published_problems(stem, own)]
    if problems:
        raise AdapterError(
            f"It is laid out as the published LoRAs are, but {first_three(problems)}.",
            "Save it again from where it comes from.",
        )
    plain: dict[str, torch.Tensor] = {}
    scales: dict[str, float] = {}
    for stem, own in parts.items():
        module = stem.removeprefix(PUBLISHED).replace(HYPHEN, ".")
        a, b = _joined(own["lora_down.weight"], _ups(own))
        plain[f"{module}.lora_A.weight"], plain[f"{module}.lora_B.weight"] = a, b
        scales[module] = float(own["alpha_scale"])
    return plain, scales


def _ups(own: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The parts of B, in their order."""
    if "lora_up.weight" in own:
        return [own["lora_up.weight"]]
    names = (name for name in own if name.startswith("lora_up"))
    return [own[name] for name in sorted(names, key=lambda name: int(name.split(".")[2]))]


def _published_problems(stem: str, own: Mapping[str, torch.Tensor]) -> list[str]:
    """One clause for every part of a module that is missing or does not fit the others."""
    missing = [f"{stem}.{name} is missing" for name in ("lora_down.weight", "alpha_scale") if name not in own]
    ups = _ups(own)
    if missing or not ups:
        return missing or [f"{stem}.lora_up.weight is missing"]
    if own["alpha_scale"].numel() != 1:
        return [f"{stem}.alpha_scale is no single number"]
    down = own["lora_down.weight"]
    indices = [name for name in own if name.startswith("lora_up.blocks.")]
    if indices and {f"lora_up.blocks.{i}.weight" for i in range(len(ups))} != set(indices):
        return [f"{stem}.lora_up.blocks has gaps"]
    if down.dim() != 2 or any(up.dim() != 2 or up.shape[1] * len(ups) != len(down) for up in ups):
        shapes = ", ".join(str(list(up.shape)) for up in ups)
        return [f"{stem}.lora_down.weight {list(down.shape)} and lora_up {shapes} do not fit"]
    return []


def _joined(down: torch.Tensor, ups: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of n parts: B is block-diagonal over the rows of `down`, or shares an A that is n times the same."""
    copies = down.chunk(len(ups)) if len(down) else (down,)
    if all(torch.equal(copies[0], copy) for copy in copies[1:]):
        return copies[0].clone(), torch.cat(ups)
    return down, torch.block_diag(*ups)

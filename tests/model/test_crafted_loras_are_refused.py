"""Files that are no LoRA, are cut off, lie about themselves or are too large: refused with the file's name and a
remedy, before their tensors are loaded."""

import io
import json
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from studio.core.errors import AdapterError
from studio.core.model import lora_file
from studio.core.model.lora import adapter_names, lora_applied

LAYER = "transformer.blocks.0.attn.qkv"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
GOOD = {A: torch.ones(4, 256), B: torch.ones(768, 4)}


def raw(header, data=b""):
    """A safetensors file of this header, a table or its text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(1,), begin=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def zip_file():
    with io.BytesIO() as data:
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02.")
        return data.getvalue()


CASES = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"\x00" * 5, "not a safetensors file"),
    "text": (b"This is a text file, not a LoRA.", "not a safetensors file"),
    "html": (b"<html><script>alert(1)</script></html>", "not a safetensors file"),
    "pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "a pickle which can run code. It was not opened"),
    "torch_zip": (zip_file(), "zip file, as PyTorch writes its pickles, which can run code"),
    "header_of_2_to_62": (struct.pack("<Q", 2**62) + b"{}", "not a safetensors file"),
    "header_of_101_mb_claimed": (struct.pack("<Q", 101 * 2**20) + b"{}", "not a safetensors file"),
    "header_over_the_limit": (raw({"__metadata__": {"a": "x" * (4 * 2**20)}}), "header takes 4,194,3"),
    "cut_in_the_header": (save(GOOD)[:40], "not a safetensors file"),
    "cut_in_the_tensors": (save(GOOD)[:-100], "cut off"),
    "extra_bytes": (save(GOOD) + b"\x00" * 64, "cut off"),
    "overlap": (raw({"a": entry(), "b": entry(begin=2, end=6)}, b"\x00" * 6), "cut off"),
    "hole": (raw({"a": entry(), "b": entry(begin=8, end=12)}, b"\x00" * 12), "cut off"),
    "backwards": (raw({"a": entry(begin=4, end=0)}, b"\x00" * 4), "cut off"),
    "size_differs_from_shape": (raw({"a": entry(shape=(3,))}, b"\x00" * 4), "cut off"),
    "shape_overflows": (raw({"a": entry(shape=(2**62, 2**62))}, b"\x00" * 4), "cut off"),
    "negative_shape": (raw({"a": entry(shape=(-1,))}, b"\x00" * 4), "cut off"),
    "no_utf8": (raw(b'{"\xff\xfe": 1}'), "header cannot be read"),
    "no_json": (raw(b"{not json}"), "header cannot be read"),
    "deep_json": (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "header cannot be read"),
    "no_table": (raw(b"[1, 2, 3]"), "no table"),
    "unknown_dtype": (raw({"a": entry(dtype="F7")}, b"\x00" * 4), "cut off"),
    "whole_numbers": (save({**GOOD, A: torch.ones(4, 256, dtype=torch.int64)}), "as I64"),
    "many_tensors": (raw({f"{i}": entry(shape=(0,), end=0) for i in range(4097)}), "4,097 tensors"),
    "duplicate_key": (raw(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), b"\x00" * 4), "'?a'? twice"),
    "nothing_in_it": (save({}), "no lora_A and lora_B"),
    "only_metadata": (save({}, {"note": "<script>alert(1)</script>"}), "no lora_A and lora_B"),
    "only_a": (save({A: GOOD[A]}), "lora_B.weight is missing"),
    "only_b": (save({B: GOOD[B]}), "lora_A.weight is missing"),
    "wrong_width": (save({A: torch.ones(4, 4096), B: torch.ones(12288, 4)}), r"\[4, 4096\], expected \[4, 256\]"),
    "ranks_differ": (save({A: torch.ones(4, 256), B: torch.ones(768, 8)}), r"\[768, 8\], expected \[768, 4\]"),
    "three_axes": (save({A: torch.ones(4, 16, 16), B: GOOD[B]}), "rank 1 or more"),
    "scalars": (save({A: torch.tensor(1.0), B: torch.tensor(1.0)}), "rank 1 or more"),
    "wrong_layer": (save({n.replace("attn.qkv", "attn.to_q"): t for n, t in GOOD.items()}), "no place in the model"),
    "other_model": (save({f"text_model.encoder.{i}.weight": torch.ones(2) for i in range(5)}), "and 2 more"),
    "long_names": (save({"x" * 100_000 + str(i): torch.ones(1) for i in range(5)}), "and 2 more"),
    "nan": (save({**GOOD, B: torch.full((768, 4), torch.nan)}), "contains NaN or infinity in 1 tensor"),
    "infinity": (save({**GOOD, A: torch.full((4, 256), torch.inf)}), "contains NaN or infinity in 1 tensor"),
    "alpha_0": (save({**GOOD, f"{LAYER}.alpha": torch.tensor(0.0)}), "alpha of 0"),
    "alpha_nan": (save({**GOOD, f"{LAYER}.alpha": torch.tensor(torch.nan)}), "NaN"),
    "metadata_no_json": (save(GOOD, {"lora_adapter_metadata": "{"}), "cannot be read"),
    "metadata_deep": (save(GOOD, {"lora_adapter_metadata": "[" * 100_000}), "cannot be read"),
    "metadata_no_number": (save(GOOD, {"lora_adapter_metadata": '{"transformer.lora_alpha": []}'}), "cannot be read"),
    "root_of_rank": (save(GOOD, {"lora_adapter_metadata": '{"transformer.use_rslora": true}'}), "use_rslora"),
    "published_and_other": (save({**GOOD, "lora___lorahyphen___x.alpha_scale": torch.ones(())}), "of another layout"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name_and_the_model_is_as_before(tiny_bundle, tmp_path, name):
    content, said = CASES[name]
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(content)
    with pytest.raises(AdapterError, match=said) as caught, lora_applied(tiny_bundle.dit, file):
        pass
    assert file.name in caught.value.message
    assert caught.value.remedy
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert adapter_names(tiny_bundle.dit) == ()
    assert file.read_bytes() == content


BEFORE_TENSORS = (
    "pickle", "torch_zip", "header_of_2_to_62", "header_of_101_mb_claimed", "header_over_the_limit", "no_json",
    "deep_json", "no_table", "many_tensors", "duplicate_key",
)  # fmt: skip


@pytest.mark.parametrize("name", BEFORE_TENSORS)
def test_limits_are_looked_at_before_any_tensor(tiny_bundle, tmp_path, monkeypatch, name):
    def fail(*_, **__):
        raise AssertionError("a tensor was looked at")

    monkeypatch.setattr(lora_file, "_read_tensor", fail)
    monkeypatch.setattr(lora_file, "safe_open", fail)
    (tmp_path / "lora.safetensors").write_bytes(CASES[name][0])
    with pytest.raises(AdapterError, match=CASES[name][1]):
        lora_file.load_lora(tiny_bundle.dit, tmp_path / "lora.safetensors")


def test_a_folder_is_no_lora(tiny_bundle, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(AdapterError, match="folder"), lora_applied(tiny_bundle.dit, tmp_path / "folder.safetensors"):
        pass


@pytest.mark.parametrize("length", [0x1080, 0x4B50], ids=["a pickle", "a zip file"])
def test_a_header_whose_length_begins_like_another_format_is_read(tmp_path, length):
    file = tmp_path / "lora.safetensors"
    bare = struct.unpack("<Q", save(GOOD, metadata={"note": ""})[:8])[0]
    save_file(GOOD, file, metadata={"note": "x" * (length - bare)})
    assert struct.unpack("<Q", file.read_bytes()[:8]) == (length,)
    assert lora_file.read_safetensors(file)[0].keys() == GOOD.keys()


def test_files_over_the_size_limit_are_refused_unread(tiny_bundle, tmp_path):
    file = tmp_path / "large.safetensors"
    with file.open("wb") as opened:
        opened.write(raw({"a": entry(end=lora_file.MAX_FILE_BYTES, shape=(2**30,))}))
        opened.truncate(lora_file.MAX_FILE_BYTES + 100)
    with pytest.raises(AdapterError, match=r"file takes 4,294,967,396 bytes"), lora_applied(tiny_bundle.dit, file):
        pass


def test_the_published_loras_are_within_the_limits():
    """1,543 tensors, 802.3 million fp32 parameters; about 130 bytes of header for each tensor."""
    assert lora_file.MAX_TENSORS > 1543
    assert lora_file.MAX_FILE_BYTES > 802_300_000 * 4
    assert lora_file.MAX_HEADER_BYTES > 1543 * 250


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_of_floats_is_taken(tiny_bundle, tmp_path, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in GOOD.items()}, tmp_path / "lora.safetensors")
    weights = lora_file.load_lora(tiny_bundle.dit, tmp_path / "lora.safetensors")
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float32}
    assert all(bool((tensor == 1).all()) for tensor in weights.tensors.values())


CUT_OFF_WHILE_READ = """
import sys
from pathlib import Path
from studio.core.errors import AdapterError
from studio.core.model import lora_file

file = Path(sys.argv[1])
tensors, _ = lora_file.read_safetensors(file)
file.write_bytes(b"")
print(sum(tensor.sum().item() for tensor in tensors.values()))

file.write_bytes(Path(sys.argv[2]).read_bytes())
read = lora_file._read_tensor
def cut_first(*arguments):
    file.write_bytes(file.read_bytes()[:600])
    return read(*arguments)
lora_file._read_tensor = cut_first
try:
    lora_file.read_safetensors(file)
except AdapterError as error:
    print(error.message)
"""


def test_a_file_that_is_cut_off_meanwhile_ends_no_process(tmp_path):
    for name in ("lora.safetensors", "copy.safetensors"):
        save_file(GOOD, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", CUT_OFF_WHILE_READ, tmp_path / "lora.safetensors", tmp_path / "copy.safetensors"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(4.0 * 256 + 768 * 4), "lora.safetensors became shorter while it was read."]

"""Hostile checkpoints that somebody could publish.

Each case changes a good tiny checkpoint; most are small. `TEXT` starts from a Llama, `VISION`
from a Qwen2-VL. Code that any of them brings leaves a file where `checkpoints.mark_of` says.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import checkpoints

Case = Callable[[Path], None]
TEXT: dict[str, Case] = {}
VISION: dict[str, Case] = {}


class Touches:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def text(case: Case) -> Case:
    """Register a case of a text model."""
    TEXT[case.__name__] = case
    return case


def vision(case: Case) -> Case:
    """Register a case of a vision model."""
    VISION[case.__name__] = case
    return case


def config(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Change entries of a JSON file."""
    checkpoints.update_json(folder / file, changes)


def nested(folder: Path, part: str, file: str = "config.json", **changes: Any) -> None:
    """Change entries of a part of a JSON file."""
    held = json.loads((folder / file).read_text())
    checkpoints.update_json(folder / file, {part: {**held.get(part, {}), **changes}})


def raw(folder: Path, content: str | bytes, file: str = "config.json") -> None:
    """Write a file, replacing any existing one."""
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def header(folder: Path, content: Any, size: int = 0, length: int | None = None) -> None:
    """Write a weight file with any header."""
    said = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(said) if length is None else length) + said)
    with path.open("r+b") as file:
        file.truncate(8 + len(said) + size)


def tensor(shape: Any, begin: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    """Return a header with one tensor."""
    return {"model.a": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


def _number(key: str, value: Any, name: str | None = None, part: str | None = None) -> None:
    label = name or f"{key}_{value}".replace(" ", "_")[:60]

    def case(folder: Path) -> None:
        if part is None:
            config(folder, **{key: value})
        else:
            nested(folder, part, **{key: value})

    case.__name__ = label
    (VISION if part else TEXT)[label] = case


_value: Any
for _key in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "head_dim"):
    for _value in (10**9, 2**62, -1, 0, "many", [2], 1.5, None, True):
        _number(_key, _value)
for _key in ("intermediate_size", "num_key_value_heads", "max_position_embeddings"):
    for _value in (2**62, -5, "x"):
        _number(_key, _value)
for _value in (
    {"bits": 0, "group_size": 64},
    {"bits": 4, "group_size": 0},
    {"bits": "x"},
    "4bit",
    {"bits": 4, "group_size": -1},
    {"bits": 1e308, "group_size": []},
    [4, 64],
    {},
):
    _number("quantization", _value)
for _key in ("depth", "hidden_size", "patch_size", "embed_dim", "num_heads"):
    for _value in (10**9, -1, "x"):
        _number(_key, _value, f"tower_{_key}_{_value}", "vision_config")
for _value in (
    "\x1b[2J\x1b]0;owned\x07",
    "llama\n\nPASSWORD:",
    "\u202ellama",
    "a" * 100_000,
    "../x",
    "os",
    "llama\0",
    7,
    {},
    [],
):
    _number("model_type", _value, f"model_type_{len(TEXT)}")
for _value in (
    "\x1b]8;;http://x\x07",
    ["\u202e"],
    {"mode": "\x1b[31m\n", "bits": 4, "group_size": 64},
):
    _number("quantization_config", _value, f"quantization_config_{len(TEXT)}")
for _value in ({"rope_type": "llama3", "factor": 0}, {"rope_type": "x"}, {"type": []}, "x", 1e400):
    _number("rope_scaling", _value, f"rope_scaling_{len(TEXT)}")


def _file(name: str, content: str | bytes, label: str, *, of: dict[str, Case] = TEXT) -> None:
    def case(folder: Path) -> None:
        raw(folder, content, name)

    case.__name__ = label
    of[label] = case


DEEP = "[" * 983 + "]" * 983
for _name in (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
):
    _stem = _name.removesuffix(".json")
    _file(_name, '{"a": ' + DEEP + ', "auto_map": {"AutoTokenizer": "evil.Evil"}}', f"{_stem}_deep")
    _file(_name, '{"a": ' * 100_000, f"{_stem}_cut_deep")
    _file(_name, b"\xff\xfe{}", f"{_stem}_other_encoding")
    _file(_name, '{"a": 1, "a": 2}', f"{_stem}_key_twice")
    _file(_name, '{"a": ' + "9" * 5000 + "}", f"{_stem}_long_number")
    _file(_name, '{"a": NaN, "b": 1e999}', f"{_stem}_no_numbers")
    _file(_name, b"\0" * 1000, f"{_stem}_zeros")
    _file(_name, "", f"{_stem}_empty")
    _file(_name, "[]", f"{_stem}_list")
    _file(_name, '{"\\ud800": "\\udfff"}', f"{_stem}_half_characters")
    _file(_name, "{}" + " " * 30_000_000, f"{_stem}_30_MB")
_file(
    "generation_config.json",
    '{"temperature": "hot", "top_p": [], "top_k": {}, "do_sample": "x", "eos_token_id": "x"}',
    "generation_config_odd_types",
)
_file(
    "generation_config.json",
    '{"temperature": -1e308, "top_p": 1e308, "top_k": 9223372036854775807}',
    "generation_config_odd_numbers",
)
_file(
    "generation_config.json", '{"eos_token_id": [[1], {"a": 2}], "temperature": true}', "eos_nested"
)


def _device(name: str, make: Callable[[Path], object], label: str) -> None:
    for file in ("config.json", "tokenizer_config.json", "model.safetensors", "tokenizer.json"):

        def case(folder: Path, file: str = file) -> None:
            (folder / file).unlink()
            make(folder / file)

        case.__name__ = f"{label}_{file}"
        TEXT[case.__name__] = case
    assert name


def _listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path.name)
    finally:
        os.chdir(here)
    server.close()


_device("zero", lambda p: p.symlink_to("/dev/zero"), "dev_zero")
_device("fifo", lambda p: os.mkfifo(p), "fifo")
_device("socket", _listening, "socket")
_device("loop", lambda p: p.symlink_to(p.name), "loop")
_device("folder", lambda p: p.mkdir(), "folder")
_device("tty", lambda p: p.symlink_to("/dev/tty"), "tty")
_device("gone", lambda p: p.symlink_to("/nowhere"), "dangling")


_NOTHING = json.dumps(tensor([0], 0, 0)["model.a"]).encode()
_HEADERS: dict[str, tuple[Any, int, int | None]] = {
    "digits": (tensor([int("9" * 3000)]), 4, None),
    "overflow": (tensor([2**32, 2**32], 0, 0), 0, None),
    "overflow_to_size": (tensor([2**62, 4], 0, 0), 0, None),
    "negative_shape": (tensor([-1, -1]), 4, None),
    "negative_offset": (tensor([1], -4, 0), 4, None),
    "end_before_start": (tensor([1], 8, 4), 8, None),
    "bool_shape": (tensor([True]), 4, None),
    "float_shape": (tensor([1.0]), 4, None),
    "unknown_dtype": (tensor([1], dtype="Q9"), 4, None),
    "odd_dtype": (tensor([1], dtype="\x1b[31m"), 4, None),
    "dtype_list": (tensor([1], dtype=[]), 4, None),
    "no_tensors": ({}, 0, None),
    "metadata_only": ({"__metadata__": {"a": [1]}}, 0, None),
    "list": ([], 0, None),
    "no_object": ({"a": 1}, 0, None),
    "length_lies": (tensor([1]), 4, 2**63),
    "length_zero": (b"", 4, 0),
    "length_short": (tensor([1]), 4, 5),
    "overlap": ({**tensor([1]), "b": tensor([1])["model.a"]}, 4, None),
    "hole": ({**tensor([1]), "b": tensor([1], 100, 104)["model.a"]}, 104, None),
    "deep": (b'{"a": ' + DEEP.encode() + b"}", 0, None),
    "many": ({f"t{i}": tensor([0], 0, 0)["model.a"] for i in range(100_000)}, 0, None),
    "million": (
        b"{" + b",".join(b'"%d":%s' % (i, _NOTHING) for i in range(10**6)) + b"}",
        0,
        None,
    ),
    "names": ({"\x1b[2J\n": tensor([1])["model.a"]}, 4, None),
    "sparse_100_GB": (tensor([25 * 10**9], 0, 10**11), 10**11, None),
    "dimensions": (tensor([1] * 10_000), 4, None),
    "key_twice": (b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": 1}', 0, None),
}
for _label, (_content, _size, _length) in _HEADERS.items():

    def _with_header(
        folder: Path, c: Any = _content, s: int = _size, n: int | None = _length
    ) -> None:
        header(folder, c, s, n)

    _with_header.__name__ = f"header_{_label}"
    TEXT[_with_header.__name__] = _with_header


_MAPS: dict[str, Any] = {
    "outside": {"a": "../../etc/passwd"},
    "absolute": {"a": "/etc/passwd"},
    "zero_byte": {"a": "model\0.safetensors"},
    "other_case": {"a": "MODEL.SAFETENSORS"},
    "device": {"a": "/dev/zero"},
    "folder": {"a": "."},
    "empty": {"a": ""},
    "numbers": {"a": 1},
    "list": [],
    "lines": {"a": "x\n\x1b[31m.safetensors"},
    "many": {str(i): f"model-{i}.safetensors" for i in range(20_000)},
    "surrogate": {"a": "\udc80.safetensors"},
    "long": {"a": "x" * 5000},
    "windows": {"a": "..\\..\\x.safetensors"},
}
for _label, _map in _MAPS.items():

    def _with_map(folder: Path, weight_map: Any = _map) -> None:
        checkpoints.write_json(
            folder / "model.safetensors.index.json", {"weight_map": weight_map, "metadata": {}}
        )

    _with_map.__name__ = f"index_{_label}"
    TEXT[_with_map.__name__] = _with_map


_IMAGES: dict[str, dict[str, Any]] = {
    "size_huge": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 10**6, "width": 10**6},
    },
    "edge_huge": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 10**5}},
    "size_number": {"image_processor_type": "CLIPImageProcessor", "size": 10**6},
    "crop_huge": {"crop_size": {"height": 10**6, "width": 10**6}},
    "max_pixels": {"max_pixels": 10**12, "min_pixels": 10**11},
    "min_pixels": {"min_pixels": 10**10},
    "longest_edge": {"size": {"shortest_edge": 10**10, "longest_edge": 10**12}},
    "patch_1": {"patch_size": 1, "max_pixels": 10**8, "min_pixels": 10**8},
    "patch_0": {"patch_size": 0},
    "patch_negative": {"patch_size": -14},
    "patch_text": {"patch_size": "x"},
    "merge_0": {"merge_size": 0},
    "sequence": {"image_seq_length": 10**9},
    "tiles": {"max_tiles": 10**9, "max_crops": 10**9, "max_image_tiles": 10**9},
    "mean_text": {"image_mean": "x", "image_std": [0, 0, 0]},
    "class_unknown": {"image_processor_type": "os.system"},
    "class_list": {"image_processor_type": ["x"], "processor_class": {}},
    "resample": {"resample": 10**9},
    "frames": {"max_frames": 10**9},
    "factor": {"rescale_factor": 1e308},
}
for _label, _demand in _IMAGES.items():

    def _with_demand(folder: Path, demand: dict[str, Any] = _demand) -> None:
        config(folder, "preprocessor_config.json", **demand)

    _with_demand.__name__ = f"images_{_label}"
    VISION[_with_demand.__name__] = _with_demand


def _tokenizer(label: str, change: Callable[[dict[str, Any]], object]) -> None:
    def case(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    case.__name__ = f"tokenizer_{label}"
    TEXT[case.__name__] = case


def _splits(pattern: str) -> Callable[[dict[str, Any]], object]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return lambda content: content.update(pre_tokenizer=split)


def _adds(count: int, **more: Any) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        content["added_tokens"] += [
            {
                "id": 10_000 + i,
                "content": f"<{i}>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
                **more,
            }
            for i in range(count)
        ]

    return change


_tokenizer("backtracks", _splits(r"(\w*\s*)*\d$"))
_tokenizer("backtracks_too", _splits(r"(.|.)*\d$"))
_tokenizer("no_expression", _splits(r"((("))
_tokenizer("expression_long", _splits("(a|" * 50_000))
_tokenizer("adds_100000", _adds(100_000))
_tokenizer("adds_far", _adds(3, id=2**31 - 1))
_tokenizer("model_text", lambda content: content.update(model="x"))
_tokenizer("no_model", lambda content: content.pop("model"))
_tokenizer("merges_odd", lambda content: content["model"].update(merges=[["a"], 1, None]))
_tokenizer("vocab_odd", lambda content: content["model"].update(vocab={"a": -1, "b": 2**40}))
_tokenizer("template_odd", lambda content: content.update(post_processor={"type": "Sequence"}))


def _grows(part: str, inner: str, step: dict[str, Any], times: int) -> None:
    content = {part: {"type": "Sequence", inner: [step] * times}}
    label = f"{part}_grows_by_{next(iter(step.values()))}_{times}"
    _tokenizer(label, lambda held: held.update(content))


def _replaces(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


_grows("normalizer", "normalizers", _replaces({"String": "e"}, "ee"), 40)
_grows("normalizer", "normalizers", _replaces({"Regex": "(?!^)"}, "aa"), 41)
_grows("normalizer", "normalizers", _replaces({"String": "e"}, "e" * 1000), 12)
_grows("normalizer", "normalizers", {"type": "ByteLevel"}, 40)
_grows(
    "pre_tokenizer",
    "pretokenizers",
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    40,
)
_grows("decoder", "decoders", _replaces({"Regex": "."}, "a" * 8), 13)
_tokenizer(
    "last_comes_first",
    lambda held: held.update(
        model=held.pop("model"),
        normalizer={"type": "Sequence", "normalizers": [_replaces({"String": "e"}, "ee")] * 42},
    ),
)
_IDS = {"<s>": {"id": "<s>", "ids": [1] * 200_000, "tokens": ["<s>"] * 200_000}}
_tokenizer(
    "post_processor_adds",
    lambda held: held.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                *[{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 200,
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
            "special_tokens": _IDS,
        }
    ),
)
_tokenizer(
    "pads",
    lambda held: held.update(
        padding={
            "strategy": {"Fixed": 2**31},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        }
    ),
)


def _beside(label: str, file: str, content: dict[str, Any]) -> None:
    def case(folder: Path) -> None:
        path = folder / file
        held = json.loads(path.read_text()) if path.exists() else {}
        checkpoints.write_json(path, {**held, **content})

    case.__name__ = f"tokenizer_beside_{label}"
    TEXT[case.__name__] = case


_beside("added", "added_tokens.json", {f"<{i}>": 10_000 + i for i in range(200_000)})
_beside(
    "map", "special_tokens_map.json", {"extra_special_tokens": [f"<{i}>" for i in range(90_000)]}
)
_beside(
    "extra", "tokenizer_config.json", {"extra_special_tokens": [f"<{i}>" for i in range(90_000)]}
)
_beside(
    "older",
    "tokenizer_config.json",
    {"additional_special_tokens": [f"<{i}>" for i in range(90_000)]},
)
_beside("named", "tokenizer_config.json", {f"x{i}_token": f"<{i}>" for i in range(90_000)})
_beside(
    "decoder",
    "tokenizer_config.json",
    {"added_tokens_decoder": {str(10_000 + i): {"content": f"<{i}>"} for i in range(80_000)}},
)


@text
def tokenizer_of_another_version(folder: Path) -> None:
    """Let transformers read another file in the place of tokenizer.json."""
    content = json.loads((folder / "tokenizer.json").read_text())
    _adds(100_000)(content)
    checkpoints.write_json(folder / "tokenizer.4.0.0.json", content)
    config(folder, "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])


@text
def tokenizer_outside(folder: Path) -> None:
    """Let transformers read a tokenizer from elsewhere."""
    content = json.loads((folder / "tokenizer.json").read_text())
    _adds(100_000)(content)
    (folder.parent / "outside").mkdir()
    checkpoints.write_json(folder.parent / "outside" / "tokenizer.4.0.0.json", content)
    files = ["../outside/tokenizer.4.0.0.json"]
    config(folder, "tokenizer_config.json", fast_tokenizer_files=files)


@text
def tokenizer_cut(folder: Path) -> None:
    """Leave half of it."""
    path = folder / "tokenizer.json"
    raw(folder, path.read_bytes()[:1000] + b"}", "tokenizer.json")


def _asks_for_code(label: str, file: str, content: Any, *, of: dict[str, Case] = TEXT) -> None:
    def case(folder: Path) -> None:
        checkpoints.write_evil_code(folder)
        config(folder, file, **content)

    case.__name__ = f"code_{label}"
    of[case.__name__] = case


_AUTO = {
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoConfig": "evil.Evil",
    "AutoProcessor": "evil.Evil",
    "AutoImageProcessor": "evil.Evil",
}
for _file_name in (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "any.json",
):
    for _of in (TEXT, VISION):
        _asks_for_code(f"{_file_name}", _file_name, {"auto_map": _AUTO}, of=_of)
_asks_for_code("nested", "config.json", {"text_config": {"a": [{"auto_map": _AUTO}]}})
_asks_for_code(
    "elsewhere", "tokenizer_config.json", {"auto_map": {"AutoTokenizer": "x/y--evil.Evil"}}
)
_asks_for_code("model_file", "config.json", {"model_file": "evil.py"})
_asks_for_code("model_file_outside", "config.json", {"model_file": "../m/evil.py"})
_asks_for_code("model_file_empty", "config.json", {"model_file": ""})
_asks_for_code("lines", "config.json", {"auto_map": {"a\n\x1b[31m": "\u202e\x07"}})
_asks_for_code("moondream", "config.json", {"model_type": "moondream2"}, of=VISION)


@text
def pickles(folder: Path) -> None:
    """Replace the weights by pickled ones."""
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        raw(folder, pickle.dumps(Touches(checkpoints.mark_of(folder))), name)


@text
def pickle_called_safetensors(folder: Path) -> None:
    """Call a pickle what it is not."""
    raw(folder, pickle.dumps(Touches(checkpoints.mark_of(folder))), "model.safetensors")


@text
def names_by_case(folder: Path) -> None:
    """Write names that a file system may take for others."""
    checkpoints.write_evil_code(folder)
    for name in ("Tokenizer_Config.JSON", "tokenizer_config\uff0ejson", "\uff43onfig.json"):
        raw(folder, json.dumps({"auto_map": _AUTO}), name)


@text
def names_odd(folder: Path) -> None:
    """Write files whose names drive a terminal."""
    for name in ("\x1b[2J.json", "a\nb.json", "\u202e.json", os.fsdecode(b"\xff.json")):
        raw(folder, '{"auto_map": {"AutoTokenizer": "evil.Evil"}}', name)


@text
def files_many(folder: Path) -> None:
    """Fill the folder."""
    for i in range(3000):
        (folder / f"{i}.json").touch()


@text
def folders_many(folder: Path) -> None:
    """Fill it with folders."""
    for i in range(2500):
        (folder / f"{i}").mkdir()


@text
def subfolder_loop(folder: Path) -> None:
    """Lead a folder to itself."""
    (folder / "again").symlink_to(folder)
    (folder / "up").symlink_to("/")


@text
def template_runs(folder: Path) -> None:
    """Render forever, or run code."""
    raw(
        folder,
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "chat_template.jinja",
    )


@text
def template_huge(folder: Path) -> None:
    """Exceed the limits of a template."""
    raw(folder, "x" * 30_000_000, "chat_template.jinja")


@text
def words_huge(folder: Path) -> None:
    """Lay data beside it that no library reads."""
    with (folder / "added.txt").open("wb") as file:
        file.truncate(10**11)


@text
def merges_huge(folder: Path) -> None:
    """Add more words than are accepted."""
    raw(folder, "a b\n" * 30_000_000, "merges.txt")

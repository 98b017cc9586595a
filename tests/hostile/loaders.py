"""Every loader of mlx-vlm and mlx-lm, given a checkpoint that asks it to run code.

Run as ``python -m tests.hostile.loaders FOLDER`` in a process of its own: it prints one JSON
object, loader to what came of it, under our guard and without it (as a control).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import logging
import os
import pkgutil
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zlib import crc32

Loader = Callable[[Path], Any]

AUTO_MAP = {
    "AutoConfig": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoProcessor": "evil.Evil",
    "AutoImageProcessor": "evil.Evil",
    "AutoVideoProcessor": "evil.Evil",
    "AutoFeatureExtractor": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
}
CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "audio_tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
)
EVIL = """
import pathlib
pathlib.Path(MARK).write_text(__name__)
class Evil:
    def __init__(self, *args, **kwargs): pass
    @classmethod
    def from_pretrained(cls, *args, **kwargs): return cls()
    register_for_auto_class = from_pretrained
Model = ModelArgs = ModelConfig = Evil
"""
_MAY_LOAD = re.compile(r"from_pretrained|Processor|Tokenizer|Extractor|def \w*load")
# Functions of mlx-vlm that load from a folder take it under one of these names.
_FOLDERS = (
    "pretrained_model_name_or_path", "model_path", "model_name_or_path", "model_id", "model_dir",
    "path", "directory", "model", "tokenizer", "folder", "root", "weights_dir", "checkpoint",
)  # fmt: skip


@dataclass
class Outcome:
    """Outcome of a loader with a hostile checkpoint.

    Attributes
    ----------
    error : str
        Name of the error's class; empty if there was none.
    text : str
    ran : bool
        Whether the checkpoint's code ran.
    refused : list of str
        What the guard refused.
    unreached : list of str
        Addresses that it was kept from.
    reached : int
        Requests that came to the Hub.
    """

    error: str
    text: str
    ran: bool
    refused: list[str]
    unreached: list[str]
    reached: int


class Hub(BaseHTTPRequestHandler):
    """A Hub without repositories that counts requests."""

    asked = 0

    def do_GET(self) -> None:
        """Count, and answer 404."""
        Hub.asked += 1
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET  # noqa: N815 -- http.server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def poison(folder: Path, mark: Path, *, model_file: bool = False) -> Path:
    """Ask for code in every JSON file that a library may read, at every depth."""
    for name in ("evil.py", "modeling.py", "__init__.py", "tokenization_evil.py"):
        (folder / name).write_text(EVIL.replace("MARK", repr(str(mark))))
    for name in CONFIGS:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if path.parent != folder:
            shutil.copy(folder / "evil.py", path.parent / "evil.py")
        held = json.loads(path.read_text()) if path.is_file() else {}
        for part in (held, *(v for v in held.values() if isinstance(v, dict))):
            if part is held or "model_type" in part:
                part["auto_map"] = AUTO_MAP
        if name == "tokenizer_config.json":
            held["tokenizer_class"] = "EvilTokenizer"
        if name == "config.json" and model_file:
            held["model_file"] = "evil.py"
        path.write_text(json.dumps(held))
    return folder


def vision_functions() -> Iterator[tuple[str, Loader]]:
    """Find classes of mlx-vlm's models with a `from_pretrained`, and functions that load."""
    import mlx_vlm.models

    for module in pkgutil.walk_packages(mlx_vlm.models.__path__, "mlx_vlm.models."):
        if module.name.endswith((".convert", ".convert_weights", ".__main__")):
            continue
        # Importing all of them takes longer than all that is tried.
        spec = importlib.util.find_spec(module.name)
        if spec is None or not _MAY_LOAD.search(Path(str(spec.origin)).read_text("utf-8")):
            continue
        try:
            found = importlib.import_module(module.name)
        except Exception:
            continue
        for name, value in sorted(vars(found).items()):
            if getattr(value, "__module__", None) != module.name:
                continue
            label = f"{module.name.removeprefix('mlx_vlm.models.')}.{name}"
            if inspect.isclass(value) and hasattr(value, "from_pretrained"):
                yield f"{label}.from_pretrained", _called(value.from_pretrained)
            elif inspect.isfunction(value) and "load" in name.lower():
                parameters = list(inspect.signature(value).parameters.values())
                if parameters and parameters[0].name in _FOLDERS:
                    yield label, _called(value)


def _called(function: Callable[..., Any]) -> Loader:
    parameters = inspect.signature(function).parameters
    trusts = "trust_remote_code" in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    )

    def call(folder: Path) -> Any:
        try:
            return function(str(folder), **({"trust_remote_code": True} if trusts else {}))
        except TypeError:
            return function(str(folder))

    return call


def own_steps(library: str) -> Iterator[tuple[str, Loader]]:
    """Yield the library functions that our backends call, with the most permissive arguments."""
    if library == "mlx-vlm":
        from mlx_vlm import utils

        yield "load_processor", lambda f: utils.load_processor(f, True, trust_remote_code=True)
        yield (
            "load_image_processor",
            lambda f: utils.load_image_processor(f, trust_remote_code=True),
        )
        yield "load_model", lambda f: utils.load_model(f, lazy=True, trust_remote_code=True)
    else:
        from mlx_lm import utils as lm

        yield "load_tokenizer", lambda f: lm.load_tokenizer(f, {"trust_remote_code": True})
        yield "load_model", lambda f: lm.load_model(f, lazy=True, trust_remote_code=True)


def tried(loader: Loader, folder: Path, mark: Path, *, guarded: bool, aside: bool) -> Outcome:
    """Call a loader on this thread or in a `BackgroundCall`."""
    from mlx_magic.backends.loading import remote_code_guard
    from mlx_magic.backends.loading.background import BackgroundCall
    from mlx_magic.cancellation import CancelToken

    mark.unlink(missing_ok=True)
    _forget_code()
    asked = Hub.asked
    guard = remote_code_guard.Guard("m", [folder])
    error: BaseException | None = None
    with remote_code_guard.active(guard) if guarded else contextlib.nullcontext():
        made = BackgroundCall(lambda: loader(folder), here=not aside) if aside else None
        try:
            if made is None:
                loader(folder)
            else:
                steps = made.result(CancelToken())
                for _ in steps:
                    pass
        except BaseException as e:  # a library may call sys.exit
            error = e
    return Outcome(
        "" if error is None else type(error).__name__,
        " ".join(str(error or "").split())[:200],
        mark.exists(),
        guard.refused[:3],
        guard.unreached[:3],
        Hub.asked - asked,
    )


def _forget_code() -> None:
    """Let each loader be the first to import the code."""
    for name in [n for n in sys.modules if n.startswith("transformers_modules")]:
        del sys.modules[name]
    cache = os.environ["HF_MODULES_CACHE"]
    shutil.rmtree(cache, ignore_errors=True)
    importlib.invalidate_caches()


EVERY = int(os.environ.get("MLX_MAGIC_EVERY", "15"))
"""One in so many models and loaders is tried; 1 tries all, which takes some minutes."""


def is_tried(name: str) -> bool:
    """Say whether a loader that was found is tried: all of the known ones, and some others."""
    known = any(
        word in name for word in ("moondream", "got.", "inkling.", "deepseekocr.", "kimi_vl.")
    )
    return known or name.startswith("internvl_chat.") or crc32(name.encode()) % EVERY == 0


def main(folder: Path) -> dict[str, dict[str, Outcome]]:
    """Try all loaders with checkpoints below a folder."""
    from tools.tiny_models.spec import all_models, build, shrunk

    mark = folder / "ran"
    found: dict[str, dict[str, Outcome]] = {}

    def both(name: str, loader: Loader, place: Path, *, aside: bool, control: bool = True) -> None:
        # Guarded first: code that ran once may be found in sys.modules later.
        found[name] = {
            way: tried(loader, place, mark, guarded=way == "guarded", aside=aside)
            for way in ("guarded", "bare")[: 1 + control]
        }

    base = folder / "base"
    walked = [(name, loader) for name, loader in vision_functions() if is_tried(name)]
    wanted = {name.partition(".")[0] for name, _ in walked} | {"llava"}
    seen: set[tuple[str, str]] = set()
    clean: dict[str, Path] = {}
    for model in all_models():
        if (model.library, model.architecture) in seen or model.variant:
            continue
        seen.add((model.library, model.architecture))
        own = len(seen) % EVERY == 0
        if not own and model.architecture not in wanted:
            continue
        build(model, base / model.name)
        shrunk(model.architecture)
        clean.setdefault(model.architecture, base / model.name)
        for by_file in (False, True) if own else ():
            place = folder / ("m" if not by_file else "f")
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(base / model.name, place)
            poison(place, mark, model_file=by_file)
            for step, loader in own_steps(model.library):
                if by_file and step != "load_model":
                    continue
                key = f"{model.library} {model.name} {step}{' model_file' * by_file}"
                # mlx-lm has one way for all its models: a few controls tell that it would run.
                control = model.library == "mlx-vlm" or len(seen) % (2 * EVERY) == 0
                both(key, loader, place, aside="model" not in step, control=control)
    place = folder / "w"
    for name, loader in walked:
        source = clean.get(name.partition(".")[0], clean["llava"])
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        poison(place, mark)
        both(f"walk {name}", loader, place, aside=True)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        result = main(Path(sys.argv[1]))
    said = {name: {k: asdict(o) for k, o in ways.items()} for name, ways in result.items()}
    print(json.dumps(said))

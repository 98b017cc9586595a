"""Policy of a loaded model: batch its requests, or answer one at a time, and why.

Weights that passed the comparison of batched and single rows are stored across kernels. Models are
known by the signature of their language model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_magic import user_folders
from mlx_magic.backends import upstream
from mlx_magic.backends.batch_check.compare_rows import Budget, ProbedModel, rows_agree
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.batch import JointPrefill
from mlx_magic.backends.batching.kv_cache import leaf_caches
from mlx_magic.backends.device import platform
from mlx_magic.backends.device import platform as device_platform
from mlx_magic.backends.prefix_cache.prompt_cache import CacheKind
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.formatting import one_line
from mlx_magic.models.checkpoints import architectures, batch_support
from mlx_magic.models.checkpoints.architectures import Kind
from mlx_magic.models.checkpoints.batch_support import Signature, Verdict, text_part, traits
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.checkpoints.config_limits import HEADS

NAME = "together.json"
MOST = 1000
"""Maximum number of entries; the oldest are dropped first."""

_JOINT: tuple[JointPrefill, ...] = ("alone", "equal", "padded")

_VERSIONS = ("mlx-magic", "mlx", "mlx-vlm", "mlx-lm", "transformers")


def default_path() -> Path | None:
    """Return the path of the file; None if the user has no cache folder."""
    folder = user_folders.cache()
    return None if folder is None else folder / NAME


class VerdictCache:
    """Whether the weights of one checkpoint have passed the comparison on this machine.

    Errors of the file are ignored: the weights are then compared again.

    Parameters
    ----------
    checkpoint : Checkpoint
    path : Path, optional
        Used instead of `default_path`.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path | None = None) -> None:
        self._checkpoint = checkpoint
        self._path = path

    @cached_property
    def _key(self) -> str:
        return fingerprint(self._checkpoint)

    @property
    def known(self) -> bool:
        """Whether the weights have passed."""
        return self._entry() is not None

    @property
    def joint_prefill(self) -> JointPrefill:
        """How prompts may share a prefill with these weights."""
        how = (self._entry() or "").removeprefix(f"{self._key} ")
        return next((known for known in _JOINT if known == how), "alone")

    def keep(self, joint_prefill: JointPrefill) -> None:
        """Store that the weights have passed, and how prompts may share a prefill."""
        path = self._path or default_path()
        if path is None:
            return
        with contextlib.suppress(OSError, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            others = (entry for entry in self._read() if not entry.startswith(self._key))
            keys = [*others, f"{self._key} {joint_prefill}"][-MOST:]
            # Atomic: another kernel reads the old file or the new one.
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, prefix=f".{NAME}.", delete=False, encoding="utf-8"
            ) as file:
                json.dump(keys, file)
            Path(file.name).replace(path)

    def _entry(self) -> str | None:
        """Return what is stored about these weights."""
        with contextlib.suppress(OSError):
            return next((e for e in self._read() if e.startswith(f"{self._key} ")), None)
        return None

    def _read(self) -> list[str]:
        try:
            path = self._path or default_path()
            # A larger file was not written by this class.
            if path is None or not path.is_file() or path.stat().st_size > 200 * MOST:
                return []
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return []
        return [key for key in held if isinstance(key, str)] if isinstance(held, list) else []


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a key that changes with the weights, the libraries and the device."""
    folders = [checkpoint.path, *([checkpoint.adapter.path] if checkpoint.adapter else [])]
    files = sorted(file for f in folders for file in f.glob("*") if _matters(file))
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    versions = [_version(name) for name in _VERSIONS]
    table = resources.files(batch_support.__package__).joinpath(batch_support.TABLE).read_bytes()
    shown = hashlib.sha256(table).hexdigest()
    held = [stats, versions, shown, device_platform.describe_device(), sys.platform]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


def _matters(file: Path) -> bool:
    return file.suffix in (".safetensors", ".json") and file.is_file()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


# MLX's own layers and adapters compute each row by itself, and so do this package's subclasses.
_PLAIN = ("mlx.nn.", "mlx_magic.")
_ADAPTERS = (".tuner.", ".trainer.")


def signature(library: str, language_model: Any, config: Any, caches: Sequence[Any]) -> Signature:
    """Return the properties that decide whether a model's requests can be batched.

    Parameters
    ----------
    library : {"mlx-vlm", "mlx-lm"}
    language_model : mlx.nn.Module
    config : object
        Configuration of the whole model, as the library reads it, with its defaults.
    caches : sequence
        New caches of the language model, one per layer.
    """
    return Signature(
        library,
        tuple(sorted({name for m in language_model.modules() for name in _class_name(m)})),
        tuple(sorted({type(cache).__name__ for cache in leaf_caches(list(caches))})),
        traits(_language_config(language_model, config)),
    )


def _class_name(module: Any) -> Iterator[str]:
    cls = type(module)
    name = f"{cls.__module__}.{cls.__qualname__}"
    rotary = "rope" in cls.__name__.lower()
    if any(part in name for part in _ADAPTERS) or (name.startswith(_PLAIN) and not rotary):
        return
    # A quantized layer treats rows as the plain one does.
    yield name.replace("Quantized", "")


def _language_config(language_model: Any, config: Any) -> Mapping[str, Any]:
    """Return the configuration that has the numbers of heads, if there is one."""
    inner = getattr(language_model, "model", None)
    candidates = [
        getattr(owner, key, None)
        for owner in (language_model, inner)
        for key in ("args", "config")
        if owner is not None
    ]
    plain = [text_part(_plain(each)) for each in (*candidates, config) if each is not None]
    with_heads = (each for each in plain if any(key in each for key in HEADS))
    return next(with_heads, plain[0] if plain else {})


def _plain(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        held = dict(config)
    elif dataclasses.is_dataclass(config):
        held = {f.name: getattr(config, f.name, None) for f in dataclasses.fields(config)}
        held.update(vars(config))
    else:
        held = dict(vars(config)) if hasattr(config, "__dict__") else {}
    return {key: _plain(value) if _is_part(value) else value for key, value in held.items()}


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


DIFFERENT = "with its weights, batched answers differ from single ones"
NOT_COMPARED = "its weights are not compared yet, which happens when two questions run at once"
FAILED = "its weights could not be compared"

_log = logging.getLogger(__name__)


class BatchPolicy:
    """Whether requests to a model are batched; on the inference thread only.

    Parameters
    ----------
    table_verdict : Verdict
        Verdict of together.json for the model's signature.
    verdict_cache : VerdictCache
        Result of an earlier comparison of these weights.
    plain : bool
        Whether all caches are plain KV caches.

    Attributes
    ----------
    verdict : Verdict
        The current verdict, for display; safe from any thread.
    joint_prefill : {"alone", "equal", "padded"}
        How prompts share a prefill, if not all caches are plain ones.
    """

    def __init__(
        self, table_verdict: Verdict, verdict_cache: VerdictCache, *, plain: bool = True
    ) -> None:
        self._table_verdict = table_verdict
        self._verdict_cache = verdict_cache
        self._plain = plain
        self.verdict = table_verdict
        self.joint_prefill: JointPrefill = verdict_cache.joint_prefill
        if table_verdict.together and not verdict_cache.known:
            self._disable(NOT_COMPARED)

    @property
    def together(self) -> bool:
        """Whether requests are batched now."""
        return self.verdict.together

    @property
    def possible(self) -> bool:
        """Whether requests are batched, now or after a comparison of the weights."""
        return self.together or self.not_compared

    def cache_kind(self, caches: list[Any]) -> CacheKind | None:
        """Return how prompts may be cached; None if they must not be.

        A cached prefix is the end of a prefill chunk, so the model must read prompts in chunks.
        """
        if not self.possible:
            return None
        if kv_cache.all_plain(caches):
            return "plain"
        return "states" if self._table_verdict.chunks else None

    @property
    def not_compared(self) -> bool:
        """Whether the weights are still to be compared."""
        return self.verdict.why == NOT_COMPARED

    def chunk(self, nbytes: int) -> int:
        """Return the number of tokens per prefill chunk.

        Parameters
        ----------
        nbytes : int
            Bytes of the weights.
        """
        return platform.prefill_chunk(nbytes) if self.verdict.chunks else platform.LIBRARY_CHUNK

    def compare_weights(
        self, probed: ProbedModel, budget: Budget, cancel: CancelToken
    ) -> Generator[None, None, None]:
        """Compare the weights, unless that was done; one call of the model per slice.

        Raises
        ------
        Cancelled
        """
        if not self.not_compared:
            return
        try:
            agree, joint = yield from self._compare(probed, budget, cancel)
        except Cancelled:
            raise
        except Exception as error:
            _log.info("The weights could not be compared: %s", one_line(error))
            self._disable(FAILED)
            return
        if agree:
            self.verdict, self.joint_prefill = self._table_verdict, joint
            self._verdict_cache.keep(joint)
        elif agree is not None:
            self._disable(DIFFERENT)

    def _compare(
        self, probed: ProbedModel, budget: Budget, cancel: CancelToken
    ) -> Generator[None, None, tuple[bool | None, JointPrefill]]:
        """Return whether batched rows agree, and how they may share a prefill.

        Rows that do not agree with padding may still do so without it, or read one by one.
        """
        agree: bool | None = False
        try:
            agree = yield from rows_agree(probed, budget, cancel)
        except Cancelled:
            raise
        except Exception as error:
            if self._plain:
                raise
            _log.info("Padded rows could not be compared: %s", one_line(error))
        if agree is not False or self._plain:
            return agree, "padded"
        if not (yield from rows_agree(probed, Budget(None), cancel, joint="alone")):
            return False, "alone"
        equal = yield from rows_agree(probed, Budget(None), cancel, joint="equal")
        return True, "equal" if equal else "alone"

    def _disable(self, why: str) -> None:
        self.verdict = replace(self._table_verdict, together=False, why=why)


def batch_policy(
    library: str, checkpoint: Checkpoint, language_model: Any, config: Any, caches: list[Any]
) -> BatchPolicy:
    """Return the policy of a model that was just loaded.

    Parameters
    ----------
    library : {"mlx-vlm", "mlx-lm"}
    checkpoint : Checkpoint
    language_model, config : object
        As the library loads them.
    caches : list
        New caches, one per layer.
    """
    kind: Kind = "vision" if library == "mlx-vlm" else "text"
    architecture = architectures.module_name(kind, checkpoint.config)
    table_verdict = batch_support.verdict(
        signature(library, language_model, config, caches), architecture
    )
    if not caches or not all(hasattr(cache, "merge") for cache in leaf_caches(caches)):
        table_verdict = replace(
            table_verdict, together=False, why="its caches cannot be put together"
        )
    batches = upstream.VISION_BATCHES if kind == "vision" else upstream.TEXT_BATCHES
    if not batches.is_on(batch_caches_work):
        table_verdict = replace(table_verdict, together=False, why=str(batches.off))
    elif not upstream.positions_are_known(language_model):
        table_verdict = replace(table_verdict, together=False, why="its positions cannot be read")
    return BatchPolicy(table_verdict, VerdictCache(checkpoint), plain=kv_cache.all_plain(caches))


_MODEL = SimpleNamespace(layers=[None])


def batch_caches_work(names: Any) -> bool:
    """Whether rows of a batch's caches join, leave and move as expected; on the inference thread.

    Parameters
    ----------
    names : object
        The names of `upstream.TEXT_BATCHES` or `upstream.VISION_BATCHES`.
    """
    import mlx.core as mx

    with mx.stream(names.generation_stream):
        first, second, third = (_filled(names, row) for row in ([1, 2, 3], [5, 6], [8]))
        if not _holds([[1, 2, 3]], first):
            return False
        batch = type(first).merge([first, second])
        steps = [_holds([[1, 2, 3], [5, 6]], batch)]
        _add(batch, [[4], [7]])
        steps.append(_holds([[1, 2, 3, 4], [5, 6, 7]], batch))
        batch.extend(type(third).merge([third]))
        steps.append(_holds([[1, 2, 3, 4], [5, 6, 7], [8]], batch))
        batch.filter(mx.array([0, 2], mx.int32))
        # The second row is padded on the right, and the padding moves to the left.
        _add(batch, [[11, 12], [9, 0]])
        batch.prepare(right_padding=[0, 1])
        batch.finalize()
        steps.append(_holds([[1, 2, 3, 4, 11, 12], [8, 9]], batch))
        mx.eval(batch.state)
        bits = _filled(names, [1]).to_quantized(group_size=32, bits=8)
    return all(steps) and hasattr(bits, "update_and_fetch")


def _filled(names: Any, row: list[int]) -> Any:
    cache = names.make_prompt_cache(_MODEL)[0]
    _add(cache, [row])
    return cache


def _add(cache: Any, rows: list[list[int]]) -> None:
    import mlx.core as mx

    keys = mx.repeat(mx.array(rows, mx.float32)[:, None, :, None], 32, axis=-1)
    cache.update_and_fetch(keys, keys)


def _holds(rows: list[list[int]], cache: Any) -> bool:
    """Whether a cache holds these rows, read as `radix_tree.cut_out` does."""
    from mlx_magic.backends.prefix_cache.radix_tree import cut_out

    found = cut_out([cache], [(at, 0) for at in range(len(rows))])
    return rows == [[int(x) for x in layers[0][0][0, 0, :, 0].tolist()] for layers in found]

"""The first request after a load finds everything compiled and imported: it was asked before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from mlx_magic.backends.base import LoadedModel, LoadProgress
from mlx_magic.backends.device import platform
from mlx_magic.backends.library_errors import no_panics
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.formatting import one_line
from mlx_magic.images.opening import ImageInput, open_images

if TYPE_CHECKING:
    from mlx_magic.engine.engine import Steps

_log = logging.getLogger(__name__)

TOKENS = 2
"""Of the answer that nobody reads: the second is the first that a decode step writes."""

SMALL = 64 * 2**20
"""Bytes of a model that is so quick on a CPU that it answers there too."""

SIDE = 96
"""Pixels of the picture that nobody sees; processors scale it to what they want."""


def warmed(
    model: LoadedModel,
    request: GenerationRequest,
    prepare: Callable[[GenerationRequest, CancelToken], Generator[None, None, object]],
    *,
    cancel: CancelToken,
    progress: LoadProgress,
) -> Steps:
    """Let a model answer a request of nobody's, in slices; on the inference thread.

    On a GPU each kernel is compiled when it is first used: without this the first token of
    a 2 B model took 42 s on CUDA. On a CPU there is nothing to compile, and an answer of a
    large model takes long: there it only makes the request's inputs, for what that imports.

    Parameters
    ----------
    model : LoadedModel
    request : GenerationRequest
        See `sample`.
    prepare : callable
        Makes what the model is given of the request, in slices.
    cancel : CancelToken
        The load's.
    progress : callable
        Takes bytes done, bytes in all and a note.

    Raises
    ------
    Cancelled
    """
    progress(model.nbytes, model.nbytes, "loading: warming up")
    yield None
    cancel.checkpoint()
    try:
        with no_panics():
            if platform.is_gpu() or model.nbytes <= SMALL:
                yield from model.generate(request, cancel=cancel, report=lambda chunk: None)
            else:
                yield from prepare(request, cancel)
    except Cancelled:
        raise
    except Exception as error:
        # The person's own request will tell, in words that fit it.
        _log.info("%s could not be warmed up: %s", request.model, one_line(error))
    model.forget()


def sample(model: str, *, image: bool) -> GenerationRequest:
    """Return a request for the warm-up, about a picture of noise where the model sees."""
    images: tuple[ImageInput, ...] = ()
    if image:
        import numpy as np

        noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        images = tuple(open_images([noise]))
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
    return GenerationRequest("Hello", model=model, images=images, sampling=sampling)

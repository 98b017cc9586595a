"""Warm-up: a dummy request after the load compiles kernels and imports libraries."""

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
"""Tokens of the dummy answer: the second one needs a decode step."""

SMALL = 64 * 2**20
"""Bytes of weights up to which the dummy request is answered on a CPU, too."""

SIDE = 96
"""Side of the dummy image, in pixels; processors rescale it."""


def warmed(
    model: LoadedModel,
    request: GenerationRequest,
    prepare: Callable[[GenerationRequest, CancelToken], Generator[None, None, object]],
    *,
    cancel: CancelToken,
    progress: LoadProgress,
) -> Steps:
    """Run a dummy request, in slices; on the inference thread.

    On a GPU each kernel is compiled at its first use: without a warm-up the first token of a 2 B
    model took 42 s on CUDA. On a CPU there is nothing to compile, and a large model takes long to
    answer: there only the request's inputs are made, for the imports.

    Parameters
    ----------
    model : LoadedModel
    request : GenerationRequest
        See `sample`.
    prepare : callable
        Makes the model's inputs for the request, in slices.
    cancel : CancelToken
        Token of the load.
    progress : callable
        Takes bytes done, total bytes and a note.

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
        # The user's first request will report the error.
        _log.info("%s could not be warmed up: %s", request.model, one_line(error))
    model.forget()


def sample(model: str, *, image: bool) -> GenerationRequest:
    """Return the dummy request, with an image of noise for a vision model."""
    images: tuple[ImageInput, ...] = ()
    if image:
        import numpy as np

        noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        images = tuple(open_images([noise]))
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
    return GenerationRequest("Hello", model=model, images=images, sampling=sampling)

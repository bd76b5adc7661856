"""How much of a clip may be decoded, for those who take clips of strangers: `Video.limit`, counted frame by frame."""

import time

from unimm.data.image_forms import ImageError


class DecodingLimit:
    """How much is decoded at most of the clips that it is the `limit` of, over all that is asked of them together.

    max_pixels: width x height of all frames that are decoded, shown or not. max_seconds: of work, from the first frame on.
    """

    def __init__(self, max_pixels: int, max_seconds: float) -> None:
        self.max_pixels, self.max_seconds = max_pixels, max_seconds
        self._num_pixels, self._deadline, self._is_stopped = 0, 0.0, False

    def stop(self) -> None:
        """Nobody waits for the frames any more: the next one ends the work. From any thread."""
        self._is_stopped = True

    def count(self, width: int, height: int) -> None:
        """Count a frame that was decoded.

        Raises:
            ImageError: it is one too many, or it took too long; so does each that comes after it.
        """
        self._num_pixels += width * height
        self._deadline = self._deadline or time.monotonic() + self.max_seconds
        if self._is_stopped:
            raise ImageError("Nobody waits for the frames of the video any more: ask again.")
        shorter = "send a shorter or smaller one, or one with more key frames"
        if self._num_pixels > self.max_pixels:
            raise ImageError(f"More than {self.max_pixels:,} pixels of the video would have to be decoded: {shorter}.")
        if time.monotonic() > self._deadline:
            raise ImageError(f"The video takes longer than {self.max_seconds:g} seconds to decode: {shorter}.")

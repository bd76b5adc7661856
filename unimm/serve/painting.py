"""Images of which a part is to be painted, within the server's limits: for the API's route and for the page."""

from unimm.data.records import ImageLike
from unimm.inference.inpainting import Marked, read_marked
from unimm.inference.windows_of_images import Sides, choose_windows, extend_image
from unimm.serve.errors import ApiError
from unimm.serve.service import engine_error

MAX_PIXELS = 2**22
"""Of an image that comes back in its own size."""


def mark_image(
    image: ImageLike, mask: ImageLike | None, sides: Sides, num_images: int, most: int, square: int | None = None
) -> Marked:
    """An image with what is to be painted of it: where a mask says, else around it, else where it is transparent. Slow: not for
    the event loop.

    most: squares that one request may have painted, in all of its `num_images` images. square: as `read_marked` takes it.

    Raises:
        ApiError: 400, the mask does not fit, or the image is larger or longer than is drawn here.
    """
    try:
        if any(sides):
            canvas, is_new = extend_image(image, sides, max_pixels=MAX_PIXELS)
            marked = Marked(canvas, is_new, choose_windows(is_new))
        else:
            marked = read_marked(image, mask, square)
    except ValueError as error:
        raise engine_error(error) from None
    height, width = marked.is_marked.shape
    check_size(width, height)
    if num_images > most // len(marked.windows):
        sentence = f"An image of {width}x{height} is drawn in {len(marked.windows)} squares"
        raise ApiError(400, f"{sentence}, so n is at most {most // len(marked.windows)} here: send a smaller image.", param="n")
    return marked


def check_size(width: int, height: int) -> None:
    """ApiError: 400, an image is too large to come back in its own size."""
    if width * height > MAX_PIXELS:
        sentence = f"An image of {width}x{height} has more than {MAX_PIXELS:,} pixels"
        raise ApiError(400, f"{sentence}: send a smaller one, or ask for a size.", param="image")

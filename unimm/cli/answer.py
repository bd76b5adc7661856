"""What `unimm answer` is given: images with one question, and examples as IMAGE=ANSWER. Read before a model is loaded."""

import os

from unimm.cli.options import read_dash


def read_images(words: list[str]) -> tuple[str | bytes | tuple[str | bytes, ...], str]:
    """Images and, behind them, the question: one image, or a tuple of several that the question is about.

    Raises:
        ValueError: there is no image, a file is not there, or there is no question: the last word is a file.
    """
    *images, question = words
    if not images:
        raise ValueError('Name an image, and then ask about it: unimm answer photo.jpg "How many circles are there?".')
    if _is_file(question):
        raise ValueError(f"'{question}' is a file: say after the images what to ask about them, in quotes.")
    paths = tuple(map(_existing, images))
    return (paths[0] if len(paths) == 1 else paths), question


def read_pairs(examples: list[str]) -> list[tuple[str | bytes, str]]:
    """Examples as pairs (image, answer). The first `=` behind the name of a file is where the answer begins.

    Raises:
        ValueError: one has no `=` or no answer, or its file is not there.
    """
    return [_read_pair(example) for example in examples]


def _read_pair(example: str) -> tuple[str | bytes, str]:
    places = [place for place, letter in enumerate(example) if letter == "="]
    place = next((place for place in places if _is_file(example[:place])), places[0] if places else len(example))
    image, answer = example[:place], example[place + 1 :].strip()
    if not answer:
        raise ValueError(f"The example '{example}' has no answer: write IMAGE=ANSWER, such as --example {image}=dax.")
    return _existing(image), answer


def _existing(image: str) -> str | bytes:
    if image != "-" and "://" not in image and not os.path.exists(image):  # noqa: PTH110 - addresses are the engine's to refuse
        raise ValueError(f"Cannot read the file '{image}': there is no such file.")
    return read_dash(image)


def _is_file(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - False where Path raises: for a name that is too long

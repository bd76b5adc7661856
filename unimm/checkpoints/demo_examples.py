"""Pictures, questions and prompts that the demo model can do something with: what `unimm demo` and the web page begin with.

The pictures are drawn from their scenes; the digit is a real scan, of the test half of scikit-learn's digits.
"""

from PIL import Image

from unimm.checkpoints.weight_files import DEMO
from unimm.data.worlds.scenes import Scene, Shape, render

SCENES = {
    "photo.png": Scene(
        (
            Shape("large", "red", "circle", 18, 22),
            Shape("small", "cyan", "circle", 46, 16),
            Shape("large", "blue", "square", 42, 46),
        )
    ),
    "photo-2.png": Scene((Shape("large", "yellow", "triangle", 20, 40), Shape("small", "purple", "cross", 48, 18))),
    "photo-3.png": Scene(
        (
            Shape("small", "white", "square", 14, 14),
            Shape("small", "orange", "square", 40, 24),
            Shape("small", "green", "square", 20, 48),
        )
    ),
}
DIGIT = "digit.png"

QUESTIONS = {
    "photo.png": "How many circles are there?",
    "photo-2.png": "What shape is the yellow object?",
    "photo-3.png": "Is there a red square?",
    DIGIT: "Is it more than 4?",
}
PROMPTS = (
    "a large red circle to the left of a small blue square",
    "three green crosses",
    "a small white triangle above a large purple circle",
    "the digit five",
)

LIMITS = (
    "It knows flat shapes (circle, square, triangle, cross; eight colours, two sizes) and handwritten digits, on dark "
    "backgrounds, at 64 px, in English and Chinese, and nothing else: what it says of other pictures means nothing."
)


def demo_pictures() -> dict[str, Image.Image]:
    """The pictures by file name, RGB, 64 x 64."""
    pictures = {name: Image.fromarray(render(scene)) for name, scene in SCENES.items()}
    pictures[DIGIT] = Image.open(DEMO / DIGIT).convert("RGB")
    return pictures

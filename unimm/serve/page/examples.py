"""What the page offers to try: questions about pictures, and prompts, in both languages.

A model of the built-in worlds' size gets what it was made for; others get ordinary prompts, and questions that fit any picture.
"""

from dataclasses import dataclass
from pathlib import Path

from unimm.checkpoints.demo_examples import DIGIT, demo_pictures


@dataclass(frozen=True)
class Example:
    """A question about pictures, by file names of `write_pictures`."""

    question: str
    pictures: tuple[str, ...]


QUESTIONS = {
    ("en", True): (
        Example("How many circles are there?", ("photo.png",)),
        Example("What shape is the yellow object?", ("photo-2.png",)),
        Example("Describe the picture.", ("photo-3.png",)),
        Example("What digit is it?", (DIGIT,)),
    ),
    ("zh", True): (
        Example("有几个圆形？", ("photo.png",)),
        Example("黄色的物体是什么形状？", ("photo-2.png",)),
        Example("描述这张图片。", ("photo-3.png",)),
        Example("这是数字几？", (DIGIT,)),
    ),
    ("en", False): (
        Example("Describe the picture.", ("photo.png",)),
        Example("What digit is it?", (DIGIT,)),
        Example("What do these pictures have in common?", ("photo-2.png", "photo-3.png")),
    ),
    ("zh", False): (
        Example("描述这张图片。", ("photo.png",)),
        Example("这是数字几？", (DIGIT,)),
        Example("这些图片有什么共同点？", ("photo-2.png", "photo-3.png")),
    ),
}
"""By language, and whether the model is of the built-in worlds."""

PROMPTS = {
    ("en", True): (
        "a large red circle to the left of a small blue square",
        "three green crosses",
        "a small white triangle above a large purple circle",
        "the digit five",
    ),
    ("zh", True): ("红色的大圆形在蓝色的小正方形的左边", "三个绿色的十字形", "紫色的大圆形上面有白色的小三角形", "手写数字五"),
    ("en", False): (
        "a red fox in the snow, golden morning light",
        "a bowl of ramen, watercolour",
        "a small wooden cabin by a lake at night, stars",
        "a portrait of an astronaut, oil on canvas",
    ),
    ("zh", False): (
        "雪地里的一只红狐狸，清晨的金色阳光",
        "一碗拉面，水彩画",
        "夜晚湖边的小木屋，满天星光",
        "宇航员的肖像，油画",
    ),
}


def write_pictures(folder: Path) -> None:
    """The pictures of the examples, as PNG files."""
    for name, picture in demo_pictures().items():
        picture.save(folder / name)


EDITS = {
    ("en", True): "make the circle blue",
    ("zh", True): "把圆形变成蓝色",
    ("en", False): "make it winter",
    ("zh", False): "把季节改成冬天",
}
PAINTED = {
    ("en", True): "a large green cross",
    ("zh", True): "绿色的大十字形",
    ("en", False): "a wooden bench by a lake",
    ("zh", False): "湖边的一张木长椅",
}
"""An instruction, and what a picture shows that was painted over; of the languages and models above."""

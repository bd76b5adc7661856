"""Prompt files of a few lines each, in the form that each benchmark publishes them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from PIL import Image

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "cow", "count": 2}], "exclude": [], "prompt": "a photo of two cows"},
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
]
GENEVAL2 = [
    {
        "prompt": "two red cats",
        "atom_count": 3,
        "vqa_list": [["How many cats are in the image?", "two"], ["Are the cats red?", "Yes"], ["Are there cats?", "Yes"]],
        "skills": ["count", "attribute", "object"],
    },
    {"prompt": "a dog", "atom_count": 1, "vqa_list": [["Are there any dogs?", "Yes"]], "skills": ["object"]},
]
WISE = [
    {"Prompt": "a round pastry", "Explanation": "a mooncake", "Category": "C", "Subcategory": "Festival", "prompt_id": 1},
    {"Prompt": "ice in the sun", "Explanation": "water", "Category": "S", "Subcategory": "Physics", "prompt_id": 761},
]
ONEIG = '''category,id,prompt_en,type,prompt_length,class
Anime_Stylization,000,"a girl, ""smiling""","T, P",long,
Knowledge_Reasoning,000,a plant that bends to light,NP,short,biology
'''
IMGEDIT = {
    "1082": {"id": "animal/1.jpg", "prompt": "Make the shell smooth.", "edit_type": "adjust"},
    "673": {"id": "style/2.png", "prompt": "Paint it as a woodblock print.", "edit_type": "style"},
}
GEDIT = [
    ("a1", "color_alter", "make it red", "en", True),
    ("a1", "color_alter", "变成红色", "cn", False),
    ("b2", "subject-add", "add a hat", "en", False),
]
COCO = {
    "images": [{"id": 9}, {"id": 4}],
    "annotations": [
        {"id": 30, "image_id": 9, "caption": "A second caption."},
        {"id": 20, "image_id": 9, "caption": "A cat on a mat. "},
        {"id": 10, "image_id": 4, "caption": "A red bus."},
    ],
}


def lines(path: Path, contents: list) -> Path:
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    return path


def some_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_gedit(path: Path, rows: list[tuple]) -> Path:
    """A table as the hub has it."""
    columns: dict[str, list] = {
        "key": [],
        "task_type": [],
        "instruction": [],
        "instruction_language": [],
        "Intersection_exist": [],
    }
    for row in rows:
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
    file = io.BytesIO()
    some_image(30, 20).save(file, "PNG")
    columns["input_image"] = [{"bytes": file.getvalue(), "path": None}] * len(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def write_prompts(folder: Path) -> dict[str, Path]:
    """The files, by the benchmark's name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dpg").mkdir()
    (folder / "dpg/10.txt").write_text("A long prompt, the tenth.\n")
    (folder / "dpg/9.txt").write_text("A long prompt, the ninth.")
    (folder / "t2i").mkdir()
    (folder / "t2i/color_val.txt").write_bytes(b"a green bench and a blue bowl\r\na red car\r\n")
    (folder / "t2i/complex_val.txt").write_text("The red hat was on top of the rack.\n")
    (folder / "t2i/color_train.txt").write_text("left out\n")
    (folder / "wise").mkdir()
    (folder / "wise/a_verified.json").write_text(json.dumps(WISE[:1]))
    (folder / "wise/b_verified.json").write_text(json.dumps(WISE[1:]))
    (folder / "wise/merge.json").write_text(json.dumps(WISE))
    (folder / "OneIG-Bench.csv").write_text("\ufeff" + ONEIG, encoding="utf-8")
    (folder / "captions_val2014.json").write_text(json.dumps(COCO))
    for one in IMGEDIT.values():
        (folder / "imgedit" / one["id"]).parent.mkdir(parents=True)
        some_image(40, 24).save(folder / "imgedit" / one["id"])
    (folder / "imgedit/basic_edit.json").write_text(json.dumps(IMGEDIT))
    return {
        "imgedit": folder / "imgedit",
        "gedit": write_gedit(folder / "gedit/train-0.parquet", GEDIT).parent,
        "geneval": lines(folder / "evaluation_metadata.jsonl", GENEVAL),
        "geneval2": lines(folder / "geneval2_data.jsonl", GENEVAL2),
        "dpg": folder / "dpg",
        "t2i-compbench": folder / "t2i",
        "wise": folder / "wise",
        "oneig": folder / "OneIG-Bench.csv",
        "coco": folder / "captions_val2014.json",
    }

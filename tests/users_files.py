"""Data as users have it: a few pictures and texts in every format that is read, made in a moment."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.image import decode_image
from unimm.data.records import Dataset, Record

CAPTIONS = ("A red square.", "A green square, and nothing else.", "A blue square.", "A grey square.")
COLOURS = ((250, 30, 30), (30, 250, 30), (30, 30, 250), (128, 128, 128))
TURNS = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A square."},
    {"from": "human", "value": "Which one?"},
    {"from": "gpt", "value": "The first."},
]
TEXT_TURNS = [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Good day."}]
DOCUMENTS = ("One square is red.\nIt is small.", "Another one is green.", "正方形是蓝色的。它很小。")


def picture_bytes(number: int, form: str = "PNG") -> bytes:
    """A picture of 20x16 px in one colour."""
    array = np.full((16, 20, 3), COLOURS[number % len(COLOURS)], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def write_lines(path: Path, items: list[dict]) -> Path:
    """A JSON object a line."""
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def make_pictures(folder: Path, names: tuple[str, ...] = ("0.png", "1.png", "2.png", "3.png")) -> Path:
    """Pictures alone."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture_bytes(number))
    return folder


def make_image_folder(folder: Path) -> Path:
    """Two pictures with texts beside them, two in sub-folders with tables."""
    make_pictures(folder, ("b.png", "a.png", "lines/0.png", "table/x/1.png"))
    (folder / "b.txt").write_text(CAPTIONS[0] + "\n", encoding="utf-8")
    (folder / "a.txt").write_text(CAPTIONS[1], encoding="utf-8")
    write_lines(folder / "lines/metadata.jsonl", [{"file_name": "0.png", "text": [CAPTIONS[2], "Blue."]}])
    with (folder / "table/metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), ("x/1.png", CAPTIONS[3])])
    return folder


def make_json_lines(folder: Path) -> Path:
    """Captions of four pictures."""
    make_pictures(folder)
    items = [{"image": f"{number}.png", "caption": caption} for number, caption in enumerate(CAPTIONS)]
    return write_lines(folder / "captions.jsonl", items)


def make_csv(folder: Path) -> Path:
    """Captions of four pictures, as Excel writes them."""
    make_pictures(folder)
    with (folder / "captions.csv").open("w", encoding="utf-8-sig", newline="") as file:
        rows = [("image", "caption"), *((f"{number}.png", caption) for number, caption in enumerate(CAPTIONS))]
        csv.writer(file, delimiter=";").writerows(rows)
    return folder / "captions.csv"


def make_llava(folder: Path) -> Path:
    """A conversation about each of two pictures, and one in text."""
    make_pictures(folder)
    entries = [{"id": "7", "image": f"{number}.png", "conversations": TURNS} for number in (0, 1)]
    path = folder / "llava.json"
    path.write_text(json.dumps([*entries, {"id": "7", "conversations": TEXT_TURNS}], indent=1), encoding="utf-8")
    return path


def make_grounded(folder: Path) -> Path:
    """A conversation with a box in its text, as Qwen-VL writes it."""
    make_pictures(folder)
    told = [
        {"from": "human", "value": "<image>\nWhere is <ref>the square</ref>?"},
        {"from": "gpt", "value": "<box>(100,200),(500,600)</box>"},
    ]
    write_lines(folder / "boxes.jsonl", [{"image": "0.png", "conversations": told}])
    return folder / "boxes.jsonl"


def make_parquet(folder: Path) -> Path:
    """Two tables of two rows, a group each, the image as `datasets` writes it."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    for part in (0, 1):
        numbers = (2 * part, 2 * part + 1)
        images = [{"bytes": picture_bytes(number), "path": None} for number in numbers]
        table = pyarrow.table({"image": images, "text": [CAPTIONS[number] for number in numbers], "other": [0, 1]})
        pyarrow.parquet.write_table(table, folder / f"part-{part}.parquet", row_group_size=1)
    return folder


def make_preferences(folder: Path) -> Path:
    """Two answers to a question about a picture, and two drawings of a prompt; the answers in a table, too."""
    import pyarrow.parquet

    make_pictures(folder)
    answers = {"prompt": "Which colour?", "chosen": "red", "rejected": "green", "image": "0.png"}
    drawn = {"prompt": CAPTIONS[0], "chosen_image": "0.png", "rejected_image": "1.png"}
    drawn |= {"chosen_codes": [1] * 64, "rejected_codes": [2] * 64}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([answers] * 2), folder / "answers.parquet")
    labelled = [
        {"prompt": "Which colour?", "completion": one, "label": one == "red", "image": "0.png"} for one in ("red", "blue")
    ]
    labelled += [{"prompt": CAPTIONS[0], "image": "1.png", "label": False, "codes": [3] * 64}] * 2
    write_lines(folder / "labelled.jsonl", labelled * 2)
    return write_lines(folder / "preferences.jsonl", [answers, drawn] * 2)


def make_edits(folder: Path) -> Path:
    """A table of two edits, as InstructPix2Pix has them."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    before, after = ([{"bytes": picture_bytes(number), "path": None} for number in numbers] for numbers in ((0, 1), (2, 3)))
    columns = {"original_image": before, "edit_prompt": ["make it red", "remove the cat"], "edited_image": after}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "edits.parquet")
    return folder


def make_prompts(folder: Path) -> Path:
    """What is to be drawn, and questions about pictures."""
    make_pictures(folder)
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    write_lines(folder / "questions.jsonl", [{"image": "0.png", "prompt": "Which colour?", "answer": "red"}])
    return folder


def make_magic_brush(folder: Path) -> Path:
    """A table of two sessions of edits, of two turns and of one, as MagicBrush has them; one mask is painted over."""
    import pyarrow
    import pyarrow.parquet

    def encoded(shade: int, mark: str = "") -> dict[str, Any]:
        picture = Image.new("RGBA", (16, 16), (shade, shade, shade, 255))
        if mark:
            picture.paste((0, 0, 0, 0) if mark == "clear" else (255, 255, 255, 255), (4, 4, 8, 8))
        file = io.BytesIO()
        (picture if mark == "clear" else picture.convert("RGB")).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    columns = {
        "img_id": ["7", "7", "8"],
        "turn_index": [1, 2, 1],
        "source_img": [encoded(shade) for shade in (0, 40, 120)],
        "mask_img": [encoded(0, "clear"), encoded(40, "painted"), encoded(120, "clear")],
        "instruction": ["a", "b", "c"],
        "target_img": [encoded(shade) for shade in (40, 80, 160)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "dev.parquet")
    return folder


def make_shard(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_shards(folder: Path) -> Path:
    """Two shards of two samples, with captions as texts and as JSON."""
    for part in (0, 1):
        members: dict[str, bytes] = {}
        for number, suffix in ((2 * part, "jpg"), (2 * part + 1, "png")):
            members[f"{number:04}.{suffix}"] = picture_bytes(number, {"jpg": "JPEG"}.get(suffix, "PNG"))
            members[f"{number:04}.txt"] = CAPTIONS[number].encode()
            members[f"{number:04}.json"] = json.dumps({"caption": CAPTIONS[number], "n": number}).encode()
        make_shard(folder / f"{part:03}.tar", members)
    return folder


def make_texts(folder: Path) -> Path:
    """Documents in a .txt and in a .jsonl file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text("\n\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    write_lines(folder / "b.jsonl", [{"text": document} for document in DOCUMENTS])
    return folder


def make_annotated(folder: Path) -> Path:
    """COCO's captions of four pictures, VQAv2's questions about two, and documents as MMC4 has them."""
    make_pictures(folder)
    images = [{"id": 10 + number, "file_name": f"{number}.png", "license": 1} for number in range(4)]
    said = [{"image_id": 10 + number % 4, "id": number, "caption": CAPTIONS[number % 4]} for number in range(8)]
    content: dict[str, Any] = {"captions.json": {"info": {}, "images": images, "annotations": said}}
    asked = [{"image_id": number % 2, "question": f"Which {number}?", "question_id": number} for number in range(4)]
    answered = [
        {"question_id": number, "multiple_choice_answer": "red", "answers": [{"answer": "red"}], "question_type": "what"}
        for number in range(4)
    ]
    content["questions.json"] = {"data_subtype": "train2014", "questions": asked}
    content["annotations.json"] = {"data_subtype": "train2014", "annotations": answered}
    sized = [{**one, "width": 20, "height": 16} for one in images]
    boxes = [{"id": number, "image_id": 10 + number, "category_id": 1, "bbox": [2, 3, 8, 6]} for number in range(4)]
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "dog"}]
    content["instances.json"] = {"images": sized, "annotations": boxes, "categories": categories}
    refs = [{"image": f"{number}.png", "sent": "the square", "bbox": [2, 3, 10, 9]} for number in range(4)]
    write_lines(folder / "refs.jsonl", [{**one, "width": 20, "height": 16} for one in refs])
    for name, held in content.items():
        (folder / name).write_text(json.dumps(held), encoding="utf-8")
    for number in (0, 1):
        (folder / f"COCO_train2014_{number:012}.jpg").write_bytes(picture_bytes(number, "JPEG"))
    shown = [{"image_name": "1.png", "matched_text_index": 1}, {"image_name": "0.png", "matched_text_index": 0}]
    write_lines(folder / "documents.jsonl", [{"text_list": list(CAPTIONS[:3]), "image_info": shown}] * 2)
    talk = [{"role": "user", "content": "Draw a square."}, {"role": "assistant", "content": "Here: <image> It is red."}]
    write_lines(folder / "drawn.jsonl", [{"messages": talk, "images": ["0.png"]}, {"messages": talk, "images": ["1.png"]}])
    return folder


def make_all(folder: Path) -> Path:
    """One of each: photos, captions, llava, tables, shards, texts, and files of annotations."""
    make_annotated(folder / "annotated")
    make_image_folder(folder / "photos")
    make_pictures(folder / "classes/square")
    make_json_lines(folder / "captions")
    make_csv(folder / "csv")
    make_llava(folder / "llava")
    make_grounded(folder / "grounded")
    make_parquet(folder / "tables")
    make_edits(folder / "edited")
    make_shards(folder / "shards")
    make_texts(folder / "texts")
    make_preferences(folder / "preferences")
    make_prompts(folder / "prompts")
    return folder


def read_all(dataset: Dataset) -> list[Record]:
    """Every record."""
    return [dataset[index] for index in range(len(dataset))]


def look_all(dataset: Dataset) -> list[tuple[Record, bytes]]:
    """Every record with its decoded image: images that are still unread compare by their place alone, in whichever file."""
    return [(one, b"" if one.image is None else decode_image(one.image).tobytes()) for one in read_all(dataset)]


def send_all(datasets: list[Dataset], connection: Any) -> None:
    """All of every data set, to another process. It stands here because this file is imported quickly."""
    connection.send([look_all(dataset) for dataset in datasets])

"""Data sets of boxes: COCO's detections, and referring expressions as RefCOCO and its kin are exported. An image is a record,
its phrases are what the view `Grounding` asks for.

    COCO        instances_train2017.json    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
                                             "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, w, h]}]}
    RefCOCO     refs(unc).json              [{"ann_id", "image_id", "split", "sentences": [{"sent": "left dog"}]}, ...]
                                            beside COCO's instances.json; gRefCOCO: "ann_id": [7, 9], or [-1] for nothing
    Qwen-VL     refcoco_train.jsonl         {"image", "sent", "bbox": [x1, y1, x2, y2], "width", "height"}

Boxes are cut at the edge of their image; one that lies beside it, or has no area, is an error of its record, except for COCO's
boxes of no width or no height, which are left out. The files of REFER itself are pickles, which are not opened: its API writes
them as JSON (`json.dump(refer.data["refs"], file)`).
Source: cocodataset.org/#format-data; lichengunc/refer; QwenLM/Qwen-VL, eval_mm; henghuiding/gRefCOCO.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from unimm.data.grounding import inside
from unimm.data.readers.annotated import ByImage, read_lists
from unimm.data.readers.json_lines import JsonItems
from unimm.data.readers.paths import short
from unimm.data.records import Phrase, PixelBox, Record

logger = logging.getLogger(__name__)

NUM_ABSENT = 2
"""Categories an image that are asked for though nothing there is of them."""


class _Said(NamedTuple):
    """What is said of an image: words, where what they name is, and the size of the image where it is known."""

    text: str
    boxes: tuple[PixelBox, ...]
    size: tuple[int, int] | None


class CocoObjects(ByImage):
    """COCO's boxes: every category of an image with all of its boxes, and a few that are not there.

    Categories of which the file marks a crowd are not asked for in that image: their single objects have no boxes. A box of no
    width or no height, of which COCO has a few, is left out, and its category is not said to be absent. Entries of one
    file_name are one image.

    Args:
        annotations: the file of instances. images: the folder of images; default: that of the file.
        num_absent: categories that are not there, which are asked for all the same; those follow from the image's place.
        language: of the categories' names.

    num_without_area: boxes that were left out.

    Raises ValueError, at once where the file is none of COCO's, two entries of an image differ in its size, or no image of the
    first is there; else when it is read.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        num_absent: int = NUM_ABSENT,
        language: str = "en",
    ) -> None:
        self.language = language
        held = read_lists(Path(annotations), ("images", "annotations", "categories"))
        try:
            names = {one["id"]: str(one["name"]).strip() for one in held["categories"]}
            sizes = _sizes(held)
            found: dict[str, dict[str, list[PixelBox]]] = {name: {} for name, _ in sizes.values()}
            crowds, without_area = set(), 0
            for one in held["annotations"]:
                name, category, box = sizes[one["image_id"]][0], names[one["category_id"]], _corners(one["bbox"])
                has_area = box[0] != box[2] and box[1] != box[3]
                found[name].setdefault(category, []).extend([box] * has_area)
                without_area += not has_area
                if one.get("iscrowd"):
                    crowds.add((name, category))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{annotations}: an entry lacks {error}: COCO's instances have images, categories, bbox."
            ) from None
        self.num_without_area = without_area
        if without_area:
            logger.warning("%s: %d boxes have no area and are left out.", annotations, without_area)
        said: dict[str, list[_Said]] = {}
        size_of = _size_by_name(sizes, annotations)
        for number, (name, of_image) in enumerate(found.items()):
            size = size_of[name]
            kept = {text: boxes for text, boxes in of_image.items() if boxes and (name, text) not in crowds}
            asked = [_Said(text, tuple(boxes), size) for text, boxes in kept.items()]
            absent = [text for text in sorted(set(names.values())) if text not in of_image]
            start = number * num_absent
            chosen = dict.fromkeys(absent[(start + i) % len(absent)] for i in range(num_absent)) if absent else {}
            said[name] = asked + [_Said(text, (), size) for text in chosen]
        super().__init__(Path(annotations).parent if images is None else Path(images), dict(said))

    def record(self, name: str, said: list[_Said], image: Any) -> Record:
        """An image with its categories. ValueError: it has none, or a box is none."""
        return _record(name, said, image, self.language)


class RefCoco(ByImage):
    """Referring expressions: an image is a record with all sentences about its objects.

    Args:
        refs: a .json or .jsonl file of one of the forms above. annotations: COCO's instances.json, which the first form needs.
        images: the folder of images; default: that of the file. split: of the entries that say theirs: "train", "val", "testA".
        language: of the sentences.
        merge: the same words for several objects of an image are one phrase for all of them, which is what can be learned; else
            each sentence is a phrase of its own, as RefCOCO's accuracy counts them.

    Raises ValueError, at once where the files are others, else when a record is read.
    """

    def __init__(
        self,
        refs: str | Path,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        split: str | None = None,
        language: str = "en",
        merge: bool = True,
    ) -> None:
        self.language, self.merge = language, merge
        entries = JsonItems(Path(refs)) if Path(refs).is_file() else None
        if entries is None:
            raise ValueError(f"There is no file {refs}: name the .json or .jsonl of referring expressions.")
        instances = None if annotations is None else _Instances(annotations)
        said: dict[str, list[_Said]] = {}
        for number in range(len(entries)):
            entry = entries[number]
            if split is not None and entry.get("split", split) != split:
                continue
            try:
                name, own = _of_instances(entry, instances) if "ann_id" in entry else _of_line(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{entries.where(number)} is no referring expression ({error}): {short(entry)}.") from None
            said.setdefault(name, []).extend(own)
        if not said:
            raise ValueError(f"{refs} has no entries of the split '{split}': name another.")
        super().__init__(Path(refs).parent if images is None else Path(images), dict(said))

    def record(self, name: str, said: list[_Said], image: Any) -> Record:
        """An image with its sentences."""
        return _record(name, said, image, self.language, self.merge)


class _Instances:
    """COCO's instances.json, by the ids of its annotations and images."""

    def __init__(self, path: str | Path) -> None:
        held = read_lists(Path(path), ("images", "annotations"))
        try:
            self.boxes = {one["id"]: _corners(one["bbox"]) for one in held["annotations"]}
            self.sizes = _sizes(held)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: an entry lacks {error}: COCO's instances have id, bbox, file_name, width.") from None


def _of_instances(entry: dict[str, Any], instances: _Instances | None) -> tuple[str, list[_Said]]:
    if instances is None:
        raise ValueError("its boxes stand in COCO's instances.json: name that file, annotations=...")
    name, size = instances.sizes[entry["image_id"]]
    ids = entry["ann_id"] if isinstance(entry["ann_id"], list) else [entry["ann_id"]]
    boxes = tuple(instances.boxes[one] for one in ids if one != -1)
    texts = [one.get("sent") or one["raw"] if isinstance(one, dict) else one for one in entry["sentences"]]
    return name, [_Said(_text(text), boxes, size) for text in texts]


def _of_line(entry: dict[str, Any]) -> tuple[str, list[_Said]]:
    name = entry["image"] if isinstance(entry.get("image"), str) else entry["file_name"]
    x1, y1, x2, y2 = map(float, entry["bbox"])
    size = (int(entry["width"]), int(entry["height"])) if "width" in entry and "height" in entry else None
    return str(name), [_Said(_text(entry["sent"]), ((x1, y1, x2, y2),), size)]


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"a sentence is {short(text)}")
    return text.strip()


def _corners(box: Any) -> PixelBox:
    """Of COCO's x, y, width and height."""
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _sizes(held: dict[str, Any]) -> dict[Any, tuple[str, tuple[int, int]]]:
    return {one["id"]: (str(one["file_name"]), (int(one["width"]), int(one["height"]))) for one in held["images"]}


def _size_by_name(sizes: dict[Any, tuple[str, tuple[int, int]]], path: str | Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, size in sizes.values():
        if found.setdefault(name, size) != size:
            raise ValueError(f"{path}: the entries of {name} differ in width and height: leave all but one out.")
    return found


def _record(name: str, said: list[_Said], image: Any, language: str, merge: bool = True) -> Record:
    found: dict[Any, list[PixelBox]] = {}
    for number, one in enumerate(said):
        boxes = found.setdefault((one.text, 0 if merge else number), [])
        boxes += [box for box in one.boxes if box not in boxes]
    if not found:
        raise ValueError(f"record {name} has nothing to locate: take the image out.")
    phrases = tuple(
        Phrase(text, tuple(boxes), language, text if boxes else "", "several" if len(boxes) > 1 else "one" if boxes else "none")
        for (text, _), boxes in found.items()
    )
    size = next((one.size for one in said if one.size is not None), None)
    return Record(name, image, phrases=phrases if size is None else inside(name, phrases, size), image_size=size)

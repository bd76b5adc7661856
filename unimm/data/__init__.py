"""Files to sequences: data sets, views, templates, mixtures, packing.

Public names, which YAML and other packages use; they are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.data.mixture import Mixture, Source
    from unimm.data.pairs import ImageText
    from unimm.data.readers.annotated import CocoCaptions, Mmc4, VqaQuestions
    from unimm.data.readers.csv_table import CsvTable
    from unimm.data.readers.fields import Fields
    from unimm.data.readers.image_folder import ImageFolder
    from unimm.data.readers.json_lines import JsonLines
    from unimm.data.readers.llava import LlavaJson
    from unimm.data.readers.parquet import Parquet
    from unimm.data.readers.plain_text import PlainTextFiles
    from unimm.data.readers.web_dataset import WebDataset
    from unimm.data.records import Dataset, DatasetContext, Question, Record, RecordImage, Text
    from unimm.data.stores.codes import CodedDataset
    from unimm.data.stores.features import FeaturedDataset
    from unimm.data.template import PromptFormat, Template, Turn
    from unimm.data.text import TextTokenizer
    from unimm.data.tiles import Tiles
    from unimm.data.views import Conversation, Description, Dialogue, Document, Drawing, PlainText, View
    from unimm.data.worlds.digits import DigitsWorld
    from unimm.data.worlds.emoji import EmojiWorld
    from unimm.data.worlds.figures import FiguresWorld
    from unimm.data.worlds.pages import PagesWorld
    from unimm.data.worlds.shapes import ShapesWorld

__all__ = [
    "CocoCaptions",
    "CodedDataset",
    "Conversation",
    "CsvTable",
    "Dataset",
    "DatasetContext",
    "Description",
    "Dialogue",
    "DigitsWorld",
    "Document",
    "Drawing",
    "EmojiWorld",
    "FeaturedDataset",
    "Fields",
    "FiguresWorld",
    "ImageFolder",
    "ImageText",
    "JsonLines",
    "LlavaJson",
    "Mixture",
    "Mmc4",
    "PagesWorld",
    "Parquet",
    "PlainText",
    "PlainTextFiles",
    "PromptFormat",
    "Question",
    "Record",
    "RecordImage",
    "ShapesWorld",
    "Source",
    "Template",
    "Text",
    "TextTokenizer",
    "Tiles",
    "Turn",
    "View",
    "VqaQuestions",
    "WebDataset",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Record": "records",
        "RecordImage": "records",
        "Dataset": "records",
        "DatasetContext": "records",
        "Question": "records",
        "Text": "records",
        "View": "views",
        "Conversation": "views",
        "Drawing": "views",
        "PlainText": "views",
        "Description": "views",
        "Dialogue": "views",
        "Document": "views",
        "ImageText": "pairs",
        "PromptFormat": "template",
        "Template": "template",
        "Turn": "template",
        "TextTokenizer": "text",
        "Tiles": "tiles",
        "Mixture": "mixture",
        "Source": "mixture",
        "JsonLines": "readers.json_lines",
        "CsvTable": "readers.csv_table",
        "CocoCaptions": "readers.annotated",
        "Mmc4": "readers.annotated",
        "VqaQuestions": "readers.annotated",
        "LlavaJson": "readers.llava",
        "Fields": "readers.fields",
        "ImageFolder": "readers.image_folder",
        "Parquet": "readers.parquet",
        "WebDataset": "readers.web_dataset",
        "PlainTextFiles": "readers.plain_text",
        "CodedDataset": "stores.codes",
        "FeaturedDataset": "stores.features",
        "ShapesWorld": "worlds.shapes",
        "DigitsWorld": "worlds.digits",
        "EmojiWorld": "worlds.emoji",
        "FiguresWorld": "worlds.figures",
        "PagesWorld": "worlds.pages",
    },
)

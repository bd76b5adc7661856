"""Files to sequences: data sets, views, templates, mixtures, packing.

Public names, which YAML and other packages use; they are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.data.boxes import Box, Point
    from unimm.data.edit_view import Edit
    from unimm.data.few_shot_view import FewShot
    from unimm.data.flow_view import FlowDrawing
    from unimm.data.grounding import GroundedDialogue, Grounding
    from unimm.data.mixture import Mixture, Source
    from unimm.data.pairs import ImageText
    from unimm.data.partners import WithPartners
    from unimm.data.preferences import Preference
    from unimm.data.prompt_format import PromptFormat
    from unimm.data.prompts import Asked, DigitsPrompts, DrawingPrompt, QuestionPrompt, ShapesPrompts
    from unimm.data.readers.annotated import CocoCaptions, Mmc4, VqaQuestions
    from unimm.data.readers.boxes import CocoObjects, RefCoco
    from unimm.data.readers.csv_table import CsvTable
    from unimm.data.readers.edits import EditLines, EditTable, InstructPix2PixFolder
    from unimm.data.readers.fields import Fields
    from unimm.data.readers.image_folder import ImageFolder
    from unimm.data.readers.json_lines import JsonLines
    from unimm.data.readers.llava import LlavaJson
    from unimm.data.readers.magic_brush import MagicBrush
    from unimm.data.readers.parquet import Parquet
    from unimm.data.readers.plain_text import PlainTextFiles
    from unimm.data.readers.preferences import PreferenceJson, PreferenceTables
    from unimm.data.readers.prompt_files import PromptFiles
    from unimm.data.readers.web_dataset import WebDataset
    from unimm.data.records import Dataset, DatasetContext, ImageEdit, Phrase, Question, Record, RecordImage, Text, Video
    from unimm.data.reframing import Reframed
    from unimm.data.shards.coded import CodedShards
    from unimm.data.shards.dataset import ShardedDataset
    from unimm.data.stores.codes import CodedDataset
    from unimm.data.stores.features import FeaturedDataset
    from unimm.data.stores.latents import LatentDataset
    from unimm.data.template import Template, Turn
    from unimm.data.text import TextTokenizer
    from unimm.data.tiles import Tiles
    from unimm.data.video.choosing import VideoFormat
    from unimm.data.video.sources import open_video
    from unimm.data.video.writing import write_video
    from unimm.data.views import Conversation, Description, Dialogue, Document, Drawing, PlainText, View
    from unimm.data.worlds.clips import ClipsWorld
    from unimm.data.worlds.comparisons import ComparisonsWorld
    from unimm.data.worlds.digits import DigitsWorld
    from unimm.data.worlds.edits import EditsWorld
    from unimm.data.worlds.emoji import EmojiWorld
    from unimm.data.worlds.few_shot import FewShotWorld
    from unimm.data.worlds.figures import FiguresWorld
    from unimm.data.worlds.interleaved import InterleavedWorld
    from unimm.data.worlds.made_up_words import RepeatedWordsWorld
    from unimm.data.worlds.pages import PagesWorld
    from unimm.data.worlds.shapes import ShapesWorld

__all__ = [
    "Asked",
    "Box",
    "ClipsWorld",
    "CocoCaptions",
    "CocoObjects",
    "CodedDataset",
    "CodedShards",
    "ComparisonsWorld",
    "Conversation",
    "CsvTable",
    "Dataset",
    "DatasetContext",
    "Description",
    "Dialogue",
    "DigitsPrompts",
    "DigitsWorld",
    "Document",
    "Drawing",
    "DrawingPrompt",
    "Edit",
    "EditLines",
    "EditTable",
    "EditsWorld",
    "EmojiWorld",
    "FeaturedDataset",
    "FewShot",
    "FewShotWorld",
    "Fields",
    "FiguresWorld",
    "FlowDrawing",
    "GroundedDialogue",
    "Grounding",
    "ImageEdit",
    "ImageFolder",
    "ImageText",
    "InstructPix2PixFolder",
    "InterleavedWorld",
    "JsonLines",
    "LatentDataset",
    "LlavaJson",
    "MagicBrush",
    "Mixture",
    "Mmc4",
    "PagesWorld",
    "Parquet",
    "Phrase",
    "PlainText",
    "PlainTextFiles",
    "Point",
    "Preference",
    "PreferenceJson",
    "PreferenceTables",
    "PromptFiles",
    "PromptFormat",
    "Question",
    "QuestionPrompt",
    "Record",
    "RecordImage",
    "RefCoco",
    "Reframed",
    "RepeatedWordsWorld",
    "ShapesPrompts",
    "ShapesWorld",
    "ShardedDataset",
    "Source",
    "Template",
    "Text",
    "TextTokenizer",
    "Tiles",
    "Turn",
    "Video",
    "VideoFormat",
    "View",
    "VqaQuestions",
    "WebDataset",
    "WithPartners",
    "open_video",
    "write_video",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Edit": "edit_view",
        "EditLines": "readers.edits",
        "EditTable": "readers.edits",
        "InstructPix2PixFolder": "readers.edits",
        "EditsWorld": "worlds.edits",
        "ImageEdit": "records",
        "Record": "records",
        "RecordImage": "records",
        "Dataset": "records",
        "DatasetContext": "records",
        "Question": "records",
        "Text": "records",
        "Phrase": "records",
        "Box": "boxes",
        "Point": "boxes",
        "Grounding": "grounding",
        "GroundedDialogue": "grounding",
        "View": "views",
        "Conversation": "views",
        "Drawing": "views",
        "PlainText": "views",
        "Description": "views",
        "Dialogue": "views",
        "Document": "views",
        "FewShot": "few_shot_view",
        "ImageText": "pairs",
        "WithPartners": "partners",
        "Preference": "preferences",
        "PromptFormat": "prompt_format",
        **dict.fromkeys(("Asked", "DigitsPrompts", "DrawingPrompt", "QuestionPrompt", "ShapesPrompts"), "prompts"),
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
        "CocoObjects": "readers.boxes",
        "RefCoco": "readers.boxes",
        "Reframed": "reframing",
        "LlavaJson": "readers.llava",
        "Fields": "readers.fields",
        "ImageFolder": "readers.image_folder",
        "Parquet": "readers.parquet",
        "PreferenceJson": "readers.preferences",
        "PreferenceTables": "readers.preferences",
        "WebDataset": "readers.web_dataset",
        "PlainTextFiles": "readers.plain_text",
        "PromptFiles": "readers.prompt_files",
        "MagicBrush": "readers.magic_brush",
        "CodedDataset": "stores.codes",
        "CodedShards": "shards.coded",
        "ShardedDataset": "shards.dataset",
        "LatentDataset": "stores.latents",
        "FlowDrawing": "flow_view",
        "FeaturedDataset": "stores.features",
        "ComparisonsWorld": "worlds.comparisons",
        "FewShotWorld": "worlds.few_shot",
        "ShapesWorld": "worlds.shapes",
        "DigitsWorld": "worlds.digits",
        "ClipsWorld": "worlds.clips",
        "Video": "records",
        "VideoFormat": "video.choosing",
        "open_video": "video.sources",
        "write_video": "video.writing",
        "EmojiWorld": "worlds.emoji",
        "FiguresWorld": "worlds.figures",
        "InterleavedWorld": "worlds.interleaved",
        "PagesWorld": "worlds.pages",
        "RepeatedWordsWorld": "worlds.made_up_words",
    },
)

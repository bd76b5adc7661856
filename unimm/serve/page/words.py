"""What the page says, in English and in Chinese: every sentence of its own stands here, beside its translation.

Messages of the engine and of the server's limits stay in English.
"""

from typing import Any

LANGUAGES = ("en", "zh")

PHRASES = {
    # The page
    "title": ("Look and draw", "看图与画图"),
    "ask_tab": ("Ask", "问答"),
    "draw_tab": ("Draw", "绘画"),
    "edit_tab": ("Edit", "编辑"),
    "compare_tab": ("Compare", "比较"),
    "inside_tab": ("Inside", "看内部"),
    "facts": (
        "{name} · {millions} M parameters · {side} px · {device}",
        "{name} · {millions} 百万参数 · {side} 像素 · {device}",
    ),
    "other_language": ("中文", "English"),
    "light_or_dark": ("Light or dark", "浅色或深色"),
    "demo_limits": (
        "This small model knows flat shapes (circle, square, triangle, cross; eight colours, two sizes) and handwritten digits "
        "on dark backgrounds. What it says of other pictures means nothing.",
        "这个小模型只认识深色背景上的平面图形（圆形、正方形、三角形、十字形；八种颜色，两种大小）和手写数字。它对其他图片的回答没有意义。",
    ),
    "stays_here": ("Nothing leaves this machine.", "所有数据都留在这台机器上。"),
    # Ask
    "ask_hint": ("Ask about one picture or several", "询问一张或多张图片"),
    "ask_box": ("Ask; attach or paste pictures", "输入问题；可以附上或粘贴图片"),
    "ask_try": ("Try one of these", "试试这些"),
    "new_chat": ("New conversation", "新的对话"),
    "stop": ("Stop", "停止"),
    "stopped": ("Stopped.", "已停止。"),
    "settings": ("Settings", "设置"),
    "temperature": ("Temperature", "温度"),
    "temperature_help": ("0: always the likeliest. Higher: more varied.", "0：总是选最可能的；越高越多样。"),
    "max_new_tokens": ("Longest answer, in tokens", "回答的最大长度（词元）"),
    "may_draw": ("May draw in its answers", "回答中可以画图"),
    "may_draw_help": (
        "Where the model begins an image; it has to be taught that (recipes/interleaved.md).",
        "由模型决定何时画图；需要先学会（recipes/interleaved.md）。",
    ),
    "question_missing": ("Write a question first.", "请先输入问题。"),
    "picture_number": ("picture {number}", "图片 {number}"),
    # Draw
    "prompt": ("What should be drawn?", "想画什么？"),
    "prompt_example": ("for example: {example}", "例如：{example}"),
    "prompt_missing": ("Say first what should be drawn.", "请先说明要画什么。"),
    "draw": ("Draw", "开始画"),
    "count": ("Pictures", "图片数量"),
    "best_of": ("Best of", "择优数量"),
    "best_of_help": (
        "Best of: each picture is drawn so often, and the one that the model itself finds best is kept.",
        "择优：每张图画这么多次，保留模型自己认为最好的一张。",
    ),
    "size": ("Size in pixels", "尺寸（像素）"),
    "guidance": ("Guidance", "引导强度"),
    "guidance_help": ("How closely it follows the prompt. 1: off.", "对提示的遵循程度。1：关闭。"),
    "seed": ("Seed", "随机种子"),
    "new_seed": ("New seed every time", "每次换新的种子"),
    "wall_empty": ("Drawings appear here while they are made.", "图片会在绘制过程中逐步出现在这里。"),
    "drawing": ("drawing {percent} %", "已完成 {percent} %"),
    "judging": ("asking the model which are best", "正在让模型评判"),
    "shows": ("{percent} % sure that it shows the prompt", "模型认为符合提示的概率为 {percent} %"),
    "drawn_with": (
        "seed {seed} · guidance {guidance} · temperature {temperature}",
        "种子 {seed} · 引导 {guidance} · 温度 {temperature}",
    ),
    "took": ("{seconds} s", "{seconds} 秒"),
    "download": ("Download", "下载"),
    "download_help": (
        "PNG with prompt, seed and settings inside: unimm generate --from draws it again.",
        "PNG 内含提示、种子和设置：用 unimm generate --from 可以重新画出。",
    ),
    "look_inside": ("Look inside", "看内部"),
    "ask_about": ("Ask", "提问"),
    "not_kept": ("Not kept", "未保留"),
    "enlarge": ("Enlarge", "放大"),
    "close": ("Close", "关闭"),
    "drawing_of": ("Drawing of: {prompt}", "绘画：{prompt}"),
    "too_many": (
        "That is {asked} drawings at once; this server allows {most}. Ask for fewer.",
        "一次要画 {asked} 张，服务器最多允许 {most} 张，请减少数量。",
    ),
    # Edit
    "edit_this": ("Edit", "编辑"),
    "edit_empty": ("Upload a picture, or choose Edit below a drawing.", "上传图片，或在绘画下方选择“编辑”。"),
    "edits_empty": ("Changed pictures appear here while they are made.", "修改后的图片会逐步出现在这里。"),
    "by_words_tab": ("Say it", "用文字"),
    "by_brush_tab": ("Paint over it", "用画笔"),
    "around_tab": ("Grow it", "扩展"),
    "not_taught": (
        "This model was not taught to follow instructions: paint over what shall change, or have the picture grow. "
        "recipes/edit.md teaches one.",
        "这个模型没有学过按指令修改图片：请用画笔涂抹要修改的部分，或扩展图片。recipes/edit.md 说明如何训练。",
    ),
    "draws_no_codes": (
        "This model draws no image codes, so it changes no pictures.",
        "这个模型不生成图像编码，因此不能修改图片。",
    ),
    "instruction": ("What should change?", "要改什么？"),
    "change": ("Change it", "修改"),
    "image_guidance": ("Guidance by the picture", "图片引导强度"),
    "image_guidance_help": ("How closely it keeps to the picture. 1: off.", "对原图的保留程度。1：关闭。"),
    "source_bias": ("Keep what need not change", "保留无需修改之处"),
    "source_bias_help": ("Makes the picture's own codes likelier. 0: off.", "提高原图编码的概率。0：关闭。"),
    "brush_hint": (
        "Paint over what shall change; all else stays as it is. With the keyboard: arrows and the space bar.",
        "涂抹要修改的部分，其余保持不变。也可以用方向键和空格键。",
    ),
    "paint_here": (
        "Picture to paint over: arrow keys move the brush, space paints",
        "要涂抹的图片：方向键移动画笔，空格键涂抹",
    ),
    "whole_picture": ("What should the whole picture show then?", "修改后整张图片是什么样？"),
    "paint": ("Paint", "绘制"),
    "brush": ("Brush", "画笔"),
    "eraser": ("Eraser", "橡皮"),
    "undo": ("Undo", "撤销"),
    "wipe": ("Clear", "清除"),
    "brush_size": ("Size", "粗细"),
    "mask_missing": ("Paint over what shall change first.", "请先涂抹要修改的部分。"),
    "around_hint": (
        "Pixels that are new on each side; below 0, so many are cut off.",
        "每一边新增的像素；小于 0 表示裁去多少像素。",
    ),
    "grow": ("Grow", "扩展"),
    "left": ("Left", "左"),
    "right": ("Right", "右"),
    "top": ("Above", "上"),
    "bottom": ("Below", "下"),
    "sides_missing": ("Say first by how many pixels the picture grows.", "请先说明图片每一边扩展多少像素。"),
    # Compare
    "compare_hint": (
        "One prompt, drawn with several seeds (columns) and several strengths of guidance (rows).",
        "同一个提示，用多个种子（列）和多种引导强度（行）来画。",
    ),
    "compare": ("Compare", "比较"),
    "seeds": ("Seeds", "种子"),
    "seeds_help": ("Numbers, or a range: 1-4", "数字或范围：1-4"),
    "guidances": ("Guidance", "引导强度"),
    "guidances_help": ("One row for each. 1: off.", "每个数值一行。1：关闭。"),
    "grid_empty": ("The grid appears here.", "比较结果会显示在这里。"),
    "not_a_number": (
        "'{text}' is no number here: write numbers with commas between them.",
        "“{text}”不是数字：请用逗号分隔数字。",
    ),
    # Look inside
    "codes_tab": ("Codes", "编码"),
    "answer_tab": ("Looking", "看图"),
    "words_tab": ("Drawing", "画图"),
    "picture": ("Picture", "图片"),
    "codes_hint": (
        "Before the model can draw, a picture becomes a grid of codes. This is what they keep of it.",
        "模型画图之前，图片会变成一格格编码。这里可以看到编码保留了什么。",
    ),
    "codes_empty": ("Choose a picture to see its codes.", "选择一张图片，查看它的编码。"),
    "choose_picture": ("Upload a picture", "上传图片"),
    "as_seen": ("as the model gets it", "模型得到的图片"),
    "as_codes": ("{number} codes, of {size}", "{number} 个编码（共 {size} 种）"),
    "rebuilt": ("drawn again from the codes", "由编码重建"),
    "code_at": ("row {row}, column {column}: code {code}", "第 {row} 行第 {column} 列：编码 {code}"),
    "code_hover": ("Point at a code, or walk through them with the arrow keys.", "指向一个编码，或用方向键浏览。"),
    "picture_missing": ("Choose a picture first.", "请先选择一张图片。"),
    "answer_hint": (
        "Ask, then choose a word of the answer: bright is where the model looked when it wrote that word.",
        "提问后选择回答中的一个词：亮处是模型写这个词时看的地方。",
    ),
    "question": ("Question", "问题"),
    "show_looks": ("Answer", "回答"),
    "words_hint": (
        "Choose a word to see where it went in the drawing, or a patch to see which words it came from.",
        "选择一个词，看它画在哪里；或选择一个图块，看它来自哪些词。",
    ),
    "show_words": ("Draw", "开始画"),
    "patch_at": ("patch in row {row}, column {column}", "第 {row} 行第 {column} 列的图块"),
    "latents": ("Latents", "潜变量"),
    "latents_hint": (
        "Before the model can draw, a picture becomes a few small grids of numbers, its latents. This is what they keep of it.",
        "模型画图之前，图片会变成几格小的数值，即潜变量。这里可以看到它们保留了什么。",
    ),
    "latents_empty": ("Choose a picture to see its latents.", "选择一张图片，查看它的潜变量。"),
    "as_latents": (
        "latents: {channels} channels of {side} × {side} numbers, as grey levels",
        "潜变量：{channels} 个通道，各 {side} × {side} 个数，以灰度显示",
    ),
    "from_latents": ("drawn again from the latents", "由潜变量重建"),
    "no_codes_drawn": (
        "This model does not draw code by code, so no patch has words of its own to show.",
        "该模型不是逐个编码地画图，因此没有图块与词的对应可以显示。",
    ),
    "flow_tab": ("Flow", "流"),
    "flow_hint": (
        "A flow draws the whole picture at once, in passes. Each column shows what the picture would be after a pass.",
        "流模型同时画出整张图片，分多次计算。每一列是某次计算之后图片将会成为的样子。",
    ),
    "flow_steps": ("Steps", "步数"),
    "flow_empty": ("The passes of a drawing appear here.", "这里会显示绘画的各次计算。"),
    "no_flow": (
        "This model does not draw by a flow, so there are no passes of one to show.",
        "该模型不用流画图，因此没有可显示的计算过程。",
    ),
    "pass_of": ("pass {number} of {total}", "第 {number} 次（共 {total} 次）"),
    "looks_empty": ("Choose a picture: the answer and its words appear here.", "选择一张图片，这里会显示回答和其中的词。"),
    "words_empty": ("The drawing and its words appear here.", "这里会显示绘画和提示中的词。"),
    "working": ("One moment …", "请稍候……"),
    "nothing_said": ("The model said nothing.", "模型没有回答。"),
    "all_words": ("whole answer", "整个回答"),
    "few_layers": ("Mean attention over all layers and heads.", "所有层和注意力头的平均注意力。"),
    # Trouble
    "picture_gone": (
        "This picture is no longer on the server: add it again.",
        "服务器上已没有这张图片，请重新添加。",
    ),
    "not_a_picture": (
        "This file is not a picture that can be read: use PNG, JPEG, WebP or GIF.",
        "无法读取这个图片文件：请使用 PNG、JPEG、WebP 或 GIF。",
    ),
}
"""Every phrase by its name, in the order of `LANGUAGES`."""


class Words:
    """The phrases of one language: `words("took", seconds=2)`.

    language: one of `LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._place = LANGUAGES.index(language)

    def __call__(self, name: str, /, **values: Any) -> str:
        """The phrase of this name, with values in its gaps."""
        return PHRASES[name][self._place].format(**values)


def preferred_language(accept_language: str) -> str:
    """The language of a browser's `Accept-Language` header: Chinese where that comes first, else English."""
    return "zh" if accept_language.strip().lower().startswith("zh") else "en"

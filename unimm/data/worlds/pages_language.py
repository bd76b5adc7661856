"""The words that stand on the pages of the pages world, and those in which it is asked about them, in English and Chinese.

Neither forms nor colours are among them: what other worlds hold out is said nowhere.
"""

LANGUAGES = ("en", "zh")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS = {
    "en": _words(
        "tea coffee bread sugar salt rice milk honey apple lemon onion carrot horse tiger sheep mouse eagle whale river ocean "
        "forest garden bridge street market school office window door paper pencil letter ticket train plane truck boat wheel "
        "engine copper iron cotton wool glass stone sand winter summer spring autumn monday friday morning night music dance "
        "song story north south west east"
    ),
    "zh": _words(
        "茶叶 咖啡 面包 食盐 大米 牛奶 蜂蜜 苹果 柠檬 洋葱 老虎 绵羊 老鼠 老鹰 鲸鱼 河流 海洋 森林 花园 大桥 "
        "街道 市场 学校 窗户 大门 纸张 铅笔 信件 车票 火车 飞机 卡车 小船 车轮 引擎 钢铁 棉花 羊毛 玻璃 石头 "
        "沙子 冬天 夏天 春天 秋天 早晨 夜晚 音乐 舞蹈 歌曲 故事 北方 南方 西方 东方"
    ),
}
LABELS = {
    "en": _words("tea milk rice salt bread wool iron sand glass boat train song north south west east corn fish wood coal"),
    "zh": _words("茶叶 牛奶 大米 食盐 面包 羊毛 钢铁 沙子 玻璃 小船 火车 歌曲 北方 南方 西方 东方 玉米 鲜鱼 木材 煤炭"),
}
"""Names of rows, bars and slices."""

COLUMNS = {"en": ("price", "stock", "sales", "cost", "tax"), "zh": ("价格", "库存", "销量", "成本", "税款")}
MONTHS = {
    "en": _words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"),
    "zh": tuple(f"{month}月" for month in range(1, 13)),
}

ASKED = {
    "en": {
        "text_all": "Read the page.",
        "text_read": "Read line {}.",
        "text_find": "Which line has the word {}?",
        "text_count": "How many lines are there?",
        "table_cell": "What is the {} of {}?",
        "table_row": "Which row has the {} {}?",
        "table_highest": "Which row has the highest {}?",
        "table_count": "How many rows does the table have?",
        "bars_value": "What is the value of {}?",
        "bars_highest": "Which bar is the highest?",
        "bars_lowest": "Which bar is the lowest?",
        "bars_count": "How many bars are there?",
        "line_value": "What is the value in {}?",
        "line_highest": "In which month is the value the highest?",
        "line_trend": "Does the value rise or fall from {} to {}?",
        "line_count": "How many months are shown?",
        "pie_share": "What share has {}?",
        "pie_largest": "Which slice is the largest?",
        "pie_count": "How many slices are there?",
    },
    "zh": {
        "text_all": "读出全文。",
        "text_read": "读出第{}行。",
        "text_find": "哪一行有“{}”这个词？",
        "text_count": "一共有几行？",
        "table_cell": "{1}的{0}是多少？",
        "table_row": "哪一项的{0}是{1}？",
        "table_highest": "哪一项的{}最高？",
        "table_count": "表里一共有几项？",
        "bars_value": "{}的数值是多少？",
        "bars_highest": "哪个柱子最高？",
        "bars_lowest": "哪个柱子最低？",
        "bars_count": "一共有几个柱子？",
        "line_value": "{}的数值是多少？",
        "line_highest": "哪个月的数值最高？",
        "line_trend": "从{}到{}，数值是上升还是下降？",
        "line_count": "一共画了几个月？",
        "pie_share": "{}占多少？",
        "pie_largest": "哪一份最大？",
        "pie_count": "一共分成几份？",
    },
}
TREND = {"en": ("rises", "falls"), "zh": ("上升", "下降")}
CAPTIONS = {
    "en": {
        "text": "A page with {} lines of text.",
        "table": "A table with {} rows.",
        "bars": "A bar chart with {} bars.",
        "line": "A line chart of {} months.",
        "pie": "A pie chart with {} slices.",
    },
    "zh": {
        "text": "一页文字，共{}行。",
        "table": "一个表格，共{}项。",
        "bars": "一张柱状图，共{}个柱子。",
        "line": "一张折线图，共{}个月。",
        "pie": "一张饼图，共{}份。",
    },
}

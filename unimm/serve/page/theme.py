"""How the page looks: colours and type of Gradio's theme, the style sheet and the script beside this file.

Fonts are the system's, and nothing is fetched from another host.
"""

from html import escape
from pathlib import Path
from typing import Any

from gradio.themes import Base
from gradio.themes.utils import colors, sizes

FOLDER = Path(__file__).parent

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "PingFang SC", "Noto Sans CJK SC", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

GREEN = colors.Color(
    name="unimm-green",
    c50="#eef7f1",
    c100="#d8eee0",
    c200="#b3ddc3",
    c300="#86c8a2",
    c400="#5cc48d",
    c500="#2a9562",
    c600="#14794a",
    c700="#11633d",
    c800="#0f4f32",
    c900="#0d4029",
    c950="#072617",
)
PAPER = colors.Color(
    name="unimm-paper",
    c50="#fbfbf8",
    c100="#f4f3ee",
    c200="#e6e5de",
    c300="#d2d1c9",
    c400="#a3a39c",
    c500="#73736f",
    c600="#5a5a58",
    c700="#3b3d3a",
    c800="#242622",
    c900="#1b1d1a",
    c950="#131412",
)

MARK = (
    '<svg class="mark" viewBox="0 0 64 64" width="34" height="34" aria-hidden="true"><rect width="64" height="64" rx="14" '
    'fill="#17191a"/><circle cx="21" cy="23" r="11" fill="#e12328"/><rect x="33" y="34" width="19" height="19" fill="#2d55f0"/>'
    '<path d="M46 11l8 15H38z" fill="#ffe61e"/></svg>'
)
"""Three shapes on a dark ground: what the demo model knows."""


def make_theme() -> Base:
    """Gradio's plain theme in our colours, light and dark."""
    theme = Base(
        primary_hue=GREEN,
        secondary_hue=GREEN,
        neutral_hue=PAPER,
        font=SANS,
        font_mono=MONO,
        radius_size=sizes.radius_md,
        spacing_size=sizes.spacing_md,
        text_size=sizes.text_md,
    )
    both = {
        "body_background_fill": ("#fbfbf8", "#131412"),
        "body_text_color": ("#1e1e22", "#ecece6"),
        "body_text_color_subdued": ("#66665f", "#a5a79f"),
        "background_fill_primary": ("#ffffff", "#1b1d1a"),
        "background_fill_secondary": ("#f4f3ee", "#20221f"),
        "border_color_primary": ("#e0dfd7", "#32352f"),
        "border_color_accent": ("#14794a", "#5cc48d"),
        "block_background_fill": ("#ffffff", "#1b1d1a"),
        "block_border_color": ("#e0dfd7", "#32352f"),
        "block_label_text_color": ("#3b3d3a", "#cfd1c8"),
        "block_title_text_color": ("#1e1e22", "#ecece6"),
        "block_info_text_color": ("#66665f", "#a5a79f"),
        "input_background_fill": ("#f7f6f2", "#161815"),
        "input_border_color": ("#cfcec5", "#3b3f38"),
        "input_border_color_focus": ("#14794a", "#5cc48d"),
        "input_placeholder_color": ("#74746d", "#8d8f87"),
        "button_primary_background_fill": ("#14794a", "#5cc48d"),
        "button_primary_background_fill_hover": ("#11633d", "#7ad3a3"),
        "button_primary_text_color": ("#ffffff", "#08130d"),
        "button_secondary_background_fill": ("#ffffff", "#20221f"),
        "button_secondary_background_fill_hover": ("#f4f3ee", "#2a2d28"),
        "button_secondary_text_color": ("#1e1e22", "#ecece6"),
        "button_secondary_border_color": ("#d2d1c9", "#3b3f38"),
        "slider_color": ("#14794a", "#5cc48d"),
        "link_text_color": ("#14794a", "#5cc48d"),
        "color_accent_soft": ("#eef7f1", "#1d2b23"),
        "checkbox_background_color_selected": ("#14794a", "#5cc48d"),
    }
    values: dict[str, Any] = {name: light for name, (light, _) in both.items()}
    values |= {f"{name}_dark": dark for name, (_, dark) in both.items()}
    values |= {"color_accent": "#14794a", "block_shadow": "none", "block_border_width": "1px"}
    return theme.set(**values, button_primary_border_color="transparent")


def read_style() -> str:
    """The style sheet."""
    return (FOLDER / "page.css").read_text(encoding="utf-8")


def make_head(language: str) -> str:
    """What goes into the page's head: its icon, its language and the script."""
    icon = MARK.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ').replace('"', "'").replace("#", "%23")
    tongue = "zh-CN" if language == "zh" else "en"
    # Gradio's own words ("Drop a file here") follow the browser; here they follow the page.
    follow = (
        f"document.documentElement.lang={tongue!r};"
        f"Object.defineProperty(navigator,'language',{{get:()=>{tongue!r}}});"
        f"Object.defineProperty(navigator,'languages',{{get:()=>[{tongue!r}]}});"
    )
    scripts = (follow, *((FOLDER / name).read_text(encoding="utf-8") for name in ("page.js", "painter.js")))
    return f'<link rel="icon" href="data:image/svg+xml,{escape(icon)}">{"".join(f"<script>{one}</script>" for one in scripts)}'

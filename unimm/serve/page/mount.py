"""The page in the server's application: one Gradio app for each language, at /page/en and /page/zh, and the way there from /.

Nothing is loaded from or sent to another host: no analytics, no fonts, no addresses of pictures to fetch. Uploads have the
server's limits and are deleted after an hour; the server's API key covers the page as it covers every route.
"""

import tempfile
from html import escape
from pathlib import Path

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from unimm.inference.engine import Engine
from unimm.serve.page.actions import connect
from unimm.serve.page.ask import build_ask
from unimm.serve.page.compare import build_compare
from unimm.serve.page.context import Page
from unimm.serve.page.draw import build_draw
from unimm.serve.page.edit import build_edit
from unimm.serve.page.examples import write_pictures
from unimm.serve.page.inside import build_inside
from unimm.serve.page.routes import PageRoutes
from unimm.serve.page.theme import MARK, make_head, make_theme, read_style
from unimm.serve.page.words import LANGUAGES, Words, preferred_language
from unimm.serve.settings import ServerSettings

WORLD_SIDE = 64
"""Pixels of a side in the built-in worlds: models of that size were made on them."""

UPLOADS_LIVE, UPLOADS_CHECKED = 3600, 600
"""Seconds."""


def mount_page(app: FastAPI, engine: Engine, settings: ServerSettings) -> None:
    """Add the page to an application of `create_app`: /page/en, /page/zh, and / leads to the one that the browser prefers."""
    examples = Path(tempfile.mkdtemp(prefix="unimm-page-"))
    write_pictures(examples)
    gr.set_static_paths([examples])
    knows_shapes = engine.image_tokenizer.image_size <= WORLD_SIDE
    theme, style = make_theme(), read_style()
    for language in LANGUAGES:
        page = Page(app.state.service, Words(language), examples, knows_shapes)
        gr.mount_gradio_app(
            app,
            build_page(page),
            f"/page/{language}",
            server_name=settings.host,
            server_port=settings.port,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=settings.max_body_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=theme,
            css=style,
            head=make_head(language),
        )
        mount = app.routes[-1]
        mount.app = PageRoutes(mount.app, examples, mount.app.stop_event)  # type: ignore[attr-defined]
        app.state.pages.append(mount.app)  # type: ignore[attr-defined]
    _add_ways(app)


def build_page(page: Page) -> gr.Blocks:
    """All tabs of one language."""
    words = page.words
    with gr.Blocks(
        title="unimm", analytics_enabled=False, fill_width=True, delete_cache=(UPLOADS_CHECKED, UPLOADS_LIVE)
    ) as blocks:
        gr.HTML(_header(page), elem_id="head")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(words("ask_tab"), id="ask"):
                box = build_ask(page)
            with gr.Tab(words("draw_tab"), id="draw"):
                wall = build_draw(page)
            with gr.Tab(words("edit_tab"), id="edit"):
                changed = build_edit(page)
            with gr.Tab(words("compare_tab"), id="compare"):
                grid = build_compare(page)
            with gr.Tab(words("inside_tab"), id="inside"):
                picked = build_inside(page)
        places, walls = {"inside": picked}, [wall, grid]
        if changed is not None:
            places["edit"] = changed[0]
            walls.append(changed[1])
        connect(page, walls, tabs, box, places)
        foot = [words("demo_limits")] if page.knows_shapes else []
        gr.HTML(f'<p class="foot">{" ".join([*foot, words("stays_here")])}</p>', elem_id="foot")
    for function in blocks.fns.values():
        function.api_visibility = "private"
    return blocks.queue(max_size=page.settings.max_queue, default_concurrency_limit=None)


def _header(page: Page) -> str:
    words, engine = page.words, page.engine
    size = sum(parameter.numel() for part in (engine.model, engine.image_tokenizer) for parameter in part.parameters()) / 1e6
    facts = words(
        "facts",
        name=page.settings.served_model_names[0],
        millions=f"{size:,.1f}" if size < 100 else f"{size:,.0f}",
        side=engine.image_tokenizer.image_size,
        device=engine.device.type.upper(),
    )
    other = "en" if words.language == "zh" else "zh"
    light = words("light_or_dark")
    return (
        f"<header>{MARK}<div><h1>{words('title')}</h1><p>{escape(facts)}</p></div><nav>"
        f'<a class="pill" href="/page/{other}/" hreflang="{other}">{words("other_language")}</a>'
        f'<button id="theme-toggle" class="pill" aria-label="{light}" title="{light}">◐</button>'
        "</nav></header>"
    )


def _add_ways(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/page", include_in_schema=False)
    def way(request: Request) -> Response:
        return RedirectResponse(f"page/{preferred_language(request.headers.get('accept-language', ''))}/", 307)

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(MARK.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '), media_type="image/svg+xml")

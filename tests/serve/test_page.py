"""The page: what it says and fetches, and in a real browser the whole of it, as one story."""

import base64
import io
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from serve.conftest import start
from unimm.checkpoints.demo_examples import demo_pictures
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.runtime.provenance import PAINTED, read_provenance
from unimm.serve.app import create_app
from unimm.serve.page.words import PHRASES, preferred_language
from unimm.serve.settings import ServerSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MAX_PIXELS = 10_000
SECONDS = 90_000
"""For an answer, in milliseconds: machines that do something else are slow."""


def test_both_languages_have_every_phrase_with_the_same_gaps() -> None:
    for name, (english, chinese) in PHRASES.items():
        gaps = [{gap for _, gap, _, _ in Formatter().parse(text) if gap} for text in (english, chinese)]
        assert english and chinese and gaps[0] == gaps[1], name
    assert [preferred_language(one) for one in ("zh-CN,zh;q=0.9", "de, zh", "")] == ["zh", "en", "en"]


class Brake:
    """What an engine asks before each step: after some more it holds it up, until it may make others."""

    steps = math.inf

    def __call__(self) -> bool:
        self.steps -= 1
        while self.steps < 0:
            time.sleep(0.01)
        return False


@dataclass
class Served:
    """A server with the page; `end` stops it."""

    address: str
    end: Callable[[], None]
    engine: Engine
    brake: Brake


@pytest.fixture(scope="module")
def served(demo_engine: Engine) -> Iterator[Served]:
    """A server with the page. It would wait for a minute for what runs at its end."""
    brake = Brake()
    engine = Engine(demo_engine.bundle, Limits(window=1), is_stopped=brake)  # slow enough for previews
    address, end = start(create_app(engine, ServerSettings(served_model_names=("demo",), max_pixels=MAX_PIXELS)), 60)
    try:
        yield Served(address, end, engine, brake)
    finally:
        brake.steps = math.inf  # a test that failed may have left it held up
        end()


@pytest.mark.slow
def test_requests_that_no_page_would_send(served: Served, tmp_path: Path) -> None:
    """A picture that was not uploaded is not opened, and no address is fetched; nothing of the inside is said."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "mine.png")
    with httpx.Client(base_url=f"{served.address}/page/en", timeout=30) as client:
        config = client.get("/config").json()
        numbers = [one["id"] for one in config["dependencies"] if one["targets"] and one["targets"][0][1] == "submit"]
        for path in (str(tmp_path / "mine.png"), "/etc/passwd", "http://127.0.0.1:9/x.png", "https://example.com/x.png", 3):
            for meta in ({"meta": {"_type": "gradio.FileData"}}, {}):
                data = [{"text": "What is it?", "files": [{"path": path, **meta}]}, [], 0, 16]
                body = {"data": data, "fn_index": numbers[0], "session_hash": "s"}
                joined = client.post("/gradio_api/queue/join", json=body)
                assert joined.status_code == 400 and "uploaded" in joined.json()["error"]["message"]
        for path in ("/call/guarded", "/run/predict", "/proxy=http://127.0.0.1:9/", "/deep_link", "/file=/etc/passwd"):
            for method in ("GET", "POST"):
                assert 400 <= client.request(method, f"/gradio_api{path}", json={"data": []}).status_code < 500, path
        for body in ({}, {"data": [], "fn_index": 10**9}, {"data": 3, "fn_index": -1, "session_hash": []}):
            assert client.post("/gradio_api/queue/join", json=body).status_code < 500


@contextmanager
def opened(address: str, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """A browser, and what goes wrong in its pages: errors of the console, and requests to any other host."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []

    def watch(page: Any) -> None:
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: is_foreign(request.url) and wrong.append(request.url))

    def is_foreign(url: str) -> bool:
        return url.startswith("http") and urlsplit(url).netloc != urlsplit(address).netloc

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB", **options)
        context.set_default_timeout(SECONDS)
        context.on("page", watch)
        yield context, wrong
        browser.close()


@pytest.mark.slow(seconds=30)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
def test_a_visit(served: Served, tmp_path: Path) -> None:
    """Ask, draw, stop and go on, edit, compare, look inside, a bad upload, reload, two tabs, a phone; no errors on the way.

    At the end the server does not wait for the tab that is still open."""
    with opened(served.address) as (context, wrong):
        page = context.new_page()
        page.goto(served.address)
        assert urlsplit(page.url).path == "/page/en/"
        ask(page)
        stop_an_answer(page, served)
        ask_about_two_pictures(page, served.engine, tmp_path)
        upload_what_is_no_picture(page, tmp_path)
        draw(page)
        stop_and_go_on(page, served)
        edit(page)
        compare(page)
        look_inside(page)
        page.reload()
        ask(page)
        draw_in_two_tabs(page, context, served.address)
        on_a_phone_in_chinese(context, served.address)
        assert wrong == []
        wait_for(lambda: served.engine.decoder.stats().num_running == 0)
        served.end()


def wait_for(is_so: Any) -> None:
    """Until something is so."""
    end = time.monotonic() + SECONDS / 1000
    while not is_so():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.02)


def ask(page: Any) -> None:
    """By one click, and with the keyboard."""
    page.get_by_role("button", name="How many circles are there?").click()
    page.locator("#chat .bot .md", has_text="2").wait_for()
    page.get_by_role("button", name="New conversation").click()
    page.locator("#chat .bot").first.wait_for(state="detached")
    page.locator("#ask-box textarea").fill("A question without a picture?")
    page.keyboard.press("Enter")
    page.locator("#chat .bot .md", has_text=re.compile(r"[a-z0-9]")).wait_for()


def stop_an_answer(page: Any, served: Served) -> None:
    """While it is written: what there is of it stays, nothing goes on running, and the next question is answered."""
    page.get_by_role("button", name="New conversation").click()
    page.locator("#chat .bot").first.wait_for(state="detached")
    served.brake.steps, question = 6, "Describe the picture."
    page.get_by_role("button", name=question).click()
    said = page.locator("#chat .bot .md", has_text=re.compile("[a-z]"))
    said.wait_for()
    page.locator("#ask-box .stop-button").click()
    page.locator("#ask-box .submit-button").wait_for()
    served.brake.steps = math.inf
    wait_for(lambda: served.engine.decoder.stats().num_running == 0)
    content: list[Any] = [{"type": "image", "image": demo_pictures()["photo-3.png"]}, {"type": "text", "text": question}]
    whole = served.engine.complete([{"role": "user", "content": content}]).text
    assert whole.startswith(said.inner_text()) and whole != said.inner_text()
    page.locator("#ask-box textarea").fill("How many objects are there?")
    page.keyboard.press("Enter")
    page.locator("#chat .bot .md", has_text=re.compile("[0-9]")).wait_for()


def ask_about_two_pictures(page: Any, engine: Engine, folder: Path) -> None:
    """In one question: the answer is the engine's own for both."""
    question, files = "What do these pictures have in common?", [folder / "one.png", folder / "two.png"]
    for file, picture in zip(files, list(demo_pictures().values())[1:], strict=False):
        picture.save(file)
    page.get_by_role("button", name="New conversation").click()
    page.locator("#ask-box input[type=file]").set_input_files(files)
    page.locator("#ask-box").get_by_role("button", name="Remove").nth(1).wait_for()
    page.locator("#ask-box textarea").fill(question)
    page.keyboard.press("Enter")
    images: list[Any] = [{"type": "image", "image": file} for file in files]
    answer = engine.complete([{"role": "user", "content": [*images, {"type": "text", "text": question}]}]).text
    page.locator("#chat .bot .md", has_text=answer).wait_for()
    assert page.locator("#chat .user img").count() == 2


def upload_what_is_no_picture(page: Any, folder: Path) -> None:
    """Each is answered with a sentence, and stays in the box to be taken out."""
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    Image.new("RGB", (200, 200)).save(folder / "large.png")
    for name, said in (("broken.png", "image"), ("large.png", "pixel")):
        page.locator("#ask-box input[type=file]").set_input_files(folder / name)
        page.locator("#ask-box textarea").fill("What is it?")
        page.locator("#ask-box .submit-button").click()
        message = page.locator(".toast-body", has_text=said)
        message.first.wait_for()
        assert "Traceback" not in message.first.inner_text() and "/tmp" not in message.first.inner_text()
        page.locator("#ask-box").get_by_role("button", name="Remove").first.click()


WATCH = """
window.drafts = new Set();
window.isDone = false;
new MutationObserver(() => {
  const image = document.querySelector("#wall img");
  if (image && image.src.startsWith("data:image/webp")) window.drafts.add(image.src);
  else if (image && window.drafts.size) window.isDone = true;
}).observe(document.body, {subtree: true, childList: true, attributes: true});
"""
"""Collects every draft that the first place of the wall shows, until the picture comes."""


def draw(page: Any) -> None:
    """An example by one click; two previews at least before the picture, which can be downloaded."""
    page.get_by_role("tab", name="Draw", exact=True).click()
    page.get_by_label("number input for Pictures").fill("3")
    for _ in range(6):  # a machine that does something else leaves out previews that come too late
        page.evaluate(WATCH)
        page.get_by_role("button", name="three green crosses").click()
        page.wait_for_function("window.isDone")
        if page.evaluate("window.drafts.size") >= 3:
            break
    assert page.evaluate("window.drafts.size") >= 3  # grey, and two previews
    assert page.locator("#wall img").first.evaluate("image => image.naturalWidth") == 64
    with page.expect_download() as download:
        page.locator("#wall a[data-download]").first.click()
    said = read_provenance(download.value.path().read_bytes())
    assert said is not None and said["prompt"] == "three green crosses" and said["settings"]["guidance_scale"] == 2.5


def stop_and_go_on(page: Any, served: Served) -> None:
    """A drawing that is stopped leaves nothing running, and the next one comes, by the keyboard."""
    page.locator("#draw-prompt textarea").fill("three green crosses")
    served.brake.steps = 20  # so that it does not end before it is stopped
    page.locator("#draw-start").click()
    page.locator("#draw-stop").click()
    page.locator("#draw-start").wait_for()
    served.brake.steps = math.inf
    wait_for(lambda: served.engine.decoder.stats().num_running == 0)
    served.brake.steps = 20
    page.locator("#draw-prompt textarea").press("Enter")
    page.locator("#draw-stop").wait_for()
    served.brake.steps = math.inf
    page.locator("#wall a[data-download]").first.wait_for()


def edit(page: Any) -> None:
    """A drawing is painted over, with the mouse and the keyboard: a stroke changes what is below it, and nothing else. Then the
    result grows. The demo was not taught to follow instructions, and the page says so."""
    page.get_by_role("tab", name="Draw", exact=True).click()
    page.locator("#wall").get_by_role("button", name="Edit").first.click()
    page.get_by_role("tab", name="Say it").click()
    page.locator("#not-taught", has_text="not taught").wait_for()
    page.get_by_role("tab", name="Paint over it").click()
    page.locator("#paint-prompt textarea").fill("a large red circle")
    page.locator("#paint-start").click()
    page.locator(".toast-body", has_text="Paint over what shall change first").first.wait_for()
    canvas = page.locator(".painter canvas")
    box = canvas.bounding_box()
    across = [(box["x"] + box["width"] * part, box["y"] + box["height"] * 0.7) for part in (0.2, 0.4, 0.6)]
    page.mouse.move(*across[0])
    page.mouse.down()
    for place in across[1:]:
        page.mouse.move(*place)
    page.mouse.up()
    stroke = page.evaluate("window.unimmMask()")
    canvas.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    with_dot = page.evaluate("window.unimmMask()")
    page.get_by_role("button", name="Undo").click()
    assert page.evaluate("window.unimmMask()") == stroke != with_dot
    source = decoded(page.locator(".painter img").get_attribute("src"))
    page.locator("#paint-start").click()
    painted = downloaded(page)
    is_marked, changed = decoded(stroke)[..., 0] >= 128, (painted != source).any(-1)
    assert 0 < is_marked.mean() < 0.5 and changed.any() and not changed[~is_marked].any()
    page.locator("#edit-wall").get_by_role("button", name="Edit").first.click()
    page.get_by_role("tab", name="Grow it").click()
    page.locator("#around-prompt textarea").fill("a large red circle")
    page.locator("#around-start").click()
    page.locator("#edit-stop").wait_for()
    grown = downloaded(page)
    assert grown.shape == (64, 96, 3) and np.array_equal(grown[:, :64], painted)


def decoded(uri: str) -> np.ndarray:
    """The pixels (H, W, 3) of a data: URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def downloaded(page: Any) -> np.ndarray:
    """The pixels of the first result of the tab Edit, once it is there."""
    page.locator("#edit-wall .progress.done").wait_for()
    with page.expect_download() as download:
        page.locator("#edit-wall a[data-download]").first.click()
    data = download.value.path().read_bytes()
    said = read_provenance(data)
    assert said is not None and said["task"] == PAINTED
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def compare(page: Any) -> None:
    """A grid of two rows and two columns."""
    page.get_by_role("tab", name="Compare").click()
    seeds, guidance = page.get_by_label("Seeds"), page.get_by_label("Guidance").last

    def filled() -> bool:  # in the moment in which a tab appears, Gradio may put its own values back
        seeds.fill("3, 4")
        guidance.fill("1, 2.5")
        page.wait_for_timeout(300)
        return (seeds.input_value(), guidance.input_value()) == ("3, 4", "1, 2.5")

    wait_for(filled)
    page.locator("#compare-start").click()
    page.locator("#grid a[data-download]").first.wait_for()
    assert page.locator("#grid img").count() == 4


def look_inside(page: Any) -> None:
    """A drawing as codes; where the model looked for a word of its answer; which word a patch came from."""
    page.get_by_role("tab", name="Draw", exact=True).click()
    page.locator("#wall").get_by_role("button", name="Look inside").first.click()
    page.locator("#codes [data-code]").first.wait_for()
    assert page.locator("#codes [data-code]").count() == 64
    page.get_by_role("tab", name="Looking", exact=True).click()
    page.locator(".thumb:visible").first.click()
    page.locator("#looks .said button", has_text="cyan").click()
    assert page.locator("#looks .map.on").count() == 1
    page.get_by_role("tab", name="Drawing", exact=True).click()
    page.locator("#threads-start").click()
    page.locator("#threads .said button", has_text="blue").click()
    shades = page.locator("#threads [data-patch]").evaluate_all(
        "all => all.map((one) => +one.style.getPropertyValue('--shade'))"
    )
    assert len(shades) == 64 and min(shades) == 0 and max(shades) > 0.5
    page.locator("#threads [data-patch]").first.press("ArrowRight")  # the keyboard walks on, and chooses
    assert page.locator("#threads [data-patch='1'][aria-pressed=true]").count() == 1


def draw_in_two_tabs(page: Any, context: Any, address: str) -> None:
    """Both get their pictures."""
    other = context.new_page()
    other.goto(address)
    for one in (page, other):
        one.get_by_role("tab", name="Draw", exact=True).click()
        one.get_by_role("button", name="the digit five").click()
    for one in (page, other):
        one.locator("#wall a[data-download]").first.wait_for()
    other.close()


def on_a_phone_in_chinese(context: Any, address: str) -> None:
    """Everything fits into 375 pixels, and light becomes dark."""
    page = context.new_page()
    page.set_viewport_size({"width": 375, "height": 720})
    page.goto(f"{address}/page/zh/")
    page.get_by_role("button", name="有几个圆形？").click()
    page.locator("#chat .bot .md", has_text="2").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.locator("#theme-toggle").click()
    assert page.locator("body.dark").count() == 1
    page.close()

"""The page: widgets, and what of them a click hands on. Gradio is imported here alone.

Nothing is fetched from elsewhere: the server sends no analytics, and a policy in each answer forbids the browser what does not
come from the server. Fonts are those of the system.
"""

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsevid.savings.options import CALIBRATED, SAVINGS
from sparsevid.system.errors import EXPECTED_ERRORS, told
from sparsevid.ui.clicks import Clicks
from sparsevid.ui.comparison import MOST_CLIPS, Choices, Shared, Side
from sparsevid.ui.markup import message

if TYPE_CHECKING:
    import gradio as gr

ASSETS = Path(__file__).parent
LARGEST_SEED = 2**31 - 1  # of those that the button draws
# Scripts and styles of Gradio stand in its page, and its templates are compiled in the browser; clips are in the answers.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; form-action 'self'"
)

_QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # no bar, and no name in an API


class SideWidgets(NamedTuple):
    """The widgets of a side, in the order of the fields of `Side`."""

    model: "gr.Dropdown"
    sampler: "gr.Dropdown"
    steps: "gr.Number"
    guidance: "gr.Number"
    schedule: "gr.Radio"
    savings: "gr.Dropdown"


class FromHereOnly:
    """An ASGI middleware that gives each answer the policy, by which the browser fetches nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        async def send_with_policy(answer: dict) -> None:
            if answer["type"] == "http.response.start":
                answer = answer | {"headers": [*answer["headers"], (b"content-security-policy", POLICY.encode("ascii"))]}
            await send(answer)

        await self.app(scope, receive, send_with_policy)


def load_gradio() -> ModuleType:
    """Gradio, told before it is imported that it sends nothing.

    Raises:
        ImportError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ImportError("`sparsevid ui` needs the package gradio: pip install 'sparsevid[ui]'") from error
    return gradio


def serve(clicks: Clicks, host: str, port: int | None) -> "gr.Blocks":
    """Begin to answer, in a thread of its own.

    Args:
        clicks: what the page asks.
        host: the address to listen at; `127.0.0.1` is reached from this machine alone.
        port: None: the first free one from 7860 on.

    Returns:
        The page; `local_url` says where it is, and `close()` ends it.

    Raises:
        ImportError: as `load_gradio`.
        OSError: the port is taken.
    """
    gr = load_gradio()
    from starlette.middleware import Middleware

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "SF Mono", "DejaVu Sans Mono", "Consolas", "monospace"]
    page = build_page(clicks)
    launch = partial(
        page.queue(default_concurrency_limit=1).launch,
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(FromHereOnly)]},
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono),
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
    )
    try:
        launch()
    except OSError as error:  # which speaks of arguments of Gradio
        wanted = "no port from 7860 on is free" if port is None else f"port {port} is taken"
        raise OSError(f"{wanted} at {host}, or it is no address of this machine; --port takes another") from error
    return page


def build_page(clicks: Clicks) -> "gr.Blocks":
    """The page of these models, not yet served.

    Raises:
        ImportError: as `load_gradio`.
        FileNotFoundError, ValueError: as `Clicks.choose`, of the models that it begins with.
    """
    gr, names = load_gradio(), clicks.models.names
    first, second = names[0], names[min(1, len(names) - 1)]
    offered, other = clicks.choose(first), clicks.choose(second)
    with gr.Blocks(title="sparsevid", analytics_enabled=False, fill_width=True) as page:
        words = "Clips of a model, by one way to sample it or by two, from the same noise."
        gr.HTML(f"<h1>sparsevid</h1><p>{words}</p>", elem_classes="sv-title")
        with gr.Row():
            with gr.Column(scale=1, min_width=360):
                with gr.Group():
                    said = _said(gr, offered, other)
                    with gr.Row():
                        clips = gr.Slider(1, MOST_CLIPS, value=4, step=1, label="Clips")
                        seed = gr.Number(value=0, precision=0, label="Seed")
                    draw = gr.Button("Another seed", size="sm")
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", min_width=160, scale=3, elem_id="sv-generate")
                    stop = gr.Button("Stop", min_width=80, scale=1, elem_id="sv-stop")
                both = gr.Checkbox(value=True, label="Two ways side by side: A and B", elem_id="sv-both")
                with gr.Tab("A", elem_id="sv-tab-a"):
                    one = _side(gr, "A", names, first, offered)
                with gr.Tab("B", elem_id="sv-tab-b") as beside:
                    two = _side(gr, "B", names, second, other, other_way=second == first)
            with gr.Column(scale=3, min_width=360):
                script = (ASSETS / "page.js").read_text(encoding="utf-8")
                beginning = message("Generate makes clips of both ways.", "note")
                made = gr.HTML(beginning, js_on_load=script, elem_id="sv-result")
        draw.click(lambda: random.randint(0, LARGEST_SEED), None, seed, **_QUIET)
        stop.click(clicks.stop, None, None, concurrency_limit=None, **_QUIET)
        both.change(lambda shows: gr.Tab(visible=shows), both, beside, **_QUIET)
        _connect_generate(gr, clicks, go, [*said, clips, seed, both, *one, *two], made)
        for letter, side in zip("AB", (one, two), strict=True):
            _connect_model(gr, clicks, letter, side, (one.model, two.model), said, made)
    return page


def _side(gr: ModuleType, letter: str, names: list[str], name: str, offered: Choices, other_way: bool = False) -> SideWidgets:
    """The widgets of A or B, as its model's run says, or with a saving that any model takes."""
    letter_class, own = f"sv-{letter.lower()}", _settings(offered)
    if other_way:
        own[-1]["value"] = [str(SAVINGS["static"]())]
    with gr.Group(elem_classes=["sv-side", letter_class]):
        model = gr.Dropdown(names, value=name, label="Model", elem_id=f"{letter_class}-model")
        with gr.Row():
            sampler = gr.Dropdown(label="Sampler", min_width=120, scale=2, **own[0])
            # No bounds: what is out of them is refused by an answer that says of which side, and what is accepted.
            steps = gr.Number(label="Steps", precision=0, min_width=90, elem_id=f"{letter_class}-steps", **own[1])
            guidance = gr.Number(label="Guidance", min_width=80, step=0.5, **own[2])
        tokens = "paper: fewer in noise, more towards data; constant: the same at all times; off: all"
        schedule = gr.Radio(label="Tokens of a sparse model", info=tokens, elem_id=f"{letter_class}-schedule", **own[3])
        # Without their fit those that are calibrated are refused, with the command that makes it.
        texts = [str(policy()) for name, policy in SAVINGS.items() if name not in CALIBRATED] + list(CALIBRATED)
        info = "What calls leave out; options can be typed"
        savings = gr.Dropdown(texts, label="Savings", info=info, multiselect=True, allow_custom_value=True, **own[4])
    return SideWidgets(model, sampler, steps, guidance, schedule, savings)


def _settings(offered: Choices) -> tuple[dict[str, Any], ...]:
    """What a model makes of the widgets of its side, but for that which names it."""
    usual = offered.usual
    return (
        {"choices": list(offered.samplers), "value": usual.sampler},
        {"value": usual.steps},
        {"value": usual.guidance, "interactive": offered.guided},
        {"choices": list(offered.schedules), "value": usual.schedule, "interactive": len(offered.schedules) > 1},
        {"value": list(usual.savings)},
    )


def _said(gr: ModuleType, *offered: Choices) -> tuple["gr.Dropdown", "gr.Textbox", "gr.Textbox"]:
    """The widgets of what models are told: classes, prompts, and what guidance compares with."""
    classes, prompts, negative = _told(*offered)
    info = "None chosen: all, in an order that the seed draws"
    return (
        gr.Dropdown(label="Classes to go through", info=info, multiselect=True, elem_id="sv-classes", **classes),
        gr.Textbox(label="Prompts to go through, one a line", lines=3, elem_id="sv-prompts", **prompts),
        gr.Textbox(label="In guidance, in place of no prompt", elem_id="sv-negative", **negative),
    )


def _told(*offered: Choices) -> tuple[dict[str, Any], ...]:
    """What models make of these widgets: the classes are those of the first that has any."""
    classes = next((list(each.classes) for each in offered if each.classes), [])
    text = any(each.text for each in offered)
    return {"choices": classes, "value": [], "visible": bool(classes)}, {"visible": text}, {"visible": text}


def _connect_model(
    gr: ModuleType, clicks: Clicks, letter: str, side: SideWidgets, names: tuple, said: tuple, made: "gr.HTML"
) -> None:
    """Another model of a side: its own settings, and what both are told."""
    kinds = (gr.Dropdown, gr.Number, gr.Number, gr.Radio, gr.Dropdown)
    asked = (gr.Dropdown, gr.Textbox, gr.Textbox)

    def chosen(*both: str) -> list:
        try:
            offered = [clicks.choose(name) for name in both]
        except EXPECTED_ERRORS as error:
            return [gr.skip()] * (len(kinds) + len(asked)) + [message(told(error))]
        own = _settings(offered["AB".index(letter)])
        found = zip((*kinds, *asked), (*own, *_told(*offered)), strict=True)
        return [kind(**options) for kind, options in found] + [gr.skip()]

    outputs = [*side[1:], *said, made]
    side.model.input(chosen, list(names), outputs, api_visibility="private", show_progress_on=side.model)


def _connect_generate(gr: ModuleType, clicks: Clicks, go: "gr.Button", inputs: list, made: "gr.HTML") -> None:
    """Generate: clips of A, then of both, and a bar meanwhile."""

    def generate(
        classes: list[str] | None,
        prompts: str | None,
        negative: str | None,
        clips: float,
        seed: int | None,
        both: bool,
        *settings: Any,
        progress: Any = gr.Progress(),  # noqa: B008 (Gradio's way)
    ) -> Iterator[str]:
        count = len(SideWidgets._fields)
        sides = [Side(*settings[:count]), Side(*settings[count:])][: 1 + both]
        lines = (prompts or "").splitlines()
        shared = Shared(int(clips), seed or 0, classes=classes or (), prompts=lines, negative=negative or "")
        yield from clicks.generate(shared, sides, lambda share, words: progress(share, desc=words))

    go.click(generate, inputs, made, api_visibility="private", show_progress_on=made)

"""Both pages' use of Gradio: boxes, handlers that cannot end the server, and one application."""

import argparse
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from page.hosts import OwnPages
from page.studio import MAX_POINTS, SAMPLERS, SCHEDULE_NAMES
from page.visits import Visits
from runtime.errors import DataError, UsageError, first_line

MAX_UPLOAD = "10mb"
MAX_SESSIONS = 100  # sessions whose state is kept; each holds a copy of the page's settings
MAX_STROKES = 60  # paintings that were sent and not yet generated from


def as_sent(box: Any) -> Any:
    """A box whose value arrives unchanged, so that `page.studio.whole` and `real` can refuse it in words."""
    box.preprocess = lambda value: value
    return box


def sampler_boxes(default: argparse.Namespace) -> dict[str, Any]:
    """Boxes of the sampler and the seed, by their names in a page's choices.

    Args:
        default: arguments of sample.py.
    """
    import gradio as gr

    with gr.Accordion("Sampler and seed", open=False):
        return {
            "sampler": gr.Dropdown(list(SAMPLERS), value=f"ODE {default.sampling_method}", label="Sampler"),
            "points": as_sent(gr.Slider(2, MAX_POINTS, default.num_sampling_steps, step=1, label="Time points")),
            "schedule": gr.Radio(SCHEDULE_NAMES, value="number", label="Steps"),
            "seed": as_sent(gr.Number(default.seed, precision=0, label="Seed")),
        }


class Latest(OrderedDict[str, Any]):
    """A dictionary of at most `size` items: adding one drops the oldest."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > self.size:
            self.popitem(last=False)


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose every error is a line on the page: SystemExit in a worker would end the server's loop.

    Raises:
        gr.Error: from the handler returned, in place of any other error.
    """
    import gradio as gr

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except gr.Error:
            raise
        except (UsageError, DataError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        except (Exception, SystemExit) as error:
            raise gr.Error(f"{type(error).__name__}: {first_line(error)}") from error  # and a traceback in the log

    return call


def guard(page: Any) -> Any:
    """A page (Gradio's Blocks) with all of its handlers guarded, and of bounded memory."""
    page.state_session_capacity = MAX_SESSIONS
    for event in page.fns.values():
        if event.fn is not None:
            event.fn = guarded(event.fn)
    for block in page.blocks.values():
        if hasattr(block, "blob_storage"):  # an editor's: strokes on their way
            block.blob_storage = Latest(MAX_STROKES)
    return page


def application(
    page: Any, css: str, folder: Path, names: Iterable[str] | None, added: Iterable[str] = ()
) -> tuple[Any, AbstractContextManager[Visits]]:
    """A page as an ASGI application, and a context in which its folder is swept.

    Args:
        page: Gradio's Blocks.
        css: its style.
        folder: folder of its files, Gradio's GRADIO_TEMP_DIR.
        names, added: names of hosts that are answered, see `OwnPages`; None for any.
    """
    import gradio as gr
    from starlette.applications import Starlette

    mounted = gr.mount_gradio_app(
        Starlette(),
        page.queue(default_concurrency_limit=1),
        path="/",
        show_error=True,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        theme=gr.themes.Default(),  # its fonts come with Gradio
        css=css,
    )
    visits = Visits(mounted, folder)
    return (visits if names is None else OwnPages(visits, names, added)), visits

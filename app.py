"""A local page for graded control: say how much of a picture or a 3D shape is kept, and let a model generate the rest.

    python app.py --ckpt results/ComboStoc-XS-2-demo/ckpt.pt    # trained by `make demo`, on any CPU

and open the address that it prints. Of a picture one paints what is kept; with a model of shapes, one ticks parts and
attributes of a shape. Needs Gradio: pip install -r requirements-app.txt. Only this machine can open the page, as
localhost, 127.0.0.1 or ::1, unless --host or --allow-host says otherwise, and nothing is fetched from the network.
"""

from runtime.errors import DataError, UsageError, begin, run_program

if __name__ == "__main__":
    begin()

import ipaddress
import logging
import math
import os
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import kinds
from page import shapes as shape_page
from page.hosts import LOOPBACK, allowed_host, host_name
from page.server import application, as_sent, guard, sampler_boxes
from page.shape_studio import ShapeStudio
from page.studio import (
    ANY_CLASS,
    CANVAS,
    MAX_GUIDANCE,
    MAX_VARIATIONS,
    Choices,
    Studio,
    brush_colour,
    in_words,
    note,
    real,
)
from runtime import distributed, precision
from runtime.command_line import Parser, accepting, whole
from runtime.precision import add_speed_args
from sampling.arguments import CFG_SCALE, VARIATIONS, add_model_args
from sampling.network import say
from train_utils import parse_transport_args

port_number = accepting(whole, lambda n: 1 <= n <= 65535, "is not a port, from 1 to 65535")


def make_parser() -> Parser:
    """The parser of app.py."""
    parser = Parser(description=__doc__)
    add_model_args(parser, vae="mse")
    parse_transport_args(parser, from_checkpoint=True)
    add_speed_args(parser.add_argument_group("speed"))
    group = parser.add_argument_group("page")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    group.add_argument("--port", type=port_number, default=7860, help="port to listen on")
    group.add_argument(
        "--allow-host",
        type=allowed_host,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="further host names, a proxy's for instance, under which the page is opened, beside localhost; default "
        "with --host 0.0.0.0: all names",
    )
    parser.set_defaults(guidance_interval=(0.0, 1.0))
    return parser


TITLE = "ComboStoc: graded control"
NO_PICTURE = "Load or draw a picture first"
HOW_TO = """
### Keep some of a picture, generate the rest
**1.** Load or draw a picture. **2.** Paint over what is to be kept: the brush's strength says how much, from 0, made
anew, to 1, kept as it is. Change the strength and paint on; the last stroke counts. **3.** Generate.
"""
LEGEND = f"""
<div id="legend" style="background: linear-gradient(to right, {", ".join(brush_colour(s / 8) for s in range(9))})">
<span>0: made anew</span><span>0.5</span><span>1: kept as it is</span></div>
"""
CSS = """
#legend { display: flex; justify-content: space-between; border-radius: 4px; padding: 1px 10px; color: black; }
#legend span:first-child { color: white; }
#trouble strong, #said strong { color: #b91c1c; }
#sheet .empty { min-height: 9rem; }
#sheet .image-container { padding-top: 2rem; }  /* the label and the buttons stand there, and not on the samples */
#sheet .image-frame { display: block; width: 100%; overflow-x: auto; }  /* on a phone one scrolls along them */
#sheet img { display: block; width: auto; height: auto; max-width: max(100%, 60rem); margin: auto; }
"""


# ---- the program ---------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page as the command line says.

    Raises:
        UsageError: Gradio is missing, or an argument does not fit the checkpoint.
        DataError: the checkpoint cannot be read, or the port cannot be listened on.
    """
    args = make_parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="combostoc-") as folder:  # for uploads and pictures while the program runs
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise UsageError("app.py needs Gradio: pip install -r requirements-app.txt") from None
        local = check_address(args.host, args.port)
        process = distributed.single(args.device)
        precision.setup(args.precision)
        network = kinds.load_network(args, process.device, default_vae="mse")
        say(network.notes)
        studio: Studio | ShapeStudio
        if kinds.of_model(network.config.name) is kinds.IMAGES:
            studio = Studio(network, process.device, args.precision)
            blocks, css = build_page(studio), CSS
        else:
            studio = ShapeStudio(network, process.device, args.precision, Path(folder))
            blocks, css = shape_page.build_page(studio), shape_page.CSS
        logging.getLogger("uvicorn.error").addFilter(is_of_the_program)
        names = [*LOOPBACK, host_name(args.host)] if local or args.allow_host else None
        app, sweeping = application(blocks, css, Path(folder), names, args.allow_host)
        print(f"{network.config.name} at {address(args.host, args.port)}; stop with Ctrl-C", flush=True)
        print(who_can_open(local, args.allow_host), flush=True)
        with sweeping:
            serve(app, args.host, args.port)
        studio.close()


def address(host: str, port: int) -> str:
    """The address of the page, for a browser on this machine."""
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def who_can_open(local: bool, added: Sequence[str]) -> str:
    """A line that tells who can open the page."""
    names = ", ".join(added)
    if local:
        return "Only this machine can open it" + (f", and whoever reaches it as {names}" if added else "")
    if added:
        return f"Every machine that reaches this one can open it, as {names}"
    return (
        "Every machine that reaches this one can open it, by any name, and so can web sites that their browsers have "
        "open; --allow-host NAME answers only those who use that name"
    )


def serve(app: Any, host: str, port: int) -> None:
    """Answer requests until Ctrl-C.

    Raises:
        DataError: the program cannot listen there.
    """
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1))
    # In a thread: here an interrupt would wait for those who are connected.
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        server.should_exit = True
        thread.join(5)
    if not server.started:
        raise DataError(f"--host {host} --port {port}: cannot listen there")


def is_of_the_program(record: logging.LogRecord) -> bool:
    """Whether a record of the server's log is worth showing: not one of a browser that went away."""
    from starlette.requests import ClientDisconnect

    return not (record.exc_info and isinstance(record.exc_info[1], ClientDisconnect))


def check_address(host: str, port: int) -> bool:
    """See that the program can listen there; returns whether only this machine can connect.

    Raises:
        DataError: it cannot.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return ipaddress.ip_address(address[0]).is_loopback
    except OSError as error:
        raise DataError(f"--host {host} --port {port}: cannot listen there: {error.strerror}") from None


# ---- the page ------------------------------------------------------------------------------------------------------


def on_canvas(picture: Image.Image) -> dict[str, Any]:
    """The value of an editor with a picture and nothing painted yet."""
    return {"background": picture, "layers": [], "composite": None}


def build_page(studio: Studio) -> Any:
    """The page of images, as Gradio's Blocks.

    Its handlers turn the errors of a user's choices into a line on the page.

    Raises:
        UsageError: within its handlers only.
    """
    import gradio as gr

    network = studio.network
    side = network.image_size * math.ceil(CANVAS / network.image_size)
    blank = on_canvas(Image.new("RGB", (side, side)))
    nothing = on_canvas(note(NO_PICTURE, side))
    editing = {
        "sources": (),
        "transforms": (),
        "layers": False,
        "canvas_size": (side, side),
        "format": "png",
        "height": 380,
    }

    def brush(*colours: str) -> gr.Brush:
        return gr.Brush(default_size=side // 8, colors=list(colours), color_mode="fixed")

    def recolour(strength: Any) -> Any:
        return gr.ImageEditor(brush=brush(brush_colour(real("Strength of the brush", strength, 0, 1))))

    def load(path: str | None) -> tuple[Any, Any, str]:
        """A file becomes the reference, None takes it away; what was painted goes."""
        try:
            return path, canvas_of(path), ""
        except DataError as error:
            return gr.skip(), gr.skip(), in_words(error, path)

    def load_drawing(value: dict[str, Any] | None) -> tuple[Any, Any, str]:
        return load(value["composite"] if value else None)

    def canvas_of(path: str | None) -> dict[str, Any]:
        return on_canvas(studio.canvas(path)) if path else nothing

    def generate(values: dict[Any, Any], progress: gr.Progress = gr.Progress()) -> tuple[Any, str]:  # noqa: B008
        try:
            if values[reference] is None:
                raise UsageError(NO_PICTURE)
            chosen = {name: values[widget] for name, widget in widgets.items()}
            strengths = [values[f] for f in factors]
            if None in [*chosen.values(), *strengths]:
                raise UsageError("a setting is empty")
            chosen["label"] = None if chosen["label"] == ANY_CLASS else chosen["label"]
            sheet, said = studio.generate(
                Choices(values[reference], (values[editor] or nothing)["layers"], **chosen, factors=strengths),
                lambda n, total: progress((n, total), unit="model evaluations"),
            )
            return sheet, "; ".join(said)
        except (UsageError, DataError, FloatingPointError) as error:
            return gr.skip(), in_words(error, values[reference])

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        reference = gr.State(None)
        gr.Markdown(HOW_TO)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                with gr.Tabs():
                    with gr.Tab("Load a picture"):
                        file = gr.File(file_types=["image"], label="Picture", height=160, elem_id="file")
                    with gr.Tab("Draw one", elem_id="draw"):
                        pens = brush("#ffffff", "#c0c0c0", "#808080", "#404040", "#000000")
                        if network.images.channels > 1:
                            pens.color_mode = "defaults"
                        drawing = gr.ImageEditor(
                            blank, type="filepath", brush=pens, show_label=False, elem_id="drawing", **editing
                        )
                        use = gr.Button("Use the drawing", elem_id="use")
                trouble = gr.Markdown(elem_id="trouble")
            with gr.Column(scale=5, min_width=400):
                strength = as_sent(gr.Slider(0, 1, 1, step=0.01, label="Strength of the brush", elem_id="strength"))
                gr.HTML(LEGEND)
                editor = gr.ImageEditor(
                    nothing, type="pil", brush=brush(brush_colour(1)), label="Paint here", elem_id="map", **editing
                )
                elsewhere = as_sent(
                    gr.Slider(0, 1, 0, step=0.01, label="Kept where nothing is painted", elem_id="elsewhere")
                )
            with gr.Column(scale=4, min_width=300):
                classes = [("any class", ANY_CLASS), *((network.class_name(k), k) for k in range(network.num_labels))]
                widgets = {
                    "elsewhere": elsewhere,
                    "label": gr.Dropdown(classes, value=ANY_CLASS, label="Class"),
                    "guidance": as_sent(
                        gr.Slider(1, MAX_GUIDANCE, CFG_SCALE, step=0.1, label="Guidance", info="to a class; 1 for none")
                    ),
                    "variations": as_sent(gr.Slider(1, MAX_VARIATIONS, VARIATIONS, step=1, label="Variations")),
                }
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                said = gr.Markdown(elem_id="said")
                widgets |= sampler_boxes(studio.parser().parse_args(["ODE"]))
                channels = network.config.in_channels
                with gr.Accordion("Channels", open=False, visible=channels > 1):
                    factors = [
                        as_sent(gr.Slider(0, 1, 1, step=0.01, label=f"Channel {k}, times the map"))
                        for k in range(1, channels + 1 if channels > 1 else 1)
                    ]
        sheet = gr.Image(format="png", label="Samples", interactive=False, elem_id="sheet", buttons=["download"])

        at_once = {"queue": False, "show_progress": "hidden"}  # also while samples are being generated
        strength.change(recolour, strength, editor, **at_once)
        file.upload(load, file, [reference, editor, trouble], **at_once)
        use.click(load_drawing, drawing, [reference, editor, trouble], **at_once)
        editor.clear(canvas_of, reference, editor, **at_once)
        drawing.clear(lambda: blank, None, drawing, **at_once)
        button.click(generate, {reference, editor, *widgets.values(), *factors}, [sheet, said])
    return guard(page)


if __name__ == "__main__":
    run_program(main)

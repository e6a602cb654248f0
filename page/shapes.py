"""The page of app.py for a model of shapes, in Gradio, upon page/shape_studio.py."""

from pathlib import Path
from typing import Any

from page.server import as_sent, guard, sampler_boxes
from page.shape_studio import PICTURE, ShapeChoices, ShapeStudio, attribute_name, part_name
from page.studio import (
    ANY_CLASS,
    MAX_VARIATIONS,
    in_words,
    note,
    whole,
)
from runtime.errors import DataError, UsageError
from sampling.arguments import VARIATIONS
from shapes.meshes import PALETTE
from shapes.sets import EMBEDDED

TITLE = "ComboStoc: parts and attributes"
NO_SHAPE = "Load a set of shapes first"
HOW_TO = """
### Keep some of a shape, generate the rest
**1.** Choose a shape. **2.** Take away the ticks of what is to be made anew: of parts, and the shape is completed; of
attributes, and its parts are assembled anew. The slider says how much is kept of a part's attribute where both are
ticked. **3.** Generate.
"""
CSS = "\n".join(
    [
        "#trouble strong, #said strong { color: #b91c1c; }",
        "#sheet .empty { min-height: 9rem; }",
        "#sheet .image-container { padding-top: 2rem; }",
        "#sheet .image-frame { display: block; width: 100%; overflow-x: auto; }  /* on a phone one scrolls along it */",
        "#sheet img { display: block; width: auto; height: auto; max-width: max(100%, 60rem); margin: auto; }",
        "#parts .wrap label span::before { content: ''; display: inline-block; width: 0.8em; height: 0.8em; ",
        "  margin-right: 0.4em; border-radius: 3px; vertical-align: -0.05em; }",
        *(
            f"#parts .wrap label:nth-of-type({len(PALETTE)}n + {k}) span::before {{ background: rgb{tuple(colour)}; }}"
            for k, colour in enumerate(PALETTE.tolist(), start=1)
        ),
    ]
)
BACKGROUND = (0.97, 0.97, 0.98, 1.0)  # of scenes in 3D, as of pictures
CAMERA = (58, 66)  # degrees to the right of the front and above the ground, as in pictures


def build_page(studio: ShapeStudio) -> Any:
    """The page of shapes, as Gradio's Blocks.

    Its handlers turn the errors of a user's choices into a line on the page.

    Raises:
        UsageError: within its handlers only.
    """
    import gradio as gr

    network = studio.network
    embedded = studio.embedded

    def shown(path: str, number: Any) -> list[Any]:
        """What a reference changes: itself, in 3D, its picture, its parts; everything is ticked."""
        found = studio.reference(path, number)
        ticks = [(part_name(i), i) for i in found.parts]
        return [
            (path, number),
            in_3d(studio.scene(found), found.said),
            gr.Image(found.picture(found.parts), label="Kept parts are in colour"),
            gr.CheckboxGroup(ticks, value=found.parts),
            "",
        ]

    def load(path: str | None, number: Any) -> list[Any]:
        try:
            if path is None:
                raise UsageError(NO_SHAPE)
            return shown(path, number)
        except (UsageError, DataError) as error:
            return [gr.skip()] * 4 + [in_words(error, path)]

    def load_embedded(name: str, number: Any) -> list[Any]:
        numbers = embedded[name]
        try:
            place = min(whole("Number", number, 0), len(numbers) - 1)
        except UsageError as error:
            return [gr.skip()] * 4 + [in_words(error, None)]
        return load(EMBEDDED, int(numbers[place]))

    def of_class(name: str) -> Any:
        return gr.Slider(maximum=len(embedded[name]) - 1, value=0)

    def load_other(path: str | None, number: Any) -> list[Any]:
        return [gr.skip()] * 5 if path is None else load(path, number)

    def repaint(reference: tuple[str, int] | None, ticked: list[int]) -> Any:
        return gr.skip() if reference is None else studio.reference(*reference).picture(ticked)

    def generate(values: dict[Any, Any], progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        path = None
        try:
            if values[reference] is None:
                raise UsageError(NO_SHAPE)
            path, number = values[reference]
            chosen = {name: values[widget] for name, widget in widgets.items()}
            if None in chosen.values():
                raise UsageError("a setting is empty")
            chosen["label"] = None if chosen["label"] == ANY_CLASS else chosen["label"]
            sheet, scenes, said = studio.generate(
                ShapeChoices(path, number, values[parts], values[attributes], **chosen),
                lambda n, total: progress((n, total), unit="model evaluations"),
            )
            each = [("all, side by side", 0), *((f"sample {i}", i) for i in range(1, len(scenes)))]
            files = [str(scene) for scene in scenes]
            return [sheet, files, gr.Radio(each, value=1, visible=True), *sample_in_3d(files, 1), "; ".join(said)]
        except (UsageError, DataError, FloatingPointError) as error:
            return [gr.skip()] * 5 + [in_words(error, path)]

    def in_3d(scene: Path, label: str) -> Any:
        return gr.Model3D(str(scene), label=label, camera_position=(*CAMERA, studio.distance(scene)))

    def sample_in_3d(files: list[str], which: int) -> list[Any]:
        file = Path(files[whole("In 3D", which, 0, len(files) - 1)])
        if not file.exists():
            raise UsageError("these samples are no longer there: generate them again")
        label = f"Sample {which}" if which else "All samples"
        return [in_3d(file, label), gr.DownloadButton(f"Download {file.name}", value=str(file), visible=True)]

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        reference = gr.State(None)
        files = gr.State([])
        gr.Markdown(HOW_TO)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                with gr.Tabs():
                    with gr.Tab("Embedded set", visible=bool(embedded), elem_id="embedded") as embedded_tab:
                        names = list(embedded)
                        kind = gr.Dropdown(names, value=names[0] if names else None, label="Kind", elem_id="kind")
                        most = len(embedded[names[0]]) - 1 if names else 1
                        number = as_sent(gr.Slider(0, most, 0, step=1, label="Number", info="of those not trained on"))
                    with gr.Tab("Another set", elem_id="another") as other_tab:
                        file = gr.File(file_types=[".npz"], label="Set of shapes (.npz)", height=140, elem_id="file")
                        place = as_sent(gr.Number(0, precision=0, minimum=0, label="Number in the set"))
                model = gr.Model3D(
                    label="Shape",
                    interactive=False,
                    height=300,
                    clear_color=BACKGROUND,
                    camera_position=(*CAMERA, None),
                    elem_id="model",
                )
                trouble = gr.Markdown(elem_id="trouble")
            with gr.Column(scale=5, min_width=300):
                picture = gr.Image(
                    note(NO_SHAPE, PICTURE),
                    label="Kept parts are in colour",
                    format="png",
                    height=PICTURE,
                    interactive=False,
                    buttons=[],
                    elem_id="picture",
                )
                parts = gr.CheckboxGroup([], label="Parts that are kept", show_select_all=True, elem_id="parts")
                attributes = gr.CheckboxGroup(
                    [(attribute_name(name), name) for name in studio.layout.attributes],
                    value=list(studio.layout.attributes),
                    label="Attributes that are kept of them",
                    show_select_all=True,
                    elem_id="attributes",
                )
            with gr.Column(scale=4, min_width=300):
                classes = [("any class", ANY_CLASS), *((network.class_name(k), k) for k in range(network.num_labels))]
                widgets = {
                    "kept": as_sent(
                        gr.Slider(
                            0, 1, 0.9, step=0.01, label="How much is kept", info="0: made anew; 1: comes back as it is"
                        )
                    ),
                    "label": gr.Dropdown(classes, value=ANY_CLASS, label="Class"),
                    "variations": as_sent(gr.Slider(1, MAX_VARIATIONS, VARIATIONS, step=1, label="Variations")),
                }
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                said = gr.Markdown(elem_id="said")
                widgets |= sampler_boxes(studio.parser().parse_args(["ODE"]))
        sheet = gr.Image(format="png", label="Samples", interactive=False, elem_id="sheet", buttons=["download"])
        with gr.Row():
            with gr.Column(scale=1, min_width=220):
                which = gr.Radio([], label="In 3D", visible=False, elem_id="which")
                download = gr.DownloadButton(visible=False, elem_id="download")
            with gr.Column(scale=3, min_width=300):
                scene = gr.Model3D(
                    label="Sample in 3D",
                    interactive=False,
                    height=400,
                    clear_color=BACKGROUND,
                    camera_position=(*CAMERA, None),
                    elem_id="scene",
                )

        at_once = {"queue": False, "show_progress": "hidden"}  # also while samples are being generated
        result = [reference, model, picture, parts, trouble]
        if embedded:
            latest = {**at_once, "trigger_mode": "always_last"}
            page.load(load_embedded, [kind, number], result, **at_once)
            kind.input(of_class, kind, number, **at_once).then(load_embedded, [kind, number], result, **at_once)
            number.input(load_embedded, [kind, number], result, **latest)
            embedded_tab.select(load_embedded, [kind, number], result, **at_once)
        other_tab.select(load_other, [file, place], result, **at_once)
        file.upload(load, [file, place], result, **at_once)
        place.input(load_other, [file, place], result, **at_once)
        parts.input(repaint, [reference, parts], picture, **at_once)
        which.input(sample_in_3d, [files, which], [scene, download], **at_once)
        shown_result = [sheet, files, which, scene, download, said]
        button.click(generate, {reference, parts, attributes, *widgets.values()}, shown_result)
    return guard(page)

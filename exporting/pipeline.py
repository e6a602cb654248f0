"""A pipeline of diffusers that samples from a transformer of images by its ODE, with graded control."""

import difflib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from data.tokenizers import AUTOENCODERS
from sampling.guidance import guided
from transport.graded import Graded, Grading, Synchronous, preservation_map
from transport.path import PATHS, PLANS
from transport.shift import grid_shift

METHODS = ("heun", "euler")
Label = int | str | None


class ComboStocPipeline(DiffusionPipeline):
    """Samples of a SiT or ComboStoc model.

    Args:
        transformer: SiTTransformer or ComboStocTransformer.
        vae: an autoencoder of diffusers; None for a model of pixels.
        id2label: names of classes by their numbers, which are strings, as JSON has them.
        path_type, prediction, time_shift: the settings that the model was trained with.
        times: the first and the last time of each method.
        latents: scale and shift: latent = (z - shift) scale, z being the autoencoder's own.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012  # as diffusers declares it
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        transformer: ModelMixin,
        vae: ModelMixin | None = None,
        id2label: dict[str, str] | None = None,
        path_type: str = "Linear",
        prediction: str = "velocity",
        time_shift: float = 1.0,
        times: dict[str, list[float]] | None = None,
        latents: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)
        times = times or {method: [0.0, 1.0] for method in METHODS}
        latents = latents or {"scale": 1.0, "shift": 0.0}
        self.register_to_config(
            id2label=id2label, path_type=path_type, prediction=prediction, time_shift=time_shift, times=times
        )
        self.register_to_config(latents=latents)
        self.labels = {name: int(k) for k, name in (id2label or {}).items()}
        self.factor = 1 if vae is None else AUTOENCODERS[type(vae).__name__].layout(vae).factor
        self.image_size = transformer.config.input_size * self.factor
        grey = vae is None and transformer.config.in_channels == 1
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.factor, do_convert_rgb=not grey, do_convert_grayscale=grey
        )
        self._interrupt = False

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Label | Sequence[Label] = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | str | None = "usual",
        method: str = "heun",
        image: Any = None,
        mask: Any = None,
        num_images_per_label: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw pictures.

        Args:
            class_labels: one or several classes by number or name; None is no class.
            num_inference_steps: steps of the method; sample.py's --num-sampling-steps counts points, one more.
            guidance_scale: scale of classifier-free guidance, 1 for none, 0 for samples without a class.
            guidance_interval: (low, high): guide while t, from 0 (noise) to 1 (data), is in it.
            guidance_channels: guide the first K channels; None for all, "usual" for 3 of four, else all.
            method: "heun" (2 evaluations per step) or "euler" (1).
            image: graded control: a picture to keep something of, as PIL, array or tensor in [0, 1], or one for each
                label; of the size of the model, else resized.
            mask: how much of the image is kept, from 0 to 1: a number, a grey picture (white keeps), or (H, W) numbers.
            num_images_per_label: pictures to draw for each label.
            generator: generator of the noise; or one for each picture.
            latents: the noise itself, (N, C, h, w).
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called as f(pipeline, step, t, {"latents": x}) after each step; "latents" in the dict
                that it returns replace x. Setting pipeline._interrupt ends the sampling.

        Raises:
            ValueError: an argument is not accepted.
        """
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        if guidance_scale != 0 and guidance_scale < 1:
            raise ValueError(f"guidance_scale {guidance_scale:g} is less than 1, which is no guidance")
        if (image is None) != (mask is None):
            raise ValueError("graded control takes image and mask, what to keep and how much of it: give both or none")
        labels: Any = [class_labels] if np.ndim(class_labels) == 0 else class_labels  # type: ignore[arg-type]
        chosen = [self.class_number(k) for k in labels]
        y = torch.tensor(chosen, device=self._execution_device).repeat_interleave(num_images_per_label)
        config = self.transformer.config
        shape = (len(y), config.in_channels, config.input_size, config.input_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=y.device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, {len(y)} pictures need {shape}")
        z = latents.to(y.device, torch.float32)
        t0, t1 = self.config.times[method]
        path = PLANS[PATHS[self.config.path_type]]()
        if image is None:
            course: Synchronous | Graded = Synchronous()
        else:
            reference, m = self.encode(image), self.preserved(mask, y.device)
            for name, given in (("image", reference), ("mask", m)):
                if len(given) not in (1, len(chosen)):
                    raise ValueError(f"{name} holds {len(given)}; give one, or one for each of {len(chosen)} labels")
            reference, m = (
                part.expand(len(chosen), *part.shape[1:]).repeat_interleave(num_images_per_label, 0)
                for part in (reference, m)
            )
            kept = preservation_map(m, reference)
            course = Graded(path, Grading(reference, kept, "number"), z, t0, t1, num_inference_steps + 1)

        field = guided(self.transformer, guidance_scale, guidance_channels, guidance_interval)
        convert = None if self.config.prediction == "velocity" else f"get_velocity_from_{self.config.prediction}"

        def velocity(x: Tensor, s: Tensor) -> Tensor:
            s = s.expand(len(x))
            t = course.times(s)
            output = field(x.to(self.transformer.dtype), t, y).float()
            return (getattr(path, convert)(output, x, t) if convert else output) * course.rate(s)

        grid = torch.linspace(t0, t1, num_inference_steps + 1, device=z.device)
        if (shift := grid_shift(self.config.time_shift, t0, t1)) is not None:
            grid = shift(grid)
        x = course.begin(z)
        self._interrupt = False
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, (s, end) in enumerate(pairwise(grid)):
                if self._interrupt:
                    break
                step, slope = end - s, velocity(x, s)
                # A predicted x1 is divided by sigma, which is 0 at the end: there Euler's step lands on it.
                lands = self.config.prediction == "data" and i == num_inference_steps - 1
                if method == "heun" and not lands:
                    slope = 0.5 * (slope + velocity(x + step * slope, end))
                x = x + step * slope
                if callback_on_step_end is not None:
                    known = {"latents": x}
                    told = {name: known[name] for name in callback_on_step_end_tensor_inputs}
                    x = (callback_on_step_end(self, i, end, told) or {}).get("latents", x)
                bar.update()
        x = course.end(x)
        if output_type == "latent":
            images: Any = x
        else:
            images = self.image_processor.postprocess(self.decode(x), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def class_number(self, label: Label) -> int:
        """The number of a class; None is the null class, one after the last.

        Raises:
            ValueError: there is no such class.
        """
        count = self.transformer.config.num_classes
        if label is None:
            return count
        if isinstance(label, str) and label not in self.labels:
            near = difflib.get_close_matches(label, self.labels, n=3) or list(self.labels)[:3]
            raise ValueError(f"no class {label!r}; the model has {count}" + f", such as {', '.join(near)}" * bool(near))
        number = self.labels[label] if isinstance(label, str) else int(label)
        if not 0 <= number < count:
            raise ValueError(f"class label {number} is out of range: the model has 0 to {count - 1}, and None")
        return number

    def encode(self, image: Any) -> Tensor:
        """Pictures as inputs of the transformer: (N, C, h, w) float32."""
        pictures = self.image_processor.preprocess(image, self.image_size, self.image_size, resize_mode="default")
        pictures = pictures.to(self._execution_device, torch.float32)
        if self.vae is None:
            return pictures
        kind = AUTOENCODERS[type(self.vae).__name__]
        z = kind.encode(self.vae, pictures.to(self.vae.dtype))[0].float()
        return (z - self.latent_factor("shift", z)) * self.latent_factor("scale", z)

    def decode(self, x: Tensor) -> Tensor:
        """Pictures (N, C, H, W) in [-1, 1] of samples (N, C, h, w)."""
        if self.vae is None:
            return x
        z = x / self.latent_factor("scale", x) + self.latent_factor("shift", x)
        return AUTOENCODERS[type(self.vae).__name__].decode(self.vae, z.to(self.vae.dtype)).float()

    def latent_factor(self, name: str, x: Tensor) -> Tensor:
        """Scale or shift of latents, as a tensor (1 or C, 1, 1)."""
        return torch.tensor(self.config.latents[name], device=x.device, dtype=x.dtype).view(-1, 1, 1)

    def preserved(self, mask: Any, device: torch.device) -> Tensor:
        """The preservation map of a mask: (1, 1, 1, 1), or for every position (N or 1, 1, h, w).

        Raises:
            ValueError: the mask is not of the size of the pictures.
        """
        if isinstance(mask, int | float):
            return torch.full((1, 1, 1, 1), float(mask), device=device)
        if isinstance(mask, Image.Image):
            size = self.image_size
            grey = mask.convert("L")
            grey = grey if grey.size == (size, size) else grey.resize((size, size), Image.Resampling.BOX)
            mask = np.asarray(grey, dtype=np.float32) / 255
        m = torch.as_tensor(mask, dtype=torch.float32, device=device)
        if m.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"mask of shape {tuple(m.shape)} is not of {self.image_size} x {self.image_size} pixels")
        return F.avg_pool2d(m.reshape(-1, 1, *m.shape[-2:]), self.factor)

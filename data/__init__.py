"""What is trained on: data sets, pictures, latents, and their way to the model."""

from data.images import center_crop_arr as center_crop_arr  # SiT has it here

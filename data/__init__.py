"""Training data: sets and their order, picture files, cached latents, the autoencoder, the way to the device; and
pictures made of samples."""

from data.images import center_crop_arr as center_crop_arr  # SiT has it here
